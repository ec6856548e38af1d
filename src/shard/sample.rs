//! Owns what a scrape reads off a data thread.

use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

use crate::backend::pool::Census;
use crate::lease::Verdict;
use crate::metrics::{PoolSample, Sample};
use crate::session::Shared;

/// What a scrape needs of this data thread.
pub(super) fn sample(shared: &Shared) -> Sample {
    let ledger = &shared.ledger;
    let book = ledger.book();
    let now = ledger.now();
    let policies = shared.config.policies();
    let mut pools: HashMap<(Rc<str>, Rc<str>), PoolSample> = HashMap::new();
    for pool in shared.pools.all() {
        let key = (pool.database.clone(), pool.user.clone());
        pools.insert(key, pool_sample(&pool));
    }
    let mut parked: HashMap<Rc<str>, (usize, Duration)> = HashMap::new();
    for (_, entry) in book.entries() {
        let key = (entry.profile.database.clone(), entry.profile.user.clone());
        if let Some(pool) = pools.get_mut(&key) {
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
            let known = parked.entry(entry.owner().0).or_default();
            *known = (known.0 + 1, known.1.max(entry.idle(now)));
        }
    }
    Sample {
        pools: pools.into_values().collect(),
        parked: parked
            .into_iter()
            .map(|(owner, (count, longest))| (owner.to_string(), count, longest))
            .collect(),
        generation: book.generation().0,
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
