//! The app's own word on who holds which session.

use serde_json::{Value, json};

use crate::stage::{idle_after, lease, session, shown, stage};
use crate::support::{Raw, Valet};

#[track_caller]
fn put(valet: &Valet, source: &str, claims: &Value) -> Value {
    let (status, answer) = valet.admin(
        "PUT",
        "/v1/claims",
        &json!({"source": source, "claims": claims}),
    );
    assert_eq!(status, 200, "{answer}");
    answer
}

#[track_caller]
fn claim_of(valet: &Valet, client: &Raw) -> String {
    shown(valet, client)["claim"]
        .as_str()
        .expect("a word")
        .to_owned()
}

#[test]
fn a_claim_is_the_strongest_evidence_of_an_owner() {
    let Some((_postgres, valet)) = stage(&[]) else {
        return;
    };
    let client = idle_after(&valet, "app", "SELECT 1");
    let claim = json!([{"id": client.session(), "owner": "dispatcher", "held_for": "3s", "where": "app/x.rb:12"}]);
    assert_eq!(
        put(&valet, "host:1", &claim),
        json!({"accepted": 1, "unknown": []})
    );
    let lease = lease(&valet, &client).expect("a lease");
    let members = ["owner", "evidence", "claim", "where"].map(|member| lease[member].as_str());
    assert_eq!(
        members,
        ["dispatcher", "claim", "held", "app/x.rb:12"].map(Some)
    );
    assert!(
        lease["held_for"]
            .as_str()
            .is_some_and(|held| held.starts_with("3s")),
        "{lease}"
    );
}

#[test]
fn ids_that_no_session_has_are_told() {
    let Some((_postgres, valet)) = stage(&[]) else {
        return;
    };
    let client = session(&valet, "app");
    let claims = json!([{"id": client.session(), "owner": "a"}, {"id": 7, "owner": "b"}]);
    assert_eq!(
        put(&valet, "host:1", &claims),
        json!({"accepted": 1, "unknown": [7]})
    );
}

#[test]
fn a_source_s_new_table_replaces_its_old_one_only() {
    let Some((_postgres, valet)) = stage(&[]) else {
        return;
    };
    let (first, second, other) = (
        session(&valet, "a"),
        session(&valet, "b"),
        session(&valet, "c"),
    );
    put(
        &valet,
        "host:1",
        &json!([{"id": first.session(), "owner": "x"}, {"id": second.session(), "owner": "y"}]),
    );
    put(
        &valet,
        "host:2",
        &json!([{"id": other.session(), "owner": "z"}]),
    );
    put(
        &valet,
        "host:1",
        &json!([{"id": second.session(), "owner": "y", "state": "resting"}]),
    );
    assert_eq!(
        [&first, &second, &other].map(|client| claim_of(&valet, client)),
        ["unknown", "resting", "held"]
    );
    put(&valet, "host:1", &json!([]));
    assert_eq!(
        [&first, &second, &other].map(|client| claim_of(&valet, client)),
        ["unknown", "unknown", "held"]
    );
    assert_eq!(shown(&valet, &first)["owner"], "a");
}

#[test]
fn claims_without_a_source_add_up() {
    let Some((_postgres, valet)) = stage(&[]) else {
        return;
    };
    let (first, second) = (session(&valet, "a"), session(&valet, "b"));
    for client in [&first, &second] {
        let claims = json!({"claims": [{"id": client.session(), "owner": "x"}]});
        assert_eq!(valet.admin("PUT", "/v1/claims", &claims).0, 200);
    }
    assert_eq!(
        [&first, &second].map(|client| claim_of(&valet, client)),
        ["held", "held"]
    );
}

#[test]
fn odd_owners_are_shown_as_they_are() {
    let Some((_postgres, valet)) = stage(&[]) else {
        return;
    };
    let client = session(&valet, "app");
    for owner in [
        "Ünï çödé 🚲",
        "a \"quoted\" {name}",
        "back\\slash\nand line",
        &"long".repeat(30),
    ] {
        put(
            &valet,
            "host:1",
            &json!([{"id": client.session(), "owner": owner}]),
        );
        assert_eq!(shown(&valet, &client)["owner"], owner);
        assert_eq!(valet.request("GET", "/metrics", "").status, 200);
    }
}
