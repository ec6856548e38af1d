//! Owns the verdicts: what pgvalet thinks of a lease at a moment.

use std::time::Duration;

use crate::lease::book::{ClaimState, Pins};
use crate::lease::id::Moment;
use crate::lease::state::LeaseState;

/// What a parked verdict rests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Basis {
    /// The app claims that an owner holds the session.
    Declared,
    /// Nobody said anything of it.
    Inferred,
}

impl Basis {
    /// The word in every view.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Declared => "declared",
            Self::Inferred => "inferred",
        }
    }
}

/// What pgvalet thinks of a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// There is no lease.
    None,
    Active,
    InTransaction,
    /// At a quiet point, for less than `park_after`.
    Idle,
    /// Idle, and resting in the app's pool: never parked.
    Resting,
    /// Idle for at least `park_after`, held or unclaimed; inside a transaction, too.
    Parked(Basis),
    /// Idle for at least `park_after`, and known to be pinned.
    Pinned(Pins),
}

impl Verdict {
    /// Whether it is parked, pinned or not.
    #[must_use]
    pub const fn is_parked(self) -> bool {
        match self {
            Self::Parked(_) | Self::Pinned(_) => true,
            Self::None | Self::Active | Self::InTransaction | Self::Idle | Self::Resting => false,
        }
    }

    /// The glossary's word.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Active => "active",
            Self::InTransaction => "in_transaction",
            Self::Idle => "idle",
            Self::Resting => "resting",
            Self::Parked(_) => "parked",
            Self::Pinned(_) => "pinned",
        }
    }
}

/// Judges a lease in `state`, with the app's `claim` on it, if any.
#[must_use]
pub fn verdict(
    state: LeaseState,
    claim: Option<ClaimState>,
    pins: Pins,
    now: Moment,
    park_after: Duration,
) -> Verdict {
    let since = match state {
        LeaseState::Ended { .. } => return Verdict::None,
        LeaseState::Active { .. } => return Verdict::Active,
        LeaseState::InTransaction { since, .. }
        | LeaseState::Idle { since, .. }
        | LeaseState::Returning { since, .. } => since,
    };
    let in_transaction = matches!(state, LeaseState::InTransaction { .. });
    let basis = match claim {
        Some(ClaimState::Resting) if in_transaction => return Verdict::InTransaction,
        Some(ClaimState::Resting) => return Verdict::Resting,
        Some(ClaimState::Held) => Basis::Declared,
        None => Basis::Inferred,
    };
    if now.since(since) < park_after {
        if in_transaction {
            Verdict::InTransaction
        } else {
            Verdict::Idle
        }
    } else if in_transaction || pins.is_empty() {
        Verdict::Parked(basis)
    } else {
        Verdict::Pinned(pins)
    }
}
