//! A session that moves to another backend keeps its state, and takes nobody else's.

use crate::stage::{backend, detach, give_back, idle_after, session, stage, stage_or_direct};
use crate::support::messages::{frame, query};
use crate::support::{Postgres, Raw, Valet, direct};

/// The stage for a session that moves from one backend to another.
pub fn two_backends() -> Option<(Postgres, Valet)> {
    stage(&["--max-backends", "2"])
}

/// Detaches `client`, and has others take both backends: the client's next request finds another one than it had.
/// Who took its backend stays in a transaction until it is dropped.
#[track_caller]
pub fn evict(valet: &Valet, client: &mut Raw) -> Raw {
    let pid = backend(client);
    detach(valet, client);
    let others = ["one", "two"].map(|name| {
        let mut other = session(valet, name);
        other.query("BEGIN");
        let pid = backend(&mut other);
        (other, pid)
    });
    let [(one, first), (two, _)] = others;
    let (taker, free) = if first == pid { (one, two) } else { (two, one) };
    free.goodbye();
    taker
}

/// Has a session set itself up, moves it to another backend, and looks at it again.
#[track_caller]
pub fn survives(setup: &str, look: &str, expected: &str) {
    let (_postgres, valet) = stage_or_direct(&["--max-backends", "2"]);
    let mut client = session(&valet, "app");
    client.value(setup);
    assert_eq!(
        client.value(look),
        expected,
        "before the move, after {setup}"
    );
    if direct() {
        return;
    }
    let before = backend(&mut client);
    let _other = evict(&valet, &mut client);
    assert_eq!(
        client.value(look),
        expected,
        "after the move, after {setup}"
    );
    assert_ne!(backend(&mut client), before);
}

#[test]
fn settings_survive_a_move() {
    survives("SET TimeZone = 'Asia/Tokyo'", "SHOW TimeZone", "Asia/Tokyo");
    survives(
        "SET search_path = \"odd name\", public",
        "SHOW search_path",
        "\"odd name\", public",
    );
    survives(
        "SET DateStyle = 'SQL, DMY'",
        "SELECT '2024-02-01'::date",
        "01/02/2024",
    );
    survives("SET jit = off", "SHOW jit", "off");
    survives(
        "SET work_mem = '3MB'; SET work_mem = '5MB'",
        "SHOW work_mem",
        "5MB",
    );
    survives(
        "SET standard_conforming_strings = off",
        "SHOW standard_conforming_strings",
        "off",
    );
}

#[test]
fn settings_that_hinder_others_hinder_no_move() {
    survives(
        "SET default_transaction_read_only = on",
        "SHOW default_transaction_read_only",
        "on",
    );
    survives(
        "SET default_transaction_isolation = 'serializable'",
        "SHOW transaction_isolation",
        "serializable",
    );
    survives("SET search_path = ''", "SHOW search_path", "\"\"");
    survives(
        "SET client_encoding = 'LATIN1'",
        "SHOW client_encoding",
        "LATIN1",
    );
    survives(
        "SET bytea_output = escape; SET intervalstyle = iso_8601",
        "SHOW intervalstyle",
        "iso_8601",
    );
}

#[test]
fn a_setting_in_the_client_s_own_encoding_survives_a_move_or_pins() {
    let Some((_postgres, valet)) = stage(&["--max-backends", "1"]) else {
        return;
    };
    let mut client = idle_after(&valet, "app", "SET client_encoding = 'LATIN1'");
    client.send(&frame(b'Q', b"SET app.name = '\xe9'\0"));
    client.until_ready();
    let (status, answer) = give_back(&valet, &client);
    assert!(status == 200 || answer["outcome"] == "pinned", "{answer}");
    if status == 200 {
        session(&valet, "other").query("SELECT 1");
    }
    let utf8 = "SELECT encode(convert_to(current_setting('app.name'), 'UTF8'), 'hex')";
    assert_eq!(client.value(utf8), "c3a9");
}

#[test]
fn a_role_survives_a_move() {
    survives("SET ROLE alice", "SELECT current_user", "alice");
}

#[test]
fn custom_settings_survive_a_move() {
    survives("SET app.tenant = 'acme'", "SHOW app.tenant", "acme");
    survives(
        "SELECT set_config('app.tenant', 'acme; DROP', false)",
        "SHOW app.tenant",
        "acme; DROP",
    );
}

#[test]
fn a_setting_that_was_rolled_back_or_reset_is_not_restored() {
    survives(
        "BEGIN; SET work_mem = '3MB'; ROLLBACK",
        "SHOW work_mem",
        "4MB",
    );
    survives(
        "SET work_mem = '3MB'; RESET work_mem",
        "SHOW work_mem",
        "4MB",
    );
    survives("SET work_mem = '3MB'; RESET ALL", "SHOW work_mem", "4MB");
    survives(
        "BEGIN; SET LOCAL work_mem = '3MB'; COMMIT",
        "SHOW work_mem",
        "4MB",
    );
}

