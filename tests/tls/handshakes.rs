//! Clients in the midst of their TLS handshake, and those beside them.

use crate::certificates::{Authority, KeyKind};
use crate::clients::stage;
use crate::encrypted::Encrypted;
use crate::support::messages::{self, SSL_REQUEST};
use crate::support::{Raw, eventually, no_valet};

#[test]
fn clients_that_dawdle_with_their_handshake_hold_up_nobody() {
    if no_valet() {
        return;
    }
    let authority = Authority::new("root");
    let pair = authority.issue("a", "localhost", KeyKind::Ec);
    let (_postgres, valet) = stage("require", &pair, &[]);
    let dawdlers = dawdlers(valet.port());
    let mut client = Encrypted::dial(valet.port(), &authority.root());
    client.log_in();
    assert_eq!(client.value("SELECT 1"), "1");
    drop(dawdlers);
    assert_eq!(client.value("SELECT 2"), "2");
}

#[test]
fn sixteen_handshakes_pass_while_a_query_runs_and_others_stall() {
    if no_valet() {
        return;
    }
    let authority = Authority::new("root");
    let pair = authority.issue("a", "localhost", KeyKind::Rsa);
    let (postgres, valet) = stage("allow", &pair, &[]);
    let mut running = Raw::connect(valet.port());
    running.send(&messages::query("SELECT pg_sleep(600)"));
    let sleeps = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'";
    eventually("it runs", || postgres.sql(sleeps) == "1");
    let stalled = dawdlers(valet.port());
    // The one thread for handshakes isn't the one that moves data: queries are answered with none of them done.
    let threads = threads(valet.pid());
    let named = |name: &str| threads.iter().filter(|thread| *thread == name).count();
    assert_eq!(
        (named("pgvalet-tls"), named("pgvalet-data-0")),
        (1, 1),
        "{threads:?}"
    );
    let mut beside = Raw::connect(valet.port());
    for number in 0..100 {
        assert_eq!(
            beside.value(&format!("SELECT {number}")),
            number.to_string()
        );
    }
    let encrypted = |_| {
        let mut client = Encrypted::dial(valet.port(), &authority.root());
        client.log_in();
        client
    };
    let mut done: Vec<Encrypted> = (0..16).map(encrypted).collect();
    for client in &mut done {
        assert_eq!(client.value("SELECT 1"), "1");
    }
    assert_eq!(postgres.sql(sleeps), "1", "it still runs");
    drop(stalled);
    postgres
        .sql("SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'PgSleep'");
    assert_eq!(running.until(b'E').sqlstate(), "57014");
}

/// Sixteen clients that begin a TLS handshake, and say no more.
fn dawdlers(port: u16) -> Vec<Raw> {
    std::iter::repeat_with(|| {
        let mut raw = Raw::dial(port);
        raw.send(&messages::request(SSL_REQUEST));
        assert_eq!(raw.byte(), Some(b'S'));
        raw.send(&[0x16, 0x03, 0x01]);
        raw
    })
    .take(16)
    .collect()
}

/// The names of a process's threads.
fn threads(pid: u32) -> Vec<String> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("it runs");
    let names = tasks
        .flatten()
        .map(|task| std::fs::read_to_string(task.path().join("comm")));
    names.flatten().map(|name| name.trim().to_owned()).collect()
}
