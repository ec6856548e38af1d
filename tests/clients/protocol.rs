//! The protocol itself, message by message: what any driver may send, answered as PostgreSQL does.

use crate::programs::stage;
use crate::support::messages::{self, extended};
use crate::support::{Raw, tags};

#[test]
fn an_empty_query_is_answered_as_such() {
    let (_postgres, valet) = stage();
    let mut client = Raw::connect(valet.port());
    assert_eq!(tags(&client.query("")), "IZ");
    assert_eq!(tags(&client.query(";")), "IZ");
    client.send(&[extended("", &[]), messages::sync()].concat());
    assert_eq!(tags(&client.until_ready()), "12nIZ");
}

#[test]
fn a_simple_query_of_many_statements_is_answered_as_one() {
    let (_postgres, valet) = stage();
    let mut client = Raw::connect(valet.port());
    assert_eq!(
        tags(&client.query("SELECT 1; SELECT 2; SET work_mem = '1MB'")),
        "TDCTDCCZ"
    );
    assert_eq!(
        tags(&client.query("SELECT 1; SELECT 1/0; SELECT 2")),
        "TDCEZ"
    );
    assert_eq!(client.value("SHOW work_mem"), "1MB");
}

#[test]
fn the_transaction_status_is_the_true_one() {
    let (_postgres, valet) = stage();
    let mut client = Raw::connect(valet.port());
    let mut status = |sql: &str| client.query(sql).last().expect("ReadyForQuery").status();
    assert_eq!(status("BEGIN"), 'T');
    assert_eq!(status("SELECT 1/0"), 'E');
    assert_eq!(status("SELECT 1"), 'E');
    assert_eq!(status("COMMIT"), 'I');
    assert_eq!(status("BEGIN; SELECT 1"), 'T');
    assert_eq!(status("COMMIT AND CHAIN"), 'T');
    assert_eq!(status("ROLLBACK"), 'I');
}

#[test]
fn a_row_limit_suspends_the_portal_until_the_next_execute() {
    let (_postgres, valet) = stage();
    let mut client = Raw::connect(valet.port());
    client.send(&messages::query("BEGIN"));
    client.until_ready();
    let open = [
        messages::parse("", "SELECT generate_series(1, 5)"),
        messages::bind("p", "", &[]),
    ]
    .concat();
    client.send(&[open, messages::execute("p", 2), messages::sync()].concat());
    assert_eq!(tags(&client.until_ready()), "12DDsZ");
    client.send(&[messages::execute("p", 2), messages::flush()].concat());
    assert_eq!(
        [
            client.answer().tag,
            client.answer().tag,
            client.answer().tag
        ],
        *b"DDs"
    );
    client.send(
        &[
            messages::execute("p", 2),
            messages::close_portal("p"),
            messages::sync(),
        ]
        .concat(),
    );
    assert_eq!(tags(&client.until_ready()), "DC3Z");
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let (_postgres, valet) = stage();
    let mut client = Raw::connect(valet.port());
    let one = |n: usize| {
        [
            extended("SELECT $1::int", &[&n.to_string()]),
            messages::sync(),
        ]
        .concat()
    };
    client.send(&(0..300).flat_map(one).collect::<Vec<u8>>());
    for n in 0..300 {
        let answer = client.until_ready();
        assert_eq!(tags(&answer), "12TDCZ");
        assert_eq!(answer[3].columns(), [n.to_string()]);
    }
}

#[test]
fn an_error_in_a_pipeline_skips_to_the_sync_and_no_further() {
    let (_postgres, valet) = stage();
    let mut client = Raw::connect(valet.port());
    let good = extended("SELECT 1", &[]);
    let bad = extended("SELECT 1/0", &[]);
    let sync = messages::sync();
    client.send(
        &[
            &good[..],
            &bad,
            &good,
            &sync,
            &good,
            &sync,
            &messages::query("SELECT 2"),
        ]
        .concat(),
    );
    let failed = client.until_ready();
    assert_eq!(tags(&failed), "12TDC1EZ");
    assert_eq!(failed[6].sqlstate(), "22012");
    assert_eq!(tags(&client.until_ready()), "12TDCZ");
    assert_eq!(tags(&client.until_ready()), "TDCZ");
}

#[test]
fn a_pipeline_is_one_transaction_until_its_sync() {
    let (postgres, valet) = stage();
    postgres.sql("CREATE TABLE t (a int)");
    let mut client = Raw::connect(valet.port());
    let insert = extended("INSERT INTO t VALUES (1)", &[]);
    client.send(&[&insert[..], &extended("SELECT 1/0", &[]), &messages::sync()].concat());
    assert!(tags(&client.until_ready()).ends_with("EZ"));
    client.send(&[&insert[..], &insert, &messages::sync()].concat());
    client.until_ready();
    assert_eq!(postgres.sql("SELECT count(*) FROM t"), "2");
}

