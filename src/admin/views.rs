//! Owns what callers get: the shapes of the answers, in the glossary's words.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;
use utoipa::ToSchema;

use super::fleet::InstanceView;
use crate::events::Happening;
use crate::reload::{Account, Report};
use crate::shard::OwnerParks;
use crate::view::{LeaseView, ProcessView, duration, span};

/// `GET /v1/leases`.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Leases {
    pub generation: u64,
    pub leases: Vec<LeaseView>,
}

/// `GET /v1/sessions`.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Sessions {
    pub generation: u64,
    pub sessions: Vec<LeaseView>,
}

/// `PUT /v1/claims`.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct TakenClaims {
    pub accepted: usize,
    /// Ids that no session has.
    pub unknown: Vec<u32>,
}

/// `GET /v1/reloads`.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Reloads {
    pub reloads: Vec<ReloadRecord>,
}

/// `POST /v1/leases/{id}/return`.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Returned {
    pub outcome: &'static str,
    pub reason: Option<String>,
    pub session: u32,
}

/// `POST /v1/owners/{owner}/return`.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct OwnerReturn {
    pub owner: String,
    pub leases: Vec<AccountView>,
}

/// `GET /v1/owners`.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Owners {
    pub owners: Vec<Owner>,
}

/// What one owner holds.
#[derive(Debug, Default, Serialize, ToSchema)]
pub(super) struct Owner {
    pub owner: String,
    pub evidence: &'static str,
    pub sessions: usize,
    pub leases: usize,
    pub active: usize,
    pub in_transaction: usize,
    pub idle: usize,
    pub resting: usize,
    pub parked: usize,
    #[serde(serialize_with = "span")]
    #[schema(value_type = String)]
    pub longest_idle: Duration,
}

impl Owners {
    /// Gathers sessions by owner; the owner with the most leases first.
    pub fn of(sessions: Vec<LeaseView>) -> Self {
        let mut owners: BTreeMap<(String, &'static str), Owner> = BTreeMap::new();
        for session in sessions {
            let owner = owners
                .entry((session.owner.clone(), session.evidence))
                .or_default();
            owner.owner = session.owner;
            owner.evidence = session.evidence;
            owner.sessions += 1;
            owner.leases += usize::from(session.state != "none");
            owner.longest_idle = owner.longest_idle.max(session.idle);
            match session.verdict {
                "active" => owner.active += 1,
                "in_transaction" => owner.in_transaction += 1,
                "idle" => owner.idle += 1,
                "resting" => owner.resting += 1,
                "parked" | "pinned" => owner.parked += 1,
                _ => {}
            }
        }
        let mut owners: Vec<_> = owners.into_values().collect();
        owners.sort_by_key(|owner| std::cmp::Reverse(owner.leases));
        Self { owners }
    }
}

/// `GET /v1/leaks`.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Leaks {
    #[serde(serialize_with = "span")]
    #[schema(value_type = String)]
    park_after: Duration,
    leaks: Vec<Leak>,
    /// Every owner that parked in the last hour, the longest first.
    owners: Vec<OwnerLeaks>,
}

/// A parked lease, and what to do about it.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Leak {
    #[serde(flatten)]
    lease: LeaseView,
    parked_since: String,
    #[serde(serialize_with = "span")]
    #[schema(value_type = String)]
    parked_for: Duration,
    #[serde(flatten)]
    hour: Hour,
    remedy: String,
}

/// What an owner's parks came to.
#[derive(Debug, Serialize, ToSchema)]
struct OwnerLeaks {
    owner: String,
    parked: usize,
    #[serde(flatten)]
    hour: Hour,
}

/// How often and how long an owner's leases were parked in the last hour, and what that cost.
#[derive(Clone, Copy, Debug, Default, Serialize, ToSchema)]
struct Hour {
    count_last_hour: u64,
    #[serde(serialize_with = "span")]
    #[schema(value_type = String)]
    total_last_hour: Duration,
    backend_seconds: f64,
}

impl From<&OwnerParks> for Hour {
    fn from(parks: &OwnerParks) -> Self {
        Self {
            count_last_hour: parks.count,
            total_last_hour: parks.total,
            backend_seconds: parks.total.as_secs_f64(),
        }
    }
}

impl Leaks {
    /// Who is parked, the longest first, and who was in the last hour.
    pub fn of(
        mut sessions: Vec<LeaseView>,
        parks: &BTreeMap<String, OwnerParks>,
        park_after: Duration,
    ) -> Self {
        sessions.retain(|session| matches!(session.verdict, "parked" | "pinned"));
        sessions.sort_by_key(|session| std::cmp::Reverse(session.idle));
        let now = |owner: &str| sessions.iter().filter(|lease| lease.owner == owner).count();
        let owners = parks.values().map(|known| OwnerLeaks {
            owner: known.owner.clone(),
            parked: now(&known.owner),
            hour: known.into(),
        });
        let mut owners: Vec<_> = owners.collect();
        owners.sort_by_key(|owner| std::cmp::Reverse(owner.hour.total_last_hour));
        let leak = |lease: LeaseView| Leak {
            parked_since: lease.since.clone(),
            parked_for: lease.idle,
            hour: parks.get(&lease.owner).map(Hour::from).unwrap_or_default(),
            remedy: remedy(&lease),
            lease,
        };
        Self {
            park_after,
            leaks: sessions.into_iter().map(leak).collect(),
            owners,
        }
    }
}

