//! The matrix: PostgreSQL 14 to 18 behind pgvalet, and clients of every kind before it, beside a direct connection.
//!
//! With `PGVALET_TEST_NO_SKIP=1` a version or a client that can't be had is a failure.

#[path = "../tls/certificates.rs"]
#[allow(dead_code, reason = "the certificates of other tests, too")]
mod certificates;
#[path = "../leases/differential/mod.rs"]
#[allow(dead_code, reason = "the programs of other tests, too")]
mod differential;
mod drivers;
mod encrypted;
#[path = "../clients/programs.rs"]
#[allow(dead_code, reason = "the programs of other tests, too")]
mod programs;
mod psql;
#[path = "../tls/secured.rs"]
mod secured;
#[path = "../leases/stage.rs"]
#[allow(dead_code, reason = "the words of other tests, too")]
mod stage;
mod suites;
#[path = "../support/mod.rs"]
mod support;
mod tokio_postgres;
mod versions;

use support::{Postgres, Valet};

/// The ways in which sessions are served.
const MODES: [&[&str]; 3] = [
    &[],
    &["--mode", "transaction"],
    &["--chaos-return", "always"],
];

/// Compares what is said on a port of PostgreSQL itself with what is said through pgvalet.
#[track_caller]
fn says_the_same_in_each_mode<T: PartialEq + std::fmt::Debug>(
    postgres: &Postgres,
    mut said: impl FnMut(u16) -> T,
) {
    let straight = said(postgres.port());
    for flags in MODES {
        let valet = Valet::front_with(postgres, flags);
        assert_eq!(said(valet.port()), straight, "{flags:?}");
    }
}
