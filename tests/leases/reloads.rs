//! A reload accounts for every lease, returns what is quiet, and cuts nothing.

use serde_json::{Value, json};

use crate::stage::{block, claim, idle_after, lease, outcome, reload, session, stage};
use crate::support::{Raw, eventually, messages, tags};

#[test]
fn an_idle_lease_is_returned_and_its_session_goes_on() {
    let Some((_postgres, valet)) = stage(&["--max-backends", "1"]) else {
        return;
    };
    let mut client = idle_after(&valet, "app", "SET TimeZone = 'Asia/Tokyo'");
    let report = reload(&valet, &json!({"deadline": "5s"}));
    assert_eq!(outcome(&report, client.session()).0, "returned");
    assert!(lease(&valet, &client).is_none());
    let mut other = Raw::connect(valet.port());
    assert_eq!(other.value("SHOW TimeZone"), "GMT");
    other.goodbye();
    client.send(&messages::query("SHOW TimeZone"));
    let answer: Vec<_> = std::iter::repeat_with(|| client.next()).take(4).collect();
    assert_eq!(
        (tags(&answer).as_str(), &answer[1].columns()[0][..]),
        ("TDCZ", "Asia/Tokyo")
    );
}

#[test]
fn the_report_tells_everything_of_each_lease() {
    let Some((_postgres, valet)) = stage(&[]) else {
        return;
    };
    let client = idle_after(&valet, "dispatcher", "INSERT INTO jobs (name) VALUES ('x')");
    let report = reload(&valet, &json!({"deadline": "5s"}));
    assert_eq!(
        (&report["generation"], &report["dry_run"], &report["state"]),
        (&json!(1), &json!(false), &json!("done"))
    );
    assert_eq!(report["counts"]["returned"], 1, "{report}");
    let told = &report["leases"][0];
    assert_eq!(told["session"], client.session());
    let members =
        ["owner", "evidence", "last_statement", "outcome"].map(|member| told[member].as_str());
    assert_eq!(
        members,
        [
            "dispatcher",
            "application_name",
            "INSERT INTO jobs (name) VALUES (?)",
            "returned"
        ]
        .map(Some)
    );
    assert!(
        told["idle_seconds"].as_f64().is_some() && told["idle"].as_str().is_some(),
        "{report}"
    );
    assert!(
        report["took"].as_str().is_some() && report["started"].as_str().is_some(),
        "{report}"
    );
}

#[test]
fn a_reload_is_remembered_by_its_id() {
    let Some((_postgres, valet)) = stage(&[]) else {
        return;
    };
    let _client = idle_after(&valet, "app", "SELECT 1");
    let report = reload(&valet, &json!({"deadline": "5s"}));
    let id = report["id"].as_str().expect("an id");
    let later = valet.get(&format!("/v1/reloads/{id}"));
    assert_eq!(
        (&later["leases"], &later["counts"]),
        (&report["leases"], &report["counts"])
    );
    assert!(
        valet
            .get("/v1/reloads")
            .to_string()
            .contains(&format!("\"id\":\"{id}\""))
    );
    assert_eq!(valet.admin("GET", "/v1/reloads/999", &Value::Null).0, 404);
}

#[test]
fn every_reload_raises_the_generation_and_leases_carry_theirs() {
    let Some((_postgres, valet)) = stage(&[]) else {
        return;
    };
    assert_eq!(reload(&valet, &Value::Null)["generation"], 1);
    let client = idle_after(&valet, "app", "SELECT 1");
    assert_eq!(lease(&valet, &client).expect("a lease")["generation"], 1);
    assert_eq!(reload(&valet, &json!({"min_idle": "1h"}))["generation"], 2);
    assert_eq!(lease(&valet, &client).expect("a lease")["generation"], 1);
    assert_eq!(valet.metric("pgvalet_generation"), 2.0);
    assert_eq!(valet.metric("pgvalet_reloads_total"), 2.0);
}

#[test]
fn a_lease_idle_for_less_than_min_idle_is_spared() {
    let Some((_postgres, valet)) = stage(&[]) else {
        return;
    };
    let client = idle_after(&valet, "app", "SELECT 1");
    assert_eq!(
        outcome(
            &reload(&valet, &json!({"min_idle": "1h", "deadline": "5s"})),
            client.session()
        )
        .0,
        "spared"
    );
    assert!(lease(&valet, &client).is_some());
}

#[test]
fn a_resting_lease_is_left_where_it_is() {
    let Some((_postgres, valet)) = stage(&[]) else {
        return;
    };
    let client = idle_after(&valet, "app", "SELECT 1");
    claim(&valet, &client, "pool", "resting");
    assert_eq!(
        outcome(
            &reload(&valet, &json!({"deadline": "5s"})),
            client.session()
        )
        .0,
        "resting"
    );
}

