//! Owns what the console asks of a data thread: its sessions, backends and pools in figures, and the pausing of pools.

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::sync::oneshot::error::TryRecvError;
use tokio::time::MissedTickBehavior;

use super::commands::{Command, Gone, Shards};
use crate::backend::Pool;
use crate::backend::pool::{Census, Counters};
use crate::clock::timers;
use crate::executor;
use crate::lease::reload::{Method, Outcome, Pinned};
use crate::lease::{Entry, LeaseState, Moment, SessionId, Slot};
use crate::ledger::{CancelTarget, Cause, Ledger, Order, Patience, ReturnOrder};
use crate::session::Shared;

/// How often those who wait look whether it is over.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// What the console asks of one data thread.
#[derive(Debug)]
pub enum Ask {
    Sessions(oneshot::Sender<Vec<SessionFigures>>),
    Backends(oneshot::Sender<Vec<BackendFigures>>),
    Pools(oneshot::Sender<Vec<PoolFigures>>),
    /// A change in a database, or in all; answered when it is complete.
    Change(Change, Option<String>, oneshot::Sender<()>),
    /// Ends a session. Whether there is one.
    End(SessionId, oneshot::Sender<bool>),
}

/// What may happen to the pools of a database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// New leases wait; complete when every backend has been given back.
    Pause,
    /// Leases are taken again.
    Resume,
    /// Backends are replaced once nobody holds them.
    Reconnect,
    /// Complete when none is left of those that are to be replaced.
    WaitClose,
    /// Sessions end, new leases wait.
    Kill,
}

/// One session in figures.
#[derive(Clone, Debug)]
pub struct SessionFigures {
    pub id: SessionId,
    pub database: String,
    pub user: String,
    pub application: String,
    /// The client's address, or `unix`.
    pub client: String,
    pub process: Option<u32>,
    pub opened: Moment,
    /// When the state of its lease began.
    pub since: Moment,
    /// Since when it waits for a backend.
    pub waiting: Option<Moment>,
    /// The pid of its backend.
    pub backend: Option<u32>,
}

/// One backend in figures.
#[derive(Clone, Debug)]
pub struct BackendFigures {
    pub database: String,
    pub user: String,
    pub pid: u32,
    pub born: Moment,
    /// When it was lent, or came back.
    pub since: Moment,
    /// This end of the connection; none for a unix socket.
    pub local: Option<SocketAddr>,
    /// Its other end; none for a unix socket.
    pub peer: Option<SocketAddr>,
    pub encrypted: bool,
    /// It is replaced once nobody holds it.
    pub is_old: bool,
    /// Who holds it.
    pub session: Option<SessionId>,
    pub application: String,
}

/// What a pool has done so far: counts, bytes and microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    pub transactions: u64,
    pub requests: u64,
    pub received: u64,
    pub sent: u64,
    pub in_transaction: u64,
    pub active: u64,
    pub waits: u64,
    pub waited: u64,
}

/// One pool in figures.
#[derive(Clone, Debug, Default)]
pub struct PoolFigures {
    pub database: String,
    pub user: String,
    pub sessions: usize,
    /// Sessions that hold a backend.
    pub leases: usize,
    pub census: Census,
    /// Since when the first in the queue waits.
    pub waiting_since: Option<Moment>,
    pub is_paused: bool,
    pub totals: Totals,
}

impl From<&Counters> for Totals {
    fn from(counters: &Counters) -> Self {
        Self {
            transactions: counters.transactions.get(),
            requests: counters.requests.get(),
            received: counters.bytes_in.get(),
            sent: counters.bytes_out.get(),
            in_transaction: counters.in_transaction.get(),
            active: counters.active.get(),
            waits: counters.waits.get(),
            waited: counters.waited.get(),
        }
    }
}

