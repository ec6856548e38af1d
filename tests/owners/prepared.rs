//! The same in the extended protocol: alone, in pipelines, after errors, prepared.

use crate::stage::{owner, session, shown, stage};
use crate::support::messages::{
    bind, close_statement, describe_portal, describe_statement, execute, extended, flush, parse,
    query, sync,
};
use crate::support::{Message, Raw, tags};

const SET: &str = "SET pgvalet.owner = 'worker'";

#[track_caller]
fn answers(client: &mut Raw, request: &[Vec<u8>]) -> String {
    client.send(&request.concat());
    tags(&client.until_ready())
}

#[test]
fn an_unnamed_statement_is_answered_without_a_lease() {
    let Some((_postgres, valet)) = stage(&[]) else {
        return;
    };
    let mut client = session(&valet);
    assert_eq!(answers(&mut client, &[extended(SET, &[]), sync()]), "12nCZ");
    assert_eq!(owner(&valet, &client), ["worker", "sql", "held"]);
    assert_eq!(
        answers(&mut client, &[extended("SHOW pgvalet.owner", &[]), sync()]),
        "12TDCZ"
    );
    assert_eq!(shown(&valet, &client)["state"], "none");
}

#[test]
fn a_flush_gets_what_there_is() {
    let Some((_postgres, valet)) = stage(&[]) else {
        return;
    };
    let mut client = session(&valet);
    client.send(&[parse("", SET), describe_statement(""), flush()].concat());
    assert_eq!(
        tags(&[client.answer(), client.answer(), client.answer()]),
        "1tn"
    );
    assert_eq!(
        answers(&mut client, &[bind("", "", &[]), execute("", 0), sync()]),
        "2CZ"
    );
}

#[test]
fn a_named_statement_is_answered_each_time_until_it_is_closed() {
    let Some((_postgres, valet)) = stage(&[]) else {
        return;
    };
    let mut client = session(&valet);
    assert_eq!(
        answers(
            &mut client,
            &[parse("s", SET), describe_statement("s"), sync()]
        ),
        "1tnZ"
    );
    for _ in 0..3 {
        assert_eq!(answers(&mut client, &[query("RESET pgvalet.owner")]), "CZ");
        assert_eq!(
            answers(&mut client, &[bind("", "s", &[]), execute("", 0), sync()]),
            "2CZ"
        );
        assert_eq!(owner(&valet, &client)[0], "worker");
        assert_eq!(client.value("SELECT 1"), "1");
    }
    assert_eq!(answers(&mut client, &[close_statement("s"), sync()]), "3Z");
    assert_eq!(answers(&mut client, &[bind("", "s", &[]), sync()]), "EZ");
}

#[test]
fn deallocate_knows_a_statement_that_only_pgvalet_knows() {
    let Some((_postgres, valet)) = stage(&[]) else {
        return;
    };
    let mut client = session(&valet);
    for deallocate in ["DEALLOCATE s", "DEALLOCATE ALL"] {
        assert_eq!(answers(&mut client, &[parse("s", SET), sync()]), "1Z");
        assert_eq!(answers(&mut client, &[query(deallocate)]), "CZ");
        assert_eq!(answers(&mut client, &[bind("", "s", &[]), sync()]), "EZ");
    }
}

#[test]
fn in_front_of_other_statements_of_a_pipeline_the_order_is_kept() {
    let Some((_postgres, valet)) = stage(&[]) else {
        return;
    };
    let mut client = session(&valet);
    let pipeline = [extended(SET, &[]), extended("SELECT 'x'", &[]), sync()];
    assert_eq!(answers(&mut client, &pipeline), "12nC12TDCZ");
    assert_eq!(owner(&valet, &client)[0], "worker");
}

