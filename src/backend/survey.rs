//! Owns what a pool knows of its database's own code: what functions, views, triggers, defaults, checks and policies may leave in
//! a session behind a plain statement. It is found out at a pool's first login, and again when the catalogs have changed.

mod catalogs;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::Notify;

use crate::backend::counts::Count;
use crate::backend::{Backend, Lost};
use crate::clock::{Clock, timers};
use crate::lease::Moment;
use crate::wire::sql::hazards::Hazards;
use crate::wire::sql::{self, Class};

use catalogs::{Survey, survey};

/// How long the catalogs may have changed, by others than sessions of ours, before it is noticed.
const EVERY: Duration = Duration::from_secs(10);

/// How many times as long as a look took the next one isn't taken merely because somebody defined something: whoever
/// defines in a loop beside a large catalog shall pay for looking a twentieth of the time.
const REST: u32 = 20;

/// How long a session waits for what another one finds out before it asks by itself.
const TOGETHER: Duration = Duration::from_secs(1);

/// What a pool knows of its database.
#[derive(Debug, Default)]
pub struct Surveyed {
    hazards: RefCell<Rc<Hazards>>,
    /// The catalogs' version that it is of, and when the look that found it began.
    of: RefCell<Option<(String, Moment)>>,
    /// How often sessions of ours, on whatever data thread and in whatever pool, have defined something in the database.
    definers: Count,
    /// Of how many of these it knows.
    seen: Cell<u64>,
    /// How often sessions of ours have defined something whose text tells that it makes no state; tables may have come that move
    /// sequences.
    tellers: Count,
    /// Of how many of these it knows.
    told: Cell<u64>,
    /// Counts what was found: it stays while the catalogs do.
    edition: Cell<Edition>,
    /// The edition that first told of the latest code that makes settings which nobody can ask for.
    untold: Cell<Edition>,
    /// How many are looking again right now: the others wait for what they find.
    looking: Cell<usize>,
    looked: Notify,
    /// Until when definitions alone are no reason to look.
    rests: Cell<Moment>,
}

/// Which of the findings about a database something rests on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Edition(u64);

/// Somebody looks again, as long as this lives.
struct Looking<'a>(&'a Surveyed);

impl<'a> Looking<'a> {
    fn begin(surveyed: &'a Surveyed) -> Self {
        surveyed.looking.set(surveyed.looking.get() + 1);
        Self(surveyed)
    }
}

impl Drop for Looking<'_> {
    fn drop(&mut self) {
        self.0.looking.set(self.0.looking.get() - 1);
        self.0.looked.notify_waiters();
    }
}

