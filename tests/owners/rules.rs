//! `[[rules]]`: what holds for some owners only.

use serde_json::Value;

use crate::stage::{owner, session, session_with, shown};
use crate::support::{Postgres, Raw, Valet, direct, eventually, messages, tags};

/// A pgvalet with these rules, in a file.
fn stage(rules: &str) -> Option<(Postgres, Valet)> {
    if direct() {
        return None;
    }
    let postgres = Postgres::start();
    let file = postgres.socket_directory().join("pgvalet.toml");
    std::fs::write(&file, rules).expect("a file can be written");
    let path = file.to_str().expect("a plain path");
    let valet = Valet::front_with(&postgres, &["--config", path]);
    Some((postgres, valet))
}

#[track_caller]
fn refusal(client: &mut Raw, sql: &str) -> [String; 3] {
    let answer = client.query(sql);
    assert_eq!(tags(&answer), "EZ", "{answer:?}");
    assert_eq!(answer[1].status(), 'I');
    [b'C', b'M', b'H'].map(|field| answer[0].field(field).unwrap_or_default())
}

#[test]
fn an_owner_has_its_own_park_after() {
    let rules = "[[rules]]\nowner = \"worker*\"\npark_after = \"30ms\"\n";
    let Some((_postgres, valet)) = stage(rules) else {
        return;
    };
    let (mut worker, mut other) = (session(&valet), session(&valet));
    for client in [&mut worker, &mut other] {
        client.value("SELECT 1");
    }
    worker.query("SET pgvalet.owner = 'worker 7'");
    eventually("the worker is parked", || {
        shown(&valet, &worker)["verdict"] == "parked"
    });
    assert_eq!(shown(&valet, &other)["verdict"], "idle");
}

#[test]
fn an_owner_has_its_own_return_after() {
    let rules = "[[rules]]\napplication = \"app\"\nuser = \"post*\"\npark_after = \"20ms\"\nreturn_after = \"20ms\"\n";
    let Some((_postgres, valet)) = stage(rules) else {
        return;
    };
    let mut client = session(&valet);
    client.value("SELECT 1");
    eventually("its lease is returned", || {
        shown(&valet, &client)["state"] == "none"
    });
    assert_eq!(client.value("SELECT 2"), "2");
}

#[test]
fn an_owner_has_its_own_return_method() {
    let rules = "[[rules]]\nowner = \"x\"\npark_after = \"20ms\"\nreturn_after = \"20ms\"\nreturn_method = \"close\"\n";
    let Some((_postgres, valet)) = stage(rules) else {
        return;
    };
    let mut client = session_with(&valet, &[("pgvalet.owner", "x")]);
    client.value("SELECT 1");
    assert_eq!(client.answer().sqlstate(), "57P01");
}

#[test]
fn max_leases_bounds_the_sessions_of_a_rule_together() {
    let rules = "[[rules]]\nname = \"few\"\nowner = \"import*\"\nmax_leases = 1\n";
    let Some((_postgres, valet)) = stage(rules) else {
        return;
    };
    let mut first = session_with(&valet, &[("pgvalet.owner", "import a")]);
    let mut second = session_with(&valet, &[("pgvalet.owner", "import b")]);
    let mut other = session(&valet);
    assert_eq!(first.value("SELECT 1"), "1");
    let [code, message, hint] = refusal(&mut second, "SELECT 1");
    assert_eq!(code, "53300");
    assert!(
        message.contains("\"few\"") && hint.contains("pgvalet leases"),
        "{message} {hint}"
    );
    assert_eq!(other.value("SELECT 1"), "1", "others aren't bound");
    assert_eq!(first.value("SELECT 2"), "2", "who has one keeps it");
    first.goodbye();
    eventually("a place is free", || {
        tags(&second.query("SELECT 1")) == "TDCZ"
    });
    assert!(valet.metric("pgvalet_refusals_total{rule=\"few\"}") >= 1.0);
}

#[test]
fn a_rule_of_no_leases_refuses_all_and_declarations_still_work() {
    let Some((_postgres, valet)) = stage("[[rules]]\nowner = \"none\"\nmax_leases = 0\n") else {
        return;
    };
    let mut client = session(&valet);
    client.query("SET pgvalet.owner = 'none'");
    assert_eq!(refusal(&mut client, "SELECT 1")[0], "53300");
    client.send(&[messages::extended("SELECT 1", &[]), messages::sync()].concat());
    assert_eq!(tags(&client.until_ready()), "EZ");
    client.query("RESET pgvalet.owner");
    assert_eq!(owner(&valet, &client)[0], "app");
    assert_eq!(client.value("SELECT 1"), "1");
}

#[test]
fn forbid_implicit_wants_a_scope_and_its_lease_ends_with_it() {
    let rules = "[[rules]]\nname = \"strict\"\nowner = \"ui\"\nforbid_implicit = true\n";
    let Some((_postgres, valet)) = stage(rules) else {
        return;
    };
    let mut client = session_with(&valet, &[("pgvalet.owner", "ui")]);
    let [code, message, hint] = refusal(&mut client, "SELECT 1");
    assert_eq!(code, "55000");
    assert!(
        message.contains("\"strict\"") && hint.contains("pgvalet.scope"),
        "{message} {hint}"
    );
    client.query("SET pgvalet.scope = 'report'");
    assert_eq!(client.value("SELECT 1"), "1");
    client.query("RESET pgvalet.scope");
    eventually("the lease ends with its scope", || {
        shown(&valet, &client)["state"] == "none"
    });
    assert_eq!(refusal(&mut client, "SELECT 1")[0], "55000");
}

#[test]
fn idle_in_a_transaction_is_parked_and_never_detached() {
    let rules = "[[rules]]\napplication = \"app\"\npark_after = \"20ms\"\nreturn_after = \"1ms\"\n";
    let Some((_postgres, valet)) = stage(rules) else {
        return;
    };
    let mut client = session(&valet);
    client.query("BEGIN");
    let xid = client.value("SELECT pg_current_xact_id()");
    eventually("it is parked in its transaction", || {
        let shown = shown(&valet, &client);
        shown["verdict"] == "parked" && shown["state"] == "in_transaction"
    });
    let leaks = valet.get("/v1/leaks");
    assert!(
        leaks["leaks"][0]["remedy"]
            .as_str()
            .is_some_and(|text| text.contains("commit")),
        "{leaks}"
    );
    let (status, _) = valet.admin("POST", "/v1/reloads", &Value::Null);
    assert_eq!(status, 200);
    assert_eq!(client.value("SELECT pg_current_xact_id()"), xid);
}

#[test]
fn idle_in_a_transaction_can_be_closed_by_rule() {
    let rules = "[[rules]]\napplication = \"app\"\npark_after = \"20ms\"\nidle_in_transaction = \"close\"\n";
    let Some((postgres, valet)) = stage(rules) else {
        return;
    };
    let mut client = session(&valet);
    client.query("BEGIN");
    client.query("CREATE TABLE never ()");
    assert_eq!(client.answer().sqlstate(), "57P01");
    client.assert_closed();
    assert_eq!(postgres.sql("SELECT to_regclass('never') IS NULL"), "t");
}
