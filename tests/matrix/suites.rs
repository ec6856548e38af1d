//! What drivers' own test suites rely on, and a proxy may spoil.

use std::process::Command;

use crate::programs::{client, run};
use crate::says_the_same_in_each_mode;
use crate::stage::session;
use crate::support::{Postgres, Raw, Valet, no_valet};

/// The process id in the next notification.
#[track_caller]
fn heard(listener: &mut Raw) -> i32 {
    let news = listener.until(b'A');
    i32::from_be_bytes(news.body[..4].try_into().expect("four bytes"))
}

#[test]
fn a_notification_names_its_sender_by_the_id_that_the_sender_knows() {
    let postgres = Postgres::start();
    let valet = Valet::front(&postgres);
    let mut listener = session(&valet, "listener");
    listener.value("LISTEN news");
    // Both stay: a backend that changes hands has no one sender.
    let mut senders = [(); 2].map(|()| session(&valet, "sender"));
    for sender in &mut senders {
        sender.value("NOTIFY news");
        assert_eq!(heard(&mut listener), sender.pid);
        listener.value("BEGIN");
        sender.value("NOTIFY news, 'later'");
        listener.send(&crate::support::messages::query("COMMIT"));
        assert_eq!(heard(&mut listener), sender.pid);
        listener.until(b'Z');
    }
    listener.send(&crate::support::messages::query("NOTIFY news"));
    assert_eq!(heard(&mut listener), listener.pid);
}

#[test]
fn a_notification_of_a_backend_that_changed_hands_names_postgresql_s_own_process() {
    if no_valet() {
        return;
    }
    let postgres = Postgres::start();
    let valet = Valet::front_with(&postgres, &["--mode", "transaction", "--max-backends", "2"]);
    let mut listener = session(&valet, "listener");
    listener.value("LISTEN news");
    let mut first = session(&valet, "first");
    let backend = first.value("SELECT pg_backend_pid()");
    let mut second = session(&valet, "second");
    assert_eq!(second.value("SELECT pg_backend_pid()"), backend);
    second.value("NOTIFY news");
    assert_eq!(heard(&mut listener).to_string(), backend);
}

#[test]
fn a_database_is_dropped_renamed_and_copied_although_backends_rest_there() {
    let postgres = Postgres::start();
    let valet = Valet::front(&postgres);
    let mut owner = session(&valet, "owner");
    let visit = |database: &str| {
        let login = [("user", "postgres"), ("database", database)];
        let mut visitor = Raw::connect_with(valet.port(), &login);
        assert_eq!(visitor.value("SELECT current_database()"), database);
        visitor.goodbye();
    };
    owner.value("CREATE DATABASE shop");
    for sql in [
        "CREATE DATABASE copy TEMPLATE shop",
        "ALTER DATABASE shop RENAME TO \"Old shop\"",
        "DROP DATABASE \"Old shop\"",
    ] {
        visit(if sql.contains("DROP") {
            "Old shop"
        } else {
            "shop"
        });
        owner.value(sql);
    }
    visit("copy");
    run(client("dropdb", valet.port()).arg("copy"));
    let left = "SELECT string_agg(datname, ' ' ORDER BY datname) FROM pg_database";
    assert_eq!(postgres.sql(left), "postgres template0 template1");
}

/// The tools that work with several connections at once say the same, and succeed.
#[test]
fn maintenance_runs_on_several_connections() {
    let postgres = Postgres::start();
    postgres.sql(
        "CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY); CREATE SCHEMA side;
         CREATE TABLE side.c (id int PRIMARY KEY); CLUSTER a USING a_pkey; INSERT INTO a SELECT generate_series(1, 1000)",
    );
    let said = |port: u16| -> Vec<String> {
        let tools: [&[&str]; 5] = [
            &["vacuumdb", "-j", "3", "--analyze", "-e"],
            &["vacuumdb", "-j", "3", "--all", "--analyze-in-stages"],
            &["reindexdb", "-j", "3"],
            &["reindexdb", "--schema", "side", "--concurrently", "-e"],
            &["clusterdb", "-e"],
        ];
        let say = |tool: &&[&str]| {
            let mut command: Command = client(tool[0], port);
            let output = command.args(&tool[1..]).output().expect("it can be run");
            let text = [output.stdout, output.stderr].concat();
            let mut lines: Vec<String> = String::from_utf8_lossy(&text)
                .lines()
                .map(str::to_owned)
                .collect();
            assert!(output.status.success(), "{tool:?}: {lines:?}");
            lines.sort();
            lines.join("\n")
        };
        tools.iter().map(say).collect()
    };
    says_the_same_in_each_mode(&postgres, said);
}
