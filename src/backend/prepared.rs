//! Owns the account of the protocol-level prepared statements that a backend has, whoever made them.

use std::collections::HashMap;
use std::rc::Rc;

use crate::backend::Parameters;
use crate::wire::extended::Statement;

/// A statement, and the reported settings that its text was read under.
#[derive(Clone, Debug)]
pub struct Made {
    pub statement: Rc<Statement>,
    pub under: Rc<Parameters>,
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
    /// Whether one is as good as the other.
    #[must_use]
    pub fn is_like(&self, other: &Self) -> bool {
        (Rc::ptr_eq(&self.statement, &other.statement) || self.statement == other.statement)
            && reads_alike(&self.under, &other.under)
    }
}

/// The named statements of one backend, or of one session.
#[derive(Debug, Default)]
pub struct Prepared(HashMap<Box<[u8]>, Entry>);

/// What is known of one name.
#[derive(Debug)]
enum Entry {
    Made(Made),
    /// There may be a statement, or none: nobody may rely on either.
    Doubtful,
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
        self.0
            .insert(made.statement.name.clone(), Entry::Made(made));
    }

    /// A statement is gone: gives what it was.
    pub fn remove(&mut self, name: &[u8]) -> Option<Made> {
        match self.0.remove(name)? {
            Entry::Made(made) => Some(made),
            Entry::Doubtful => None,
        }
    }

    /// It can't be told any more whether this statement exists.
    pub fn doubt(&mut self, name: &[u8]) {
        self.0.insert(name.into(), Entry::Doubtful);
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
        match self.0.get(name) {
            None => There::Nothing,
            Some(Entry::Made(made)) => There::Made(made),
            Some(Entry::Doubtful) => There::Doubtful,
        }
    }

    /// Every statement that is known, in no order.
    pub fn iter(&self) -> impl Iterator<Item = &Made> {
        self.0.values().filter_map(|entry| match entry {
            Entry::Made(made) => Some(made),
            Entry::Doubtful => None,
        })
    }

    /// Every name under which there is, or may be, a statement.
    pub fn names(&self) -> impl Iterator<Item = &[u8]> {
        self.0.keys().map(AsRef::as_ref)
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All are gone.
    pub fn clear(&mut self) {
        self.0 = HashMap::new();
    }

    /// Only those remain that PostgreSQL says exist.
    pub fn reconcile(&mut self, exists: impl Fn(&str) -> bool) {
        // A name outside of ASCII may have another form in the session's own encoding.
        self.0
            .retain(|name, _| !name.is_ascii() || exists(&String::from_utf8_lossy(name)));
    }
}