impl Surveyed {
    /// Nothing is known yet.
    #[must_use]
    pub fn of(definers: Count, tellers: Count) -> Self {
        Self {
            definers,
            tellers,
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

    /// What a text may leave: functions of the database's own are known.
    #[must_use]
    pub fn class(&self, text: &[u8]) -> Class {
        let hazards = self.hazards.borrow();
        sql::class_knowing(text, &|name| hazards.leave_out(name))
    }

    /// Whether the sequences are still known to move where they did.
    #[must_use]
    pub fn knows_sequences(&self) -> bool {
        self.tellers.load(Ordering::Acquire) == self.told.get()
    }

    /// What a text of this class may leave, now that it runs: sequences move with some of those that write.
    #[must_use]
    pub fn class_of_writing(&self, text: &[u8]) -> Class {
        if self.knows_sequences() && !self.hazards.borrow().may_move_sequences(text) {
            Class::Rows
        } else {
            Class::Write
        }
    }

    /// Whether there is no name that a text would have to be looked through for.
    #[must_use]
    pub fn knows_nothing(&self) -> bool {
        self.hazards.borrow().name_nothing()
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
        self.edition.get() == edition && !self.is_older(moment)
    }

    /// Whether what has run since `edition` was found out met what was known of it, as far as is known without asking:
    /// nobody of ours has defined anything since, and the catalogs were compared not long ago.
    #[must_use]
    pub fn holds(&self, edition: Edition, now: Moment) -> bool {
        self.edition.get() == edition
            && !self.is_outdated()
            && (self.of.borrow().as_ref())
                .is_some_and(|(_, since)| self.is_looking() || now.since(*since) < EVERY)
    }

    /// The same, and nobody is about to find out anything else: what was made meanwhile of what was known needs no look.
    #[must_use]
    pub fn stands(&self, edition: Edition, now: Moment) -> bool {
        self.holds(edition, now) && !self.is_looking()
    }

    /// Whether code that wasn't known at `edition` makes settings which nobody can ask for.
    #[must_use]
    pub fn learnt_of_untold(&self, edition: Edition) -> bool {
        edition < self.untold.get()
    }

    /// Whether somebody defined something, and what it was isn't to be found out just yet: whoever can wait does.
    #[must_use]
    pub fn rests(&self, now: Moment) -> bool {
        self.is_outdated() && (self.is_looking() || now < self.rests.get())
    }

    /// A session defined something, or somebody says that others did: every pool of the database looks again.
    pub fn outdate(&self) {
        self.definers.fetch_add(1, Ordering::Release);
    }

    /// A session defined something that makes no state.
    pub fn note_told(&self) {
        self.tellers.fetch_add(1, Ordering::Release);
    }

    fn is_looking(&self) -> bool {
        self.looking.get() > 0
    }

    fn is_outdated(&self) -> bool {
        self.definers.load(Ordering::Acquire) != self.seen.get()
    }

    /// Whether somebody may have defined something since the last look, and before `moment`.
    fn is_older(&self, moment: Moment) -> bool {
        self.is_outdated() || (self.of.borrow().as_ref()).is_none_or(|(_, since)| *since <= moment)
    }

    /// Whether the catalogs weren't compared for long, or never.
    fn is_old(&self, now: Moment) -> bool {
        (self.of.borrow().as_ref()).is_none_or(|(_, since)| now.since(*since) >= EVERY)
    }

    /// Looks for the first time, or again where it is time and nobody else does: for a backend that was opened just now,
    /// whose session has left nothing yet.
    ///
    /// Not cancel safe: a survey that is broken off loses the backend.
    ///
    /// # Errors
    /// The backend is lost; from then on anything is taken for hazardous.
    pub async fn refresh(&self, backend: &mut Backend, clock: Clock) -> Result<(), Lost> {
        let now = clock.now();
        let first = self.of.borrow().is_none();
        let due = self.is_outdated() && !self.rests(now) || self.is_old(now);
        if first || due && !self.is_looking() {
            // Nobody listens on this backend: there is nothing to hear.
            self.refresh_after(backend, clock, Moment::default())
                .await?;
        }
        Ok(())
    }

    /// Looks again, unless somebody has after `moment` and the last definition; gives the notifications that came meanwhile.
    ///
    /// Not cancel safe: a survey that is broken off loses the backend.
    ///
    /// # Errors
    /// As [`Surveyed::refresh`].
    pub async fn refresh_after(
        &self,
        backend: &mut Backend,
        clock: Clock,
        moment: Moment,
    ) -> Result<Vec<u8>, Lost> {
        let mut heard = Vec::new();
        while self.is_older(moment) || self.is_old(clock.now()) {
            let alone = self.looking.get() == 0
                || timers::timeout(TOGETHER, self.looked.notified())
                    .await
                    .is_err();
            if alone {
                self.look(backend, clock, &mut heard).await?;
                break;
            }
        }
        Ok(heard)
    }

    async fn look(
        &self,
        backend: &mut Backend,
        clock: Clock,
        heard: &mut Vec<u8>,
    ) -> Result<(), Lost> {
        let _looking = Looking::begin(self);
        let (began, defined) = (clock.precise(), self.definers.load(Ordering::Acquire));
        let told = self.tellers.load(Ordering::Acquire);
        let now = clock.now();
        let known = self
            .of
            .borrow()
            .as_ref()
            .map(|(version, _)| version.clone());
        let found = survey(backend, known.as_deref(), heard).await;
        self.seen.set(defined);
        self.told.set(told);
        let ended = clock.precise();
        self.rests
            .set(ended.after((ended.since(began) * REST).min(EVERY)));
        let (version, lost) = match found {
            Ok(None) => (known, None),
            Ok(Some(Survey { version, hazards })) => {
                self.believe(hazards);
                (Some(version), None)
            }
            Err(error) => {
                self.believe(Hazards::anywhere());
                (None, Some(error))
            }
        };
        *self.of.borrow_mut() = Some((version.unwrap_or_default(), now));
        lost.map_or(Ok(()), Err)
    }

    /// What was known of code that nobody can ask about stays known where nothing is found out, and the names of settings in any
    /// case: whoever has run code that is gone by now may have what it set.
    fn believe(&self, mut found: Hazards) {
        let known = self.hazards();
        found.remember_names_of(&known);
        let edition = Edition(self.edition.get().0 + 1);
        if found.are_anywhere() {
            found.keep_untold_of(&known);
        } else if !found.are_untold_as_in(&known) {
            self.untold.set(edition);
        }
        self.edition.set(edition);
        *self.hazards.borrow_mut() = Rc::new(found);
    }
}
