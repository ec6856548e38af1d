//! Owns the memory of parks: how often and how long each owner's leases were parked in the last hour.
//!
//! It is fed by looking at the book now and then: a park shorter than the time between two looks isn't counted.

use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

use crate::lease::id::{Moment, SessionId};

/// How many slices the hour has.
const SLICES: usize = 60;
/// How long a slice is.
const SLICE: Duration = Duration::from_secs(60);
/// The most owners that are remembered apart; the rest are one.
const MOST: usize = 1000;
/// The name of the rest.
const OTHER: &str = "other";

/// A lease that is parked now.
#[derive(Clone, Debug)]
pub struct Parked {
    pub session: SessionId,
    pub owner: Rc<str>,
    /// Since when it has been idle.
    pub since: Moment,
}

/// What has changed between two looks.
#[derive(Debug, Default)]
pub struct Turns {
    /// Who has parked since.
    pub began: Vec<SessionId>,
    /// Whose park is over.
    pub ended: Vec<Parked>,
}

/// What one owner's parks came to in the last hour.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parks {
    pub owner: Rc<str>,
    pub count: u64,
    /// The idle time of all its parked leases together: so long were backends held for nothing.
    pub total: Duration,
}

/// The parks of the last hour, by owner.
#[derive(Debug, Default)]
pub struct History {
    owners: HashMap<Rc<str>, [Slice; SLICES]>,
    /// The leases that were parked at the last look.
    parked: HashMap<SessionId, Parked>,
    looked: Moment,
}

/// The parks that began, and the time that was parked, within one slice of time.
#[derive(Clone, Copy, Debug, Default)]
struct Slice {
    /// Which slice since the beginning of time.
    number: u64,
    count: u64,
    total: Duration,
}

impl History {
    /// Takes in which leases are parked now; gives what is new about it.
    pub fn look(&mut self, parked: Vec<Parked>, now: Moment) -> Turns {
        let mut before = std::mem::take(&mut self.parked);
        let elapsed = now.since(self.looked);
        self.looked = now;
        let (mut began, mut ended) = (Vec::new(), Vec::new());
        for known in parked {
            let earlier = before.remove(&known.session);
            let goes_on = earlier
                .as_ref()
                .is_some_and(|earlier| earlier.since == known.since);
            ended.extend(earlier.filter(|_| !goes_on));
            let slice = self.slice(known.owner.clone(), number(now));
            if goes_on {
                slice.total += elapsed;
            } else {
                slice.count += 1;
                slice.total += now.since(known.since);
                began.push(known.session);
            }
            self.parked.insert(known.session, known);
        }
        ended.extend(before.into_values());
        if self.owners.len() >= MOST {
            let oldest = oldest(now);
            self.owners.retain(|_, slices| {
                slices
                    .iter()
                    .any(|slice| slice.number >= oldest && slice.count > 0)
            });
        }
        Turns { began, ended }
    }

    fn slice(&mut self, owner: Rc<str>, number: u64) -> &mut Slice {
        let full = self.owners.len() >= MOST && !self.owners.contains_key(&owner);
        let owner = if full { OTHER.into() } else { owner };
        let slices = self
            .owners
            .entry(owner)
            .or_insert([Slice::default(); SLICES]);
        let slice = &mut slices[usize::try_from(number).unwrap_or(0) % SLICES];
        if slice.number != number {
            *slice = Slice {
                number,
                ..Slice::default()
            };
        }
        slice
    }

    /// What each owner's parks came to; the longest first. Owners without any are left out.
    #[must_use]
    pub fn last_hour(&self, now: Moment) -> Vec<Parks> {
        let oldest = oldest(now);
        let parks = self.owners.iter().map(|(owner, slices)| {
            let recent = slices.iter().filter(|slice| slice.number >= oldest);
            let (count, total) = recent.fold((0, Duration::ZERO), |(count, total), slice| {
                (count + slice.count, total + slice.total)
            });
            Parks {
                owner: owner.clone(),
                count,
                total,
            }
        });
        let mut parks: Vec<_> = parks.filter(|parks| !parks.total.is_zero()).collect();
        parks.sort_by(|a, b| b.total.cmp(&a.total).then_with(|| a.owner.cmp(&b.owner)));
        parks
    }
}

