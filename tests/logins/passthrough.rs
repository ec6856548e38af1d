//! With what PostgreSQL keeps of a password, and the client's own proof, the upstream login is made: no password anywhere.

use crate::certificates::{Authority, KeyKind};
use crate::stage::{Stage, WRONG, kept};
use crate::support::{Auth, Postgres, no_valet};

fn with_alice(auth: Auth, settings: &[&str]) -> Postgres {
    let postgres = Postgres::start_with(auth, settings);
    postgres.sql("CREATE ROLE alice LOGIN PASSWORD 'pencil'");
    postgres
}

fn user(postgres: &Postgres) -> String {
    format!(
        "[users.alice]\npassword = \"{}\"\n",
        kept(postgres, "alice")
    )
}

#[test]
fn a_verifier_and_the_clients_proof_log_in_to_postgresql() {
    if no_valet() {
        return;
    }
    let postgres = with_alice(Auth::Scram, &[]);
    let stage = Stage::new(&postgres, "alice", &user(&postgres));
    let wrong = stage.login("alice", "eraser").expect_err("wrong");
    assert!(wrong.contains(WRONG), "{wrong}");
    assert_eq!(stage.login("alice", "pencil").as_deref(), Ok("alice"));
    // A new backend needs no new proof, and a session that lives on gets it.
    let kill =
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = 'alice'";
    postgres.sql(kill);
    assert_eq!(stage.login("alice", "pencil").as_deref(), Ok("alice"));
}

#[test]
fn the_plain_password_fits_a_verifier_as_well() {
    if no_valet() {
        return;
    }
    let postgres = with_alice(Auth::Scram, &[]);
    let config = format!("{}[[logins]]\nmethod = \"password\"\n", user(&postgres));
    let stage = Stage::new(&postgres, "alice", &config);
    let wrong = stage.login("alice", "eraser").expect_err("wrong");
    assert!(wrong.contains(WRONG), "{wrong}");
    assert_eq!(stage.login("alice", "pencil").as_deref(), Ok("alice"));
}

#[test]
fn where_md5_is_asked_for_and_a_verifier_known_scram_is_done() {
    if no_valet() {
        return;
    }
    let postgres = with_alice(Auth::Scram, &[]);
    let config = format!("{}[[logins]]\nmethod = \"md5\"\n", user(&postgres));
    let stage = Stage::new(&postgres, "alice", &config);
    assert_eq!(stage.login("alice", "pencil").as_deref(), Ok("alice"));
    assert!(stage.login("alice", "eraser").is_err());
}

#[test]
fn both_legs_may_be_bound_to_their_own_tls() {
    if no_valet() {
        return;
    }
    let authority = Authority::new("root");
    let postgres = tls_postgres(&authority);
    postgres.sql("CREATE ROLE alice LOGIN PASSWORD 'pencil'");
    let pair = authority.issue("valet", "localhost", KeyKind::Ec);
    let config = format!(
        "tls = \"require\"\ntls_cert = {:?}\ntls_key = {:?}\n{}",
        pair.cert(),
        pair.key(),
        user(&postgres)
    );
    let stage = Stage::new(&postgres, "alice", &config);
    let bound = "host=localhost hostaddr=127.0.0.1 sslmode=require channel_binding=require";
    // PostgreSQL refuses an upstream login over TLS that could be bound, and isn't.
    assert_eq!(
        stage.login_with("alice", "pencil", bound).as_deref(),
        Ok("alice")
    );
    let encrypted = "SELECT count(*) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE ssl AND usename = 'alice'";
    assert_eq!(postgres.sql(encrypted), "1");
}

fn tls_postgres(authority: &Authority) -> Postgres {
    let pair = authority.issue("postgres", "localhost", KeyKind::Rsa);
    let mut postgres = Postgres::start_with(Auth::Scram, &[]);
    let data = postgres.socket_directory().join("data");
    for (from, to) in [(&pair.cert, "server.crt"), (&pair.key, "server.key")] {
        let text = std::fs::read_to_string(from).expect("PEM");
        // PostgreSQL itself writes it, so that it is its own.
        let path = data.join(to);
        let quoted = text.replace('\n', "\\n");
        postgres.sql(&format!(
            "COPY (SELECT E'{quoted}') TO PROGRAM 'umask 077; sed \"s/\\\\\\\\n/\\n/g\" > {}'",
            path.display()
        ));
    }
    postgres.sql("ALTER SYSTEM SET ssl = on");
    postgres.restart();
    postgres
}

#[test]
fn before_a_client_has_shown_its_keys_nobody_gets_a_backend() {
    if no_valet() {
        return;
    }
    let postgres = with_alice(Auth::Scram, &[]);
    let config = format!(
        "{}[[logins]]\nlistener = \"unix:DIR\"\nmethod = \"trust\"\n[[logins]]\nmethod = \"scram\"\n",
        user(&postgres)
    );
    let stage = Stage::new(&postgres, "alice", &config);
    let early = stage
        .login_by_unix("alice", "")
        .expect_err("nothing is known");
    assert!(
        early.contains("pgvalet knows it only once a client has logged in with it"),
        "{early}"
    );
    assert_eq!(stage.login("alice", "pencil").as_deref(), Ok("alice"));
    assert_eq!(stage.login_by_unix("alice", "").as_deref(), Ok("alice"));
}

#[test]
fn a_verifier_that_isn_t_postgresql_s_own_is_named() {
    if no_valet() {
        return;
    }
    let postgres = with_alice(Auth::Scram, &[]);
    let config = user(&postgres);
    // The same password, another salt.
    postgres.sql("ALTER ROLE alice PASSWORD 'pencil'");
    let stage = Stage::new(&postgres, "alice", &config);
    let refused = stage
        .login("alice", "pencil")
        .expect_err("the keys don't fit");
    assert!(
        refused
            .contains("the SCRAM verifier of user \"alice\" that pgvalet knows isn't PostgreSQL's"),
        "{refused}"
    );
}

#[test]
fn an_md5_hash_serves_both_legs() {
    if no_valet() {
        return;
    }
    let postgres = Postgres::start_with(Auth::Md5, &["password_encryption=md5"]);
    postgres.sql("CREATE ROLE alice LOGIN PASSWORD 'pencil'");
    assert!(kept(&postgres, "alice").starts_with("md5"));
    for method in ["md5", "password"] {
        let config = format!("{}[[logins]]\nmethod = \"{method}\"\n", user(&postgres));
        let stage = Stage::new(&postgres, "alice", &config);
        assert_eq!(
            stage.login("alice", "pencil").as_deref(),
            Ok("alice"),
            "{method}"
        );
        let wrong = stage.login("alice", "eraser").expect_err("wrong");
        assert!(wrong.contains(WRONG), "{method}: {wrong}");
    }
    // It is no SCRAM secret.
    let stage = Stage::new(&postgres, "alice", &user(&postgres));
    let refused = stage.login("alice", "pencil").expect_err("not by SCRAM");
    assert!(refused.contains(WRONG), "{refused}");
}