#[test]
fn startup_settings_survive_a_move() {
    let Some((_postgres, valet)) = two_backends() else {
        return;
    };
    let options = [
        ("user", "postgres"),
        ("database", "postgres"),
        ("options", "-c work_mem=3MB -c TimeZone=Asia/Tokyo"),
    ];
    let mut client = Raw::connect_with(valet.port(), &options);
    let pid = backend(&mut client);
    detach(&valet, &client);
    // Both backends are taken by sessions with other settings; then one is free again.
    let (mut other, mut further) = (session(&valet, "other"), session(&valet, "other"));
    other.query("BEGIN");
    further.query("BEGIN");
    further.goodbye();
    assert_ne!(backend(&mut client), pid);
    assert_eq!(client.value("SHOW work_mem"), "3MB");
    assert_eq!(other.value("SHOW work_mem"), "4MB");
    client.query("SET TimeZone = 'UTC'; RESET TimeZone");
    assert_eq!(client.value("SHOW TimeZone"), "Asia/Tokyo");
}

#[test]
fn reset_returns_to_the_session_s_own_application_name() {
    let Some((_postgres, valet)) = stage(&["--max-backends", "1"]) else {
        return;
    };
    session(&valet, "opener").query("SELECT 1");
    for reset in ["RESET application_name", "RESET ALL", "DISCARD ALL"] {
        let mut client = idle_after(&valet, "mine", "SET application_name = 'changed'");
        client.query(reset);
        assert_eq!(
            client.value("SHOW application_name"),
            "mine",
            "after {reset}"
        );
        assert_eq!(
            client.parameters["application_name"], "mine",
            "after {reset}"
        );
        client.goodbye();
    }
}

#[test]
fn what_is_sent_behind_a_reset_finds_the_session_s_own_application_name() {
    let (_postgres, valet) = stage_or_direct(&["--max-backends", "1"]);
    session(&valet, "opener").query("SELECT 1");
    let mut client = session(&valet, "mine");
    for reset in [
        "DISCARD ALL",
        "reset all;",
        "SET application_name TO DEFAULT",
        "BEGIN; COMMIT",
    ] {
        client.query("SET application_name = 'changed'");
        let requests = [reset, "SHOW application_name", "SHOW application_name"];
        client.send(&requests.map(query).concat());
        client.until_ready();
        let expected = if reset.starts_with("BEGIN") {
            "changed"
        } else {
            "mine"
        };
        for _ in 1..requests.len() {
            let answer = client.until_ready();
            assert_eq!(answer[1].columns(), [expected], "after {reset}");
        }
        assert_eq!(client.parameters["application_name"], expected, "{reset}");
    }
    client.query("SET application_name = 'changed'");
    let requests = ["BEGIN", "RESET ALL", "SHOW application_name", "ROLLBACK"];
    client.send(&requests.map(query).concat());
    let answers = requests.map(|_| client.until_ready());
    assert_eq!(answers[2][1].columns(), ["mine"]);
    assert_eq!(client.value("SHOW application_name"), "changed");
}

#[test]
fn sessions_of_several_applications_hand_a_backend_on_as_it_is() {
    let Some((postgres, valet)) = stage(&["--mode", "transaction", "--max-backends", "1"]) else {
        return;
    };
    let odd = r"it's a \ name";
    let mut sessions = ["web", "jobs", "", odd].map(|name| (name, session(&valet, name)));
    for _ in 0..3 {
        for (name, client) in &mut sessions {
            assert_eq!(client.value("SHOW application_name"), *name);
            assert_eq!(
                client
                    .parameters
                    .get("application_name")
                    .map(String::as_str),
                Some(*name)
            );
        }
    }
    // Who has to be restored waits for its lease.
    let waits = valet.metric("pgvalet_acquire_wait_seconds_count");
    assert!(waits <= 1.0, "{waits}");
    sessions[0].1.query("SET application_name = 'changed'");
    assert_eq!(sessions[1].1.value("SHOW application_name"), "jobs");
    assert_eq!(sessions[0].1.value("SHOW application_name"), "changed");
    let names =
        "SELECT string_agg(application_name, ',') FROM pg_stat_activity WHERE client_port > 0";
    assert_eq!(postgres.sql(names), "changed");
}

#[test]
fn what_a_session_leaves_at_its_end_serves_the_next() {
    let Some((postgres, valet)) = stage(&["--mode", "transaction", "--max-backends", "2"]) else {
        return;
    };
    for (set, zone) in [("SELECT 1", "GMT"), ("SET TimeZone = 'Asia/Tokyo'", "GMT")] {
        let mut leaving = session(&valet, "app");
        leaving.value("SHOW TimeZone");
        leaving.query(set);
        leaving.goodbye();
        let mut next = session(&valet, "app");
        assert_eq!(next.value("SHOW TimeZone"), zone, "after {set}");
        next.query("SET work_mem = '3MB'");
        assert_eq!(next.value("SHOW work_mem"), "3MB");
        next.goodbye();
    }
    assert_eq!(session(&valet, "app").value("SHOW work_mem"), "4MB");
    assert_eq!(postgres.client_backends(), 1);
}

