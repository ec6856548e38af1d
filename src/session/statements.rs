//! Owns the session's prepared statements: what Parse made, so that another backend can be given the same.

use std::rc::Rc;

use crate::backend::Parameters;
use crate::backend::prepared::{Made, Prepared, reads_alike};
use crate::wire::extended::Statement;

/// The longest Parse message that is kept, in bytes.
pub(super) const MAX_KEPT: usize = 1 << 20;

/// The prepared statements of one session.
#[derive(Debug, Default)]
pub(super) struct Statements {
    named: Option<Box<Prepared>>,
    /// The body of the last Parse of the unnamed statement.
    unnamed: Vec<u8>,
    fate: Unnamed,
    /// The reported settings that it was read under.
    unnamed_under: Option<Rc<Parameters>>,
    /// A statement was too large to be kept.
    large: bool,
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
    /// It can't be told which one the backend has, if any.
    Unknown,
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

    /// A failure skipped the making or closing of the unnamed statement.
    pub fn doubt_unnamed(&mut self) {
        self.fate = Unnamed::Unknown;
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

    /// Whether every statement can be made anew.
    pub fn are_known(&self) -> bool {
        !self.is_incomplete() && !self.is_in_doubt()
    }

    /// Whether it can't be told what the unnamed statement is.
    pub fn is_in_doubt(&self) -> bool {
        self.fate == Unnamed::Unknown
    }

    /// A statement exists now.
    pub fn made(&mut self, made: Made) {
        self.named.get_or_insert_default().insert(made);
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
            .flat_map(|named| named.iter().map(|made| &made.under));
        unnamed.chain(named).all(|made| reads_alike(made, under))
    }

    /// A Close was sent: that of the unnamed statement can't fail, and a later Parse may follow before its answer.
    pub fn sent_close(&mut self, name: &[u8]) {
        if name.is_empty() {
            self.fate = Unnamed::None;
        }
    }

    /// A named statement is closed: gives what it was.
    pub fn close(&mut self, name: &[u8]) -> Option<Made> {
        self.named.as_mut()?.remove(name)
    }

    /// DISCARD ALL or DEALLOCATE ALL: every named statement is gone.
    pub fn clear(&mut self) {
        self.named = None;
        self.large = false;
    }

    /// Only the named statements that PostgreSQL says exist remain.
    pub fn reconcile(&mut self, exists: impl Fn(&str) -> bool) {
        if let Some(named) = &mut self.named {
            named.reconcile(exists);
            if named.is_empty() {
                self.named = None;
            }
        }
    }

    /// The named statement.
    pub fn get(&self, name: &[u8]) -> Option<&Made> {
        self.named.as_ref()?.get(name)
    }

    /// Every named statement, in no order.
    pub fn all(&self) -> impl Iterator<Item = &Made> {
        self.named.iter().flat_map(|named| named.iter())
    }

    /// How many named statements there are.
    pub fn len(&self) -> usize {
        self.named.as_ref().map_or(0, |named| named.len())
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
