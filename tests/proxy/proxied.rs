//! Clients behind a load balancer that speaks the PROXY protocol, version 2.

use crate::support::messages::{self, query, startup};
use crate::support::{Postgres, Raw, Valet, eventually, no_valet, tags};

const LOGIN: [(&str, &str); 2] = [("user", "postgres"), ("database", "postgres")];
const VERSION: u32 = 0x0003_0000;

fn stage(from: &str, flags: &[&str]) -> (Postgres, Valet) {
    let postgres = Postgres::start();
    let flags = [
        &["--proxy-protocol", "require", "--proxy-protocol-from", from],
        flags,
    ]
    .concat();
    let valet = Valet::front_with(&postgres, &flags);
    (postgres, valet)
}

/// A header of version 2: command and version, family, and the rest.
fn header(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
    let length = u16::try_from(rest.len()).expect("short");
    [
        b"\r\n\r\n\0\r\nQUIT\n",
        &[command, family][..],
        &length.to_be_bytes(),
        rest,
    ]
    .concat()
}

/// The header of a client at 203.0.113.7:4242, with something behind the addresses that nobody knows.
fn from_afar() -> Vec<u8> {
    header(
        0x21,
        0x11,
        &[
            203, 0, 113, 7, 10, 0, 0, 1, 0x10, 0x92, 0x19, 0x20, 0xEE, 0, 1, 9,
        ],
    )
}

/// The address that a session is shown with.
fn shown(valet: &Valet, client: &Raw) -> String {
    let page = valet.get("/v1/sessions");
    let sessions = page["sessions"].as_array().expect("a list of sessions");
    let found = sessions
        .iter()
        .find(|session| session["session"] == client.session());
    let address = found
        .map(|session| &session["client"])
        .and_then(|client| client.as_str());
    address
        .unwrap_or_else(|| panic!("not listed: {page}"))
        .to_owned()
}

fn connect(valet: &Valet, header: &[u8]) -> Raw {
    let mut client = Raw::dial(valet.port());
    client.send(header);
    client.send(&startup(VERSION, &LOGIN));
    client.until_ready();
    client
}

#[test]
fn the_client_s_own_address_is_shown() {
    if no_valet() {
        return;
    }
    let (_postgres, valet) = stage("127.0.0.0/8", &[]);
    let mut client = connect(&valet, &from_afar());
    assert_eq!(shown(&valet, &client), "203.0.113.7:4242");
    assert_eq!(client.value("SELECT 1"), "1");
    let mut v6 = [0; 36];
    (v6[0], v6[1], v6[15], v6[33]) = (0x20, 0x01, 9, 80);
    let client = connect(&valet, &header(0x21, 0x21, &v6));
    assert_eq!(shown(&valet, &client), "[2001::9]:80");
    // A balancer that speaks for itself, as in a health check.
    let client = connect(&valet, &header(0x20, 0x00, &[]));
    assert!(shown(&valet, &client).starts_with("127.0.0.1:"));
}

#[test]
fn a_header_may_come_byte_by_byte_or_together_with_all_the_rest() {
    if no_valet() {
        return;
    }
    let (_postgres, valet) = stage("127.0.0.1", &[]);
    let mut slow = Raw::dial(valet.port());
    for byte in [from_afar(), startup(VERSION, &LOGIN)].concat() {
        slow.send(&[byte]);
    }
    slow.until_ready();
    assert_eq!(shown(&valet, &slow), "203.0.113.7:4242");
    let mut hasty = Raw::dial(valet.port());
    hasty.send(&[from_afar(), startup(VERSION, &LOGIN), query("SELECT 7")].concat());
    hasty.until_ready();
    assert_eq!(tags(&hasty.until_ready()), "TDCZ");
}

#[track_caller]
fn is_dropped(valet: &Valet, bytes: &[u8], why: &str) {
    let mut client = Raw::dial(valet.port());
    client.send_if_open(bytes);
    assert_eq!(client.byte(), None, "not a byte in answer");
    eventually(&format!("the log says: {why}"), || {
        valet.log().contains(why)
    });
}

#[test]
fn whoever_sends_no_header_is_dropped_without_an_answer() {
    if no_valet() {
        return;
    }
    let (_postgres, valet) = stage("127.0.0.1", &[]);
    is_dropped(
        &valet,
        &startup(VERSION, &LOGIN),
        "it begins with something else",
    );
    is_dropped(
        &valet,
        &messages::request(80_877_103),
        "it begins with something else",
    );
    let v1 = b"PROXY TCP4 203.0.113.7 10.0.0.1 4242 6432\r\n";
    is_dropped(&valet, v1, "only version 2 is taken");
    is_dropped(&valet, &header(0x31, 0x11, &[0; 12]), "is unknown");
    is_dropped(
        &valet,
        &header(0x21, 0x11, &[0; 11]),
        "its length doesn't fit",
    );
    is_dropped(
        &valet,
        &header(0x21, 0x11, &[0; 5000]),
        "its length doesn't fit",
    );
    // Silence is bounded, too.
    is_dropped(&valet, b"", "within 5s");
    connect(&valet, &from_afar()).goodbye();
}

#[test]
fn nobody_but_the_balancers_is_believed() {
    if no_valet() {
        return;
    }
    let (_postgres, valet) = stage("10.0.0.0/8", &[]);
    is_dropped(&valet, &from_afar(), "isn't in proxy_protocol_from");
}

#[test]
fn cancels_and_the_word_that_there_is_no_room_come_through_the_balancer() {
    if no_valet() {
        return;
    }
    let (postgres, valet) = stage("127.0.0.1", &["--max-sessions", "1"]);
    let mut client = connect(&valet, &from_afar());
    let mut late = Raw::dial(valet.port());
    late.send(&[from_afar(), startup(VERSION, &LOGIN)].concat());
    assert_eq!(late.until(b'E').sqlstate(), "53300");

    client.send(&query("SELECT pg_sleep(600)"));
    eventually("the statement runs", || {
        postgres.sql("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'") == "1"
    });
    let cancel = messages::cancel_request(client.pid, &client.key);
    Raw::dial(valet.port()).send(&[from_afar(), cancel].concat());
    assert_eq!(tags(&client.until_ready()), "TEZ");
}
