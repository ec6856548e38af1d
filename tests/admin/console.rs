//! The SQL console: who may enter it, what it shows, what it orders; by psql, by psycopg and asyncpg, and raw.

use std::path::PathBuf;
use std::process::Command;
use std::thread;

use crate::programs::{client, psql, python, run};
use crate::support::messages::{bind, describe_statement, execute, flush, frame, parse, sync};
use crate::support::{Auth, Postgres, Raw, Valet, eventually, no_valet, skip, tags};

/// A guest of the console.
fn guest(valet: &Valet) -> Raw {
    let named = [("user", "postgres"), ("database", "pgvalet")];
    Raw::connect_with(valet.port(), &named)
}

/// The first row of an answer whose column `name` is `value`, as pairs of column and value.
#[track_caller]
fn row(guest: &mut Raw, sql: &str, name: &str, value: &str) -> Vec<(String, String)> {
    let rows = table(guest, sql);
    let found = rows.into_iter().find(|row| cell(row, name) == value);
    found.unwrap_or_else(|| panic!("{sql} has no row with {name} = {value}"))
}

#[track_caller]
fn cell<'a>(row: &'a [(String, String)], name: &str) -> &'a str {
    let found = row.iter().find(|(column, _)| column == name);
    &found.unwrap_or_else(|| panic!("no column {name}")).1
}

/// The rows of an answer, each as pairs of column and value.
#[track_caller]
fn table(guest: &mut Raw, sql: &str) -> Vec<Vec<(String, String)>> {
    let messages = guest.query(sql);
    let described = messages.iter().find(|message| message.tag == b'T');
    let columns = columns(
        &described
            .unwrap_or_else(|| panic!("{sql}: {messages:?}"))
            .body,
    );
    let rows = messages.iter().filter(|message| message.tag == b'D');
    rows.map(|row| columns.iter().cloned().zip(row.columns()).collect())
        .collect()
}

/// The names in a RowDescription.
pub fn columns(mut body: &[u8]) -> Vec<String> {
    let mut names = Vec::new();
    body = &body[2..];
    while let Some(end) = body.iter().position(|byte| *byte == 0) {
        names.push(String::from_utf8_lossy(&body[..end]).into_owned());
        body = &body[end + 19..];
    }
    names
}

/// Gives an order in a psql of its own, which may take its time.
fn in_psql(valet: &Valet, order: &'static str) -> thread::JoinHandle<String> {
    let mut command = psql(valet.port());
    command.env("PGDATABASE", "pgvalet").args(["-c", order]);
    thread::spawn(move || run(&mut command))
}

#[test]
fn psql_looks_and_orders() {
    if no_valet() {
        return;
    }
    let postgres = Postgres::start();
    let valet = Valet::front(&postgres);
    let ask = |database: &str, sql: &str| {
        run(psql(valet.port())
            .env("PGDATABASE", database)
            .args(["-c", sql]))
    };
    let mut session = Raw::connect(valet.port());
    session.query("SELECT 1");

    for database in ["pgvalet", "pgbouncer"] {
        let pools = ask(database, "SHOW POOLS");
        assert!(pools.starts_with("postgres|postgres|1|0|"), "{pools}");
        assert!(ask(database, "SHOW VERSION").starts_with("pgvalet "));
    }
    assert!(ask("pgvalet", "SHOW CONFIG").contains("max_client_conn|10000|10000|no"));
    assert!(ask("pgvalet", "show lists;").contains("used_clients|1\n"));
    let leases = ask("pgvalet", "SHOW LEASES");
    assert!(leases.contains(&session.session().to_string()), "{leases}");
    let mut refused = psql(valet.port());
    let output = refused
        .env("PGDATABASE", "pgvalet")
        .args(["-c", "SELECT 1"])
        .output();
    let said = String::from_utf8_lossy(&output.expect("it runs").stderr).into_owned();
    assert!(
        said.contains("invalid command 'SELECT 1', use SHOW HELP;"),
        "{said}"
    );
}

#[test]
fn a_guest_takes_no_backend_and_is_no_session() {
    if no_valet() {
        return;
    }
    let postgres = Postgres::start();
    let valet = Valet::front(&postgres);
    let mut guest = guest(&valet);
    assert!(table(&mut guest, "SHOW CLIENTS").is_empty());
    assert!(table(&mut guest, "SHOW SERVERS").is_empty());
    assert_eq!(valet.get("/v1/sessions")["sessions"], serde_json::json!([]));
}

