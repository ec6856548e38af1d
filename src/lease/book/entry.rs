//! Owns what the book knows of one session: its lease, its claim, its pins, and its last statement.

use core::net::SocketAddr;
use std::fmt;
use std::rc::Rc;
use std::time::Duration;

use crate::lease::book::Declared;
use crate::lease::id::{Generation, Moment, SessionId};
use crate::lease::policy::{self, Verdict};
use crate::lease::state::LeaseState;

/// Who a session is, as its startup packet and its socket say.
#[derive(Clone, Debug)]
pub struct Profile {
    pub database: Rc<str>,
    pub user: Rc<str>,
    /// `application_name` as last reported; empty when it has none.
    pub application: Rc<str>,
    pub client: ClientAddress,
}

/// Where a client is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientAddress {
    Tcp(SocketAddr),
    Unix,
}

impl fmt::Display for ClientAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix => f.write_str("unix"),
        }
    }
}

/// The client's process, where the machine can tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// As this machine counts.
    pub pid: u32,
    /// When it began, in the kernel's ticks since boot, so that a pid that is used again isn't mistaken; 0 where nobody
    /// knows.
    pub started: u64,
    /// Its command line, cut to a readable length.
    pub command: String,
}

/// Whether the app says that somebody holds a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClaimState {
    /// Held by an owner.
    Held,
    /// Resting in the app's pool.
    Resting,
}

/// The app's own word on a session.
#[derive(Clone, Debug)]
pub struct Claim {
    /// Who holds it; `None` when it rests, or when the app didn't say.
    pub owner: Option<Rc<str>>,
    pub state: ClaimState,
    /// Since when the owner holds it.
    pub since: Option<Moment>,
    /// Where in its code the owner is now.
    pub place: Option<Rc<str>>,
    /// Which process sent the claim, when it said so.
    pub source: Option<Rc<str>>,
}

/// What an owner's name rests on, strongest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Evidence {
    /// A claim over HTTP.
    Claim,
    /// `SET pgvalet.owner`.
    Sql,
    /// The startup option `pgvalet.owner`.
    Startup,
    /// A tag in a comment of the last statement.
    Comment,
    /// `application_name`.
    ApplicationName,
    /// The client's process.
    Process,
    /// Nothing is known.
    None,
}

impl Evidence {
    /// The word in every view.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Claim => "claim",
            Self::Sql => "sql",
            Self::Startup => "startup",
            Self::Comment => "comment",
            Self::ApplicationName => "application_name",
            Self::Process => "process",
            Self::None => "none",
        }
    }
}

/// Why a session can't be detached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pin {
    Temp,
    AdvisoryLock,
    Listen,
    Cursor,
    SessionAuthorization,
    /// SQL `PREPARE`.
    Prepare,
    UnreadableSetting,
    Replication,
    Load,
    Setseed,
    Explicit,
    /// A prepared statement that is too large to be kept.
    PrepareLarge,
    /// The probe of the backend failed, or said something that nobody expected.
    ProbeFailed,
    /// It can't be told whether every request is answered.
    Ambiguous,
    /// SQL `PREPARE` in a text of several statements.
    PrepareMulti,
    /// A setting that only superusers may make, of a session whose login isn't one.
    SuperuserSetting,
}

impl Pin {
    /// Every pin, in the order of its bit.
    pub const ALL: [Self; 16] = [
        Self::Temp,
        Self::AdvisoryLock,
        Self::Listen,
        Self::Cursor,
        Self::SessionAuthorization,
        Self::Prepare,
        Self::UnreadableSetting,
        Self::Replication,
        Self::Load,
        Self::Setseed,
        Self::Explicit,
        Self::PrepareLarge,
        Self::ProbeFailed,
        Self::Ambiguous,
        Self::PrepareMulti,
        Self::SuperuserSetting,
    ];

    /// The word in every view.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Temp => "temp",
            Self::AdvisoryLock => "advisory_lock",
            Self::Listen => "listen",
            Self::Cursor => "cursor",
            Self::SessionAuthorization => "session_authorization",
            Self::Prepare => "prepare",
            Self::UnreadableSetting => "unreadable_setting",
            Self::Replication => "replication",
            Self::Load => "load",
            Self::Setseed => "setseed",
            Self::Explicit => "explicit",
            Self::PrepareLarge => "prepare_large",
            Self::ProbeFailed => "probe_failed",
            Self::Ambiguous => "ambiguous",
            Self::PrepareMulti => "prepare_multi",
            Self::SuperuserSetting => "superuser_setting",
        }
    }
}

/// A set of pins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pins(u16);

impl Pins {
    /// Adds one.
    pub const fn add(&mut self, pin: Pin) {
        self.0 |= 1 << pin as u16;
    }

    /// Takes one out.
    pub const fn remove(&mut self, pin: Pin) {
        self.0 &= !(1 << pin as u16);
    }

