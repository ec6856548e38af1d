//! Owns what the client commands read of the admin API's answers.
//!
//! Each field has a default: an older or newer pgvalet is shown as far as it goes.

use serde::Deserialize;

/// One session, with its lease if it holds one.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Lease {
    /// The session's id.
    pub session: i64,
    pub database: String,
    pub user: String,
    pub application: Option<String>,
    pub client: Option<String>,
    /// Who holds it, and how we know.
    pub owner: String,
    pub evidence: String,
    pub process: Option<Process>,
    /// The lease's state.
    pub state: String,
    /// What is thought of it: active, idle, parked, pinned, ...
    pub verdict: String,
    /// declared or inferred, for a parked one.
    pub basis: Option<String>,
    /// Where in the app's code the owner is.
    #[serde(rename = "where")]
    pub place: Option<String>,
    /// How long it has been idle, for people.
    pub idle: Option<String>,
    pub last_statement: Option<String>,
    /// Why it can't be detached.
    pub pins: Vec<String>,
    /// PostgreSQL's pid.
    pub backend: Option<i64>,
}

/// The client's process, where it is known.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Process {
    pub pid: i64,
    pub command: Option<String>,
}

/// `GET /v1/leases`.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Leases {
    pub leases: Vec<Lease>,
}

/// `GET /v1/sessions`.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Sessions {
    pub sessions: Vec<Lease>,
}

/// An owner with its counts.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Owner {
    pub owner: String,
    pub evidence: String,
    pub sessions: u64,
    pub leases: u64,
    pub active: u64,
    pub in_transaction: u64,
    pub idle: u64,
    pub resting: u64,
    pub parked: u64,
    pub longest_idle: Option<String>,
}

/// `GET /v1/owners`.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Owners {
    pub owners: Vec<Owner>,
}

/// A parked lease.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Leak {
    #[serde(flatten)]
    pub lease: Lease,
    pub parked_since: Option<String>,
    pub parked_for: Option<String>,
    /// How often and how long its owner parked in the last hour.
    pub count_last_hour: Option<u64>,
    pub total_last_hour: Option<String>,
    /// What to do about it.
    pub remedy: Option<String>,
}

/// `GET /v1/leaks`.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Leaks {
    #[serde(default)]
    pub park_after: Option<String>,
    pub leaks: Vec<Leak>,
}

/// `POST /v1/reloads`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Reload {
    pub id: String,
    pub generation: u64,
    pub state: String,
    pub dry_run: bool,
    pub took: Option<String>,
    /// Leases by outcome.
    pub counts: std::collections::BTreeMap<String, u64>,
    pub leases: Vec<ReloadLease>,
    /// Every pgvalet of the fleet, where the whole fleet was asked.
    pub instances: Vec<Instance>,
}

/// What became of one lease.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct ReloadLease {
    pub session: i64,
    pub owner: String,
    pub evidence: String,
    pub idle: Option<String>,
    pub last_statement: Option<String>,
    pub outcome: String,
    pub reason: Option<String>,
}

/// `POST /v1/owners/{owner}/return`.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Returns {
    pub leases: Vec<ReloadLease>,
}

/// `POST /v1/reap`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Reaped {
    pub sessions: u64,
    /// Of how many of them the process is known.
    pub with_process: u64,
    pub orphans: Vec<ReloadLease>,
}

/// `POST /v1/verify`.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Verified {
    pub backends: Vec<Backend>,
}

/// What became of one backend.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Backend {
    pub database: String,
    pub user: String,
    /// PostgreSQL's pid.
    pub backend: i64,
    pub outcome: String,
    /// The pid of the one in its place.
    pub by: Option<i64>,
    pub reason: Option<String>,
}

/// `GET /v1/fleet`.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Fleet {
    pub instances: Vec<Instance>,
}

/// One pgvalet of a fleet.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Instance {
    pub instance: String,
    /// `here`, `answered` or `silent`; in a reload `done` or `failed`, too.
    pub state: String,
    pub version: Option<String>,
    pub sessions: Option<u64>,
    pub leases: Option<u64>,
    pub generation: Option<u64>,
    pub took: Option<String>,
    pub counts: std::collections::BTreeMap<String, u64>,
    pub reason: Option<String>,
}
