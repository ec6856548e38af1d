//! Owns the bounded set of backends for one (database, user), and the queue of those who wait for one.
//!
//! The right to hold one backend is a value, the [`Permit`]: it is counted where it is made, and given back where it is
//! dropped. Nothing here awaits: the data thread's tasks share it without a lock.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use crate::backend::counts::{Changes, Count};
use crate::backend::ears::Ears;
use crate::backend::login::{Credentials, Proof};
use crate::backend::prepared::Texts;
use crate::backend::survey::Surveyed;
use crate::backend::{Backend, Baseline, Home, Parameters, State};
use crate::lease::{BackendId, Generation, LeaseState, Moment, SessionId};
use crate::wire::reply::{self, ClientError, Fields};

#[cfg(test)]
mod tests;

/// How long a backend stays warm for its session before another may take it while new ones may still be opened.
const WARM: Duration = Duration::from_secs(1);

/// How many names of custom settings a pool learns from its sessions at most.
const KNOWN_SETTINGS: usize = 1000;

/// How many startup parameter sets a pool remembers the reports of.
const KNOWN_BASELINES: usize = 64;

/// The backends of one (database, user).
#[derive(Debug)]
pub struct Pool {
    pub database: Rc<str>,
    pub user: Rc<str>,
    max: usize,
    /// The state of a session that has set nothing, shared by all of them.
    pub blank: Rc<State>,
    /// What its sessions did so far.
    pub counters: Counters,
    /// What its clients' logins have shown, to log in upstream with.
    pub credentials: Credentials,
    /// Backends of older generations are replaced once nobody holds them.
    oldest: Cell<Generation>,
    /// So are those that were opened before this one.
    renewed: Cell<BackendId>,
    /// Nobody gets a backend, and none is kept.
    paused: Cell<bool>,
    /// What its database's own code may do behind a statement.
    pub surveyed: Surveyed,
    /// How often sessions of ours have changed its role.
    role: Count,
    /// How many of these were heeded.
    seen: Cell<u64>,
    /// The first backend that was opened after the last of them.
    changed: Cell<BackendId>,
    /// The backend that listens for its detached sessions, if there is one.
    ears: RefCell<Weak<Ears>>,
    /// How many such backends there are.
    listening: Cell<usize>,
    state: RefCell<Inner>,
}

/// Counts that only grow; plain cells, since one data thread owns them.
#[derive(Debug, Default)]
pub struct Counters {
    /// Requests that clients sent: simple queries, function calls and Syncs.
    pub requests: Cell<u64>,
    /// ReadyForQuery outside a transaction.
    pub transactions: Cell<u64>,
    /// Bytes from clients.
    pub bytes_in: Cell<u64>,
    /// Bytes to clients.
    pub bytes_out: Cell<u64>,
    /// Time in which requests were unanswered, in microseconds.
    pub active: Cell<u64>,
    /// The same, and that between requests inside transactions.
    pub in_transaction: Cell<u64>,
    /// Leases that were taken after some work: a wait, a login, a restore.
    pub waits: Cell<u64>,
    /// How long that took, in microseconds.
    pub waited: Cell<u64>,
}

impl Counters {
    /// A state of a lease was left: adds up how long it lasted.
    pub fn left(&self, left: LeaseState, now: Moment) {
        let lasted = |since: Moment| now.as_micros().saturating_sub(since.as_micros()) as usize;
        match left {
            LeaseState::Active { since, .. } => {
                add(&self.active, lasted(since));
                add(&self.in_transaction, lasted(since));
            }
            LeaseState::InTransaction { since, .. } => add(&self.in_transaction, lasted(since)),
            LeaseState::Ended { .. } | LeaseState::Idle { .. } | LeaseState::Returning { .. } => {}
        }
    }
}

/// Adds to a count.
pub fn add(count: &Cell<u64>, more: usize) {
    count.set(count.get().wrapping_add(more as u64));
}

/// What PostgreSQL said at the last login with these startup parameters.
#[derive(Debug)]
struct Known {
    baseline: Rc<Baseline>,
    reports: Rc<Parameters>,
    /// Notices, as messages.
    notices: Rc<[u8]>,
}

