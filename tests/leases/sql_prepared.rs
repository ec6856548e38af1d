//! What SQL `PREPARE` made stays with its session, whichever backend it has, or pins it.

use crate::moves::{evict, survives, two_backends};
use crate::pins::{is_pinned, outcome_after};
use crate::stage::{detach, give_back, idle_after, session, stage, stage_or_direct};
use crate::support::messages::{
    bind, close_statement, describe_statement, execute, extended, parse, query, sync,
};
use crate::support::{Raw, Valet, direct, tags};

#[test]
fn a_statement_survives_a_move() {
    survives("PREPARE p AS SELECT 7", "EXECUTE p", "7");
    survives(
        "PREPARE \"P; q\" (text) AS SELECT $1 || ';'; ",
        "EXECUTE \"P; q\"('x')",
        "x;",
    );
    survives(
        "PREPARE Folded (int, text) AS SELECT $1 + length($2)",
        "EXECUTE folded(1, 'ab')",
        "3",
    );
    survives(
        "DO $$ BEGIN EXECUTE 'PREPARE inner_one AS SELECT 5'; END $$",
        "EXECUTE inner_one",
        "5",
    );
    survives(
        "SET standard_conforming_strings = off; SET DateStyle = 'ISO, DMY'",
        "SELECT '2024-02-01'::date",
        "2024-02-01",
    );
}

#[test]
fn its_inferred_parameter_types_survive_a_move() {
    let types = "SELECT parameter_types::text FROM pg_prepared_statements WHERE name = 'p'";
    survives(
        "PREPARE p AS SELECT $1::int2, $2::inet, $3 || 'x'",
        types,
        "{smallint,inet,text}",
    );
}

#[test]
fn it_is_executed_and_deallocated_by_either_protocol_after_a_move() {
    let Some((_postgres, valet)) = two_backends() else {
        return;
    };
    let mut client = idle_after(&valet, "app", "PREPARE p (text) AS SELECT $1 || '!'");
    let _other = evict(&valet, &mut client);
    client.send(&[bind("", "p", &["bound"]), execute("", 0), sync()].concat());
    assert_eq!(client.until_ready()[1].columns(), ["bound!"]);
    client.send(&[extended("EXECUTE p('sql')", &[]), sync()].concat());
    let answer = client.until_ready();
    let row = answer.iter().find(|message| message.tag == b'D');
    assert_eq!(row.expect("a row").columns(), ["sql!"]);
    client.send(&[close_statement("p"), sync()].concat());
    client.until_ready();
    assert_eq!(client.failure("EXECUTE p('gone')"), "26000");
}

#[test]
fn what_was_closed_stays_gone_after_another_move() {
    let Some((_postgres, valet)) = stage(&["--max-backends", "1", "--mode", "transaction"]) else {
        return;
    };
    let ends = [
        [close_statement("p"), sync()].concat(),
        query("DEALLOCATE p"),
        query("DEALLOCATE ALL"),
        query("DISCARD ALL"),
    ];
    for end in ends {
        let mut client = idle_after(&valet, "app", "PREPARE p AS SELECT 1");
        let mut other = idle_after(&valet, "other", "SELECT 1");
        assert_eq!(client.value("EXECUTE p"), "1");
        client.send(&end);
        client.until_ready();
        other.value("SELECT 1");
        assert_eq!(client.failure("EXECUTE p"), "26000");
        client.goodbye();
    }
}

#[test]
fn several_statements_in_one_text_pin() {
    is_pinned(
        "PREPARE p AS SELECT 1; PREPARE q AS SELECT 2",
        "prepare_multi",
    );
    is_pinned("SELECT 1; PREPARE p AS SELECT 1", "prepare_multi");
    assert_eq!(
        outcome_after("PREPARE p AS SELECT ';' ; -- ;").0,
        expected()
    );
}

fn expected() -> &'static str {
    if direct() { "" } else { "returned" }
}

