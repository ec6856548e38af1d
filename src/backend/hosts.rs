//! Owns which of the upstream's hosts are asked for a backend, in which order, and what is remembered of each.
//!
//! Refuses to open anything. All data threads share it; nothing here is locked.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use crate::backend::parameters::{Baseline, Parameters};
use crate::config::{Balance, Target, Upstream};
use crate::lease::Moment;
use crate::wire::startup::NEWEST_MINOR;

/// How long a host that failed is asked last.
const MEMORY: Duration = Duration::from_secs(5);

/// What is remembered of the upstream's hosts, by their number in the URL.
#[derive(Debug)]
pub struct Hosts {
    target: Target,
    balance: Balance,
    standing: Box<[Standing]>,
}

#[derive(Debug, Default)]
struct Standing {
    /// When it last failed, or wasn't what is wanted, in microseconds of the clock; 0 for never.
    failed: AtomicU64,
    /// What is known of the protocol versions that it speaks.
    dialect: AtomicU8,
}

/// What is known of the protocol versions that a host speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Dialect {
    /// Nothing yet.
    Unknown = 0,
    /// It takes any minor version, and says which one it speaks (PostgreSQL 9.3 and later).
    Negotiates = 1,
    /// It refuses what is newer than 3.0, as some poolers do.
    Old = 2,
}

impl Dialect {
    /// The minor version to ask for.
    #[must_use]
    pub const fn minor(self) -> u16 {
        match self {
            Self::Unknown | Self::Negotiates => NEWEST_MINOR,
            Self::Old => 0,
        }
    }
}

impl Hosts {
    /// Those of the upstream, of which nothing is known yet.
    #[must_use]
    pub fn new(upstream: &Upstream) -> Self {
        let standing = upstream.places.iter().map(|_| Standing::default());
        Self {
            target: upstream.target,
            balance: upstream.balance,
            standing: standing.collect(),
        }
    }

    /// What is asked of a host, one round after the other, until there is a backend.
    #[must_use]
    pub fn rounds(&self) -> &'static [Target] {
        match self.target {
            Target::Any => &[Target::Any],
            Target::ReadWrite => &[Target::ReadWrite],
            Target::ReadOnly => &[Target::ReadOnly],
            Target::Primary => &[Target::Primary],
            Target::Standby => &[Target::Standby],
            Target::PreferStandby => &[Target::Standby, Target::Any],
        }
    }

    /// Whether nothing less is asked for afterwards.
    #[must_use]
    pub fn is_final(&self, target: Target) -> bool {
        self.rounds().last() == Some(&target)
    }

    /// The hosts in the order in which they are asked now: those that failed a short while ago come last.
    #[must_use]
    pub fn order(&self, now: Moment) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.standing.len()).collect();
        if self.balance == Balance::Random {
            shuffle(&mut order);
        }
        order.sort_by_key(|host| self.has_failed(*host, now));
        order
    }

    /// Puts a host's addresses into the order in which they are tried.
    pub fn balance(&self, addresses: &mut [std::net::SocketAddr]) {
        if self.balance == Balance::Random {
            shuffle(addresses);
        }
    }

    fn has_failed(&self, host: usize, now: Moment) -> bool {
        let failed = self.standing[host].failed.load(Ordering::Relaxed);
        failed != 0 && now.since(Moment::from_micros(failed)) < MEMORY
    }

    /// A host gave no backend, or isn't what is wanted.
    pub fn failed(&self, host: usize, now: Moment) {
        let failed = &self.standing[host].failed;
        failed.store(now.as_micros(), Ordering::Relaxed);
    }

    /// A host gave a backend.
    pub fn served(&self, host: usize) {
        self.standing[host].failed.store(0, Ordering::Relaxed);
    }

    /// What is known of a host's protocol versions.
    #[must_use]
    pub fn dialect(&self, host: usize) -> Dialect {
        let dialect = self.standing[host].dialect.load(Ordering::Relaxed);
        [Dialect::Unknown, Dialect::Negotiates, Dialect::Old][usize::from(dialect.min(2))]
    }

    /// Notes what a host was found to speak.
    pub fn note_dialect(&self, host: usize, dialect: Dialect) {
        let known = &self.standing[host].dialect;
        known.store(dialect as u8, Ordering::Relaxed);
    }
}

