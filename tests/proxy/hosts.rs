//! Several hosts behind pgvalet: which one gives the backends, and what happens when it goes away or changes its role.

use std::io;
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::thread;

use crate::support::{
    Auth, Postgres, Raw, Stop, Valet, eventually, messages, no_valet, skip, tags,
};

const WHICH: &str = "SELECT current_setting('port')";

/// pgvalet in front of several, with the parameters of `query`.
fn in_front_of(hosts: &[&Postgres], query: &str, flags: &[&str]) -> Valet {
    let places: Vec<String> = hosts
        .iter()
        .map(|host| format!("127.0.0.1:{}", host.port()))
        .collect();
    let url = format!("postgres://postgres@{}/postgres?{query}", places.join(","));
    let flags = [&["--upstream", &url, "--auth", "trust"], flags].concat();
    Valet::serve(&flags).unwrap_or_else(|exit| panic!("{}", exit.log))
}

/// The port of whoever serves a new session.
fn server(valet: &Valet) -> String {
    Raw::connect(valet.port()).value(WHICH)
}

/// The port of whoever serves a new session; none where nobody does.
fn who_serves(valet: &Valet) -> Option<String> {
    let mut client = Raw::dial(valet.port());
    client.send(&messages::startup(
        0x0003_0000,
        &[("user", "postgres"), ("database", "postgres")],
    ));
    let welcome = client.until_end_of_login()?;
    assert_eq!(welcome, 'I');
    let answer = client.query(WHICH);
    let row = answer.iter().find(|message| message.tag == b'D')?;
    Some(row.columns().swap_remove(0))
}

#[test]
fn writes_go_to_the_primary_and_follow_it_when_another_is_promoted() {
    if no_valet() {
        return;
    }
    let (mut one, mut other) = (Postgres::start(), Postgres::start());
    other.become_standby();
    let valet = in_front_of(&[&other, &one], "target_session_attrs=read-write", &[]);
    let mut client = Raw::connect(valet.port());
    assert_eq!(client.value(WHICH), one.port().to_string());

    one.stop(Stop::Immediate);
    client.assert_told_of_loss();
    other.sql("SELECT pg_promote()");
    eventually("new sessions are on the new primary", || {
        who_serves(&valet) == Some(other.port().to_string())
    });
}

#[test]
fn reads_go_to_a_standby_and_to_the_primary_where_there_is_none() {
    if no_valet() {
        return;
    }
    let (one, mut other) = (Postgres::start(), Postgres::start());
    other.become_standby();
    let hosts = [&one, &other];
    for target in ["standby", "prefer-standby", "read-only"] {
        let valet = in_front_of(&hosts, &format!("target_session_attrs={target}"), &[]);
        assert_eq!(server(&valet), other.port().to_string(), "{target}");
    }
    for target in ["primary", "read-write", "any"] {
        let valet = in_front_of(&hosts, &format!("target_session_attrs={target}"), &[]);
        assert_eq!(server(&valet), one.port().to_string(), "{target}");
    }
    let valet = in_front_of(&[&one], "target_session_attrs=prefer-standby", &[]);
    assert_eq!(server(&valet), one.port().to_string());
    let valet = in_front_of(&[&one], "target_session_attrs=standby", &[]);
    let login = [("user", "postgres"), ("database", "postgres")];
    let error = Raw::refused(valet.port(), &login);
    assert_eq!(error.sqlstate(), "08001");
    let text = error.field(b'M').unwrap_or_default();
    assert!(text.contains("server is not in hot standby mode"), "{text}");
}

#[test]
fn a_backend_of_a_host_that_stopped_taking_writes_serves_nobody_else() {
    if no_valet() {
        return;
    }
    let (one, other) = (Postgres::start(), Postgres::start());
    let valet = in_front_of(&[&one, &other], "target_session_attrs=read-write", &[]);
    assert_eq!(server(&valet), one.port().to_string());
    let mut client = Raw::connect(valet.port());
    // A session that wants it so for itself says nothing of the host.
    client.value("SET default_transaction_read_only = on");
    client.goodbye();
    assert_eq!(server(&valet), one.port().to_string());

    one.sql("ALTER SYSTEM SET default_transaction_read_only = on");
    one.sql("SELECT pg_reload_conf()");
    eventually("sessions have moved to the other host", || {
        server(&valet) == other.port().to_string()
    });
}

#[test]
fn a_host_that_is_down_is_passed_over_and_comes_back() {
    if no_valet() {
        return;
    }
    let (mut one, other) = (Postgres::start(), Postgres::start());
    one.stop(Stop::Fast);
    let valet = in_front_of(&[&one, &other], "", &["--max-backends", "1"]);
    // With one backend, other startup parameters mean another login.
    let mut zones = (0..).map(|hour| format!("UTC+{}", hour % 12));
    let mut server = || {
        let zone = zones.next().expect("there is always one more");
        let login = [
            ("user", "postgres"),
            ("database", "postgres"),
            ("TimeZone", zone.as_str()),
        ];
        Raw::connect_with(valet.port(), &login).value(WHICH)
    };
    assert_eq!(server(), other.port().to_string());
    one.start_again();
    eventually("the first host is asked first again", || {
        server() == one.port().to_string()
    });
}

#[test]
fn with_all_hosts_down_the_error_names_each() {
    if no_valet() {
        return;
    }
    let free = || TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr());
    let (one, other) = (free().expect("a port"), free().expect("a port"));
    let url = format!("postgres://postgres@{one},{other}/postgres");
    let valet = Valet::serve(&["--upstream", &url, "--auth", "trust"]);
    let valet = valet.unwrap_or_else(|exit| panic!("{}", exit.log));
    let error = Raw::refused(
        valet.port(),
        &[("user", "postgres"), ("database", "postgres")],
    );
    assert_eq!(error.sqlstate(), "08001");
    let text = error.field(b'M').unwrap_or_default();
    assert!(
        text.contains(&one.to_string()) && text.contains(&other.to_string()),
        "{text}"
    );
}

