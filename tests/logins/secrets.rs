//! Secrets in files of their own, which change while pgvalet runs.

use crate::stage::{Stage, WRONG, kept, replace};
use crate::support::{Auth, Postgres, eventually, no_valet};

fn stage(postgres: &Postgres, secret: &str) -> Stage {
    let directory = tempfile::tempdir().expect("a directory");
    std::fs::write(directory.path().join("alice"), secret).expect("written");
    let config = "[users.alice]\npassword_file = \"DIR/alice\"\n";
    Stage::with(directory, postgres, "alice", config)
}

#[test]
fn a_mounted_secret_that_changes_needs_no_restart() {
    if no_valet() {
        return;
    }
    let postgres = Postgres::start_with(Auth::Scram, &[]);
    postgres.sql("CREATE ROLE alice LOGIN PASSWORD 'one'");
    let stage = stage(&postgres, "one\n");
    assert_eq!(stage.login("alice", "one").as_deref(), Ok("alice"));
    postgres.sql("ALTER ROLE alice PASSWORD 'two'");
    postgres.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'alice'");
    replace(&stage.path("alice"), "two\n");
    // On both legs: there is no backend left.
    assert_eq!(stage.login("alice", "two").as_deref(), Ok("alice"));
    let old = stage.login("alice", "one").expect_err("the old one");
    assert!(old.contains(WRONG), "{old}");
    let changed = || stage.valet.log().contains("a secret has changed");
    eventually("the log says so", changed);
    let log = stage.valet.log();
    assert!(!log.contains("two"), "{log}");
}

#[test]
fn a_secret_that_vanishes_stays_what_it_was() {
    if no_valet() {
        return;
    }
    let postgres = Postgres::start_with(Auth::Scram, &[]);
    postgres.sql("CREATE ROLE alice LOGIN PASSWORD 'one'");
    let stage = stage(&postgres, "one");
    std::fs::remove_file(stage.path("alice")).expect("removed");
    for _ in 0..3 {
        assert_eq!(stage.login("alice", "one").as_deref(), Ok("alice"));
    }
    let said = || stage.valet.log().contains("a secret stays as it was");
    eventually("the log says so", said);
    let log = stage.valet.log();
    let lines = log
        .lines()
        .filter(|line| line.contains("a secret stays as it was"));
    assert_eq!(lines.count(), 1, "{log}");
}

#[test]
fn a_mounted_verifier_that_changes_is_followed_as_well() {
    if no_valet() {
        return;
    }
    let postgres = Postgres::start_with(Auth::Scram, &[]);
    postgres.sql("CREATE ROLE alice LOGIN PASSWORD 'one'");
    let stage = stage(&postgres, &kept(&postgres, "alice"));
    assert_eq!(stage.login("alice", "one").as_deref(), Ok("alice"));
    postgres.sql("ALTER ROLE alice PASSWORD 'two'");
    postgres.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'alice'");
    replace(&stage.path("alice"), &kept(&postgres, "alice"));
    assert_eq!(stage.login("alice", "two").as_deref(), Ok("alice"));
    assert!(stage.login("alice", "one").is_err());
}
