//! A database that is down, restarts, is silent or talks nonsense: a clear error for each client, and recovery by itself.

use std::io::{Read, Write};
use std::net::TcpListener;

use crate::support::messages;
use crate::support::{Message, Postgres, Raw, Stop, Valet, direct, eventually, no_valet, tags};

const LOGIN: [(&str, &str); 2] = [("user", "postgres"), ("database", "postgres")];

/// An error about the database's whereabouts: connection exceptions, or PostgreSQL's own operator interventions.
#[track_caller]
fn is_an_outage(error: &Message) {
    let sqlstate = error.sqlstate();
    assert!(
        ["08001", "08004", "08006", "57P01", "57P02", "57P03"].contains(&sqlstate.as_str()),
        "{error:?}"
    );
    assert!(
        error.field(b'M').is_some_and(|text| !text.is_empty()),
        "{error:?}"
    );
}

#[test]
fn each_client_of_a_database_that_is_down_is_told_so_and_served_once_it_is_up() {
    if no_valet() {
        return;
    }
    let mut postgres = Postgres::start();
    postgres.stop(Stop::Fast);
    let valet = Valet::front(&postgres);
    for _ in 0..5 {
        is_an_outage(&Raw::refused(valet.port(), &LOGIN));
    }
    postgres.start_again();
    assert_eq!(Raw::connect(valet.port()).value("SELECT 1"), "1");
}

#[test]
fn an_idle_session_learns_of_a_restart_and_new_ones_are_served() {
    let mut postgres = Postgres::start();
    let valet = Valet::front(&postgres);
    let mut client = Raw::connect(valet.port());
    client.query("CREATE TEMP TABLE mine (a int)");
    postgres.restart();
    client.send_if_open(&messages::query("TABLE mine"));
    is_an_outage(&client.until(b'E'));
    client.assert_closed();
    assert_eq!(Raw::connect(valet.port()).value("SELECT 1"), "1");
}

#[test]
fn a_running_query_learns_of_a_stop_at_once() {
    for how in [Stop::Fast, Stop::Immediate] {
        let mut postgres = Postgres::start();
        let valet = Valet::front(&postgres);
        let mut client = Raw::connect(valet.port());
        client.send(&messages::query("SELECT pg_sleep(600)"));
        let active = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE 'SELECT pg_sleep%'";
        crate::support::eventually("the query runs", || postgres.sql(active) == "1");
        postgres.stop(how);
        while let Some(message) = client.try_next() {
            if message.tag == b'E' {
                is_an_outage(&message);
            }
        }
    }
}

#[test]
fn backends_that_a_restart_took_from_the_pool_are_replaced_unseen() {
    let mut postgres = Postgres::start();
    let valet = Valet::front(&postgres);
    let mut clients: Vec<Raw> = std::iter::repeat_with(|| Raw::connect(valet.port()))
        .take(4)
        .collect();
    clients
        .iter_mut()
        .for_each(|client| drop(client.query("SELECT 1")));
    clients.into_iter().for_each(Raw::goodbye);
    postgres.restart();
    for _ in 0..4 {
        assert_eq!(Raw::connect(valet.port()).value("SELECT 1"), "1");
    }
}

#[test]
fn a_session_without_a_lease_survives_a_restart() {
    if no_valet() {
        return;
    }
    let mut postgres = Postgres::start();
    let valet = Valet::front_with(&postgres, &["--mode", "transaction"]);
    let mut client = Raw::connect(valet.port());
    client.query("SET TimeZone = 'Asia/Tokyo'");
    let leased = || valet.get("/v1/leases")["leases"] != serde_json::json!([]);
    crate::support::eventually("its state is known, and the lease over", || !leased());
    postgres.restart();
    let answer = client.query("SHOW TimeZone");
    assert!(
        tags(&answer) == "TDCZ" && answer[1].columns() == ["Asia/Tokyo"],
        "{answer:?}"
    );
}

#[test]
fn a_backend_that_an_operator_terminates_is_reported_as_such() {
    let postgres = Postgres::start();
    let valet = Valet::front(&postgres);
    let mut client = Raw::connect(valet.port());
    let pid = client.value("SELECT pg_backend_pid()");
    postgres.sql(&format!("SELECT pg_terminate_backend({pid})"));
    assert_eq!(client.until(b'E').sqlstate(), "57P01");
    client.assert_closed();
    assert_eq!(Raw::connect(valet.port()).value("SELECT 1"), "1");
}

#[test]
fn clients_waiting_in_the_queue_learn_of_an_outage_too() {
    if no_valet() {
        return;
    }
    let mut postgres = Postgres::start();
    let valet = Valet::front_with(&postgres, &["--max-backends", "1"]);
    let mut holder = Raw::connect(valet.port());
    holder.query("BEGIN");
    let mut queued = Raw::connect(valet.port());
    queued.send(&messages::query("SELECT 1"));
    let waiting = "pgvalet_waiting_sessions{database=\"postgres\",user=\"postgres\"}";
    crate::support::eventually("it waits", || valet.metric(waiting) == 1.0);
    postgres.stop(Stop::Fast);
    is_an_outage(&queued.until(b'E'));
    is_an_outage(&holder.until(b'E'));
    postgres.start_again();
    assert_eq!(Raw::connect(valet.port()).value("SELECT 1"), "1");
}