#[test]
fn a_literal_means_what_it_meant_when_the_statement_was_prepared() {
    let (_postgres, valet) = stage_or_direct(&["--max-backends", "1"]);
    let prepare = "PREPARE p AS SELECT extract(month FROM '01/02/2024'::date)::int";
    for (before, after, month) in [
        ("SELECT 1", "SET DateStyle = 'ISO, DMY'", "1"),
        ("SET DateStyle = 'ISO, DMY'", "SELECT 1", "2"),
        ("SET DateStyle = 'ISO, DMY'", "RESET DateStyle", "2"),
    ] {
        let mut client = session(&valet, "app");
        client.query(before);
        client.query(prepare);
        client.query(after);
        if !direct() {
            let (status, answer) = give_back(&valet, &client);
            assert!(status == 200 || answer["reason"] == "prepare", "{answer}");
            if status == 200 {
                session(&valet, "other").value("SELECT 1");
            }
        }
        assert_eq!(
            client.value("EXECUTE p"),
            month,
            "{before}; {prepare}; {after}"
        );
        client.goodbye();
    }
}

#[test]
fn a_statement_that_can_t_be_prepared_any_more_fails_alone_and_comes_back() {
    let Some((postgres, valet)) = stage(&["--max-backends", "1"]) else {
        return;
    };
    let mut client = session(&valet, "app");
    let moves = |client: &crate::support::Raw| {
        detach(&valet, client);
        session(&valet, "other").value("SELECT 1");
    };
    postgres.sql("CREATE TABLE doomed AS SELECT 7 AS a; CREATE TABLE doomed_too AS SELECT 8 AS a");
    client.value("SET work_mem = '5MB'");
    client.value("PREPARE broken AS SELECT a FROM doomed");
    client.value("PREPARE closed AS SELECT a FROM doomed_too");
    client.value("PREPARE whole AS SELECT 'whole'");
    moves(&client);
    postgres.sql("DROP TABLE doomed, doomed_too");
    for _ in 0..2 {
        assert_eq!(client.value("EXECUTE whole"), "whole");
        assert_eq!(client.value("SHOW work_mem"), "5MB");
        assert_eq!(client.failure("EXECUTE broken"), "26000");
        moves(&client);
    }
    client.send(&[close_statement("closed"), sync()].concat());
    client.until_ready();
    postgres.sql("CREATE TABLE doomed AS SELECT 9 AS a; CREATE TABLE doomed_too AS SELECT 8 AS a");
    moves(&client);
    assert_eq!(client.value("EXECUTE broken"), "9");
    assert_eq!(client.failure("EXECUTE closed"), "26000");
    moves(&client);
    postgres.sql("DROP TABLE doomed");
    client.value("DEALLOCATE ALL");
    postgres.sql("CREATE TABLE doomed AS SELECT 10 AS a");
    moves(&client);
    assert_eq!(client.failure("EXECUTE broken"), "26000");
    assert_eq!(client.failure("EXECUTE whole"), "26000");
}

#[test]
fn a_statement_that_would_not_be_what_it_was_pins() {
    let (postgres, valet) = stage_or_direct(&["--max-backends", "1"]);
    postgres.sql("CREATE TABLE t AS SELECT 7 AS a");
    let mut client = session(&valet, "app");
    client.value("PREPARE p AS SELECT * FROM t");
    let pinned = |client: &crate::support::Raw, reason: &str| {
        if !direct() {
            assert_eq!(give_back(&valet, client).1["reason"], reason);
        }
    };
    for (change, state, back) in [
        ("DROP TABLE t", "42P01", "CREATE TABLE t AS SELECT 7 AS a"),
        ("ALTER TABLE t ADD b int", "0A000", "ALTER TABLE t DROP b"),
    ] {
        postgres.sql(change);
        pinned(&client, "prepare");
        assert_eq!(client.failure("EXECUTE p"), state);
        postgres.sql(back);
        assert_eq!(client.value("EXECUTE p"), "7");
    }
    if !direct() {
        detach(&valet, &client);
    }
}

#[test]
fn a_statement_survives_a_move_under_another_role_or_search_path_than_its_own() {
    let Some((postgres, valet)) = stage(&["--max-backends", "1"]) else {
        return;
    };
    postgres.sql(
        "CREATE SCHEMA a; CREATE TABLE a.only_here AS SELECT 1 AS v; CREATE SCHEMA b; CREATE TABLE b.only_here AS SELECT 2 AS v;
         CREATE SCHEMA alice AUTHORIZATION alice; SET ROLE alice; CREATE TABLE alice.only_here AS SELECT 3 AS v",
    );
    for (there, elsewhere, expected) in [
        ("SET search_path = a", "RESET search_path", "1"),
        ("SET search_path = a", "SET search_path = b", "1"),
        ("SET ROLE alice", "RESET ROLE", "3"),
    ] {
        let mut client = idle_after(&valet, "app", there);
        client.value("PREPARE p AS SELECT v FROM only_here");
        detach(&valet, &client);
        client.value(elsewhere);
        detach(&valet, &client);
        session(&valet, "other").value("SELECT 1");
        // As without a proxy, it means the table of the same name that is found now, if any.
        match elsewhere {
            "SET search_path = b" => assert_eq!(client.value("EXECUTE p"), "2"),
            _ => assert_eq!(client.failure("EXECUTE p"), "42P01"),
        }
        client.value(there);
        detach(&valet, &client);
        assert_eq!(client.value("EXECUTE p"), expected);
        client.goodbye();
    }
}

