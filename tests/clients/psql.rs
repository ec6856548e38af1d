//! psql, and that it says the very same with and without pgvalet.

use std::io::Write;
use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use crate::programs::{client, everything, psql, run, stage};
use crate::support::{Postgres, eventually};

/// Runs `script` with psql on PostgreSQL and through pgvalet: output, errors and exit status are the same.
#[track_caller]
fn same_answer(script: &str) {
    let (postgres, valet) = stage();
    let at = |port: u16| {
        let file = postgres.socket_directory().join("script.sql");
        std::fs::write(&file, script).expect("a script can be written");
        let answer = everything(client("psql", port).args(["-X", "-a", "-f"]).arg(&file));
        postgres.sql("DROP SCHEMA public CASCADE; CREATE SCHEMA public");
        answer
    };
    let straight = at(postgres.port());
    assert!(
        straight.1.len() > script.len(),
        "psql says something: {straight:?}"
    );
    assert_eq!(straight, at(valet.port()));
}

#[test]
fn queries_and_descriptions_answer_the_same() {
    same_answer(
        "CREATE TABLE t (id int PRIMARY KEY, name text DEFAULT 'x' CHECK (name <> ''));
         INSERT INTO t SELECT generate_series(1, 10) RETURNING *;
         \\d t\n\\dt+ t\n\\l postgres
         SELECT * FROM t \\gdesc
         SELECT count(*) AS n FROM t \\gset
         \\echo :n
         \\set FETCH_COUNT 3
         SELECT id FROM t ORDER BY id;
         SHOW server_version; SHOW is_superuser;",
    );
}

#[test]
fn several_statements_in_one_query_answer_the_same() {
    same_answer(
        "SELECT 1 \\; SELECT 2 \\; SELECT 3;\nSELECT 1 \\; SELECT 1/0 \\; SELECT 3;\nBEGIN \\; SELECT 1;\n\\echo :ERROR\nCOMMIT;",
    );
}

#[test]
fn errors_notices_and_empty_queries_answer_the_same() {
    same_answer(
        "\\set VERBOSITY verbose
         SELECT 1/0;
         SELECT nothing;
         ;
         -- only a comment
         DO $$ BEGIN RAISE NOTICE 'hello %', 1; RAISE WARNING 'careful'; END $$;
         BEGIN; SELECT 1/0; SELECT 1; ROLLBACK; COMMIT;
         DROP TABLE IF EXISTS nothing_there;
         DO $$ BEGIN RAISE EXCEPTION 'mine' USING ERRCODE = 'P1234', HINT = 'a hint', DETAIL = 'a detail'; END $$;",
    );
}

#[test]
fn settings_and_prepared_statements_answer_the_same() {
    same_answer(
        "SET TimeZone = 'Asia/Tokyo'; SHOW TimeZone; SET DateStyle = 'SQL, DMY'; SELECT '2024-02-01 00:00Z'::timestamptz;
         SET client_encoding = 'LATIN1'; SHOW client_encoding; RESET client_encoding;
         PREPARE twice(int) AS SELECT $1 * 2; EXECUTE twice(21); DEALLOCATE twice; EXECUTE twice(1);
         SET standard_conforming_strings = off; SELECT 'a\\nb'; RESET ALL; SHOW TimeZone; DISCARD ALL;
         SET ROLE pg_monitor; SELECT current_user, session_user; RESET ROLE;
         CREATE TEMP TABLE mine (a int); INSERT INTO mine VALUES (1); TABLE mine;
         DECLARE c CURSOR WITH HOLD FOR SELECT 5; FETCH c; CLOSE c;",
    );
}

#[test]
fn copy_answers_the_same_both_ways() {
    same_answer(
        "CREATE TABLE t (a int, b text);
         COPY t FROM stdin;\n1\tone\n2\ttwo\n\\.
         COPY t FROM stdin (FORMAT csv);\n3,three\n4,\n\\.
         COPY t FROM stdin;\nnot a number\tx\n\\.
         COPY t TO stdout; COPY (SELECT * FROM t ORDER BY a DESC) TO stdout (FORMAT csv, HEADER);
         \\copy t to '/dev/null'
         SELECT count(*) FROM t;",
    );
}

