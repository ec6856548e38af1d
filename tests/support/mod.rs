//! What the integration tests stand on: a throwaway PostgreSQL, a running pgvalet in front of it, a raw protocol client.
//!
//! With `PGVALET_TEST_DIRECT=1` no pgvalet runs and [`Valet::port`] is PostgreSQL's own port: every test that doesn't
//! speak of leases must pass that way too, which proves that it expects what PostgreSQL does.
#![allow(
    dead_code,
    unused_imports,
    reason = "each test binary uses its own part of this"
)]

pub mod http;
pub mod messages;
mod postgres;
pub mod raw;
pub mod stream;
mod valet;
mod watchdog;

use std::time::{Duration, Instant};

pub use messages::{Message, tags};
pub use postgres::{Auth, Postgres, Stop};
pub use raw::Raw;
pub use valet::{Exit, Valet};

/// How long anything may take before a test calls it hung. Generous: the machine may be busy with other tests.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// Whether the tests run straight against PostgreSQL, without pgvalet.
pub fn direct() -> bool {
    std::env::var_os("PGVALET_TEST_DIRECT").is_some_and(|value| value == "1")
}

/// Polls `condition` until it holds, and panics with `what` at the deadline. The one place where tests wait by the clock.
#[track_caller]
#[allow(
    clippy::disallowed_methods,
    reason = "the helper that stands for every wait of the tests"
)]
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < deadline, "not within {DEADLINE:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Like [`eventually`], for a value: polls until `probe` yields one.
#[track_caller]
pub fn eventually_some<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let mut found = None;
    eventually(what, || {
        found = probe();
        found.is_some()
    });
    found.expect("eventually returned, so there is one")
}

/// Leaves a test that can't run here, and says why. Use as `return skip("…")`.
pub fn skip(why: &str) {
    assert!(
        std::env::var_os("PGVALET_TEST_NO_SKIP").is_none(),
        "can't run: {why}"
    );
    eprintln!("skipped: {why}");
}

/// Whether there is nothing to test because the tests run straight against PostgreSQL. Use as `if no_valet() { return; }`.
pub fn no_valet() -> bool {
    if direct() {
        eprintln!("not run: it speaks of pgvalet's own behaviour, and PGVALET_TEST_DIRECT is set");
    }
    direct()
}
