//! `SHOW pgvalet.leases` and `SHOW pgvalet.leaks`, over any session.

use serde_json::Value;

use crate::stage::{idle, session, session_with, shown, stage};
use crate::support::messages::{extended, sync};
use crate::support::{Raw, eventually, tags};

/// The first columns of all rows: the sessions.
fn sessions(client: &mut Raw, sql: &str) -> Vec<String> {
    let answer = client.query(sql);
    let rows = answer.iter().filter(|message| message.tag == b'D');
    rows.map(|row| row.columns().swap_remove(0)).collect()
}

#[test]
fn a_session_sees_the_leases_of_its_own_user() {
    let Some((postgres, valet)) = stage(&[]) else {
        return;
    };
    postgres.sql("CREATE ROLE alice LOGIN");
    let mine = idle(&valet, "mine");
    let mut alice = session_with(&valet, &[("user", "alice")]);
    alice.value("SELECT 'of alice'");
    let mut looking = session(&valet);
    assert_eq!(
        sessions(&mut looking, "SHOW pgvalet.leases"),
        [mine.session().to_string()]
    );
    assert_eq!(
        sessions(&mut alice, "SHOW pgvalet.leases"),
        [alice.session().to_string()]
    );
    // It takes no lease to look.
    assert_eq!(shown(&valet, &looking)["state"], "none");
}

#[test]
fn the_columns_tell_who_holds_it_and_on_what_evidence() {
    let Some((_postgres, valet)) = stage(&[]) else {
        return;
    };
    let mut client = session(&valet);
    client.query("SET pgvalet.owner = 'dispatcher'");
    client.value("SELECT 'secret', 1");
    let answer = client.query("SHOW pgvalet.leases");
    assert_eq!(tags(&answer), "TDCZ");
    let row = answer[1].columns();
    assert_eq!(row[3..8], ["dispatcher", "sql", "held", "idle", "idle"]);
    assert_eq!(row[11], "SELECT ?, ?");
}

#[test]
fn leaks_are_those_that_are_parked_and_none_is_an_empty_answer() {
    let Some((_postgres, valet)) = stage(&["--park-after", "20ms"]) else {
        return;
    };
    let mut looking = session(&valet);
    assert_eq!(tags(&looking.query("SHOW pgvalet.leaks")), "TCZ");
    let parked = idle(&valet, "parked");
    eventually("it is shown", || {
        sessions(&mut looking, "show pgvalet.leaks") == [parked.session().to_string()]
    });
    assert_eq!(
        valet.get("/v1/leaks")["leaks"].as_array().map(Vec::len),
        Some(1)
    );
    assert_ne!(valet.get("/v1/leaks")["leaks"][0]["evidence"], Value::Null);
}

#[test]
fn many_rows_come_in_the_extended_protocol_too() {
    let Some((_postgres, valet)) = stage(&[]) else {
        return;
    };
    let _clients: Vec<Raw> = (0..3).map(|_| idle(&valet, "app")).collect();
    let mut looking = session(&valet);
    looking.send(&[extended("SHOW pgvalet.leases", &[]), sync()].concat());
    assert_eq!(tags(&looking.until_ready()), "12TDDDCZ");
}
