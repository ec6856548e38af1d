//! The Rails glue (deploy/rails/pgvalet.rb) in a real Rails, with its real reloader, through a real pgvalet.
//!
//! Starts what the Ruby scenarios of tests/rails/ need, runs them, and shows what they print. Each has a PostgreSQL of
//! its own. `PGVALET_STRESS_SECONDS` lengthens the stress (12 s), `PGVALET_TEST_SEED` repeats one, `PGVALET_TEST_RUBY` is
//! the Ruby to take (scripts/rails-matrix has some with other versions of Rails).

mod support;

use std::ffi::OsString;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use support::{Postgres, Valet, no_valet, skip};

/// Short, so that a claim is sent while a scenario runs.
const PARK_AFTER: &str = "500ms";

/// Ruby with the system's Rails, or with the one of `PGVALET_TEST_RUBY`.
fn usual() -> OsString {
    std::env::var_os("PGVALET_TEST_RUBY").unwrap_or_else(|| "ruby".into())
}

/// Ruby with a newer Rails, which scripts/bootstrap gets where the distribution's next release has one.
fn newer() -> OsString {
    Path::new(env!("CARGO_TARGET_TMPDIR"))
        .join("rails/trixie/ruby")
        .into()
}

#[test]
fn rails_glue_takes_only_what_it_may() {
    plainly(&usual(), "glue_test.rb");
}

#[test]
fn rails_newer_glue_takes_only_what_it_may() {
    plainly(&newer(), "glue_test.rb");
}

#[test]
fn rails_without_the_glue_waits_twice_the_checkout_timeout() {
    plainly(&usual(), "reload.rb");
}

#[test]
fn rails_reloads_without_waiting_for_a_parked_owner() {
    through_pgvalet(&usual(), "reload.rb");
}

#[test]
fn rails_newer_reloads_without_waiting_for_a_parked_owner() {
    through_pgvalet(&newer(), "reload.rb");
}

#[test]
fn rails_reload_disturbs_nobody_who_is_busy() {
    through_pgvalet(&usual(), "busy.rb");
}

#[test]
fn rails_newer_reload_disturbs_nobody_who_is_busy() {
    through_pgvalet(&newer(), "busy.rb");
}

#[test]
fn rails_reloads_where_pgvalet_is_silent_down_or_mad() {
    through_pgvalet(&usual(), "faults.rb"); // it brings an admin listener of its own
}

#[test]
fn rails_reloader_is_told_who_holds_it_up() {
    through_pgvalet(&usual(), "blocked.rb");
}

#[test]
fn rails_owners_that_stay_parked_are_known_by_name() {
    through_pgvalet(&usual(), "claims.rb");
}

#[test]
fn rails_fibers_that_park_are_known_and_taken_back() {
    through_pgvalet(&usual(), "fibers.rb");
}

#[test]
fn rails_newer_fibers_that_park_are_known_and_taken_back() {
    through_pgvalet(&newer(), "fibers.rb");
}

#[test]
fn rails_forked_child_speaks_for_itself() {
    through_pgvalet(&usual(), "forks.rb");
}

#[test]
fn rails_newer_forked_child_speaks_for_itself() {
    through_pgvalet(&newer(), "forks.rb");
}

#[test]
fn rails_databases_roles_and_shards_go_to_their_own_pgvalet() {
    through_pgvalet(&usual(), "databases.rb");
}

#[test]
fn rails_newer_databases_roles_and_shards_go_to_their_own_pgvalet() {
    through_pgvalet(&newer(), "databases.rb");
}

#[test]
fn rails_under_continuous_reloads_crosses_and_tears_nothing() {
    through_pgvalet(&usual(), "stress.rb");
}

/// Straight at PostgreSQL.
fn plainly(ruby: &OsString, script: &str) {
    let Some(_turn) = turn(ruby) else { return };
    let postgres = Postgres::start();
    let url = postgres.url("postgres", "postgres");
    scenario(ruby, script, &[("APP_DATABASE_URL", &url)]);
}

/// Through a pgvalet; a second one, and PostgreSQL itself, are there too.
fn through_pgvalet(ruby: &OsString, script: &str) {
    let Some(_turn) = turn(ruby) else { return };
    if no_valet() {
        return;
    }
    let postgres = Postgres::start();
    let [valet, other] =
        [(); 2].map(|()| Valet::front_with(&postgres, &["--park-after", PARK_AFTER]));
    let admin = |valet: &Valet| format!("http://127.0.0.1:{}", valet.admin_port());
    let url = |valet: &Valet| valet.url("postgres", "postgres");
    scenario(
        ruby,
        script,
        &[
            ("APP_DATABASE_URL", &url(&valet)),
            ("PGVALET_ADMIN_URL", &admin(&valet)),
            ("OTHER_DATABASE_URL", &url(&other)),
            ("OTHER_ADMIN_URL", &admin(&other)),
            ("DIRECT_DATABASE_URL", &postgres.url("postgres", "postgres")),
            ("PGVALET_PARK_AFTER", PARK_AFTER),
        ],
    );
}

/// One scenario at a time, since they measure time; none where there is no Rails.
fn turn(program: &OsString) -> Option<MutexGuard<'static, ()>> {
    static TURN: Mutex<()> = Mutex::new(());
    let probe = r#"require "pg"; require "rails"; require "active_record/railtie""#;
    let found = ruby(program).args(["-e", probe]).output();
    if !found.is_ok_and(|output| output.status.success()) {
        skip(if *program == newer() {
            "no newer Rails here (scripts/rails-matrix trixie)"
        } else {
            "no Ruby with Rails and pg on PATH (Debian: apt-get install ruby-rails ruby-pg)"
        });
        return None;
    }
    Some(TURN.lock().unwrap_or_else(PoisonError::into_inner))
}

#[track_caller]
fn scenario(program: &OsString, script: &str, environment: &[(&str, &str)]) {
    let path = format!("{}/tests/rails/{script}", env!("CARGO_MANIFEST_DIR"));
    let mut command = ruby(program);
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
fn ruby(program: &OsString) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy().into_owned();
        if name.starts_with("PGVALET_") || name.starts_with("PG") || name == "DATABASE_URL" {
            command.env_remove(name);
        }
    }
    command.arg("-W0").stdin(Stdio::null());
    command
}
