//! A cancel reaches the running statement of its own session, and nothing else. Protocol chapter 55.2.8.

use crate::support::messages::{self, cancel_request};
use crate::support::{Postgres, Raw, Valet, eventually, no_valet, tags};

fn stage(flags: &[&str]) -> (Postgres, Valet) {
    let postgres = Postgres::start();
    let valet = Valet::front_with(&postgres, flags);
    (postgres, valet)
}

/// Sends a CancelRequest, and waits until the other side has dealt with it: it closes without a word.
#[track_caller]
fn cancel(valet: &Valet, pid: i32, key: &[u8]) {
    let mut request = Raw::dial(valet.port());
    request.send(&cancel_request(pid, key));
    request.assert_closed();
}

/// Has `client` wait inside a statement, until `free` is called.
fn block(postgres: &Postgres, client: &mut Raw) {
    client.send(&messages::query("SELECT pg_advisory_xact_lock(1), 'done'"));
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'advisory'";
    eventually("the statement runs", || postgres.sql(waiting) == "1");
}

/// A session straight on PostgreSQL that holds what [`block`] waits for; dropping it frees the waiter.
fn blocker(postgres: &Postgres) -> Raw {
    let mut holder = Raw::connect(postgres.port());
    holder.query("SELECT pg_advisory_lock(1)");
    holder
}

#[test]
fn a_cancel_ends_the_statement_and_the_session_goes_on() {
    let (postgres, valet) = stage(&[]);
    let _blocker = blocker(&postgres);
    let mut client = Raw::connect(valet.port());
    block(&postgres, &mut client);
    cancel(&valet, client.pid, &client.key.clone());
    assert_eq!(client.until(b'E').sqlstate(), "57014");
    client.until_ready();
    assert_eq!(client.value("SELECT 1"), "1");
}

#[test]
fn a_cancel_with_a_wrong_key_does_nothing() {
    let (postgres, valet) = stage(&[]);
    let blocker = blocker(&postgres);
    let mut client = Raw::connect(valet.port());
    block(&postgres, &mut client);
    let mut wrong = client.key.clone();
    wrong[0] ^= 1;
    for (pid, key) in [
        (client.pid, &wrong[..]),
        (client.pid + 1, &client.key),
        (client.pid, &[]),
        (0, &[0; 4]),
        (-1, &[7; 256]),
    ] {
        let mut request = Raw::dial(valet.port());
        request.send(&cancel_request(pid, key));
        while request.try_next().is_some() {}
    }
    blocker.goodbye();
    assert_eq!(tags(&client.until_ready()), "TDCZ");
}

#[test]
fn a_cancel_in_a_transaction_fails_the_transaction_only() {
    let (postgres, valet) = stage(&[]);
    let _blocker = blocker(&postgres);
    let mut client = Raw::connect(valet.port());
    client.query("BEGIN");
    block(&postgres, &mut client);
    cancel(&valet, client.pid, &client.key.clone());
    assert_eq!(
        client.until_ready().last().expect("ReadyForQuery").status(),
        'E'
    );
    assert_eq!(
        client
            .query("ROLLBACK")
            .last()
            .expect("ReadyForQuery")
            .status(),
        'I'
    );
}

#[test]
fn a_cancel_of_a_session_that_is_gone_doesn_t_touch_its_backend_s_next_session() {
    let (postgres, valet) = stage(&["--max-backends", "1"]);
    let blocker = blocker(&postgres);
    let mut gone = Raw::connect(valet.port());
    gone.query("SELECT 1");
    let (pid, key) = (gone.pid, gone.key.clone());
    gone.goodbye();
    let mut next = Raw::connect(valet.port());
    block(&postgres, &mut next);
    cancel(&valet, pid, &key);
    blocker.goodbye();
    assert_eq!(tags(&next.until_ready()), "TDCZ");
}

#[test]
fn a_cancel_of_a_session_that_waits_for_a_backend_doesn_t_touch_who_has_it() {
    if no_valet() {
        return;
    }
    let (postgres, valet) = stage(&["--max-backends", "1"]);
    let blocker = blocker(&postgres);
    let (mut holder, mut queued) = (Raw::connect(valet.port()), Raw::connect(valet.port()));
    block(&postgres, &mut holder);
    queued.send(&messages::query("SELECT 2"));
    let waiting = "pgvalet_waiting_sessions{database=\"postgres\",user=\"postgres\"}";
    eventually("it waits", || valet.metric(waiting) == 1.0);
    cancel(&valet, queued.pid, &queued.key.clone());
    blocker.goodbye();
    assert_eq!(tags(&holder.until_ready()), "TDCZ");
    holder.goodbye();
    assert!(["TDCZ", "EZ"].contains(&tags(&queued.until_ready()).as_str()));
    assert_eq!(queued.value("SELECT 3"), "3");
}

#[test]
fn a_cancel_never_hits_the_session_that_has_the_backend_next() {
    if no_valet() {
        return;
    }
    let (_postgres, valet) = stage(&["--max-backends", "1", "--mode", "transaction"]);
    let (mut hasty, mut bystander) = (Raw::connect(valet.port()), Raw::connect(valet.port()));
    for round in 0..150 {
        hasty.send(&messages::query("SELECT 1"));
        let mut request = Raw::dial(valet.port());
        request.send(&cancel_request(hasty.pid, &hasty.key));
        bystander.send(&messages::query(
            "SELECT count(*) FROM generate_series(1, 3000)",
        ));
        let answer = bystander.until_ready();
        assert_eq!(tags(&answer), "TDCZ", "round {round}: {answer:?}");
        request.assert_closed();
        hasty.until_ready();
    }
}

#[test]
fn a_thousand_cancels_starve_nobody() {
    if no_valet() {
        return;
    }
    let (postgres, valet) = stage(&["--max-backends", "2"]);
    let blocker = blocker(&postgres);
    let (mut busy, mut worker) = (Raw::connect(valet.port()), Raw::connect(valet.port()));
    block(&postgres, &mut busy);
    let mut requests = Vec::new();
    for round in 0..1000 {
        let mut request = Raw::dial(valet.port());
        request.send(&cancel_request(worker.pid, &worker.key));
        requests.push(request);
        if round % 100 == 0 {
            let sqlstate = worker.query("SELECT 1")[0].field(b'C');
            assert!(sqlstate.is_none_or(|code| code == "57014"));
        }
    }
    requests.iter_mut().for_each(Raw::assert_closed);
    blocker.goodbye();
    assert_eq!(tags(&busy.until_ready()), "TDCZ");
    eventually("the worker is let alone", || {
        worker.query("SELECT 1")[0].tag == b'T'
    });
}