fn remedy(lease: &LeaseView) -> String {
    if !lease.pins.is_empty() {
        return format!(
            "pinned by {}: end that in the app, or close the session",
            lease.pins.join(", ")
        );
    }
    if lease.state == "in_transaction" {
        return "commit or roll back before waiting: inside a transaction nothing is ever detached"
            .to_owned();
    }
    "give the connection back before waiting (a block-scoped checkout), or set return_after"
        .to_owned()
}

/// What became of one session: in a reload, or in a return.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(super) struct AccountView {
    id: u32,
    session: u32,
    owner: Option<String>,
    evidence: &'static str,
    process: Option<ProcessView>,
    state: &'static str,
    idle: String,
    idle_seconds: f64,
    last_statement: Option<String>,
    #[serde(rename = "where")]
    place: Option<String>,
    pub outcome: &'static str,
    pub reason: Option<String>,
}

impl From<Account> for AccountView {
    fn from(account: Account) -> Self {
        let Account { id, view, outcome } = account;
        let view = view.as_ref();
        let idle = view.map_or(Duration::ZERO, |view| view.idle);
        Self {
            id: id.get(),
            session: id.get(),
            owner: view.map(|view| view.owner.clone()),
            evidence: view.map_or("none", |view| view.evidence),
            process: view.and_then(|view| view.process.clone()),
            state: view.map_or("none", |view| view.state),
            idle: duration(idle),
            idle_seconds: idle.as_secs_f64(),
            last_statement: view.and_then(|view| view.last_statement.clone()),
            place: view.and_then(|view| view.place.clone()),
            outcome: outcome.word(),
            reason: outcome.reason().map(ToOwned::to_owned),
        }
    }
}

/// A reload as it went: `POST /v1/reloads`, `GET /v1/reloads/{id}`.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ReloadRecord {
    pub(super) id: String,
    pub(super) generation: u64,
    /// `running` or `done`.
    state: &'static str,
    dry_run: bool,
    /// The instance of the fleet that asked for it, or `notify`; absent where the caller spoke to us.
    #[serde(skip_serializing_if = "Option::is_none")]
    from: Option<String>,
    started: String,
    #[serde(serialize_with = "span")]
    #[schema(value_type = String)]
    took: Duration,
    took_seconds: f64,
    counts: BTreeMap<&'static str, usize>,
    leases: Vec<AccountView>,
    /// What every pgvalet of the fleet did, where the whole fleet was asked. `counts` is then the sum.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    instances: Vec<InstanceView>,
}

/// When a reload began, how long it took, and whether it was only a rehearsal.
pub(super) struct Course {
    pub id: u64,
    pub started: String,
    pub took: Duration,
    pub dry_run: bool,
    pub from: Option<String>,
}

impl ReloadRecord {
    /// The record of a reload that is under way.
    pub(super) fn running(course: Course) -> Self {
        Self {
            state: "running",
            ..Self::new(course, Report::default())
        }
    }

    /// With what the others of the fleet did, behind our own part.
    pub(super) fn with_fleet(mut self, own: InstanceView, others: Vec<InstanceView>) -> Self {
        let own = own.with_counts(self.counts());
        for (word, count) in others.iter().flat_map(|other| &other.counts) {
            if let Some(sum) = self.counts.get_mut(word.as_str()) {
                *sum = sum.saturating_add(usize::try_from(*count).unwrap_or(usize::MAX));
            }
        }
        self.instances = [own].into_iter().chain(others).collect();
        self
    }

    /// How many came to which outcome.
    pub(super) fn counts(&self) -> BTreeMap<String, u64> {
        let counts = self.counts.iter();
        let count = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
        counts
            .map(|(word, all)| ((*word).to_owned(), count(*all)))
            .collect()
    }

    /// How long it took, as text.
    pub(super) fn took_text(&self) -> String {
        duration(self.took)
    }

    /// The event of its end.
    pub(super) fn ended(&self) -> Happening {
        Happening::ReloadEnded {
            id: self.id.clone(),
            generation: self.generation,
            took: duration(self.took),
            took_seconds: self.took_seconds,
            counts: self.counts.clone(),
        }
    }

    /// The record of a reload that is done.
    pub(super) fn new(course: Course, report: Report) -> Self {
        let words = [
            "returned", "resting", "spared", "busy", "pinned", "gone", "unknown",
        ];
        let mut counts: BTreeMap<_, _> = words.into_iter().map(|word| (word, 0)).collect();
        let leases: Vec<AccountView> = report.accounts.into_iter().map(Into::into).collect();
        for account in &leases {
            *counts.entry(account.outcome).or_default() += 1;
        }
        Self {
            id: course.id.to_string(),
            generation: report.generation,
            state: "done",
            dry_run: course.dry_run,
            from: course.from,
            started: course.started,
            took: course.took,
            took_seconds: course.took.as_secs_f64(),
            counts,
            leases,
            instances: Vec::new(),
        }
    }

    /// One line for the log: how long it took, and how many came to which outcome.
    pub(super) fn summary(&self) -> String {
        let counted = self.counts.iter().filter(|(_, count)| **count > 0);
        let counted: Vec<_> = counted
            .map(|(word, count)| format!("{count} {word}"))
            .collect();
        let kind = if self.dry_run { "rehearsed" } else { "done" };
        let counted = if counted.is_empty() {
            "no leases".to_owned()
        } else {
            counted.join(", ")
        };
        format!("{kind} in {}: {counted}", duration(self.took))
    }
}