    /// Whether it is among them.
    #[must_use]
    pub const fn contains(self, pin: Pin) -> bool {
        self.0 & (1 << pin as u16) != 0
    }

    /// Those that the next request can't end: nothing does, or the client takes them back.
    #[must_use]
    pub const fn lasting(self) -> Self {
        Self(self.0 & (1 << Pin::Replication as u16 | 1 << Pin::Explicit as u16))
    }

    /// The pins of both.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Each pin, in a fixed order.
    pub fn iter(self) -> impl Iterator<Item = Pin> {
        Pin::ALL.into_iter().filter(move |pin| self.contains(*pin))
    }

    /// The words, parted by commas.
    #[must_use]
    pub fn words(self) -> String {
        self.iter().map(Pin::word).collect::<Vec<_>>().join(", ")
    }
}

impl FromIterator<Pin> for Pins {
    fn from_iter<I: IntoIterator<Item = Pin>>(pins: I) -> Self {
        let mut set = Self::default();
        for pin in pins {
            set.add(pin);
        }
        set
    }
}

/// The text of the last statement, as the client sent it: views remove the literals.
#[derive(Clone, Debug, Default)]
pub enum LastStatement {
    #[default]
    None,
    /// The beginning of a text that the session keeps for itself; behind it, from `KEPT` on, the end of a longer one
    /// whose last words are a comment.
    Text(Vec<u8>),
    /// The text of a prepared statement, shared with it.
    Prepared(Rc<[u8]>),
}

impl LastStatement {
    /// How much of a text is kept, in bytes.
    pub const KEPT: usize = 512;

    /// How much of the end of a longer text is kept, in bytes.
    const END: usize = 256;

    /// Keeps what people want to see of `text`, in the memory that is already there.
    pub fn set(&mut self, text: &[u8]) {
        let (head, rest) = text.split_at(text.len().min(Self::KEPT));
        let commented = !rest.is_empty() && text.trim_ascii_end().ends_with(b"*/");
        let end = if commented {
            &rest[rest.len().saturating_sub(Self::END)..]
        } else {
            &[]
        };
        match self {
            Self::Text(kept) => kept.clear(),
            Self::None | Self::Prepared(_) => *self = Self::Text(Vec::with_capacity(head.len())),
        }
        if let Self::Text(kept) = self {
            kept.extend_from_slice(head);
            kept.extend_from_slice(end);
        }
    }

    /// The beginning of the text, if there is one.
    #[must_use]
    pub fn text(&self) -> Option<&[u8]> {
        match self {
            Self::None => None,
            Self::Text(text) => Some(&text[..text.len().min(Self::KEPT)]),
            Self::Prepared(text) => Some(text),
        }
    }

    /// The end of the text, as far as it is kept.
    #[must_use]
    pub fn end(&self) -> Option<&[u8]> {
        match self {
            Self::None => None,
            Self::Text(text) if text.len() > Self::KEPT => Some(&text[Self::KEPT..]),
            Self::Text(text) => Some(text),
            Self::Prepared(text) => Some(text),
        }
    }
}

/// One session and its lease.
#[derive(Debug)]
pub struct Entry {
    pub id: SessionId,
    pub profile: Profile,
    /// When the session began.
    pub opened: Moment,
    pub state: LeaseState,
    /// The generation that the lease began in.
    pub generation: Generation,
    /// The app's word over HTTP.
    pub claim: Option<Box<Claim>>,
    /// The session's own word.
    pub declared: Option<Box<Declared>>,
    pub process: Option<Rc<Process>>,
    /// Why the lease can't be detached, as last found out.
    pub pins: Pins,
    /// Only PostgreSQL can tell what state the session has, and wasn't asked since it rests.
    pub unasked: bool,
    pub statement: LastStatement,
}

impl Entry {
    pub(super) fn new(
        id: SessionId,
        profile: Profile,
        generation: Generation,
        now: Moment,
    ) -> Self {
        Self {
            id,
            profile,
            opened: now,
            state: LeaseState::Ended { since: now },
            generation,
            claim: None,
            declared: None,
            process: None,
            pins: Pins::default(),
            unasked: false,
            statement: LastStatement::None,
        }
    }

    /// The verdict on the lease at `now`.
    #[must_use]
    pub fn verdict(&self, now: Moment, park_after: Duration) -> Verdict {
        let claim = self.standing_claim().map(|claim| claim.state);
        policy::verdict(self.state, claim, self.pins, now, park_after)
    }

    /// How long the session has been idle; zero while it is active.
    #[must_use]
    pub fn idle(&self, now: Moment) -> Duration {
        match self.state {
            LeaseState::Active { .. } => Duration::ZERO,
            LeaseState::Ended { since }
            | LeaseState::InTransaction { since, .. }
            | LeaseState::Idle { since, .. }
            | LeaseState::Returning { since, .. } => now.since(since),
        }
    }
}
