//! Events: what is told, to whom, and what becomes of readers that come late or read slowly.

use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};

use crate::stage::{idle, session, shown, stage};
use crate::support::stream::Stream;
use crate::support::{Raw, Stop, eventually, messages};

#[test]
fn a_lease_that_parks_goes_on_and_is_returned_is_told() {
    let Some((_postgres, valet)) = stage(&["--park-after", "20ms"]) else {
        return;
    };
    let mut events = valet.events("?kinds=lease", &[]);
    events.until("open");
    let mut client = idle(&valet, "dispatcher");
    let parked = events.until("lease.parked");
    let seen = ["session", "owner", "evidence", "verdict", "last_statement"];
    assert_eq!(
        seen.map(|member| parked.data[member].clone()),
        [
            json!(client.session()),
            json!("dispatcher"),
            json!("application_name"),
            json!("parked"),
            json!("SELECT ?")
        ],
        "{parked:?}"
    );
    client.query("BEGIN");
    let unparked = events.until("lease.unparked");
    assert_eq!(unparked.data["owner"], "dispatcher", "{unparked:?}");
    // In a transaction it parks again, and nothing detaches it.
    let again = events.until("lease.parked");
    assert_eq!(again.data["state"], "in_transaction", "{again:?}");
    client.query("COMMIT");
    let path = format!("/v1/leases/{}/return", client.session());
    assert_eq!(valet.admin("POST", &path, &Value::Null).0, 200);
    let returned = events.until("lease.returned");
    assert_eq!(
        [
            &returned.data["session"],
            &returned.data["cause"],
            &returned.data["method"]
        ],
        [&json!(client.session()), &json!("forced"), &json!("detach")]
    );
}

#[test]
fn a_return_that_is_refused_tells_its_pins() {
    let Some((_postgres, valet)) = stage(&[]) else {
        return;
    };
    let mut events = valet.events("?kinds=lease.pinned,lease.returned", &[]);
    let mut client = idle(&valet, "app");
    client.query("CREATE TEMP TABLE t ()");
    let path = format!("/v1/leases/{}/return", client.session());
    assert_eq!(valet.admin("POST", &path, &Value::Null).0, 409);
    let told = events.until("lease.pinned");
    assert_eq!(told.data["pins"], json!(["temp"]), "{told:?}");
}

#[test]
fn a_reader_that_comes_again_gets_what_it_missed() {
    let Some((_postgres, valet)) = stage(&[]) else {
        return;
    };
    let mut events = valet.events("", &[]);
    let open = events.until("open");
    drop(events);
    assert_eq!(valet.admin("POST", "/v1/reloads", &Value::Null).0, 200);
    let mut again = valet.events("", &[("Last-Event-ID", &open.id)]);
    let told: Vec<_> = std::iter::from_fn(|| again.next()).take(3).collect();
    let names: Vec<&str> = told.iter().map(|told| told.event.as_str()).collect();
    assert_eq!(names, ["reload.began", "reload.ended", "open"]);
    assert_eq!(told[1].data["generation"], 1);
    let mut filtered = valet.events("?kinds=reload.ended", &[("Last-Event-ID", &open.id)]);
    assert_eq!(filtered.next().expect("an event").id, told[1].id);
}

#[test]
fn a_reader_of_another_run_hears_of_the_gap() {
    let Some((_postgres, valet)) = stage(&[]) else {
        return;
    };
    valet.admin("POST", "/v1/reloads", &Value::Null);
    let mut events = valet.events("?kinds=owner", &[("Last-Event-ID", "1a2b-7")]);
    let gap = events.next().expect("an event");
    assert_eq!(
        (gap.event.as_str(), &gap.data["lost"]),
        ("gap", &Value::Null)
    );
    assert_eq!(events.next().expect("an event").event, "open");
}

#[test]
fn what_cant_be_followed_is_refused() {
    let Some((_postgres, valet)) = stage(&[]) else {
        return;
    };
    let (status, problem) = valet.admin("GET", "/v1/events?kinds=leese", &Value::Null);
    assert_eq!(status, 422);
    assert!(
        problem["detail"].to_string().contains("lease.parked"),
        "{problem}"
    );
    assert_eq!(
        valet.admin("GET", "/v1/events?kind=lease", &Value::Null).0,
        422
    );
    let headers = [("Last-Event-ID", "yesterday")];
    let answer =
        crate::support::http::request(valet.admin_port(), "GET", "/v1/events", &headers, "");
    assert_eq!(answer.status, 400, "{}", answer.body);
}