#[test]
fn two_syncs_are_two_answers() {
    let (_postgres, valet) = stage();
    let mut client = Raw::connect(valet.port());
    client.send(
        &[
            messages::sync(),
            messages::sync(),
            messages::query("SELECT 1"),
        ]
        .concat(),
    );
    assert_eq!(tags(&client.until_ready()), "Z");
    assert_eq!(tags(&client.until_ready()), "Z");
    assert_eq!(tags(&client.until_ready()), "TDCZ");
}

#[test]
fn a_flush_yields_the_answers_so_far_before_any_sync() {
    let (_postgres, valet) = stage();
    let mut client = Raw::connect(valet.port());
    client.send(
        &[
            messages::parse("s", "SELECT 7"),
            messages::describe_statement("s"),
            messages::flush(),
        ]
        .concat(),
    );
    assert_eq!(
        [
            client.answer().tag,
            client.answer().tag,
            client.answer().tag
        ],
        *b"1tT"
    );
    client.send(
        &[
            messages::bind("", "s", &[]),
            messages::execute("", 0),
            messages::flush(),
        ]
        .concat(),
    );
    assert_eq!(
        [
            client.answer().tag,
            client.answer().tag,
            client.answer().tag
        ],
        *b"2DC"
    );
    client.send(&messages::sync());
    assert_eq!(tags(&client.until_ready()), "Z");
}

#[test]
fn prepared_statements_are_reused_and_closed() {
    let (_postgres, valet) = stage();
    let mut client = Raw::connect(valet.port());
    client.send(&[messages::parse("s", "SELECT $1::text"), messages::sync()].concat());
    assert_eq!(tags(&client.until_ready()), "1Z");
    for value in ["a", "b", "c"] {
        client.send(
            &[
                messages::bind("", "s", &[value]),
                messages::execute("", 0),
                messages::sync(),
            ]
            .concat(),
        );
        assert_eq!(client.until_ready()[1].columns(), [value]);
    }
    client.send(&[messages::parse("s", "SELECT 1"), messages::sync()].concat());
    assert_eq!(client.until_ready()[0].sqlstate(), "42P05");
    client.send(&[messages::close_statement("s"), messages::sync()].concat());
    assert_eq!(tags(&client.until_ready()), "3Z");
    client.send(&[messages::bind("", "s", &["x"]), messages::sync()].concat());
    assert_eq!(client.until_ready()[0].sqlstate(), "26000");
}

#[test]
fn the_unnamed_statement_lives_until_the_next_parse_or_simple_query() {
    let (_postgres, valet) = stage();
    let mut client = Raw::connect(valet.port());
    let again = [
        messages::bind("", "", &[]),
        messages::execute("", 0),
        messages::sync(),
    ]
    .concat();
    client.send(&[messages::parse("", "SELECT 8"), messages::sync()].concat());
    client.until_ready();
    client.send(&again);
    assert_eq!(tags(&client.until_ready()), "2DCZ");
    client.query("SELECT 1");
    client.send(&again);
    assert_eq!(client.until_ready()[0].sqlstate(), "26000");
}

#[test]
fn a_copy_in_that_the_client_fails_rolls_back() {
    let (postgres, valet) = stage();
    postgres.sql("CREATE TABLE t (a int)");
    let mut client = Raw::connect(valet.port());
    client.send(&messages::query("COPY t FROM stdin"));
    client.until(b'G');
    client.send(
        &[
            messages::copy_data("1\n"),
            messages::copy_fail("changed my mind"),
        ]
        .concat(),
    );
    let answer = client.until_ready();
    assert_eq!(answer[0].sqlstate(), "57014");
    assert_eq!(client.value("SELECT count(*) FROM t"), "0");
}

#[test]
fn a_copy_in_that_fails_while_data_still_streams_leaves_the_session_usable() {
    let (postgres, valet) = stage();
    postgres.sql("CREATE TABLE t (a int)");
    let mut client = Raw::connect(valet.port());
    client.send(&messages::query("COPY t FROM stdin"));
    client.until(b'G');
    let rows = messages::copy_data(&"1\n".repeat(1000));
    client.send(
        &[
            &rows[..],
            &messages::copy_data("no number\n"),
            &rows.repeat(500),
            &messages::copy_done(),
        ]
        .concat(),
    );
    let answer = client.until_ready();
    assert_eq!(tags(&answer), "EZ");
    assert_eq!(answer[0].sqlstate(), "22P02");
    assert_eq!(client.value("SELECT count(*) FROM t"), "0");
}

#[test]
fn a_copy_done_that_comes_late_is_ignored() {
    let (postgres, valet) = stage();
    postgres.sql("CREATE TABLE t (a int)");
    let mut client = Raw::connect(valet.port());
    client.send(&messages::query("COPY t FROM stdin"));
    client.until(b'G');
    client.send(&messages::copy_data("no number\n"));
    assert_eq!(tags(&client.until_ready()), "EZ");
    client.send(
        &[
            messages::copy_data("1\n"),
            messages::copy_done(),
            messages::query("SELECT 9"),
        ]
        .concat(),
    );
    assert_eq!(tags(&client.until_ready()), "TDCZ");
}

