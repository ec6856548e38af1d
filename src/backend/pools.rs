//! Owns the pools of one data thread, by database and user, and the opening of their backends.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, HashMap};
use std::rc::Rc;
use std::sync::Arc;

use crate::backend::connect::Login;
use crate::backend::counts::Changes;
use crate::backend::login::Proof;
use crate::backend::lookup::Lookup;
use crate::backend::open::open;
use crate::backend::{Backend, Baseline, Dialer, Lent, Permit, Pool, Tokens};
use crate::clock::Clock;
use crate::config::Config;
use crate::events::{Events, Happening};
use crate::executor;
use crate::lease::{BackendId, Generation, Moment};
use crate::wire::reply::ClientError;
use crate::wire::sql;

/// What one data thread may have at most.
#[derive(Clone, Copy, Debug)]
pub struct Shares {
    /// Backends of one pool: its share of `max_backends`.
    pub pool: usize,
    /// Replication connections: its share of `max_replication`.
    pub replication: usize,
}

/// The pools of one data thread.
#[derive(Debug)]
pub struct Pools {
    config: Arc<Config>,
    dialer: Dialer,
    /// The passwords that commands give.
    tokens: Tokens,
    changes: Changes,
    clock: Clock,
    events: Events,
    /// The bound of each pool: this thread's share of `max_backends`.
    share: usize,
    /// Counts replication connections, and holds none of them: they are in no pool.
    walsenders: Rc<Pool>,
    pools: RefCell<HashMap<(String, String), Rc<Pool>>>,
    /// Whether, and how, PostgreSQL is asked for users' secrets.
    lookup: Option<Box<Lookup>>,
    next: Cell<u64>,
    paused: RefCell<Paused>,
}

/// What is paused, pools that don't exist yet included.
#[derive(Debug, Default)]
struct Paused {
    all: bool,
    databases: BTreeSet<String>,
}

impl Pools {
    /// No pools yet.
    #[must_use]
    pub fn new(
        config: Arc<Config>,
        (dialer, tokens): (Dialer, Tokens),
        changes: Changes,
        clock: Clock,
        events: Events,
        shares: Shares,
    ) -> Self {
        let lookup = Lookup::new(&config).map(Box::new);
        Self {
            lookup,
            config,
            dialer,
            tokens,
            changes,
            clock,
            events,
            share: shares.pool,
            walsenders: Pool::new("".into(), "".into(), shares.replication),
            pools: RefCell::default(),
            next: Cell::new(1),
            paused: RefCell::default(),
        }
    }

    /// The way to PostgreSQL.
    #[must_use]
    pub fn dialer(&self) -> &Dialer {
        &self.dialer
    }

    pub(super) fn lookup(&self) -> Option<&Lookup> {
        self.lookup.as_deref()
    }

    pub(super) fn now(&self) -> Moment {
        self.clock.now()
    }

    /// The pool of a database and user.
    pub fn get(&self, database: &str, user: &str) -> Rc<Pool> {
        let mut pools = self.pools.borrow_mut();
        let key = (database.to_owned(), user.to_owned());
        let fresh = || {
            let pool = Pool::beside(database.into(), user.into(), self.share, &self.changes);
            if self.is_paused(database) {
                pool.pause();
            }
            pool
        };
        let pool = pools.entry(key).or_insert_with(fresh);
        pool.heed_role(BackendId(self.next.get()));
        pool.clone()
    }

    /// The pools of a database, or all.
    #[must_use]
    pub fn of(&self, database: Option<&str>) -> Vec<Rc<Pool>> {
        let mut pools = self.all();
        pools.retain(|pool| database.is_none_or(|database| *pool.database == *database));
        pools
    }

    /// Whether a database is paused.
    #[must_use]
    pub fn is_paused(&self, database: &str) -> bool {
        let paused = self.paused.borrow();
        paused.all || paused.databases.contains(database)
    }

    /// Lends nothing more in a database, or in all.
    pub fn pause(&self, database: Option<&str>) {
        let mut paused = self.paused.borrow_mut();
        match database {
            None => paused.all = true,
            Some(database) => drop(paused.databases.insert(database.to_owned())),
        }
        drop(paused);
        for pool in self.of(database) {
            pool.pause();
        }
    }

    /// Lends again in a database; or in all, whatever was paused.
    pub fn resume(&self, database: Option<&str>) {
        let mut paused = self.paused.borrow_mut();
        match database {
            None => *paused = Paused::default(),
            Some(database) => drop(paused.databases.remove(database)),
        }
        drop(paused);
        for pool in self.of(database) {
            if !self.is_paused(&pool.database) {
                pool.resume();
            }
        }
    }

    /// Replaces every backend of a database that was opened until now, once nobody holds it.
    pub fn renew(&self, database: Option<&str>) {
        for pool in self.of(database) {
            pool.renew(BackendId(self.next.get()));
        }
    }

    /// Replaces the backends of every database that a text names, and of the one that new ones are copied from, like
    /// [`Self::renew`]: PostgreSQL neither drops, renames nor copies a database that somebody is connected to, and waits some
    /// seconds for those who are about to leave.
    pub fn make_way(&self, text: &[u8]) {
        for pool in self.all() {
            let name = pool.database.as_bytes();
            let mut places = text.windows(name.len().max(1));
            if name == b"template1" || places.any(|place| place.eq_ignore_ascii_case(name)) {
                pool.renew(BackendId(self.next.get()));
            }
        }
    }

