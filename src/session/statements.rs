//! Owns the session's prepared statements: what Parse made, so that another backend can be given the same.

use std::collections::HashMap;
use std::rc::Rc;

use crate::backend::Parameters;
use crate::wire::extended::Statement;

/// The longest Parse message that is kept, in bytes.
pub(super) const MAX_KEPT: usize = 1 << 20;

/// The prepared statements of one session.
#[derive(Debug, Default)]
pub(super) struct Statements {
    named: Option<Box<HashMap<Box<[u8]>, Made>>>,
    /// The body of the last Parse of the unnamed statement.
    unnamed: Vec<u8>,
    fate: Unnamed,
    /// The reported settings that it was read under.
    unnamed_under: Option<Rc<Parameters>>,
    /// A statement was too large to be kept.
    large: bool,
}

/// A statement that exists, and the settings that its text was read under.
#[derive(Debug)]
struct Made {
    statement: Rc<Statement>,
    under: Rc<Parameters>,
}

/// The reported settings that literals in a text are read by. PostgreSQL keeps what it read; a new Parse reads again.
const READ_BY: [&str; 5] = [
    "DateStyle",
    "IntervalStyle",
    "TimeZone",
    "client_encoding",
    "standard_conforming_strings",
];

fn reads_alike(one: &Rc<Parameters>, other: &Rc<Parameters>) -> bool {
    Rc::ptr_eq(one, other) || READ_BY.iter().all(|name| one.get(name) == other.get(name))
}

/// What became of the unnamed statement.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Unnamed {
    /// There is none.
    #[default]
    None,
    /// It was sent to the backend that is held.
    Here,
    /// The backend that is held doesn't have it.
    Away,
}

impl Statements {
    /// A Parse of the unnamed statement was sent.
    pub fn sent_unnamed(&mut self, body: &[u8]) {
        self.unnamed.clear();
        self.unnamed.extend_from_slice(body);
        self.fate = Unnamed::Here;
    }

    /// A simple query, or a failure, did away with the unnamed statement (protocol chapter 55.2.3).
    pub fn drop_unnamed(&mut self) {
        self.fate = Unnamed::None;
    }

    /// A Parse was too large to be kept.
    pub fn sent_large(&mut self) {
        self.large = true;
        self.fate = Unnamed::None;
    }

    /// Whether a statement exists that can't be made anew.
    pub fn is_incomplete(&self) -> bool {
        self.large
    }

    /// A statement exists now; its text was read under these reported settings.
    pub fn made(&mut self, statement: Rc<Statement>, under: &Rc<Parameters>) {
        let made = Made {
            statement: statement.clone(),
            under: under.clone(),
        };
        self.named
            .get_or_insert_default()
            .insert(statement.name.clone(), made);
    }

    /// The unnamed statement exists now, likewise.
    pub fn made_unnamed(&mut self, under: &Rc<Parameters>) {
        self.unnamed_under = Some(under.clone());
    }

    /// Whether every statement would mean the same if its text were read again under these reported settings.
    pub fn would_mean_the_same(&self, under: &Rc<Parameters>) -> bool {
        let unnamed = self
            .unnamed_under
            .iter()
            .filter(|_| self.fate != Unnamed::None);
        let named = self
            .named
            .iter()
            .flat_map(|named| named.values().map(|made| &made.under));
        unnamed.chain(named).all(|made| reads_alike(made, under))
    }

    /// A statement was closed.
    pub fn closed(&mut self, name: &[u8]) {
        if name.is_empty() {
            self.fate = Unnamed::None;
        } else if let Some(named) = &mut self.named {
            named.remove(name);
        }
    }

    /// DISCARD ALL or DEALLOCATE ALL: every named statement is gone.
    pub fn clear(&mut self) {
        self.named = None;
        self.large = false;
    }

    /// Only the named statements that PostgreSQL says exist remain.
    pub fn reconcile(&mut self, exists: impl Fn(&str) -> bool) {
        if let Some(named) = &mut self.named {
            // A name outside of ASCII may have another form in the session's own encoding.
            named.retain(|name, _| !name.is_ascii() || exists(&String::from_utf8_lossy(name)));
            if named.is_empty() {
                self.named = None;
            }
        }
    }

    /// The named statement.
    pub fn get(&self, name: &[u8]) -> Option<&Rc<Statement>> {
        Some(&self.named.as_ref()?.get(name)?.statement)
    }

    /// Every named statement, in no order.
    pub fn all(&self) -> Vec<Rc<Statement>> {
        self.named
            .iter()
            .flat_map(|named| named.values().map(|made| made.statement.clone()))
            .collect()
    }

    /// Whether there is no named statement.
    pub fn is_empty(&self) -> bool {
        self.named.is_none()
    }

    /// The backend changed: the unnamed statement isn't there.
    pub fn moved(&mut self) {
        if self.fate == Unnamed::Here {
            self.fate = Unnamed::Away;
        }
    }

    /// The unnamed statement, when the backend that is held must be given it first.
    pub fn recall_unnamed(&mut self) -> Option<Rc<Statement>> {
        if self.fate != Unnamed::Away {
            return None;
        }
        self.fate = Unnamed::Here;
        Statement::read(&self.unnamed).map(Rc::new)
    }
}
