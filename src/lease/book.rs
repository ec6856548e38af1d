//! Owns the book of leases of one data thread: one entry a session, and who holds which backend.
//!
//! Refuses to lend a backend twice, and to skip a transition: both come back as errors, and change nothing.

use std::collections::HashMap;
use std::hash::BuildHasherDefault;
use std::ops::Range;
use std::rc::Rc;

use crate::lease::history::Sight;
use crate::lease::id::{BackendId, Generation, IdHasher, Moment, SessionId};
use crate::lease::rules::{self, Due, Policies};
use crate::lease::state::{Event, IllegalTransition, LeaseState};

mod declared;
mod entry;
#[cfg(test)]
mod tests;

pub use declared::Declared;
pub use entry::{
    Claim, ClaimState, ClientAddress, Entry, Evidence, LastStatement, Pin, Pins, Process, Profile,
};

/// Where a session's entry stands. Valid from `open` to `close`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot(u32);

impl Slot {
    /// Its number: small, and used again by a later session.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// Why the book refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BookError {
    #[error(transparent)]
    Illegal(#[from] IllegalTransition),
    #[error("backend {0:?} is held by another session")]
    Held(BackendId),
}

/// Every session of one data thread, with its lease.
#[derive(Debug, Default)]
pub struct Book {
    entries: Vec<Option<Entry>>,
    free: Vec<u32>,
    by_id: HashMap<SessionId, Slot, BuildHasherDefault<IdHasher>>,
    holders: HashMap<BackendId, Slot, BuildHasherDefault<IdHasher>>,
    generation: Generation,
    /// By slot: of a parked lease that was looked at, until when nothing happens to it by itself. The first moment for all
    /// others, and for those that were touched since.
    calm: Vec<Moment>,
    /// The sessions of which that was so until they were touched.
    stirred: Vec<SessionId>,
}

impl Book {
    /// Enters a session without a lease.
    pub fn open(&mut self, id: SessionId, profile: Profile, now: Moment) -> Slot {
        let entry = Entry::new(id, profile, self.generation, now);
        let slot = if let Some(index) = self.free.pop() {
            self.entries[index as usize] = Some(entry);
            Slot(index)
        } else {
            self.entries.push(Some(entry));
            self.calm.push(Moment::default());
            Slot(u32::try_from(self.entries.len() - 1).expect("max_sessions is far below 2^32"))
        };
        self.by_id.insert(id, slot);
        slot
    }

    /// Strikes a session out. Its backend, if it holds one, is free for others from here on.
    pub fn close(&mut self, slot: Slot) {
        self.stir(slot);
        if let Some(entry) = self.entries[slot.0 as usize].take() {
            if let Some(backend) = entry.state.backend() {
                self.holders.remove(&backend);
            }
            self.by_id.remove(&entry.id);
            self.free.push(slot.0);
        }
    }

    /// Takes one transition of a session's lease.
    ///
    /// # Errors
    /// A transition that the state machine doesn't know, and a backend that another session holds.
    pub fn step(&mut self, slot: Slot, event: Event, now: Moment) -> Result<LeaseState, BookError> {
        if let Event::Granted(backend) = event
            && self
                .holders
                .get(&backend)
                .is_some_and(|holder| *holder != slot)
        {
            return Err(BookError::Held(backend));
        }
        let generation = self.generation;
        let entry = self.entry_mut(slot);
        let before = entry.state;
        let after = before.step(event, now)?;
        entry.state = after;
        match event {
            Event::Granted(backend) => {
                entry.generation = generation;
                self.holders.insert(backend, slot);
            }
            Event::Returned => {
                entry.pins = Pins::default();
                if let Some(backend) = before.backend() {
                    self.holders.remove(&backend);
                }
            }
            Event::Requested | Event::Ready(_) | Event::ReturnBegan | Event::ReturnRefused => {}
        }
        Ok(after)
    }

