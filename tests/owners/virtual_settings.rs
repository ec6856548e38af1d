//! `SET pgvalet.owner` and the like in simple queries: answered in order, without PostgreSQL.

use crate::stage::{owner, session, shown, stage};
use crate::support::{Raw, eventually, messages, tags};

/// A simple query's answer: its shape, the command tag, and the transaction status.
#[track_caller]
fn answer(client: &mut Raw, sql: &str) -> (String, String, char) {
    let answer = client.query(sql);
    let tag = answer.iter().find(|message| message.tag == b'C');
    let tag = tag.map(|tag| {
        String::from_utf8_lossy(&tag.body)
            .trim_end_matches('\0')
            .to_owned()
    });
    let status = answer.last().expect("ReadyForQuery").status();
    (tags(&answer), tag.unwrap_or_default(), status)
}

#[test]
fn an_owner_is_declared_without_a_lease() {
    let Some((_postgres, valet)) = stage(&[]) else {
        return;
    };
    let mut client = session(&valet);
    assert_eq!(
        answer(&mut client, "SET pgvalet.owner = 'dispatcher'"),
        ("CZ".into(), "SET".into(), 'I')
    );
    assert_eq!(owner(&valet, &client), ["dispatcher", "sql", "held"]);
    let shown = shown(&valet, &client);
    assert_eq!(
        (&shown["state"], &shown["last_statement"]),
        (&"none".into(), &serde_json::Value::Null)
    );
}

#[test]
fn an_empty_owner_or_reset_says_that_the_session_rests() {
    let Some((_postgres, valet)) = stage(&[]) else {
        return;
    };
    let mut client = session(&valet);
    for rests in ["SET pgvalet.owner = ''", "RESET pgvalet.owner"] {
        client.query("SET pgvalet.owner = 'x'");
        assert_eq!(answer(&mut client, rests).0, "CZ");
        assert_eq!(
            owner(&valet, &client),
            ["app", "application_name", "resting"]
        );
    }
}

#[test]
fn a_resting_session_is_never_parked_and_a_held_one_is() {
    let Some((_postgres, valet)) = stage(&["--park-after", "50ms"]) else {
        return;
    };
    let (mut held, mut resting) = (session(&valet), session(&valet));
    held.value("SELECT 1");
    held.query("SET pgvalet.owner = 'dispatcher'");
    resting.value("SELECT 1");
    resting.query("SET pgvalet.owner = ''");
    eventually("the held one is parked, by its word", || {
        let shown = shown(&valet, &held);
        shown["verdict"] == "parked" && shown["basis"] == "declared"
    });
    assert_eq!(shown(&valet, &resting)["verdict"], "resting");
}

#[test]
fn a_declaration_is_no_activity() {
    let Some((_postgres, valet)) = stage(&[]) else {
        return;
    };
    let mut client = session(&valet);
    client.value("SELECT 42");
    let before = shown(&valet, &client);
    client.query("SET pgvalet.owner = 'x'");
    client.query("SHOW pgvalet.session");
    let after = shown(&valet, &client);
    for member in ["since", "state", "last_statement", "backend"] {
        assert_eq!(before[member], after[member], "{member}");
    }
    assert_eq!(after["state"], "idle");
}

#[test]
fn the_answer_carries_the_true_transaction_status() {
    let Some((_postgres, valet)) = stage(&[]) else {
        return;
    };
    let mut client = session(&valet);
    client.query("BEGIN");
    assert_eq!(
        answer(&mut client, "SET pgvalet.owner = 'x'"),
        ("CZ".into(), "SET".into(), 'T')
    );
    client.failure("SELECT 1/0");
    assert_eq!(
        answer(&mut client, "SET pgvalet.owner = 'y'"),
        ("CZ".into(), "SET".into(), 'E')
    );
    assert_eq!(owner(&valet, &client)[0], "y");
    client.query("ROLLBACK");
    assert_eq!(owner(&valet, &client)[0], "y", "a word isn't rolled back");
}

#[test]
fn pipelined_declarations_are_answered_in_their_order() {
    let Some((_postgres, valet)) = stage(&[]) else {
        return;
    };
    let mut client = session(&valet);
    let pipeline = [
        "SELECT pg_sleep(0.05), 'first'",
        "SET pgvalet.owner = 'x'",
        "SELECT 'second'",
        "SHOW pgvalet.owner",
        "SELECT 1/0",
        "RESET pgvalet.owner",
    ];
    client.send(&pipeline.map(messages::query).concat());
    let answers: Vec<String> = pipeline
        .iter()
        .map(|_| tags(&client.until_ready()))
        .collect();
    assert_eq!(answers, ["TDCZ", "CZ", "TDCZ", "TDCZ", "EZ", "CZ"]);
    assert_eq!(owner(&valet, &client)[2], "resting");
    assert_eq!(client.value("SELECT 'after'"), "after");
}

