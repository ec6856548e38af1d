//! Owns what a pool knows of its database's own code: what functions, views, triggers, defaults, checks and policies may leave in
//! a session behind a plain statement. It is found out at a pool's first login, and again when the catalogs have changed.

mod catalogs;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::backend::{Backend, Lost};
use crate::lease::Moment;
use crate::wire::sql::hazards::Hazards;

use catalogs::{Survey, survey};

/// How long the catalogs may have changed, by others than sessions of ours, before it is noticed.
const EVERY: Duration = Duration::from_secs(10);

/// How often sessions of ours, on whatever data thread and in whatever pool, have defined something: by database.
#[derive(Clone, Debug, Default)]
pub struct Definitions(Arc<Mutex<HashMap<Box<str>, Definers>>>);

/// The count of one database.
pub type Definers = Arc<AtomicU64>;

impl Definitions {
    /// The count of `database`, which all of its pools share.
    #[must_use]
    pub fn of(&self, database: &str) -> Definers {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Databases that no pool is left of.
        all.retain(|_, count| Arc::strong_count(count) > 1);
        all.entry(database.into()).or_default().clone()
    }
}

/// What a pool knows of its database.
#[derive(Debug, Default)]
pub struct Surveyed {
    hazards: RefCell<Rc<Hazards>>,
    /// The catalogs' version that it is of, and when it was last compared.
    of: RefCell<Option<(String, Moment)>>,
    /// How often somebody defined something.
    definers: Definers,
    /// Of how many of these it knows.
    seen: Cell<u64>,
    /// Counts what was found: it stays while the catalogs do.
    edition: Cell<Edition>,
    /// How many are looking again right now.
    looking: Cell<usize>,
}

/// Which of the findings about a database something rests on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Edition(u64);

/// Somebody looks again, as long as this lives.
struct Looking<'a>(&'a Cell<usize>);

impl<'a> Looking<'a> {
    fn begin(count: &'a Cell<usize>) -> Self {
        count.set(count.get() + 1);
        Self(count)
    }
}

impl Drop for Looking<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

impl Surveyed {
    /// Nothing is known yet.
    #[must_use]
    pub fn of(definers: Definers) -> Self {
        Self {
            definers,
            ..Self::default()
        }
    }

    /// What is known now.
    #[must_use]
    pub fn hazards(&self) -> Rc<Hazards> {
        self.hazards.borrow().clone()
    }

    /// Whether no text means that PostgreSQL has to be asked.
    #[must_use]
    pub fn knows_no_hazards(&self) -> bool {
        self.hazards.borrow().are_none()
    }

    /// What is known now, to be compared with later on.
    #[must_use]
    pub fn edition(&self) -> Edition {
        self.edition.get()
    }

    /// Whether the catalogs, compared after `moment`, are as they were when `edition` was found out: what ran in between met
    /// what was known of it.
    #[must_use]
    pub fn was_still(&self, edition: Edition, moment: Moment) -> bool {
        self.edition.get() == edition && self.looking.get() == 0 && !self.is_older(moment)
    }

    /// Whether somebody may have defined something since the last look, and before `moment`.
    fn is_older(&self, moment: Moment) -> bool {
        self.definers.load(Ordering::Acquire) != self.seen.get()
            || (self.of.borrow().as_ref()).is_none_or(|(_, since)| *since <= moment)
    }

    /// A session defined something, or somebody says that others did: every pool of the database looks again.
    pub fn outdate(&self) {
        self.definers.fetch_add(1, Ordering::Release);
    }

    /// Whether it is time to look again.
    #[must_use]
    pub fn is_due(&self, now: Moment) -> bool {
        self.definers.load(Ordering::Acquire) != self.seen.get()
            || (self.of.borrow().as_ref()).is_none_or(|(_, since)| now.since(*since) >= EVERY)
    }

    /// Looks again, if it is time.
    ///
    /// Not cancel safe: a survey that is broken off loses the backend.
    ///
    /// # Errors
    /// The backend is lost; from then on anything is taken for hazardous.
    pub async fn refresh(&self, backend: &mut Backend, now: Moment) -> Result<(), Lost> {
        if self.is_due(now) {
            // Nobody listens on this backend: there is nothing to hear.
            self.look(backend, now, &mut Vec::new()).await?;
        }
        Ok(())
    }

    /// Looks again, unless somebody has after `moment`; gives the notifications that came meanwhile.
    ///
    /// Not cancel safe: a survey that is broken off loses the backend.
    ///
    /// # Errors
    /// As [`Surveyed::refresh`].
    pub async fn refresh_after(
        &self,
        backend: &mut Backend,
        now: Moment,
        moment: Moment,
    ) -> Result<Vec<u8>, Lost> {
        let mut heard = Vec::new();
        if self.is_due(now) || self.is_older(moment) {
            self.look(backend, now, &mut heard).await?;
        }
        Ok(heard)
    }

    async fn look(
        &self,
        backend: &mut Backend,
        now: Moment,
        heard: &mut Vec<u8>,
    ) -> Result<(), Lost> {
        let _looking = Looking::begin(&self.looking);
        self.seen.set(self.definers.load(Ordering::Acquire));
        let known = self
            .of
            .borrow()
            .as_ref()
            .map(|(version, _)| version.clone());
        // Others needn't ask the same meanwhile.
        *self.of.borrow_mut() = Some((known.clone().unwrap_or_default(), now));
        let found = survey(backend, known.as_deref(), heard).await;
        let Survey { version, hazards } = match found {
            Ok(None) => return Ok(()),
            Ok(Some(found)) => found,
            Err(error) => {
                self.believe(Hazards::anywhere());
                return Err(error);
            }
        };
        *self.of.borrow_mut() = Some((version, now));
        self.believe(hazards);
        Ok(())
    }
}

impl Surveyed {
    /// What was known of settings stays known where nothing is found out.
    fn believe(&self, mut found: Hazards) {
        if found.are_anywhere() {
            found.settings.clone_from(&self.hazards.borrow().settings);
        }
        self.edition.set(Edition(self.edition.get().0 + 1));
        *self.hazards.borrow_mut() = Rc::new(found);
    }
}
