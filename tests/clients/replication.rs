//! Replication connections: PostgreSQL's own tools do their work through pgvalet, and each has a backend of its own.

use std::path::PathBuf;
use std::process::Command;

use serde_json::{Value, json};

use crate::programs::{client, python, run, scripts};
use crate::support::{Postgres, Raw, Valet, eventually, messages, no_valet, skip, tags};

/// A PostgreSQL that decodes its log, and pgvalet in front of it.
fn stage(flags: &[&str]) -> (Postgres, Valet) {
    let postgres = Postgres::start_with(
        crate::support::Auth::Trust,
        &["wal_level=logical", "max_wal_senders=10"],
    );
    postgres.sql("CREATE TABLE t (id int, name text)");
    let valet = Valet::front_with(&postgres, flags);
    (postgres, valet)
}

/// A program of PostgreSQL's that distributions keep off PATH, or don't have.
fn server_program(name: &str) -> Option<PathBuf> {
    let output = Command::new("pg_config").arg("--bindir").output().ok()?;
    let directory = PathBuf::from(String::from_utf8(output.stdout).ok()?.trim());
    let beside = directory.join(name);
    let packaged = || {
        let version = directory.parent()?.file_name()?.to_owned();
        Some(
            PathBuf::from("/usr/lib/postgresql")
                .join(version)
                .join("bin")
                .join(name),
        )
    };
    let newest = || Some(PathBuf::from("/usr/lib/postgresql/15/bin").join(name));
    [Some(beside), packaged(), newest()]
        .into_iter()
        .flatten()
        .find(|path| path.exists())
}

/// A replication connection of `postgres`.
#[track_caller]
fn walsender(valet: &Valet, kind: &str) -> Raw {
    let mut parameters = vec![("user", "postgres"), ("replication", kind)];
    if kind == "database" {
        parameters.push(("database", "postgres"));
    }
    Raw::connect_with(valet.port(), &parameters)
}

fn walsenders(postgres: &Postgres) -> usize {
    let count =
        postgres.sql("SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'walsender'");
    count.parse().expect("a count")
}

/// A session as `/v1/leases` shows it.
fn lease(valet: &Valet, client: &Raw) -> Value {
    let page = valet.get("/v1/leases");
    let leases = page["leases"].as_array().expect("a list of leases");
    let found = leases
        .iter()
        .find(|lease| lease["session"] == client.session());
    found
        .unwrap_or_else(|| panic!("not listed: {page}"))
        .clone()
}

#[test]
fn a_base_backup_with_its_log_streamed_beside() {
    let (postgres, valet) = stage(&["--max-backends", "1"]);
    postgres.sql("INSERT INTO t SELECT i, md5(i::text) FROM generate_series(1, 20000) i");
    let home = tempfile::tempdir().expect("a directory");
    let target = home.path().join("backup");
    run(client("pg_basebackup", valet.port())
        .args(["-c", "fast", "-X", "stream", "-D"])
        .arg(&target));
    assert!(target.join("PG_VERSION").exists());
    match server_program("pg_verifybackup") {
        Some(program) if server_program("pg_waldump").is_some() => {
            run(Command::new(program).arg(&target));
        }
        Some(_) | None => skip("no pg_verifybackup here"),
    }
    eventually("no walsender is left", || walsenders(&postgres) == 0);
}

#[test]
fn a_log_receiver() {
    let (postgres, valet) = stage(&[]);
    let home = tempfile::tempdir().expect("a directory");
    let receivewal = || {
        let mut command = client("pg_receivewal", valet.port());
        command.args(["--slot", "archive"]);
        command
    };
    run(receivewal().arg("--create-slot"));
    run(receivewal().arg("--drop-slot"));
    // The tool's own slot would begin at the end of what is there.
    postgres.sql("SELECT pg_create_physical_replication_slot('archive', true)");
    postgres.sql("INSERT INTO t SELECT i, md5(i::text) FROM generate_series(1, 5000) i");
    let end = postgres.sql("SELECT pg_switch_wal()");
    run(receivewal()
        .args(["--no-loop", "--synchronous", "--endpos", &end, "-D"])
        .arg(home.path()));
    let files = std::fs::read_dir(home.path()).expect("a directory").count();
    assert!(files > 0, "the log was received");
    run(receivewal().arg("--drop-slot"));
    eventually("no walsender is left", || walsenders(&postgres) == 0);
}

