//! Owns the session's prepared statements: what Parse made, so that another backend can be given the same.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::rc::Rc;

use crate::backend::prepared::{Made, Prepared, Shape, reads_alike};
use crate::backend::state::{Scene, SqlPrepared};
use crate::backend::{Parameters, State};
use crate::session::unnamed::Unnamed;
use crate::wire::sql::{self, Naming, reads_always_alike};

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
    /// The unnamed one.
    pub unnamed: Unnamed,
    rare: Option<Box<Rare>>,
}

/// What few sessions have.
#[derive(Debug, Default)]
struct Rare {
    /// A statement was too large to be kept, or there were too many.
    large: bool,
    /// What was seen of statements of SQL `PREPARE`.
    sql: Vec<SqlMade>,
    /// Statements of which a parameter names a setting (`set_config($1, …)`), and those parameters.
    naming: Vec<NamingIn>,
    /// Statements of SQL `PREPARE` that the present backend refused: the next one may have them again.
    lost: Vec<SqlPrepared>,
}

/// A statement's name, and those of its parameters that name settings.
type NamingIn = (Box<[u8]>, Box<[Naming]>);

/// A statement of SQL `PREPARE`, known by its text.
#[derive(Debug)]
struct SqlMade {
    /// The text's hash.
    text: u64,
    /// The reported settings that it was read under; `None` where it can't be told.
    under: Option<Rc<Parameters>>,
    /// What names meant when it was first found.
    found_under: Option<Scene>,
}

impl SqlMade {
    /// One whose making nobody saw.
    fn unseen(text: u64) -> Self {
        Self {
            text,
            under: None,
            found_under: None,
        }
    }
}

impl Statements {
    /// A Parse was too large to be kept.
    pub fn sent_large(&mut self) {
        self.rare.get_or_insert_default().large = true;
    }

    /// Whether a statement exists that can't be made anew.
    pub fn is_incomplete(&self) -> bool {
        self.rare.as_ref().is_some_and(|rare| rare.large)
    }

    /// Whether every statement can be made anew.
    pub fn are_known(&self) -> bool {
        !self.is_incomplete() && !self.unnamed.is_in_doubt()
    }