#[test]
fn owners_are_told_when_they_say_who_they_are_and_when_a_rule_refuses_them() {
    let rule = r#"[{ name = "crons", owner = "cron*", forbid_implicit = true }]"#;
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("pgvalet.toml");
    std::fs::write(&file, format!("rules = {rule}")).expect("written");
    let Some((_postgres, valet)) = stage(&["--config", file.to_str().expect("UTF-8")]) else {
        return;
    };
    let mut events = valet.events("?kinds=owner", &[]);
    events.until("open");
    let mut client = session(&valet);
    client.query("SET pgvalet.owner = 'cron-7'");
    let declared = events.until("owner.declared");
    assert_eq!(
        (&declared.data["owner"], &declared.data["state"]),
        (&json!("cron-7"), &json!("held"))
    );
    assert_eq!(client.failure("SELECT 1"), "55000");
    let refused = events.until("owner.refused");
    assert_eq!(
        (&refused.data["rule"], &refused.data["owner"]),
        (&json!("crons"), &json!("cron-7"))
    );
    let claims =
        json!({"source": "web:1", "claims": [{"id": client.session(), "owner": "x"}, {"id": 7}]});
    valet.admin("PUT", "/v1/claims", &claims);
    let claimed = events.until("owner.claimed");
    assert_eq!(
        [
            &claimed.data["source"],
            &claimed.data["accepted"],
            &claimed.data["unknown"],
            &claimed.data["owners"]
        ],
        [&json!("web:1"), &json!(1), &json!(1), &json!(["x"])]
    );
}

#[test]
fn faults_of_pools_and_backends_are_told_and_so_is_their_end() {
    let Some((mut postgres, valet)) = stage(&["--max-backends", "1", "--acquire-timeout", "50ms"])
    else {
        return;
    };
    let mut events = valet.events("?kinds=pool,backend", &[]);
    events.until("open");
    let mut client = idle(&valet, "app");
    let mut waiting = Raw::connect(valet.port());
    assert_eq!(waiting.failure("SELECT 1"), "53300");
    let exhausted = events.until("pool.exhausted");
    assert_eq!(
        [&exhausted.data["session"], &exhausted.data["backends"]],
        [&json!(waiting.session()), &json!(1)]
    );
    postgres.stop(Stop::Immediate);
    client.send_if_open(&messages::query("SELECT 1"));
    let lost = events.until("backend.lost");
    assert_eq!(lost.data["session"], client.session(), "{lost:?}");
    waiting.failure("SELECT 1");
    let refused = events.until("backend.refused");
    assert_eq!(refused.data["sqlstate"], "08001", "{refused:?}");
    postgres.start_again();
    eventually("it works again", || {
        let answer = waiting.query("SELECT 1");
        !crate::support::tags(&answer).contains('E')
    });
    assert!(events.until("backend.recovered").data["failures"].as_u64() > Some(0));
}

#[test]
fn a_reader_that_doesnt_read_is_dropped_and_told_so() {
    let Some((_postgres, valet)) = stage(&[]) else {
        return;
    };
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket.set_recv_buffer_size(4096).expect("a small buffer");
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], valet.admin_port()));
    socket
        .connect(&address.into())
        .expect("the admin API accepts");
    let mut slow = Stream::on(socket.into(), "GET", "/v1/events", &[], "");
    slow.until("open");
    let mut quick = valet.events("?kinds=reload", &[]);
    quick.until("open");
    let owners: Vec<Value> = (0..20)
        .map(|number| json!({"id": number, "owner": format!("{number}-{}", "x".repeat(390))}))
        .collect();
    let claims = json!({"claims": owners}).to_string();
    // Some 8 KB each: far more than both sockets and the queue take.
    for _ in 0..1200 {
        assert_eq!(valet.request("PUT", "/v1/claims", &claims).status, 200);
    }
    valet.admin("POST", "/v1/reloads", &Value::Null);
    quick.until("reload.ended");
    let mut last = None;
    while let Some(told) = slow.next() {
        last = Some(told);
    }
    assert_eq!(last.expect("events").event, "dropped");
    let client = idle(&valet, "app");
    assert_eq!(shown(&valet, &client)["state"], "idle");
}

#[test]
fn the_command_follows_and_ends_after_so_many() {
    let Some((_postgres, valet)) = stage(&[]) else {
        return;
    };
    let mut events = valet.events("", &[]);
    let open = events.until("open");
    valet.admin("POST", "/v1/reloads", &Value::Null);
    let arguments = [
        "events", "--after", &open.id, "--count", "2", "--kinds", "reload",
    ];
    let followed = valet.run(&arguments);
    let text = String::from_utf8_lossy(&followed.stdout).into_owned();
    assert_eq!(followed.status.code(), Some(0), "{followed:?}");
    assert!(
        text.contains("reload.began") && text.contains("reload.ended"),
        "{text}"
    );
    let json = valet.run(&[&arguments[..], &["--json"]].concat());
    let lines = String::from_utf8_lossy(&json.stdout).into_owned();
    let first: Value = serde_json::from_str(lines.lines().next().expect("a line")).expect("JSON");
    assert_eq!(
        (&first["event"], &first["id"].is_string()),
        (&json!("reload.began"), &true)
    );
    let refused = valet.run(&["events", "--kinds", "leese"]);
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
}
