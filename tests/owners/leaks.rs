//! What parked owners cost, and the gate that fails a CI run for them.

use std::process::Output;

use crate::stage::{session, stage};
use crate::support::{Raw, Valet, eventually};

#[track_caller]
fn gate(valet: &Valet, arguments: &[&str]) -> Output {
    let admin = format!("127.0.0.1:{}", valet.admin_port());
    let mut command = Valet::command(&[&["gate", "--admin", &admin], arguments].concat());
    command
        .stdout(std::process::Stdio::piped())
        .output()
        .expect("pgvalet can be run")
}

/// Parks a session of `owner`.
#[track_caller]
fn park(valet: &Valet, owner: &str) -> Raw {
    let mut client = session(valet);
    client.query(&format!("SET pgvalet.owner = '{owner}'"));
    client.value("SELECT 'parked', 1");
    eventually("it is parked", || {
        let page = valet.get("/v1/leaks");
        let leaks = page["leaks"].as_array().expect("leaks");
        leaks.iter().any(|leak| leak["session"] == client.session())
    });
    client
}

#[test]
fn how_often_and_how_long_an_owner_parked_is_told() {
    let Some((_postgres, valet)) = stage(&["--park-after", "20ms"]) else {
        return;
    };
    let mut client = park(&valet, "dispatcher");
    let first = valet.get("/v1/leaks")["leaks"][0].clone();
    assert_eq!(
        (&first["owner"], &first["count_last_hour"]),
        (&"dispatcher".into(), &1.into())
    );
    assert!(
        first["backend_seconds"]
            .as_f64()
            .is_some_and(|cost| cost >= 0.02),
        "{first}"
    );
    client.value("SELECT 2");
    eventually("it parked twice", || {
        valet.get("/v1/leaks")["leaks"][0]["count_last_hour"] == 2
    });
    client.goodbye();
    let page = valet.get("/v1/leaks");
    assert_eq!(page["leaks"].as_array().map(Vec::len), Some(0));
    let owner = &page["owners"][0];
    assert_eq!(
        (&owner["owner"], &owner["parked"], &owner["count_last_hour"]),
        (&"dispatcher".into(), &0.into(), &2.into())
    );
}

#[test]
fn the_gate_passes_while_few_enough_are_parked() {
    let Some((_postgres, valet)) = stage(&["--park-after", "20ms"]) else {
        return;
    };
    let passed = gate(&valet, &["--max-parked", "0", "--for", "300ms"]);
    assert_eq!(passed.status.code(), Some(0), "{passed:?}");
    let _parked = park(&valet, "x");
    assert_eq!(gate(&valet, &["--max-parked", "1"]).status.code(), Some(0));
}

#[test]
fn the_gate_fails_with_a_report_as_soon_as_too_many_are_parked() {
    let Some((_postgres, valet)) = stage(&["--park-after", "20ms"]) else {
        return;
    };
    let _parked = park(&valet, "dispatcher");
    let failed = gate(&valet, &["--max-parked", "0", "--for", "1h"]);
    assert_eq!(failed.status.code(), Some(1), "{failed:?}");
    let report = String::from_utf8_lossy(&failed.stdout).into_owned();
    assert!(
        report.contains("dispatcher") && report.contains("SELECT ?"),
        "{report}"
    );
    let json = gate(&valet, &["--json"]);
    assert_eq!(json.status.code(), Some(1));
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).expect("JSON");
    assert_eq!(json["leaks"][0]["owner"], "dispatcher");
}

#[test]
fn the_gate_says_when_nobody_answers() {
    let nobody = Valet::command(&["gate", "--admin", "127.0.0.1:1"])
        .output()
        .expect("pgvalet can be run");
    assert_eq!(nobody.status.code(), Some(3));
}