fn number(now: Moment) -> u64 {
    now.as_micros() / u64::try_from(SLICE.as_micros()).unwrap_or(u64::MAX)
}

/// The first slice that belongs to the last hour.
fn oldest(now: Moment) -> u64 {
    (number(now) + 1).saturating_sub(SLICES as u64)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(seconds: u64) -> Moment {
        Moment::from_micros(seconds * 1_000_000)
    }

    fn parked(owner: &str, session: u32, since: u64) -> Parked {
        Parked {
            session: SessionId::new(session),
            owner: owner.into(),
            since: at(since),
        }
    }

    fn of(history: &History, owner: &str, now: u64) -> (u64, Duration) {
        let found = history.last_hour(at(now)).into_iter();
        let found = found.into_iter().find(|parks| &*parks.owner == owner);
        found.map_or((0, Duration::ZERO), |parks| (parks.count, parks.total))
    }

    #[test]
    fn parks_are_counted_once_and_their_time_adds_up() {
        let mut history = History::default();
        history.look(vec![parked("a", 1, 100)], at(105));
        history.look(vec![parked("a", 1, 100), parked("b", 2, 100)], at(106));
        history.look(Vec::new(), at(107));
        history.look(vec![parked("a", 1, 110)], at(115));
        assert_eq!(of(&history, "a", 115), (2, Duration::from_secs(6 + 5)));
        assert_eq!(of(&history, "b", 115), (1, Duration::from_secs(6)));
    }

    #[test]
    fn who_parked_and_whose_park_is_over_is_told_once() {
        let mut history = History::default();
        let turns = |turns: Turns| (turns.began.len(), turns.ended.len());
        assert_eq!(
            turns(history.look(vec![parked("a", 1, 100)], at(105))),
            (1, 0)
        );
        assert_eq!(
            turns(history.look(vec![parked("a", 1, 100)], at(106))),
            (0, 0)
        );
        // It went on in between, and parked again.
        assert_eq!(
            turns(history.look(vec![parked("a", 1, 107)], at(112))),
            (1, 1)
        );
        let over = history.look(Vec::new(), at(113));
        assert_eq!((&*over.ended[0].owner, over.ended[0].since), ("a", at(107)));
    }

    #[test]
    fn what_is_older_than_an_hour_is_forgotten() {
        let mut history = History::default();
        history.look(vec![parked("a", 1, 100)], at(105));
        history.look(Vec::new(), at(106));
        assert_eq!(of(&history, "a", 3500).0, 1);
        assert_eq!(of(&history, "a", 3800).0, 0);
    }

    #[test]
    fn owners_beyond_the_bound_are_one() {
        let mut history = History::default();
        for number in 0..2000_u32 {
            history.look(vec![parked(&number.to_string(), number, 100)], at(200));
        }
        assert!(history.owners.len() <= MOST + 1);
        assert_eq!(of(&history, OTHER, 200).0, 1000);
    }

    proptest! {
        #[test]
        fn no_more_than_the_time_that_passed_is_counted_for_one_session(looks in prop::collection::vec((1u64..90, any::<bool>()), 1..60)) {
            let (mut history, mut now) = (History::default(), 1000);
            let mut since = None;
            for (step, is_parked) in looks {
                let began = now;
                now += step;
                since = is_parked.then(|| since.unwrap_or(began));
                history.look(since.map(|since| parked("a", 1, since)).into_iter().collect(), at(now));
            }
            prop_assert!(of(&history, "a", now).1 <= Duration::from_secs(now - 1000));
        }
    }
}
