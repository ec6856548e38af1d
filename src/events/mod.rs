//! Owns what happened: events that people and programs may follow, and the way from a data thread to whoever keeps them.
//!
//! Refuses to make a data thread wait: an event that finds no room is counted, and the count is told as a gap.

mod hub;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use serde::Serialize;
use tokio::sync::mpsc;

use crate::view::LeaseView;

pub use hub::{Desk, Event, EventId, Hub, Refused, Subscription};

/// How many events may be on their way from the data threads.
const ON_THE_WAY: usize = 4096;

/// What kind of event it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    LeaseParked,
    LeaseUnparked,
    LeaseReturned,
    LeasePinned,
    OwnerDeclared,
    OwnerClaimed,
    OwnerRefused,
    ReloadBegan,
    ReloadEnded,
    SessionReaped,
    BackendLost,
    BackendRefused,
    BackendRecovered,
    BackendReplaced,
    PoolExhausted,
    /// Events were lost: told to everybody, whatever they asked for.
    Gap,
}

impl Kind {
    /// Every kind, in the order of its bit.
    pub const ALL: [Self; 16] = [
        Self::LeaseParked,
        Self::LeaseUnparked,
        Self::LeaseReturned,
        Self::LeasePinned,
        Self::OwnerDeclared,
        Self::OwnerClaimed,
        Self::OwnerRefused,
        Self::ReloadBegan,
        Self::ReloadEnded,
        Self::SessionReaped,
        Self::BackendLost,
        Self::BackendRefused,
        Self::BackendRecovered,
        Self::BackendReplaced,
        Self::PoolExhausted,
        Self::Gap,
    ];

    /// Its name: `lease.parked` and so on.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::LeaseParked => "lease.parked",
            Self::LeaseUnparked => "lease.unparked",
            Self::LeaseReturned => "lease.returned",
            Self::LeasePinned => "lease.pinned",
            Self::OwnerDeclared => "owner.declared",
            Self::OwnerClaimed => "owner.claimed",
            Self::OwnerRefused => "owner.refused",
            Self::ReloadBegan => "reload.began",
            Self::ReloadEnded => "reload.ended",
            Self::SessionReaped => "session.reaped",
            Self::BackendLost => "backend.lost",
            Self::BackendRefused => "backend.refused",
            Self::BackendRecovered => "backend.recovered",
            Self::BackendReplaced => "backend.replaced",
            Self::PoolExhausted => "pool.exhausted",
            Self::Gap => "gap",
        }
    }

    const fn bit(self) -> u32 {
        1 << self as u32
    }
}

/// A set of kinds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kinds(u32);

impl Kinds {
    /// Every kind.
    pub const ALL: Self = Self(u32::MAX);

    /// The kinds that a list such as `lease,reload.ended` names: by their names, or by what stands before the dot.
    ///
    /// # Errors
    /// The first word that names none.
    pub fn read(list: &str) -> Result<Self, String> {
        let mut set = Kind::Gap.bit();
        for word in list.split(',').map(str::trim) {
            let named = Kind::ALL.iter().filter(|kind| {
                let name = kind.word();
                name == word || name.split_once('.').is_some_and(|(class, _)| class == word)
            });
            let bits = named.fold(0, |bits, kind| bits | kind.bit());
            if bits == 0 {
                return Err(word.to_owned());
            }
            set |= bits;
        }
        Ok(Self(set))
    }

    /// Whether it is one of them.
    #[must_use]
    pub const fn has(self, kind: Kind) -> bool {
        self.0 & kind.bit() != 0
    }
}

/// What happened, with what is told of it.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub enum Happening {
    /// A lease is idle for `park_after`.
    Parked(Box<LeaseView>),
    /// A parked lease isn't any more: its owner went on, gave it back, or left.
    Unparked {
        session: u32,
        owner: String,
        /// How long it had been idle, as text.
        idle: String,
        idle_seconds: f64,
        /// What it is now: a lease's state, or `gone`.
        state: &'static str,
    },
    /// A lease was returned, other than by its session's own doing.
    Returned {
        cause: &'static str,
        method: &'static str,
        #[serde(flatten)]
        lease: Box<LeaseView>,
    },
    /// A return was asked for, and refused by these pins.
    Pinned(Box<LeaseView>),
    /// A session said over SQL who holds it. Told only while somebody listens.
    Declared {
        session: u32,
        owner: Option<String>,
        state: &'static str,
    },
    /// The app's pool sent its table.
    Claimed {
        source: Option<String>,
        accepted: usize,
        unknown: usize,
        owners: Vec<String>,
    },
    /// A rule refused an owner a lease.
    Refused {
        rule: String,
        session: u32,
        owner: String,
        sqlstate: &'static str,
    },
    ReloadBegan {
        id: String,
        dry_run: bool,
        fence: bool,
        deadline: Option<String>,
        /// Which instance of the fleet asked, where another did.
        from: Option<String>,
    },
    ReloadEnded {
        id: String,
        generation: u64,
        took: String,
        took_seconds: f64,
        counts: std::collections::BTreeMap<&'static str, usize>,
    },
    Reaped {
        session: u32,
        owner: String,
        outcome: &'static str,
        reason: String,
    },
    /// A session's backend was lost.
    BackendLost {
        database: String,
        user: String,
        backend: Option<u32>,
        session: Option<u32>,
    },
    /// A backend could not be opened.
    BackendRefused {
        database: String,
        user: String,
        sqlstate: String,
        message: String,
    },
    /// A backend could be opened again.
    BackendRecovered {
        database: String,
        user: String,
        failures: u32,
    },
    /// One that was found dead was replaced.
    BackendReplaced {
        database: String,
        user: String,
        backend: u32,
        by: u32,
    },
    /// A session found no backend within `acquire_timeout`.
    Exhausted {
        database: String,
        user: String,
        backends: usize,
        session: Option<u32>,
    },
    /// So many events were lost, since they came too fast.
    Lost { lost: u64 },
}