#[test]
fn a_busy_lease_is_reported_at_once_where_there_is_no_deadline() {
    let Some((postgres, valet)) = stage(&[]) else {
        return;
    };
    let (mut running, in_transaction) =
        (session(&valet, "app"), idle_after(&valet, "app", "BEGIN"));
    let blocker = block(&postgres, &mut running);
    let report = reload(&valet, &Value::Null);
    assert_eq!(outcome(&report, running.session()).0, "busy");
    let (outcome, reason) = outcome(&report, in_transaction.session());
    assert!(
        outcome == "busy" && reason.contains("transaction"),
        "{report}"
    );
    blocker.goodbye();
    assert_eq!(tags(&running.until_ready()), "TDCZ");
}

#[test]
fn a_reload_waits_for_a_busy_lease_until_its_answer() {
    let Some((postgres, valet)) = stage(&[]) else {
        return;
    };
    let mut running = session(&valet, "app");
    let mut in_transaction = idle_after(&valet, "app", "BEGIN");
    let blocker = block(&postgres, &mut running);
    let report = std::thread::scope(|scope| {
        let report = scope.spawn(|| reload(&valet, &json!({"deadline": "25s"})));
        eventually("the reload runs", || {
            valet.metric("pgvalet_generation") == 1.0
        });
        blocker.goodbye();
        assert_eq!(tags(&running.until_ready()), "TDCZ");
        assert_eq!(tags(&in_transaction.query("COMMIT")), "CZ");
        report.join().expect("no panic")
    });
    assert_eq!(report["state"], "done");
    assert_eq!(outcome(&report, running.session()).0, "returned");
    assert_eq!(outcome(&report, in_transaction.session()).0, "returned");
    assert_eq!(running.value("SELECT 1"), "1");
}

#[test]
fn a_deadline_that_passes_cuts_nothing() {
    let Some((postgres, valet)) = stage(&[]) else {
        return;
    };
    let mut running = session(&valet, "app");
    let blocker = block(&postgres, &mut running);
    let report = reload(&valet, &json!({"deadline": "100ms"}));
    assert_eq!(outcome(&report, running.session()).0, "busy");
    blocker.goodbye();
    assert_eq!(tags(&running.until_ready()), "TDCZ");
    assert!(lease(&valet, &running).is_some());
}

#[test]
fn busy_spare_waits_for_nobody() {
    let Some((_postgres, valet)) = stage(&[]) else {
        return;
    };
    let (busy, idle) = (
        idle_after(&valet, "app", "BEGIN"),
        idle_after(&valet, "app", "SELECT 1"),
    );
    let report = reload(&valet, &json!({"deadline": "25s", "busy": "spare"}));
    assert_eq!(outcome(&report, busy.session()).0, "busy");
    assert_eq!(outcome(&report, idle.session()).0, "returned");
}

#[test]
fn a_lease_that_ends_meanwhile_is_gone_or_returned() {
    let Some((_postgres, valet)) = stage(&[]) else {
        return;
    };
    let client = idle_after(&valet, "app", "BEGIN");
    let id = client.session();
    let report = std::thread::scope(|scope| {
        let report = scope.spawn(|| reload(&valet, &json!({"deadline": "25s"})));
        eventually("the reload runs", || {
            valet.metric("pgvalet_generation") == 1.0
        });
        client.goodbye();
        report.join().expect("no panic")
    });
    let (outcome, _) = outcome(&report, id);
    assert!(["gone", "returned"].contains(&outcome.as_str()), "{report}");
}

#[test]
fn method_close_ends_the_session_and_keeps_the_backend() {
    let Some((postgres, valet)) = stage(&["--max-backends", "1"]) else {
        return;
    };
    let mut client = idle_after(&valet, "app", "SET TimeZone = 'Asia/Tokyo'");
    let pid = client.value("SELECT pg_backend_pid()");
    let report = reload(&valet, &json!({"method": "close", "deadline": "5s"}));
    assert_eq!(outcome(&report, client.session()).0, "returned", "{report}");
    let error = client.until(b'E');
    assert_eq!(
        (error.field(b'S').as_deref(), error.sqlstate().as_str()),
        (Some("FATAL"), "57P01")
    );
    client.assert_closed();
    let mut next = Raw::connect(valet.port());
    assert_eq!(next.value("SHOW TimeZone"), "GMT");
    assert_eq!(next.value("SELECT pg_backend_pid()"), pid);
    assert_eq!(postgres.client_backends(), 1);
}

#[test]
fn a_dry_run_returns_nothing() {
    let Some((_postgres, valet)) = stage(&[]) else {
        return;
    };
    let client = idle_after(&valet, "app", "SELECT 1");
    let report = reload(&valet, &json!({"dry_run": true, "deadline": "5s"}));
    assert_eq!(
        (
            &report["dry_run"],
            outcome(&report, client.session()).0.as_str()
        ),
        (&json!(true), "returned")
    );
    assert!(lease(&valet, &client).is_some());
}

