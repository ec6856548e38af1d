//! Reloads that do more than wait: cancel, close, recycle; and the same reload asked for twice.

use serde_json::{Value, json};

use crate::stage::{session, shown, stage};
use crate::support::{Raw, Valet, eventually, http, messages, tags};

#[track_caller]
fn reload(valet: &Valet, body: &Value) -> Value {
    let (status, record) = valet.admin("POST", "/v1/reloads", body);
    assert_eq!(status, 200, "{record}");
    record
}

/// The outcome of a session, and the reason.
#[track_caller]
fn outcome(record: &Value, client: &Raw) -> (String, String) {
    let leases = record["leases"].as_array().expect("leases");
    let lease = leases
        .iter()
        .find(|lease| lease["session"] == client.session())
        .expect("an account");
    let text = |member: &str| lease[member].as_str().unwrap_or_default().to_owned();
    (text("outcome"), text("reason"))
}

/// A session in the middle of a long statement.
#[track_caller]
fn busy(valet: &Valet) -> Raw {
    let mut client = session(valet);
    client.send(&messages::query("SELECT pg_sleep(600)"));
    eventually("it runs", || shown(valet, &client)["state"] == "active");
    client
}

#[test]
fn busy_cancel_takes_what_is_quiet_after_the_cancel() {
    let Some((_postgres, valet)) = stage(&[]) else {
        return;
    };
    let mut client = busy(&valet);
    let record = reload(&valet, &json!({"busy": "cancel"}));
    assert_eq!(
        outcome(&record, &client),
        ("returned".into(), "its statement was cancelled".into())
    );
    let answer = client.until_ready();
    assert_eq!(
        answer
            .iter()
            .find(|message| message.tag == b'E')
            .map(messages::Message::sqlstate),
        Some("57014".into())
    );
    assert_eq!(client.value("SELECT 1"), "1");
}

#[test]
fn busy_close_ends_what_is_busy_at_the_deadline() {
    let Some((postgres, valet)) = stage(&[]) else {
        return;
    };
    let mut client = busy(&valet);
    let mut idler = session(&valet);
    idler.query("BEGIN");
    let record = reload(&valet, &json!({"busy": "close", "deadline": "50ms"}));
    for client in [&client, &idler] {
        assert_eq!(
            outcome(&record, client),
            ("returned".into(), "closed while busy".into())
        );
    }
    for client in [&mut client, &mut idler] {
        assert_eq!(client.until(b'E').sqlstate(), "57P01");
    }
    let running = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep(600)%' AND state = 'active'";
    eventually("its statement is cancelled", || {
        postgres.sql(running) == "0"
    });
}

#[test]
fn a_session_that_ends_its_work_in_time_is_neither_cancelled_nor_closed() {
    let Some((postgres, valet)) = stage(&[]) else {
        return;
    };
    for how in ["cancel", "close"] {
        let mut holder = Raw::connect(postgres.port());
        holder.query("SELECT pg_advisory_lock(1)");
        let mut client = session(&valet);
        client.send(&messages::query("SELECT pg_advisory_xact_lock(1)"));
        eventually("it runs", || shown(&valet, &client)["state"] == "active");
        holder.send(&messages::query(
            "SELECT pg_sleep(0.2); SELECT pg_advisory_unlock(1)",
        ));
        let record = reload(
            &valet,
            &json!({"busy": how, "deadline": "20s", "application": "app"}),
        );
        assert_eq!(
            outcome(&record, &client),
            ("returned".into(), String::new())
        );
        assert_eq!(tags(&client.until_ready()), "TDCZ");
        assert_eq!(client.value("SELECT 1"), "1");
        client.goodbye();
        holder.until_ready();
    }
}

#[test]
fn recycle_replaces_backends_of_older_generations() {
    let Some((postgres, valet)) = stage(&["--max-backends", "3"]) else {
        return;
    };
    let (mut idle, mut open) = (session(&valet), session(&valet));
    let pid = "SELECT pg_backend_pid()";
    idle.query("SET search_path = kept");
    let (before, held) = (idle.value(pid), open.value(&format!("BEGIN; {pid}")));
    let record = reload(&valet, &json!({"recycle": true}));
    assert_eq!(outcome(&record, &idle).0, "returned");
    let gone = |pid: &str| {
        postgres.sql(&format!(
            "SELECT count(*) FROM pg_stat_activity WHERE pid = {pid}"
        )) == "0"
    };
    eventually("the idle one is closed", || gone(&before));
    assert_ne!(idle.value(pid), before);
    assert_eq!(idle.value("SHOW search_path"), "kept");
    assert!(!gone(&held), "who is busy keeps its backend");
    open.query("COMMIT");
    let path = format!("/v1/leases/{}/return", open.session());
    assert_eq!(valet.admin("POST", &path, &Value::Null).0, 200);
    eventually("the other is closed when it comes back", || gone(&held));
}

#[test]
fn the_same_idempotency_key_is_the_same_reload() {
    let Some((_postgres, valet)) = stage(&[]) else {
        return;
    };
    let ask = |key: &str, body: &str| {
        let headers = [
            ("Content-Type", "application/json"),
            ("Idempotency-Key", key),
        ];
        http::request(valet.admin_port(), "POST", "/v1/reloads", &headers, body)
    };
    let first = ask("deploy-7", "{}").json();
    assert_eq!(ask("deploy-7", "{}").json(), first);
    assert_eq!(ask("deploy-7", r#"{"dry_run": true}"#).status, 422);
    assert_ne!(ask("deploy-8", "{}").json()["id"], first["id"]);
    assert_eq!(ask("", "{}").status, 400);
}
