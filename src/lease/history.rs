//! Owns the memory of parks: how often and how long each owner's leases were parked in the last hour.
//!
//! It is fed by looking at the book now and then: a park shorter than the time between two looks isn't counted.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::BuildHasherDefault;
use std::rc::Rc;
use std::time::Duration;

use crate::lease::id::{IdHasher, Moment, SessionId};

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

/// A lease that is seen parked.
#[derive(Debug)]
pub struct Sight<F> {
    pub session: SessionId,
    /// Since when it has been idle.
    pub since: Moment,
    /// The owner that the app's own word names.
    pub claimed: Option<Rc<str>>,
    /// Finds out who the owner is: asked only when the park is new, or the app's word is.
    pub owner: F,
}

/// The parks of the last hour.
#[derive(Debug, Default)]
pub struct History {
    owners: Owners,
    /// The leases that were parked at the last look.
    parked: HashMap<SessionId, Park, BuildHasherDefault<IdHasher>>,
    looked: Moment,
    looks: u64,
}

/// A park that goes on. Its time is entered when it is over, so that a look costs next to nothing.
#[derive(Debug)]
struct Park {
    owner: Rc<str>,
    claimed: Option<Rc<str>>,
    since: Moment,
    /// Up to where its time is entered.
    entered: Moment,
    /// The number of the look that saw it last.
    seen: u64,
}

/// What ended parks came to, by owner.
#[derive(Debug, Default)]
struct Owners(HashMap<Rc<str>, [Slice; SLICES]>);

/// The parks that began, and the time that was parked, within one slice of time.
#[derive(Clone, Copy, Debug, Default)]
struct Slice {
    /// Which slice since the beginning of time.
    number: u64,
    count: u64,
    total: Duration,
}

/// A look at all leases, which may take several stretches: others get their turn in between.
#[derive(Debug)]
pub struct Look {
    number: u64,
    /// When the look before this one was.
    before: Moment,
    /// The sessions whose parks may be over.
    stirred: Vec<SessionId>,
}

impl History {
    /// Begins to look. Only the parks of sessions that were `stirred` since the last look may be over.
    pub fn begin(&mut self, stirred: Vec<SessionId>, now: Moment) -> Look {
        self.looks += 1;
        Look {
            number: self.looks,
            stirred,
            before: std::mem::replace(&mut self.looked, now),
        }
    }

    /// Takes in leases that are parked now; gives what is new about them.
    pub fn see<F: FnOnce() -> Rc<str>>(
        &mut self,
        look: &Look,
        parked: impl Iterator<Item = Sight<F>>,
        now: Moment,
    ) -> Turns {
        let before = look.before;
        let mut turns = Turns::default();
        for sight in parked {
            match self.parked.get_mut(&sight.session) {
                Some(park) if park.since == sight.since => {
                    park.seen = self.looks;
                    if park.claimed != sight.claimed {
                        self.owners.enter(&park.owner, park.entered, now);
                        park.entered = now;
                        park.owner = (sight.owner)();
                        park.claimed = sight.claimed;
                    }
                }
                Some(_) | None => {
                    let park = Park {
                        owner: (sight.owner)(),
                        claimed: sight.claimed,
                        since: sight.since,
                        entered: sight.since,
                        seen: self.looks,
                    };
                    self.owners.slice(&park.owner, number(now)).count += 1;
                    turns.began.push(sight.session);
                    let earlier = self.parked.insert(sight.session, park);
                    let ended = earlier.map(|park| self.owners.end(sight.session, park, before));
                    turns.ended.extend(ended);
                }
            }
        }
        turns
    }

    /// Every lease that may have changed was looked at: gives the parks that are over.
    pub fn finish(&mut self, look: Look, now: Moment) -> Vec<Parked> {
        let Look {
            number,
            before,
            stirred,
        } = look;
        let mut ended = Vec::new();
        for session in stirred {
            // Another look may have begun meanwhile: what it has seen is parked, too.
            if let Entry::Occupied(park) = self.parked.entry(session)
                && park.get().seen < number
            {
                ended.push(self.owners.end(session, park.remove(), before));
            }
        }
        self.owners.tidy(now);
        ended
    }