#[test]
fn a_declaration_that_comes_byte_by_byte_is_one() {
    let Some((_postgres, valet)) = stage(&[]) else {
        return;
    };
    for lent in [false, true] {
        let mut client = session(&valet);
        if lent {
            client.value("SELECT 1");
        }
        for byte in messages::query("SET pgvalet.owner = 'slow'") {
            client.send(&[byte]);
        }
        assert_eq!(tags(&client.until_ready()), "CZ");
        assert_eq!(owner(&valet, &client)[0], "slow");
        assert_eq!(
            shown(&valet, &client)["state"],
            if lent { "idle" } else { "none" }
        );
    }
}

#[test]
fn set_config_answers_with_the_value() {
    let Some((_postgres, valet)) = stage(&[]) else {
        return;
    };
    let mut client = session(&valet);
    assert_eq!(
        client.value("SELECT set_config('pgvalet.owner', 'import', false)"),
        "import"
    );
    assert_eq!(owner(&valet, &client), ["import", "sql", "held"]);
    assert_eq!(client.value("SHOW pgvalet.owner"), "import");
    assert_eq!(shown(&valet, &client)["state"], "none");
}

#[test]
fn show_session_tells_the_sessions_own_view() {
    let Some((_postgres, valet)) = stage(&[]) else {
        return;
    };
    let mut client = session(&valet);
    client.query("SET pgvalet.owner = 'x'");
    let answer = client.query("SHOW pgvalet.session");
    assert_eq!(tags(&answer), "TDCZ");
    let id = client.session().to_string();
    assert_eq!(
        answer[1].columns()[..5],
        [id.as_str(), "x", "sql", "held", "none"]
    );
}

#[test]
fn an_explicit_pin_keeps_the_backend() {
    let Some((_postgres, valet)) = stage(&["--chaos-return", "off"]) else {
        return;
    };
    let mut client = session(&valet);
    client.value("SELECT 1");
    client.query("SET pgvalet.pin = on");
    assert_eq!(client.value("SHOW pgvalet.pin"), "on");
    let path = format!("/v1/leases/{}/return", client.session());
    let (status, answer) = valet.admin("POST", &path, &serde_json::Value::Null);
    assert_eq!(
        (status, &answer["reason"]),
        (409, &"explicit".into()),
        "{answer}"
    );
    client.query("SET pgvalet.pin = off");
    assert_eq!(valet.admin("POST", &path, &serde_json::Value::Null).0, 200);
}

#[test]
fn an_explicit_pin_keeps_the_backend_in_transaction_mode() {
    let Some((_postgres, valet)) = stage(&["--mode", "transaction", "--max-backends", "1"]) else {
        return;
    };
    let mut client = session(&valet);
    client.query("SET pgvalet.pin = on");
    let state = |client: &Raw| {
        let shown = shown(&valet, client);
        (shown["state"].clone(), shown["pins"].clone())
    };
    for _ in 0..2 {
        client.value("SELECT 1");
        eventually("it is pinned", || {
            state(&client) == ("idle".into(), ["explicit"].into())
        });
    }
    client.query("SET pgvalet.pin = off");
    eventually("it is free", || state(&client).0 == "none");
    client.query("SET pgvalet.pin = on");
    client.query("SET pgvalet.pin = off");
    client.value("SELECT 1");
    eventually("it is free", || state(&client).0 == "none");
}

#[test]
fn within_several_statements_it_is_learned_when_they_succeed() {
    let Some((_postgres, valet)) = stage(&[]) else {
        return;
    };
    let mut client = session(&valet);
    assert_eq!(
        tags(&client.query("BEGIN; SET pgvalet.owner = 'batch'; COMMIT")),
        "CCCZ"
    );
    assert_eq!(owner(&valet, &client), ["batch", "sql", "held"]);
    assert_eq!(
        tags(&client.query("SET pgvalet.owner = 'never'; SELECT 1/0")),
        "CEZ"
    );
    assert_eq!(owner(&valet, &client)[0], "batch");
}

#[test]
fn other_settings_and_mentions_reach_postgresql() {
    let Some((_postgres, valet)) = stage(&[]) else {
        return;
    };
    let mut client = session(&valet);
    assert_eq!(client.failure("SHOW pgvalet.nothing"), "42704");
    assert_eq!(
        client.value("SELECT 'SET pgvalet.owner = ''x'''"),
        "SET pgvalet.owner = 'x'"
    );
    client.query("SET LOCAL pgvalet.owner = 'x'");
    assert_eq!(owner(&valet, &client)[1], "application_name");
}