#[derive(Debug, Default)]
struct Inner {
    /// Backends that nobody holds; the one that came back last stands last.
    idle: Vec<Lent>,
    /// Permits that exist.
    permits: usize,
    /// Backends that are being opened.
    opening: usize,
    waiters: VecDeque<Rc<Waiter>>,
    /// Names of custom settings that are captured for every session: those of the configuration, and those that any
    /// session named and the configuration's patterns match.
    preserved: BTreeSet<String>,
    /// Every set of startup parameters in use, once.
    baselines: Vec<Rc<Baseline>>,
    /// What PostgreSQL said at the last login with each set of startup parameters.
    known: Vec<Known>,
    /// The sessions whose warm backends are being asked whether they are alive.
    away: Vec<SessionId>,
    /// Reports that several sessions or backends may have in common.
    shared: Vec<Rc<Parameters>>,
    /// The texts of its sessions' prepared statements.
    texts: Texts,
    /// Sessions that keep a backend which they could return, until their database was looked at again.
    deferred: BTreeSet<SessionId>,
    /// The last failure to open a backend, how many came in a row, and when the next try is due.
    failure: Option<(ClientError, u32, Moment)>,
}

impl Inner {
    fn known(&self, baseline: &Rc<Baseline>) -> Option<&Known> {
        let mut all = self.known.iter();
        all.find(|known| Rc::ptr_eq(&known.baseline, baseline))
    }
}

#[derive(Debug)]
struct Waiter {
    /// Who waits; no session's id while it logs in.
    session: SessionId,
    since: Moment,
    grant: RefCell<Option<Grant>>,
    waker: RefCell<Option<Waker>>,
}

/// The right to hold one backend of a pool.
#[derive(Debug)]
pub struct Permit {
    pool: Weak<Pool>,
}

/// A backend that is lent, with the right to hold it. Dropped, the backend is closed.
#[derive(Debug)]
pub struct Lent {
    pub backend: Box<Backend>,
    pub permit: Permit,
}

/// What a pool grants.
#[derive(Debug)]
pub enum Grant {
    /// A backend; whose state it carries stands in its `home`.
    Lent(Lent),
    /// The right to open one.
    Open(Permit),
}

/// How many backends are in which condition.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Census {
    pub leased: usize,
    pub warm: usize,
    pub idle: usize,
    pub connecting: usize,
    /// Listening for detached sessions.
    pub listening: usize,
    pub waiting: usize,
    pub max: usize,
}

impl Census {
    /// Whether the pool has anything at all.
    #[must_use]
    pub const fn is_in_use(&self) -> bool {
        self.leased + self.warm + self.idle + self.connecting + self.listening + self.waiting > 0
    }
}

/// Who asks, and for what.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    pub session: SessionId,
    pub baseline: &'a Rc<Baseline>,
    /// The settings that it wants to find.
    pub state: &'a Rc<State>,
    /// What its client was told: among backends that are alike, one that bears its `application_name` is the best.
    pub told: &'a Rc<Parameters>,
    /// Take another backend than the own warm one, wherever one exists.
    pub elsewhere: bool,
    pub now: Moment,
}

impl Pool {
    /// An empty pool.
    #[must_use]
    pub fn new(database: Rc<str>, user: Rc<str>, max: usize) -> Rc<Self> {
        Self::beside(database, user, max, &Changes::default())
    }

    /// An empty pool beside others, which count together what their sessions change.
    #[must_use]
    pub fn beside(database: Rc<str>, user: Rc<str>, max: usize, changes: &Changes) -> Rc<Self> {
        let role = changes.roles.of(&user);
        Rc::new(Self {
            surveyed: Surveyed::of(
                changes.databases.of(&database),
                changes.tables.of(&database),
            ),
            seen: Cell::new(role.load(Ordering::Acquire)),
            changed: Cell::new(BackendId(0)),
            role,
            database,
            user,
            max,
            blank: Rc::default(),
            counters: Counters::default(),
            credentials: Credentials::default(),
            oldest: Cell::default(),
            renewed: Cell::new(BackendId(0)),
            paused: Cell::default(),
            ears: RefCell::default(),
            listening: Cell::default(),
            state: RefCell::default(),
        })
    }

