//! Owns the state machine of one lease: every transition stands in `LeaseState::step`.

use crate::lease::id::{BackendId, Moment};

/// What PostgreSQL said of the transaction in its last ReadyForQuery (protocol chapter 55.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// `I`: outside a transaction.
    Idle,
    /// `T`: in a transaction block.
    InTransaction,
    /// `E`: in a failed transaction block.
    Failed,
}

impl Status {
    /// Reads ReadyForQuery's status byte; `None` for a byte that the protocol doesn't know.
    #[must_use]
    pub const fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            b'I' => Some(Self::Idle),
            b'T' => Some(Self::InTransaction),
            b'E' => Some(Self::Failed),
            _ => None,
        }
    }

    /// ReadyForQuery's status byte.
    #[must_use]
    pub const fn as_byte(self) -> u8 {
        match self {
            Self::Idle => b'I',
            Self::InTransaction => b'T',
            Self::Failed => b'E',
        }
    }
}

/// The state of a session's lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseState {
    /// No lease: never taken yet, or returned.
    Ended { since: Moment },
    /// A request is unanswered.
    Active { backend: BackendId, since: Moment },
    /// Every request is answered, a transaction is open.
    InTransaction { backend: BackendId, since: Moment },
    /// At a quiet point.
    Idle { backend: BackendId, since: Moment },
    /// The session is giving the backend back; `since` is when it became idle.
    Returning { backend: BackendId, since: Moment },
}

/// What happens to a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The pool lent this backend.
    Granted(BackendId),
    /// The client sent a request.
    Requested,
    /// Every request is answered, with this status.
    Ready(Status),
    /// The session began to give the backend back.
    ReturnBegan,
    /// The backend holds something that can't be moved: the lease goes on.
    ReturnRefused,
    /// The backend is back in the pool, or closed.
    Returned,
}

/// An event that can't happen in this state: a defect of pgvalet, never of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a lease in state {from:?} can't take {event:?}")]
pub struct IllegalTransition {
    pub from: LeaseState,
    pub event: Event,
}

impl LeaseState {
    /// The next state, or why there is none. All transitions of a lease are here.
    pub fn step(self, event: Event, now: Moment) -> Result<Self, IllegalTransition> {
        let illegal = Err(IllegalTransition { from: self, event });
        match self {
            Self::Ended { .. } => match event {
                Event::Granted(backend) => Ok(Self::Active {
                    backend,
                    since: now,
                }),
                Event::Requested
                | Event::Ready(_)
                | Event::ReturnBegan
                | Event::ReturnRefused
                | Event::Returned => illegal,
            },
            Self::Active { backend, .. } => match event {
                Event::Requested => Ok(self),
                Event::Ready(status) => Ok(Self::rest(backend, status, now)),
                Event::Returned => Ok(Self::Ended { since: now }),
                Event::Granted(_) | Event::ReturnBegan | Event::ReturnRefused => illegal,
            },
            Self::InTransaction { backend, .. } => match event {
                Event::Requested => Ok(Self::Active {
                    backend,
                    since: now,
                }),
                Event::Ready(status) => Ok(Self::rest(backend, status, now)),
                Event::Returned => Ok(Self::Ended { since: now }),
                Event::Granted(_) | Event::ReturnBegan | Event::ReturnRefused => illegal,
            },
            Self::Idle { backend, since } => match event {
                Event::Requested => Ok(Self::Active {
                    backend,
                    since: now,
                }),
                Event::Ready(status) => Ok(Self::rest(backend, status, now)),
                Event::ReturnBegan => Ok(Self::Returning { backend, since }),
                Event::Returned => Ok(Self::Ended { since: now }),
                Event::Granted(_) | Event::ReturnRefused => illegal,
            },
            Self::Returning { backend, since } => match event {
                Event::ReturnRefused => Ok(Self::Idle { backend, since }),
                Event::Returned => Ok(Self::Ended { since: now }),
                Event::Granted(_) | Event::Requested | Event::Ready(_) | Event::ReturnBegan => {
                    illegal
                }
            },
        }
    }

    const fn rest(backend: BackendId, status: Status, now: Moment) -> Self {
        match status {
            Status::Idle => Self::Idle {
                backend,
                since: now,
            },
            Status::InTransaction | Status::Failed => Self::InTransaction {
                backend,
                since: now,
            },
        }
    }

    /// The backend that is held, if any.
    #[must_use]
    pub const fn backend(self) -> Option<BackendId> {
        match self {
            Self::Ended { .. } => None,
            Self::Active { backend, .. }
            | Self::InTransaction { backend, .. }
            | Self::Idle { backend, .. }
            | Self::Returning { backend, .. } => Some(backend),
        }
    }

    /// When this state began; for Returning, when the lease became idle.
    #[must_use]
    pub const fn since(self) -> Moment {
        match self {
            Self::Ended { since }
            | Self::Active { since, .. }
            | Self::InTransaction { since, .. }
            | Self::Idle { since, .. }
            | Self::Returning { since, .. } => since,
        }
    }

    /// The glossary's word for it.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Ended { .. } => "none",
            Self::Active { .. } => "active",
            Self::InTransaction { .. } => "in_transaction",
            Self::Idle { .. } => "idle",
            Self::Returning { .. } => "returning",
        }
    }
}

/// Why a lease is returned: the `reason` label of `pgvalet_returns_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The client disconnected, or its transaction ended.
    Voluntary,
    /// It was parked for longer than `return_after`.
    Parked,
    /// A call asked for it.
    Forced,
    Reload,
    /// The backend was lost.
    Lost,
    /// pgvalet is shutting down.
    Drained,
}

impl Cause {
    /// Every cause, in the order of its number.
    pub const ALL: [Self; 6] = [
        Self::Voluntary,
        Self::Parked,
        Self::Forced,
        Self::Reload,
        Self::Lost,
        Self::Drained,
    ];

    /// The word in every view.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Voluntary => "voluntary",
            Self::Parked => "parked",
            Self::Forced => "forced",
            Self::Reload => "reload",
            Self::Lost => "lost",
            Self::Drained => "drained",
        }
    }
}
