//! Reloads whose outcomes stream, whose callers die, and that run at the same time.

use serde_json::{Value, json};

use crate::stage::{idle, outcome, shown, stage};
use crate::support::{Stop, eventually, messages, tags};

#[test]
fn outcomes_stream_as_they_fall_and_the_record_comes_last() {
    let Some((_postgres, valet)) = stage(&[]) else {
        return;
    };
    let quiet = idle(&valet, "quiet");
    let mut busy = idle(&valet, "busy");
    busy.query("BEGIN");
    let mut stream = valet.stream_reload(&json!({"deadline": "25s"}));
    let began = stream.next().expect("an event");
    assert_eq!(
        (began.event.as_str(), &began.data["id"]),
        ("began", &json!("1"))
    );
    let first = stream.next().expect("an event");
    assert_eq!(
        [&first.data["session"], &first.data["outcome"]],
        [&json!(quiet.session()), &json!("returned")]
    );
    assert_eq!(valet.get("/v1/reloads/1")["state"], "running");
    assert_eq!(tags(&busy.query("COMMIT")), "CZ");
    let second = stream.next().expect("an event");
    assert_eq!(second.data["session"], busy.session());
    let done = stream.next().expect("an event");
    assert_eq!(
        (done.event.as_str(), &done.data["counts"]["returned"]),
        ("done", &json!(2))
    );
    assert_eq!(valet.get("/v1/reloads/1"), done.data);
    assert!(stream.next().is_none());
}

#[test]
fn the_command_prints_each_outcome() {
    let Some((_postgres, valet)) = stage(&[]) else {
        return;
    };
    let client = idle(&valet, "app");
    let followed = valet.run(&["reload", "--follow", "--deadline", "5s"]);
    let text = String::from_utf8_lossy(&followed.stdout).into_owned();
    assert_eq!(followed.status.code(), Some(0), "{followed:?}");
    let line = format!("{}  app (application_name)  returned", client.session());
    assert!(
        text.contains(&line) && text.contains("1 returned"),
        "{text}"
    );
}

#[test]
fn a_reload_whose_caller_dies_goes_on_and_is_remembered() {
    let Some((_postgres, valet)) = stage(&[]) else {
        return;
    };
    let mut client = idle(&valet, "app");
    client.query("BEGIN");
    let mut stream = valet.stream_reload(&json!({"deadline": "25s", "fence": true}));
    stream.next();
    drop(stream);
    assert_eq!(valet.get("/v1/reloads/1")["state"], "running");
    client.query("COMMIT");
    eventually("the reload is done", || {
        valet.get("/v1/reloads/1")["state"] == "done"
    });
    let record = valet.get("/v1/reloads/1");
    assert_eq!(outcome(&record, client.session())[0], "returned");
    // Its fence has fallen with it.
    assert_eq!(client.value("SELECT 1"), "1");
}

#[test]
fn two_reloads_at_once_wait_for_the_same_session_and_both_are_right() {
    let Some((_postgres, valet)) = stage(&[]) else {
        return;
    };
    let mut client = idle(&valet, "app");
    client.query("BEGIN");
    let mut streams = [(); 2].map(|()| valet.stream_reload(&json!({"deadline": "25s"})));
    for stream in &mut streams {
        assert_eq!(stream.next().expect("an event").event, "began");
    }
    eventually("both run", || valet.metric("pgvalet_generation") == 2.0);
    assert_eq!(tags(&client.query("COMMIT")), "CZ");
    for stream in &mut streams {
        let done = stream.until("done");
        assert_eq!(
            outcome(&done.data, client.session())[0],
            "returned",
            "{done:?}"
        );
    }
    assert_eq!(client.value("SELECT 1"), "1");
}

#[test]
fn a_reload_while_the_database_restarts_accounts_for_everybody() {
    let Some((mut postgres, valet)) = stage(&[]) else {
        return;
    };
    let (quiet, mut busy) = (idle(&valet, "quiet"), idle(&valet, "busy"));
    busy.send(&messages::query("SELECT pg_sleep(600)"));
    eventually("it runs", || shown(&valet, &busy)["state"] == "active");
    let mut stream = valet.stream_reload(&json!({"deadline": "25s", "recycle": true}));
    stream.until("outcome");
    postgres.stop(Stop::Immediate);
    let done = stream.until("done");
    assert_eq!(outcome(&done.data, quiet.session())[0], "returned");
    assert_eq!(outcome(&done.data, busy.session())[0], "gone");
    // While it is down nobody waits for it either.
    let (status, record) = valet.admin("POST", "/v1/reloads", &json!({"deadline": "25s"}));
    assert_eq!((status, &record["state"]), (200, &json!("done")));
    postgres.start_again();
    let mut quiet = quiet;
    assert_eq!(quiet.value("SELECT 1"), "1");
    assert_eq!(
        valet.admin("POST", "/v1/reloads", &Value::Null).1["counts"]["returned"],
        1
    );
}