#[test]
fn the_extended_protocol_works_with_text_and_binary_and_recovers_from_errors() {
    if no_valet() {
        return;
    }
    let postgres = Postgres::start();
    let valet = Valet::front(&postgres);
    let mut guest = guest(&valet);
    let prepare = [parse("s", "SHOW LISTS"), describe_statement("s"), flush()].concat();
    guest.send(&prepare);
    assert_eq!(tags(&[guest.next(), guest.next(), guest.next()]), "1tT");
    guest.send(&[bind("", "s", &[]), execute("", 0), sync()].concat());
    assert_eq!(tags(&guest.until_ready()), format!("2{}CZ", "D".repeat(12)));
    // In portions, as cursors are read.
    guest.send(
        &[
            bind("p", "s", &[]),
            execute("p", 5),
            execute("p", 5),
            sync(),
        ]
        .concat(),
    );
    assert_eq!(tags(&guest.until_ready()), "2DDDDDsDDDDDsZ");

    guest.send(
        &[
            parse("", "SELECT 1"),
            bind("", "", &[]),
            execute("", 0),
            sync(),
        ]
        .concat(),
    );
    assert_eq!(tags(&guest.until_ready()), "EZ");
    // More formats than one, fewer than columns: nobody trips over that.
    let formats = [&b"\0s\0\0\0\0\0\0\x02\0\x01\0\x01"[..]].concat();
    guest.send(&[frame(b'B', &formats), execute("", 1), sync()].concat());
    assert_eq!(tags(&guest.until_ready()), "2DsZ");
    assert_eq!(guest.query("SHOW VERSION").len(), 4);
}

#[test]
fn frames_that_lie_end_the_guest_and_nobody_else() {
    if no_valet() {
        return;
    }
    let postgres = Postgres::start();
    let valet = Valet::front(&postgres);
    let mut other = guest(&valet);
    let lies: [&[u8]; 6] = [
        b"P\0\0\0\x06s\0",
        b"B\0\0\0\x0b\0\0\0\x02\xff\xff\xff",
        b"E\0\0\0\x05\0",
        b"Q\0\0\0\x05a",
        b"D\0\0\0\x04",
        b"Q\x7f\xff\xff\xff",
    ];
    for lie in lies {
        let mut liar = guest(&valet);
        liar.send(lie);
        assert_eq!(liar.next().sqlstate(), "08P01", "{lie:?}");
        liar.assert_closed();
    }
    assert_eq!(other.query("SHOW VERSION").len(), 4);
    assert!(!valet.log().contains("panicked"));
}

#[test]
fn a_guest_that_names_too_much_is_stopped() {
    if no_valet() {
        return;
    }
    let postgres = Postgres::start();
    let valet = Valet::front(&postgres);
    let mut guest = guest(&valet);
    let all: Vec<u8> = (0..257)
        .flat_map(|number| [parse(&format!("s{number}"), "SHOW POOLS"), sync()].concat())
        .collect();
    guest.send(&all);
    for _ in 0..256 {
        assert_eq!(tags(&guest.until_ready()), "1Z");
    }
    assert_eq!(guest.until_ready()[0].sqlstate(), "53400");
}

#[test]
fn who_may_enter_and_who_may_order() {
    if no_valet() {
        return;
    }
    let postgres = Postgres::start_with(Auth::Scram, &[]);
    for user in ["boss", "watcher", "anybody"] {
        postgres.sql(&format!("CREATE ROLE {user} LOGIN PASSWORD 'secret'"));
    }
    let users = r#"{ boss = { password = "secret" }, watcher = { password = "secret" }, anybody = { password = "secret" } }"#;
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("pgvalet.toml");
    let upstream = postgres.url("postgres:postgres", "postgres");
    let text = format!(
        "upstream = \"{upstream}\"\nadmin_users = [\"boss\"]\nstats_users = [\"watcher\"]\nusers = {users}\n"
    );
    std::fs::write(&file, text).expect("written");
    let path = file.to_str().expect("UTF-8");
    let valet = Valet::serve(&["--config", path])
        .unwrap_or_else(|exit| panic!("{}: {}", exit.status, exit.log));
    let ask = |user: &str, password: &str, sql: &str| {
        let mut psql = psql(valet.port());
        psql.env("PGUSER", user).env("PGPASSWORD", password);
        let output = psql.env("PGDATABASE", "pgvalet").args(["-c", sql]).output();
        let output = output.expect("it runs");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.success(), said)
    };
    assert!(ask("boss", "secret", "SHOW POOLS").0);
    assert!(ask("boss", "secret", "RECONNECT").0);
    assert!(ask("watcher", "secret", "SHOW POOLS").0);
    let (done, said) = ask("watcher", "secret", "PAUSE");
    assert!(!done && said.contains("admin access needed"), "{said}");
    for (user, password) in [("boss", "wrong"), ("nobody", "secret")] {
        let (done, said) = ask(user, password, "SHOW POOLS");
        assert!(
            !done && said.contains("password authentication failed"),
            "{said}"
        );
    }
    let (done, said) = ask("anybody", "secret", "SHOW POOLS");
    assert!(!done && said.contains("may not use the console"), "{said}");
    // The URL's user isn't listed: then it has no right by itself.
    let (done, said) = ask("postgres", "postgres", "SHOW POOLS");
    assert!(!done && said.contains("may not use the console"), "{said}");
}