/// Why a host isn't what is wanted, in libpq's words; `None` where it is. What PostgreSQL reports at login tells
/// (version 14 and later).
#[must_use]
pub fn unfit(target: Target, reported: &Parameters, baseline: &Baseline) -> Option<&'static str> {
    let Some(standby) = reported.get("in_hot_standby").map(|value| value == "on") else {
        return (!matches!(target, Target::Any | Target::PreferStandby))
            .then_some("it doesn't report in_hot_standby (PostgreSQL 14 and later do)");
    };
    // Where the session itself asks for it, it says nothing of the host.
    let frozen = !baseline.names("default_transaction_read_only")
        && reported.get("default_transaction_read_only") == Some("on");
    match target {
        Target::Any | Target::PreferStandby => None,
        Target::ReadWrite => (standby || frozen).then_some("session is read-only"),
        Target::ReadOnly => (!standby && !frozen).then_some("session is not read-only"),
        Target::Primary => standby.then_some("server is in hot standby mode"),
        Target::Standby => (!standby).then_some("server is not in hot standby mode"),
    }
}

fn shuffle<T>(items: &mut [T]) {
    for end in (1..items.len()).rev() {
        let random = getrandom::u64().unwrap_or_default();
        let other = usize::try_from(random % (end as u64 + 1)).unwrap_or_default();
        items.swap(end, other);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Place, UpstreamHost, UpstreamTls};

    fn hosts(count: usize, balance: Balance) -> Hosts {
        let place = |index| Place {
            host: UpstreamHost::Tcp(format!("h{index}")),
            port: 5432,
        };
        Hosts::new(&Upstream {
            places: (0..count).map(place).collect(),
            target: Target::Any,
            balance,
            database: String::new(),
            user: String::new(),
            password: None,
            tls: UpstreamTls::default(),
        })
    }

    #[test]
    fn a_host_that_failed_is_asked_last_for_a_while() {
        let hosts = hosts(3, Balance::Disable);
        let now = Moment::from_micros(1).after(MEMORY);
        assert_eq!(hosts.order(now), [0, 1, 2]);
        hosts.failed(0, now);
        assert_eq!(hosts.order(now), [1, 2, 0]);
        assert_eq!(hosts.order(now.after(MEMORY)), [0, 1, 2]);
        hosts.failed(1, now);
        hosts.served(0);
        assert_eq!(hosts.order(now), [0, 2, 1]);
    }

    #[test]
    fn a_random_order_begins_with_each_host_at_times() {
        let hosts = hosts(3, Balance::Random);
        let first = |_| hosts.order(Moment::default())[0];
        let seen: std::collections::BTreeSet<usize> = (0..200).map(first).collect();
        assert_eq!(seen, [0, 1, 2].into());
    }

    #[test]
    fn what_postgresql_reports_tells_whether_a_host_fits() {
        let reports = |standby: &str, read_only: &str| {
            let mut reported = Parameters::default();
            reported.set("in_hot_standby", standby);
            reported.set("default_transaction_read_only", read_only);
            reported
        };
        let none = Baseline::default();
        let fits = |target, standby, read_only| {
            unfit(target, &reports(standby, read_only), &none).is_none()
        };
        for (target, expected) in [
            (Target::Any, [true, true, true]),
            (Target::ReadWrite, [true, false, false]),
            (Target::ReadOnly, [false, true, true]),
            (Target::Primary, [true, true, false]),
            (Target::Standby, [false, false, true]),
            (Target::PreferStandby, [true, true, true]),
        ] {
            let found = [
                fits(target, "off", "off"),
                fits(target, "off", "on"),
                fits(target, "on", "off"),
            ];
            assert_eq!(found, expected, "{target:?}");
        }
        assert!(unfit(Target::Primary, &Parameters::default(), &none).is_some());
        let own = [(
            "options".to_owned(),
            "-c default_transaction_read_only=on".to_owned(),
        )];
        let own = Baseline(own.into());
        assert_eq!(unfit(Target::ReadWrite, &reports("off", "on"), &own), None);
    }
}
