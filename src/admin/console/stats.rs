//! Owns SHOW STATS and its kin: what the pools of a database did, and how fast in the last minute.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::shows::pool_figures;
use super::table::{Column, Kind, Row, row};
use crate::admin::Desk;
use crate::clock::timers;
use crate::shard::{Gone, PoolFigures, Shards, Totals};

/// How long a period is, of which averages are made.
const PERIOD: Duration = Duration::from_secs(60);

/// SHOW STATS.
pub(super) const STATS: &[Column] = &[
    ("database", Kind::Text),
    ("total_xact_count", Kind::Numeric),
    ("total_query_count", Kind::Numeric),
    ("total_received", Kind::Numeric),
    ("total_sent", Kind::Numeric),
    ("total_xact_time", Kind::Numeric),
    ("total_query_time", Kind::Numeric),
    ("total_wait_time", Kind::Numeric),
    ("avg_xact_count", Kind::Numeric),
    ("avg_query_count", Kind::Numeric),
    ("avg_recv", Kind::Numeric),
    ("avg_sent", Kind::Numeric),
    ("avg_xact_time", Kind::Numeric),
    ("avg_query_time", Kind::Numeric),
    ("avg_wait_time", Kind::Numeric),
];

/// SHOW STATS_TOTALS, and SHOW STATS_AVERAGES.
pub(super) const HALF: &[Column] = &[
    ("database", Kind::Text),
    ("xact_count", Kind::Numeric),
    ("query_count", Kind::Numeric),
    ("bytes_received", Kind::Numeric),
    ("bytes_sent", Kind::Numeric),
    ("xact_time", Kind::Numeric),
    ("query_time", Kind::Numeric),
    ("wait_time", Kind::Numeric),
];

/// SHOW TOTALS.
pub(super) const TOTALS: &[Column] = &[("name", Kind::Text), ("value", Kind::Numeric)];

/// What each database did in the last whole period.
#[derive(Debug, Default)]
pub struct Averages(Mutex<Period>);

#[derive(Debug, Default)]
struct Period {
    /// What had been done when it began.
    base: BTreeMap<String, Totals>,
    /// What was done in the one before.
    last: BTreeMap<String, Totals>,
}

impl Averages {
    /// Begins a new period once a minute, for as long as it runs.
    pub async fn keep(&self, shards: &Shards) {
        let mut ticks = timers::interval(PERIOD);
        loop {
            ticks.tick().await;
            if let Ok(pools) = shards.pool_figures().await {
                self.turn(by_database(&pools));
            }
        }
    }

    fn turn(&self, now: BTreeMap<String, Totals>) {
        let mut period = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let done = |(name, totals): (&String, &Totals)| {
            let base = period.base.get(name).copied().unwrap_or_default();
            (name.clone(), totals.since(base))
        };
        period.last = now.iter().map(done).collect();
        period.base = now;
    }

    fn of(&self, database: &str) -> Totals {
        let period = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        period.last.get(database).copied().unwrap_or_default()
    }
}

fn by_database(pools: &[PoolFigures]) -> BTreeMap<String, Totals> {
    let mut all: BTreeMap<String, Totals> = BTreeMap::new();
    for pool in pools {
        let known = all.entry(pool.database.clone()).or_default();
        *known = known.and(pool.totals);
    }
    all
}

/// One line of figures: counts, bytes, times.
type Line = [u64; 7];

fn totals(totals: Totals) -> Line {
    [
        totals.transactions,
        totals.requests,
        totals.received,
        totals.sent,
        totals.in_transaction,
        totals.active,
        totals.waited,
    ]
}

/// Per second, or per transaction, request or wait.
fn averages(done: Totals) -> Line {
    let rate = |count: u64| count / PERIOD.as_secs();
    let each = |sum: u64, count: u64| sum.checked_div(count).unwrap_or(0);
    [
        rate(done.transactions),
        rate(done.requests),
        rate(done.received),
        rate(done.sent),
        each(done.in_transaction, done.transactions),
        each(done.active, done.requests),
        each(done.waited, done.waits),
    ]
}

fn line(database: &str, figures: impl IntoIterator<Item = u64>) -> Row {
    let mut row = row![database];
    row.extend(figures.into_iter().map(Into::into));
    row
}

/// SHOW STATS.
pub(super) async fn stats(desk: &Desk, last: &Averages) -> Result<Vec<Row>, Gone> {
    let databases = by_database(&pool_figures(desk).await?);
    let rows = databases.iter().map(|(database, done)| {
        let all = totals(*done).into_iter().chain(averages(last.of(database)));
        line(database, all)
    });
    Ok(rows.collect())
}

/// SHOW STATS_TOTALS.
pub(super) async fn stats_totals(desk: &Desk) -> Result<Vec<Row>, Gone> {
    let databases = by_database(&pool_figures(desk).await?);
    let rows = databases
        .iter()
        .map(|(database, done)| line(database, totals(*done)));
    Ok(rows.collect())
}

/// SHOW STATS_AVERAGES.
pub(super) async fn stats_averages(desk: &Desk, last: &Averages) -> Result<Vec<Row>, Gone> {
    let databases = by_database(&pool_figures(desk).await?);
    let rows = databases
        .keys()
        .map(|database| line(database, averages(last.of(database))));
    Ok(rows.collect())
}

/// SHOW TOTALS.
pub(super) async fn all(desk: &Desk, last: &Averages) -> Result<Vec<Row>, Gone> {
    let databases = by_database(&pool_figures(desk).await?);
    let (mut done, mut recent) = (Totals::default(), Totals::default());
    for (database, totals) in &databases {
        done = done.and(*totals);
        recent = recent.and(last.of(database));
    }
    let [
        xacts,
        queries,
        received,
        sent,
        xact_time,
        query_time,
        wait_time,
    ] = totals(done);
    let [
        avg_xacts,
        avg_queries,
        avg_received,
        avg_sent,
        avg_xact_time,
        avg_query_time,
        _,
    ] = averages(recent);
    let named = [
        ("total_xact_count", xacts),
        ("total_query_count", queries),
        ("total_client_bytes", received),
        ("total_server_bytes", sent),
        ("total_xact_time", xact_time),
        ("total_query_time", query_time),
        ("total_wait_time", wait_time),
        ("avg_xact_count", avg_xacts),
        ("avg_query_count", avg_queries),
        ("avg_client_bytes", avg_received),
        ("avg_server_bytes", avg_sent),
        ("avg_xact_time", avg_xact_time),
        ("avg_query_time", avg_query_time),
    ];
    Ok(named.map(|(name, value)| row![name, value]).to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn averages_are_those_of_the_last_whole_period() {
        let of = |requests, active| Totals {
            requests,
            active,
            ..Totals::default()
        };
        let at = |totals| BTreeMap::from([("shop".to_owned(), totals)]);
        let last = Averages::default();
        last.turn(at(of(60, 6_000)));
        last.turn(at(of(660, 66_000)));
        let [_, rate, _, _, _, each, _] = averages(last.of("shop"));
        assert_eq!((rate, each), (10, 100));
        assert_eq!(averages(last.of("other")), [0; 7]);
    }
}
