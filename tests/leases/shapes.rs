//! A prepared statement whose rows would look otherwise by now is refused, whichever backend its session has.

use crate::moves::{evict, two_backends};
use crate::stage::{session, stage};
use crate::support::messages::{
    bind, close_statement, describe_portal, describe_statement, execute, extended, parse, query,
    sync,
};
use crate::support::{Postgres, Raw, Valet, tags};

/// A session whose statement `s` is prepared and described, and whose table changes before it comes to another backend.
fn moved_after_a_change(change: &str) -> Option<(Postgres, Valet, Raw)> {
    let (postgres, valet) = two_backends()?;
    postgres.sql("CREATE TABLE shifting (a int)");
    let mut client = session(&valet, "app");
    client.send(
        &[
            parse("s", "SELECT * FROM shifting"),
            describe_statement("s"),
            sync(),
        ]
        .concat(),
    );
    client.until_ready();
    let _taker = evict(&valet, &mut client);
    postgres.sql(change);
    Some((postgres, valet, client))
}

#[test]
fn rows_of_many_columns_are_known_however_they_arrive() {
    let Some((_postgres, valet)) = two_backends() else {
        return;
    };
    let columns = (0..1600).map(|number| number.to_string());
    let text = format!("SELECT {}", columns.collect::<Vec<_>>().join(", "));
    let mut client = session(&valet, "app");
    client.send(&[parse("s", &text), describe_statement("s"), sync()].concat());
    client.until_ready();
    for _ in 0..20 {
        let _taker = evict(&valet, &mut client);
        client.send(&[bind("", "s", &[]), execute("", 0), sync()].concat());
        assert_eq!(tags(&client.until_ready()), "2DCZ");
    }
}

#[test]
fn a_description_of_a_portal_tells_whatever_its_name() {
    for portal in ["", "mine"] {
        let Some((postgres, valet)) = two_backends() else {
            return;
        };
        postgres.sql("CREATE TABLE shifting (a int)");
        let mut client = session(&valet, "app");
        let run = [
            bind(portal, "s", &[]),
            describe_portal(portal),
            execute(portal, 0),
            sync(),
        ];
        let run = run.concat();
        client.send(&[parse("s", "SELECT * FROM shifting"), run.clone()].concat());
        assert_eq!(tags(&client.until_ready()), "12TCZ");
        let _taker = evict(&valet, &mut client);
        postgres.sql("ALTER TABLE shifting ADD COLUMN b int");
        client.send(&run);
        let answer = client.until_ready();
        assert_eq!(
            (tags(&answer).as_str(), &*answer[0].sqlstate()),
            ("EZ", "0A000")
        );
    }
}

#[test]
fn a_statement_whose_rows_look_otherwise_by_now_is_refused_after_a_move_too() {
    let change = "ALTER TABLE shifting ADD COLUMN b int";
    let Some((_postgres, _valet, mut client)) = moved_after_a_change(change) else {
        return;
    };
    for _ in 0..2 {
        client.send(&[bind("", "s", &[]), execute("", 0), sync()].concat());
        let answer = client.until_ready();
        assert_eq!(tags(&answer), "EZ");
        assert_eq!(answer[0].sqlstate(), "0A000");
        let text = answer[0].field(b'M').expect("a message");
        assert_eq!(text, "cached plan must not change result type");
        assert_eq!(
            answer[0].field(b'R').as_deref(),
            Some("RevalidateCachedQuery")
        );
    }
    client.send(&[describe_statement("s"), sync()].concat());
    assert_eq!(client.until_error().sqlstate(), "0A000");
    client.until_ready();
    client.send(
        &[
            close_statement("s"),
            parse("s", "SELECT * FROM shifting"),
            describe_statement("s"),
            bind("", "s", &[]),
            execute("", 0),
            sync(),
        ]
        .concat(),
    );
    assert_eq!(tags(&client.until_ready()), "31tT2CZ");
}

#[test]
fn a_refused_statement_fails_its_transaction_and_all_up_to_its_sync() {
    let change = "ALTER TABLE shifting ALTER COLUMN a TYPE text";
    let Some((postgres, _valet, mut client)) = moved_after_a_change(change) else {
        return;
    };
    client.query("BEGIN; INSERT INTO shifting VALUES ('lost')");
    let behind = extended("INSERT INTO shifting VALUES ('skipped')", &[]);
    client.send(&[bind("", "s", &[]), execute("", 0), behind, sync()].concat());
    let answer = client.until_ready();
    assert_eq!((tags(&answer), answer[1].status()), ("EZ".to_owned(), 'E'));
    client.send(&[bind("", "s", &[]), execute("", 0), sync()].concat());
    assert_eq!(client.until_error().sqlstate(), "25P02");
    client.until_ready();
    client.query("COMMIT");
    assert_eq!(postgres.sql("SELECT count(*) FROM shifting"), "0");
}

#[test]
fn a_statement_whose_rows_look_the_same_runs_after_a_change() {
    let change =
        "DROP TABLE shifting; CREATE TABLE shifting (a int); ALTER TABLE jobs ADD COLUMN b int";
    let Some((_postgres, _valet, mut client)) = moved_after_a_change(change) else {
        return;
    };
    let pipeline = [
        query("SELECT 1"),
        bind("", "s", &[]),
        execute("", 0),
        sync(),
    ]
    .concat();
    client.send(&pipeline);
    assert_eq!(tags(&client.until_ready()), "TDCZ");
    assert_eq!(tags(&client.until_ready()), "2CZ");
}

#[test]
fn what_a_portal_s_description_said_counts_as_well() {
    let Some((postgres, valet)) = two_backends() else {
        return;
    };
    postgres.sql("CREATE TABLE shifting (a int)");
    let mut client = session(&valet, "app");
    let run = [
        bind("", "s", &[]),
        describe_portal(""),
        execute("", 0),
        sync(),
    ]
    .concat();
    client.send(&[parse("s", "SELECT * FROM shifting"), run.clone()].concat());
    assert_eq!(tags(&client.until_ready()), "12TCZ");
    let _taker = evict(&valet, &mut client);
    client.send(&run);
    assert_eq!(tags(&client.until_ready()), "2TCZ");
    drop(_taker);
    let _taker = evict(&valet, &mut client);
    postgres.sql("ALTER TABLE shifting ADD COLUMN b int");
    client.send(&run);
    assert_eq!(client.until_error().sqlstate(), "0A000");
    client.until_ready();
}

#[test]
fn a_statement_that_another_session_made_before_a_change_refuses_nobody_else() {
    let Some((postgres, valet)) = stage(&["--max-backends", "1", "--mode", "transaction"]) else {
        return;
    };
    postgres.sql("CREATE TABLE shifting (a int)");
    let prepare = [
        parse("s", "SELECT * FROM shifting"),
        describe_statement("s"),
        sync(),
    ]
    .concat();
    let run = [bind("", "s", &[]), execute("", 0), sync()].concat();
    let [mut old, mut new] = ["old", "new"].map(|name| session(&valet, name));
    old.send(&prepare);
    old.until_ready();
    postgres.sql("ALTER TABLE shifting ADD COLUMN b int");
    new.send(&prepare);
    new.until_ready();
    for _ in 0..2 {
        old.send(&run);
        assert_eq!(old.until_error().sqlstate(), "0A000");
        old.until_ready();
        new.send(&run);
        assert_eq!(tags(&new.until_ready()), "2CZ");
    }
}
