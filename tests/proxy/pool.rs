//! The pool is bounded, its queue is fair, and who waits too long is told so.

use crate::support::messages;
use crate::support::{Message, Postgres, Raw, Valet, eventually, no_valet};

const WAITING: &str = "pgvalet_waiting_sessions{database=\"postgres\",user=\"postgres\"}";

fn stage(flags: &[&str]) -> (Postgres, Valet) {
    let postgres = Postgres::start();
    let valet = Valet::front_with(&postgres, flags);
    (postgres, valet)
}

#[track_caller]
fn waiting(valet: &Valet, count: usize) {
    eventually(&format!("{count} sessions wait"), || {
        valet.metric(WAITING) as usize == count
    });
}

/// The backend's own pid, which pgvalet's ids hide from the protocol.
fn backend(client: &mut Raw) -> String {
    client.value("SELECT pg_backend_pid()")
}

#[test]
fn no_more_backends_than_the_bound_are_opened() {
    if no_valet() {
        return;
    }
    let (postgres, valet) = stage(&["--max-backends", "2"]);
    let mut leased: Vec<Raw> = std::iter::repeat_with(|| Raw::connect(valet.port()))
        .take(2)
        .collect();
    leased
        .iter_mut()
        .for_each(|client| assert_eq!(client.value("SELECT 1"), "1"));
    let mut third = Raw::connect(valet.port());
    third.send(&messages::query("SELECT 3"));
    waiting(&valet, 1);
    assert_eq!(postgres.client_backends(), 2);
    leased.pop().expect("two clients").goodbye();
    assert_eq!(third.until_ready()[1].columns(), ["3"]);
    assert_eq!(postgres.client_backends(), 2);
}

#[test]
fn waiting_sessions_are_served_in_the_order_they_came() {
    if no_valet() {
        return;
    }
    let (postgres, valet) = stage(&["--max-backends", "1", "--mode", "transaction"]);
    postgres.sql("CREATE TABLE served (place serial, who int)");
    let mut holder = Raw::connect(valet.port());
    holder.query("BEGIN");
    let mut queue: Vec<Raw> = Vec::new();
    for who in 0..8 {
        let mut client = Raw::connect(valet.port());
        client.send(&messages::query(&format!(
            "INSERT INTO served (who) VALUES ({who})"
        )));
        waiting(&valet, who + 1);
        queue.push(client);
    }
    holder.query("COMMIT");
    queue
        .iter_mut()
        .for_each(|client| drop(client.until_ready()));
    assert_eq!(
        postgres.sql("SELECT string_agg(who::text, '' ORDER BY place) FROM served"),
        "01234567"
    );
}

#[test]
fn a_newcomer_doesn_t_overtake_the_queue() {
    if no_valet() {
        return;
    }
    let (postgres, valet) = stage(&["--max-backends", "1", "--mode", "transaction"]);
    postgres.sql("CREATE TABLE served (place serial, who text)");
    let (mut busy, mut patient) = (Raw::connect(valet.port()), Raw::connect(valet.port()));
    busy.query("BEGIN");
    patient.send(&messages::query(
        "INSERT INTO served (who) VALUES ('patient')",
    ));
    waiting(&valet, 1);
    busy.query("COMMIT");
    busy.query("INSERT INTO served (who) VALUES ('busy')");
    patient.until_ready();
    assert_eq!(
        postgres.sql("SELECT string_agg(who, ' ' ORDER BY place) FROM served"),
        "patient busy"
    );
}

/// The error of a session that waited too long: what it is, why, and what to do.
#[track_caller]
fn is_a_clear_refusal(error: &Message) {
    assert_eq!(error.sqlstate(), "53300", "{error:?}");
    assert!(
        error.field(b'M').is_some_and(|text| !text.is_empty()),
        "{error:?}"
    );
    assert!(
        error.field(b'H').is_some_and(|text| !text.is_empty()),
        "{error:?}"
    );
}

#[test]
fn who_waits_longer_than_acquire_timeout_is_told_so() {
    if no_valet() {
        return;
    }
    let (_postgres, valet) = stage(&["--max-backends", "1", "--acquire-timeout", "150ms"]);
    let mut holder = Raw::connect(valet.port());
    holder.query("SELECT 1");
    let mut client = Raw::connect(valet.port());
    client.send(&messages::query("SELECT 2"));
    is_a_clear_refusal(&client.until(b'E'));
    drop(client);
    let mut client = Raw::connect(valet.port());
    client.send(&[messages::extended("SELECT 2", &[]), messages::sync()].concat());
    is_a_clear_refusal(&client.until(b'E'));
    drop(client);
    holder.goodbye();
    assert_eq!(Raw::connect(valet.port()).value("SELECT 3"), "3");
}

#[test]
fn a_waiting_client_that_leaves_gives_up_its_place() {
    if no_valet() {
        return;
    }
    let (postgres, valet) = stage(&["--max-backends", "1"]);
    postgres.sql("CREATE TABLE served (who text)");
    let mut holder = Raw::connect(valet.port());
    holder.query("SELECT 1");
    let (mut leaving, mut next) = (Raw::connect(valet.port()), Raw::connect(valet.port()));
    leaving.send(&messages::query("INSERT INTO served VALUES ('gone')"));
    waiting(&valet, 1);
    next.send(&messages::query("INSERT INTO served VALUES ('next')"));
    waiting(&valet, 2);
    drop(leaving);
    waiting(&valet, 1);
    holder.goodbye();
    next.until_ready();
    assert_eq!(
        postgres.sql("SELECT string_agg(who, ' ') FROM served"),
        "next"
    );
}

