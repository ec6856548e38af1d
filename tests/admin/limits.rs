//! What bounds a caller: the size of what it sends, and how long it may take.

use std::io::{Read, Write};
use std::net::TcpStream;

use crate::support::http;
use crate::support::{DEADLINE, Postgres, Valet, no_valet};

/// A connection that has sent this much, and waits.
fn slow(valet: &Valet, sent: &str) -> TcpStream {
    let mut stream = TcpStream::connect(("127.0.0.1", valet.admin_port())).expect("it listens");
    stream.set_read_timeout(Some(DEADLINE)).expect("it can be");
    stream.write_all(sent.as_bytes()).expect("sent");
    stream
}

/// What comes until the other side closes the connection.
fn rest(mut stream: TcpStream) -> String {
    let mut answer = Vec::new();
    let read = stream.read_to_end(&mut answer);
    read.expect("the connection is closed, and nobody waits for it forever");
    String::from_utf8_lossy(&answer).into_owned()
}

#[test]
fn whoever_is_slow_is_let_go() {
    if no_valet() {
        return;
    }
    let postgres = Postgres::start();
    let valet = Valet::front(&postgres);
    let silent = slow(&valet, "");
    let head = slow(&valet, "GET /v1/leases HTTP/1.1\r\nHost: localhost\r\n");
    let idle = slow(&valet, "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let body = "POST /v1/reloads HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n{";
    let body = slow(&valet, body);

    assert!(rest(body).starts_with("HTTP/1.1 408"));
    assert_eq!(rest(silent), "");
    rest(head);
    assert!(rest(idle).starts_with("HTTP/1.1 200"));
}

#[test]
fn what_is_too_large_is_refused() {
    if no_valet() {
        return;
    }
    let postgres = Postgres::start();
    let valet = Valet::front(&postgres);
    let large = format!("{{\"owner\": \"{}\"}}", "x".repeat(5 << 20));
    let json = [("Content-Type", "application/json")];
    let answer = http::request(valet.admin_port(), "POST", "/v1/reloads", &json, &large);
    assert_eq!(answer.status, 413);
    assert_eq!(answer.content_type, "application/problem+json");

    let header = "x".repeat(64 << 10);
    let headers = [("X-Large", header.as_str())];
    let answer = http::request(valet.admin_port(), "GET", "/v1/leases", &headers, "");
    assert_eq!(answer.status, 431);
}

#[test]
fn connections_beyond_the_bound_wait_and_come_next() {
    if no_valet() {
        return;
    }
    let postgres = Postgres::start();
    let valet = Valet::front(&postgres);
    // More than are served at once, all silent: the last one is served once the first ones are let go.
    let held: Vec<_> = (0..300).map(|_| slow(&valet, "")).collect();
    let answer = http::request(valet.admin_port(), "GET", "/healthz", &[], "");
    assert_eq!(answer.status, 200);
    drop(held);
}