#[test]
fn a_reset_of_something_else_leaves_application_name() {
    let (_postgres, valet) = stage_or_direct(&["--max-backends", "1"]);
    session(&valet, "opener").query("SELECT 1");
    let mut client = session(&valet, "mine");
    client.query("SET application_name = 'changed'");
    for reset in [
        "RESET TimeZone",
        "RESET search_path",
        "SET work_mem TO DEFAULT",
        "DISCARD PLANS",
    ] {
        client.query(reset);
        assert_eq!(
            client.value("SHOW application_name"),
            "changed",
            "after {reset}"
        );
        assert_eq!(
            client.parameters["application_name"], "changed",
            "after {reset}"
        );
    }
    client.query("BEGIN; RESET ALL; ROLLBACK");
    assert_eq!(client.value("SHOW application_name"), "changed");
    client.query("SET application_name TO DEFAULT");
    assert_eq!(client.value("SHOW application_name"), "mine");
    client.query("BEGIN; SET application_name = 'changed'; ROLLBACK");
    assert_eq!(client.value("SHOW application_name"), "mine");
    client.query("BEGIN; SET LOCAL application_name = 'changed'; COMMIT");
    assert_eq!(client.value("SHOW application_name"), "mine");
}

#[test]
fn nobody_takes_over_another_s_settings() {
    let Some((_postgres, valet)) = two_backends() else {
        return;
    };
    let mut client = idle_after(
        &valet,
        "app",
        "SET TimeZone = 'Asia/Tokyo'; SET ROLE alice; SET app.tenant = 'acme'",
    );
    let mut other = evict(&valet, &mut client);
    assert_eq!(other.value("SHOW TimeZone"), "GMT");
    assert_eq!(other.value("SELECT current_user"), "postgres");
    assert_eq!(
        other.value("SELECT coalesce(current_setting('app.tenant', true), '')"),
        ""
    );
    assert_eq!(other.parameters["TimeZone"], "GMT");
    assert_eq!(client.value("SELECT current_user"), "alice");
    assert_eq!(client.parameters["TimeZone"], "Asia/Tokyo");
}

#[test]
fn a_search_path_is_the_same_after_a_hundred_moves() {
    let Some((_postgres, valet)) = stage(&["--max-backends", "1"]) else {
        return;
    };
    let path = "\"$user\", public, \"a \"\"quoted\"\" one\"";
    let mut client = idle_after(&valet, "app", &format!("SET search_path = {path}"));
    let mut other = session(&valet, "other");
    for _ in 0..100 {
        detach(&valet, &client);
        assert_eq!(other.value("SHOW search_path"), "\"$user\", public");
        detach(&valet, &other);
        assert_eq!(client.value("SHOW search_path"), path);
    }
}

#[test]
fn a_hostile_search_path_doesn_t_deceive_the_probe() {
    let Some((postgres, valet)) = two_backends() else {
        return;
    };
    postgres.sql(
        "CREATE SCHEMA evil;
         CREATE FUNCTION evil.current_setting(text) RETURNS text LANGUAGE sql AS $$ SELECT 'deceived' $$;
         CREATE FUNCTION evil.eq(text, text) RETURNS bool LANGUAGE sql AS $$ SELECT true $$;
         CREATE OPERATOR evil.= (LEFTARG = text, RIGHTARG = text, FUNCTION = evil.eq);
         CREATE VIEW evil.pg_settings AS SELECT 1 AS nothing; CREATE VIEW evil.pg_locks AS SELECT 1 AS nothing",
    );
    let mut client = idle_after(
        &valet,
        "app",
        "SET search_path = evil, pg_catalog; SET TimeZone = 'Asia/Tokyo'",
    );
    let mut other = evict(&valet, &mut client);
    assert_eq!(other.value("SHOW TimeZone"), "GMT");
    assert_eq!(client.value("SHOW TimeZone"), "Asia/Tokyo");
    assert_eq!(client.value("SHOW search_path"), "evil, pg_catalog");
}

#[test]
fn notices_and_parameters_of_the_proxy_s_own_work_stay_hidden() {
    let Some((_postgres, valet)) = two_backends() else {
        return;
    };
    let mut client = idle_after(
        &valet,
        "app",
        "SET client_min_messages = 'debug1'; SET TimeZone = 'Asia/Tokyo'",
    );
    let _other = evict(&valet, &mut client);
    client.send(&crate::support::messages::query("SHOW TimeZone"));
    loop {
        let message = client.next();
        match message.tag {
            b'S' => assert!(
                !message.body.starts_with(b"TimeZone\0")
                    || message.body == b"TimeZone\0Asia/Tokyo\0"
            ),
            b'N' | b'A' | b'E' => panic!("{message:?}"),
            b'Z' => break,
            _ => {}
        }
    }
}