#[test]
fn a_wrong_password_is_not_tried_on_every_host() {
    if no_valet() {
        return;
    }
    let (one, other) = (Postgres::start_with(Auth::Scram, &[]), Postgres::start());
    let places = format!("127.0.0.1:{},127.0.0.1:{}", one.port(), other.port());
    let url = format!("postgres://postgres:wrong@{places}/postgres");
    let valet = Valet::serve(&["--upstream", &url, "--auth", "trust"]);
    let valet = valet.unwrap_or_else(|exit| panic!("{}", exit.log));
    let error = Raw::refused(
        valet.port(),
        &[("user", "postgres"), ("database", "postgres")],
    );
    assert_eq!(error.sqlstate(), "28P01");
}

#[test]
fn load_is_balanced_over_the_hosts() {
    if no_valet() {
        return;
    }
    let (one, other) = (Postgres::start(), Postgres::start());
    let valet = in_front_of(&[&one, &other], "load_balance_hosts=random", &[]);
    let mut sessions = Vec::new();
    eventually("both hosts have backends", || {
        assert!(
            sessions.len() < 18,
            "eighteen backends, and all on one host"
        );
        let mut client = Raw::connect(valet.port());
        client.value("SELECT 1");
        sessions.push(client);
        one.client_backends() > 0 && other.client_backends() > 0
    });
    // A cancel finds the host of its backend.
    for client in &mut sessions {
        client.send(&messages::query("SELECT pg_sleep(600)"));
        let (pid, key) = (client.pid, client.key.clone());
        eventually("the statement runs", || {
            let running = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep%' AND state = 'active' AND pid <> pg_backend_pid()";
            [&one, &other].iter().any(|host| host.sql(running) != "0")
        });
        Raw::dial(valet.port()).send(&messages::cancel_request(pid, &key));
        let answer = client.until_ready();
        assert!(tags(&answer).contains('E'), "{answer:?}");
    }
}

#[test]
fn a_name_with_addresses_of_both_families_is_tried_on_each() {
    if no_valet() {
        return;
    }
    // PostgreSQL listens on 127.0.0.1 only; ::1, where localhost has it, refuses.
    let postgres = Postgres::start();
    let url = format!("postgres://postgres@localhost:{}/postgres", postgres.port());
    let valet = Valet::serve(&["--upstream", &url, "--auth", "trust"]);
    let valet = valet.unwrap_or_else(|exit| panic!("{}", exit.log));
    assert_eq!(server(&valet), postgres.port().to_string());
}

/// A resolver of the system's that knows one more name, at the address in the file that MOVING_NAME_ADDRESS names.
const MOVING_NAME: &str = include_str!("moving_name.c");

/// Compiles it to a library that goes ahead of libc's.
fn moving_name(directory: &std::path::Path) -> Option<String> {
    let (source, library) = (
        directory.join("moving_name.c"),
        directory.join("moving_name.so"),
    );
    std::fs::write(&source, MOVING_NAME).expect("written");
    let mut compiler = Command::new("cc");
    compiler
        .args(["-shared", "-fPIC", "-o"])
        .arg(&library)
        .arg(&source)
        .arg("-ldl");
    let compiled = compiler
        .output()
        .is_ok_and(|output| output.status.success());
    compiled.then(|| library.to_str().expect("UTF-8").to_owned())
}

/// Whoever comes to this address is passed on to `port` of 127.0.0.1.
fn pass_on(address: &str, port: u16) -> io::Result<()> {
    let listener = TcpListener::bind(address)?;
    let copy = |mut from: TcpStream, mut to: TcpStream| {
        thread::spawn(move || {
            // Either side may end it.
            let _ = io::copy(&mut from, &mut to);
            let _ = to.shutdown(std::net::Shutdown::Both);
        });
    };
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let server = TcpStream::connect(("127.0.0.1", port)).expect("PostgreSQL listens");
            copy(
                client.try_clone().expect("a descriptor"),
                server.try_clone().expect("another"),
            );
            copy(server, client);
        }
    });
    Ok(())
}

#[test]
fn a_name_that_moves_is_followed_by_new_backends_and_cuts_none() {
    if no_valet() {
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let Some(library) = moving_name(directory.path()) else {
        return skip("no C compiler");
    };
    let (one, other) = (Postgres::start(), Postgres::start());
    if let Err(error) = pass_on(&format!("127.0.0.2:{}", one.port()), other.port()) {
        return skip(&format!("127.0.0.2 is no address of this machine: {error}"));
    }
    let address = directory.path().join("address");
    std::fs::write(&address, "127.0.0.1").expect("written");
    let variables = [
        ("LD_PRELOAD", &*library),
        ("MOVING_NAME_ADDRESS", address.to_str().expect("UTF-8")),
    ];
    let url = format!("postgres://postgres@moving.example:{}/postgres", one.port());
    let valet = Valet::serve_among(&variables, &["--upstream", &url, "--auth", "trust"]);
    let valet = valet.unwrap_or_else(|exit| panic!("{}", exit.log));
    let mut busy = Raw::connect(valet.port());
    busy.query("BEGIN");
    assert_eq!(busy.value(WHICH), one.port().to_string());

    std::fs::write(&address, "127.0.0.2").expect("written");
    assert_eq!(server(&valet), other.port().to_string());
    assert_eq!(busy.value(WHICH), one.port().to_string());
    busy.query("COMMIT");
}
