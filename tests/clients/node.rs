//! node-postgres, a test for each case of its script.

use crate::programs::{client, node_modules, run, scripts, stage};
use crate::support::skip;

fn case(case: &str) {
    match node_modules() {
        Err(why) => skip(&format!("no Node with node-postgres: {why}")),
        Ok(home) => {
            // Modules are looked up beside the script, so it runs from where they are installed.
            let script = home.join("node_postgres.mjs");
            let fresh = home.join(format!("node_postgres.{}.{case}.mjs", std::process::id()));
            std::fs::copy(scripts().join("node_postgres.mjs"), &fresh)
                .expect("the script can be copied");
            std::fs::rename(&fresh, &script).expect("the script can be put in place");
            let (_postgres, valet) = stage();
            run(client("node", valet.port()).arg(script).arg(case));
        }
    }
}

macro_rules! cases {
    ($($case:ident)*) => { $(#[test] fn $case() { super::case(stringify!($case)); })* };
}

mod node_postgres {
    cases!(queries prepared transactions cursor stream copy cancel notify notices pool large_value settings);
}