    /// What each owner's parks came to; the longest first. Owners without any are left out.
    #[must_use]
    pub fn last_hour(&self, now: Moment) -> Vec<Parks> {
        let oldest = oldest(now);
        let mut sums: HashMap<&str, (u64, Duration)> = HashMap::new();
        for (owner, slices) in &self.owners.0 {
            let sum = sums.entry(owner).or_default();
            for slice in slices.iter().filter(|slice| slice.number >= oldest) {
                *sum = (sum.0 + slice.count, sum.1 + slice.total);
            }
        }
        for park in self.parked.values() {
            let owner = self.owners.known(&park.owner);
            sums.entry(owner).or_default().1 += now.since(park.entered.max(beginning(oldest)));
        }
        let parks = sums.into_iter().filter(|(_, (_, total))| !total.is_zero());
        let parks = parks.map(|(owner, (count, total))| Parks {
            owner: owner.into(),
            count,
            total,
        });
        let mut parks: Vec<_> = parks.collect();
        parks.sort_by(|a, b| b.total.cmp(&a.total).then_with(|| a.owner.cmp(&b.owner)));
        parks
    }
}

impl Owners {
    /// The name under which an owner is remembered.
    fn known<'a>(&self, owner: &'a str) -> &'a str {
        let full = self.0.len() >= MOST && !self.0.contains_key(owner);
        if full { OTHER } else { owner }
    }

    fn slice(&mut self, owner: &Rc<str>, number: u64) -> &mut Slice {
        let name = self.known(owner);
        let owner = if *name == **owner {
            owner.clone()
        } else {
            name.into()
        };
        let slices = self.0.entry(owner).or_insert([Slice::default(); SLICES]);
        let slice = &mut slices[usize::try_from(number).unwrap_or(0) % SLICES];
        if slice.number != number {
            *slice = Slice {
                number,
                ..Slice::default()
            };
        }
        slice
    }

    /// Enters the time from one moment to another, as far as it is within the last hour.
    fn enter(&mut self, owner: &Rc<str>, from: Moment, to: Moment) {
        let mut from = from.max(beginning(oldest(to)));
        while from < to {
            let number = number(from);
            let until = beginning(number + 1).min(to);
            self.slice(owner, number).total += until.since(from);
            from = until;
        }
    }

    /// A park was over by then.
    fn end(&mut self, session: SessionId, park: Park, by: Moment) -> Parked {
        self.enter(&park.owner, park.entered, by);
        Parked {
            session,
            owner: park.owner,
            since: park.since,
        }
    }

    /// Forgets whose parks are all older than an hour, when there are too many.
    fn tidy(&mut self, now: Moment) {
        if self.0.len() >= MOST {
            let oldest = oldest(now);
            self.0.retain(|_, slices| {
                slices
                    .iter()
                    .any(|slice| slice.number >= oldest && slice.count > 0)
            });
        }
    }
}

/// The length of a slice, in microseconds.
const MICROS: u64 = SLICE.as_secs() * 1_000_000;

fn number(now: Moment) -> u64 {
    now.as_micros() / MICROS
}