#[test]
fn a_logical_receiver() {
    let (postgres, valet) = stage(&["--mode", "transaction"]);
    let Some(program) = server_program("pg_recvlogical") else {
        return skip("no pg_recvlogical here");
    };
    let recvlogical = || {
        let mut command = client(&program, valet.port());
        command.args(["--slot", "news", "-d", "postgres"]);
        command
    };
    run(recvlogical().args(["--create-slot", "-P", "test_decoding"]));
    postgres.sql("INSERT INTO t VALUES (1, 'first'); INSERT INTO t VALUES (2, 'second')");
    let end = postgres.sql("SELECT pg_current_wal_insert_lsn()");
    let heard = run(recvlogical().args(["--start", "--no-loop", "--endpos", &end, "-f", "-"]));
    assert!(
        heard.contains("name[text]:'first'") && heard.contains("name[text]:'second'"),
        "{heard}"
    );
    run(recvlogical().arg("--drop-slot"));
    assert_eq!(
        postgres.sql("SELECT count(*) FROM pg_replication_slots"),
        "0"
    );
    eventually("no walsender is left", || walsenders(&postgres) == 0);
}

#[test]
fn a_driver_that_streams_and_answers() {
    match python() {
        Err(why) => skip(&format!("no Python with psycopg2: {why}")),
        Ok(python) => {
            let (_postgres, valet) = stage(&[]);
            run(client(python, valet.port()).arg(scripts().join("psycopg2_replication.py")));
        }
    }
}

#[test]
fn its_session_is_pinned_and_is_never_returned() {
    if no_valet() {
        return;
    }
    let (postgres, valet) = stage(&[
        "--return-after",
        "50ms",
        "--park-after",
        "50ms",
        "--return-method",
        "close",
    ]);
    let mut client = walsender(&valet, "database");
    assert_eq!(client.value("SELECT current_database()"), "postgres");
    let pid = postgres.sql("SELECT pid FROM pg_stat_activity WHERE backend_type = 'walsender'");
    eventually("it counts as pinned", || {
        lease(&valet, &client)["verdict"] == "pinned"
    });
    assert_eq!(lease(&valet, &client)["pins"], json!(["replication"]));

    let path = format!("/v1/leases/{}/return", client.session());
    let (status, problem) = valet.admin("POST", &path, &json!({"method": "close"}));
    assert_eq!(
        (status, &problem["outcome"]),
        (409, &json!("pinned")),
        "{problem}"
    );
    let wish = json!({"deadline": "5s", "method": "close", "busy": "close", "pinned": "close"});
    let (_, report) = valet.admin("POST", "/v1/reloads", &wish);
    assert_eq!(report["leases"][0]["reason"], "replication", "{report}");

    let same = "SELECT pid FROM pg_stat_activity WHERE pid = pg_backend_pid()";
    assert_eq!(client.value(same), pid);
}

#[test]
fn a_stream_stays_while_a_reload_goes_by() {
    if no_valet() {
        return;
    }
    let (postgres, valet) = stage(&[]);
    let mut client = walsender(&valet, "true");
    let system = client.query("IDENTIFY_SYSTEM");
    let lsn = system
        .iter()
        .find(|message| message.tag == b'D')
        .expect("a row")
        .columns()[2]
        .clone();
    client.send(&messages::query(&format!("START_REPLICATION {lsn}")));
    client.until(b'W');
    let (_, report) = valet.admin("POST", "/v1/reloads", &json!({"deadline": "10s"}));
    assert_eq!(report["leases"][0]["outcome"], "pinned", "{report}");
    assert_eq!(lease(&valet, &client)["pins"], json!(["replication"]));

    postgres.sql("INSERT INTO t VALUES (1, 'x')");
    // XLogData, or a keepalive before it.
    while client.until(b'd').body[0] != b'w' {}
    client.send(&messages::copy_done());
    client.until(b'c');
    let end = client.until_ready();
    assert_eq!(end.last().expect("it ends").status(), 'I');
    assert_eq!(tags(&client.query("IDENTIFY_SYSTEM")), "TDCZ");
}

