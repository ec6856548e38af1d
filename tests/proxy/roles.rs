//! What becomes of a role shows to whoever logs in as it next, and to nobody's harm.

use crate::support::messages::startup;
use crate::support::{Postgres, Raw, Valet};

fn log_in(valet: &Valet, user: &str) -> Raw {
    Raw::connect_with(valet.port(), &[("user", user), ("database", "postgres")])
}

/// A role `app` that has a backend at rest, and an administrator's session.
fn used_role(flags: &[&str]) -> (Postgres, Valet, Raw) {
    let postgres = Postgres::start();
    postgres
        .sql("CREATE ROLE app LOGIN; ALTER ROLE app SET work_mem = '7MB'; CREATE ROLE other LOGIN");
    let valet = Valet::front_with(&postgres, flags);
    for user in ["app", "other"] {
        let mut before = log_in(&valet, user);
        before.value("SELECT 1");
        before.goodbye();
    }
    let admin = log_in(&valet, "postgres");
    (postgres, valet, admin)
}

const MODES: [&[&str]; 3] = [
    &[],
    &["--mode", "transaction"],
    &["--chaos-return", "always"],
];

#[test]
fn a_role_made_anew_is_not_the_one_of_that_name_before() {
    for flags in MODES {
        let (_postgres, valet, mut admin) = used_role(flags);
        admin.query("ALTER ROLE app RENAME TO app_old; CREATE ROLE app LOGIN; CREATE TABLE secret (); GRANT SELECT ON secret TO app_old");
        let mut app = log_in(&valet, "app");
        assert_eq!(app.value("SELECT current_user || session_user"), "appapp");
        assert_eq!(app.failure("TABLE secret"), "42501");
        admin.query("DROP ROLE other");
        admin.query("CREATE ROLE other LOGIN");
        let mut other = log_in(&valet, "other");
        assert_eq!(other.value("SELECT current_user"), "other");
        other.query("CREATE TEMP TABLE mine ()");
    }
}

#[test]
fn a_role_s_new_defaults_are_those_of_who_logs_in_next() {
    for flags in MODES {
        let (_postgres, valet, mut admin) = used_role(flags);
        admin.query("BEGIN");
        admin.query("ALTER USER app SET work_mem = '8MB'");
        // Nobody sees that yet.
        let mut early = log_in(&valet, "app");
        assert_eq!(early.value("SHOW work_mem"), "7MB");
        admin.query("COMMIT");
        let mut app = log_in(&valet, "app");
        assert_eq!(app.value("SHOW work_mem"), "8MB", "with {flags:?}");
        if !flags.contains(&"always") {
            // As without a proxy, as long as it needs no backend that is opened since.
            assert_eq!(early.value("SHOW work_mem"), "7MB", "with {flags:?}");
        }
        admin.query("ALTER ROLE postgres SET work_mem = '9MB'");
        let mut next = log_in(&valet, "postgres");
        assert_eq!(next.value("SHOW work_mem"), "9MB", "with {flags:?}");
    }
}

#[test]
fn a_database_s_new_defaults_are_those_of_who_logs_in_next() {
    for flags in MODES {
        let (_postgres, valet, mut admin) = used_role(flags);
        admin.query("BEGIN");
        admin.query("ALTER DATABASE postgres SET lock_timeout = '7s'");
        // Nobody sees that yet.
        let mut early = log_in(&valet, "other");
        assert_eq!(early.value("SHOW lock_timeout"), "0");
        early.goodbye();
        admin.query("COMMIT");
        let mut other = log_in(&valet, "other");
        assert_eq!(other.value("SHOW lock_timeout"), "7s", "with {flags:?}");
    }
}

#[test]
fn sessions_from_before_find_the_same_defaults_in_each_transaction() {
    let (_postgres, valet, mut admin) = used_role(&["--mode", "transaction"]);
    let (mut one, mut other) = (log_in(&valet, "app"), log_in(&valet, "app"));
    admin.query("ALTER ROLE app SET work_mem = '8MB'");
    one.query("BEGIN");
    assert_eq!(one.value("SHOW work_mem"), "7MB");
    // It needs one more backend.
    assert_eq!(other.value("SHOW work_mem"), "8MB");
    one.query("COMMIT");
    for _ in 0..3 {
        assert_eq!(one.value("SHOW work_mem"), "8MB");
        assert_eq!(other.value("SHOW work_mem"), "8MB");
    }
}

#[test]
fn a_role_that_may_not_log_in_any_more_does_not() {
    let (_postgres, valet, mut admin) = used_role(&[]);
    let attempt = |user: &str| {
        let mut raw = Raw::dial(valet.port());
        raw.send(&startup(
            0x0003_0000,
            &[("user", user), ("database", "postgres")],
        ));
        raw.until(b'E').sqlstate()
    };
    admin.query("ALTER ROLE app NOLOGIN");
    assert_eq!(attempt("app"), "28000");
    admin.query("DO $$ BEGIN EXECUTE 'DROP ROLE app'; END $$; DROP ROLE other");
    assert_eq!(attempt("other"), "28000");
}