impl Shards {
    /// Every session in figures, by id.
    ///
    /// # Errors
    /// pgvalet is ending.
    pub async fn session_figures(&self) -> Result<Vec<SessionFigures>, Gone> {
        let asked = self.ask_all(|_, reply| Command::Console(Ask::Sessions(reply)));
        let mut all: Vec<_> = asked.await?.into_iter().flatten().collect();
        all.sort_by_key(|session| session.id);
        Ok(all)
    }

    /// Every backend in figures.
    ///
    /// # Errors
    /// pgvalet is ending.
    pub async fn backend_figures(&self) -> Result<Vec<BackendFigures>, Gone> {
        let asked = self.ask_all(|_, reply| Command::Console(Ask::Backends(reply)));
        let mut all: Vec<_> = asked.await?.into_iter().flatten().collect();
        all.sort_by_key(|backend| backend.pid);
        Ok(all)
    }

    /// Every pool in figures: the shares of all data threads added up, by database and user.
    ///
    /// # Errors
    /// pgvalet is ending.
    pub async fn pool_figures(&self) -> Result<Vec<PoolFigures>, Gone> {
        let asked = self.ask_all(|_, reply| Command::Console(Ask::Pools(reply)));
        let mut whole: Vec<PoolFigures> = Vec::new();
        for pool in asked.await?.into_iter().flatten() {
            let same = |known: &&mut PoolFigures| {
                known.database == pool.database && known.user == pool.user
            };
            match whole.iter_mut().find(same) {
                Some(known) => known.add(&pool),
                None => whole.push(pool),
            }
        }
        whole.sort_by(|a, b| (&a.database, &a.user).cmp(&(&b.database, &b.user)));
        Ok(whole)
    }

    /// Changes the pools of a database, or all. Ends when that is complete.
    ///
    /// # Errors
    /// pgvalet is ending.
    pub async fn change(&self, change: Change, database: Option<&str>) -> Result<(), Gone> {
        let database = database.map(str::to_owned);
        let command = |_, reply| Command::Console(Ask::Change(change, database.clone(), reply));
        self.ask_all(command).await.map(|_| ())
    }

    /// Ends a session. Whether there is one.
    ///
    /// # Errors
    /// pgvalet is ending.
    pub async fn end(&self, id: SessionId) -> Result<bool, Gone> {
        let home = Ledger::shard_of(id, self.count());
        self.ask_one(home, |reply| Command::Console(Ask::End(id, reply)))
            .await
    }
}

impl PoolFigures {
    fn add(&mut self, other: &Self) {
        self.sessions += other.sessions;
        self.leases += other.leases;
        let (census, more) = (&mut self.census, other.census);
        census.leased += more.leased;
        census.warm += more.warm;
        census.idle += more.idle;
        census.connecting += more.connecting;
        census.waiting += more.waiting;
        census.max += more.max;
        let earliest = self.waiting_since.into_iter().chain(other.waiting_since);
        self.waiting_since = earliest.min();
        self.is_paused |= other.is_paused;
        self.totals = self.totals.and(other.totals);
    }
}

impl Totals {
    /// Both together.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        self.with(other, u64::wrapping_add)
    }

    /// What came since `earlier`.
    #[must_use]
    pub fn since(self, earlier: Self) -> Self {
        self.with(earlier, u64::saturating_sub)
    }

    fn with(self, other: Self, join: impl Fn(u64, u64) -> u64) -> Self {
        Self {
            transactions: join(self.transactions, other.transactions),
            requests: join(self.requests, other.requests),
            received: join(self.received, other.received),
            sent: join(self.sent, other.sent),
            in_transaction: join(self.in_transaction, other.in_transaction),
            active: join(self.active, other.active),
            waits: join(self.waits, other.waits),
            waited: join(self.waited, other.waited),
        }
    }
}