/// Where a slice begins.
fn beginning(number: u64) -> Moment {
    Moment::from_micros(number.saturating_mul(MICROS))
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

    fn parked(owner: &str, session: u32, since: u64) -> Sight<impl FnOnce() -> Rc<str>> {
        Sight {
            session: SessionId::new(session),
            since: at(since),
            claimed: None,
            owner: || owner.into(),
        }
    }

    type Named = fn() -> Rc<str>;

    impl History {
        /// A look in one stretch.
        fn look<F: FnOnce() -> Rc<str>>(
            &mut self,
            parked: impl Iterator<Item = Sight<F>>,
            now: Moment,
        ) -> Turns {
            let look = self.begin(self.parked.keys().copied().collect(), now);
            let mut turns = self.see(&look, parked, now);
            turns.ended.extend(self.finish(look, now));
            turns
        }
    }

    fn nothing() -> std::iter::Empty<Sight<Named>> {
        std::iter::empty()
    }

    fn of(history: &History, owner: &str, now: u64) -> (u64, Duration) {
        let found = history.last_hour(at(now)).into_iter();
        let found = found.into_iter().find(|parks| &*parks.owner == owner);
        found.map_or((0, Duration::ZERO), |parks| (parks.count, parks.total))
    }

    #[test]
    fn parks_are_counted_once_and_their_time_adds_up() {
        let mut history = History::default();
        history.look([parked("a", 1, 100)].into_iter(), at(105));
        history.look(
            [parked("a", 1, 100), parked("b", 2, 100)].into_iter(),
            at(106),
        );
        history.look(nothing(), at(107));
        history.look([parked("a", 1, 110)].into_iter(), at(115));
        assert_eq!(of(&history, "a", 115), (2, Duration::from_secs(6 + 5)));
        assert_eq!(of(&history, "b", 115), (1, Duration::from_secs(6)));
    }

    #[test]
    fn who_parked_and_whose_park_is_over_is_told_once() {
        let mut history = History::default();
        let turns = |turns: Turns| (turns.began.len(), turns.ended.len());
        assert_eq!(
            turns(history.look([parked("a", 1, 100)].into_iter(), at(105))),
            (1, 0)
        );
        assert_eq!(
            turns(history.look([parked("a", 1, 100)].into_iter(), at(106))),
            (0, 0)
        );
        // It went on in between, and parked again.
        assert_eq!(
            turns(history.look([parked("a", 1, 107)].into_iter(), at(112))),
            (1, 1)
        );
        let over = history.look(nothing(), at(113));
        assert_eq!((&*over.ended[0].owner, over.ended[0].since), ("a", at(107)));
    }

    #[test]
    fn two_looks_at_a_time_end_no_park_that_goes_on() {
        let mut history = History::default();
        history.look([parked("a", 1, 100)].into_iter(), at(105));
        let one = history.begin(vec![SessionId::new(1)], at(106));
        let two = history.begin(Vec::new(), at(106));
        history.see(&two, [parked("a", 1, 100)].into_iter(), at(106));
        history.see(&one, [parked("b", 2, 101)].into_iter(), at(106));
        assert!(history.finish(one, at(106)).is_empty());
        assert!(history.finish(two, at(106)).is_empty());
    }

    #[test]
    fn an_owner_that_is_named_later_bears_what_comes_then() {
        let mut history = History::default();
        history.look([parked("pool", 1, 100)].into_iter(), at(105));
        let claimed = |sight| Sight {
            claimed: Some("dispatcher".into()),
            ..sight
        };
        history.look([claimed(parked("dispatcher", 1, 100))].into_iter(), at(110));
        history.look(nothing(), at(130));
        assert_eq!(of(&history, "pool", 130), (1, Duration::from_secs(10)));
        assert_eq!(of(&history, "dispatcher", 130), (0, Duration::ZERO));
        history.look([claimed(parked("dispatcher", 1, 140))].into_iter(), at(150));
        assert_eq!(
            of(&history, "dispatcher", 160),
            (1, Duration::from_secs(20))
        );
    }

    #[test]
    fn a_long_park_counts_for_its_last_hour_only() {
        let mut history = History::default();
        history.look([parked("a", 1, 600)].into_iter(), at(605));
        assert!(of(&history, "a", 10_000).1 <= Duration::from_secs(3600));
        history.look([parked("a", 1, 600)].into_iter(), at(10_000));
        history.look(nothing(), at(10_001));
        let (_, total) = of(&history, "a", 10_001 + 1800);
        assert!((1700..=1860).contains(&total.as_secs()), "{total:?}");
    }

    #[test]
    fn what_is_older_than_an_hour_is_forgotten() {
        let mut history = History::default();
        history.look([parked("a", 1, 100)].into_iter(), at(105));
        history.look(nothing(), at(106));
        assert_eq!(of(&history, "a", 3500).0, 1);
        assert_eq!(of(&history, "a", 3800).0, 0);
    }

    #[test]
    fn owners_beyond_the_bound_are_one() {
        let mut history = History::default();
        for number in 0..2000_u32 {
            history.look(
                [parked(&number.to_string(), number, 100)].into_iter(),
                at(200),
            );
        }
        assert!(history.owners.0.len() <= MOST + 1);
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
                history.look(since.map(|since| parked("a", 1, since)).into_iter(), at(now));
            }
            prop_assert!(of(&history, "a", now).1 <= Duration::from_secs(now - 1000));
        }
    }
}