#[test]
fn selectors_choose_whose_leases_are_judged() {
    let Some((postgres, valet)) = stage(&[]) else {
        return;
    };
    postgres.sql("CREATE DATABASE other");
    let web = idle_after(&valet, "web", "SELECT 1");
    let who =
        |user, database| Raw::connect_with(valet.port(), &[("user", user), ("database", database)]);
    let (mut alice, mut other) = (who("alice", "postgres"), who("postgres", "other"));
    alice.query("SELECT 1");
    other.query("SELECT 1");
    claim(&valet, &other, "dispatcher", "held");
    let judged = |selector: &Value| {
        let mut dry = selector.clone();
        dry["dry_run"] = json!(true);
        let report = reload(&valet, &dry);
        let ids = report["leases"]
            .as_array()
            .expect("a list")
            .iter()
            .map(|lease| lease["session"].as_u64());
        ids.map(|id| id.expect("an id"))
            .collect::<std::collections::BTreeSet<u64>>()
    };
    let set = |clients: &[&Raw]| clients.iter().map(|client| client.session()).collect();
    assert_eq!(judged(&json!({})), set(&[&web, &alice, &other]));
    assert_eq!(judged(&json!({"application": "web"})), set(&[&web]));
    assert_eq!(judged(&json!({"user": "alice"})), set(&[&alice]));
    assert_eq!(judged(&json!({"database": "other"})), set(&[&other]));
    assert_eq!(judged(&json!({"owner": "dispatcher"})), set(&[&other]));
    assert_eq!(
        judged(&json!({"user": "alice", "database": "other"})),
        set(&[])
    );
    assert_eq!(judged(&json!({"process": 1})), set(&[]));
}

#[test]
fn exactly_the_submitted_sessions_are_judged() {
    let Some((_postgres, valet)) = stage(&[]) else {
        return;
    };
    let (parked, resting, other) = (
        idle_after(&valet, "a", "SELECT 1"),
        idle_after(&valet, "b", "SELECT 1"),
        idle_after(&valet, "c", "SELECT 1"),
    );
    let sessions = json!([
        {"id": parked.session(), "owner": "dispatcher", "held_for": "3s", "where": "app/x.rb:12"},
        {"id": resting.session(), "owner": "pool", "state": "resting"},
        {"id": 7, "owner": "ghost"},
    ]);
    let report = reload(&valet, &json!({"deadline": "5s", "sessions": sessions}));
    assert_eq!(
        report["leases"].as_array().map(Vec::len),
        Some(3),
        "{report}"
    );
    assert_eq!(outcome(&report, parked.session()).0, "returned");
    assert_eq!(outcome(&report, resting.session()).0, "resting");
    assert_eq!(outcome(&report, 7).0, "unknown");
    let told = report["leases"]
        .as_array()
        .expect("a list")
        .iter()
        .find(|told| told["session"] == parked.session());
    let told = told.expect("it is told");
    assert_eq!(
        (&told["owner"], &told["evidence"], &told["where"]),
        (&json!("dispatcher"), &json!("claim"), &json!("app/x.rb:12"))
    );
    assert!(lease(&valet, &other).is_some());
}

#[test]
fn without_a_deadline_the_return_goes_on_behind_the_answer() {
    let Some((_postgres, valet)) = stage(&[]) else {
        return;
    };
    let client = idle_after(&valet, "app", "SELECT 1");
    let sessions = json!([{"id": client.session(), "owner": "dispatcher"}]);
    let report = reload(&valet, &json!({"sessions": sessions}));
    assert_eq!(outcome(&report, client.session()).0, "returned");
    eventually("the lease has ended", || lease(&valet, &client).is_none());
    let returned = "pgvalet_returns_total{method=\"detach\",reason=\"reload\"}";
    eventually("the return is counted", || valet.metric(returned) == 1.0);
}

#[test]
fn a_session_without_a_lease_is_returned_already() {
    let Some((_postgres, valet)) = stage(&[]) else {
        return;
    };
    let client = session(&valet, "app");
    let sessions = json!([{"id": client.session(), "owner": "dispatcher"}]);
    assert_eq!(
        outcome(
            &reload(&valet, &json!({"sessions": sessions})),
            client.session()
        )
        .0,
        "returned"
    );
}

#[test]
fn a_reload_of_nothing_is_done_at_once() {
    let Some((_postgres, valet)) = stage(&[]) else {
        return;
    };
    let report = reload(&valet, &Value::Null);
    assert_eq!(
        (&report["state"], &report["leases"]),
        (&json!("done"), &json!([]))
    );
}