#[test]
fn more_clients_than_max_sessions_are_refused() {
    if no_valet() {
        return;
    }
    let (_postgres, valet) = stage(&["--max-sessions", "2"]);
    let (first, mut second) = (Raw::connect(valet.port()), Raw::connect(valet.port()));
    let error = Raw::refused(
        valet.port(),
        &[("user", "postgres"), ("database", "postgres")],
    );
    assert_eq!(error.sqlstate(), "53300", "{error:?}");
    assert_eq!(second.value("SELECT 2"), "2");
    first.goodbye();
    eventually("the place is free", || {
        let mut third = Raw::dial(valet.port());
        third.send(&messages::startup(
            0x0003_0000,
            &[("user", "postgres"), ("database", "postgres")],
        ));
        third.next().tag == b'R'
    });
}

#[test]
fn a_backend_serves_one_session_after_the_other() {
    if no_valet() {
        return;
    }
    let (postgres, valet) = stage(&["--max-backends", "1"]);
    let mut pids = Vec::new();
    for _ in 0..5 {
        let mut client = Raw::connect(valet.port());
        pids.push(backend(&mut client));
        client.goodbye();
    }
    assert!(pids.iter().all(|pid| *pid == pids[0]), "{pids:?}");
    assert_eq!(postgres.client_backends(), 1);
}

#[test]
fn each_database_and_user_has_a_pool_of_its_own() {
    if no_valet() {
        return;
    }
    let (postgres, valet) = stage(&["--max-backends", "1"]);
    postgres.sql("CREATE ROLE alice LOGIN");
    postgres.sql("CREATE DATABASE other");
    let who =
        |user, database| Raw::connect_with(valet.port(), &[("user", user), ("database", database)]);
    let mut clients = [
        who("postgres", "postgres"),
        who("alice", "postgres"),
        who("postgres", "other"),
    ];
    let seen = clients
        .each_mut()
        .map(|client| client.value("SELECT session_user || '@' || current_database()"));
    assert_eq!(
        seen,
        ["postgres@postgres", "alice@postgres", "postgres@other"]
    );
}

#[test]
fn postgresql_s_own_bound_is_told_and_overcome() {
    if no_valet() {
        return;
    }
    let postgres = Postgres::start();
    postgres.sql("CREATE ROLE alice LOGIN CONNECTION LIMIT 1");
    let valet = Valet::front(&postgres);
    let alice = [("user", "alice"), ("database", "postgres")];
    let mut straight = Raw::connect_with(postgres.port(), &alice);
    straight.query("SELECT 1");
    let error = Raw::refused(valet.port(), &alice);
    assert_eq!(error.sqlstate(), "53300", "{error:?}");
    straight.goodbye();
    eventually("alice's place is free", || postgres.client_backends() == 0);
    assert_eq!(
        Raw::connect_with(valet.port(), &alice).value("SELECT 1"),
        "1"
    );
}

#[test]
fn transaction_mode_shares_one_backend_and_keeps_each_session_s_settings() {
    if no_valet() {
        return;
    }
    let (postgres, valet) = stage(&["--max-backends", "1", "--mode", "transaction"]);
    let zones = ["Asia/Tokyo", "Europe/Paris", "America/Lima"];
    let mut clients = zones.map(|_| Raw::connect(valet.port()));
    for (client, zone) in clients.iter_mut().zip(zones) {
        client.query(&format!("SET TimeZone = '{zone}'"));
    }
    for _ in 0..5 {
        for (client, zone) in clients.iter_mut().zip(zones) {
            assert_eq!(client.value("SHOW TimeZone"), zone);
        }
    }
    assert_eq!(postgres.client_backends(), 1);
}

#[test]
fn however_clients_leave_the_whole_pool_is_there_afterwards() {
    if no_valet() {
        return;
    }
    let (_postgres, valet) = stage(&["--max-backends", "2"]);
    let started = || Raw::connect(valet.port());
    let said = |sql: &str| {
        let mut client = Raw::connect(valet.port());
        client.send(&messages::query(sql));
        client
    };
    for _ in 0..15 {
        drop(Raw::dial(valet.port()));
        drop(started());
        let crowd = [
            said("BEGIN"),
            said("SELECT 1"),
            said("BEGIN; SELECT 1/0"),
            said("COPY (SELECT 1) TO stdout"),
        ];
        let (queued, reset) = (said("SELECT 2"), said("SELECT repeat('x', 1000000)"));
        drop(queued);
        reset.reset();
        let [first, second, third, fourth] = crowd;
        third.reset();
        drop((second, first));
        fourth.goodbye();
    }
    eventually("nobody waits", || valet.metric(WAITING) == 0.0);
    let leased = "pgvalet_backends{database=\"postgres\",state=\"leased\",user=\"postgres\"}";
    eventually("nothing is leased", || valet.metric(leased) == 0.0);
    let mut clients = [started(), started()];
    for client in &mut clients {
        assert_eq!(client.query("BEGIN").len(), 2);
    }
}
