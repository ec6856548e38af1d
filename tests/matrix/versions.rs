//! Each version of PostgreSQL behind pgvalet: logins, the questions that pgvalet itself asks, moves, cancels, reloads, and
//! what is relayed.

use serde_json::json;

use crate::differential::{MODES, no_difference, seeds, seen};
use crate::programs::{client, everything, psql};
use crate::says_the_same_in_each_mode;
use crate::stage::{lease, outcome, reload, session};
use crate::support::messages::{
    self, bind, close_statement, copy_data, copy_done, copy_fail, describe_statement, execute,
    extended, flush, parse, query, sync,
};
use crate::support::{Auth, Message, Postgres, Raw, Valet, eventually, no_valet, skip};

/// A test of each case for each version.
macro_rules! versions {
    ($($name:ident = $major:literal)*) => { $(versions!(@ $name $major
        passwords random_programs what_a_session_made_moves_with_it what_cannot_move_pins
        state_made_behind_plain_statements_is_found sessions_share_a_backend_in_transaction_mode
        a_cancel_stops_its_own_statement a_reload_returns_what_is_idle copies_and_pipelines_are_relayed
        psql_describes_the_same);)* };
    (@ $name:ident $major:literal $($case:ident)*) => {
        mod $name { $(#[test] fn $case() { super::$case($major); })* }
    };
}

versions!(postgresql_14 = 14 postgresql_15 = 15 postgresql_16 = 16 postgresql_17 = 17 postgresql_18 = 18);

/// PostgreSQL of this version; none where it can't be had.
fn postgres(major: u16, auth: Auth, settings: &[&str]) -> Option<Postgres> {
    let started = Postgres::start_version(major, auth, settings);
    if let Err(why) = &started {
        skip(&format!("no PostgreSQL {major}: {why}"));
    }
    let postgres = started.ok()?;
    let shown = postgres.sql("SHOW server_version");
    assert!(shown.starts_with(&format!("{major}.")), "{shown}");
    Some(postgres)
}

/// The same, with pgvalet in front of it.
fn stage(major: u16, flags: &[&str]) -> Option<(Postgres, Valet)> {
    let postgres = postgres(major, Auth::Trust, &[])?;
    let valet = Valet::front_with(&postgres, flags);
    Some((postgres, valet))
}

/// The same, unless tests run straight against PostgreSQL.
fn valet_stage(major: u16, flags: &[&str]) -> Option<(Postgres, Valet)> {
    if no_valet() {
        None
    } else {
        stage(major, flags)
    }
}

/// What a client with this password sees.
fn login(port: u16, user: &str, password: &str) -> (Option<i32>, String, String) {
    let mut command = psql(port);
    command.env("PGPASSWORD", password).env("PGUSER", user);
    let (status, out, err) = everything(command.args(["-w", "-c", "SELECT session_user"]));
    (status, out, err.replace(&port.to_string(), "PORT"))
}

fn passwords(major: u16) {
    if no_valet() {
        return;
    }
    let ways = [
        (Auth::Scram, "scram", "scram-sha-256"),
        (Auth::Md5, "md5", "md5"),
    ];
    for (auth, method, encryption) in ways {
        let encryption = format!("password_encryption={encryption}");
        let Some(postgres) = postgres(major, auth, &[&encryption]) else {
            return;
        };
        let url = postgres.url("postgres:postgres", "postgres");
        let home = tempfile::tempdir().expect("a directory");
        let file = home.path().join("pgvalet.toml");
        let rule = format!("auth_query = \"default\"\n[[logins]]\nmethod = \"{method}\"\n");
        std::fs::write(&file, rule).expect("a file can be written");
        let file = file.to_str().expect("UTF-8");
        let valet = Valet::serve(&["--upstream", &url, "--config", file]);
        let valet = valet.unwrap_or_else(|exit| panic!("{}", exit.log));
        postgres.sql("CREATE ROLE alice LOGIN PASSWORD 'pencil'");
        for (user, password) in [
            ("postgres", "postgres"),
            ("alice", "pencil"),
            ("alice", "eraser"),
            ("postgres", "wrong"),
            ("mallory", "x"),
        ] {
            let straight = login(postgres.port(), user, password);
            assert_eq!(login(valet.port(), user, password), straight, "{method}");
            let right = ["postgres", "pencil"].contains(&password);
            assert_eq!(straight.0 == Some(0), right, "{straight:?}");
        }
    }
}

fn random_programs(major: u16) {
    for (mode, first) in [(1, 3_000_000), (2, 4_000_000)] {
        let Some(postgres) = postgres(major, Auth::Trust, &[]) else {
            return;
        };
        let first = first + u64::from(major) * 1000;
        no_difference(postgres, seeds(first, 3), MODES[mode]);
    }
}

/// State of each kind that moves, and what it looks like afterwards.
const MADE: [(&str, &str, &str); 7] = [
    (
        "SET search_path = side, public",
        "SHOW search_path",
        "side, public",
    ),
    ("SET work_mem = '7MB'", "SHOW work_mem", "7MB"),
    ("SET ROLE alice", "SELECT current_user", "alice"),
    (
        "SET app.tenant = 'acme'",
        "SELECT current_setting('app.tenant')",
        "acme",
    ),
    (
        "SELECT set_config('app.other', 'x', false)",
        "SHOW app.other",
        "x",
    ),
    ("PREPARE p(int) AS SELECT $1 + 1", "EXECUTE p(41)", "42"),
    (
        "SET statement_timeout = '1min'",
        "SHOW statement_timeout",
        "1min",
    ),
];

fn what_a_session_made_moves_with_it(major: u16) {
    let flags = ["--chaos-return", "always", "--max-backends", "3"];
    let Some((postgres, valet)) = stage(major, &flags) else {
        return;
    };
    postgres.sql("CREATE ROLE alice; CREATE SCHEMA side");
    let mut client = session(&valet, "app");
    let mut other = session(&valet, "other");
    client.send(&[parse("named", "SELECT $1::int + 2"), sync()].concat());
    client.until_ready();
    if major >= 17 {
        client.value("SET transaction_timeout = '2min'");
    }
    for (make, ..) in MADE {
        client.value(make);
    }
    for _ in 0..3 {
        for (_, look, expected) in MADE {
            assert_eq!(client.value(look), expected, "{look}");
            assert_ne!(other.query(look).first().map(|row| row.tag), None);
        }
        if major >= 17 {
            assert_eq!(client.value("SHOW transaction_timeout"), "2min");
        }
        client.send(&[bind("", "named", &["40"]), execute("", 0), sync()].concat());
        assert_eq!(row(&client.until_ready()), ["42"]);
    }
}

fn row(answer: &[Message]) -> Vec<String> {
    let row = answer.iter().find(|message| message.tag == b'D');
    row.unwrap_or_else(|| panic!("a row: {answer:?}")).columns()
}

fn what_cannot_move_pins(major: u16) {
    let Some((_postgres, valet)) = valet_stage(major, &["--chaos-return", "always"]) else {
        return;
    };
    for (make, pin, undo) in [
        ("CREATE TEMP TABLE t (a int)", "temp", "DROP TABLE t"),
        (
            "SELECT pg_advisory_lock(1)",
            "advisory_lock",
            "SELECT pg_advisory_unlock(1)",
        ),
        ("LISTEN news", "listen", "UNLISTEN news"),
        (
            "DECLARE c CURSOR WITH HOLD FOR SELECT 1",
            "cursor",
            "CLOSE c",
        ),
    ] {
        let mut client = session(&valet, "app");
        client.value(make);
        eventually("the probe has said so", || {
            lease(&valet, &client).is_some_and(|lease| lease["pins"] == json!([pin]))
        });
        client.value(undo);
        eventually("it is returned", || lease(&valet, &client).is_none());
    }
}

/// Definitions of each kind that can hide a function; each statement below meets one of them.
const HIDING: &str = "
    CREATE FUNCTION lock_it() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_advisory_lock(7); RETURN NEW; END $$;
    CREATE FUNCTION lock_one(a text) RETURNS text LANGUAGE sql AS $$ SELECT pg_advisory_lock(1); SELECT a $$;
    CREATE FUNCTION modern(a text) RETURNS text LANGUAGE sql BEGIN ATOMIC SELECT lock_one(a); END;
    CREATE TABLE plain (a text); CREATE TABLE triggered (a text); CREATE TABLE parted (a text) PARTITION BY LIST (a);
    CREATE TABLE part PARTITION OF parted DEFAULT;
    CREATE TRIGGER t BEFORE INSERT ON triggered FOR EACH ROW EXECUTE FUNCTION lock_it();
    CREATE TRIGGER t AFTER INSERT ON part FOR EACH ROW EXECUTE FUNCTION lock_it();
    CREATE VIEW viewed AS SELECT lock_one('x') AS x;
    CREATE TABLE defaulting (a int, b text DEFAULT lock_one('x'));
    CREATE TABLE checking (a int, b text CHECK (lock_one(b) = b));
    CREATE DOMAIN checked AS text CHECK (lock_one(VALUE) = VALUE); CREATE TABLE of_domain (a checked);
    CREATE TABLE ruled (a int); CREATE RULE r AS ON DELETE TO ruled DO ALSO SELECT pg_advisory_lock(3);
    CREATE FUNCTION even(int, int) RETURNS bool LANGUAGE sql AS $$ SELECT pg_advisory_lock(4); SELECT true $$;
    CREATE AGGREGATE gather(text) (SFUNC = joined, STYPE = text);";

const MEETING: [&str; 10] = [
    "SELECT modern('x')",
    "INSERT INTO triggered VALUES ('x')",
    "INSERT INTO parted VALUES ('x')",
    "SELECT x FROM viewed",
    "INSERT INTO defaulting (a) VALUES (1)",
    "INSERT INTO checking VALUES (1, 'x')",
    "INSERT INTO of_domain VALUES ('x')",
    "DELETE FROM ruled",
    "SELECT gather(a) FROM (VALUES ('x'), ('y')) AS v(a)",
    "MERGE INTO triggered USING plain ON false WHEN NOT MATCHED THEN INSERT VALUES ('x')",
];

fn state_made_behind_plain_statements_is_found(major: u16) {
    if no_valet() {
        return;
    }
    let Some(postgres) = postgres(major, Auth::Trust, &[]) else {
        return;
    };
    let joined = "CREATE FUNCTION joined(text, text) RETURNS text LANGUAGE sql AS
        $$ SELECT pg_advisory_lock(5); SELECT concat($1, $2) $$;";
    postgres.sql(&format!("{joined} {HIDING} INSERT INTO plain VALUES ('x')"));
    let valet = Valet::front_with(&postgres, &["--mode", "transaction", "--max-backends", "3"]);
    for statement in MEETING {
        if statement.starts_with("MERGE") && major < 15 {
            continue;
        }
        let mut client = session(&valet, "app");
        client.value(statement);
        eventually(&format!("{statement} is seen through"), || {
            lease(&valet, &client).is_some_and(|lease| lease["pins"] == json!(["advisory_lock"]))
        });
        client.goodbye();
    }
    let mut client = session(&valet, "app");
    client.value("INSERT INTO plain VALUES ('acme')");
    eventually("it is returned", || lease(&valet, &client).is_none());
    // PostgreSQL of each version has answered what it was asked.
    assert!(
        !valet.log().contains("can't be looked at"),
        "{}",
        valet.log()
    );
}

fn sessions_share_a_backend_in_transaction_mode(major: u16) {
    let flags = ["--mode", "transaction", "--max-backends", "1"];
    let Some((postgres, valet)) = valet_stage(major, &flags) else {
        return;
    };
    postgres.sql("CREATE TABLE t (a int)");
    let mut one = session(&valet, "one");
    let mut other = session(&valet, "other");
    for round in 0..5 {
        one.value("SET TimeZone = 'Asia/Tokyo'");
        one.value("BEGIN");
        one.value(&format!("INSERT INTO t VALUES ({round})"));
        one.value("COMMIT");
        assert_eq!(other.value("SHOW TimeZone"), "GMT");
        assert_eq!(other.value("SELECT max(a) FROM t"), round.to_string());
        assert_eq!(one.value("SHOW TimeZone"), "Asia/Tokyo");
    }
    assert_eq!(postgres.client_backends(), 1);
}

fn a_cancel_stops_its_own_statement(major: u16) {
    let Some((postgres, valet)) = stage(major, &[]) else {
        return;
    };
    let login = [("user", "postgres"), ("database", "postgres")];
    for (minor, through) in [(0_u32, 4), (2, 32)] {
        let mut client = Raw::dial(valet.port());
        client.send(&messages::startup(0x0003_0000 | minor, &login));
        client.until_ready();
        if !crate::support::direct() {
            assert_eq!(client.key.len(), through);
        }
        client.send(&query("SELECT pg_sleep(600)"));
        eventually("the statement runs", || {
            let sleeping = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'";
            postgres.sql(sleeping) == "1"
        });
        Raw::dial(valet.port()).send(&messages::cancel_request(client.pid, &client.key));
        let error = client.until_error();
        assert_eq!(error.sqlstate(), "57014");
        client.until(b'Z');
        assert_eq!(client.value("SELECT 1"), "1");
    }
}

fn a_reload_returns_what_is_idle(major: u16) {
    let Some((_postgres, valet)) = valet_stage(major, &["--max-backends", "3"]) else {
        return;
    };
    let mut parked = session(&valet, "parked");
    parked.value("SET work_mem = '7MB'");
    let mut pinned = session(&valet, "pinned");
    pinned.value("CREATE TEMP TABLE t (a int)");
    let mut busy = session(&valet, "busy");
    busy.value("BEGIN");
    let report = reload(
        &valet,
        &json!({"deadline": "5s", "busy": "spare", "recycle": true}),
    );
    let of = |client: &Raw| outcome(&report, client.session()).0;
    assert_eq!(
        [of(&parked), of(&pinned), of(&busy)],
        ["returned", "pinned", "busy"]
    );
    assert_eq!(parked.value("SHOW work_mem"), "7MB");
    assert_eq!(pinned.value("SELECT count(*) FROM t"), "0");
    busy.value("COMMIT");
}

/// What a client may send in one go, and the session is ready behind it.
fn conversations() -> Vec<Vec<u8>> {
    let many: Vec<u8> = (0..200)
        .flat_map(|n| extended("SELECT $1::int", &[&n.to_string()]))
        .collect();
    let row = "7\tseven\n".repeat(1000);
    vec![
        query("CREATE TABLE t (a int PRIMARY KEY, b text); CREATE TABLE c (a int, b text)"),
        [query("COPY c FROM STDIN"), copy_data(&row), copy_done()].concat(),
        [
            query("COPY c FROM STDIN"),
            copy_data("none\n"),
            copy_data(&row),
            copy_done(),
        ]
        .concat(),
        [
            query("COPY c FROM STDIN"),
            copy_data(&row),
            copy_fail("enough"),
        ]
        .concat(),
        query("COPY c TO STDOUT"),
        query("COPY (SELECT generate_series(1, 3)) TO STDOUT WITH (FORMAT binary)"),
        [many, sync()].concat(),
        [
            extended("INSERT INTO t VALUES (1, $1)", &["one"]),
            extended("INSERT INTO t VALUES (1, $1)", &["again"]),
            extended("INSERT INTO t VALUES (2, $1)", &["never"]),
            sync(),
        ]
        .concat(),
        [
            parse("s", "SELECT a, b FROM c ORDER BY a LIMIT 3"),
            describe_statement("s"),
            bind("p", "s", &[]),
            execute("p", 1),
            flush(),
            execute("p", 0),
            close_statement("s"),
            sync(),
        ]
        .concat(),
        query("SELECT 1; SELECT 1/0; SELECT 2"),
        query(""),
        query("DO $$ BEGIN RAISE WARNING 'careful'; END $$"),
    ]
}

fn copies_and_pipelines_are_relayed(major: u16) {
    let Some(postgres) = postgres(major, Auth::Trust, &[]) else {
        return;
    };
    let said = |port: u16| -> Vec<String> {
        let login = [("user", "postgres"), ("database", "postgres")];
        let mut client = Raw::connect_with(port, &login);
        let mut said = Vec::new();
        for conversation in conversations() {
            client.send(&conversation);
            said.extend(client.until_ready().iter().map(seen));
        }
        client.goodbye();
        postgres.sql("DROP TABLE t, c");
        said
    };
    says_the_same_in_each_mode(&postgres, said);
}

/// psql's own questions about a database, those of an older psql to a newer server, too.
fn psql_describes_the_same(major: u16) {
    let Some((postgres, valet)) = stage(major, &["--chaos-return", "always"]) else {
        return;
    };
    postgres.sql(HIDING.split("CREATE FUNCTION even").next().expect("a part"));
    let describe = "\\d\n\\d+ defaulting\n\\df\n\\dT+\n\\l\n\\du\n\\dn+\n\\dconfig work_mem\n\\sf lock_one\n\\sv viewed\n\
        \\set VERBOSITY verbose\nSELECT 1/0;\n\\errverbose\nSELECT * FROM nowhere;\n";
    let said = |port: u16| {
        let file = postgres.socket_directory().join("describe.sql");
        std::fs::write(&file, describe).expect("a script can be written");
        everything(client("psql", port).args(["-X", "-a", "-f"]).arg(file))
    };
    let straight = said(postgres.port());
    assert!(
        straight.1.contains("defaulting") && straight.2.contains("22012"),
        "{straight:?}"
    );
    assert_eq!(said(valet.port()), straight);
}
