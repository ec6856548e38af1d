//! Owns the metric families: what is counted where it happens, and what is sampled at each scrape.

use std::time::Duration;

use prometheus::{
    Encoder, Gauge, GaugeVec, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry, TextEncoder,
};

use crate::lease::{Cause, Pins};
use crate::wire::reply::Fault;

/// Families that are counted where it happens. Clones share the counts.
#[derive(Clone, Debug)]
pub struct Metrics {
    returns: IntCounterVec,
    /// Leases that were returned by detach, by the number of the cause: counted at the end of each transaction.
    detached: [IntCounter; Cause::ALL.len()],
    pins: IntCounterVec,
    restores: IntCounterVec,
    restored_same: IntCounter,
    restored_other: IntCounter,
    probes: IntCounter,
    faults: IntCounterVec,
    refusals: IntCounterVec,
    reloads: IntCounter,
    reload_seconds: Histogram,
    acquire_seconds: Histogram,
}

const MILLISECONDS: [f64; 14] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
];

/// How many distinct SQLSTATEs are counted apart: a peer must not make labels without end.
const CODES: [&str; 22] = [
    "08001", "08006", "08P01", "0A000", "28000", "28P01", "3D000", "42501", "42704", "22023",
    "53000", "53100", "53200", "53300", "55000", "57014", "57P01", "57P02", "57P03", "57P05",
    "58000", "XX000",
];

impl Default for Metrics {
    fn default() -> Self {
        let vec = |name: &str, help: &str, labels: &[&str]| {
            IntCounterVec::new(Opts::new(name, help), labels)
                .expect("the name and labels are constants")
        };
        let histogram = |name: &str, help: &str| {
            let options = HistogramOpts::new(name, help).buckets(MILLISECONDS.to_vec());
            Histogram::with_opts(options).expect("the name and buckets are constants")
        };
        let returns = vec(
            "pgvalet_returns_total",
            "Leases returned, by reason and method",
            &["reason", "method"],
        );
        let restores = vec(
            "pgvalet_restores_total",
            "Sessions that took a backend again, by which",
            &["backend"],
        );
        Self {
            detached: Cause::ALL.map(|cause| returns.with_label_values(&[cause.word(), "detach"])),
            returns,
            pins: vec(
                "pgvalet_pins_total",
                "Detaches refused, by what pinned the session",
                &["reason"],
            ),
            restored_same: restores.with_label_values(&["same"]),
            restored_other: restores.with_label_values(&["other"]),
            restores,
            probes: IntCounter::new(
                "pgvalet_probes_total",
                "How often PostgreSQL was asked what state a session has, before its lease was returned or while it rested",
            )
            .expect("the name is a constant"),
            faults: vec(
                "pgvalet_faults_total",
                "Errors told to clients, by whose fault and SQLSTATE",
                &["fault", "sqlstate"],
            ),
            refusals: vec(
                "pgvalet_refusals_total",
                "Leases refused by rules",
                &["rule"],
            ),
            reloads: IntCounter::new("pgvalet_reloads_total", "Reloads")
                .expect("the name is a constant"),
            reload_seconds: histogram(
                "pgvalet_reload_duration_seconds",
                "How long reloads took to answer",
            ),
            acquire_seconds: histogram(
                "pgvalet_acquire_wait_seconds",
                "How long sessions waited for a backend, when they had to",
            ),
        }
    }
}

impl Metrics {
    /// A lease was returned, and its session goes on.
    pub fn detached(&self, cause: Cause) {
        self.detached[cause as usize].inc();
    }

    /// A lease was returned with its session's end.
    pub fn returned(&self, cause: Cause, method: &str) {
        self.returns
            .with_label_values(&[cause.word(), method])
            .inc();
    }

    /// A detach was refused.
    pub fn pinned(&self, pins: Pins) {
        for pin in pins.iter() {
            self.pins.with_label_values(&[pin.word()]).inc();
        }
    }