/// Answers one question; what takes longer goes on as a task.
pub(super) fn obey(shared: &Rc<Shared>, ask: Ask) {
    match ask {
        Ask::Sessions(reply) => drop(reply.send(sessions(shared))),
        Ask::Backends(reply) => drop(reply.send(backends(shared))),
        Ask::Pools(reply) => drop(reply.send(pools(shared))),
        Ask::End(id, reply) => {
            let order = Order::End(Cause::Forced);
            let _ = reply.send(shared.ledger.order(id, order));
        }
        Ask::Change(change, database, reply) => {
            let shared = shared.clone();
            executor::spawn(async move {
                carry_out(&shared, change, database.as_deref(), reply).await;
            });
        }
    }
}

fn sessions(shared: &Shared) -> Vec<SessionFigures> {
    let waiting: HashMap<_, _> = shared
        .pools
        .all()
        .iter()
        .flat_map(|pool| pool.waiting())
        .collect();
    let book = shared.ledger.book();
    let figures = |(slot, entry): (Slot, &Entry)| SessionFigures {
        id: entry.id,
        database: entry.profile.database.to_string(),
        user: entry.profile.user.to_string(),
        application: entry.profile.application.to_string(),
        client: entry.profile.client.to_string(),
        process: entry.process.as_ref().map(|process| process.pid),
        opened: entry.opened,
        since: entry.state.since(),
        waiting: waiting.get(&entry.id).copied(),
        backend: shared.ledger.backend_pid(slot),
    };
    book.entries().map(figures).collect()
}

fn backends(shared: &Shared) -> Vec<BackendFigures> {
    let mut all = Vec::new();
    let book = shared.ledger.book();
    for (slot, entry) in book.entries() {
        let (Some(id), Some(target)) = (entry.state.backend(), shared.ledger.target(slot)) else {
            continue;
        };
        let pool = shared
            .pools
            .get(&entry.profile.database, &entry.profile.user);
        all.push(BackendFigures {
            since: entry.state.since(),
            is_old: pool.is_old(id),
            session: Some(entry.id),
            application: entry.profile.application.to_string(),
            ..figures(&pool, &target)
        });
    }
    for pool in shared.pools.all() {
        pool.each_idle(|backend| {
            all.push(BackendFigures {
                since: backend.rested,
                ..figures(&pool, &backend.key)
            });
        });
    }
    all
}

fn figures(pool: &Pool, target: &CancelTarget) -> BackendFigures {
    BackendFigures {
        database: pool.database.to_string(),
        user: pool.user.to_string(),
        pid: target.key.pid,
        born: target.born,
        since: target.born,
        local: target.local,
        peer: target.spot.address,
        encrypted: target.encrypted,
        is_old: false,
        session: None,
        application: String::new(),
    }
}

fn pools(shared: &Shared) -> Vec<PoolFigures> {
    let mut all: Vec<PoolFigures> = Vec::new();
    for pool in shared.pools.all() {
        all.push(PoolFigures {
            database: pool.database.to_string(),
            user: pool.user.to_string(),
            sessions: 0,
            leases: 0,
            census: pool.census(),
            waiting_since: pool.waiting().first().map(|(_, since)| *since),
            is_paused: pool.is_paused(),
            totals: Totals::from(&pool.counters),
        });
    }
    for (_, entry) in shared.ledger.book().entries() {
        let own = |pool: &&mut PoolFigures| {
            *pool.database == *entry.profile.database && *pool.user == *entry.profile.user
        };
        if let Some(pool) = all.iter_mut().find(own) {
            pool.sessions += 1;
            pool.leases += usize::from(entry.state.backend().is_some());
        }
    }
    all
}

/// Carries out a change. It goes on when whoever asked is gone; only the waiting ends.
async fn carry_out(
    shared: &Shared,
    change: Change,
    database: Option<&str>,
    reply: oneshot::Sender<()>,
) {
    match change {
        Change::Pause => {
            shared.pools.pause(database);
            let mut returns = Returns::default();
            until(&reply, || {
                returns.ask(&shared.ledger, database);
                is_quiet(shared, database) || !is_paused(shared, database)
            })
            .await;
        }
        Change::Resume => shared.pools.resume(database),
        Change::Reconnect => shared.pools.renew(database),
        Change::WaitClose => until(&reply, || !holds_old(shared, database)).await,
        Change::Kill => {
            shared.pools.pause(database);
            for id in ids(&shared.ledger, database) {
                shared.ledger.order(id, Order::End(Cause::Forced));
            }
            until(&reply, || is_quiet(shared, database)).await;
        }
    }
    let _ = reply.send(());
}

