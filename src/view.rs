//! Owns what people and programs see of sessions and leases: plain values that may leave the data thread.
//!
//! Literals of statements never get in here.

use std::time::Duration;

use serde::{Serialize, Serializer};
use utoipa::ToSchema;

use crate::clock::Clock;
use crate::lease::rules::Policies;
use crate::lease::{ClaimState, Moment, Slot, Verdict};
use crate::ledger::Ledger;
use crate::wire::sql::fingerprint;

/// One session with its lease, as every view shows it.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct LeaseView {
    /// The lease's id: its session's.
    pub id: u32,
    pub session: u32,
    pub database: String,
    pub user: String,
    pub application: String,
    pub client: String,
    pub owner: String,
    pub evidence: &'static str,
    pub process: Option<ProcessView>,
    pub state: &'static str,
    pub verdict: &'static str,
    /// What a parked verdict rests on.
    pub basis: Option<&'static str>,
    pub claim: &'static str,
    /// How long its owner has held it, by the claim.
    #[serde(serialize_with = "maybe_span")]
    #[schema(value_type = Option<String>)]
    pub held_for: Option<Duration>,
    /// Where in its code the owner is, by the claim, or by the last statement's comment.
    #[serde(rename = "where")]
    pub place: Option<String>,
    /// When the state began, as RFC 3339.
    pub since: String,
    #[serde(serialize_with = "span")]
    #[schema(value_type = String)]
    pub idle: Duration,
    pub idle_seconds: f64,
    pub last_statement: Option<String>,
    pub pins: Vec<&'static str>,
    /// The pid of PostgreSQL's process.
    pub backend: Option<u32>,
    pub generation: u64,
}

/// A client's process.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ProcessView {
    pub pid: u32,
    /// When it began, in the kernel's ticks since boot; 0 where nobody knows.
    #[serde(skip)]
    pub started: u64,
    pub command: String,
}

impl LeaseView {
    /// What is seen now of the session at `slot`.
    #[must_use]
    pub fn of(ledger: &Ledger, slot: Slot, policies: &Policies<'_>) -> Self {
        let (book, now) = (ledger.book(), ledger.now());
        let entry = book.entry(slot);
        let (owner, evidence) = entry.owner();
        let verdict = entry.verdict(now, policies.of(entry).park_after);
        let claim = entry.standing_claim();
        let idle = entry.idle(now);
        Self {
            id: entry.id.get(),
            session: entry.id.get(),
            database: entry.profile.database.to_string(),
            user: entry.profile.user.to_string(),
            application: entry.profile.application.to_string(),
            client: entry.profile.client.to_string(),
            owner: owner.to_string(),
            evidence: evidence.word(),
            process: entry.process.as_ref().map(|known| ProcessView {
                pid: known.pid,
                started: known.started,
                command: known.command.clone(),
            }),
            state: entry.state.word(),
            verdict: verdict.word(),
            basis: if let Verdict::Parked(basis) = verdict {
                Some(basis.word())
            } else {
                None
            },
            claim: claim.map_or("unknown", |claim| match claim.state {
                ClaimState::Held => "held",
                ClaimState::Resting => "resting",
            }),
            held_for: claim
                .and_then(|claim| claim.since)
                .map(|since| now.since(since)),
            place: entry.place(),
            since: timestamp(&ledger.clock(), entry.state.since()),
            idle,
            idle_seconds: idle.as_secs_f64(),
            last_statement: entry
                .statement
                .text()
                .map(fingerprint)
                .filter(|text| !text.is_empty()),
            pins: entry.pins.iter().map(crate::lease::Pin::word).collect(),
            backend: ledger.backend_pid(slot),
            generation: entry.generation.0,
        }
    }
}

/// A moment as RFC 3339, to the millisecond.
#[must_use]
pub fn timestamp(clock: &Clock, moment: Moment) -> String {
    humantime::format_rfc3339_millis(std::time::UNIX_EPOCH + clock.wall(moment)).to_string()
}

/// A duration as the file, the flags and the API write it: `1s 250ms`. Below a second to the microsecond, above to the
/// millisecond.
#[must_use]
pub fn duration(duration: Duration) -> String {
    let grain = if duration < Duration::from_secs(1) {
        1_000
    } else {
        1_000_000
    };
    let nanos = duration.subsec_nanos() / grain * grain;
    humantime::format_duration(Duration::new(duration.as_secs(), nanos)).to_string()
}

/// Serializes a duration as text.
///
/// # Errors
/// The serializer's.
pub fn span<S: Serializer>(value: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&duration(*value))
}

#[expect(clippy::ref_option, reason = "serde gives a reference")]
fn maybe_span<S: Serializer>(value: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
    match value {
        Some(value) => span(value, serializer),
        None => serializer.serialize_none(),
    }
}
