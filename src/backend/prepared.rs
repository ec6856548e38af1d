//! Owns the account of the protocol-level prepared statements that a backend has, whoever made them.

use std::collections::HashMap;
use std::hash::{BuildHasher, DefaultHasher, Hash, Hasher};
use std::rc::{Rc, Weak};

use foldhash::fast::RandomState;

use crate::backend::Parameters;
use crate::wire::extended::Statement;
use crate::wire::frame::cstr;

/// A statement, and the reported settings that its text was read under.
#[derive(Clone, Debug)]
pub struct Made {
    pub statement: Rc<Statement>,
    pub under: Rc<Parameters>,
    /// What its rows looked like when its text was read.
    pub shape: Shape,
}

/// What a statement's rows look like, as far as PostgreSQL said so. It keeps what it said first, and refuses to run a statement
/// whose rows would look otherwise by now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shape(u64);

impl Shape {
    /// Nobody asked.
    pub const UNKNOWN: Self = Self(0);
    /// Another one than any that is known.
    pub const OTHER: Self = Self(1);

    /// That of a RowDescription's body; `None` is that of NoData.
    #[must_use]
    pub fn of(description: Option<&[u8]>) -> Self {
        let mut hasher = DefaultHasher::new();
        let fields = description.map(shape_fields);
        let known = fields.is_none_or(|fields| {
            fields.is_some_and(|fields| {
                fields.hash(&mut hasher);
                true
            })
        });
        if known {
            Self(hasher.finish() | 2)
        } else {
            Self::OTHER
        }
    }
}

/// Names, types and modifiers of the columns; not where they come from, nor their format.
fn shape_fields(body: &[u8]) -> Option<Vec<(&[u8], [u8; 10])>> {
    let (count, mut rest) = body.split_first_chunk::<2>()?;
    let mut fields = Vec::new();
    for _ in 0..u16::from_be_bytes(*count) {
        let (name, tail) = cstr(rest)?;
        let (numbers, tail) = tail.split_first_chunk::<18>()?;
        // Others come in the encoding that is set at the time.
        let name = if name.is_ascii() { name } else { b"?" };
        fields.push((name, *numbers[6..].first_chunk::<10>()?));
        rest = tail;
    }
    Some(fields)
}

/// The reported settings that literals in a text are read by. PostgreSQL keeps what it read; a new Parse reads again.
const READ_BY: [&str; 5] = [
    "DateStyle",
    "IntervalStyle",
    "TimeZone",
    "client_encoding",
    "standard_conforming_strings",
];

/// Whether a text means the same under both.
#[must_use]
pub fn reads_alike(one: &Rc<Parameters>, other: &Rc<Parameters>) -> bool {
    Rc::ptr_eq(one, other) || READ_BY.iter().all(|name| one.get(name) == other.get(name))
}

impl Made {
    /// Whether what `there` is on a backend does for this one, which a session has: also where it would be refused by now.
    #[must_use]
    pub fn is_served_by(&self, there: &Self) -> bool {
        self.is_like(there) && (self.shape == Shape::UNKNOWN || self.shape == there.shape)
    }

    /// Whether one is as good as the other, but for what their rows look like.
    #[must_use]
    pub fn is_like(&self, other: &Self) -> bool {
        (Rc::ptr_eq(&self.statement, &other.statement) || self.statement == other.statement)
            && self.reads_alike(&other.under)
    }

    /// Whether its text would mean the same if it were read again under these reported settings.
    #[must_use]
    pub fn reads_alike(&self, under: &Rc<Parameters>) -> bool {
        self.statement.plain || reads_alike(&self.under, under)
    }
}

/// The named statements of one backend, or of one session.
#[derive(Debug, Default)]
pub struct Prepared {
    entries: HashMap<Box<[u8]>, Entry, RandomState>,
    /// About how much memory the statements take, in bytes.
    weight: usize,
}

/// What is known of one name.
#[derive(Debug)]
enum Entry {
    Made(Made),
    /// There may be a statement, or none: nobody may rely on either.
    Doubtful,
}

impl Entry {
    fn weight(&self) -> usize {
        match self {
            Self::Made(made) => made.statement.weight(),
            Self::Doubtful => 0,
        }
    }
}

/// What a backend has under a name.
#[derive(Clone, Copy, Debug)]
pub enum There<'a> {
    Nothing,
    Made(&'a Made),
    Doubtful,
}

impl Prepared {
    /// A statement exists now.
    pub fn insert(&mut self, made: Made) {
        self.weight += made.statement.weight();
        let name = made.statement.name.clone();
        let before = self.entries.insert(name, Entry::Made(made));
        self.weight -= before.as_ref().map_or(0, Entry::weight);
    }

    /// About how much memory the statements take, in bytes.
    #[must_use]
    pub const fn weight(&self) -> usize {
        self.weight
    }