#[test]
fn a_prepared_statement_of_another_session_answers_for_nobody() {
    let Some((_postgres, valet)) = stage(&["--max-backends", "1", "--mode", "transaction"]) else {
        return;
    };
    let mut clients: Vec<_> = (0..3)
        .map(|number| idle_after(&valet, "app", &format!("PREPARE mine AS SELECT {number}")))
        .collect();
    let mut stranger = session(&valet, "stranger");
    for _ in 0..3 {
        for (number, client) in clients.iter_mut().enumerate() {
            assert_eq!(client.value("EXECUTE mine"), number.to_string());
        }
        assert_eq!(stranger.failure("EXECUTE mine"), "26000");
        stranger.send(&[bind("", "mine", &[]), sync()].concat());
        assert_eq!(stranger.until_ready()[0].sqlstate(), "26000");
        stranger.send(
            &[
                parse("mine", "SELECT 'own'"),
                bind("", "mine", &[]),
                execute("", 0),
                close_statement("mine"),
                sync(),
            ]
            .concat(),
        );
        assert_eq!(tags(&stranger.until_ready()), "12DC3Z");
    }
}

/// One of the session's statements can't be made any more, since its table is out of the `search_path`.
fn with_a_statement_that_fails(valet: &Valet) -> Raw {
    let mut client = session(valet, "app");
    client.send(
        &[
            parse("k", "SELECT * FROM jobs"),
            describe_statement("k"),
            sync(),
        ]
        .concat(),
    );
    assert_eq!(tags(&client.until_ready()), "1tTZ");
    client.query("SET search_path = pg_catalog");
    // Another session takes the backend, and closes what is left there.
    session(valet, "app").query("SELECT 1");
    client
}

#[test]
fn a_transaction_survives_what_statements_of_its_session_can_not_be_made() {
    let (_postgres, valet) = stage_or_direct(&["--mode", "transaction", "--max-backends", "1"]);
    let texts = [
        "BEGIN; INSERT INTO public.jobs (name) VALUES ('one')",
        "PREPARE p AS SELECT 'prepared'",
        "EXECUTE p",
        "DEALLOCATE p",
        "COMMIT",
    ];
    for pipelined in [true, false] {
        let mut client = with_a_statement_that_fails(&valet);
        if pipelined {
            client.send(&texts.map(query).concat());
        }
        for (text, expected) in texts.iter().zip(["CCZ", "CZ", "TDCZ", "CZ", "CZ"]) {
            if !pipelined {
                client.send(&query(text));
            }
            assert_eq!(tags(&client.until_ready()), expected, "{text}, {pipelined}");
        }
    }
    assert_eq!(
        session(&valet, "app").value("SELECT count(*) FROM jobs"),
        "2"
    );
}

#[test]
fn statements_that_are_made_anew_do_not_part_a_pipeline() {
    let (_postgres, valet) = stage_or_direct(&["--mode", "transaction", "--max-backends", "1"]);
    let run = |text: &str| [parse("", text), bind("", "", &[]), execute("", 0)].concat();
    let mut client = session(&valet, "app");
    client.send(
        &[
            parse("k", "SELECT * FROM jobs"),
            describe_statement("k"),
            sync(),
        ]
        .concat(),
    );
    client.until_ready();
    session(&valet, "app").query("SELECT 1");
    client.send(
        &[
            run("INSERT INTO jobs (name) VALUES ('gone')"),
            run("DEALLOCATE k"),
            run("SELECT 1/0"),
            sync(),
        ]
        .concat(),
    );
    assert_eq!(tags(&client.until_ready()), "12C12C1EZ");
    assert_eq!(client.value("SELECT count(*) FROM jobs"), "0");
    client.send(&[bind("", "k", &[]), sync()].concat());
    assert_eq!(client.until_ready()[0].sqlstate(), "26000");
}
