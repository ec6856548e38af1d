//! In front of a standby, which takes no writes: sessions move between its backends, and lose nothing.

use crate::stage::{backend, outcome, reload};
use crate::support::messages::{bind, execute, parse, sync};
use crate::support::{Postgres, Raw, Valet, no_valet, tags};
use serde_json::json;

/// A standby with a role, tables of two tenants, and pgvalet in front of it. A second session keeps a second backend alive.
fn stage(flags: &[&str]) -> (Postgres, Valet, Raw) {
    let mut postgres = Postgres::start();
    postgres.sql(
        "CREATE ROLE reader; CREATE SCHEMA one; CREATE SCHEMA two;
         CREATE TABLE one.t AS SELECT 'one' AS name; CREATE TABLE two.t AS SELECT 'two' AS name;
         GRANT USAGE ON SCHEMA one, two TO reader; GRANT SELECT ON one.t, two.t TO reader",
    );
    postgres.become_standby();
    let valet = Valet::front_with(&postgres, flags);
    let mut other = Raw::connect(valet.port());
    assert_eq!(other.value("SELECT pg_is_in_recovery()"), "t");
    (postgres, valet, other)
}

const CHAOS: [&str; 4] = ["--chaos-return", "always", "--max-backends", "3"];

/// Has the client see `expected` on more than one backend.
#[track_caller]
fn holds_wherever_it_goes(client: &mut Raw, look: &str, expected: &str) {
    let mut pids: Vec<String> = Vec::new();
    // It has the backends by turns, of which there are two or three: now two requests, now three meet several.
    for looks in [1, 2, 1, 2] {
        for _ in 0..looks {
            assert_eq!(client.value(look), expected);
        }
        pids.push(backend(client));
    }
    pids.sort();
    pids.dedup();
    assert!(pids.len() > 1, "it never moved: {pids:?}");
}

#[test]
fn settings_and_the_role_move_between_a_standby_s_backends() {
    if no_valet() {
        return;
    }
    let (_postgres, valet, _other) = stage(&CHAOS);
    let mut client = Raw::connect(valet.port());
    client.value("SET search_path = two; SET app.tenant = 'acme'; SET statement_timeout = '7s'");
    client.value("SET default_transaction_read_only = off; SET default_transaction_isolation = 'repeatable read'");
    client.value("SET ROLE reader");
    let look = "SELECT concat_ws(' ', current_user, (SELECT name FROM t), current_setting('app.tenant'), \
                current_setting('statement_timeout'), current_setting('transaction_isolation'))";
    let expected = "reader two acme 7s repeatable read";
    holds_wherever_it_goes(&mut client, look, expected);
    client.value("RESET ROLE; SET search_path = one");
    let expected = "postgres one acme 7s repeatable read";
    holds_wherever_it_goes(&mut client, look, expected);
    client.value("DISCARD ALL");
    let look = "SELECT concat_ws(' ', current_setting('app.tenant', true), current_setting('search_path'))";
    assert_eq!(client.value(look).trim_start(), "\"$user\", public");
}

#[test]
fn prepared_statements_move_between_a_standby_s_backends() {
    if no_valet() {
        return;
    }
    let (_postgres, valet, _other) = stage(&CHAOS);
    let mut client = Raw::connect(valet.port());
    client.value("SET search_path = two");
    client.value("PREPARE by_sql AS SELECT name || $1 FROM t");
    client.send(&[parse("named", "SELECT name FROM t"), sync()].concat());
    assert_eq!(tags(&client.until_ready()), "1Z");
    holds_wherever_it_goes(&mut client, "EXECUTE by_sql('!')", "two!");
    for _ in 0..4 {
        client.send(&[bind("", "named", &[]), execute("", 0), sync()].concat());
        let answer = client.until_ready();
        assert_eq!(tags(&answer), "2DCZ");
        assert_eq!(answer[1].columns(), ["two"]);
    }
}

#[test]
fn transactions_on_a_standby_end_leases_and_keep_state() {
    if no_valet() {
        return;
    }
    let flags = ["--mode", "transaction", "--max-backends", "1"];
    let (_postgres, valet, mut other) = stage(&flags);
    let mut client = Raw::connect(valet.port());
    client.value("SET search_path = two");
    other.value("SET search_path = one");
    for _ in 0..3 {
        assert_eq!(client.value("BEGIN; SELECT name FROM t; COMMIT"), "two");
        assert_eq!(other.value("SELECT name FROM t"), "one");
    }
}

#[test]
fn what_a_standby_refuses_is_refused_as_without_us() {
    if no_valet() {
        return;
    }
    let (_postgres, valet, _other) = stage(&CHAOS);
    let mut client = Raw::connect(valet.port());
    client.value("SET app.tenant = 'acme'");
    for (sql, code) in [
        ("LISTEN news", "25006"),
        ("NOTIFY news", "25006"),
        ("CREATE TEMP TABLE mine (a int)", "25006"),
        ("SELECT nextval('pg_catalog.none')", "42P01"),
        ("BEGIN READ WRITE", "0A000"),
        ("BEGIN ISOLATION LEVEL SERIALIZABLE", "0A000"),
    ] {
        assert_eq!(client.failure(sql), code, "{sql}");
    }
    holds_wherever_it_goes(&mut client, "SHOW app.tenant", "acme");
}

#[test]
fn advisory_locks_pin_on_a_standby_too() {
    if no_valet() {
        return;
    }
    let (_postgres, valet, _other) = stage(&[]);
    let mut client = Raw::connect(valet.port());
    client.value("SELECT pg_advisory_lock(7)");
    let report = reload(&valet, &json!({"deadline": "5s"}));
    let (outcome, reason) = outcome(&report, client.session());
    assert_eq!((&*outcome, &*reason), ("pinned", "advisory_lock"));
}