    /// Makes room for so many sessions. Memory that nobody touches costs nothing; a table that grows leaves its old place
    /// behind, which does.
    pub fn make_room(&mut self, sessions: usize) {
        self.entries.reserve(sessions);
        self.calm.reserve(sessions);
    }

    /// The session with this id.
    #[must_use]
    pub fn find(&self, id: SessionId) -> Option<Slot> {
        self.by_id.get(&id).copied()
    }

    /// The entry at `slot`.
    ///
    /// # Panics
    /// If the session was struck out: a slot never outlives its session's task.
    #[must_use]
    pub fn entry(&self, slot: Slot) -> &Entry {
        self.entries[slot.0 as usize]
            .as_ref()
            .expect("a slot lives as long as its session")
    }

    /// The entry at `slot`, to be changed.
    ///
    /// # Panics
    /// As [`Book::entry`].
    #[inline]
    pub fn entry_mut(&mut self, slot: Slot) -> &mut Entry {
        self.stir(slot);
        self.entries[slot.0 as usize]
            .as_mut()
            .expect("a slot lives as long as its session")
    }

    /// Something is about to change: whoever looks at leases looks at this one again.
    #[inline]
    fn stir(&mut self, slot: Slot) {
        if std::mem::take(&mut self.calm[slot.index()]) != Moment::default() {
            let id = self.entries[slot.index()].as_ref().map(|entry| entry.id);
            self.stirred.extend(id);
        }
    }

    /// The lease at `slot` was looked at, and is parked: nothing happens to it by itself until then.
    pub fn settle(&mut self, slot: Slot, until: Moment) {
        self.calm[slot.index()] = until;
    }

    /// The sessions that were settled and have been touched since, or are gone.
    pub fn take_stirred(&mut self) -> Vec<SessionId> {
        std::mem::take(&mut self.stirred)
    }

    /// Every session, in no order.
    pub fn entries(&self) -> impl Iterator<Item = (Slot, &Entry)> {
        self.entries
            .iter()
            .enumerate()
            .filter_map(|(index, entry)| Some((Slot(u32::try_from(index).ok()?), entry.as_ref()?)))
    }

    /// How many places there are, empty ones included.
    #[must_use]
    pub fn places(&self) -> usize {
        self.entries.len()
    }

    /// The sessions at some of the places, empty ones left out.
    pub fn entries_at(&self, places: Range<usize>) -> impl Iterator<Item = &Entry> {
        self.entries[places].iter().flatten()
    }

    /// The id of every session, in no order.
    #[must_use]
    pub fn ids(&self) -> Vec<SessionId> {
        self.by_id.keys().copied().collect()
    }

    /// How many sessions there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Whether there is no session.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    /// The count of reloads so far.
    #[must_use]
    pub const fn generation(&self) -> Generation {
        self.generation
    }

    /// Begins the generation of a new reload.
    pub const fn raise_generation(&mut self) -> Generation {
        self.generation = self.generation.next();
        self.generation
    }

    /// Replaces every claim that `source` made by `claims`. Ids without a session come back.
    pub fn claim(
        &mut self,
        source: Option<&Rc<str>>,
        claims: Vec<(SessionId, Claim)>,
    ) -> Vec<SessionId> {
        if let Some(source) = source {
            let claims = |(_, entry): &(Slot, &Entry)| {
                let claim = entry.claim.as_ref();
                claim.is_some_and(|claim| claim.source.as_ref() == Some(source))
            };
            let claimed: Vec<Slot> = self
                .entries()
                .filter(claims)
                .map(|(slot, _)| slot)
                .collect();
            for slot in claimed {
                self.entry_mut(slot).claim = None;
            }
        }
        let mut unknown = Vec::new();
        for (id, claim) in claims {
            match self.find(id) {
                Some(slot) => self.entry_mut(slot).claim = Some(Box::new(claim)),
                None => unknown.push(id),
            }
        }
        unknown
    }