#[test]
fn they_have_a_bound_of_their_own() {
    if no_valet() {
        return;
    }
    let (postgres, valet) = stage(&["--max-backends", "1", "--max-replication", "1"]);
    let first = walsender(&valet, "on");
    let mut ordinary = Raw::connect(valet.port());
    assert_eq!(ordinary.value("SELECT 1"), "1");
    let error = Raw::refused(valet.port(), &[("user", "postgres"), ("replication", "1")]);
    assert_eq!(error.sqlstate(), "53300");
    first.goodbye();
    eventually("no walsender is left", || walsenders(&postgres) == 0);
    walsender(&valet, "yes").goodbye();
}

#[test]
fn the_backend_is_closed_with_a_client_that_is_gone() {
    let (postgres, valet) = stage(&[]);
    let mut client = walsender(&valet, "true");
    client.query("IDENTIFY_SYSTEM");
    assert_eq!(walsenders(&postgres), 1);
    client.reset();
    eventually("no walsender is left", || walsenders(&postgres) == 0);
}

#[test]
fn postgresql_says_who_may_replicate_and_what_it_takes() {
    let (postgres, valet) = stage(&[]);
    postgres.sql("CREATE ROLE plain LOGIN");
    let refused = |user: &str, kind: &str| {
        let parameters = [
            ("user", user),
            ("database", "postgres"),
            ("replication", kind),
        ];
        Raw::refused(valet.port(), &parameters)
    };
    for kind in ["true", "database"] {
        assert_eq!(refused("plain", kind).sqlstate(), "42501");
    }
    let error = refused("postgres", "perhaps");
    assert_eq!(error.sqlstate(), "22023");
    assert_eq!(
        error.field(b'M').as_deref(),
        Some("invalid value for parameter \"replication\": \"perhaps\"")
    );
    // An extended query is an error in a walsender, and the session goes on.
    let mut client = walsender(&valet, "database");
    client.send(&[messages::extended("SELECT 1", &[]), messages::sync()].concat());
    assert_eq!(tags(&client.until_ready()), "EZ");
    assert_eq!(client.value("SELECT 2"), "2");
}

/// A pgvalet with one rule: who comes for `database` is let in.
fn valet_for(database: &str, postgres: &Postgres) -> Valet {
    let home = tempfile::tempdir().expect("a directory");
    let file = home.path().join("pgvalet.toml");
    let rule = format!(
        "[[logins]]\naddress = \"127.0.0.1\"\ndatabase = \"{database}\"\nmethod = \"trust\"\n"
    );
    std::fs::write(&file, rule).expect("a file can be written");
    let url = postgres.url("postgres", "postgres");
    let file = file.to_str().expect("UTF-8");
    let valet = Valet::serve(&["--upstream", &url, "--config", file]);
    valet.unwrap_or_else(|exit| panic!("{}", exit.log))
}

#[test]
fn login_rules_speak_of_physical_replication_by_its_own_name() {
    if no_valet() {
        return;
    }
    let postgres = Postgres::start();
    let refused = |database: &str, kind: &str| {
        let valet = valet_for(database, &postgres);
        let mut client = Raw::dial(valet.port());
        let login = [
            ("user", "postgres"),
            ("database", "postgres"),
            ("replication", kind),
        ];
        client.send(&messages::startup(0x0003_0000, &login));
        client.until_end_of_login().is_none()
    };
    assert!(!refused("replication", "true") && refused("postgres", "true"));
    assert!(refused("replication", "database") && !refused("postgres", "database"));
}

#[test]
fn no_rule_about_replication_opens_the_console() {
    if no_valet() {
        return;
    }
    let postgres = Postgres::start();
    let valet = valet_for("replication", &postgres);
    // The database that physical replication names means nothing: not even where it is the console's.
    let login = [
        ("user", "postgres"),
        ("database", "pgvalet"),
        ("replication", "true"),
    ];
    let mut client = Raw::connect_with(valet.port(), &login);
    assert_eq!(tags(&client.query("IDENTIFY_SYSTEM")), "TDCZ");
}