    /// Grants a backend at once, or not: whoever waits already comes first.
    pub fn try_acquire(self: &Rc<Self>, request: Request<'_>) -> Option<Grant> {
        if self.paused.get() || !self.state.borrow().waiters.is_empty() {
            return None;
        }
        while let Some(mut lent) = self.pick(request) {
            if !Rc::ptr_eq(&lent.backend.baseline, request.baseline) {
                return Some(Grant::Open(lent.permit));
            }
            if lent.backend.is_fit() {
                return Some(Grant::Lent(lent));
            }
        }
        self.permit().map(Grant::Open)
    }

    /// The right to open one more backend, where the bound leaves room. Whoever waits isn't asked.
    pub fn permit(self: &Rc<Self>) -> Option<Permit> {
        let mut state = self.state.borrow_mut();
        if state.permits >= self.max {
            return None;
        }
        state.permits += 1;
        Some(Permit {
            pool: Rc::downgrade(self),
        })
    }

    /// Takes the best backend for `request` out of the idle ones.
    fn pick(&self, request: Request<'_>) -> Option<Lent> {
        let mut state = self.state.borrow_mut();
        let full = state.permits >= self.max;
        let stale = request.now.before(WARM);
        let idle = &state.idle;
        let own = |lent: &Lent| lent.backend.home == Home::Of(request.session);
        let fits = |lent: &Lent| Rc::ptr_eq(&lent.backend.baseline, request.baseline);
        let alike = |lent: &Lent| fits(lent) && lent.backend.is_like_one_with(request.state);
        let ripe = |lent: &Lent| full || request.elsewhere || lent.backend.rested < stale;
        let home = || idle.iter().position(own);
        let namesake = |lent: &Lent| {
            let parameters = &lent.backend.parameters;
            Rc::ptr_eq(parameters, request.told)
                || parameters.application() == request.told.application()
        };
        let like = |named: bool| {
            idle.iter()
                .rposition(|lent| !own(lent) && alike(lent) && (!named || namesake(lent)))
        };
        let same = || like(true).or_else(|| like(false));
        let clean = || {
            idle.iter().rposition(|lent| match lent.backend.home {
                Home::Clean => fits(lent),
                Home::Left => fits(lent) && lent.backend.is_blank(),
                Home::Of(_) => false,
            })
        };
        let warm = || {
            idle.iter()
                .position(|lent| !own(lent) && fits(lent) && ripe(lent))
        };
        let foreign = || idle.iter().position(|lent| full && !fits(lent));
        let index = if request.elsewhere {
            same()
                .or_else(clean)
                .or_else(warm)
                .or_else(|| home().filter(|_| full))
        } else {
            home().or_else(same).or_else(clean).or_else(warm)
        };
        let index = index.or_else(foreign)?;
        Some(state.idle.remove(index))
    }

    /// Waits in the queue for a grant. Cancel safe: a grant that came meanwhile goes to the next.
    #[must_use]
    pub fn wait(self: &Rc<Self>, session: SessionId, now: Moment) -> Wait {
        let waiter = Rc::new(Waiter {
            session,
            since: now,
            grant: RefCell::default(),
            waker: RefCell::default(),
        });
        self.state.borrow_mut().waiters.push_back(waiter.clone());
        Wait {
            pool: self.clone(),
            waiter,
            done: false,
        }
    }

    /// Whether a session may keep a backend that it could return: nobody waits for one. [`Pool::deferred`] gives it then.
    pub fn defer(&self, session: SessionId) -> bool {
        let mut state = self.state.borrow_mut();
        let may = state.waiters.is_empty() && !self.paused.get();
        if may {
            state.deferred.insert(session);
        }
        may
    }

    /// The sessions that keep a backend which they could return, to be asked again: somebody waits, or time has passed.
    #[must_use]
    pub fn deferred(&self) -> BTreeSet<SessionId> {
        std::mem::take(&mut self.state.borrow_mut().deferred)
    }

    /// Takes a backend back. Whoever waits gets it at once.
    pub fn give_back(self: &Rc<Self>, mut lent: Lent, now: Moment) {
        let old = lent.backend.generation < self.oldest.get() || !lent.backend.suits();
        if old || lent.backend.id < self.renewed.get() || self.paused.get() {
            // Its permit goes to whoever waits, who opens a new one.
            return drop(lent);
        }
        lent.backend.rested = now;
        let waiter = self.state.borrow_mut().waiters.pop_front();
        match waiter {
            Some(waiter) => waiter.grant(Grant::Lent(lent)),
            None => self.state.borrow_mut().idle.push(lent),
        }
    }

