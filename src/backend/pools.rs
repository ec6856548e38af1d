//! Owns the pools of one data thread, by database and user, and the opening of their backends.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use crate::backend::connect::{self, Login};
use crate::backend::login::Proof;
use crate::backend::lookup::Lookup;
use crate::backend::{Backend, Baseline, Dialer, Lent, Permit, Pool};
use crate::clock::Clock;
use crate::config::Config;
use crate::lease::{BackendId, Generation, Moment};
use crate::wire::reply::ClientError;

/// The pools of one data thread.
#[derive(Debug)]
pub struct Pools {
    config: Arc<Config>,
    dialer: Dialer,
    clock: Clock,
    /// The bound of each pool: this thread's share of `max_backends`.
    share: usize,
    pools: RefCell<HashMap<(String, String), Rc<Pool>>>,
    /// Whether, and how, PostgreSQL is asked for users' secrets.
    lookup: Option<Box<Lookup>>,
    next: Cell<u64>,
}

impl Pools {
    /// No pools yet. `share` bounds each of them.
    #[must_use]
    pub fn new(config: Arc<Config>, dialer: Dialer, clock: Clock, share: usize) -> Self {
        let lookup = Lookup::new(&config).map(Box::new);
        Self {
            lookup,
            config,
            dialer,
            clock,
            share,
            pools: RefCell::default(),
            next: Cell::new(1),
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
        pools
            .entry(key)
            .or_insert_with(|| Pool::new(database.into(), user.into(), self.share))
            .clone()
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
        let login = Login {
            dialer: &self.dialer,
            database: &pool.database,
            user: &pool.user,
            proof: self.proof(pool).await,
            credentials: &pool.credentials,
            application,
            baseline: baseline.clone(),
            timeout: self.config.connect_timeout,
        };
        let id = BackendId(self.next.replace(self.next.get() + 1));
        let opened = connect::open(&login, id, self.clock.now(), generation).await;
        drop(opening);
        let mut backend: Backend = opened.inspect_err(|error| {
            tracing::warn!(database = %pool.database, user = %pool.user, sqlstate = %error.code, "no backend: {}", error.message);
            pool.failed(error, self.clock.now());
        })?;
        backend.parameters = pool.learn(baseline, &backend.parameters);
        if pool
            .surveyed
            .refresh(&mut backend, self.clock.now())
            .await
            .is_err()
        {
            return Err(connect::broken(&"the first question wasn't answered"));
        }
        tracing::debug!(database = %pool.database, user = %pool.user, pid = backend.key.key.pid, "backend opened");
        Ok(Lent {
            backend: Box::new(backend),
            permit,
        })
    }

    /// What to log in with for this pool.
    async fn proof(&self, pool: &Pool) -> Proof {
        let (database, user) = (pool.database.clone(), pool.user.clone());
        let secret = if self.config.reads_a_file(&user) {
            let config = self.config.clone();
            let (database, user) = (database.to_string(), user.to_string());
            let read = move || config.secret_for(&database, &user);
            tokio::task::spawn_blocking(read).await.ok().flatten()
        } else {
            self.config.secret_for(&database, &user)
        };
        pool.credentials.proof(secret, self.lookup.is_some())
    }
}
