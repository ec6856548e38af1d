//! What pins a session to its backend, and what doesn't.

use serde_json::json;

use rustix::process::{Signal, kill_process};

use crate::stage::{
    detach, give_back, has_extension, idle_after, lease, outcome, process, reload, session, stage,
};
use crate::support::{Raw, eventually};

/// The account of one idle session of which `sql` was the last statement.
#[track_caller]
pub fn outcome_after(sql: &str) -> (String, String) {
    let Some((_postgres, valet)) = stage(&[]) else {
        return (String::new(), String::new());
    };
    let client = idle_after(&valet, "app", sql);
    let report = reload(&valet, &json!({"deadline": "5s"}));
    assert_eq!(report["state"], "done", "{report}");
    outcome(&report, client.session())
}

#[track_caller]
pub fn is_pinned(sql: &str, pin: &str) {
    if crate::support::no_valet() {
        return;
    }
    let (outcome, reason) = outcome_after(sql);
    assert_eq!(outcome, "pinned", "after {sql}: {reason}");
    assert!(reason.contains(pin), "after {sql}: {reason}");
}

#[test]
fn a_temporary_table_pins() {
    is_pinned("CREATE TEMP TABLE mine (a int)", "temp");
}

#[test]
fn an_advisory_lock_pins() {
    is_pinned("SELECT pg_advisory_lock(7)", "advisory_lock");
}

#[test]
fn an_advisory_lock_taken_inside_a_function_pins() {
    is_pinned(
        "DO $$ BEGIN PERFORM pg_advisory_lock_shared(7); END $$",
        "advisory_lock",
    );
}

#[test]
fn listen_pins() {
    is_pinned("LISTEN news", "listen");
}

#[test]
fn a_with_hold_cursor_pins() {
    is_pinned(
        "BEGIN; DECLARE c CURSOR WITH HOLD FOR SELECT 1; COMMIT",
        "cursor",
    );
}

#[test]
fn another_session_authorization_pins() {
    is_pinned("SET SESSION AUTHORIZATION alice", "session_authorization");
}

#[test]
fn state_that_can_t_be_read_pins() {
    is_pinned("SELECT setseed(0.5)", "setseed");
    is_pinned("SET SEED TO 0.5", "setseed");
    is_pinned("SELECT set_config('seed', '0.5', false)", "setseed");
    is_pinned("LOAD 'plpgsql'", "load");
    is_pinned(
        "SELECT set_config('app.' || 'tenant', 'acme', false)",
        "unreadable_setting",
    );
}

/// Has one session do something behind the only backend, and another one look for it, in both modes: while the first one
/// lives, and after it has gone.
#[track_caller]
fn reaches_nobody(prepare: &str, act: &str, look: &str, nothing: &str) {
    for (mode, lives) in [
        ("session", false),
        ("transaction", false),
        ("transaction", true),
    ] {
        let Some((postgres, valet)) = stage(&["--max-backends", "1", "--mode", mode]) else {
            return;
        };
        postgres.sql(prepare);
        let here = format!("host=127.0.0.1 port={} user=postgres", postgres.port());
        let mut one = session(&valet, "one");
        one.value(&act.replace("HERE", &here));
        assert_ne!(one.value(look), nothing);
        let _one = if lives {
            Some(one)
        } else {
            one.goodbye();
            None
        };
        let mut other = session(&valet, "other");
        assert_eq!(other.value(look), nothing, "mode {mode}, lives: {lives}");
    }
}

#[test]
fn an_origin_of_replication_reaches_nobody_else() {
    // It pins, so that in mode transaction nobody else gets the backend as long as its session lives.
    is_pinned(
        "SELECT pg_replication_origin_create('mine'); SELECT pg_replication_origin_session_setup('mine')",
        "replication",
    );
    is_pinned(
        "SELECT pg_create_physical_replication_slot('mine', true, true)",
        "replication",
    );
    let Some((postgres, valet)) = stage(&["--max-backends", "1"]) else {
        return;
    };
    postgres.sql("SELECT pg_replication_origin_create('mine')");
    let mut one = session(&valet, "one");
    one.value("SELECT pg_replication_origin_session_setup('mine')");
    one.goodbye();
    let mut other = session(&valet, "other");
    let is_setup = "SELECT pg_replication_origin_session_is_setup()";
    assert_eq!(other.value(is_setup), "f");
}

#[test]
fn a_connection_of_dblink_reaches_nobody_else() {
    if has_extension("dblink") {
        reaches_nobody(
            "CREATE EXTENSION dblink",
            "SELECT dblink_connect('mine', 'HERE')",
            "SELECT coalesce(dblink_get_connections()::text, '')",
            "",
        );
    }
}

