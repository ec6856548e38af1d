//! A fleet: several pgvalets of one database find each other, and reload together.

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::stage::{idle, shown};
use crate::support::{Auth, Postgres, Raw, Stop, Valet, direct, eventually, messages};

/// A PostgreSQL, and a pgvalet for each name.
fn fleet(names: &[&str]) -> Option<(Postgres, Vec<Valet>)> {
    if direct() {
        return None;
    }
    let postgres = Postgres::start();
    let join = |name: &&str| Valet::front_with(&postgres, &["--fleet", "on", "--instance", name]);
    let valets: Vec<Valet> = names.iter().map(join).collect();
    for valet in &valets {
        eventually("all are there", || states(valet).len() == names.len());
    }
    Some((postgres, valets))
}

/// Every instance with its state, by name.
fn states(valet: &Valet) -> Vec<(String, String)> {
    let (status, page) = valet.admin("GET", "/v1/fleet", &Value::Null);
    if status != 200 {
        return Vec::new();
    }
    of(&page)
}

fn of(page: &Value) -> Vec<(String, String)> {
    let instances = page["instances"].as_array().expect("instances").iter();
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    let mut all: Vec<_> = instances
        .map(|one| (text(&one["instance"]), text(&one["state"])))
        .collect();
    all.sort();
    all
}

fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs
        .iter()
        .map(|(a, b)| ((*a).to_owned(), (*b).to_owned()))
        .collect()
}

#[track_caller]
fn reload(valet: &Valet, body: &Value) -> Value {
    let (status, record) = valet.admin("POST", "/v1/reloads?scope=fleet", body);
    assert_eq!(status, 200, "{record}");
    record
}

#[test]
fn instances_find_each_other_and_one_reload_reaches_all() {
    let Some((_postgres, valets)) = fleet(&["a", "b", "c"]) else {
        return;
    };
    assert_eq!(
        states(&valets[1]),
        pairs(&[("a", "answered"), ("b", "here"), ("c", "answered")])
    );
    let mut clients: Vec<Raw> = valets.iter().map(|valet| idle(valet, "app")).collect();
    let record = reload(&valets[0], &json!({"deadline": "20s"}));
    assert_eq!(
        of(&record),
        pairs(&[("a", "here"), ("b", "done"), ("c", "done")]),
        "{record}"
    );
    assert_eq!(record["counts"]["returned"], 3, "{record}");
    for (valet, client) in valets.iter().zip(&mut clients) {
        assert_eq!(shown(valet, client)["state"], "none");
        assert_eq!(client.value("SELECT 1"), "1");
    }
    // Each has its own record, and knows who asked.
    assert_eq!(valets[1].get("/v1/reloads/1")["from"], "a");
    assert_eq!(valets[0].get("/v1/reloads/1"), record);
    let shown = valets[2].run(&["fleet"]);
    let text = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(
        shown.status.success() && text.contains("answered"),
        "{text}"
    );
}

#[test]
fn an_instance_that_doesnt_answer_in_time_is_said_to_be_silent() {
    let Some((_postgres, valets)) = fleet(&["a", "b"]) else {
        return;
    };
    valets[1].signal(Signal::STOP);
    let record = reload(&valets[0], &Value::Null);
    assert_eq!(
        of(&record),
        pairs(&[("a", "here"), ("b", "silent")]),
        "{record}"
    );
    valets[1].signal(Signal::CONT);
    eventually("it answers again", || {
        states(&valets[0]) == pairs(&[("a", "here"), ("b", "answered")])
    });
}

#[test]
fn an_instance_that_has_left_is_no_longer_waited_for() {
    let Some((_postgres, mut valets)) = fleet(&["a", "b"]) else {
        return;
    };
    drop(valets.pop());
    eventually("it has left", || {
        states(&valets[0]) == pairs(&[("a", "here")])
    });
}

#[test]
fn anybody_of_the_database_may_ask_for_what_cuts_nothing() {
    let Some((postgres, valets)) = fleet(&["a", "b"]) else {
        return;
    };
    postgres.sql("CREATE ROLE alice LOGIN");
    let clients: Vec<Raw> = valets.iter().map(|valet| idle(valet, "app")).collect();
    let mut alice = Raw::connect_with(
        postgres.port(),
        &[("user", "alice"), ("database", "postgres")],
    );
    alice.query("LISTEN pgvalet_reload_answer");
    // An answer may come before the end of her own request.
    alice.send(&messages::query(
        r#"NOTIFY pgvalet_reload, '{"method": "close"}'"#,
    ));
    for _ in &valets {
        let refused = alice.until(b'A');
        let text = String::from_utf8_lossy(&refused.body).into_owned();
        assert!(text.contains("failed") && text.contains("member"), "{text}");
    }
    alice.query("NOTIFY pgvalet_reload");
    for (valet, client) in valets.iter().zip(&clients) {
        eventually("its lease is returned", || {
            shown(valet, client)["state"] == "none"
        });
        assert_eq!(valet.get("/v1/reloads/1")["from"], "notify");
    }
}

