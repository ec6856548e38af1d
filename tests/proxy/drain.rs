//! The orderly end: SIGTERM lets what runs finish, a second one doesn't.

use rustix::process::Signal;

use crate::support::{Postgres, Raw, Valet, eventually, messages, no_valet, tags};

fn stage() -> (Postgres, Valet) {
    let postgres = Postgres::start();
    let valet = Valet::front(&postgres);
    (postgres, valet)
}

/// A statement that runs until the returned session, straight on PostgreSQL, goes.
fn blocked(postgres: &Postgres, client: &mut Raw) -> Raw {
    let mut holder = Raw::connect(postgres.port());
    holder.query("SELECT pg_advisory_lock(1)");
    client.send(&messages::query("SELECT pg_advisory_xact_lock(1), 'done'"));
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'advisory'";
    eventually("the statement runs", || postgres.sql(waiting) == "1");
    holder
}

#[test]
fn without_sessions_it_ends_at_once_and_leaves_no_backend() {
    if no_valet() {
        return;
    }
    let (postgres, valet) = stage();
    let mut client = Raw::connect(valet.port());
    client.query("SELECT 1");
    client.goodbye();
    valet.signal(Signal::TERM);
    assert_eq!(valet.wait().status.code(), Some(0));
    eventually("its backends are gone", || postgres.client_backends() == 0);
}

#[test]
fn an_idle_session_is_closed_with_57p01() {
    if no_valet() {
        return;
    }
    let (_postgres, valet) = stage();
    let mut client = Raw::connect(valet.port());
    client.query("SELECT 1");
    valet.signal(Signal::TERM);
    assert_eq!(client.until(b'E').sqlstate(), "57P01");
    client.assert_closed();
    assert_eq!(valet.wait().status.code(), Some(0));
}

#[test]
fn a_running_statement_gets_its_answer_first() {
    if no_valet() {
        return;
    }
    let (postgres, valet) = stage();
    let (mut client, mut idle) = (Raw::connect(valet.port()), Raw::connect(valet.port()));
    idle.query("SELECT 1");
    let blocker = blocked(&postgres, &mut client);
    valet.signal(Signal::TERM);
    assert_eq!(idle.until(b'E').sqlstate(), "57P01");
    blocker.goodbye();
    assert_eq!(tags(&client.until_ready()), "TDCZ");
    assert_eq!(valet.wait().status.code(), Some(0));
}

#[test]
fn an_open_transaction_may_commit_first() {
    if no_valet() {
        return;
    }
    let (postgres, valet) = stage();
    postgres.sql("CREATE TABLE t (a int)");
    let (mut client, mut idle) = (Raw::connect(valet.port()), Raw::connect(valet.port()));
    idle.query("SELECT 1");
    client.query("BEGIN; INSERT INTO t VALUES (1)");
    valet.signal(Signal::TERM);
    assert_eq!(idle.until(b'E').sqlstate(), "57P01");
    assert_eq!(tags(&client.query("COMMIT")), "CZ");
    assert_eq!(valet.wait().status.code(), Some(0));
    assert_eq!(postgres.sql("SELECT count(*) FROM t"), "1");
}

#[test]
fn a_second_signal_ends_it_at_once() {
    if no_valet() {
        return;
    }
    let (postgres, valet) = stage();
    let (mut client, mut idle) = (Raw::connect(valet.port()), Raw::connect(valet.port()));
    idle.query("SELECT 1");
    let _blocker = blocked(&postgres, &mut client);
    valet.signal(Signal::TERM);
    idle.until(b'E');
    valet.signal(Signal::TERM);
    let _ = valet.wait();
    while let Some(message) = client.try_next() {
        assert_eq!(message.tag, b'E', "{message:?}");
    }
}

#[test]
fn what_outlasts_drain_timeout_is_cut() {
    if no_valet() {
        return;
    }
    let postgres = Postgres::start();
    let valet = Valet::front_with(&postgres, &["--drain-timeout", "100ms"]);
    let mut client = Raw::connect(valet.port());
    let _blocker = blocked(&postgres, &mut client);
    valet.signal(Signal::TERM);
    let _ = valet.wait();
    while let Some(message) = client.try_next() {
        assert_eq!(message.tag, b'E', "{message:?}");
    }
}