    /// A session took a backend again: its own warm one, or another.
    pub fn restored(&self, same: bool) {
        let count = if same {
            &self.restored_same
        } else {
            &self.restored_other
        };
        count.inc();
    }

    /// PostgreSQL is asked what state a session has.
    pub fn probed(&self) {
        self.probes.inc();
    }

    /// An error was told to a client.
    pub fn fault(&self, fault: Fault, code: &str) {
        let code = CODES
            .iter()
            .find(|known| **known == code)
            .unwrap_or(&"other");
        self.faults.with_label_values(&[fault.word(), code]).inc();
    }

    /// A rule refused a lease: there are as many labels as rules.
    pub fn refused(&self, rule: &str) {
        self.refusals.with_label_values(&[rule]).inc();
    }

    /// A session had to wait for a backend.
    pub fn acquired(&self, waited: Duration) {
        self.acquire_seconds.observe(waited.as_secs_f64());
    }

    /// A reload was answered.
    pub fn reloaded(&self, took: Duration) {
        self.reloads.inc();
        self.reload_seconds.observe(took.as_secs_f64());
    }

    /// The text of a scrape: the counts, and this sample.
    ///
    /// # Errors
    /// Never in practice: names and labels are ours.
    pub fn render(&self, sample: &Sample) -> prometheus::Result<String> {
        let registry = Registry::new();
        for family in [
            &self.returns,
            &self.pins,
            &self.restores,
            &self.faults,
            &self.refusals,
        ] {
            registry.register(Box::new(family.clone()))?;
        }
        for count in [&self.probes, &self.reloads] {
            registry.register(Box::new(count.clone()))?;
        }
        for histogram in [&self.reload_seconds, &self.acquire_seconds] {
            registry.register(Box::new(histogram.clone()))?;
        }
        sample.register(&registry)?;
        let mut text = Vec::new();
        TextEncoder::new().encode(&registry.gather(), &mut text)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }
}

/// What is read off at a scrape.
#[derive(Clone, Debug, Default)]
pub struct Sample {
    pub pools: Vec<PoolSample>,
    /// Owners of parked leases: how many, and the longest time parked.
    pub parked: Vec<(String, usize, Duration)>,
    pub generation: u64,
}

