//! What the views tell of each lease, owner and leak.

use serde_json::json;

use crate::stage::{block, claim, idle_after, lease, session, shown, stage, until_state};
use crate::support::{eventually, eventually_some, messages};

#[test]
fn a_lease_shows_who_has_it_and_what_was_last_done_with_it() {
    let Some((_postgres, valet)) = stage(&[]) else {
        return;
    };
    let client = idle_after(
        &valet,
        "dispatcher",
        "INSERT INTO jobs (name) VALUES ('secret')",
    );
    let lease = lease(&valet, &client).expect("a lease");
    assert_eq!(lease["id"], client.session());
    let expected = [
        ("database", json!("postgres")),
        ("user", json!("postgres")),
        ("application", json!("dispatcher")),
        ("owner", json!("dispatcher")),
        ("evidence", json!("application_name")),
        ("state", json!("idle")),
        ("verdict", json!("idle")),
        ("claim", json!("unknown")),
        (
            "last_statement",
            json!("INSERT INTO jobs (name) VALUES (?)"),
        ),
        ("pins", json!([])),
        ("generation", json!(0)),
    ];
    for (member, value) in expected {
        assert_eq!(lease[member], value, "{member} of {lease}");
    }
    assert!(
        lease["client"]
            .as_str()
            .is_some_and(|client| client.starts_with("127.0.0.1:")),
        "{lease}"
    );
    assert!(
        lease["since"]
            .as_str()
            .is_some_and(|since| since.ends_with('Z')),
        "{lease}"
    );
    assert!(
        lease["idle_seconds"]
            .as_f64()
            .is_some_and(|idle| idle >= 0.0),
        "{lease}"
    );
}

#[test]
fn the_last_statement_has_no_literals() {
    let Some((_postgres, valet)) = stage(&[]) else {
        return;
    };
    let mut client = session(&valet, "app");
    let statements = [
        (
            "SELECT 'it''s', E'a\\'b', $$body$$, $x$ $$ $x$, 42, 1.5e3, 0",
            "SELECT ?, ?, ?, ?, ?, ?, ?",
        ),
        (
            "SELECT id1, \"odd 'name'\" FROM (SELECT 1 AS id1, 2 AS \"odd 'name'\") t2",
            "SELECT id1, \"odd 'name'\" FROM (SELECT ? AS id1, ? AS \"odd 'name'\") t2",
        ),
        ("SELECT B'101', X'1F', N'x', -7", "SELECT ?, ?, ?, -?"),
    ];
    for (sql, without) in statements {
        client.value(sql);
        assert_eq!(
            lease(&valet, &client).expect("a lease")["last_statement"],
            without
        );
    }
    client.send(
        &[
            messages::extended("SELECT $1::int, 'secret'", &["5"]),
            messages::sync(),
        ]
        .concat(),
    );
    client.until_ready();
    assert_eq!(
        lease(&valet, &client).expect("a lease")["last_statement"],
        "SELECT $1::int, ?"
    );
}

#[test]
fn no_literal_shows_even_of_a_statement_that_is_cut_or_broken() {
    let Some((_postgres, valet)) = stage(&[]) else {
        return;
    };
    let mut client = session(&valet, "app");
    let long = format!("SELECT {}'{}'", " ".repeat(480), "secret".repeat(1000));
    for sql in [
        &long,
        "SELECT 'secret",
        "SELECT $$secret",
        "SELECT 1 /* secret */ -- secret",
        "SELECT E'\\'secret",
    ] {
        client.query(sql);
        let lease = lease(&valet, &client).expect("a lease");
        assert!(
            !lease["last_statement"]
                .as_str()
                .is_some_and(|text| text.contains("secret")),
            "{lease}"
        );
    }
}

