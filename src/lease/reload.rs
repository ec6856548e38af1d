//! Owns what a reload asks for, whom it concerns, and the account of each session.

use std::time::Duration;

use crate::lease::book::{Entry, Pin};
use crate::lease::id::Moment;
use crate::lease::policy::Verdict;
use crate::lease::state::LeaseState;

/// Which leases a reload concerns. An absent field matches every lease.
#[derive(Clone, Debug, Default)]
pub struct Selector {
    pub database: Option<String>,
    pub user: Option<String>,
    pub owner: Option<String>,
    pub application: Option<String>,
    /// The pid of the client's process.
    pub process: Option<u32>,
}

impl Selector {
    /// Whether the reload concerns this session.
    #[must_use]
    pub fn matches(&self, entry: &Entry) -> bool {
        let is = |wanted: &Option<String>, found: &str| {
            wanted.as_deref().is_none_or(|wanted| wanted == found)
        };
        is(&self.database, &entry.profile.database)
            && is(&self.user, &entry.profile.user)
            && is(&self.application, &entry.profile.application)
            && self
                .owner
                .as_deref()
                .is_none_or(|wanted| *entry.owner().0 == *wanted)
            && self.process.is_none_or(|pid| {
                entry
                    .process
                    .as_ref()
                    .is_some_and(|process| process.pid == pid)
            })
    }
}

/// What a reload does with sessions that are not at a quiet point.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Busy {
    /// Wait for their next quiet point, until the deadline.
    #[default]
    Wait,
    /// Leave them alone.
    Spare,
    /// Wait likewise; at the deadline cancel what they run, and take what is quiet then.
    Cancel,
    /// Wait likewise; at the deadline end them: what they run is cancelled, their transactions are rolled back.
    Close,
}

/// How leases are returned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Method {
    /// The session goes on, without a backend.
    #[default]
    Detach,
    /// The session ends with FATAL 57P01.
    Close,
}

impl Method {
    /// The word in every view.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Detach => "detach",
            Self::Close => "close",
        }
    }
}

/// What happens to a session that should be detached, and can't.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pinned {
    /// It keeps its backend.
    #[default]
    Spare,
    /// It is closed.
    Close,
}

/// What a reload is asked to do.
#[derive(Clone, Debug, Default)]
pub struct Wish {
    pub selector: Selector,
    /// Leases that have been idle for less are spared.
    pub min_idle: Duration,
    pub busy: Busy,
    pub method: Method,
    pub pinned: Pinned,
    /// Judge only: return nothing.
    pub dry_run: bool,
}

/// What became of one session in a reload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Its backend was given back; the reason says more, when there is more to say.
    Returned(Option<&'static str>),
    /// It rests in the app's pool.
    Resting,
    /// It was left alone, for this reason.
    Spared(&'static str),
    /// It was not at a quiet point, for this reason.
    Busy(&'static str),
    /// It can't be detached: these are the pins.
    Pinned(String),
    /// It ended meanwhile.
    Gone,
    /// No session has this id.
    Unknown,
}

impl Outcome {
    /// The glossary's word.
    #[must_use]
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Returned(_) => "returned",
            Self::Resting => "resting",
            Self::Spared(_) => "spared",
            Self::Busy(_) => "busy",
            Self::Pinned(_) => "pinned",
            Self::Gone => "gone",
            Self::Unknown => "unknown",
        }
    }

    /// What the word leaves open.
    #[must_use]
    pub fn reason(&self) -> Option<&str> {
        match self {
            Self::Returned(reason) => *reason,
            Self::Spared(reason) | Self::Busy(reason) => Some(reason),
            Self::Pinned(pins) => Some(pins),
            Self::Resting | Self::Gone | Self::Unknown => None,
        }
    }
}

/// What to do about one session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Triage {
    /// Nothing: this is its outcome.
    Account(Outcome),
    /// Ask it to return its lease; `quiet` tells whether it is at a quiet point now.
    Ask { quiet: bool },
}

/// Judges one session for a reload.
#[must_use]
pub fn triage(entry: &Entry, wish: &Wish, now: Moment) -> Triage {
    if entry.pins.contains(Pin::Replication) {
        return Triage::Account(Outcome::Pinned(entry.pins.words()));
    }
    match entry.verdict(now, Duration::MAX) {
        Verdict::None => Triage::Account(Outcome::Returned(Some("held no backend"))),
        Verdict::Active | Verdict::InTransaction => match wish.busy {
            Busy::Wait | Busy::Cancel | Busy::Close if !wish.dry_run => {
                Triage::Ask { quiet: false }
            }
            Busy::Wait | Busy::Cancel | Busy::Close | Busy::Spare => {
                Triage::Account(Outcome::Busy(busy_reason(entry)))
            }
        },
        Verdict::Resting => Triage::Account(Outcome::Resting),
        Verdict::Idle | Verdict::Parked(_) | Verdict::Pinned(_) => {
            if entry.idle(now) < wish.min_idle {
                Triage::Account(Outcome::Spared("idle for less than min_idle"))
            } else if wish.dry_run {
                Triage::Account(dry(entry))
            } else {
                Triage::Ask { quiet: true }
            }
        }
    }
}

/// The outcome of a session that isn't at a quiet point.
#[must_use]
pub fn busy(entry: &Entry) -> Outcome {
    Outcome::Busy(busy_reason(entry))
}

/// Why a session that isn't at a quiet point is busy.
#[must_use]
fn busy_reason(entry: &Entry) -> &'static str {
    match entry.state {
        LeaseState::InTransaction { .. } => "in a transaction",
        LeaseState::Returning { .. } | LeaseState::Idle { .. } => "its return is still under way",
        LeaseState::Active { .. } | LeaseState::Ended { .. } => "a request is unanswered",
    }
}

fn dry(entry: &Entry) -> Outcome {
    if entry.pins.is_empty() {
        Outcome::Returned(Some("would be"))
    } else {
        Outcome::Pinned(entry.pins.words())
    }
}