    fn permit_dropped(self: &Rc<Self>) {
        let waiter = if self.paused.get() {
            None
        } else {
            self.state.borrow_mut().waiters.pop_front()
        };
        match waiter {
            Some(waiter) => waiter.grant(Grant::Open(Permit {
                pool: Rc::downgrade(self),
            })),
            None => self.state.borrow_mut().permits -= 1,
        }
    }

    /// The names of custom settings to capture for a session that named `own` itself: those that the configuration, or
    /// any function of the database, names as well.
    pub fn preserve(
        &self,
        own: &Rc<BTreeSet<String>>,
        patterns: &[String],
    ) -> Rc<BTreeSet<String>> {
        let hazards = self.surveyed.hazards();
        if patterns.is_empty() && hazards.settings.is_subset(own) {
            return own.clone();
        }
        let preserved = &mut self.state.borrow_mut().preserved;
        for pattern in patterns {
            match pattern.strip_suffix('*') {
                None => drop(preserved.insert(pattern.to_ascii_lowercase())),
                Some(prefix) => {
                    let matching = own
                        .iter()
                        .filter(|name| name.starts_with(&prefix.to_ascii_lowercase()));
                    preserved.extend(
                        matching
                            .take(KNOWN_SETTINGS.saturating_sub(preserved.len()))
                            .cloned(),
                    );
                }
            }
        }
        let coded = hazards.settings.iter().take(KNOWN_SETTINGS);
        let names = own.iter().chain(preserved.iter()).chain(coded);
        Rc::new(names.cloned().collect())
    }

    /// The text of a prepared statement, shared with whoever has it already.
    pub fn share_text(&self, text: &[u8]) -> Rc<[u8]> {
        self.state.borrow_mut().texts.share(text)
    }

    /// The one set of startup parameters that equals `baseline`, so that equal ones are the same.
    pub fn intern(&self, baseline: Baseline) -> Rc<Baseline> {
        let mut state = self.state.borrow_mut();
        if let Some(known) = state.baselines.iter().find(|known| ***known == baseline) {
            return known.clone();
        }
        if state.baselines.len() >= KNOWN_BASELINES {
            state.baselines.retain(|known| Rc::strong_count(known) > 1);
        }
        let baseline = Rc::new(baseline);
        state.baselines.push(baseline.clone());
        baseline
    }

    /// What PostgreSQL reports at a login with these startup parameters, as far as it may be taken for granted: as long
    /// as the pool has a backend that is alive.
    #[must_use]
    pub fn reports(&self, baseline: &Rc<Baseline>) -> Option<Rc<Parameters>> {
        let state = self.state.borrow();
        if state.permits == state.opening || state.failure.is_some() {
            return None;
        }
        state.known(baseline).map(|known| known.reports.clone())
    }

    /// The notices that came with them: a client hears them at its login, too.
    #[must_use]
    pub fn notices(&self, baseline: &Rc<Baseline>) -> Option<Rc<[u8]>> {
        let state = self.state.borrow();
        let known = state.known(baseline);
        known
            .map(|known| known.notices.clone())
            .filter(|notices| !notices.is_empty())
    }

    /// Notes what PostgreSQL said at this one's login. What it reported is shared with the backends that reported the same:
    /// who goes from one of them to another needn't compare. Gives how many attempts had failed before it.
    pub fn learn(&self, baseline: &Rc<Baseline>, backend: &mut Backend) -> u32 {
        backend.parameters = self.share(backend.parameters.clone());
        let notices = std::mem::take(&mut backend.notices);
        let mut state = self.state.borrow_mut();
        let failures = state.failure.take().map_or(0, |(_, count, _)| count);
        let before = state.known(baseline).map(|known| known.notices.clone());
        if *before.unwrap_or_default() != *notices {
            self.log_notices(&notices);
        }
        let place = |known: &Known| !Rc::ptr_eq(&known.baseline, baseline);
        state.known.retain(place);
        state.known.push(Known {
            baseline: baseline.clone(),
            reports: backend.parameters.clone(),
            notices: notices.into(),
        });
        if state.known.len() > KNOWN_BASELINES {
            state.known.remove(0);
        }
        failures
    }