impl Happening {
    /// Its kind.
    #[must_use]
    pub const fn kind(&self) -> Kind {
        match self {
            Self::Parked(_) => Kind::LeaseParked,
            Self::Unparked { .. } => Kind::LeaseUnparked,
            Self::Returned { .. } => Kind::LeaseReturned,
            Self::Pinned(_) => Kind::LeasePinned,
            Self::Declared { .. } => Kind::OwnerDeclared,
            Self::Claimed { .. } => Kind::OwnerClaimed,
            Self::Refused { .. } => Kind::OwnerRefused,
            Self::ReloadBegan { .. } => Kind::ReloadBegan,
            Self::ReloadEnded { .. } => Kind::ReloadEnded,
            Self::Reaped { .. } => Kind::SessionReaped,
            Self::BackendLost { .. } => Kind::BackendLost,
            Self::BackendRefused { .. } => Kind::BackendRefused,
            Self::BackendRecovered { .. } => Kind::BackendRecovered,
            Self::BackendReplaced { .. } => Kind::BackendReplaced,
            Self::Exhausted { .. } => Kind::PoolExhausted,
            Self::Lost { .. } => Kind::Gap,
        }
    }

    /// What a fault is about, where many of the same are told as one: an outage must not push everything else out.
    fn subject(&self) -> Option<String> {
        match self {
            Self::BackendLost { database, user, .. }
            | Self::BackendRefused { database, user, .. }
            | Self::Exhausted { database, user, .. } => Some(format!("{database}\0{user}")),
            Self::Refused { rule, .. } => Some(rule.clone()),
            Self::Parked(_)
            | Self::Unparked { .. }
            | Self::Returned { .. }
            | Self::Pinned(_)
            | Self::Declared { .. }
            | Self::Claimed { .. }
            | Self::ReloadBegan { .. }
            | Self::ReloadEnded { .. }
            | Self::Reaped { .. }
            | Self::BackendRecovered { .. }
            | Self::BackendReplaced { .. }
            | Self::Lost { .. } => None,
        }
    }
}

/// Tells events. Clones tell the same hub.
#[derive(Clone, Debug)]
pub struct Events(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    sender: mpsc::Sender<Happening>,
    /// Events that found no room since the hub last looked.
    lost: AtomicU64,
    /// The kinds that somebody follows now.
    followed: AtomicU32,
}

/// What data threads tell, on its way to the hub.
#[derive(Debug)]
pub struct Told {
    receiver: mpsc::Receiver<Happening>,
    shared: Arc<Shared>,
}

/// The two ends of the way to the hub.
#[must_use]
pub fn channel() -> (Events, Told) {
    let (sender, receiver) = mpsc::channel(ON_THE_WAY);
    let shared = Arc::new(Shared {
        sender,
        lost: AtomicU64::new(0),
        followed: AtomicU32::new(0),
    });
    let told = Told {
        receiver,
        shared: shared.clone(),
    };
    (Events(shared), told)
}

impl Events {
    /// Tells what happened. Never waits.
    pub fn tell(&self, happening: Happening) {
        if self.0.sender.try_send(happening).is_err() {
            self.0.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Whether somebody follows this kind now: for what happens too often to be kept.
    #[must_use]
    pub fn are_followed(&self, kind: Kind) -> bool {
        self.0.followed.load(Ordering::Relaxed) & kind.bit() != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_named_one_by_one_or_by_class() {
        let kinds = Kinds::read("lease, reload.ended").unwrap();
        assert!(kinds.has(Kind::LeaseParked) && kinds.has(Kind::LeaseReturned));
        assert!(kinds.has(Kind::ReloadEnded) && !kinds.has(Kind::ReloadBegan));
        assert!(kinds.has(Kind::Gap), "a gap is always told");
        assert_eq!(Kinds::read("lease,leese"), Err("leese".to_owned()));
        assert_eq!(Kinds::read(""), Err(String::new()));
    }

    #[test]
    fn whoever_tells_never_waits_and_what_found_no_room_is_counted() {
        let (events, told) = channel();
        for _ in 0..ON_THE_WAY + 3 {
            events.tell(Happening::Lost { lost: 0 });
        }
        assert_eq!(told.shared.lost.load(Ordering::Relaxed), 3);
    }
}
