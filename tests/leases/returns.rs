//! The return of one lease, of one owner's leases, and of those parked for too long.

use serde_json::{Value, json};

use crate::stage::{block, claim, detach, give_back, idle_after, lease, session, stage};
use crate::support::messages::{execute, sync, unsynced};
use crate::support::{Raw, eventually, tags};

#[test]
fn a_lease_is_returned_by_its_id() {
    let Some((_postgres, valet)) = stage(&[]) else {
        return;
    };
    let mut client = idle_after(&valet, "app", "SELECT 1");
    let (status, answer) = give_back(&valet, &client);
    assert_eq!(
        (status, &answer["session"], &answer["outcome"]),
        (200, &json!(client.session()), &json!("returned"))
    );
    eventually("the lease has ended", || lease(&valet, &client).is_none());
    assert_eq!(client.value("SELECT 2"), "2");
    assert_eq!(
        valet.metric("pgvalet_returns_total{method=\"detach\",reason=\"forced\"}"),
        1.0
    );
}

#[test]
fn a_return_by_closing_ends_the_session() {
    let Some((_postgres, valet)) = stage(&[]) else {
        return;
    };
    let mut client = idle_after(&valet, "app", "CREATE TEMP TABLE mine (a int)");
    let path = format!("/v1/leases/{}/return", client.session());
    let (status, answer) = valet.admin("POST", &path, &json!({"method": "close"}));
    assert_eq!(
        (status, &answer["outcome"]),
        (200, &json!("returned")),
        "{answer}"
    );
    assert_eq!(client.until(b'E').sqlstate(), "57P01");
    client.assert_closed();
}

#[test]
fn what_was_answered_and_waits_for_its_sync_is_not_returned() {
    let Some((postgres, valet)) = stage(&[]) else {
        return;
    };
    // PostgreSQL sends these messages with all that it has to say, though nobody asked for it by a Flush.
    let mut client = idle_after(&valet, "app", "SET client_min_messages = log");
    client.query("SET log_duration = on");
    client.send(&unsynced("INSERT INTO jobs (name) VALUES ('half')"));
    for _ in 0..2 {
        client.until(b'1');
    }
    let (status, problem) = give_back(&valet, &client);
    assert_eq!(
        (status, &problem["outcome"]),
        (409, &json!("busy")),
        "{problem}"
    );
    client.send(&[execute("nowhere", 0), sync()].concat());
    client.until_error();
    client.until_ready();
    assert_eq!(
        postgres.sql("SELECT count(*) FROM jobs"),
        "0",
        "it fails as a whole"
    );
}

#[test]
fn a_busy_lease_is_not_returned() {
    let Some((postgres, valet)) = stage(&[]) else {
        return;
    };
    let mut running = session(&valet, "app");
    let blocker = block(&postgres, &mut running);
    let in_transaction = idle_after(&valet, "app", "BEGIN");
    for client in [&running, &in_transaction] {
        let (status, problem) = give_back(&valet, client);
        assert_eq!(
            (status, &problem["status"], &problem["outcome"]),
            (409, &json!(409), &json!("busy")),
            "{problem}"
        );
        assert!(
            problem["reason"]
                .as_str()
                .is_some_and(|reason| !reason.is_empty()),
            "{problem}"
        );
    }
    blocker.goodbye();
    assert_eq!(tags(&running.until_ready()), "TDCZ");
}

#[test]
fn a_pinned_lease_is_not_returned() {
    let Some((_postgres, valet)) = stage(&[]) else {
        return;
    };
    let mut client = idle_after(&valet, "app", "CREATE TEMP TABLE mine AS SELECT 5 AS a");
    let (status, problem) = give_back(&valet, &client);
    assert_eq!(
        (status, &problem["outcome"]),
        (409, &json!("pinned")),
        "{problem}"
    );
    assert!(
        problem["reason"]
            .as_str()
            .is_some_and(|reason| reason.contains("temp")),
        "{problem}"
    );
    assert_eq!(client.value("TABLE mine"), "5");
}

#[test]
fn an_id_that_no_session_has_is_not_found() {
    let Some((_postgres, valet)) = stage(&[]) else {
        return;
    };
    assert_eq!(
        valet.admin("POST", "/v1/leases/7/return", &Value::Null).0,
        404
    );
    assert_eq!(
        valet
            .admin("POST", "/v1/leases/9999999999/return", &Value::Null)
            .0,
        404
    );
}

#[test]
fn an_owner_s_leases_are_returned_together() {
    let Some((_postgres, valet)) = stage(&[]) else {
        return;
    };
    let (first, second, other) = (
        idle_after(&valet, "x", "SELECT 1"),
        idle_after(&valet, "x", "SELECT 1"),
        idle_after(&valet, "x", "SELECT 1"),
    );
    claim(&valet, &first, "data importer", "held");
    claim(&valet, &second, "data importer", "held");
    let (status, answer) = valet.admin("POST", "/v1/owners/data%20importer/return", &Value::Null);
    assert_eq!(
        (status, answer["leases"].as_array().map(Vec::len)),
        (200, Some(2)),
        "{answer}"
    );
    eventually("both have ended", || {
        [&first, &second]
            .iter()
            .all(|client| lease(&valet, client).is_none())
    });
    assert!(lease(&valet, &other).is_some());
}

#[test]
fn a_parked_lease_is_returned_after_return_after() {
    let Some((_postgres, valet)) = stage(&["--park-after", "50ms", "--return-after", "50ms"])
    else {
        return;
    };
    let mut client = idle_after(&valet, "app", "SET TimeZone = 'Asia/Tokyo'");
    let busy = idle_after(&valet, "app", "BEGIN");
    eventually("the lease has ended", || lease(&valet, &client).is_none());
    assert!(lease(&valet, &busy).is_some());
    assert_eq!(client.value("SHOW TimeZone"), "Asia/Tokyo");
    assert!(valet.metric("pgvalet_returns_total{method=\"detach\",reason=\"parked\"}") >= 1.0);
}

#[test]
fn a_parked_lease_is_closed_where_the_configuration_says_so() {
    let flags = [
        "--park-after",
        "50ms",
        "--return-after",
        "50ms",
        "--return-method",
        "close",
    ];
    let Some((_postgres, valet)) = stage(&flags) else {
        return;
    };
    let mut client = idle_after(&valet, "app", "SELECT 1");
    assert_eq!(client.until(b'E').sqlstate(), "57P01");
    client.assert_closed();
}

#[test]
fn a_returned_backend_serves_whoever_waits() {
    let Some((_postgres, valet)) = stage(&["--max-backends", "1"]) else {
        return;
    };
    let parked = idle_after(&valet, "app", "SELECT 1");
    let mut waiting = Raw::connect(valet.port());
    waiting.send(&crate::support::messages::query("SELECT 'served'"));
    let queue = "pgvalet_waiting_sessions{database=\"postgres\",user=\"postgres\"}";
    eventually("it waits", || valet.metric(queue) == 1.0);
    detach(&valet, &parked);
    assert_eq!(waiting.until_ready()[1].columns(), ["served"]);
}

#[test]
fn a_session_takes_its_own_backend_back_where_nobody_needed_it() {
    let Some((_postgres, valet)) = stage(&[]) else {
        return;
    };
    let mut client = idle_after(&valet, "app", "SET TimeZone = 'Asia/Tokyo'");
    let pid = crate::stage::backend(&mut client);
    detach(&valet, &client);
    assert_eq!(crate::stage::backend(&mut client), pid);
    assert_eq!(
        valet.metric("pgvalet_restores_total{backend=\"same\"}"),
        1.0
    );
}
