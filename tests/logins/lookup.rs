//! Users whom only PostgreSQL knows: auth_query, its answers and its failures.

use crate::stage::{Stage, WRONG};
use crate::support::{Auth, Postgres, Raw, eventually, no_valet};

const DEFAULT: &str = "auth_query = \"default\"\n";

fn with_roles() -> Postgres {
    let postgres = Postgres::start_with(Auth::Scram, &[]);
    postgres.sql("CREATE ROLE alice LOGIN PASSWORD 'pencil'");
    postgres.sql("CREATE ROLE late LOGIN PASSWORD 'pencil' VALID UNTIL '2020-01-01'");
    postgres.sql("CREATE ROLE early LOGIN PASSWORD 'pencil' VALID UNTIL '2999-01-01'");
    postgres.sql("CREATE ROLE staff NOLOGIN PASSWORD 'pencil'");
    postgres
}

/// A table of every question, behind a function that answers as the default query does.
const COUNTING: &str = "CREATE TABLE asked (name text);
    CREATE FUNCTION secret(text) RETURNS TABLE (name text, secret text) LANGUAGE sql SECURITY DEFINER AS $$
    INSERT INTO public.asked VALUES ($1);
    SELECT rolname, rolpassword FROM pg_authid WHERE rolname = $1 $$;";

fn counting(keep: &str) -> (Postgres, Stage) {
    let postgres = with_roles();
    postgres.sql(COUNTING);
    postgres.sql("CREATE ROLE asker LOGIN PASSWORD 'asks'");
    let config = format!(
        "auth_query = \"SELECT name, secret FROM public.secret($1)\"\nauth_user = \"asker\"\n\
         auth_query_cache = \"{keep}\"\n[users.asker]\npassword = \"asks\"\n"
    );
    let stage = Stage::new(&postgres, "postgres", &config);
    (postgres, stage)
}

#[test]
fn whom_postgresql_knows_gets_in_with_the_own_password() {
    if no_valet() {
        return;
    }
    let postgres = with_roles();
    let stage = Stage::new(&postgres, "postgres:postgres", DEFAULT);
    assert_eq!(stage.login("alice", "pencil").as_deref(), Ok("alice"));
    assert_eq!(stage.login("early", "pencil").as_deref(), Ok("early"));
    // A wrong password, nobody, and one whose password has expired: all the same.
    for (user, password) in [
        ("alice", "eraser"),
        ("mallory", "pencil"),
        ("staff", "eraser"),
        ("late", "pencil"),
    ] {
        let refused = stage.login(user, password).expect_err("refused");
        assert!(
            refused.contains(&format!("{WRONG} \"{user}\"")),
            "{refused}"
        );
    }
    // Who has the password and mayn't log in hears it, as from PostgreSQL.
    let refused = stage.login("staff", "pencil").expect_err("refused");
    let text = "role \"staff\" is not permitted to log in";
    assert!(refused.contains(text), "{refused}");
}

#[test]
fn each_method_takes_what_postgresql_says() {
    if no_valet() {
        return;
    }
    let postgres = with_roles();
    for method in ["scram", "md5", "password"] {
        let config = format!("{DEFAULT}[[logins]]\nmethod = \"{method}\"\n");
        let stage = Stage::new(&postgres, "postgres:postgres", &config);
        assert_eq!(
            stage.login("alice", "pencil").as_deref(),
            Ok("alice"),
            "{method}"
        );
        for (user, password) in [
            ("alice", "eraser"),
            ("mallory", "pencil"),
            ("late", "pencil"),
        ] {
            let refused = stage.login(user, password).expect_err("refused");
            assert!(refused.contains(WRONG), "{method}: {refused}");
        }
    }
}

#[test]
fn a_role_that_may_call_one_function_is_enough_and_answers_are_kept() {
    if no_valet() {
        return;
    }
    let (postgres, stage) = counting("1h");
    for _ in 0..5 {
        assert_eq!(stage.login("alice", "pencil").as_deref(), Ok("alice"));
    }
    assert_eq!(
        postgres.sql("SELECT count(*) FROM asked WHERE name = 'alice'"),
        "1"
    );
}

