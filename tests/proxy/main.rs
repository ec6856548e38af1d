//! What clients meet at the front door and in the pool.

#[path = "../support/mod.rs"]
mod support;

use support::{Postgres, Raw, Valet};

#[test]
fn a_client_runs_a_query() {
    let postgres = Postgres::start();
    let valet = Valet::front(&postgres);
    assert_eq!(Raw::connect(valet.port()).value("SELECT 6 * 7"), "42");
}
