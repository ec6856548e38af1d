//! A session killed at any message boundary, or in the middle of a message, never leaves a dirty backend in the pool.

use crate::support::messages::{
    bind, close_portal, copy_data, copy_done, describe_portal, execute, extended, flush, parse,
    query, sync, unsynced,
};
use crate::support::{Postgres, Raw, Valet, eventually};

/// A session's life in messages: every phase of the protocol, most of them inside something that must not survive.
fn life() -> Vec<Vec<u8>> {
    let simple = [
        "BEGIN",
        "INSERT INTO t VALUES (1)",
        "SAVEPOINT s",
        "SELECT 1/0",
        "ROLLBACK TO s",
        "COMMIT AND CHAIN",
        "ROLLBACK",
    ];
    let mut life: Vec<Vec<u8>> = simple.map(query).to_vec();
    life.extend([
        parse("named", "SELECT generate_series(1, 10)"),
        bind("portal", "named", &[]),
        describe_portal("portal"),
        execute("portal", 3),
        flush(),
        execute("portal", 3),
        close_portal("portal"),
        sync(),
        extended("BEGIN", &[]),
        extended("INSERT INTO t VALUES (2)", &[]),
        sync(),
        extended("SELECT 1/0", &[]),
        extended("SELECT 2", &[]),
        sync(),
        query("ROLLBACK"),
        query("CREATE TEMP TABLE mine (a int); SET search_path = pg_temp; SELECT pg_advisory_lock(7); LISTEN news"),
        query("RESET search_path; BEGIN; COPY t FROM stdin"),
        copy_data("1\n"),
        copy_data("2\n"),
        copy_done(),
        query("COPY t TO stdout"),
        query("ROLLBACK"),
        extended("COPY t FROM stdin", &[]),
        copy_data("no number\n"),
        copy_data("4\n"),
        sync(),
        query("SET SESSION AUTHORIZATION alice; BEGIN; DECLARE c CURSOR WITH HOLD FOR SELECT 1; COMMIT"),
    ]);
    life
}

fn stage() -> (Postgres, Valet) {
    let postgres = Postgres::start();
    postgres.sql("CREATE TABLE t (a int); CREATE ROLE alice LOGIN; GRANT ALL ON t TO alice");
    let valet = Valet::front_with(&postgres, &["--max-backends", "1"]);
    (postgres, valet)
}

const CLEAN: &str = "
    SELECT concat_ws(' ', current_user, session_user, current_setting('search_path'),
        (SELECT count(*) FROM pg_catalog.pg_class WHERE relnamespace = pg_catalog.pg_my_temp_schema()),
        (SELECT count(*) FROM pg_catalog.pg_locks WHERE pid = pg_catalog.pg_backend_pid() AND locktype = 'advisory'),
        (SELECT count(*) FROM pg_catalog.pg_prepared_statements WHERE name = 'named'),
        (SELECT count(*) FROM pg_catalog.pg_listening_channels()),
        (SELECT count(*) FROM pg_catalog.pg_cursors WHERE is_holdable))";

#[track_caller]
fn the_next_session_is_clean(valet: &Valet, after: &str) {
    let mut client = Raw::connect(valet.port());
    let answer = client.query(CLEAN);
    assert_eq!(
        answer.last().expect("ReadyForQuery").status(),
        'I',
        "after {after}"
    );
    let state = answer[1].columns().swap_remove(0);
    assert_eq!(
        state, "postgres postgres \"$user\", public 0 0 0 0 0",
        "after {after}"
    );
    client.goodbye();
}

fn committed(postgres: &Postgres) -> String {
    postgres.sql("SELECT count(*) FROM t WHERE a > 2")
}

#[test]
fn a_session_killed_at_any_message_boundary() {
    let (postgres, valet) = stage();
    let life = life();
    for length in 0..=life.len() {
        for leave in [drop::<Raw>, Raw::reset] {
            let mut client = Raw::connect(valet.port());
            client.send(&life[..length].concat());
            leave(client);
            the_next_session_is_clean(&valet, &format!("{length} messages"));
        }
    }
    assert_eq!(committed(&postgres), "0");
}

#[test]
fn a_session_killed_in_the_middle_of_any_message() {
    let (postgres, valet) = stage();
    let life = life();
    for length in 0..life.len() {
        for cut in [1, 3, 5, life[length].len() - 1] {
            let mut client = Raw::connect(valet.port());
            client.send(
                &[
                    &life[..length].concat(),
                    &life[length][..cut.min(life[length].len() - 1)],
                ]
                .concat(),
            );
            drop(client);
            the_next_session_is_clean(&valet, &format!("{length} messages and {cut} bytes"));
        }
    }
    assert_eq!(committed(&postgres), "0");
}

#[test]
fn a_session_killed_once_postgresql_is_waiting_for_it() {
    let (postgres, valet) = stage();
    let life = life();
    let reading = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()
        AND (wait_event = 'ClientRead' OR state LIKE 'idle%')";
    for length in 1..=life.len() {
        let mut client = Raw::connect(valet.port());
        client.send(&life[..length].concat());
        eventually("PostgreSQL has read it all", || {
            postgres.sql(reading) != "0"
        });
        drop(client);
        the_next_session_is_clean(&valet, &format!("{length} messages"));
    }
    assert_eq!(committed(&postgres), "0");
}

#[test]
fn what_was_answered_but_never_synced_is_never_committed() {
    let (postgres, valet) = stage();
    for leave in [Raw::goodbye, drop::<Raw>, Raw::reset] {
        let mut client = Raw::connect(valet.port());
        // PostgreSQL sends these with all that it has to say, though nobody asked for it by a Flush.
        client.query("SET client_min_messages = log; SET log_duration = on");
        client.send(&unsynced("INSERT INTO t VALUES (3)"));
        for _ in 0..2 {
            client.until(b'1');
        }
        leave(client);
        the_next_session_is_clean(&valet, "no Sync");
    }
    assert_eq!(committed(&postgres), "0");
}

#[test]
fn messages_cut_into_single_bytes_are_the_same_messages() {
    let (_postgres, valet) = stage();
    let mut client = Raw::connect(valet.port());
    let script = [
        query("SELECT 1"),
        extended("SELECT 2", &[]),
        sync(),
        query("COPY (SELECT 3) TO stdout"),
    ]
    .concat();
    for byte in script {
        client.send(&[byte]);
    }
    let answers: Vec<String> =
        std::iter::repeat_with(|| crate::support::tags(&client.until_ready()))
            .take(3)
            .collect();
    assert_eq!(answers, ["TDCZ", "12TDCZ", "HdcCZ"]);
}

#[test]
fn a_message_of_an_impossible_length_ends_the_session_only() {
    let (_postgres, valet) = stage();
    for length in [0u32, 3, u32::MAX, 0x8000_0000] {
        let mut client = Raw::connect(valet.port());
        client.query("BEGIN");
        client.send(&[&b"Q"[..], &length.to_be_bytes()].concat());
        while let Some(message) = client.try_next() {
            assert_eq!(message.tag, b'E', "{message:?}");
        }
        the_next_session_is_clean(&valet, "an impossible length");
    }
}

#[test]
fn a_message_of_an_unknown_type_ends_the_session_only() {
    let (_postgres, valet) = stage();
    let mut client = Raw::connect(valet.port());
    client.send(&crate::support::messages::frame(b'~', b"what"));
    let error = client.until(b'E');
    assert_eq!(error.sqlstate(), "08P01", "{error:?}");
    client.assert_closed();
    the_next_session_is_clean(&valet, "an unknown type");
}