#[test]
fn the_state_follows_the_session() {
    let Some((postgres, valet)) = stage(&[]) else {
        return;
    };
    let mut client = session(&valet, "app");
    assert_eq!(shown(&valet, &client)["state"], "none");
    assert!(lease(&valet, &client).is_none());
    client.query("SELECT 1");
    assert_eq!(lease(&valet, &client).expect("a lease")["state"], "idle");
    client.query("BEGIN");
    assert_eq!(
        lease(&valet, &client).expect("a lease")["state"],
        "in_transaction"
    );
    client.query("ROLLBACK");
    let blocker = block(&postgres, &mut client);
    assert_eq!(lease(&valet, &client).expect("a lease")["state"], "active");
    blocker.goodbye();
    client.until_ready();
    assert_eq!(lease(&valet, &client).expect("a lease")["verdict"], "idle");
    let id = client.session();
    client.goodbye();
    eventually("it is no longer listed", || {
        let page = valet.get("/v1/sessions");
        page["sessions"]
            .as_array()
            .expect("a list")
            .iter()
            .all(|session| session["session"] != id)
    });
}

#[test]
fn a_request_without_its_sync_is_active() {
    let Some((_postgres, valet)) = stage(&[]) else {
        return;
    };
    let mut client = session(&valet, "app");
    client.send(&[messages::extended("SELECT 1", &[]), messages::flush()].concat());
    client.until(b'C');
    assert_eq!(lease(&valet, &client).expect("a lease")["state"], "active");
    client.send(&messages::sync());
    client.until_ready();
    assert_eq!(lease(&valet, &client).expect("a lease")["state"], "idle");
}

#[test]
fn the_process_behind_a_unix_socket_is_shown() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let listen = format!("unix:{}", directory.path().display());
    let Some((_postgres, valet)) = stage(&["--listen", &listen]) else {
        return;
    };
    let mut psql = std::process::Command::new("psql");
    psql.args(["-X", "-U", "postgres", "-p", "6432", "-h"])
        .arg(directory.path());
    let mut psql = psql
        .stdin(std::process::Stdio::piped())
        .spawn()
        .expect("psql can be run");
    let shown = eventually_some("psql's session is listed", || {
        let page = valet.get("/v1/sessions");
        page["sessions"]
            .as_array()
            .and_then(|sessions| sessions.first().cloned())
    });
    assert_eq!(shown["process"]["pid"], psql.id(), "{shown}");
    assert!(
        shown["process"]["command"]
            .as_str()
            .is_some_and(|command| command.contains("psql")),
        "{shown}"
    );
    drop(psql.stdin.take());
    psql.wait().expect("psql ends");
}

#[test]
fn owners_are_counted_together() {
    let Some((_postgres, valet)) = stage(&[]) else {
        return;
    };
    let _web = [
        idle_after(&valet, "web", "SELECT 1"),
        idle_after(&valet, "web", "BEGIN"),
        session(&valet, "web"),
    ];
    let _job = idle_after(&valet, "job", "SELECT 1");
    let page = valet.get("/v1/owners");
    let owners = page["owners"].as_array().expect("a list of owners");
    let owner = |name: &str| {
        owners
            .iter()
            .find(|owner| owner["owner"] == name)
            .expect("an owner")
    };
    let numbers = [
        "sessions",
        "leases",
        "idle",
        "in_transaction",
        "active",
        "parked",
    ];
    assert_eq!(
        numbers.map(|of| owner("web")[of].as_u64()),
        [3, 2, 1, 1, 0, 0].map(Some)
    );
    assert_eq!(
        numbers.map(|of| owner("job")[of].as_u64()),
        [1, 1, 1, 0, 0, 0].map(Some)
    );
}

