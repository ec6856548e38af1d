//! Owns the session's prepared statements: what Parse made, so that another backend can be given the same.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::rc::Rc;

use crate::backend::prepared::{Made, Prepared, reads_alike};
use crate::backend::{Parameters, State};
use crate::wire::extended::{Statement, parse_text};
use crate::wire::sql::reads_always_alike;

/// The longest Parse message that is kept, in bytes.
pub(super) const MAX_KEPT: usize = 1 << 20;

/// How many named statements of a session are kept.
const MOST: usize = 10_000;

/// How much memory they may take, in bytes, texts that others have too included.
const HEAVIEST: usize = 16 << 20;

/// How many statements of SQL `PREPARE`, and how many that name settings, are looked after.
const FEW: usize = 100;

/// The prepared statements of one session.
#[derive(Debug, Default)]
pub(super) struct Statements {
    named: Option<Box<Prepared>>,
    /// The body of the last Parse of the unnamed statement.
    unnamed: Vec<u8>,
    fate: Unnamed,
    /// The reported settings that it was read under.
    unnamed_under: Option<Rc<Parameters>>,
    /// A statement was too large to be kept, or there were too many.
    large: bool,
    rare: Option<Box<Rare>>,
}

/// What few sessions have.
#[derive(Debug, Default)]
struct Rare {
    /// What was seen of statements of SQL `PREPARE`.
    sql: Vec<SqlMade>,
    /// Statements of which a parameter names a setting (`set_config($1, …)`), and those parameters, counted from 0.
    naming: Vec<Naming>,
}

/// A statement's name, and those of its parameters that name settings.
type Naming = (Box<[u8]>, Box<[u16]>);

/// A statement of SQL `PREPARE`, known by its text.
#[derive(Debug)]
struct SqlMade {
    /// The text's hash.
    text: u64,
    /// The reported settings that it was read under; `None` where it can't be told.
    under: Option<Rc<Parameters>>,
    /// The role and the search_path when it was first found.
    found_under: Option<(Option<String>, Option<String>)>,
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

    /// A Parse of this name was too large to be kept.
    pub fn sent_large(&mut self, name: &[u8]) {
        self.large = true;
        if name.is_empty() {
            self.fate = Unnamed::None;
        }
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

    /// A statement exists now. `false` where there are too many of them to keep it.
    pub fn made(&mut self, made: Made) -> bool {
        let named = self.named.get_or_insert_default();
        if named.len() >= MOST || named.weight() + made.statement.weight() > HEAVIEST {
            self.large = true;
            return false;
        }
        named.insert(made);
        true
    }

    /// A text that is one SQL `PREPARE` was sent; `under` are the reported settings, where they are known.
    pub fn sent_prepare(&mut self, text: &[u8], under: Option<&Rc<Parameters>>) {
        let made = &mut self.rare.get_or_insert_default().sql;
        let text = hash(text);
        let alike = |known: &Option<Rc<Parameters>>| matches!((known, under), (Some(known), Some(under)) if reads_alike(known, under));
        let full = made.len() >= 2 * FEW;
        match made.iter_mut().find(|made| made.text == text) {
            Some(known) if alike(&known.under) => {}
            Some(known) => known.under = None,
            None if full => {}
            None => made.push(SqlMade {
                text,
                under: under.cloned(),
                found_under: None,
            }),
        }
    }

    /// Whether the statements of SQL `PREPARE` that the probe found would mean the same if they were made anew.
    pub fn may_replay(&mut self, state: &State, reported: &Rc<Parameters>) -> bool {
        if state.prepared.is_empty() && self.rare.is_none() {
            return true;
        }
        let made = &mut self.rare.get_or_insert_default().sql;
        let texts: Vec<&str> = state.prepared.iter().map(|sql| sql.text.as_str()).collect();
        made.retain(|made| texts.iter().any(|text| hash(text.as_bytes()) == made.text));
        let here = (
            state.role.clone(),
            state.setting("search_path").map(str::to_owned),
        );
        let mut alike = true;
        for text in texts {
            let text = text.as_bytes();
            let hash = hash(text);
            if !made.iter().any(|made| made.text == hash) {
                made.push(SqlMade {
                    text: hash,
                    under: None,
                    found_under: None,
                });
            }
            for made in made.iter_mut().filter(|made| made.text == hash) {
                let read = made.under.as_ref();
                alike &= reads_always_alike(text)
                    || read.is_some_and(|under| reads_alike(under, reported));
                alike &= *made.found_under.get_or_insert_with(|| here.clone()) == here;
            }
        }
        alike
    }

    /// A statement was sent of which these parameters name settings. `false` where there are too many to look after.
    pub fn sent_naming(&mut self, name: &[u8], parameters: Vec<u16>) -> bool {
        if name.is_empty()
            && let Some(rare) = &mut self.rare
        {
            rare.naming.retain(|(known, _)| !known.is_empty());
        }
        if parameters.is_empty() {
            return true;
        }
        let naming = &mut self.rare.get_or_insert_default().naming;
        let known = |known: &Naming| *known.0 == *name && *known.1 == *parameters;
        if naming.iter().any(known) {
            return true;
        }
        naming.push((name.into(), parameters.into()));
        naming.len() <= FEW
    }

    /// The parameters of a statement that name settings.
    pub fn naming(&self, name: &[u8]) -> impl Iterator<Item = u16> {
        let naming = self.rare.iter().flat_map(|rare| &rare.naming);
        naming
            .filter(move |(known, _)| **known == *name)
            .flat_map(|(_, parameters)| parameters.iter().copied())
    }

    /// The unnamed statement exists now, likewise.
    pub fn made_unnamed(&mut self, under: &Rc<Parameters>) {
        self.unnamed_under = Some(under.clone());
    }

    /// Whether every statement would mean the same if its text were read again under these reported settings.
    pub fn would_mean_the_same(&self, under: &Rc<Parameters>) -> bool {
        let named = self.named.iter().flat_map(|named| named.iter());
        let mut unnamed = self
            .unnamed_under
            .iter()
            .filter(|_| self.fate != Unnamed::None);
        unnamed.all(|read| {
            reads_alike(read, under)
                || reads_always_alike(parse_text(&self.unnamed).unwrap_or_default())
        }) && named.into_iter().all(|made| made.reads_alike(under))
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
        if let Some(rare) = &mut self.rare {
            rare.naming.retain(|(name, _)| name.is_empty());
        }
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

/// A text's hash, to know it again.
fn hash(text: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}