    /// A statement is gone: gives what it was.
    pub fn remove(&mut self, name: &[u8]) -> Option<Made> {
        let entry = self.entries.remove(name)?;
        self.weight -= entry.weight();
        match entry {
            Entry::Made(made) => Some(made),
            Entry::Doubtful => None,
        }
    }

    /// What a statement's rows look like was found out.
    pub fn shape(&mut self, name: &[u8], shape: Shape) {
        if let Some(Entry::Made(made)) = self.entries.get_mut(name) {
            made.shape = shape;
        }
    }

    /// It can't be told any more whether this statement exists.
    pub fn doubt(&mut self, name: &[u8]) {
        let before = self.entries.insert(name.into(), Entry::Doubtful);
        self.weight -= before.as_ref().map_or(0, Entry::weight);
    }

    /// The statement of this name, where it is known.
    #[must_use]
    pub fn get(&self, name: &[u8]) -> Option<&Made> {
        match self.there(name) {
            There::Made(made) => Some(made),
            There::Nothing | There::Doubtful => None,
        }
    }

    /// What there is under this name.
    #[must_use]
    pub fn there(&self, name: &[u8]) -> There<'_> {
        match self.entries.get(name) {
            None => There::Nothing,
            Some(Entry::Made(made)) => There::Made(made),
            Some(Entry::Doubtful) => There::Doubtful,
        }
    }

    /// Every statement that is known, in no order.
    pub fn iter(&self) -> impl Iterator<Item = &Made> {
        self.entries.values().filter_map(|entry| match entry {
            Entry::Made(made) => Some(made),
            Entry::Doubtful => None,
        })
    }

    /// Every name under which there is, or may be, a statement.
    pub fn names(&self) -> impl Iterator<Item = &[u8]> {
        self.entries.keys().map(AsRef::as_ref)
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// All are gone.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// Only those remain that PostgreSQL says exist.
    pub fn reconcile(&mut self, exists: impl Fn(&str) -> bool) {
        // A name outside of ASCII may have another form in the session's own encoding.
        let weight = &mut self.weight;
        self.entries.retain(|name, entry| {
            let stays = !name.is_ascii() || exists(&String::from_utf8_lossy(name));
            *weight -= if stays { 0 } else { entry.weight() };
            stays
        });
    }
}

/// The texts of prepared statements, so that sessions with the same text share it. It keeps none alive.
#[derive(Debug, Default)]
pub struct Texts {
    /// One text for each hash; another one with the same hash isn't shared.
    known: HashMap<u64, Weak<[u8]>>,
    hasher: RandomState,
    /// Once so many are known, those that nobody uses are dropped.
    tidy_at: usize,
}

impl Texts {
    /// How many are known at least before any is dropped.
    const FEW: usize = 256;

    /// The text, from one that is there already where possible.
    pub fn share(&mut self, text: &[u8]) -> Rc<[u8]> {
        let hash = self.hasher.hash_one(text);
        let known = self.known.get(&hash).and_then(Weak::upgrade);
        if let Some(known) = known.filter(|known| **known == *text) {
            return known;
        }
        let fresh: Rc<[u8]> = text.into();
        self.known.insert(hash, Rc::downgrade(&fresh));
        if self.known.len() > self.tidy_at.max(Self::FEW) {
            self.known.retain(|_, text| text.strong_count() > 0);
            self.known.shrink_to_fit();
            self.tidy_at = 2 * self.known.len();
        }
        fresh
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(name: &str) -> Made {
        let body = format!("{name}\0SELECT 1\0\0\0");
        Made {
            statement: Rc::new(Statement::read(body.as_bytes()).unwrap()),
            under: Rc::default(),
            shape: Shape::UNKNOWN,
        }
    }

    #[test]
    fn sessions_share_a_text_as_long_as_any_of_them_has_it() {
        let mut texts = Texts::default();
        let one = texts.share(b"SELECT 1");
        assert!(Rc::ptr_eq(&one, &texts.share(b"SELECT 1")));
        assert!(!Rc::ptr_eq(&one, &texts.share(b"SELECT 2")));
        for number in 0..10_000 {
            texts.share(format!("SELECT {number} + 1").as_bytes());
        }
        assert!(texts.known.len() <= Texts::FEW + 1);
        assert!(Rc::ptr_eq(&one, &texts.share(b"SELECT 1")));
    }

    #[test]
    fn the_weight_is_that_of_the_statements_that_are_there() {
        let mut prepared = Prepared::default();
        for name in ["a", "b", "c", "a", "d"] {
            prepared.insert(made(name));
        }
        assert_eq!(prepared.weight(), 4 * made("a").statement.weight());
        prepared.doubt(b"a");
        prepared.remove(b"b");
        prepared.remove(b"none");
        prepared.reconcile(|name| name == "d");
        assert_eq!(
            (prepared.len(), prepared.weight()),
            (1, made("d").statement.weight())
        );
    }
}
