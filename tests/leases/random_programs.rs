//! Random programs against the PostgreSQL of this machine, in each mode.

use crate::differential::{MODES, no_difference, no_relapse, seeds};
use crate::support::Postgres;

/// How many programs are run in a mode by default, in hundreds.
const ROUNDS: [u64; 5] = [10, 6, 4, 1, 6];

mod differential {
    use super::*;

    #[test]
    fn sessions_whose_leases_are_returned_at_random() {
        no_difference(Postgres::start(), seeds(0, 100 * ROUNDS[0]), MODES[0]);
    }

    #[test]
    fn sessions_in_transaction_mode() {
        no_difference(
            Postgres::start(),
            seeds(1_000_000, 100 * ROUNDS[1]),
            MODES[1],
        );
    }

    #[test]
    fn sessions_that_are_moved_at_every_quiet_point() {
        no_difference(
            Postgres::start(),
            seeds(2_000_000, 100 * ROUNDS[2]),
            MODES[2],
        );
    }

    #[test]
    fn sessions_that_are_moved_and_share_a_listener() {
        no_difference(
            Postgres::start(),
            seeds(3_000_000, 100 * ROUNDS[3]),
            MODES[3],
        );
    }

    #[test]
    fn sessions_that_are_asked_ahead() {
        no_difference(
            Postgres::start(),
            seeds(4_000_000, 100 * ROUNDS[4]),
            MODES[4],
        );
    }

    #[test]
    fn programs_that_once_failed() {
        no_relapse();
    }
}
