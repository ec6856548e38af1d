//! A session that moves to another backend keeps its state, and takes nobody else's.

use tokio_postgres::NoTls;

use crate::stage::{backend, detach, idle_after, session, stage};
use crate::support::messages::{bind, describe_statement, execute, parse, sync};
use crate::support::{Postgres, Raw, Valet, tags};

fn two_backends() -> Option<(Postgres, Valet)> {
    stage(&["--max-backends", "2"])
}

/// Detaches `client`, and has somebody else take its backend: the client's next request finds another one.
/// The other stays in a transaction until it is dropped.
#[track_caller]
fn evict(valet: &Valet, client: &mut Raw) -> Raw {
    let pid = backend(client);
    detach(valet, client);
    loop {
        let mut other = session(valet, "other");
        other.query("BEGIN");
        let taken = backend(&mut other);
        if taken == pid {
            return other;
        }
        other.query("COMMIT");
        // Hold on to the wrong one while the right one is asked for.
        let mut right = session(valet, "other");
        right.query("BEGIN");
        other.query("BEGIN");
        right.query("SELECT 1");
        if backend(&mut right) == pid {
            drop(other);
            return right;
        }
    }
}

/// Has a session set itself up, moves it to another backend, and looks at it again.
#[track_caller]
fn survives(setup: &str, look: &str, expected: &str) {
    let Some((_postgres, valet)) = two_backends() else {
        return;
    };
    let mut client = idle_after(&valet, "app", setup);
    assert_eq!(
        client.value(look),
        expected,
        "before the move, after {setup}"
    );
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
    survives("SET work_mem = '3MB'; DISCARD ALL", "SHOW work_mem", "4MB");
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
    let mut other = evict(&valet, &mut client);
    assert_eq!(client.value("SHOW work_mem"), "3MB");
    assert_eq!(other.value("SHOW work_mem"), "4MB");
    client.query("SET TimeZone = 'UTC'; RESET TimeZone");
    assert_eq!(client.value("SHOW TimeZone"), "Asia/Tokyo");
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
fn named_prepared_statements_survive_a_move() {
    let Some((_postgres, valet)) = two_backends() else {
        return;
    };
    let mut client = session(&valet, "app");
    client.send(
        &[
            parse("s", "SELECT $1::int + 1"),
            parse("t", "SELECT 'other'"),
            sync(),
        ]
        .concat(),
    );
    assert_eq!(tags(&client.until_ready()), "11Z");
    let _other = evict(&valet, &mut client);
    client.send(
        &[
            bind("", "s", &["41"]),
            execute("", 0),
            describe_statement("t"),
            sync(),
        ]
        .concat(),
    );
    let answer = client.until_ready();
    assert_eq!(
        (tags(&answer).as_str(), answer[1].columns()),
        ("2DCtTZ", vec!["42".to_owned()])
    );
    client.send(&[parse("s", "SELECT 1"), sync()].concat());
    assert_eq!(
        client.until_ready()[0].sqlstate(),
        "42P05",
        "it exists still"
    );
}

#[test]
fn closed_and_deallocated_statements_stay_gone_after_a_move() {
    let Some((_postgres, valet)) = two_backends() else {
        return;
    };
    for end in [
        crate::support::messages::close_statement("s"),
        crate::support::messages::query("DEALLOCATE s"),
    ] {
        let mut client = session(&valet, "app");
        client.send(&[parse("s", "SELECT 1"), sync()].concat());
        client.until_ready();
        client.send(&[end, sync()].concat());
        client.until_ready();
        if client.value("SELECT 1") != "1" {
            client.until_ready();
        }
        let _other = evict(&valet, &mut client);
        client.send(&[bind("", "s", &[]), sync()].concat());
        assert_eq!(client.until_ready()[0].sqlstate(), "26000");
    }
}

#[test]
fn the_unnamed_statement_survives_a_return() {
    let Some((_postgres, valet)) = two_backends() else {
        return;
    };
    let mut client = session(&valet, "app");
    client.send(&[parse("", "SELECT 'unnamed'"), sync()].concat());
    client.until_ready();
    detach(&valet, &client);
    let mut others = [session(&valet, "a"), session(&valet, "b")];
    others
        .iter_mut()
        .for_each(|other| drop(other.query("SELECT 1")));
    others.into_iter().for_each(Raw::goodbye);
    client.send(&[bind("", "", &[]), execute("", 0), sync()].concat());
    let answer = client.until_ready();
    assert_eq!(
        (tags(&answer).as_str(), answer[1].columns()),
        ("2DCZ", vec!["unnamed".to_owned()])
    );
}

#[test]
fn the_same_text_under_two_search_paths_stays_two_statements() {
    let Some((postgres, valet)) = stage(&["--max-backends", "1"]) else {
        return;
    };
    postgres.sql("CREATE SCHEMA a; CREATE TABLE a.t AS SELECT 'a' AS v; CREATE SCHEMA b; CREATE TABLE b.t AS SELECT 'b' AS v");
    let mut clients = ["a", "b"].map(|schema| {
        let mut client = idle_after(&valet, schema, &format!("SET search_path = {schema}"));
        client.send(&[parse("s", "SELECT v FROM t"), sync()].concat());
        client.until_ready();
        detach(&valet, &client);
        client
    });
    for _ in 0..5 {
        for (client, schema) in clients.iter_mut().zip(["a", "b"]) {
            client.send(&[bind("", "s", &[]), execute("", 0), sync()].concat());
            assert_eq!(client.until_ready()[1].columns(), [schema]);
            detach(&valet, client);
        }
    }
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

#[tokio::test]
async fn tokio_postgres_s_statements_survive_a_move() {
    let Some((_postgres, valet)) = stage(&["--max-backends", "1"]) else {
        return;
    };
    let url = valet.url("postgres", "postgres");
    let (client, connection) = tokio_postgres::connect(&url, NoTls)
        .await
        .expect("a connection");
    tokio::spawn(connection);
    let statement = client
        .prepare("SELECT $1::int4 * 2")
        .await
        .expect("a statement");
    let id = valet.get("/v1/sessions")["sessions"][0]["id"].clone();
    for n in 0..20i32 {
        let (status, answer) = valet.admin(
            "POST",
            &format!("/v1/leases/{id}/return"),
            &serde_json::Value::Null,
        );
        assert_eq!(status, 200, "{answer}");
        let mut other = session(&valet, "other");
        assert_eq!(
            other.value("SELECT count(*) FROM pg_prepared_statements"),
            "0"
        );
        other.goodbye();
        let row = client.query_one(&statement, &[&n]).await.expect("a row");
        assert_eq!(row.get::<_, i32>(0), n * 2);
    }
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