#[test]
fn guesses_at_users_that_don_t_exist_are_asked_for_once() {
    if no_valet() {
        return;
    }
    let (postgres, stage) = counting("1h");
    for _ in 0..20 {
        // As far as the challenge.
        let mut client = Raw::dial(stage.valet.port());
        client.send(&crate::support::messages::startup(
            0x0003_0000,
            &[("user", "mallory"), ("database", "postgres")],
        ));
        client.until(b'R');
    }
    assert_eq!(postgres.sql("SELECT count(*) FROM asked"), "1");
}

#[test]
fn a_password_that_changes_is_known_soon_however_long_answers_are_kept() {
    if no_valet() {
        return;
    }
    let (postgres, stage) = counting("1h");
    assert_eq!(stage.login("alice", "pencil").as_deref(), Ok("alice"));
    postgres.sql("ALTER ROLE alice PASSWORD 'crayon'");
    // A wrong password casts doubt on an answer, but not on one that is new.
    eventually("the new password gets in", || {
        stage.login("alice", "crayon").is_ok()
    });
    assert!(stage.login("alice", "pencil").is_err());
    let open = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'alice'";
    postgres.sql(open);
    assert_eq!(
        stage.login("alice", "crayon").as_deref(),
        Ok("alice"),
        "upstream, too"
    );
}

#[test]
fn names_in_the_query_are_postgresql_s_own_whatever_a_search_path_says() {
    if no_valet() {
        return;
    }
    let postgres = with_roles();
    postgres.sql(
        "CREATE SCHEMA evil; CREATE TABLE evil.pg_authid (rolname text, rolpassword text);
         INSERT INTO evil.pg_authid VALUES ('alice', 'evil');
         ALTER ROLE postgres SET search_path = evil, pg_catalog",
    );
    let query = "auth_query = \"SELECT rolname, rolpassword FROM pg_authid WHERE rolname = $1\"\n";
    let stage = Stage::new(&postgres, "postgres:postgres", query);
    assert!(stage.login("alice", "evil").is_err());
    let options = "host=127.0.0.1 options='-c search_path=evil,pg_catalog'";
    assert_eq!(
        stage.login_with("alice", "pencil", options).as_deref(),
        Ok("alice")
    );
}

#[test]
fn a_question_that_fails_is_told_shortly_to_the_client_and_at_length_to_the_log() {
    if no_valet() {
        return;
    }
    let postgres = with_roles();
    let query = "auth_query = \"SELECT a, b FROM public.nowhere WHERE a = $1\"\n";
    let stage = Stage::new(&postgres, "postgres:postgres", query);
    for _ in 0..20 {
        let parameters = [("user", "alice"), ("database", "postgres")];
        let error = Raw::refused(stage.valet.port(), &parameters);
        assert_eq!(error.sqlstate(), "58000");
        let text = error.field(b'M').expect("a message");
        assert_eq!(
            text,
            "pgvalet could not ask PostgreSQL for the password of user \"alice\""
        );
    }
    let told = || {
        stage
            .valet
            .log()
            .contains("relation \"public.nowhere\" does not exist")
    };
    eventually("the log says why", told);
    let log = stage.valet.log();
    let lines = log
        .lines()
        .filter(|line| line.contains("auth_query failed"))
        .count();
    assert!(
        (1..20).contains(&lines),
        "a failure is kept for a second: {log}"
    );
}

#[test]
fn the_one_who_asks_outlives_postgresql_s_restarts() {
    if no_valet() {
        return;
    }
    let mut postgres = with_roles();
    let config = format!("{DEFAULT}auth_query_cache = \"0s\"\n");
    let stage = Stage::new(&postgres, "postgres:postgres", &config);
    assert_eq!(stage.login("alice", "pencil").as_deref(), Ok("alice"));
    postgres.restart();
    eventually("logins work again", || {
        stage.login("alice", "pencil").is_ok()
    });
}