#[test]
fn behind_other_statements_of_a_pipeline_it_is_learned_from_postgresql() {
    let Some((_postgres, valet)) = stage(&[]) else {
        return;
    };
    let mut client = session(&valet);
    let pipeline = [extended("SELECT 'x'", &[]), extended(SET, &[]), sync()];
    assert_eq!(answers(&mut client, &pipeline), "12TDC12nCZ");
    assert_eq!(owner(&valet, &client), ["worker", "sql", "held"]);
}

#[test]
fn behind_a_whole_request_it_waits_for_its_turn() {
    let Some((_postgres, valet)) = stage(&[]) else {
        return;
    };
    let mut client = session(&valet);
    let pipeline = [
        extended("SELECT pg_sleep(0.05)", &[]),
        sync(),
        extended(SET, &[]),
        sync(),
        extended("SELECT 'x'", &[]),
        sync(),
    ];
    client.send(&pipeline.concat());
    let answers: Vec<String> = (0..3).map(|_| tags(&client.until_ready())).collect();
    assert_eq!(answers, ["12TDCZ", "12nCZ", "12TDCZ"]);
}

#[test]
fn after_an_error_it_is_skipped_up_to_sync() {
    let Some((_postgres, valet)) = stage(&[]) else {
        return;
    };
    let mut client = session(&valet);
    let pipeline = [extended("SELECT 1/0", &[]), extended(SET, &[]), sync()];
    assert_eq!(answers(&mut client, &pipeline), "1EZ");
    assert_eq!(owner(&valet, &client)[1], "application_name");
    client.send(&[extended("SELECT 1/0", &[]), flush()].concat());
    let failed = [client.answer(), client.answer()];
    assert_eq!(tags(&failed), "1E");
    assert_eq!(answers(&mut client, &[extended(SET, &[]), sync()]), "Z");
    assert_eq!(owner(&valet, &client)[1], "application_name");
}

#[test]
fn a_prepared_declaration_is_handed_to_postgresql_in_the_middle_of_a_pipeline() {
    let Some((_postgres, valet)) = stage(&[]) else {
        return;
    };
    let mut client = session(&valet);
    assert_eq!(answers(&mut client, &[parse("s", SET), sync()]), "1Z");
    for _ in 0..2 {
        answers(&mut client, &[query("RESET pgvalet.owner")]);
        let pipeline = [
            extended("SELECT 'x'", &[]),
            bind("", "s", &[]),
            describe_portal(""),
            execute("", 0),
            sync(),
        ];
        assert_eq!(answers(&mut client, &pipeline), "12TDC2nCZ");
        assert_eq!(owner(&valet, &client)[0], "worker");
    }
}

#[test]
fn in_a_failed_transaction_it_is_answered() {
    let Some((_postgres, valet)) = stage(&[]) else {
        return;
    };
    let mut client = session(&valet);
    client.query("BEGIN");
    client.failure("SELECT 1/0");
    client.send(&[extended(SET, &[]), sync()].concat());
    let answer = client.until_ready();
    assert_eq!(
        (tags(&answer).as_str(), answer.last().map(Message::status)),
        ("12nCZ", Some('E'))
    );
}

#[test]
fn the_unnamed_statement_is_the_last_one_parsed() {
    let Some((_postgres, valet)) = stage(&[]) else {
        return;
    };
    let mut client = session(&valet);
    assert_eq!(
        answers(&mut client, &[parse("", "SELECT 'real'"), sync()]),
        "1Z"
    );
    assert_eq!(answers(&mut client, &[parse("", SET), sync()]), "1Z");
    assert_eq!(
        answers(&mut client, &[bind("", "", &[]), execute("", 0), sync()]),
        "2CZ"
    );
    assert_eq!(
        answers(&mut client, &[parse("", "SELECT 'real'"), sync()]),
        "1Z"
    );
    assert_eq!(
        answers(&mut client, &[bind("", "", &[]), execute("", 0), sync()]),
        "2DCZ"
    );
    client.value("SELECT 1");
    assert_eq!(answers(&mut client, &[bind("", "", &[]), sync()]), "EZ");
}
