//! psycopg 3 and asyncpg, a test for each case of their scripts.

use crate::programs::{client, python, run, scripts, stage};
use crate::support::skip;

/// Runs one case of a script with a Python that has the drivers.
fn case(script: &str, case: &str) {
    match python() {
        Err(why) => skip(&format!("no Python with psycopg and asyncpg: {why}")),
        Ok(python) => {
            let (_postgres, valet) = stage();
            run(client(python, valet.port())
                .arg(scripts().join(script))
                .arg(case));
        }
    }
}

macro_rules! cases {
    ($module:ident, $script:literal: $($case:ident)*) => {
        mod $module {
            $(#[test] fn $case() { super::case($script, stringify!($case)); })*
        }
    };
}

cases!(psycopg3, "psycopg3.py": simple many prepared pipeline pipeline_error pipeline_transaction server_cursor stream
    copy cancel notify notices two_phase status settings large_value asynchronous);
cases!(asyncpg, "asyncpg_client.py": queries transactions cursors copy cancellation notifications pool settings);
