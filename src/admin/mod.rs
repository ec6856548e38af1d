//! Owns the admin API: HTTP on a listener of its own, and the scrape endpoint on another.
//!
//! Refuses to touch sessions: it sends commands to the data threads, and shows what they answer.

mod access;
mod bodies;
mod checks;
mod console;
mod events;
pub mod fleet;
mod guard;
mod idempotency;
mod openapi;
mod problem;
mod processes;
mod reloads;
mod routes;
mod serve;
mod table;
mod views;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::clock::Clock;
use crate::config::Config;
use crate::drain::Shutdown;
use crate::events::{Desk as Followers, Events};
use crate::metrics::Metrics;
use crate::shard::Shards;

pub use access::{Role, TokenError, check as check_tokens};
pub use console::{Averages, Console};
pub use routes::{admin, scrape};
pub use serve::{Encryption, TCP, serve};
pub use table::routes;
pub use views::ReloadRecord;

/// How often a stream of events that has nothing to tell says so.
const HEARTBEAT: Duration = Duration::from_secs(15);

/// How many reloads are remembered.
const REMEMBERED: usize = 100;

/// What every request handler needs. Clones share it.
#[derive(Clone, Debug)]
pub struct Desk {
    pub config: Arc<Config>,
    pub clock: Clock,
    pub shards: Shards,
    pub metrics: Arc<Metrics>,
    pub events: Events,
    /// Where readers of events ask.
    pub followers: Followers,
    /// The fleet that this instance is part of, if any.
    pub fleet: Option<fleet::Fleet>,
    pub shutdown: Shutdown,
    reloads: Arc<Mutex<Reloads>>,
    known: Arc<processes::Known>,
    keys: Arc<Mutex<idempotency::Keys>>,
}

#[derive(Debug, Default)]
struct Reloads {
    last: u64,
    records: VecDeque<Arc<ReloadRecord>>,
}

impl Desk {
    /// A desk without a memory yet.
    #[must_use]
    pub fn new(
        config: Arc<Config>,
        clock: Clock,
        shards: Shards,
        metrics: Arc<Metrics>,
        (events, followers): (Events, Followers),
        shutdown: Shutdown,
    ) -> Self {
        Self {
            config,
            clock,
            shards,
            metrics,
            events,
            followers,
            fleet: None,
            shutdown,
            reloads: Arc::default(),
            known: Arc::default(),
            keys: Arc::default(),
        }
    }

    fn reloads(&self) -> MutexGuard<'_, Reloads> {
        self.reloads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The id of a new reload.
    fn number(&self) -> u64 {
        let mut reloads = self.reloads();
        reloads.last += 1;
        reloads.last
    }

    /// Remembers a reload, in the place of what was known of it; forgets the oldest beyond the last hundred.
    fn remember(&self, record: Arc<ReloadRecord>) {
        let mut reloads = self.reloads();
        match reloads
            .records
            .iter_mut()
            .find(|known| known.id == record.id)
        {
            Some(known) => *known = record,
            None => reloads.records.push_back(record),
        }
        if reloads.records.len() > REMEMBERED {
            reloads.records.pop_front();
        }
    }

    /// The reload with this id.
    fn recall(&self, id: &str) -> Option<Arc<ReloadRecord>> {
        self.reloads()
            .records
            .iter()
            .find(|record| record.id == id)
            .cloned()
    }

    /// Every reload that is remembered, the newest first.
    fn recall_all(&self) -> Vec<Arc<ReloadRecord>> {
        self.reloads().records.iter().rev().cloned().collect()
    }
}
