//! The reload of six: a parked, a resting, a busy, an in-transaction, a pinned and a dead owner; and that of many.

use serde_json::{Value, json};

use crate::stage::{idle, outcome, session, shown, stage};
use crate::support::{Postgres, Raw, Valet, direct, eventually, messages, tags};

#[test]
fn six_owners_each_get_their_outcome_and_the_busy_ones_are_undisturbed() {
    let Some((postgres, valet)) = stage(&["--park-after", "20ms"]) else {
        return;
    };
    postgres.sql("CREATE TABLE jobs (name text)");
    let mut parked = idle(&valet, "parked");
    parked.query("SET statement_timeout = '7s'");
    let resting = idle(&valet, "resting");
    let mut pinned = idle(&valet, "pinned");
    pinned.query("CREATE TEMP TABLE t (kept int); INSERT INTO t VALUES (7)");
    let mut in_transaction = idle(&valet, "in-transaction");
    in_transaction.query("BEGIN; INSERT INTO jobs VALUES ('half')");
    let mut blocker = Raw::connect(postgres.port());
    blocker.query("SELECT pg_advisory_lock(1)");
    let mut busy = session(&valet);
    busy.send(&messages::query("SELECT pg_advisory_xact_lock(1), 'done'"));
    eventually("it runs", || shown(&valet, &busy)["state"] == "active");
    let dead = idle(&valet, "dead");
    let dead_id = dead.session();
    dead.reset();
    eventually("the dead one has left", || {
        !valet
            .get("/v1/sessions")
            .to_string()
            .contains(&dead_id.to_string())
    });
    eventually("it has parked", || {
        shown(&valet, &parked)["verdict"] == "parked"
    });
    let owners = [
        (parked.session(), "held"),
        (resting.session(), "resting"),
        (pinned.session(), "held"),
        (in_transaction.session(), "held"),
        (busy.session(), "held"),
        (dead_id, "held"),
    ];
    let sessions: Vec<Value> = owners
        .into_iter()
        .map(|(id, state)| json!({"id": id, "owner": "o", "state": state}))
        .collect();
    let (_, record) = valet.admin(
        "POST",
        "/v1/reloads",
        &json!({"deadline": "100ms", "sessions": sessions}),
    );
    let of = |session: u64| outcome(&record, session);
    assert_eq!(of(parked.session()), ["returned", ""]);
    assert_eq!(of(resting.session()), ["resting", ""]);
    assert_eq!(of(pinned.session()), ["pinned", "temp"]);
    assert_eq!(of(in_transaction.session()), ["busy", "in a transaction"]);
    assert_eq!(of(busy.session()), ["busy", "a request is unanswered"]);
    assert_eq!(of(dead_id), ["unknown", ""]);
    blocker.goodbye();
    assert_eq!(busy.until_ready()[1].columns(), ["", "done"]);
    assert_eq!(tags(&in_transaction.query("COMMIT")), "CZ");
    assert_eq!(parked.value("SHOW statement_timeout"), "7s");
    assert_eq!(pinned.value("SELECT kept FROM t"), "7");
    assert_eq!(postgres.sql("SELECT name FROM jobs"), "half");
}

/// `make bench` does the same with a thousand, and measures.
#[test]
fn many_parked_leases_are_returned_by_one_reload_while_others_work() {
    const MANY: usize = 150;
    if direct() {
        return;
    }
    let postgres = Postgres::start_with(crate::support::Auth::Trust, &["max_connections=220"]);
    let valet = Valet::front_with(&postgres, &["--max-backends", "200"]);
    let parked: Vec<Raw> = (0..MANY).map(|_| idle(&valet, "parked")).collect();
    let bench = std::thread::scope(|scope| {
        let bench = scope.spawn(|| {
            let mut worker = idle(&valet, "worker");
            (0..3000).all(|_| worker.value("SELECT 'work', 1") == "work")
        });
        let wish = json!({"application": "parked", "deadline": "25s"});
        let (_, record) = valet.admin("POST", "/v1/reloads", &wish);
        assert_eq!(record["counts"]["returned"], MANY, "{}", record["counts"]);
        bench.join().expect("no panic")
    });
    assert!(bench, "each answer is its own");
    for mut client in parked {
        assert_eq!(client.value("SELECT 'still here'"), "still here");
    }
}