#[test]
fn copies_in_an_extended_pipeline_stay_in_step() {
    let (postgres, valet) = stage();
    postgres.sql("CREATE TABLE t (a int)");
    let mut client = Raw::connect(valet.port());
    client.send(&[extended("COPY t FROM stdin", &[]), messages::flush()].concat());
    client.until(b'G');
    client.send(
        &[
            messages::copy_data("1\n2\n"),
            messages::copy_done(),
            messages::sync(),
        ]
        .concat(),
    );
    assert_eq!(tags(&client.until_ready()), "CZ");
    client.send(
        &[
            extended("COPY t TO stdout", &[]),
            messages::sync(),
            messages::query("SELECT 1"),
        ]
        .concat(),
    );
    assert_eq!(tags(&client.until_ready()), "12nHddcCZ");
    assert_eq!(tags(&client.until_ready()), "TDCZ");
}

#[test]
fn a_function_call_is_passed_through() {
    let (postgres, valet) = stage();
    let lo_creat: u32 = postgres
        .sql("SELECT 'lo_creat'::regproc::oid")
        .parse()
        .expect("an oid");
    let mut client = Raw::connect(valet.port());
    client.send(&messages::function_call(
        lo_creat,
        &[&(-1i32).to_be_bytes()],
    ));
    assert_eq!(tags(&client.until_ready()), "VZ");
    assert_eq!(
        postgres.sql("SELECT count(*) FROM pg_largeobject_metadata"),
        "1"
    );
}

#[test]
fn two_phase_commit_passes_from_one_session_to_another() {
    let (postgres, valet) = stage();
    postgres.sql("CREATE TABLE t (a int)");
    let mut first = Raw::connect(valet.port());
    first.query("BEGIN");
    first.query("INSERT INTO t VALUES (1)");
    let answer = first.query("PREPARE TRANSACTION 'both'");
    assert_eq!(answer.last().expect("ReadyForQuery").status(), 'I');
    first.goodbye();
    assert_eq!(
        tags(&Raw::connect(valet.port()).query("COMMIT PREPARED 'both'")),
        "CZ"
    );
    assert_eq!(postgres.sql("SELECT count(*) FROM t"), "1");
}

#[test]
fn notices_and_parameter_changes_come_at_their_place() {
    let (_postgres, valet) = stage();
    let mut client = Raw::connect(valet.port());
    client.send(&messages::query(
        "DO $$ BEGIN RAISE NOTICE 'hi'; END $$; SET TimeZone = 'Asia/Tokyo'",
    ));
    let messages: Vec<_> = std::iter::repeat_with(|| client.next()).take(5).collect();
    assert_eq!(tags(&messages), "NCCSZ");
    assert_eq!(client.parameters["TimeZone"], "Asia/Tokyo");
}

#[test]
fn a_value_of_64_megabytes_comes_and_goes() {
    let (_postgres, valet) = stage();
    let mut client = Raw::connect(valet.port());
    let size = 64 * 1024 * 1024;
    let answer = client.query(&format!("SELECT repeat('x', {size})"));
    assert_eq!(answer[1].body.len(), size + 6);
    let literal = "y".repeat(size);
    assert_eq!(
        client.value(&format!("SELECT length('{literal}')")),
        size.to_string()
    );
}

#[test]
fn an_application_s_name_is_what_postgresql_makes_of_it() {
    let (postgres, valet) = stage();
    let (long, foreign) = ("a".repeat(300), "Bücher\t1".to_owned());
    let called = |port: u16, name: &str| {
        let login = [
            ("user", "postgres"),
            ("database", "postgres"),
            ("application_name", name),
        ];
        Raw::connect_with(port, &login)
    };
    for name in [long, foreign, "é".repeat(40)] {
        let own = |port| {
            let mut client = called(port, &name);
            let first = client.value("SHOW application_name");
            client.query("SET application_name = 'x'");
            client.query("RESET application_name");
            (first, client.value("SHOW application_name"))
        };
        // A second session takes over the backend of another name.
        let mut other = called(valet.port(), "other");
        assert_eq!(other.value("SHOW application_name"), "other");
        drop(other);
        let expected = own(postgres.port());
        for _ in 0..2 {
            assert_eq!(own(valet.port()), expected, "{name}");
        }
    }
}

#[test]
fn names_of_users_and_databases_are_cut_as_postgresql_does() {
    let (postgres, valet) = stage();
    let (name, long) = ("n".repeat(63), "n".repeat(80));
    postgres.sql(&format!("CREATE ROLE {name} LOGIN"));
    postgres.sql(&format!("CREATE DATABASE {name} OWNER {name}"));
    for port in [postgres.port(), valet.port()] {
        let mut client = Raw::connect_with(port, &[("user", &long), ("database", &long)]);
        assert_eq!(client.value("SELECT current_user"), name);
        assert_eq!(client.value("SELECT current_database()"), name);
    }
}