#[test]
fn pgvalets_own_user_enters_over_a_unix_socket_without_a_password() {
    if no_valet() {
        return;
    }
    let postgres = Postgres::start_with(Auth::Scram, &[]);
    let directory = tempfile::tempdir().expect("a directory");
    let listen = format!("unix:{}", directory.path().display());
    let url = postgres.url("postgres:postgres", "postgres");
    let valet = Valet::serve(&["--upstream", &url, "--listen", &listen])
        .unwrap_or_else(|exit| panic!("{}: {}", exit.status, exit.log));
    let ask = |user: &str| {
        let mut psql = psql(6432);
        psql.env("PGHOST", directory.path()).env("PGUSER", user);
        psql.env("PGDATABASE", "pgbouncer")
            .args(["-w", "-c", "SHOW POOLS"]);
        psql.output().expect("it runs").status.success()
    };
    assert!(ask("pgbouncer"));
    assert!(ask("pgvalet"));
    assert!(!ask("postgres"));
    drop(valet);
}

#[test]
fn a_pause_awaits_transactions_holds_new_leases_and_resume_lets_them_go() {
    if no_valet() {
        return;
    }
    let postgres = Postgres::start();
    let valet = Valet::front(&postgres);
    let mut idle = Raw::connect(valet.port());
    idle.query("SET application_name = 'idle one'");
    let mut busy = Raw::connect(valet.port());
    busy.query("BEGIN");
    let pausing = in_psql(&valet, "PAUSE");
    let mut guest = guest(&valet);
    // The idle one's lease is returned; the one inside a transaction goes on, and finishes.
    eventually("only the transaction is left", || {
        let pool = row(&mut guest, "SHOW POOLS", "database", "postgres");
        cell(&pool, "sv_active") == "1" && cell(&pool, "sv_idle") == "0"
    });
    assert!(!pausing.is_finished());
    assert_eq!(busy.value("SELECT 41 + 1"), "42");
    busy.query("COMMIT");
    pausing.join().expect("the pause is complete");

    let database = row(&mut guest, "SHOW DATABASES", "name", "postgres");
    assert_eq!(cell(&database, "paused"), "1");
    assert!(table(&mut guest, "SHOW SERVERS").is_empty());
    let waiting = thread::spawn(move || idle.value("SHOW application_name"));
    eventually("it waits", || {
        let pool = row(&mut guest, "SHOW POOLS", "database", "postgres");
        cell(&pool, "cl_waiting") == "1"
    });
    row(&mut guest, "SHOW CLIENTS", "state", "waiting");
    guest.query("RESUME");
    assert_eq!(waiting.join().expect("it got its answer"), "idle one");
    assert_eq!(busy.value("SELECT 1"), "1");
}

#[test]
fn a_database_is_paused_by_itself_and_a_resume_ends_the_waiting() {
    if no_valet() {
        return;
    }
    let postgres = Postgres::start();
    postgres.sql("CREATE DATABASE other");
    let valet = Valet::front(&postgres);
    let mut busy = Raw::connect(valet.port());
    busy.query("BEGIN");
    let pausing = in_psql(&valet, "PAUSE postgres");
    let mut guest = guest(&valet);
    eventually("it is paused", || {
        let database = row(&mut guest, "SHOW DATABASES", "name", "postgres");
        cell(&database, "paused") == "1"
    });
    let elsewhere = [("user", "postgres"), ("database", "other")];
    assert_eq!(
        Raw::connect_with(valet.port(), &elsewhere).value("SELECT 1"),
        "1"
    );
    guest.query("RESUME postgres");
    pausing.join().expect("nobody waits any more");
    assert_eq!(busy.value("SELECT 1"), "1");
}

#[test]
fn reconnect_replaces_backends_and_wait_close_awaits_the_last_old_one() {
    if no_valet() {
        return;
    }
    let postgres = Postgres::start();
    let valet = Valet::front(&postgres);
    let mut session = Raw::connect(valet.port());
    session.query("BEGIN");
    let old = session.value("SELECT pg_backend_pid()");
    let mut guest = guest(&valet);
    guest.query("RECONNECT");
    let server = row(&mut guest, "SHOW SERVERS", "remote_pid", &old);
    assert_eq!(cell(&server, "close_needed"), "1");
    let waiting = in_psql(&valet, "WAIT_CLOSE");
    assert_eq!(session.value("SELECT pg_backend_pid()"), old);
    session.query("COMMIT");
    let id = session.session();
    assert!(guest.query(&format!("RETURN {id}"))[0].tag == b'C');
    waiting.join().expect("the last old one is gone");
    assert_ne!(session.value("SELECT pg_backend_pid()"), old);
}