    /// Where the sessions are that hold a backend, and may be due something by the rules.
    #[must_use]
    pub fn ripe(&self, now: Moment) -> Vec<Slot> {
        let ripe = |slot: &Slot| now >= self.calm[slot.index()];
        self.holders.values().copied().filter(ripe).collect()
    }

    /// What is due by the rules for the sessions at these places that are parked: what the sweep orders. A place may be
    /// empty by now.
    #[must_use]
    pub fn overdue(
        &self,
        places: &[Slot],
        now: Moment,
        policies: &Policies<'_>,
    ) -> Vec<(SessionId, Due)> {
        let soonest = policies.soonest();
        let entries = places.iter().filter_map(|slot| self.at(*slot));
        let ripe = entries.filter(|entry| now.since(entry.state.since()) >= soonest);
        ripe.filter_map(|entry| {
            let policy = policies.of(entry);
            let parked = entry.verdict(now, policy.park_after).is_parked();
            let due = rules::due(entry, policy, now).filter(|_| parked)?;
            Some((entry.id, due))
        })
        .collect()
    }

    fn at(&self, slot: Slot) -> Option<&Entry> {
        self.entries.get(slot.index())?.as_ref()
    }

    /// Where the sessions are that hold a backend, but for those of which is known that they are parked.
    #[must_use]
    pub fn restless(&self) -> Vec<Slot> {
        let restless = |slot: &Slot| self.calm[slot.index()] == Moment::default();
        self.holders.values().copied().filter(restless).collect()
    }

    /// Which of the sessions at these places hold a lease that is parked now, and until when nothing happens to it by
    /// itself. A place may be empty by now.
    pub fn parked(
        &self,
        places: &[Slot],
        now: Moment,
        policies: &Policies<'_>,
    ) -> impl Iterator<Item = (Slot, Moment, Sight<impl FnOnce() -> Rc<str>>)> {
        let soonest = policies.soonest();
        let entry = |slot: &Slot| Some((*slot, self.at(*slot)?));
        let held = places.iter().filter_map(entry);
        let held = held.filter(|(_, entry)| entry.state.backend().is_some());
        let ripe = held.filter(move |(_, entry)| entry.idle(now) >= soonest);
        ripe.filter_map(move |(slot, entry)| {
            let policy = policies.of(entry);
            let parked = entry.verdict(now, policy.park_after).is_parked();
            let sight = Sight {
                session: entry.id,
                since: entry.state.since(),
                claimed: entry.claim.as_ref().and_then(|claim| claim.owner.clone()),
                owner: || entry.owner().0,
            };
            parked.then(|| (slot, rules::due_from(entry, policy), sight))
        })
    }

    /// Which of the sessions at these places have rested for so long that PostgreSQL may be asked now what state they have,
    /// so that it needn't be when they return. A place may be empty by now. Each is given once.
    pub fn take_unasked(
        &mut self,
        places: &[Slot],
        now: Moment,
        policies: &Policies<'_>,
    ) -> Vec<SessionId> {
        let soonest = policies.soonest();
        let mut taken = Vec::new();
        for slot in places {
            let rests = |entry: &&Entry| {
                entry.unasked
                    && matches!(entry.state, LeaseState::Idle { .. })
                    && entry.idle(now) >= soonest
            };
            if let Some(entry) = self.at(*slot).filter(rests) {
                taken.push(entry.id);
                self.entry_mut(*slot).unasked = false;
            }
        }
        taken
    }

    /// How many leases the sessions hold that rule number `index` bounds, apart from `own`.
    #[must_use]
    pub fn held_under(&self, index: usize, own: Slot, policies: &Policies<'_>) -> usize {
        let bounded = |slot: &&Slot| {
            let bound = policies.bound(self.entry(**slot));
            **slot != own && bound.is_some_and(|(bound, _)| bound == index)
        };
        self.holders.values().filter(bounded).count()
    }
}
