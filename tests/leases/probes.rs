//! Before a return PostgreSQL is asked for the session's state, unless all that the session said leaves none.

use crate::moves::evict;
use crate::stage::{detach, has_extension, idle_after, lease, process, reload, session, stage};
use crate::support::messages::{bind, execute, extended, parse, query, sync};
use crate::support::{Postgres, Raw, Valet, direct, eventually, tags};

use rustix::process::{Signal, kill_process};
use serde_json::json;

/// Nobody is asked ahead: no test takes that long.
const UNASKED: [&str; 2] = ["--park-after", "1h"];

const TENANT: &str = "SELECT coalesce(current_setting('app.tenant', true), '')";

fn probes(valet: &Valet) -> f64 {
    valet.metric("pgvalet_probes_total")
}

/// Returns a session's lease, and gives whether PostgreSQL was asked for its state.
///
/// What is known of the database counts for what was over before it was looked at, by a clock that ticks every few
/// milliseconds: so the lease idles for a tick first.
#[track_caller]
fn is_asked(valet: &Valet, client: &Raw) -> bool {
    eventually("the clock has ticked", || {
        let lease = lease(valet, client).expect("a lease");
        lease["idle_seconds"].as_f64() > Some(0.0)
    });
    let before = probes(valet);
    detach(valet, client);
    probes(valet) > before
}

/// A database in which `log_in` sets a custom setting, and a pgvalet with one backend.
fn one_backend() -> Option<(Postgres, Valet)> {
    let (postgres, valet) = stage(&["--max-backends", "1", UNASKED[0], UNASKED[1]])?;
    postgres.sql(
        "CREATE FUNCTION log_in() RETURNS trigger LANGUAGE plpgsql AS
         $$ BEGIN PERFORM set_config('app.tenant', NEW.name, false); RETURN NEW; END $$",
    );
    Some((postgres, valet))
}

const TRIGGER: &str =
    "CREATE TRIGGER t BEFORE INSERT ON jobs FOR EACH ROW EXECUTE FUNCTION log_in()";

/// Runs a statement that was prepared under this name.
#[track_caller]
fn run(client: &mut Raw, name: &str, value: &str) {
    client.send(&[bind("", name, &[value]), execute("", 0), sync()].concat());
    client.until_ready();
}

#[track_caller]
fn prepare(client: &mut Raw, name: &str, sql: &str) {
    client.send(&[parse(name, sql), sync()].concat());
    assert_eq!(tags(&client.until_ready()), "1Z");
}

