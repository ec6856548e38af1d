//! The Rails glue (deploy/rails/pgvalet.rb) in a real Rails, with its real reloader, through a real pgvalet.
//!
//! Starts what the Ruby scenarios of tests/rails/ need, runs them, and shows what they print. Each has a PostgreSQL of
//! its own. `PGVALET_STRESS_SECONDS` lengthens the stress (12 s), `PGVALET_TEST_SEED` repeats one.

mod support;

use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use support::{Postgres, Valet, no_valet, skip};

/// Short, so that a claim is sent while a scenario runs.
const PARK_AFTER: &str = "500ms";

#[test]
fn rails_glue_takes_only_what_it_may() {
    let Some(_turn) = turn() else { return };
    let postgres = Postgres::start();
    scenario(
        "glue_test.rb",
        &[("APP_DATABASE_URL", &postgres.url("postgres", "postgres"))],
    );
}

#[test]
fn rails_without_the_glue_waits_twice_the_checkout_timeout() {
    let Some(_turn) = turn() else { return };
    let postgres = Postgres::start();
    scenario(
        "reload.rb",
        &[("APP_DATABASE_URL", &postgres.url("postgres", "postgres"))],
    );
}

#[test]
fn rails_reloads_in_milliseconds_while_an_owner_is_parked() {
    through_pgvalet("reload.rb");
}

#[test]
fn rails_reload_disturbs_nobody_who_is_busy() {
    through_pgvalet("busy.rb");
}

#[test]
fn rails_reloads_where_pgvalet_is_silent_down_or_mad() {
    through_pgvalet("faults.rb"); // it brings an admin listener of its own
}

#[test]
fn rails_reloader_is_told_who_holds_it_up() {
    through_pgvalet("blocked.rb");
}

#[test]
fn rails_owners_that_stay_parked_are_known_by_name() {
    through_pgvalet_with("claims.rb", &["--park-after", PARK_AFTER]);
}

#[test]
fn rails_under_continuous_reloads_crosses_and_tears_nothing() {
    through_pgvalet("stress.rb");
}

fn through_pgvalet(script: &str) {
    through_pgvalet_with(script, &[]);
}

fn through_pgvalet_with(script: &str, flags: &[&str]) {
    let Some(_turn) = turn() else { return };
    if no_valet() {
        return;
    }
    let postgres = Postgres::start();
    let valet = Valet::front_with(&postgres, flags);
    let admin = format!("http://127.0.0.1:{}", valet.admin_port());
    let url = valet.url("postgres", "postgres");
    scenario(
        script,
        &[
            ("APP_DATABASE_URL", &url),
            ("PGVALET_ADMIN_URL", &admin),
            ("PGVALET_PARK_AFTER", PARK_AFTER),
        ],
    );
}

/// One scenario at a time, since they measure time; none where there is no Rails.
fn turn() -> Option<MutexGuard<'static, ()>> {
    static TURN: Mutex<()> = Mutex::new(());
    let probe = r#"require "pg"; require "rails"; require "active_record/railtie""#;
    let found = ruby().args(["-e", probe]).output();
    if !found.is_ok_and(|output| output.status.success()) {
        skip("no Ruby with Rails and pg on PATH (Debian: apt-get install ruby-rails ruby-pg)");
        return None;
    }
    Some(TURN.lock().unwrap_or_else(PoisonError::into_inner))
}

#[track_caller]
fn scenario(script: &str, environment: &[(&str, &str)]) {
    let path = format!("{}/tests/rails/{script}", env!("CARGO_MANIFEST_DIR"));
    let mut command = ruby();
    command.arg(path).envs(environment.iter().copied());
    for (ours, theirs) in [
        ("PGVALET_STRESS_SECONDS", "STRESS_SECONDS"),
        ("PGVALET_TEST_SEED", "SEED"),
    ] {
        if let Some(value) = std::env::var_os(ours) {
            command.env(theirs, value);
        }
    }
    let output = command.output().expect("ruby can be run");
    let said = String::from_utf8_lossy(&output.stdout);
    println!("{said}");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{script} ended with {}:\n{said}\n{errors}",
        output.status
    );
}

/// Ruby, without any of our settings, and without warnings of the gems.
fn ruby() -> Command {
    let mut command = Command::new("ruby");
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy().into_owned();
        if name.starts_with("PGVALET_") || name.starts_with("PG") || name == "DATABASE_URL" {
            command.env_remove(name);
        }
    }
    command.arg("-W0").stdin(Stdio::null());
    command
}