#[test]
fn kill_client_ends_a_session_and_kill_all_of_a_database() {
    if no_valet() {
        return;
    }
    let postgres = Postgres::start();
    let valet = Valet::front(&postgres);
    let mut guest = guest(&valet);
    let mut first = Raw::connect(valet.port());
    let mut second = Raw::connect(valet.port());
    second.query("BEGIN");
    let shown = row(
        &mut guest,
        "SHOW CLIENTS",
        "id",
        &first.session().to_string(),
    );
    guest.query(&format!("KILL_CLIENT {}", cell(&shown, "ptr")));
    assert_eq!(first.next().sqlstate(), "57P01");
    let gone = guest.query(&format!("KILL_CLIENT {}", first.session()));
    assert_eq!(gone[0].sqlstate(), "42704");

    guest.query("KILL postgres");
    assert_eq!(second.next().sqlstate(), "57P01");
    let database = row(&mut guest, "SHOW DATABASES", "name", "postgres");
    assert_eq!(cell(&database, "paused"), "1");
    guest.query("RESUME");
    assert_eq!(Raw::connect(valet.port()).value("SELECT 1"), "1");
}

#[test]
fn return_gives_back_what_an_owner_holds() {
    if no_valet() {
        return;
    }
    let postgres = Postgres::start();
    let valet = Valet::front(&postgres);
    let mut guest = guest(&valet);
    let mut session = Raw::connect(valet.port());
    session.query("SET pgvalet.owner = 'the dispatcher'");
    session.query("SELECT 1");
    let owner = row(&mut guest, "SHOW OWNERS", "owner", "the dispatcher");
    assert_eq!(cell(&owner, "leases"), "1");
    guest.query("RETURN OWNER 'the dispatcher'");
    assert!(table(&mut guest, "SHOW LEASES").is_empty());
    let nobody = guest.query("RETURN OWNER nobody");
    assert_eq!(nobody[0].sqlstate(), "42704");
    session.query("BEGIN");
    let busy = guest.query(&format!("RETURN {}", session.session()));
    assert_eq!(busy[0].sqlstate(), "55006");
}

#[test]
fn times_and_counts_are_those_of_the_sessions() {
    if no_valet() {
        return;
    }
    let postgres = Postgres::start();
    let valet = Valet::front(&postgres);
    let mut session = Raw::connect(valet.port());
    session.query("BEGIN");
    session.query("SELECT pg_sleep(0.2)");
    session.query("COMMIT");
    let mut guest = guest(&valet);
    let stats = row(&mut guest, "SHOW STATS", "database", "postgres");
    let figure = |name: &str| cell(&stats, name).parse::<u64>().expect("a number");
    assert_eq!(figure("total_query_count"), 3);
    assert_eq!(figure("total_xact_count"), 1);
    assert!(figure("total_query_time") >= 190_000, "{stats:?}");
    assert!(
        figure("total_xact_time") >= figure("total_query_time"),
        "{stats:?}"
    );
}

#[test]
fn shutdown_and_reload_are_carried_out() {
    if no_valet() {
        return;
    }
    let postgres = Postgres::start();
    let valet = Valet::front(&postgres);
    let mut guest = guest(&valet);
    let mut session = Raw::connect(valet.port());
    session.query("BEGIN");
    assert_eq!(guest.query("RELOAD")[0].tag, b'C');
    eventually("the configuration was read", || {
        valet.log().contains("configuration is valid")
    });
    guest.send(&crate::support::messages::query("SHUTDOWN"));
    assert_eq!(session.next().sqlstate(), "57P01");
    assert!(valet.wait().status.success());
}

/// psycopg 3 and asyncpg, which prepare what they send.
#[test]
fn drivers_that_prepare_everything_can_use_it() {
    if no_valet() {
        return;
    }
    let python = match python() {
        Ok(python) => python,
        Err(why) => return skip(&format!("no Python with psycopg and asyncpg: {why}")),
    };
    let postgres = Postgres::start();
    let valet = Valet::front(&postgres);
    let mut session = Raw::connect(valet.port());
    session.query("SELECT 1");
    let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/admin/drivers.py");
    let mut command: Command = client(python, valet.port());
    let id = session.session().to_string();
    assert_eq!(run(command.arg(script).arg(id)), "all is well");
}
