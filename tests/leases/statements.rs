//! Prepared statements stay with their session, whichever backend it has.

use tokio_postgres::NoTls;

use crate::moves::{evict, two_backends};
use crate::stage::{detach, give_back, idle_after, session, stage, stage_or_direct};
use crate::support::messages::{
    bind, close_portal, close_statement, describe_statement, execute, extended, frame, parse,
    parse_typed, query, sync,
};
use crate::support::{Raw, Valet, direct, tags};

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

/// What Django does at connect, where psycopg prepares statements.
#[test]
fn the_statement_that_sets_the_time_zone_does_not_keep_its_session() {
    let Some((_postgres, valet)) = two_backends() else {
        return;
    };
    let mut client = session(&valet, "app");
    let set = "SELECT set_config('TimeZone', $1, false)";
    let zone = [bind("", "s", &["Asia/Tokyo"]), execute("", 0), sync()].concat();
    client.send(&[parse("s", set), zone.clone()].concat());
    client.until_ready();
    let _other = evict(&valet, &mut client);
    assert_eq!(client.value("SHOW TimeZone"), "Asia/Tokyo");
    client.send(&zone);
    assert_eq!(client.until_ready()[1].columns(), ["Asia/Tokyo"]);
}

#[test]
fn a_statement_prepared_in_a_transaction_that_rolled_back_survives_a_move() {
    let Some((_postgres, valet)) = two_backends() else {
        return;
    };
    let mut client = session(&valet, "app");
    client.query("BEGIN");
    client.send(&[parse("s", "SELECT 'still there'"), sync()].concat());
    client.until_ready();
    client.query("ROLLBACK");
    let _other = evict(&valet, &mut client);
    client.send(&[bind("", "s", &[]), execute("", 0), sync()].concat());
    assert_eq!(client.until_ready()[1].columns(), ["still there"]);
}

#[test]
fn the_parameter_types_of_a_statement_survive_a_move() {
    let Some((_postgres, valet)) = two_backends() else {
        return;
    };
    let mut client = session(&valet, "app");
    let (int2, inet) = (21, 869);
    client.send(&[parse_typed("s", "SELECT $1, $2", &[int2, inet]), sync()].concat());
    client.until_ready();
    let _other = evict(&valet, &mut client);
    client.send(&[describe_statement("s"), sync()].concat());
    assert_eq!(
        client.until_ready()[0].body,
        [0, 2, 0, 0, 0, 21, 0, 0, 3, 101]
    );
}

#[test]
fn a_statement_that_failed_to_parse_isn_t_there_after_a_move_either() {
    let Some((_postgres, valet)) = two_backends() else {
        return;
    };
    let mut client = session(&valet, "app");
    client.send(&[parse("s", "SELECT nothing"), sync()].concat());
    assert_eq!(client.until_ready()[0].sqlstate(), "42703");
    client.send(
        &[
            parse("skipped", "SELECT 1/0"),
            bind("", "none", &[]),
            parse("late", "SELECT 1"),
            sync(),
        ]
        .concat(),
    );
    assert_eq!(tags(&client.until_ready()), "1EZ");
    let _other = evict(&valet, &mut client);
    for name in ["s", "late"] {
        client.send(&[bind("", name, &[]), sync()].concat());
        assert_eq!(client.until_ready()[0].sqlstate(), "26000");
    }
}

