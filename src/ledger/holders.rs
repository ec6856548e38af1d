//! Owns the account of who has held each backend: by it, a notification tells its client which session sent it.
//!
//! Refuses to guess: where a backend has changed hands since the listener took its own, its process id stays PostgreSQL's.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::{Rc, Weak};

use super::CancelTarget;
use crate::lease::{Moment, SessionId};

/// How many backends are known before those that are closed are struck out.
const MANY: usize = 256;

/// Who has a backend, or had it last.
#[derive(Clone, Copy, Debug)]
pub struct Held {
    session: SessionId,
    since: Moment,
    /// When it gave the backend back.
    until: Option<Moment>,
    /// When somebody else gave it back before, if anybody had it.
    other_until: Option<Moment>,
}

/// The backends that sessions of this data thread have held, by the process id of PostgreSQL's.
#[derive(Debug, Default)]
pub struct Holders(RefCell<HashMap<u32, Weak<CancelTarget>>>);

impl Holders {
    /// `session` has this backend from `now` on.
    pub fn took(&self, backend: &Rc<CancelTarget>, session: SessionId, now: Moment) {
        let before = backend.held.get();
        let held = match before {
            Some(held) if held.session == session => Held {
                until: None,
                ..held
            },
            Some(_) | None => Held {
                session,
                since: now,
                until: None,
                other_until: before.map(|held| held.until.unwrap_or(now)),
            },
        };
        backend.held.set(Some(held));
        if before.is_none() {
            let mut known = self.0.borrow_mut();
            if known.len() >= MANY.max(known.capacity() / 2) {
                known.retain(|_, backend| backend.strong_count() > 0);
            }
            known.insert(backend.key.pid, Rc::downgrade(backend));
        }
    }

    /// Who sent what a listener on the backend `own` hears of process id `pid`.
    #[must_use]
    pub fn sender(&self, pid: u32, own: &CancelTarget) -> Option<SessionId> {
        let listener = own.held.get()?;
        if own.key.pid == pid {
            return Some(listener.session);
        }
        let sender = self.0.borrow().get(&pid)?.upgrade()?;
        let held = sender.held.get()?;
        // Nothing is heard from before the listener had its backend: LISTEN pins.
        let alone = held.other_until.is_none_or(|until| until < listener.since);
        (alone && sender.spot == own.spot).then_some(held.session)
    }
}

/// The session gave this backend back.
pub fn left(backend: &CancelTarget, now: Moment) {
    if let Some(held) = backend.held.get() {
        backend.held.set(Some(Held {
            until: Some(now),
            ..held
        }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::stream::Spot;
    use crate::wire::startup::CancelKey;

    fn backend(pid: u32, host: usize) -> Rc<CancelTarget> {
        Rc::new(CancelTarget {
            key: CancelKey {
                pid,
                secret: Box::default(),
            },
            born: Moment::default(),
            local: None,
            encrypted: false,
            spot: Spot {
                host,
                address: None,
            },
            in_flight: std::cell::Cell::new(0),
            held: std::cell::Cell::new(None),
        })
    }

    const ONE: SessionId = SessionId::new(10_000_001);
    const TWO: SessionId = SessionId::new(10_000_002);
    const LISTENER: SessionId = SessionId::new(10_000_003);

    fn at(micros: u64) -> Moment {
        Moment::from_micros(micros)
    }

    #[test]
    fn a_sender_is_known_who_was_alone_on_its_backend_as_long_as_anybody_listened() {
        let holders = Holders::default();
        let (own, other) = (backend(1, 0), backend(2, 0));
        holders.took(&other, ONE, at(1));
        left(&other, at(2));
        holders.took(&own, LISTENER, at(3));
        holders.took(&other, TWO, at(4));
        assert_eq!(holders.sender(2, &own), Some(TWO));
        left(&other, at(5));
        assert_eq!(holders.sender(2, &own), Some(TWO));
        holders.took(&other, ONE, at(6));
        assert_eq!(holders.sender(2, &own), None, "one or two");
        assert_eq!(holders.sender(1, &own), Some(LISTENER));
        assert_eq!(holders.sender(3, &own), None, "a stranger");
    }

    #[test]
    fn a_process_of_another_host_or_of_a_closed_backend_is_nobody() {
        let holders = Holders::default();
        let (own, far, closed) = (backend(1, 0), backend(2, 1), backend(3, 0));
        for (backend, session) in [(&own, LISTENER), (&far, ONE), (&closed, TWO)] {
            holders.took(backend, session, at(1));
        }
        assert_eq!(holders.sender(3, &own), Some(TWO));
        drop(closed);
        assert_eq!(
            [holders.sender(2, &own), holders.sender(3, &own)],
            [None, None]
        );
    }
}