#[test]
fn a_large_copy_comes_back_as_it_went() {
    let (postgres, valet) = stage();
    let rows = "SELECT i, repeat(md5(i::text), 10) FROM generate_series(1, 50000) i";
    postgres.sql(&format!(
        "CREATE TABLE source AS {rows}; CREATE TABLE target (LIKE source)"
    ));
    let mut out = psql(valet.port())
        .args(["-c", "COPY source TO stdout (FORMAT binary)"])
        .stdout(Stdio::piped())
        .spawn();
    let out = out.as_mut().expect("psql can be run");
    let pipe = out.stdout.take().expect("stdout is piped");
    run(psql(valet.port())
        .args(["-c", "COPY target FROM stdin (FORMAT binary)"])
        .stdin(pipe));
    assert!(out.wait().expect("it is our child").success());
    assert_eq!(
        postgres.sql("SELECT count(*) FROM (TABLE source EXCEPT TABLE target) AS lost"),
        "0"
    );
    assert_eq!(postgres.sql("SELECT count(*) FROM target"), "50000");
}

#[test]
fn a_notification_reaches_its_listener() {
    let (_postgres, valet) = stage();
    let output = run(psql(valet.port()).args(["-c", "LISTEN news", "-c", "NOTIFY news, 'hello'"]));
    assert!(
        output.starts_with("Asynchronous notification \"news\" with payload \"hello\" received"),
        "{output}"
    );
}

#[test]
fn interrupting_psql_cancels_its_query_only() {
    let (postgres, valet) = stage();
    let spawn = |sql: &str| {
        let mut command: Command = psql(valet.port());
        command
            .args(["-c", sql])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("psql can be run")
    };
    let victim = spawn("SELECT pg_sleep(600)");
    let mut other = spawn("SELECT pg_advisory_lock(1), 'untouched'");
    running(&postgres, "SELECT pg_sleep(600)", 1);
    kill_process(Pid::from_child(&victim), Signal::INT).expect("psql can be interrupted");
    let output = victim.wait_with_output().expect("psql ends");
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("canceling statement due to user request")
    );
    assert!(other.wait().expect("psql ends").success());
}

/// Waits until PostgreSQL executes `sql` for `count` clients.
#[track_caller]
fn running(postgres: &Postgres, sql: &str, count: usize) {
    let count = count.to_string();
    let active =
        format!("SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query = '{sql}'");
    eventually("the query runs", || postgres.sql(&active) == count);
}

#[test]
fn an_interactive_session_reads_one_line_after_the_other() {
    let (_postgres, valet) = stage();
    let mut session = psql(valet.port())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("psql can be run");
    let mut input = session.stdin.take().expect("stdin is piped");
    for line in [
        "BEGIN;",
        "CREATE TABLE t (a int);",
        "SAVEPOINT s;",
        "SELECT 1/0;",
        "ROLLBACK TO s;",
        "COMMIT;",
    ] {
        writeln!(input, "{line}").expect("psql reads");
    }
    writeln!(input, "SELECT count(*) FROM t;").expect("psql reads");
    drop(input);
    let output = session.wait_with_output().expect("psql ends");
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "0");
}

/// PostgreSQL refuses to drop, to copy or to rename a database while anybody is connected to it, be it an idle backend of ours.
#[test]
fn databases_are_dropped_copied_and_renamed_as_if_nobody_had_been_there() {
    let (_postgres, valet) = stage();
    let on = |database: &str, sql: &str| {
        let mut psql = psql(valet.port());
        everything(psql.args(["-d", database, "-c", sql]))
    };
    let done = (Some(0), String::new(), String::new());
    assert_eq!(on("postgres", "CREATE DATABASE shop"), done);
    assert_eq!(on("shop", "CREATE TABLE t (n int)"), done);
    assert_eq!(on("postgres", "CREATE DATABASE copy TEMPLATE shop"), done);
    assert_eq!(on("copy", "INSERT INTO t VALUES (1)"), done);
    assert_eq!(on("postgres", "ALTER DATABASE copy RENAME TO mart"), done);
    assert_eq!(on("mart", "SELECT n FROM t").1, "1\n");
    assert_eq!(on("postgres", "drop database mart"), done);
    let (status, _, error) = on("mart", "SELECT 1");
    assert_eq!(status, Some(2), "refused at login: {error}");
    assert!(
        error.contains("database \"mart\" does not exist"),
        "{error}"
    );
}