    /// Whoever runs the database may have to do something about what PostgreSQL remarks at a login.
    fn log_notices(&self, notices: &[u8]) {
        for notice in reply::each(notices) {
            let Fields {
                severity,
                code,
                message,
            } = Fields::read(notice);
            let message = message.replace(char::is_control, " ");
            tracing::warn!(database = %self.database, user = %self.user, sqlstate = %code, "PostgreSQL says at the login: {severity}: {message}");
        }
    }

    /// The reports that equal these, where somebody has such already: what many sessions are told is kept once.
    pub fn share(&self, parameters: Rc<Parameters>) -> Rc<Parameters> {
        let shared = &mut self.state.borrow_mut().shared;
        if let Some(known) = shared.iter().find(|known| **known == parameters) {
            return known.clone();
        }
        if shared.len() >= KNOWN_BASELINES {
            shared.retain(|known| Rc::strong_count(known) > 1);
            shared.truncate(KNOWN_BASELINES / 2);
        }
        shared.push(parameters.clone());
        parameters
    }

    /// Takes in what a client's login has shown. What was refused without it is tried again at once.
    pub fn learn_proof(&self, proof: Proof) {
        if self.credentials.learn(proof) {
            self.state.borrow_mut().failure = None;
        }
    }

    /// Marks the beginning of an attempt to open a backend; it lasts until the value is dropped.
    ///
    /// # Errors
    /// The last attempt's error, while the next one is not due yet: failures must not storm the database.
    pub fn begin_opening(self: &Rc<Self>, now: Moment) -> Result<Opening, ClientError> {
        let mut state = self.state.borrow_mut();
        if let Some((error, _, due)) = &state.failure
            && now < *due
        {
            return Err(error.clone());
        }
        state.opening += 1;
        Ok(Opening { pool: self.clone() })
    }

    /// Notes a failed attempt. A refused login is tried again later and later, up to a second; anything else at once.
    pub fn failed(&self, error: &ClientError, now: Moment) {
        let mut state = self.state.borrow_mut();
        let count = state.failure.as_ref().map_or(0, |(_, count, _)| *count) + 1;
        let login = error.code.starts_with("28");
        let pause = if login {
            Duration::from_millis(50 << count.min(5)).min(Duration::from_secs(1))
        } else {
            Duration::ZERO
        };
        state.failure = Some((error.clone(), count, now.after(pause)));
    }

    /// Closes backends that are dead, older than `lifetime`, or idle for longer than `idle_timeout`; zero means never.
    pub fn tend(self: &Rc<Self>, now: Moment, lifetime: Duration, idle_timeout: Duration) {
        let over = |limit: Duration, since: Moment| !limit.is_zero() && now.since(since) >= limit;
        let spent = |backend: &mut Backend| {
            // Lifetimes have jitter, so that backends that were opened together don't all end together.
            let jitter = lifetime / 128 * u32::try_from(backend.id.0 % 16).unwrap_or(0);
            over(lifetime.saturating_sub(jitter), backend.key.born)
                || over(idle_timeout, backend.rested)
                || !backend.is_fit()
        };
        let closed: Vec<Lent> = self
            .state
            .borrow_mut()
            .idle
            .extract_if(.., |lent| spent(&mut lent.backend))
            .collect();
        drop(closed);
    }

    /// Replaces backends that were opened before this generation: idle ones now, lent ones when they come back.
    pub fn recycle(self: &Rc<Self>, generation: Generation) {
        self.surveyed.outdate();
        self.oldest.set(generation);
        let old = |lent: &mut Lent| lent.backend.generation < generation;
        let closed: Vec<Lent> = self.state.borrow_mut().idle.extract_if(.., old).collect();
        drop(closed);
    }

    /// Replaces backends that were opened before this one, likewise.
    pub fn renew(self: &Rc<Self>, before: BackendId) {
        self.surveyed.outdate();
        self.replace(before);
    }

