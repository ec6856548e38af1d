//! Returns at every moment: no answer is lost, crossed or torn.

use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::json;

use crate::stage::{reload, session, stage};
use crate::support::messages::{bind, execute, extended, parse, sync};
use crate::support::{Valet, tags};

/// A session with a setting and a prepared statement of its own, whose every answer must be its own.
fn work(valet: &Valet, worker: usize) {
    let mut client = session(valet, &format!("worker {worker}"));
    client.value(&format!("SET app.worker = '{worker}'"));
    client.send(
        &[
            parse("mine", &format!("SELECT '{worker}:' || $1::text")),
            sync(),
        ]
        .concat(),
    );
    client.until_ready();
    for round in 0..60 {
        let round = round.to_string();
        client.send(&[bind("", "mine", &[&round]), execute("", 0), sync()].concat());
        assert_eq!(
            client.until_ready()[1].columns(),
            [format!("{worker}:{round}")]
        );
        client.query("BEGIN");
        client.send(
            &[
                extended("INSERT INTO jobs (name) VALUES ($1)", &[&round]),
                sync(),
            ]
            .concat(),
        );
        assert_eq!(tags(&client.until_ready()), "12nCZ");
        assert_eq!(
            client.value("SELECT current_setting('app.worker')"),
            worker.to_string()
        );
        assert_eq!(tags(&client.query("COMMIT")), "CZ");
    }
}

#[test]
fn reloads_without_end_disturb_no_request() {
    reloads_disturb_no_request("session");
}

#[test]
fn reloads_without_end_disturb_no_request_in_transaction_mode() {
    reloads_disturb_no_request("transaction");
}

fn reloads_disturb_no_request(mode: &str) {
    let Some((postgres, valet)) = stage(&["--max-backends", "3", "--mode", mode]) else {
        return;
    };
    let valet = &valet;
    let finished = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..5)
            .map(|worker| scope.spawn(move || work(valet, worker)))
            .collect();
        scope.spawn(|| {
            while !finished.load(Ordering::Relaxed) {
                reload(valet, &json!({"deadline": "20ms"}));
            }
        });
        let results: Vec<_> = workers
            .into_iter()
            .map(std::thread::ScopedJoinHandle::join)
            .collect();
        finished.store(true, Ordering::Relaxed);
        results
            .into_iter()
            .for_each(|result| result.expect("no worker was disturbed"));
    });
    assert_eq!(
        postgres.sql("SELECT count(*), count(DISTINCT name) FROM jobs"),
        "300|60"
    );
}

#[test]
fn chaos_changes_no_answer() {
    let Some((_postgres, valet)) = stage(&["--max-backends", "3", "--chaos-return", "always"])
    else {
        return;
    };
    let mut clients = ["Asia/Tokyo", "Europe/Paris", "America/Lima"].map(|zone| {
        let mut client = session(&valet, zone);
        client.value(&format!("SET TimeZone = '{zone}'"));
        client.send(
            &[
                parse("zone", "SELECT current_setting('TimeZone') || $1::text"),
                sync(),
            ]
            .concat(),
        );
        client.until_ready();
        (client, zone)
    });
    for round in 0..30 {
        for (client, zone) in &mut clients {
            client.send(&[bind("", "zone", &["!"]), execute("", 0), sync()].concat());
            assert_eq!(
                client.until_ready()[1].columns(),
                [format!("{zone}!")],
                "round {round}"
            );
        }
    }
}