/// A pgvalet whose upstream is `listener`, which isn't PostgreSQL.
fn in_front_of(listener: &TcpListener, flags: &[&str]) -> Valet {
    let url = format!(
        "postgres://postgres@{}/postgres",
        listener.local_addr().expect("it is bound")
    );
    let flags = [&["--upstream", &url, "--auth", "trust"], flags].concat();
    Valet::serve(&flags).unwrap_or_else(|exit| panic!("{}", exit.log))
}

#[test]
fn a_database_that_never_answers_is_given_up() {
    if direct() {
        return;
    }
    let silent = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let valet = in_front_of(&silent, &["--connect-timeout", "200ms"]);
    is_an_outage(&Raw::refused(valet.port(), &LOGIN));
}

#[test]
fn an_upstream_that_isn_t_postgresql_is_named_as_such() {
    if no_valet() {
        return;
    }
    for nonsense in [
        &b"HTTP/1.1 400 Bad Request\r\n\r\n"[..],
        b"R\0\0\0\x08\0\0\0\x63",
        b"E\0\0\0\x05\0",
        b"R\xff\xff\xff\xff",
        b"",
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let valet = in_front_of(&listener, &["--connect-timeout", "2s"]);
        std::thread::spawn(move || {
            while let Ok((mut stream, _)) = listener.accept() {
                let _ = stream.read(&mut [0; 1000]);
                let _ = stream.write_all(nonsense);
            }
        });
        let error = Raw::refused(valet.port(), &LOGIN);
        let sqlstate = error.sqlstate();
        assert!(
            sqlstate.starts_with("08") || sqlstate.starts_with("28"),
            "to {nonsense:?}: {error:?}"
        );
    }
}

#[test]
fn running_out_of_file_descriptors_is_overcome() {
    use rustix::process::{Resource, Rlimit, prlimit};
    if no_valet() {
        return;
    }
    let postgres = Postgres::start();
    let valet = Valet::front(&postgres);
    let mut served = Raw::connect(valet.port());
    served.query("SELECT 1");
    let process = rustix::process::Pid::from_raw(i32::try_from(valet.pid()).expect("a pid"));
    let few = Rlimit {
        current: Some(30),
        maximum: Some(1000),
    };
    prlimit(process, Resource::Nofile, few).expect("we may limit our own child");
    let crowd: Vec<Raw> = std::iter::repeat_with(|| Raw::dial(valet.port()))
        .take(60)
        .collect();
    assert_eq!(
        served.value("SELECT 2"),
        "2",
        "who is in is served meanwhile"
    );
    // It waits between two attempts rather than spin: ten a second, not thousands.
    let complaints = || valet.log().matches("accept: ").count();
    eventually("two attempts have failed", || complaints() >= 2);
    let before = complaints();
    for round in 0..20 {
        assert_eq!(served.value(&format!("SELECT {round}")), round.to_string());
    }
    assert!(complaints() - before <= 200, "it spins");
    drop(crowd);
    assert_eq!(Raw::connect(valet.port()).value("SELECT 3"), "3");
}

#[test]
fn refused_logins_do_not_storm_the_database() {
    if no_valet() {
        return;
    }
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let valet = in_front_of(&listener, &["--connect-timeout", "10s"]);
    let attempts = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let seen = attempts.clone();
    std::thread::spawn(move || {
        for mut socket in listener.incoming().flatten() {
            // SSLRequest, then the startup packet: what it says doesn't matter.
            let _ = socket.read(&mut [0; 512]);
            let _ = socket.write_all(b"N");
            let _ = socket.read(&mut [0; 512]);
            seen.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            let body = b"SFATAL\0VFATAL\0C28P01\0Mpassword authentication failed\0\0";
            let _ = socket.write_all(&messages::frame(b'E', body));
        }
    });
    for _ in 0..200 {
        assert_eq!(Raw::refused(valet.port(), &LOGIN).sqlstate(), "28P01");
    }
    let attempts = attempts.load(std::sync::atomic::Ordering::SeqCst);
    assert!(
        (1..100).contains(&attempts),
        "{attempts} logins for 200 clients"
    );
}

#[test]
fn a_zero_timeout_is_off() {
    if no_valet() {
        return;
    }
    let postgres = Postgres::start();
    let names = [
        "acquire",
        "connect",
        "login",
        "drain",
        "backend-idle",
        "tcp-user",
    ];
    let names = names.map(|name| format!("--{name}-timeout"));
    let mut flags = vec![
        "--max-backends",
        "1",
        "--backend-lifetime",
        "0s",
        "--tcp-keepalive-idle",
        "0s",
    ];
    flags.extend(names.iter().flat_map(|name| [name.as_str(), "0s"]));
    let valet = Valet::front_with(&postgres, &flags);
    let mut first = Raw::connect(valet.port());
    let pid = first.value("SELECT pg_backend_pid()");
    let mut second = Raw::connect(valet.port());
    second.send(&messages::query("SELECT pg_backend_pid()"));
    let waiting = "pgvalet_waiting_sessions{database=\"postgres\",user=\"postgres\"}";
    eventually("the second session waits", || valet.metric(waiting) == 1.0);
    first.goodbye();
    let answer = second.until_ready();
    assert_eq!(
        answer[1].columns(),
        [pid],
        "it waited, and the backend lives on"
    );
}
