//! Owns what a scrape reads off a data thread.

use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

use super::AT_A_STRETCH;
use crate::backend::pool::Census;
use crate::executor;
use crate::lease::book::Entry;
use crate::lease::rules::Policies;
use crate::lease::{Moment, Verdict};
use crate::metrics::{PoolSample, Sample};
use crate::session::Shared;

/// What a scrape needs of this data thread. Where there are very many sessions, others get their turn in between.
pub(super) async fn sample(shared: &Shared) -> Sample {
    let mut counts = Counts::default();
    for pool in shared.pools.all() {
        let key = (pool.database.clone(), pool.user.clone());
        counts.pools.insert(key, pool_sample(&pool));
    }
    let mut next = counts.add_some(shared, 0);
    while let Some(from) = next {
        executor::yield_now().await;
        next = counts.add_some(shared, from);
    }
    Sample {
        pools: counts.pools.into_values().collect(),
        parked: counts
            .parked
            .into_iter()
            .map(|(owner, (count, longest))| (owner.to_string(), count, longest))
            .collect(),
        generation: shared.ledger.book().generation().0,
    }
}

/// What is counted of sessions.
#[derive(Default)]
struct Counts {
    pools: HashMap<(Rc<str>, Rc<str>), PoolSample>,
    /// Of each owner: how many leases are parked, and for how long the longest.
    parked: HashMap<Rc<str>, (usize, Duration)>,
}

impl Counts {
    /// Counts the sessions of one stretch of places in; gives where the next one begins.
    fn add_some(&mut self, shared: &Shared, from: usize) -> Option<usize> {
        let (book, now) = (shared.ledger.book(), shared.ledger.now());
        let policies = shared.config.policies();
        let to = book.places().min(from + AT_A_STRETCH);
        for entry in book.entries_at(from..to) {
            self.add(entry, now, &policies);
        }
        (to < book.places()).then_some(to)
    }

    fn add(&mut self, entry: &Entry, now: Moment, policies: &Policies<'_>) {
        let key = (entry.profile.database.clone(), entry.profile.user.clone());
        if let Some(pool) = self.pools.get_mut(&key) {
            pool.sessions += 1;
            let word = entry.state.word();
            pool.leases
                .iter_mut()
                .filter(|(state, _)| *state == word)
                .for_each(|(_, count)| *count += 1);
        }
        if let Verdict::Parked(_) | Verdict::Pinned(_) =
            entry.verdict(now, policies.of(entry).park_after)
        {
            let known = self.parked.entry(entry.owner().0).or_default();
            *known = (known.0 + 1, known.1.max(entry.idle(now)));
        }
    }
}

fn pool_sample(pool: &crate::backend::Pool) -> PoolSample {
    let Census {
        leased,
        warm,
        idle,
        connecting,
        listening,
        waiting,
        max,
    } = pool.census();
    let states = ["active", "in_transaction", "idle", "returning"];
    PoolSample {
        database: pool.database.to_string(),
        user: pool.user.to_string(),
        sessions: 0,
        leases: states.map(|state| (state, 0)).to_vec(),
        backends: vec![
            ("leased", leased),
            ("warm", warm),
            ("idle", idle),
            ("connecting", connecting),
            ("listening", listening),
        ],
        max,
        waiting,
        requests: pool.counters.requests.get(),
        transactions: pool.counters.transactions.get(),
        bytes_in: pool.counters.bytes_in.get(),
        bytes_out: pool.counters.bytes_out.get(),
    }
}
