//! The words in which the tests of this directory speak.

use serde_json::Value;

use crate::support::{Postgres, Raw, Valet, direct};

/// A PostgreSQL, and pgvalet in front of it. `None` where tests run straight against PostgreSQL.
pub fn stage(flags: &[&str]) -> Option<(Postgres, Valet)> {
    (!direct()).then(|| {
        let postgres = Postgres::start();
        let valet = Valet::front_with(&postgres, flags);
        (postgres, valet)
    })
}

/// A session that calls itself `app`.
#[track_caller]
pub fn session(valet: &Valet) -> Raw {
    session_with(valet, &[])
}

/// The same, with further startup parameters.
#[track_caller]
pub fn session_with(valet: &Valet, more: &[(&str, &str)]) -> Raw {
    let who = [
        ("user", "postgres"),
        ("database", "postgres"),
        ("application_name", "app"),
    ];
    Raw::connect_with(valet.port(), &[&who, more].concat())
}

/// A session as `/v1/sessions` shows it.
#[track_caller]
pub fn shown(valet: &Valet, client: &Raw) -> Value {
    let page = valet.get("/v1/sessions");
    let sessions = page["sessions"].as_array().expect("a list of sessions");
    sessions
        .iter()
        .find(|shown| shown["session"] == client.session())
        .unwrap_or_else(|| panic!("session {} isn't listed: {page}", client.session()))
        .clone()
}

/// Its owner, what that rests on, and the claim.
#[track_caller]
pub fn owner(valet: &Valet, client: &Raw) -> [String; 3] {
    let shown = shown(valet, client);
    ["owner", "evidence", "claim"].map(|member| shown[member].as_str().expect("a word").to_owned())
}

/// A session of this application that holds a lease, at a quiet point.
#[track_caller]
pub fn idle(valet: &Valet, application: &str) -> Raw {
    let mut client = session_with(valet, &[("application_name", application)]);
    client.value("SELECT 1");
    client
}

/// What became of a session in a reload, and the reason or "".
#[track_caller]
pub fn outcome(record: &Value, session: u64) -> [String; 2] {
    let leases = record["leases"].as_array().expect("an account of leases");
    let lease = leases.iter().find(|lease| lease["session"] == session);
    let lease = lease.unwrap_or_else(|| panic!("session {session} isn't accounted for: {record}"));
    ["outcome", "reason"].map(|member| lease[member].as_str().unwrap_or_default().to_owned())
}
