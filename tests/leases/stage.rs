//! The words in which the tests of this directory speak.

use rustix::process::Pid;
use serde_json::{Value, json};

use crate::support::{Postgres, Raw, Valet, direct, eventually, messages};

/// A PostgreSQL, pgvalet in front of it, and a table `jobs`. `None` where tests run straight against PostgreSQL.
pub fn stage(flags: &[&str]) -> Option<(Postgres, Valet)> {
    (!direct()).then(|| stage_or_direct(flags))
}

/// The same, for what can be shown straight against PostgreSQL too.
pub fn stage_or_direct(flags: &[&str]) -> (Postgres, Valet) {
    let postgres = Postgres::start();
    postgres.sql("CREATE TABLE jobs (id serial, name text); CREATE ROLE alice LOGIN; GRANT ALL ON jobs TO alice");
    let valet = Valet::front_with(&postgres, flags);
    (postgres, valet)
}

/// A session that calls itself `application`.
#[track_caller]
pub fn session(valet: &Valet, application: &str) -> Raw {
    let who = [
        ("user", "postgres"),
        ("database", "postgres"),
        ("application_name", application),
    ];
    Raw::connect_with(valet.port(), &who)
}

/// A session of `application` that has a lease, and sits idle after `sql`.
#[track_caller]
pub fn idle_after(valet: &Valet, application: &str, sql: &str) -> Raw {
    let mut client = session(valet, application);
    client.value(sql);
    client
}

/// The lease of a session as `/v1/leases` shows it.
#[track_caller]
pub fn lease(valet: &Valet, client: &Raw) -> Option<Value> {
    let page = valet.get("/v1/leases");
    let leases = page["leases"].as_array().expect("a list of leases");
    leases
        .iter()
        .find(|lease| lease["session"] == client.session())
        .cloned()
}

/// A session as `/v1/sessions` shows it.
#[track_caller]
pub fn shown(valet: &Valet, client: &Raw) -> Value {
    let page = valet.get("/v1/sessions");
    let sessions = page["sessions"].as_array().expect("a list of sessions");
    let found = sessions
        .iter()
        .find(|shown| shown["session"] == client.session());
    found
        .unwrap_or_else(|| panic!("session {} isn't listed: {page}", client.session()))
        .clone()
}

/// Waits until a session is shown with `state`.
#[track_caller]
pub fn until_state(valet: &Valet, client: &Raw, state: &str) {
    eventually(&format!("session {} is {state}", client.session()), || {
        shown(valet, client)["state"] == state
    });
}

/// Asks for a reload, which must be accepted.
#[track_caller]
pub fn reload(valet: &Valet, body: &Value) -> Value {
    let (status, report) = valet.admin("POST", "/v1/reloads", body);
    assert_eq!(status, 200, "{report}");
    report
}

/// What became of a session in a reload: the outcome, and the reason or "".
#[track_caller]
pub fn outcome(report: &Value, session: u64) -> (String, String) {
    let leases = report["leases"].as_array().expect("an account of leases");
    let lease = leases
        .iter()
        .find(|lease| lease["session"] == session || lease["id"] == session);
    let lease = lease.unwrap_or_else(|| panic!("session {session} isn't accounted for: {report}"));
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    (text(&lease["outcome"]), text(&lease["reason"]))
}

/// Claims a session for `owner`, or says that it rests.
#[track_caller]
pub fn claim(valet: &Valet, client: &Raw, owner: &str, state: &str) {
    let claims = json!({"claims": [{"id": client.session(), "owner": owner, "state": state}]});
    assert_eq!(
        valet.admin("PUT", "/v1/claims", &claims),
        (200, json!({"accepted": 1, "unknown": []}))
    );
}

/// Returns a session's lease; the answer.
#[track_caller]
pub fn give_back(valet: &Valet, client: &Raw) -> (u16, Value) {
    valet.admin(
        "POST",
        &format!("/v1/leases/{}/return", client.session()),
        &Value::Null,
    )
}

/// Returns a session's lease, which must be possible, and waits until its backend is free.
#[track_caller]
pub fn detach(valet: &Valet, client: &Raw) {
    let (status, answer) = give_back(valet, client);
    assert_eq!(
        (status, &answer["outcome"]),
        (200, &json!("returned")),
        "{answer}"
    );
    eventually("the lease has ended", || lease(valet, client).is_none());
}

/// The backend's own pid, which pgvalet's ids hide from the protocol.
#[track_caller]
pub fn backend(client: &mut Raw) -> String {
    client.value("SELECT pg_backend_pid()")
}

/// The backend's process.
#[track_caller]
pub fn process(client: &mut Raw) -> Pid {
    let pid = backend(client).parse().ok();
    pid.and_then(Pid::from_raw).expect("a process id")
}

/// Has `client` wait inside a statement until the returned session, straight on PostgreSQL, goes.
#[track_caller]
pub fn block(postgres: &Postgres, client: &mut Raw) -> Raw {
    let mut holder = Raw::connect(postgres.port());
    holder.query("SELECT pg_advisory_lock(1)");
    client.send(&messages::query("SELECT pg_advisory_xact_lock(1), 'done'"));
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'advisory'";
    eventually("the statement runs", || postgres.sql(waiting) == "1");
    holder
}

/// Whether PostgreSQL has it: not every build brings all.
pub fn has_extension(name: &str) -> bool {
    let count = format!("SELECT count(*) FROM pg_available_extensions WHERE name = '{name}'");
    Postgres::start().sql(&count) == "1"
}
