//! pgbench: each query mode, with connections kept and with one for each transaction, and more clients than backends.

use crate::programs::{client, run, stage};
use crate::support::{Postgres, Valet};

/// Sets up pgbench's tables through `valet`, runs `arguments` for 8 clients of 50 transactions, and counts its history.
#[track_caller]
fn runs(postgres: &Postgres, valet: &Valet, arguments: &[&str]) {
    run(client("pgbench", valet.port()).args(["-i", "-q", "-s", "1"]));
    let report = run(client("pgbench", valet.port())
        .args(["-n", "-c", "8", "-t", "50"])
        .args(arguments));
    assert!(
        report.contains("transactions actually processed: 400/400"),
        "{report}"
    );
    assert_eq!(postgres.sql("SELECT count(*) FROM pgbench_history"), "400");
    let sums = "SELECT (SELECT sum(delta) FROM pgbench_history) = (SELECT sum(abalance) FROM pgbench_accounts)";
    assert_eq!(postgres.sql(sums), "t");
}

#[test]
fn pgbench_simple() {
    let (postgres, valet) = stage();
    runs(&postgres, &valet, &["-M", "simple"]);
}

#[test]
fn pgbench_extended() {
    let (postgres, valet) = stage();
    runs(&postgres, &valet, &["-M", "extended"]);
}

#[test]
fn pgbench_prepared() {
    let (postgres, valet) = stage();
    runs(&postgres, &valet, &["-M", "prepared"]);
}

#[test]
fn pgbench_connecting_for_each_transaction() {
    let (postgres, valet) = stage();
    runs(&postgres, &valet, &["-C", "-M", "extended"]);
}

#[test]
fn pgbench_with_more_clients_than_backends_waits_in_line() {
    let postgres = Postgres::start();
    let valet = Valet::front_with(&postgres, &["--max-backends", "3"]);
    runs(&postgres, &valet, &["-M", "prepared", "-j", "8"]); // it prepares synchronously: a thread for each that waits
}

#[test]
fn pgbench_prepared_in_transaction_mode() {
    let postgres = Postgres::start();
    let valet = Valet::front_with(&postgres, &["--max-backends", "3", "--mode", "transaction"]);
    runs(&postgres, &valet, &["-M", "prepared", "-j", "8"]);
}

#[test]
fn pgbench_pipelines() {
    let (postgres, valet) = stage();
    let script = postgres.socket_directory().join("pipeline.sql");
    let pipeline =
        "\\startpipeline\nSELECT 1;\nBEGIN;\nSELECT 2;\nCOMMIT;\nSELECT 3;\n\\endpipeline\n";
    std::fs::write(&script, pipeline).expect("a script can be written");
    let mut pgbench = client("pgbench", valet.port());
    let report = run(pgbench
        .args(["-n", "-c", "4", "-t", "100", "-M", "prepared", "-f"])
        .arg(&script));
    assert!(
        report.contains("transactions actually processed: 400/400"),
        "{report}"
    );
}
