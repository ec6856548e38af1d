//! A reload's fence: the selected sessions begin no request until it falls.

use serde_json::{Value, json};

use crate::stage::{idle, outcome, session_with, shown, stage};
use crate::support::{Postgres, Raw, Valet, eventually, messages, tags};

const COUNT: &str = "SELECT count(*) FROM jobs";

/// A stage with a table, one session in a transaction, for which a reload waits, and one at a quiet point.
fn scene() -> Option<(Postgres, Valet, Raw, Raw)> {
    let (postgres, valet) = stage(&[])?;
    postgres
        .sql("CREATE ROLE alice LOGIN; CREATE TABLE jobs (name text); GRANT ALL ON jobs TO alice");
    let mut working = idle(&valet, "working");
    working.query("BEGIN");
    let quiet = idle(&valet, "quiet");
    Some((postgres, valet, working, quiet))
}

/// Sends a request to a session behind a fence, and shows that it stays unanswered while others are answered.
#[track_caller]
fn ask_behind(valet: &Valet, client: &mut Raw) {
    client.send(&messages::query(COUNT));
    let mut alice = session_with(valet, &[("user", "alice")]);
    for _ in 0..10 {
        assert_eq!(alice.value("SELECT 1"), "1");
    }
    assert_ne!(shown(valet, client)["state"], "active");
}

fn answered(client: &mut Raw) -> String {
    let answer = client.until_ready();
    assert_eq!(tags(&answer), "TDCZ", "{answer:?}");
    answer[1].columns().swap_remove(0)
}

#[test]
fn a_fenced_session_begins_nothing_before_the_reload_has_ended() {
    let Some((_postgres, valet, mut working, mut quiet)) = scene() else {
        return;
    };
    let wish = json!({"fence": true, "deadline": "25s", "user": "postgres"});
    let mut stream = valet.stream_reload(&wish);
    assert_eq!(stream.until("outcome").data["session"], quiet.session());
    ask_behind(&valet, &mut quiet);
    // Who is at work works on: the reload waits for it.
    working.query("INSERT INTO jobs VALUES ('x')");
    working.query("COMMIT");
    assert_eq!(stream.until("done").data["counts"]["returned"], 2);
    assert_eq!(answered(&mut quiet), "1");
    assert_eq!(working.value(COUNT), "1");
}

#[test]
fn sessions_without_a_lease_and_with_one_that_stays_are_fenced_too() {
    let Some((_postgres, valet, mut working, mut pinned)) = scene() else {
        return;
    };
    pinned.query("CREATE TEMP TABLE t ()");
    let mut bare = session_with(&valet, &[]);
    let wish = json!({"fence": true, "deadline": "25s", "user": "postgres"});
    let mut stream = valet.stream_reload(&wish);
    assert_eq!(stream.until("outcome").data["outcome"], "pinned");
    ask_behind(&valet, &mut pinned);
    ask_behind(&valet, &mut bare);
    working.query("INSERT INTO jobs VALUES ('x')");
    working.query("COMMIT");
    stream.until("done");
    assert_eq!([answered(&mut pinned), answered(&mut bare)], ["1", "1"]);
}

#[test]
fn a_fence_falls_at_the_deadline() {
    let Some((_postgres, valet, mut working, mut quiet)) = scene() else {
        return;
    };
    let wish = json!({"fence": true, "deadline": "300ms", "user": "postgres"});
    let mut stream = valet.stream_reload(&wish);
    stream.until("outcome");
    quiet.send(&messages::query(COUNT));
    assert_eq!(answered(&mut quiet), "0");
    let done = stream.until("done");
    assert_eq!(outcome(&done.data, working.session())[0], "busy");
    assert_eq!(tags(&working.query("COMMIT")), "CZ");
}

#[test]
fn fences_add_up() {
    let Some((_postgres, valet, mut working, mut quiet)) = scene() else {
        return;
    };
    let mut long =
        valet.stream_reload(&json!({"fence": true, "deadline": "25s", "user": "postgres"}));
    long.until("outcome");
    let short = json!({"fence": true, "deadline": "50ms", "user": "postgres"});
    assert_eq!(valet.admin("POST", "/v1/reloads", &short).0, 200);
    ask_behind(&valet, &mut quiet);
    working.query("INSERT INTO jobs VALUES ('x')");
    working.query("COMMIT");
    long.until("done");
    assert_eq!(answered(&mut quiet), "1");
}

#[test]
fn a_session_behind_a_fence_still_obeys() {
    let Some((_postgres, valet, mut working, mut quiet)) = scene() else {
        return;
    };
    let mut stream =
        valet.stream_reload(&json!({"fence": true, "deadline": "25s", "user": "postgres"}));
    stream.until("outcome");
    let path = format!("/v1/leases/{}/return", quiet.session());
    let (status, answer) = valet.admin("POST", &path, &json!({"method": "close"}));
    assert_eq!((status, &answer["outcome"]), (200, &json!("returned")));
    assert_eq!(quiet.until(b'E').sqlstate(), "57P01");
    working.query("COMMIT");
    stream.until("done");
}

#[test]
fn every_data_thread_keeps_its_fence_up_until_the_last_one_is_done() {
    let Some((_postgres, valet)) = stage(&["--threads", "2"]) else {
        return;
    };
    let mut working = idle(&valet, "working");
    working.query("BEGIN");
    let other = std::iter::repeat_with(|| idle(&valet, "quiet"))
        .take(20)
        .find(|client| client.session() % 2 != working.session() % 2);
    let mut other = other.expect("the kernel gives each thread some");
    let wish = json!({"fence": true, "deadline": "25s"});
    let mut stream = valet.stream_reload(&wish);
    while stream.until("outcome").data["session"] != other.session() {}
    other.send(&messages::query("SELECT 1"));
    eventually("others are answered", || !valet.metrics().is_empty());
    assert_ne!(shown(&valet, &other)["state"], "active");
    working.query("COMMIT");
    stream.until("done");
    assert_eq!(tags(&other.until_ready()), "TDCZ");
}

#[test]
fn a_fence_needs_a_deadline() {
    let Some((_postgres, valet)) = stage(&[]) else {
        return;
    };
    let (status, problem) = valet.admin("POST", "/v1/reloads", &json!({"fence": true}));
    assert_eq!(
        (status, &problem["path"]),
        (422, &json!("fence")),
        "{problem}"
    );
    assert_eq!(
        valet.get("/v1/reloads")["reloads"],
        Value::Array(Vec::new())
    );
}