#[test]
fn a_lease_idle_for_park_after_is_a_leak() {
    let Some((postgres, valet)) = stage(&["--park-after", "100ms"]) else {
        return;
    };
    let client = idle_after(&valet, "dispatcher", "INSERT INTO jobs (name) VALUES ('x')");
    let mut busy = session(&valet, "web");
    let _holder = block(&postgres, &mut busy);
    eventually("it is parked", || {
        lease(&valet, &client).is_some_and(|lease| lease["verdict"] == "parked")
    });
    let page = valet.get("/v1/leaks");
    assert_eq!(page["park_after"], "100ms");
    let leaks = page["leaks"].as_array().expect("a list of leaks");
    assert_eq!(leaks.len(), 1, "{page}");
    assert_eq!(
        (&leaks[0]["owner"], &leaks[0]["basis"]),
        (&json!("dispatcher"), &json!("inferred"))
    );
    assert_eq!(
        leaks[0]["last_statement"],
        "INSERT INTO jobs (name) VALUES (?)"
    );
    assert!(
        leaks[0]["remedy"]
            .as_str()
            .is_some_and(|remedy| !remedy.is_empty()),
        "{page}"
    );
    assert_eq!(lease(&valet, &busy).expect("a lease")["verdict"], "active");
    assert_eq!(
        valet.metric("pgvalet_parked_leases{owner=\"dispatcher\"}"),
        1.0
    );
}

#[test]
fn a_parked_lease_is_parked_no_longer_once_it_is_used() {
    let Some((_postgres, valet)) = stage(&["--park-after", "2s"]) else {
        return;
    };
    let mut client = idle_after(&valet, "app", "SELECT 1");
    eventually("it is parked", || {
        lease(&valet, &client).is_some_and(|lease| lease["verdict"] == "parked")
    });
    client.query("BEGIN");
    assert_eq!(
        lease(&valet, &client).expect("a lease")["verdict"],
        "in_transaction"
    );
    assert_eq!(valet.get("/v1/leaks")["leaks"], json!([]));
}

#[test]
fn a_resting_lease_is_never_a_leak_and_a_held_one_is_declared() {
    let Some((_postgres, valet)) = stage(&["--park-after", "50ms"]) else {
        return;
    };
    let (resting, held) = (
        idle_after(&valet, "app", "SELECT 1"),
        idle_after(&valet, "app", "SELECT 1"),
    );
    claim(&valet, &resting, "pool", "resting");
    claim(&valet, &held, "dispatcher", "held");
    eventually("the held one is parked", || {
        lease(&valet, &held).is_some_and(|lease| lease["verdict"] == "parked")
    });
    assert_eq!(lease(&valet, &held).expect("a lease")["basis"], "declared");
    assert_eq!(
        lease(&valet, &resting).expect("a lease")["verdict"],
        "resting"
    );
    assert_eq!(
        valet.get("/v1/leaks")["leaks"].as_array().map(Vec::len),
        Some(1)
    );
}

#[test]
fn the_metrics_count_what_the_views_show() {
    let Some((_postgres, valet)) = stage(&["--max-backends", "7"]) else {
        return;
    };
    let mut clients = [
        idle_after(&valet, "a", "SELECT 1"),
        idle_after(&valet, "b", "BEGIN"),
        session(&valet, "c"),
    ];
    let pool = "database=\"postgres\",user=\"postgres\"";
    let value = |name: &str, label: &str| valet.metric(&format!("pgvalet_{name}{{{pool}{label}}}"));
    assert_eq!(value("sessions", ""), 3.0);
    assert_eq!(value("backends_max", ""), 7.0);
    let of = |state: &str| {
        valet.metric(&format!(
            "pgvalet_leases{{database=\"postgres\",state=\"{state}\",user=\"postgres\"}}"
        ))
    };
    assert_eq!(
        (of("idle"), of("in_transaction"), of("active")),
        (1.0, 1.0, 0.0)
    );
    let before = value("requests_total", "");
    clients[0].query("SELECT 1");
    clients[1].query("COMMIT");
    until_state(&valet, &clients[1], "idle");
    assert_eq!(value("requests_total", ""), before + 2.0);
    assert!(valet.metric("pgvalet_client_bytes_total{direction=\"in\"}") > 0.0);
    assert!(valet.metrics().contains("pgvalet_build_info{version="));
}
