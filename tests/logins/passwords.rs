//! Where the password for PostgreSQL comes from: libpq's file, its variables, and commands of users' own.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::stage::{Stage, kept};
use crate::support::{Auth, Postgres, Raw, Valet, eventually, no_valet};

/// A PostgreSQL that asks for `postgres`' password, and pgvalet in front of it whose URL holds none.
fn serve(variables: &[(&str, &str)]) -> (Postgres, Valet) {
    let postgres = Postgres::start_with(Auth::Scram, &[]);
    let url = postgres.url("postgres", "postgres");
    let valet = Valet::serve_among(variables, &["--upstream", &url, "--auth", "trust"]);
    (
        postgres,
        valet.unwrap_or_else(|exit| panic!("{}", exit.log)),
    )
}

/// A password file at `path` that only its owner can read.
fn write(path: &Path, lines: &str) {
    std::fs::write(path, lines).expect("written");
    let owner = std::fs::Permissions::from_mode(0o600);
    std::fs::set_permissions(path, owner).expect("it is ours");
}

#[test]
fn pgpassword_is_the_password_of_the_url_s_user() {
    if no_valet() {
        return;
    }
    let (_postgres, valet) = serve(&[("PGPASSWORD", "postgres")]);
    assert_eq!(Raw::connect(valet.port()).value("SELECT 1"), "1");
    let refused = refusal(&serve(&[("PGPASSWORD", "wrong")]).1);
    assert_eq!(refused, "28P01");
}

#[test]
fn the_password_file_serves_from_home_and_from_where_pgpassfile_says() {
    if no_valet() {
        return;
    }
    let home = tempfile::tempdir().expect("a directory");
    let home_path = home.path().to_str().expect("UTF-8");
    // The first line that fits counts.
    let lines = "elsewhere:*:*:*:no\n127.0.0.1:*:postgres:postgres:postgres\n*:*:*:*:wrong\n";
    write(&home.path().join(".pgpass"), lines);
    let (_postgres, valet) = serve(&[("HOME", home_path)]);
    assert_eq!(Raw::connect(valet.port()).value("SELECT 1"), "1");

    let named = home.path().join("named");
    write(&named, "*:*:*:*:wrong\n");
    let named = named.to_str().expect("UTF-8");
    let (_postgres, valet) = serve(&[("HOME", home_path), ("PGPASSFILE", named)]);
    assert_eq!(refusal(&valet), "28P01");
}

/// The SQLSTATE that a client gets instead of a session.
fn refusal(valet: &Valet) -> String {
    let mut client = Raw::dial(valet.port());
    let login = [("user", "postgres"), ("database", "postgres")];
    client.send(&crate::support::messages::startup(0x0003_0000, &login));
    client.until(b'E').sqlstate()
}

#[test]
fn each_user_may_have_a_command_that_prints_its_password() {
    if no_valet() {
        return;
    }
    let postgres = Postgres::start_with(Auth::Scram, &[]);
    postgres.sql("CREATE ROLE alice LOGIN PASSWORD 'token-of-alice'");
    postgres.sql("CREATE ROLE bob LOGIN PASSWORD 'token-of-bob'");
    let config = "
[users.alice]
password = \"what alice says\"
password_command = \"echo token-of-$PGUSER; echo x >> DIR/alice.runs\"
[users.bob]
password = \"what bob says\"
password_command = \"cat DIR/bob\"
password_command_lifetime = \"1s\"
";
    let directory = tempfile::tempdir().expect("a directory");
    std::fs::write(directory.path().join("bob"), "token-of-bob").expect("written");
    let stage = Stage::with(directory, &postgres, "postgres:postgres", config);
    assert_eq!(
        stage.login("alice", "what alice says").as_deref(),
        Ok("alice")
    );
    assert_eq!(stage.login("bob", "what bob says").as_deref(), Ok("bob"));
    // What logs in to PostgreSQL lets no client in.
    assert!(stage.login("alice", "token-of-alice").is_err());
    let runs = std::fs::read_to_string(stage.path("alice.runs")).expect("it ran");
    assert_eq!(runs, "x\n", "once is enough for a quarter of an hour");

    postgres.sql("ALTER ROLE bob PASSWORD 'next'");
    postgres.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'bob'");
    std::fs::write(stage.path("bob"), "next").expect("written");
    eventually("bob's new password is used", || {
        stage.login("bob", "what bob says").as_deref() == Ok("bob")
    });
    let log = stage.valet.log();
    assert!(!log.contains("token-of-") && !log.contains("next"), "{log}");
}

#[test]
fn a_verifier_for_clients_goes_with_a_command_for_postgresql() {
    if no_valet() {
        return;
    }
    let postgres = Postgres::start_with(Auth::Scram, &[]);
    postgres.sql("CREATE ROLE alice LOGIN PASSWORD 'said'");
    let verifier = kept(&postgres, "alice");
    postgres.sql("ALTER ROLE alice PASSWORD 'token'");
    let config =
        format!("[users.alice]\npassword = \"{verifier}\"\npassword_command = \"echo token\"\n");
    let stage = Stage::new(&postgres, "postgres:postgres", &config);
    assert_eq!(stage.login("alice", "said").as_deref(), Ok("alice"));
    assert!(stage.login("alice", "token").is_err());
}