#[test]
fn a_session_that_left_nothing_is_returned_without_a_question() {
    let Some((_postgres, valet)) = stage(&UNASKED) else {
        return;
    };
    let mut client = session(&valet, "app");
    let insert = r#"INSERT INTO "jobs" ("name") VALUES ($1) RETURNING "id""#;
    prepare(&mut client, "a1", insert);
    for round in 0..3 {
        client.query("BEGIN");
        client.query("INSERT INTO jobs (name) VALUES ('one')");
        run(&mut client, "a1", "another");
        client.query("COMMIT");
        assert!(!is_asked(&valet, &client), "round {round}");
    }
    assert_eq!(client.value(r#"SELECT count(*) FROM "jobs""#), "6");
}

#[test]
fn sessions_that_left_nothing_are_reloaded_without_a_question() {
    let Some((_postgres, valet)) = stage(&UNASKED) else {
        return;
    };
    let parked = (0..8).map(|_| idle_after(&valet, "app", "INSERT INTO jobs (name) VALUES ('x')"));
    let parked: Vec<Raw> = parked.collect();
    let mut set = idle_after(&valet, "app", "SET app.tenant = 'acme'");
    let report = reload(&valet, &json!({"deadline": "5s"}));
    assert_eq!(report["counts"]["returned"], 9, "{report}");
    // Who comes while the catalogs are compared is asked as well.
    assert!(probes(&valet) < 6.0, "{} of 9", probes(&valet));
    assert_eq!(set.value(TENANT), "acme");
    drop(parked);
}

#[test]
fn whoever_may_have_left_something_is_asked() {
    let Some((_postgres, valet)) = stage(&UNASKED) else {
        return;
    };
    for sql in [
        "SET work_mem = '5MB'",
        "SELECT set_config('app.tenant', 'acme', false)",
        r#"SELECT "lower"('A')"#,
        "DO $$ BEGIN PERFORM set_config('app.tenant', 'acme', false); END $$",
    ] {
        let client = idle_after(&valet, "app", sql);
        assert!(is_asked(&valet, &client), "{sql}");
    }
    let mut client = session(&valet, "app");
    prepare(
        &mut client,
        "s",
        "SELECT set_config('app.tenant', $1, false)",
    );
    assert!(!is_asked(&valet, &client), "nothing has run");
    run(&mut client, "s", "acme");
    assert!(is_asked(&valet, &client));
}

#[test]
fn a_lease_of_very_many_texts_is_asked() {
    let Some((_postgres, valet)) = stage(&UNASKED) else {
        return;
    };
    let mut client = session(&valet, "app");
    for number in 0..100 {
        client.value(&format!("SELECT {number}"));
    }
    assert!(is_asked(&valet, &client));
    client.value("SELECT 1");
    assert!(!is_asked(&valet, &client), "a new lease");
}

#[test]
fn what_a_trigger_of_later_sets_stays_with_its_session() {
    let Some((postgres, valet)) = one_backend() else {
        return;
    };
    let mut client = idle_after(&valet, "app", "INSERT INTO jobs (name) VALUES ('nobody')");
    // Nobody tells pgvalet: it has looked at the database before.
    postgres.sql(TRIGGER);
    client.query("INSERT INTO jobs (name) VALUES ('acme')");
    assert!(is_asked(&valet, &client));
    let mut other = session(&valet, "other");
    assert_eq!(other.value(TENANT), "");
    detach(&valet, &other);
    assert_eq!(client.value(TENANT), "acme");
}

#[test]
fn what_a_trigger_has_set_that_is_gone_by_now_reaches_nobody_else() {
    let Some((postgres, valet)) = one_backend() else {
        return;
    };
    postgres.sql(TRIGGER);
    let mut client = session(&valet, "app");
    client.query("INSERT INTO jobs (name) VALUES ('acme')");
    postgres.sql("DROP TRIGGER t ON jobs; DROP FUNCTION log_in()");
    assert!(is_asked(&valet, &client));
    let mut other = session(&valet, "other");
    assert_eq!(other.value(TENANT), "");
}

#[test]
fn an_unnamed_statement_of_an_earlier_lease_counts_when_it_runs_again() {
    for mode in ["session", "transaction"] {
        let Some((_postgres, valet)) = stage(&["--max-backends", "1", "--mode", mode]) else {
            return;
        };
        let mut client = session(&valet, "app");
        prepare(
            &mut client,
            "",
            "SELECT set_config('app.tenant', $1, false)",
        );
        let returned = |client: &Raw| {
            if mode == "session" {
                detach(&valet, client);
            }
        };
        returned(&client);
        run(&mut client, "", "acme");
        returned(&client);
        let mut other = session(&valet, "other");
        assert_eq!(other.value(TENANT), "", "{mode}");
        returned(&other);
        client.send(&query(TENANT));
        let answer = client.until_ready();
        let row = answer.iter().find(|message| message.tag == b'D');
        assert_eq!(row.expect("a row").columns()[0], "acme", "{mode}");
    }
}

/// A pgvalet that asks ahead who rests for a moment.
fn foreseeing() -> Option<(Postgres, Valet)> {
    stage(&["--max-backends", "2", "--park-after", "10ms"])
}

#[track_caller]
fn is_foreseen(valet: &Valet, asked: f64) {
    eventually("it is asked ahead", || probes(valet) >= asked);
}

#[test]
fn a_session_that_rests_is_asked_ahead_and_returns_without_a_question() {
    let Some((_postgres, valet)) = foreseeing() else {
        return;
    };
    let mut client = idle_after(&valet, "app", "SET app.tenant = 'acme'");
    is_foreseen(&valet, 1.0);
    // What leaves nothing doesn't change what is known.
    client.value("SELECT 1");
    assert!(!is_asked(&valet, &client));
    let [_one, two] = ["one", "two"].map(|name| {
        let mut other = session(&valet, name);
        other.query("BEGIN");
        other
    });
    two.goodbye();
    assert_eq!(client.value(TENANT), "acme");
}

#[test]
fn what_is_said_after_that_is_asked_for() {
    let Some((_postgres, valet)) = foreseeing() else {
        return;
    };
    let mut client = session(&valet, "app");
    let set = "SELECT set_config('app.tenant', $1, false)";
    client.send(&[extended(set, &["acme"]), sync()].concat());
    client.until_ready();
    is_foreseen(&valet, 1.0);
    // Its text was read before that.
    run(&mut client, "", "umbrella");
    let _other = evict(&valet, &mut client);
    assert_eq!(client.value(TENANT), "umbrella");
}

#[test]
fn an_extension_s_names_for_functions_of_postgresql_s_own_need_no_question() {
    if direct() || !has_extension("citext") {
        return;
    }
    let Some((postgres, valet)) = stage(&UNASKED) else {
        return;
    };
    postgres.sql("CREATE EXTENSION citext");
    let client = idle_after(&valet, "app", "SELECT 5");
    assert!(!is_asked(&valet, &client));
}

#[test]
fn who_was_listed_as_parked_is_asked_ahead_as_well() {
    let Some((_postgres, valet)) = foreseeing() else {
        return;
    };
    let client = idle_after(&valet, "app", "SET app.tenant = 'acme'");
    eventually("it is listed", || {
        let leaks = valet.get("/v1/leaks");
        leaks["leaks"].as_array().is_some_and(|all| !all.is_empty())
    });
    is_foreseen(&valet, 1.0);
    assert!(!is_asked(&valet, &client));
}

#[test]
fn who_is_pinned_stays_parked() {
    let Some((_postgres, valet)) = foreseeing() else {
        return;
    };
    let client = idle_after(&valet, "app", "CREATE TEMP TABLE mine ()");
    is_foreseen(&valet, 1.0);
    let lease = lease(&valet, &client).expect("a lease");
    assert_eq!(lease["verdict"], "parked", "{lease}");
}

#[test]
fn what_a_function_has_set_that_sets_nothing_any_more_stays_with_its_session() {
    let Some((postgres, valet)) = stage(&["--max-backends", "2", UNASKED[0], UNASKED[1]]) else {
        return;
    };
    let define = |body: &str| {
        format!(
            "CREATE OR REPLACE FUNCTION changing() RETURNS text LANGUAGE plpgsql AS $$ BEGIN RETURN {body}; END $$"
        )
    };
    postgres.sql(&define("set_config('app.tenant', 'acme', false)"));
    let mut client = idle_after(&valet, "app", "SELECT changing()");
    let _first = evict(&valet, &mut client);
    idle_after(&valet, "admin", &define("'harmless'")).goodbye();
    client.value("SET work_mem = '5MB'");
    assert_eq!(client.value(TENANT), "acme");
    detach(&valet, &client);
    // A scrub, or another backend.
    idle_after(&valet, "other", "SET work_mem = '6MB'").goodbye();
    assert_eq!(client.value(TENANT), "acme");
}

#[test]
fn a_database_that_stands_still_loses_nobody_who_rests() {
    let Some((_postgres, valet)) = stage(&["--park-after", "2s"]) else {
        return;
    };
    let mut client = session(&valet, "app");
    let pid = process(&mut client);
    client.send(&query("SET app.tenant = 'acme'; SELECT 1"));
    client.until_ready();
    kill_process(pid, Signal::STOP).expect("the backend stops");
    // It is asked after three seconds at most, and a return would wait for ten.
    eventually("it has stood still for long", || {
        let lease = lease(&valet, &client).expect("a lease");
        lease["idle_seconds"].as_f64() > Some(14.0)
    });
    assert_eq!(
        lease(&valet, &client).expect("a lease")["state"],
        "returning"
    );
    kill_process(pid, Signal::CONT).expect("the backend goes on");
    assert_eq!(client.value(TENANT), "acme");
}

#[test]
fn whoever_is_ended_while_it_is_asked_hears_postgresql_s_own_words() {
    let Some((_postgres, valet)) = stage(&["--park-after", "10ms"]) else {
        return;
    };
    let mut client = session(&valet, "app");
    let pid = process(&mut client);
    client.send(&query("SET app.tenant = 'acme'"));
    client.until_ready();
    kill_process(pid, Signal::STOP).expect("the backend stops");
    eventually("it is asked", || {
        lease(&valet, &client).expect("a lease")["state"] == "returning"
    });
    kill_process(pid, Signal::TERM).expect("the backend is told to end");
    kill_process(pid, Signal::CONT).expect("the backend goes on");
    let words = client.answer();
    assert_eq!(
        (words.sqlstate().as_str(), words.field(b'M').as_deref()),
        (
            "57P01",
            Some("terminating connection due to administrator command")
        )
    );
}