#[test]
fn globals_of_a_procedural_language_reach_nobody_else() {
    if has_extension("plperl") {
        let read = "CREATE EXTENSION plperl;
            CREATE FUNCTION remembered() RETURNS text LANGUAGE plperl AS 'return $_SHARED{v} // q()';
            CREATE FUNCTION remember() RETURNS text LANGUAGE plperl AS '$_SHARED{v} = 7'";
        let look = "SELECT remembered()";
        reaches_nobody(read, "SELECT remember()", look, "");
        let act = "DO LANGUAGE plperl $$ $_SHARED{v} = 7 $$";
        reaches_nobody(read, act, look, "");
    }
}

#[test]
fn sql_prepare_is_kept_or_pins() {
    let Some((_postgres, valet)) = stage(&[]) else {
        return;
    };
    let mut client = idle_after(&valet, "app", "PREPARE mine AS SELECT 7");
    let report = reload(&valet, &json!({"deadline": "5s"}));
    let (outcome, reason) = outcome(&report, client.session());
    assert!(
        outcome == "returned" || (outcome == "pinned" && reason == "prepare"),
        "{report}"
    );
    assert_eq!(client.value("EXECUTE mine"), "7");
}

#[test]
fn a_client_s_own_timeouts_and_output_settings_hinder_no_return() {
    let settings = [
        "SET statement_timeout = '1ms'",
        "SET lock_timeout = '1ms'",
        "SET idle_in_transaction_session_timeout = '1ms'",
        "SET bytea_output = 'escape'; SET extra_float_digits = -15; SET client_encoding = 'LATIN1'",
        "SET default_transaction_isolation = 'serializable'; SET default_transaction_deferrable = on",
        "SET default_transaction_read_only = on",
        "SET row_security = off; SET check_function_bodies = off; SET quote_all_identifiers = on",
        "SET search_path = ''",
        "SET ROLE alice",
        "SET client_min_messages = debug5",
        "SET debug_print_plan = on; SET log_duration = on",
        "SET enable_seqscan = off; SET jit = on; SET jit_above_cost = 0",
    ];
    let Some((_postgres, valet)) = stage(&[]) else {
        return;
    };
    for sql in settings {
        let client = idle_after(&valet, "app", sql);
        // On a busy machine 1 ms may be over before the probe has lifted the timeout: that pins, and may be tried again.
        eventually(&format!("it is returned after {sql}"), || {
            let report = reload(&valet, &json!({"deadline": "5s"}));
            let (outcome, reason) = outcome(&report, client.session());
            assert!(
                outcome == "returned" || reason == "probe_failed",
                "after {sql}: {report}"
            );
            outcome == "returned"
        });
        client.goodbye();
    }
}

#[test]
fn a_pinned_session_keeps_what_pins_it_until_it_lets_go() {
    let Some((_postgres, valet)) = stage(&[]) else {
        return;
    };
    let mut client = idle_after(&valet, "app", "CREATE TEMP TABLE mine AS SELECT 7 AS a");
    let again = json!({"deadline": "5s"});
    assert_eq!(
        outcome(&reload(&valet, &again), client.session()).0,
        "pinned"
    );
    assert_eq!(
        lease(&valet, &client).expect("a lease")["pins"],
        json!(["temp"])
    );
    assert_eq!(client.value("TABLE mine"), "7");
    client.query("DROP TABLE mine");
    assert_eq!(
        outcome(&reload(&valet, &again), client.session()).0,
        "returned"
    );
}

/// What nobody can read from its text: PostgreSQL is asked about all that it may have left.
const UNREAD: &str = "DO $$ BEGIN PERFORM set_config('work_mem', '3MB', false); END $$; SELECT 1";

#[test]
fn a_probe_that_would_have_to_wait_pins_until_it_need_not() {
    let Some((postgres, valet)) = stage(&[]) else {
        return;
    };
    let mut client = idle_after(&valet, "app", UNREAD);
    let mut locker = Raw::connect(postgres.port());
    locker.query("BEGIN; LOCK TABLE pg_catalog.pg_depend");
    let (status, answer) = give_back(&valet, &client);
    assert_eq!(
        (status, &answer["reason"]),
        (409, &json!("probe_failed")),
        "{answer}"
    );
    assert_eq!(client.value("SHOW work_mem"), "3MB");
    locker.query("ROLLBACK");
    detach(&valet, &client);
    assert_eq!(client.value("SHOW work_mem"), "3MB");
}

#[test]
fn a_backend_that_answers_no_probe_is_said_to_be_late() {
    let Some((_postgres, valet)) = stage(&[]) else {
        return;
    };
    let mut client = idle_after(&valet, "app", UNREAD);
    let pid = process(&mut client);
    kill_process(pid, Signal::STOP).expect("the backend stops");
    give_back(&valet, &client);
    kill_process(pid, Signal::CONT).expect("the backend goes on");
    let told = client.until_error();
    let text = told.field(b'M').expect("a message");
    assert!(
        text.contains("did not answer") && text.contains("10s"),
        "{text}"
    );
    eventually("the log says so, too", || {
        valet.log().contains("didn't answer within 10s")
    });
}