    /// A text has changed roles: who logs in as one of them from now on gets a backend that was opened since. Pools of other data
    /// threads heed it at their next login.
    pub fn change_roles(&self, text: &[u8]) {
        let changed = |name: &str| sql::may_change_role(text, name);
        self.changes.roles.add(changed);
        for pool in self.all() {
            pool.heed_role(BackendId(self.next.get()));
        }
    }

    /// Every pool.
    #[must_use]
    pub fn all(&self) -> Vec<Rc<Pool>> {
        self.pools.borrow().values().cloned().collect()
    }

    /// Replaces every backend that was opened before this generation, once nobody holds it.
    pub fn recycle(&self, generation: Generation) {
        for pool in self.all() {
            pool.recycle(generation);
        }
    }

    /// Closes what is spent in every pool, and forgets pools that nobody uses.
    pub fn tend(&self) {
        let now = self.clock.now();
        for pool in self.all() {
            pool.tend(
                now,
                self.config.backend_lifetime,
                self.config.backend_idle_timeout,
            );
        }
        if let Some(lookup) = &self.lookup {
            let config = &self.config;
            lookup.tend(now, config.backend_lifetime, config.backend_idle_timeout);
        }
        self.pools
            .borrow_mut()
            .retain(|_, pool| Rc::strong_count(pool) > 1 || pool.census().is_in_use());
    }

    /// Opens a backend by right of `permit`. Cancel safe: the permit is given back.
    ///
    /// # Errors
    /// What the client that waits for it may see.
    pub async fn open(
        &self,
        pool: &Rc<Pool>,
        permit: Permit,
        baseline: &Rc<Baseline>,
        application: &str,
        generation: Generation,
    ) -> Result<Lent, ClientError> {
        let opening = pool.begin_opening(self.clock.now())?;
        pool.grow(baseline);
        let opened = self.log_in(pool, baseline, application, generation).await;
        drop(opening);
        let mut backend = opened.inspect_err(|error| pool.failed(error, self.clock.now()))?;
        let failures = pool.learn(baseline, &mut backend);
        if failures > 0 {
            self.events.tell(Happening::BackendRecovered {
                database: pool.database.to_string(),
                user: pool.user.to_string(),
                failures,
            });
        }
        let surveyed = pool.surveyed.refresh(&mut backend, self.clock);
        if surveyed.await.is_err() {
            return Err(crate::backend::connect::broken(
                &"the first question wasn't answered",
            ));
        }
        Ok(Lent {
            backend: Box::new(backend),
            permit,
        })
    }

    /// Opens a backend for one replication session, in no pool and bounded by `max_replication`; `pool` says who logs in.
    /// `None` where that bound is reached. Cancel safe: the permit is given back.
    ///
    /// # Errors
    /// What the client that waits for it may see.
    pub async fn open_walsender(
        &self,
        pool: &Rc<Pool>,
        baseline: &Rc<Baseline>,
        application: &str,
        generation: Generation,
    ) -> Result<Option<Lent>, ClientError> {
        let Some(permit) = self.walsenders.permit() else {
            return Ok(None);
        };
        let backend = self.log_in(pool, baseline, application, generation).await?;
        Ok(Some(Lent {
            backend: Box::new(backend),
            permit,
        }))
    }

    async fn log_in(
        &self,
        pool: &Rc<Pool>,
        baseline: &Rc<Baseline>,
        application: &str,
        generation: Generation,
    ) -> Result<Backend, ClientError> {
        let token = self.tokens.of(&pool.user);
        let proof = match token {
            Some(token) => Proof::Password(token.current(self.config.connect_timeout).await?),
            None => self.proof(pool).await,
        };
        let login = Login {
            dialer: &self.dialer,
            database: &pool.database,
            user: &pool.user,
            proof,
            credentials: &pool.credentials,
            application,
            baseline: baseline.clone(),
            timeout: self.config.connect_timeout,
        };
        let id = BackendId(self.next.replace(self.next.get() + 1));
        let opened = open(&login, id, self.clock, generation).await;
        let backend = opened.inspect_err(|error| {
            if let (Some(token), "28P01" | "28000") = (token, &*error.code) {
                token.doubt();
            }
            tracing::warn!(database = %pool.database, user = %pool.user, sqlstate = %error.code, "no backend: {}", error.message);
            self.events.tell(Happening::BackendRefused {
                database: pool.database.to_string(),
                user: pool.user.to_string(),
                sqlstate: error.code.clone(),
                message: error.message.clone(),
            });
        })?;
        tracing::debug!(database = %pool.database, user = %pool.user, pid = backend.key.key.pid, "backend opened");
        Ok(backend)
    }

    /// What to log in with for this pool.
    async fn proof(&self, pool: &Pool) -> Proof {
        let (database, user) = (pool.database.clone(), pool.user.clone());
        let secret = if self.config.reads_a_file(&user) {
            let config = self.config.clone();
            let (database, user) = (database.to_string(), user.to_string());
            let read = move || config.secret_for(&database, &user);
            executor::aside(read).await.ok().flatten()
        } else {
            self.config.secret_for(&database, &user)
        };
        pool.credentials.proof(secret, self.lookup.is_some())
    }
}