    fn replace(&self, before: BackendId) {
        self.renewed.set(before);
        let old = |lent: &mut Lent| lent.backend.id < before;
        let closed: Vec<Lent> = self.state.borrow_mut().idle.extract_if(.., old).collect();
        drop(closed);
    }

    /// Where the role was changed, or made anew under its name, since backend `next` wasn't opened yet: nobody who logs in from
    /// now on is taken for one of those who were there before. PostgreSQL says whether they may log in, and as what.
    pub fn heed_role(&self, next: BackendId) {
        let changes = self.role.load(Ordering::Acquire);
        if self.seen.replace(changes) == changes {
            return;
        }
        self.changed.set(next);
        let mut state = self.state.borrow_mut();
        state.baselines.clear();
        state.known.clear();
    }

    /// A session wants one more backend. Where it is from before a change of the role, it finds the new defaults there, and so
    /// shall all of them: those that they had are replaced.
    pub fn grow(self: &Rc<Self>, baseline: &Rc<Baseline>) {
        let changed = self.changed.get();
        let is_of_now = |known: &Rc<Baseline>| Rc::ptr_eq(known, baseline);
        if self.renewed.get() < changed && !self.state.borrow().baselines.iter().any(is_of_now) {
            self.replace(changed);
        }
    }

    /// Whether a backend is replaced once nobody holds it.
    #[must_use]
    pub fn is_old(&self, backend: BackendId) -> bool {
        backend < self.renewed.get()
    }

    /// Lends nothing more until it is resumed. Backends that nobody holds are closed, others as they come back.
    pub fn pause(self: &Rc<Self>) {
        self.paused.set(true);
        self.close_idle();
    }

    /// Lends again, to those who wait first.
    pub fn resume(self: &Rc<Self>) {
        self.paused.set(false);
        loop {
            let mut state = self.state.borrow_mut();
            if state.permits >= self.max {
                return;
            }
            let Some(waiter) = state.waiters.pop_front() else {
                return;
            };
            state.permits += 1;
            drop(state);
            waiter.grant(Grant::Open(Permit {
                pool: Rc::downgrade(self),
            }));
        }
    }

    /// Whether it is paused.
    #[must_use]
    pub fn is_paused(&self) -> bool {
        self.paused.get()
    }

    /// Who waits, since when; the longest first.
    #[must_use]
    pub fn waiting(&self) -> Vec<(SessionId, Moment)> {
        let state = self.state.borrow();
        state
            .waiters
            .iter()
            .map(|waiter| (waiter.session, waiter.since))
            .collect()
    }

    /// Looks at each backend that nobody holds.
    pub fn each_idle(&self, mut look: impl FnMut(&Backend)) {
        for lent in &self.state.borrow().idle {
            look(&lent.backend);
        }
    }

    /// Closes every backend that nobody holds.
    pub fn close_idle(self: &Rc<Self>) {
        let idle = std::mem::take(&mut self.state.borrow_mut().idle);
        drop(idle);
    }

    /// The session has moved to another backend: those that carry an older state of its are no longer its home.
    pub fn leave(&self, session: SessionId) {
        let mut state = self.state.borrow_mut();
        for lent in &mut state.idle {
            if lent.backend.home == Home::Of(session) {
                lent.backend.home = Home::Left;
            }
        }
        state.away.retain(|known| *known != session);
    }

    /// Takes out the warm backend of a session that has ended, to be scrubbed.
    pub fn take_warm(&self, session: SessionId) -> Option<Lent> {
        let mut state = self.state.borrow_mut();
        state.away.retain(|known| *known != session);
        let index = state
            .idle
            .iter()
            .position(|lent| lent.backend.home == Home::Of(session))?;
        Some(state.idle.remove(index))
    }

    /// The backends that nobody holds.
    #[must_use]
    pub fn idle_ids(&self) -> Vec<BackendId> {
        let state = self.state.borrow();
        state.idle.iter().map(|lent| lent.backend.id).collect()
    }

    /// Takes a backend out for a question of ours, if nobody holds it.
    pub fn borrow_idle(self: &Rc<Self>, id: BackendId) -> Option<Borrowed> {
        let mut state = self.state.borrow_mut();
        let index = state.idle.iter().position(|lent| lent.backend.id == id)?;
        let lent = state.idle.remove(index);
        if let Home::Of(session) = lent.backend.home {
            state.away.push(session);
        }
        Some(Borrowed {
            pool: self.clone(),
            lent,
        })
    }