#[test]
fn closed_and_deallocated_statements_stay_gone_after_a_move() {
    let Some((_postgres, valet)) = two_backends() else {
        return;
    };
    let close = [close_statement("s"), sync()].concat();
    for end in [
        close,
        query("DEALLOCATE s"),
        query("DEALLOCATE ALL"),
        query("DISCARD ALL"),
        query("SELECT 1; DEALLOCATE s"),
    ] {
        let mut client = session(&valet, "app");
        client.send(&[parse("s", "SELECT 1"), sync()].concat());
        client.until_ready();
        client.send(&end);
        client.until_ready();
        let _other = evict(&valet, &mut client);
        client.send(&[bind("", "s", &[]), sync()].concat());
        assert_eq!(
            client.until_ready()[0].sqlstate(),
            "26000",
            "after {}",
            String::from_utf8_lossy(&end)
        );
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

/// Prepares `sql` as `s`, changes a setting, moves the session where that is allowed, and executes `s`: it means what it
/// meant when it was prepared, as without a proxy.
#[track_caller]
fn means_what_it_meant(sql: &[u8], change: &str, expected: &str) {
    let (_postgres, valet) = stage_or_direct(&["--max-backends", "1"]);
    let mut client = session(&valet, "app");
    client.send(&[frame(b'P', &[b"s\0", sql, b"\0\0\0"].concat()), sync()].concat());
    client.until_ready();
    client.query(change);
    if !direct() {
        let (status, answer) = give_back(&valet, &client);
        assert!(status == 200 || answer["outcome"] == "pinned", "{answer}");
        if status == 200 {
            session(&valet, "other").query("SELECT 1");
        }
    }
    client.send(&[bind("", "s", &[]), execute("", 0), sync()].concat());
    let answer = client.until_ready();
    assert_eq!(
        (tags(&answer).as_str(), answer[1].columns()),
        ("2DCZ", vec![expected.to_owned()]),
        "after {change}"
    );
}

#[test]
fn a_statement_means_what_it_meant_when_it_was_prepared() {
    means_what_it_meant(
        b"SELECT extract(month FROM '01/02/2024'::date)::int",
        "SET DateStyle = 'ISO, DMY'",
        "1",
    );
    means_what_it_meant(
        b"SELECT length('a\\b')",
        "SET standard_conforming_strings = off",
        "3",
    );
    means_what_it_meant(
        b"SELECT length('\xc3\xa9')",
        "SET client_encoding = 'LATIN1'",
        "1",
    );
    let midnight = b"SELECT extract(epoch FROM '2024-01-01 00:00'::timestamptz)::int";
    means_what_it_meant(midnight, "SET TimeZone = 'Asia/Tokyo'", "1704067200");
}

/// A session whose statement `s` has a date of February, and was described; its next request finds another backend.
fn described_and_moved(valet: &Valet) -> (Raw, Raw) {
    let mut client = session(valet, "app");
    client.query("SET DateStyle = 'ISO, DMY'");
    let texts = [
        parse("s", "SELECT '01/02/2024'::date::text"),
        describe_statement("s"),
        parse("plain", "SELECT 1"),
        parse("american", "SET DateStyle = 'ISO, MDY'"),
        sync(),
    ];
    client.send(&texts.concat());
    client.until_ready();
    let other = evict(valet, &mut client);
    (client, other)
}

fn run(name: &str) -> Vec<u8> {
    [bind("", name, &[]), execute("", 0)].concat()
}

#[test]
fn a_described_statement_means_what_it_meant_whatever_its_session_sets_first() {
    let changes = [
        query("SET DateStyle = 'ISO, MDY'"),
        query("BEGIN; SET LOCAL DateStyle = 'ISO, MDY'"),
        query("SELECT set_config('DateStyle', 'ISO, MDY', false)"),
        [extended("SET DateStyle = 'ISO, MDY'", &[]), sync()].concat(),
        [run("american"), sync()].concat(),
        [
            parse("new", "SET DateStyle = 'ISO, MDY'"),
            run("new"),
            sync(),
        ]
        .concat(),
    ];
    for change in changes {
        let Some((_postgres, valet)) = two_backends() else {
            return;
        };
        let (mut client, _other) = described_and_moved(&valet);
        client.send(&change);
        client.until_ready();
        for _ in 0..2 {
            client.send(&[run("s"), sync()].concat());
            let answer = client.until_ready();
            let change = change.escape_ascii();
            assert_eq!(tags(&answer), "2DCZ", "after {change}: {answer:?}");
            assert_eq!(answer[1].columns(), ["2024-02-01"], "after {change}");
            client.query("COMMIT");
        }
    }
}

#[test]
fn a_statement_means_what_it_meant_where_the_change_is_pipelined() {
    for (first, last) in [("SELECT 1", "SELECT 1"), ("BEGIN", "COMMIT")] {
        let Some((_postgres, valet)) = two_backends() else {
            return;
        };
        let (mut client, _other) = described_and_moved(&valet);
        let change = query("SET DateStyle = 'ISO, MDY'");
        client.send(&[extended(first, &[]), sync(), change, query(last)].concat());
        for _ in 0..3 {
            client.until_ready();
        }
        client.send(&[run("s"), sync()].concat());
        let answer = client.until_ready();
        assert_eq!(tags(&answer), "2DCZ", "behind {first}: {answer:?}");
        assert_eq!(answer[1].columns(), ["2024-02-01"], "behind {first}");
    }
}

#[test]
fn a_statement_that_would_be_read_otherwise_is_refused() {
    let Some((_postgres, valet)) = two_backends() else {
        return;
    };
    let (mut client, _other) = described_and_moved(&valet);
    // In the middle of a pipeline nothing can be made that might fail.
    client.send(&[run("plain"), run("american"), sync()].concat());
    assert_eq!(tags(&client.until_ready()), "2DC2CZ");
    for used in [run("s"), describe_statement("s")] {
        client.send(&[used, sync()].concat());
        assert_eq!(client.until_ready()[0].sqlstate(), "0A000");
    }
    client.query("SET DateStyle = 'ISO, DMY'");
    client.send(&[run("s"), sync()].concat());
    assert_eq!(client.until_ready()[1].columns(), ["2024-02-01"]);
}

#[test]
fn a_statement_that_can_t_be_made_any_more_can_be_deallocated() {
    let Some((postgres, valet)) = two_backends() else {
        return;
    };
    let mut client = session(&valet, "app");
    for deallocate in ["DEALLOCATE gone", "deallocate prepare \"gone\""] {
        postgres.sql("CREATE TABLE passing (a int)");
        let made = [parse("gone", "TABLE passing"), parse("other", "SELECT 7")];
        client.send(&[&made.concat()[..], &sync()].concat());
        client.until_ready();
        let _other = evict(&valet, &mut client);
        postgres.sql("DROP TABLE passing");
        client.send(
            &[
                query("BEGIN; SELECT 1/0"),
                query(deallocate),
                query("ROLLBACK"),
            ]
            .concat(),
        );
        for _ in 0..3 {
            client.until_ready();
        }
        // What failed has done away with nothing.
        client.send(&[run("gone"), sync()].concat());
        assert_eq!(client.until_ready()[0].sqlstate(), "42P01");
        client.query("BEGIN");
        assert_eq!(tags(&client.query(deallocate)), "CZ");
        assert_eq!(client.value("SELECT 1"), "1");
        client.query("COMMIT");
        client.send(&[run("gone"), sync()].concat());
        assert_eq!(client.until_ready()[0].sqlstate(), "26000");
        client.send(&[run("other"), close_statement("other"), sync()].concat());
        assert_eq!(client.until_ready()[1].columns(), ["7"]);
    }
}

#[test]
fn a_statement_that_can_t_be_made_any_more_fails_as_it_would_without_a_move() {
    let Some((postgres, valet)) = two_backends() else {
        return;
    };
    let mut client = session(&valet, "app");
    for begin in ["", "BEGIN"] {
        postgres.sql("CREATE TABLE passing (a int)");
        let made = [parse("gone", "TABLE passing"), parse("other", "SELECT 7")];
        client.send(&[&made.concat()[..], &sync()].concat());
        client.until_ready();
        let _other = evict(&valet, &mut client);
        postgres.sql("DROP TABLE passing");
        // In the first request on the other backend, and later.
        for begin in [begin, ""] {
            client.send(&[query(begin), run("other"), run("gone"), sync()].concat());
            client.until_ready();
            let answer = client.until_ready();
            assert_eq!(tags(&answer), "2DCEZ");
            assert_eq!(answer[3].sqlstate(), "42P01");
            assert_eq!(
                answer[3].field(b'M').as_deref(),
                Some("relation \"passing\" does not exist")
            );
            assert_eq!(answer[3].field(b'P').as_deref(), Some("7"));
            client.query("ROLLBACK");
        }
        client.query("DEALLOCATE ALL");
    }
}

/// As PostgreSQL's JDBC driver does with statements that nobody uses any more.
#[test]
fn a_statement_that_can_t_be_made_any_more_fails_nothing_behind_a_close() {
    let Some((postgres, valet)) = two_backends() else {
        return;
    };
    let mut client = session(&valet, "app");
    for text in ["PREPARE fresh AS SELECT 1", "DEALLOCATE ALL", "DISCARD ALL"] {
        postgres.sql("CREATE TABLE passing (a int)");
        let made = [
            parse("gone", "TABLE passing"),
            describe_statement("gone"),
            parse("done", "SELECT 1"),
            parse("kept", "SELECT 7"),
            sync(),
        ];
        client.send(&made.concat());
        client.until_ready();
        for closed in [
            close_statement("done"),
            close_statement("never"),
            close_portal(""),
        ] {
            let _other = evict(&valet, &mut client);
            postgres.sql("DROP TABLE IF EXISTS passing");
            client.send(&[closed, extended(text, &[]), sync()].concat());
            let answer = client.until_ready();
            assert!(tags(&answer).ends_with("CZ"), "{text}: {answer:?}");
            client.query("DEALLOCATE fresh");
        }
        client.query("DEALLOCATE ALL");
    }
}

#[test]
fn what_postgresql_remarks_on_a_statement_is_said_once() {
    let Some((_postgres, valet)) = two_backends() else {
        return;
    };
    let mut client = session(&valet, "app");
    let long = format!("SELECT 1 AS {}", "a".repeat(70));
    let remarks_on = |client: &mut Raw, requests: &[&[u8]]| {
        client.send(&requests.concat());
        let ends = requests
            .iter()
            .filter(|request| matches!(request[0], b'Q' | b'S'));
        ends.map(|_| client.remarks().len()).sum::<usize>()
    };
    assert_eq!(remarks_on(&mut client, &[&parse("s", &long), &sync()]), 1);
    for begin in ["SELECT 1", "BEGIN"] {
        let _other = evict(&valet, &mut client);
        let requests: [&[u8]; 3] = [&query(begin), &run("s"), &sync()];
        assert_eq!(remarks_on(&mut client, &requests), 0);
        client.query("COMMIT");
    }
    assert_eq!(remarks_on(&mut client, &[&parse("t", &long), &sync()]), 1);
}

#[test]
fn more_statements_than_are_kept_pin_until_they_are_gone() {
    let Some((_postgres, valet)) = stage(&["--max-backends", "1"]) else {
        return;
    };
    let mut client = session(&valet, "app");
    for batch in 0..22 {
        let names = (0..500).map(|number| parse(&format!("s{batch}_{number}"), "SELECT $1::int"));
        client.send(&[names.collect::<Vec<_>>().concat(), sync()].concat());
        client.until_ready();
    }
    assert_eq!(give_back(&valet, &client).1["reason"], "prepare_large");
    for name in ["s0_0", "s21_499"] {
        client.send(&[bind("", name, &["7"]), execute("", 0), sync()].concat());
        assert_eq!(client.until_ready()[1].columns(), ["7"]);
    }
    client.query("DEALLOCATE ALL");
    detach(&valet, &client);
    let mut other = session(&valet, "other");
    other.send(&[bind("", "s21_499", &["7"]), sync()].concat());
    assert_eq!(other.until_ready()[0].sqlstate(), "26000");
}

#[test]
fn the_unnamed_statement_of_another_session_answers_for_nobody() {
    let Some((_postgres, valet)) = stage(&["--max-backends", "1", "--mode", "transaction"]) else {
        return;
    };
    let mut owner = session(&valet, "app");
    owner.value("SELECT 1");
    let mut other = session(&valet, "app");
    for _ in 0..2 {
        owner.send(
            &[
                parse("", "SELECT 'secret'"),
                bind("", "", &[]),
                execute("", 0),
                sync(),
            ]
            .concat(),
        );
        assert_eq!(tags(&owner.until_ready()), "12DCZ");
        other.send(&[bind("", "", &[]), execute("", 0), sync()].concat());
        assert_eq!(other.until_ready()[0].sqlstate(), "26000");
        owner.send(
            &[
                describe_statement(""),
                bind("", "", &[]),
                execute("", 0),
                sync(),
            ]
            .concat(),
        );
        assert_eq!(tags(&owner.until_ready()), "tT2DCZ");
        other.send(&[describe_statement(""), sync()].concat());
        assert_eq!(other.until_ready()[0].sqlstate(), "26000");
    }
}

/// What closes it is skipped, since something before it in the pipeline fails.
#[test]
fn what_another_session_left_is_not_forgotten_with_a_close_that_is_skipped() {
    let (_postgres, valet) = stage_or_direct(&["--mode", "transaction", "--max-backends", "1"]);
    let fails = [parse("", "SELECT 1/0"), bind("", "", &[]), execute("", 0)].concat();
    let skipped = [
        ("a client's own Close", close_statement("s")),
        ("before a Bind", bind("", "s", &[])),
        ("before a Describe", describe_statement("s")),
        ("before a Parse", parse("s", "SELECT 'another'")),
    ];
    for (what, skipped) in skipped {
        let mut failing = session(&valet, "app");
        // Whoever has a statement with known rows doesn't begin a lease by closing what others left.
        failing.send(&[parse("k", "SELECT 1"), describe_statement("k"), sync()].concat());
        assert_eq!(tags(&failing.until_ready()), "1tTZ");
        let mut owner = session(&valet, "app");
        owner.send(&[parse("s", "SELECT 'the owner'"), sync()].concat());
        assert_eq!(tags(&owner.until_ready()), "1Z");
        failing.send(&[fails.clone(), skipped, sync()].concat());
        assert_eq!(tags(&failing.until_ready()), "1EZ", "{what}");
        let mut other = session(&valet, "app");
        for client in [&mut other, &mut failing] {
            client.send(&[bind("", "s", &[]), execute("", 0), sync()].concat());
            assert_eq!(client.until_ready()[0].sqlstate(), "26000", "{what}");
        }
        owner.send(&[bind("", "s", &[]), execute("", 0), sync()].concat());
        assert_eq!(owner.until_ready()[1].columns(), ["the owner"], "{what}");
    }
}