/// Waits until something holds, or until nobody awaits the answer any more.
async fn until(reply: &oneshot::Sender<()>, mut holds: impl FnMut() -> bool) {
    let mut ticks = timers::interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while !reply.is_closed() {
        ticks.tick().await;
        if holds() {
            return;
        }
    }
}

/// Whether nobody holds a backend of a database.
fn is_quiet(shared: &Shared, database: Option<&str>) -> bool {
    let held = |pool: &Rc<Pool>| {
        let census = pool.census();
        census.leased + census.connecting > 0
    };
    !shared.pools.of(database).iter().any(held)
}

/// Whether the pause still holds: a RESUME ends the waiting for it.
fn is_paused(shared: &Shared, database: Option<&str>) -> bool {
    let pools = shared.pools.of(database);
    pools.is_empty() || pools.iter().any(|pool| pool.is_paused())
}

/// Whether somebody holds a backend that is to be replaced.
fn holds_old(shared: &Shared, database: Option<&str>) -> bool {
    let pools = shared.pools.of(database);
    let book = shared.ledger.book();
    book.entries().any(|(_, entry)| {
        let own = |pool: &&Rc<Pool>| {
            pool.database == entry.profile.database && pool.user == entry.profile.user
        };
        let held = entry.state.backend();
        held.is_some_and(|backend| {
            pools
                .iter()
                .find(own)
                .is_some_and(|pool| pool.is_old(backend))
        })
    })
}

/// The sessions of a database, or all.
fn ids(ledger: &Ledger, database: Option<&str>) -> Vec<SessionId> {
    let book = ledger.book();
    let of = |entry: &Entry| database.is_none_or(|database| *entry.profile.database == *database);
    let entries = book.entries().filter(|(_, entry)| of(entry));
    entries.map(|(_, entry)| entry.id).collect()
}

/// The returns that a pause has asked for: of each lease once, and again when its session has moved on.
#[derive(Default)]
struct Returns {
    awaited: HashMap<SessionId, oneshot::Receiver<Outcome>>,
    refused: BTreeSet<(SessionId, Moment)>,
}

impl Returns {
    fn ask(&mut self, ledger: &Ledger, database: Option<&str>) {
        self.hear(ledger);
        for id in ids(ledger, database) {
            let state = ledger
                .book()
                .find(id)
                .map(|slot| ledger.book().entry(slot).state);
            let Some(state) = state.filter(|state| state.backend().is_some()) else {
                continue;
            };
            let busy = matches!(state, LeaseState::Returning { .. });
            let known =
                self.awaited.contains_key(&id) || self.refused.contains(&(id, state.since()));
            if busy || known {
                continue;
            }
            let (reply, answer) = oneshot::channel();
            let order = Order::Return(ReturnOrder {
                method: Method::Detach,
                pinned: Pinned::Spare,
                cause: Cause::Forced,
                patience: Patience::Wait,
                reply: Some(reply),
            });
            if ledger.order(id, order) {
                self.awaited.insert(id, answer);
            }
        }
    }

    /// Takes the answers in. A session that is pinned is asked again once it has done something else.
    fn hear(&mut self, ledger: &Ledger) {
        let refused = &mut self.refused;
        self.awaited.retain(|id, answer| match answer.try_recv() {
            Err(TryRecvError::Empty) => true,
            Err(TryRecvError::Closed) => false,
            Ok(_) => {
                let slot = ledger.book().find(*id);
                let since = slot.map(|slot| ledger.book().entry(slot).state.since());
                refused.extend(since.map(|since| (*id, since)));
                false
            }
        });
    }
}