    /// The backend that listens for its detached sessions, if there is one that lives.
    #[must_use]
    pub fn ears(&self) -> Option<Rc<Ears>> {
        let ears = self.ears.borrow().upgrade();
        ears.filter(|ears| !ears.is_lost())
    }

    pub(super) fn set_ears(&self, ears: &Rc<Ears>) {
        *self.ears.borrow_mut() = Rc::downgrade(ears);
    }

    /// One of its backends listens for sessions, until the value is dropped.
    pub(super) fn begin_listening(self: &Rc<Self>) -> Listening {
        self.listening.set(self.listening.get() + 1);
        Listening { pool: self.clone() }
    }

    /// How many backends are in which condition.
    #[must_use]
    pub fn census(&self) -> Census {
        let state = self.state.borrow();
        let warm = state
            .idle
            .iter()
            .filter(|lent| lent.backend.home != Home::Clean)
            .count();
        Census {
            leased: state.permits - state.idle.len() - state.opening - self.listening.get(),
            warm,
            idle: state.idle.len() - warm,
            connecting: state.opening,
            listening: self.listening.get(),
            waiting: state.waiters.len(),
            max: self.max,
        }
    }
}

/// An attempt to open a backend.
#[derive(Debug)]
pub struct Opening {
    pool: Rc<Pool>,
}

impl Drop for Opening {
    fn drop(&mut self) {
        self.pool.state.borrow_mut().opening -= 1;
    }
}

/// A backend that listens for sessions.
#[derive(Debug)]
pub(super) struct Listening {
    pool: Rc<Pool>,
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.pool.listening.set(self.pool.listening.get() - 1);
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(pool) = self.pool.upgrade() {
            pool.permit_dropped();
        }
    }
}

impl Waiter {
    fn grant(&self, grant: Grant) {
        *self.grant.borrow_mut() = Some(grant);
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }
}

/// A backend that nobody leases, taken out for a question of ours. Dropped, it is closed.
#[derive(Debug)]
pub struct Borrowed {
    pool: Rc<Pool>,
    lent: Lent,
}

impl Borrowed {
    /// The backend.
    pub fn backend(&mut self) -> &mut Backend {
        &mut self.lent.backend
    }

    /// Puts it back as it was. Its session may have moved on meanwhile: then it carries an older state.
    pub fn give_back(mut self) {
        let since = self.lent.backend.rested;
        if let Home::Of(session) = self.lent.backend.home {
            let away = &mut self.pool.state.borrow_mut().away;
            match away.iter().position(|known| *known == session) {
                Some(index) => drop(away.swap_remove(index)),
                None => self.lent.backend.home = Home::Left,
            }
        }
        self.pool.give_back(self.lent, since);
    }

    /// It is dead: the backend, and the right to open another.
    #[must_use]
    pub fn bury(self) -> (Box<Backend>, Permit) {
        if let Home::Of(session) = self.lent.backend.home {
            let away = &mut self.pool.state.borrow_mut().away;
            away.retain(|known| *known != session);
        }
        (self.lent.backend, self.lent.permit)
    }
}

/// A place in the queue.
#[derive(Debug)]
pub struct Wait {
    pool: Rc<Pool>,
    waiter: Rc<Waiter>,
    /// The grant came and was taken: the queue knows nothing of it any more.
    done: bool,
}

impl Future for Wait {
    type Output = Grant;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Grant> {
        let granted = self.waiter.grant.borrow_mut().take();
        if let Some(grant) = granted {
            self.done = true;
            return Poll::Ready(grant);
        }
        *self.waiter.waker.borrow_mut() = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        self.pool
            .state
            .borrow_mut()
            .waiters
            .retain(|waiter| !Rc::ptr_eq(waiter, &self.waiter));
        let grant = self.waiter.grant.borrow_mut().take();
        match grant {
            Some(Grant::Lent(lent)) => {
                let now = lent.backend.rested;
                self.pool.give_back(lent, now);
            }
            Some(Grant::Open(permit)) => drop(permit),
            None => {}
        }
    }
}