#[test]
fn a_member_of_our_role_may_ask_for_more() {
    let Some((postgres, valets)) = fleet(&["a"]) else {
        return;
    };
    let mut client = idle(&valets[0], "app");
    let mut owner = Raw::connect(postgres.port());
    owner.query(r#"NOTIFY pgvalet_reload, '{"method": "close"}'"#);
    assert_eq!(client.until(b'E').sqlstate(), "57P01");
}

#[test]
fn garbage_is_refused_and_logged_once_and_floods_are_cut_off() {
    let Some((postgres, valets)) = fleet(&["a"]) else {
        return;
    };
    let mut noise = Raw::connect(postgres.port());
    for channel in ["pgvalet_reload", "pgvalet_reload_answer", "pgvalet_fleet"] {
        for number in 0..100 {
            noise.query(&format!("NOTIFY {channel}, 'garbage {number}'"));
        }
    }
    for number in 0..500 {
        noise.query(&format!(
            r#"NOTIFY pgvalet_reload, '{{"min_idle": "{number}s"}}'"#
        ));
    }
    eventually("it is quiet again", || {
        states(&valets[0]) == pairs(&[("a", "here")])
    });
    let complaints = valets[0].log().matches("refused a notification").count();
    assert_eq!(complaints, 1, "{}", valets[0].log());
    let reloads = valets[0].metric("pgvalet_reloads_total");
    assert!(reloads < 400.0, "{reloads} reloads");
}

#[test]
fn the_fleet_comes_back_when_the_database_does() {
    let Some((mut postgres, valets)) = fleet(&["a", "b"]) else {
        return;
    };
    postgres.stop(Stop::Immediate);
    eventually("it is out of reach", || {
        let (status, problem) = valets[0].admin("POST", "/v1/reloads?scope=fleet", &Value::Null);
        status == 503 && problem["detail"].to_string().contains("out of reach")
    });
    postgres.start_again();
    for valet in &valets {
        eventually("all are there again", || states(valet).len() == 2);
    }
    let record = reload(&valets[1], &Value::Null);
    assert_eq!(
        of(&record),
        pairs(&[("a", "done"), ("b", "here")]),
        "{record}"
    );
}

#[test]
fn the_fleet_logs_in_with_the_password_that_a_command_gives() {
    if direct() {
        return;
    }
    let postgres = Postgres::start_with(Auth::Scram, &[]);
    let directory = tempfile::tempdir().expect("a directory");
    let token = directory.path().join("token");
    std::fs::write(&token, "wrong\n").expect("written");
    let (url, command) = (
        postgres.url("postgres", "postgres"),
        format!("cat {}", token.display()),
    );
    let flags = [
        "--upstream",
        &url,
        "--auth",
        "trust",
        "--fleet",
        "on",
        "--instance",
        "a",
    ];
    let flags = [&flags[..], &["--password-command", &command]].concat();
    let valet = Valet::serve(&flags).unwrap_or_else(|exit| panic!("{}", exit.log));
    eventually("it is out of reach", || {
        valet.log().contains("out of reach")
    });
    std::fs::write(&token, "postgres\n").expect("written");
    eventually("it is there", || states(&valet) == pairs(&[("a", "here")]));
}

#[test]
fn what_doesnt_suit_a_fleet_is_refused() {
    let Some((postgres, valets)) = fleet(&["a"]) else {
        return;
    };
    for body in [
        json!({"sessions": []}),
        json!({"process": 1}),
        json!({"owner": "x".repeat(8000)}),
    ] {
        let (status, problem) = valets[0].admin("POST", "/v1/reloads?scope=fleet", &body);
        assert_eq!(status, 422, "{problem}");
    }
    let (status, _) = valets[0].admin("POST", "/v1/reloads?scope=all", &Value::Null);
    assert_eq!(status, 422);
    let alone = Valet::front(&postgres);
    for (method, path) in [("GET", "/v1/fleet"), ("POST", "/v1/reloads?scope=fleet")] {
        let (status, problem) = alone.admin(method, path, &Value::Null);
        assert_eq!(status, 422);
        assert!(
            problem["detail"].to_string().contains("fleet = "),
            "{problem}"
        );
    }
}