/// One pool at a scrape.
#[derive(Clone, Debug, Default)]
pub struct PoolSample {
    pub database: String,
    pub user: String,
    pub sessions: usize,
    /// Leases by state.
    pub leases: Vec<(&'static str, usize)>,
    /// Backends by condition.
    pub backends: Vec<(&'static str, usize)>,
    pub max: usize,
    pub waiting: usize,
    pub requests: u64,
    pub transactions: u64,
    pub bytes_in: u64,
    pub bytes_out: u64,
}

/// The most owners that get a label of their own; the rest are `other`.
const OWNERS: usize = 50;

impl Sample {
    /// Adds another data thread's sample.
    pub fn merge(&mut self, other: Self) {
        for pool in other.pools {
            match self
                .pools
                .iter_mut()
                .find(|known| known.database == pool.database && known.user == pool.user)
            {
                Some(known) => known.merge(&pool),
                None => self.pools.push(pool),
            }
        }
        for (owner, count, longest) in other.parked {
            match self.parked.iter_mut().find(|(known, ..)| *known == owner) {
                Some((_, sum, most)) => (*sum, *most) = (*sum + count, longest.max(*most)),
                None => self.parked.push((owner, count, longest)),
            }
        }
        self.generation = self.generation.max(other.generation);
    }

    fn register(&self, registry: &Registry) -> prometheus::Result<()> {
        self.register_pools(registry)?;
        self.register_parked(registry)?;
        let generation = IntGauge::new("pgvalet_generation", "The count of reloads so far")?;
        generation.set(i64::try_from(self.generation).unwrap_or(i64::MAX));
        registry.register(Box::new(generation))?;
        let build = IntGaugeVec::new(
            Opts::new("pgvalet_build_info", "The version that runs"),
            &["version"],
        )?;
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        registry.register(Box::new(build))
    }

    fn register_pools(&self, registry: &Registry) -> prometheus::Result<()> {
        let labels = ["database", "user"];
        let gauge = |name: &str, help: &str, labels: &[&str]| {
            IntGaugeVec::new(Opts::new(name, help), labels)
        };
        let counter = |name: &str, help: &str| IntCounterVec::new(Opts::new(name, help), &labels);
        let sessions = gauge("pgvalet_sessions", "Client sessions", &labels)?;
        let waiting = gauge(
            "pgvalet_waiting_sessions",
            "Sessions that wait for a backend",
            &labels,
        )?;
        let max = gauge("pgvalet_backends_max", "The bound of the pool", &labels)?;
        let backends = gauge(
            "pgvalet_backends",
            "Backends by state",
            &["database", "user", "state"],
        )?;
        let leases = gauge(
            "pgvalet_leases",
            "Leases by state",
            &["database", "user", "state"],
        )?;
        let requests = counter("pgvalet_requests_total", "Requests of clients")?;
        let transactions = counter("pgvalet_transactions_total", "Transactions that ended")?;
        let bytes = IntCounterVec::new(
            Opts::new("pgvalet_client_bytes_total", "Bytes from and to clients"),
            &["direction"],
        )?;
        for pool in &self.pools {
            let at = [pool.database.as_str(), pool.user.as_str()];
            sessions.with_label_values(&at).set(int(pool.sessions));
            waiting.with_label_values(&at).set(int(pool.waiting));
            max.with_label_values(&at).set(int(pool.max));
            for (state, count) in &pool.backends {
                backends
                    .with_label_values(&[at[0], at[1], state])
                    .set(int(*count));
            }
            for (state, count) in &pool.leases {
                leases
                    .with_label_values(&[at[0], at[1], state])
                    .set(int(*count));
            }
            requests.with_label_values(&at).inc_by(pool.requests);
            transactions
                .with_label_values(&at)
                .inc_by(pool.transactions);
            bytes.with_label_values(&["in"]).inc_by(pool.bytes_in);
            bytes.with_label_values(&["out"]).inc_by(pool.bytes_out);
        }
        for family in [sessions, waiting, max, backends, leases] {
            registry.register(Box::new(family))?;
        }
        for family in [requests, transactions, bytes] {
            registry.register(Box::new(family))?;
        }
        Ok(())
    }

    fn register_parked(&self, registry: &Registry) -> prometheus::Result<()> {
        let leases = IntGaugeVec::new(
            Opts::new("pgvalet_parked_leases", "Parked leases by owner"),
            &["owner"],
        )?;
        let seconds = GaugeVec::new(
            Opts::new(
                "pgvalet_parked_seconds",
                "The longest time that a lease is parked now",
            ),
            &["owner"],
        )?;
        let all = Gauge::new("pgvalet_parked_leases_all", "Parked leases of all owners")?;
        let mut parked = self.parked.clone();
        parked.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        for (index, (owner, count, longest)) in parked.iter().enumerate() {
            let owner = if index < OWNERS { owner } else { "other" };
            leases.with_label_values(&[owner]).add(int(*count));
            let gauge = seconds.with_label_values(&[owner]);
            gauge.set(gauge.get().max(longest.as_secs_f64()));
            all.add(f64::from(u32::try_from(*count).unwrap_or(u32::MAX)));
        }
        registry.register(Box::new(leases))?;
        registry.register(Box::new(seconds))?;
        registry.register(Box::new(all))
    }
}

impl PoolSample {
    fn merge(&mut self, other: &Self) {
        self.sessions += other.sessions;
        self.max += other.max;
        self.waiting += other.waiting;
        self.requests += other.requests;
        self.transactions += other.transactions;
        self.bytes_in += other.bytes_in;
        self.bytes_out += other.bytes_out;
        for (mine, more) in [
            (&mut self.leases, &other.leases),
            (&mut self.backends, &other.backends),
        ] {
            for ((_, count), (_, extra)) in mine.iter_mut().zip(more) {
                *count += extra;
            }
        }
    }
}

fn int(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
