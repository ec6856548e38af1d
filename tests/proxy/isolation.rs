//! A session that ends, however it ends, leaves nothing behind for the next one on its backend.

use crate::support::{Postgres, Raw, Valet, eventually};

/// What a session may leave: SQL that makes it dirty.
const DIRT: [&str; 16] = [
    "BEGIN; INSERT INTO t VALUES (1)",
    "BEGIN; SELECT 1/0",
    "CREATE TEMP TABLE mine (a int)",
    "SELECT pg_advisory_lock(7)",
    "BEGIN; LOCK TABLE t IN ACCESS EXCLUSIVE MODE",
    "SET TimeZone = 'Asia/Tokyo'",
    "SET search_path = pg_temp, nowhere",
    "SET ROLE pg_monitor",
    "SET SESSION AUTHORIZATION alice",
    "SET default_transaction_read_only = on",
    "SET client_encoding = 'LATIN1'",
    "SELECT set_config('app.tenant', 'acme', false)",
    "PREPARE mine AS SELECT 1",
    "LISTEN news",
    "BEGIN; DECLARE mine CURSOR WITH HOLD FOR SELECT 1; COMMIT",
    "SET statement_timeout = '1ms'",
];

/// A way for a client to leave.
type Leave = fn(Raw);
const ENDS: [(&str, Leave); 4] = [
    ("Terminate", Raw::goodbye),
    ("close", drop),
    ("reset", Raw::reset),
    ("half close", |client| {
        client.half_close();
        drop(client);
    }),
];

fn stage() -> (Postgres, Valet) {
    let postgres = Postgres::start();
    postgres.sql("CREATE TABLE t (a int); CREATE ROLE alice LOGIN; GRANT ALL ON t TO alice");
    let valet = Valet::front_with(&postgres, &["--max-backends", "1"]);
    (postgres, valet)
}

/// Everything that a fresh session can see of another's state, as one line.
const STATE: &str = "
    SELECT concat_ws(' ', current_user, session_user, current_setting('TimeZone'), current_setting('search_path'),
        current_setting('client_encoding'), current_setting('default_transaction_read_only'),
        current_setting('statement_timeout'), coalesce(nullif(current_setting('app.tenant', true), ''), '-'),
        (SELECT count(*) FROM pg_class WHERE relnamespace = pg_my_temp_schema()),
        (SELECT count(*) FROM pg_locks WHERE pid = pg_backend_pid() AND locktype = 'advisory'),
        (SELECT count(*) FROM pg_prepared_statements WHERE from_sql),
        (SELECT count(*) FROM pg_listening_channels()),
        (SELECT count(*) FROM pg_cursors WHERE is_holdable),
        (SELECT count(*) FROM t))";

/// What the next session sees; its transaction status must be idle.
#[track_caller]
fn next_session(valet: &Valet) -> String {
    let mut client = Raw::connect(valet.port());
    let answer = client.query(STATE);
    assert_eq!(
        answer.last().expect("ReadyForQuery").status(),
        'I',
        "{answer:?}"
    );
    assert_eq!(client.parameters["TimeZone"], "GMT");
    assert_eq!(client.parameters["client_encoding"], "UTF8");
    let state = answer[1].columns().swap_remove(0);
    client.goodbye();
    state
}

#[track_caller]
fn nothing_is_left_by(dirty: impl Fn(&mut Raw, &str)) {
    let (postgres, valet) = stage();
    let clean = next_session(&valet);
    for dirt in DIRT {
        for (end, leave) in ENDS {
            let mut client = Raw::connect(valet.port());
            dirty(&mut client, dirt);
            leave(client);
            assert_eq!(next_session(&valet), clean, "after {dirt}, {end}");
        }
    }
    let open = "SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'";
    eventually("no transaction is left open", || postgres.sql(open) == "0");
}

#[test]
fn nothing_is_left_by_a_session_that_ends_after_its_answer() {
    nothing_is_left_by(|client, dirt| drop(client.query(dirt)));
}

#[test]
fn nothing_is_left_by_a_session_that_ends_before_its_answer() {
    nothing_is_left_by(|client, dirt| client.send(&crate::support::messages::query(dirt)));
}

#[test]
fn prepared_statements_of_one_session_are_unknown_to_the_next() {
    use crate::support::messages;
    let (_postgres, valet) = stage();
    for name in ["", "s"] {
        let mut client = Raw::connect(valet.port());
        client.send(&[messages::parse(name, "SELECT 1"), messages::sync()].concat());
        client.until_ready();
        client.goodbye();
        let mut next = Raw::connect(valet.port());
        next.send(&[messages::bind("", name, &[]), messages::sync()].concat());
        assert_eq!(next.until_ready()[0].sqlstate(), "26000");
        next.send(&[messages::parse(name, "SELECT 2"), messages::sync()].concat());
        assert_eq!(next.until_ready()[0].tag, b'1');
        next.goodbye();
    }
}

#[test]
fn a_notification_for_one_session_never_reaches_another() {
    let (postgres, valet) = stage();
    let mut listener = Raw::connect(valet.port());
    listener.query("LISTEN news");
    listener.goodbye();
    let mut next = Raw::connect(valet.port());
    next.query("SELECT 1");
    postgres.sql("NOTIFY news, 'not for you'");
    next.send(&crate::support::messages::query("SELECT 2"));
    let tags: Vec<u8> = std::iter::repeat_with(|| next.next().tag).take(4).collect();
    assert_eq!(tags, b"TDCZ");
}

#[test]
fn a_large_answer_that_nobody_reads_any_more_holds_up_nobody() {
    let (_postgres, valet) = stage();
    for _ in 0..5 {
        let mut client = Raw::connect(valet.port());
        client.send(&crate::support::messages::query(
            "SELECT repeat('x', 1000) FROM generate_series(1, 100000)",
        ));
        client.until(b'D');
        client.reset();
        assert_eq!(Raw::connect(valet.port()).value("SELECT 1"), "1");
    }
}

#[test]
fn a_sleeping_query_whose_client_is_gone_holds_up_nobody_for_long() {
    if crate::support::no_valet() {
        return;
    }
    let (postgres, valet) = stage();
    let mut client = Raw::connect(valet.port());
    client.send(&crate::support::messages::query("SELECT pg_sleep(600)"));
    let active = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query = 'SELECT pg_sleep(600)'";
    eventually("the query runs", || postgres.sql(active) == "1");
    drop(client);
    assert_eq!(Raw::connect(valet.port()).value("SELECT 1"), "1");
    eventually("the query has ended", || postgres.sql(active) == "0");
}