    /// A statement exists now. `false` where there are too many of them to keep it.
    pub fn made(&mut self, made: Made) -> bool {
        let named = self.named.get_or_insert_default();
        if named.len() >= MOST || named.weight() + made.statement.weight() > HEAVIEST {
            self.sent_large();
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
                under: under.cloned(),
                ..SqlMade::unseen(text)
            }),
        }
    }

    /// Whether the statements of SQL `PREPARE` that the probe found would mean the same if they were made anew, and under
    /// what they would be.
    pub fn may_replay(&mut self, state: &mut State, reported: &Rc<Parameters>) -> bool {
        if state.prepared.is_empty() && self.rare.is_none() {
            return true;
        }
        let here = state.scene();
        let Rare {
            sql: made, lost, ..
        } = &mut **self.rare.get_or_insert_default();
        lost.retain(|lost| !state.has_prepared(lost.name.as_bytes()));
        state.prepared.extend(lost.iter().cloned());
        state.prepared.sort();
        let mut remain = Vec::new();
        let mut alike = true;
        for prepared in &mut state.prepared {
            let text = hash(prepared.text.as_bytes());
            let at = made.iter().position(|made| made.text == text);
            let mut known = at.map_or_else(|| SqlMade::unseen(text), |at| made.swap_remove(at));
            prepared.under = known
                .found_under
                .get_or_insert_with(|| here.clone())
                .clone();
            alike &= reads_always_alike(prepared.text.as_bytes())
                || (known.under.as_ref()).is_some_and(|under| reads_alike(under, reported));
            remain.push(known);
        }
        *made = remain;
        alike
    }

    /// The backend has all statements of SQL `PREPARE` but these.
    pub fn lost(&mut self, lost: Vec<SqlPrepared>) {
        if !lost.is_empty() || self.have_lost() {
            self.rare.get_or_insert_default().lost = lost;
        }
    }

    /// Whether the backend hasn't got all statements of SQL `PREPARE`.
    pub fn have_lost(&self) -> bool {
        self.rare.as_ref().is_some_and(|rare| !rare.lost.is_empty())
    }

    /// Those of SQL `PREPARE` that the backend has, and that mean what they meant.
    pub fn at_hand<'a>(&self, state: &'a State) -> Vec<&'a str> {
        let here = state.scene();
        let lost = |name| {
            self.rare
                .iter()
                .any(|rare| rare.lost.iter().any(|lost| lost.name == name))
        };
        let prepared = state.prepared.iter();
        let known = prepared.filter(|prepared| prepared.under == here);
        let names = known.map(|prepared| prepared.name.as_str());
        names.filter(|name| !lost(*name)).collect()
    }

    /// A statement was sent of which these parameters name settings. `false` where there are too many to look after; of
    /// those that set something for a transaction only, no more are looked after then.
    pub fn sent_naming(&mut self, name: &[u8], parameters: Vec<Naming>) -> bool {
        if name.is_empty()
            && let Some(rare) = &mut self.rare
        {
            rare.naming.retain(|(known, _)| !known.is_empty());
        }
        if parameters.is_empty() {
            return true;
        }
        let naming = &mut self.rare.get_or_insert_default().naming;
        let known = |known: &NamingIn| *known.0 == *name && *known.1 == *parameters;
        if naming.iter().any(known) {
            return true;
        }
        let lasts = parameters.iter().any(|naming| naming.lasts);
        if naming.len() < FEW || lasts {
            naming.push((name.into(), parameters.into()));
        }
        naming.len() <= FEW
    }

    /// Whether a statement may have parameters that name settings.
    #[inline]
    pub const fn may_name_settings(&self) -> bool {
        self.rare.is_some()
    }

    /// The parameters of a statement that name settings.
    pub fn naming(&self, name: &[u8]) -> impl Iterator<Item = Naming> {
        let naming = self.rare.iter().flat_map(|rare| &rare.naming);
        naming
            .filter(move |(known, _)| **known == *name)
            .flat_map(|(_, parameters)| parameters.iter().copied())
    }

    /// Whether a text may run, by SQL, a statement of which parameters name settings.
    pub fn are_naming_in(&self, sql: &[u8]) -> bool {
        let naming = self.rare.iter().flat_map(|rare| &rare.naming);
        let lasting = naming.filter(|(_, parameters)| parameters.iter().any(|naming| naming.lasts));
        let mut names = (lasting.map(|(name, _)| name)).filter(|name| !name.is_empty());
        let stands = |name: &[u8]| {
            name.contains(&b'"')
                || (sql.windows(name.len())).any(|text| text.eq_ignore_ascii_case(name))
        };
        names.any(|name| stands(name)) && sql::executes(sql)
    }

    /// What a named statement's rows look like was found out.
    pub fn shape(&mut self, name: &[u8], shape: Shape) {
        if let Some(named) = &mut self.named {
            named.shape(name, shape);
        }
    }

    /// Whether every statement would mean the same if its text were read again under these reported settings.
    pub fn would_mean_the_same(&self, under: &Rc<Parameters>) -> bool {
        let mut named = self.named.iter().flat_map(|named| named.iter());
        self.unnamed.would_mean_the_same(under) && named.all(|made| made.reads_alike(under))
    }

    /// A named statement is closed: gives what it was.
    pub fn close(&mut self, name: &[u8]) -> Option<Made> {
        if let Some(rare) = &mut self.rare {
            rare.lost.retain(|lost| lost.name.as_bytes() != name);
        }
        self.named.as_mut()?.remove(name)
    }

    /// DISCARD ALL or DEALLOCATE ALL: every named statement is gone.
    pub fn clear(&mut self) {
        self.named = None;
        if let Some(rare) = &mut self.rare {
            rare.large = false;
            rare.naming.retain(|(name, _)| name.is_empty());
            rare.lost.clear();
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
}

/// A text's hash, to know it again.
fn hash(text: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}
