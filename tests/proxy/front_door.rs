//! Startup packets: whole, in pieces, too large, senseless; encryption requests; versions. Protocol chapter 55.2.1.

use crate::support::messages::{self, GSSENC_REQUEST, SSL_REQUEST, startup};
use crate::support::{Message, Postgres, Raw, Valet, direct, no_valet};

const LOGIN: [(&str, &str); 2] = [("user", "postgres"), ("database", "postgres")];

fn stage() -> (Postgres, Valet) {
    let postgres = Postgres::start();
    let valet = Valet::front(&postgres);
    (postgres, valet)
}

/// Sends bytes that can't begin a session: the connection ends, with or without an error, and others are served.
#[track_caller]
fn is_turned_away(bytes: &[u8]) {
    let (_postgres, valet) = stage();
    let mut stranger = Raw::dial(valet.port());
    stranger.send(bytes);
    while let Some(message) = stranger.try_next() {
        assert_eq!(message.tag, b'E', "{message:?}");
    }
    assert_eq!(Raw::connect(valet.port()).value("SELECT 1"), "1");
}

#[test]
fn a_startup_packet_may_come_byte_by_byte() {
    let (_postgres, valet) = stage();
    let mut client = Raw::dial(valet.port());
    for byte in startup(0x0003_0000, &LOGIN) {
        client.send(&[byte]);
    }
    client.until_ready();
    assert_eq!(client.value("SELECT 1"), "1");
}

#[test]
fn a_query_may_come_in_the_same_segment_as_the_startup_packet() {
    let (_postgres, valet) = stage();
    let mut client = Raw::dial(valet.port());
    client.send(&[startup(0x0003_0000, &LOGIN), messages::query("SELECT 5")].concat());
    client.until_ready();
    let answer = client.until_ready();
    assert_eq!(answer[1].columns(), ["5"]);
}

#[test]
fn a_startup_packet_that_is_too_large_is_turned_away() {
    is_turned_away(&100_000u32.to_be_bytes());
    is_turned_away(&u32::MAX.to_be_bytes());
}

#[test]
fn a_startup_packet_that_is_too_short_is_turned_away() {
    is_turned_away(&[0, 0, 0, 3, 0, 3, 0, 0]);
    is_turned_away(&[0; 8]);
}

/// As node-postgres does where a connection is ended before it is made.
#[test]
fn whoever_says_goodbye_at_once_hears_nothing() {
    let (_postgres, valet) = stage();
    for bytes in [
        &messages::terminate()[..],
        &[0, 0, 0, 4],
        b"\0\0\0\x09\x04\xd2\x16\x2ex",
    ] {
        let mut hasty = Raw::dial(valet.port());
        hasty.send(bytes);
        assert_eq!(hasty.rest(), b"", "{bytes:?}");
    }
    assert_eq!(Raw::connect(valet.port()).value("SELECT 1"), "1");
}

#[test]
fn a_startup_packet_without_its_terminator_is_turned_away() {
    is_turned_away(b"\0\0\0\x12\0\x03\0\0user\0postg");
}

#[test]
fn a_web_browser_is_turned_away() {
    is_turned_away(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n");
}

#[test]
fn a_tls_hello_without_a_request_is_turned_away() {
    is_turned_away(&[
        0x16, 0x03, 0x01, 0x02, 0x00, 0x01, 0x00, 0x01, 0xfc, 0x03, 0x03,
    ]);
}

#[test]
fn a_later_major_version_is_refused_by_name() {
    let (_postgres, valet) = stage();
    let mut client = Raw::dial(valet.port());
    client.send(&startup(0x0004_0000, &LOGIN));
    let error = client.until(b'E');
    assert_eq!(error.sqlstate(), "0A000", "{error:?}");
    assert!(
        error.field(b'M').is_some_and(|text| text.contains("4.0")),
        "{error:?}"
    );
    client.assert_closed();
}

#[test]
fn an_earlier_major_version_is_turned_away() {
    let (_postgres, valet) = stage();
    for version in [0x0001_0007, 0x0002_0000] {
        let mut client = Raw::dial(valet.port());
        client.send(&startup(version, &LOGIN));
        while client.byte().is_some() {}
    }
    assert_eq!(Raw::connect(valet.port()).value("SELECT 1"), "1");
}

/// GSSENCRequest. PostgreSQL itself may well accept that one, so straight against it there is nothing to test.
fn gssenc() -> u32 {
    if direct() {
        SSL_REQUEST
    } else {
        GSSENC_REQUEST
    }
}

#[test]
fn encryption_is_declined_and_the_session_goes_on_in_clear() {
    let (_postgres, valet) = stage();
    let both = [GSSENC_REQUEST, SSL_REQUEST];
    let both = if direct() { &both[1..] } else { &both };
    for requests in [&[SSL_REQUEST][..], &[gssenc()], both] {
        let mut client = Raw::dial(valet.port());
        for &request in requests {
            client.send(&messages::request(request));
            assert_eq!(client.byte(), Some(b'N'));
        }
        client.send(&startup(0x0003_0000, &LOGIN));
        client.until_ready();
        assert_eq!(client.value("SELECT 1"), "1");
    }
}

#[test]
fn bytes_sent_behind_an_encryption_request_are_never_obeyed() {
    let (_postgres, valet) = stage();
    for request in [SSL_REQUEST, gssenc()] {
        let mut client = Raw::dial(valet.port());
        client.send(&[messages::request(request), startup(0x0003_0000, &LOGIN)].concat());
        assert_eq!(client.byte(), Some(b'N'));
        while let Some(message) = client.try_next() {
            assert_eq!(
                (message.tag, message.sqlstate().as_str()),
                (b'E', "08P01"),
                "{message:?}"
            );
        }
    }
}

/// What NegotiateProtocolVersion offers: the newest version, and the options that weren't understood.
fn negotiated(message: &Message) -> (u32, Vec<String>) {
    let number =
        |at: usize| u32::from_be_bytes(message.body[at..at + 4].try_into().expect("four bytes"));
    let names = message.body[8..]
        .split(|&byte| byte == 0)
        .filter(|name| !name.is_empty());
    let names: Vec<String> = names
        .map(|name| String::from_utf8_lossy(name).into_owned())
        .collect();
    assert_eq!(number(4) as usize, names.len());
    (number(0), names)
}

#[test]
fn a_newer_minor_version_is_negotiated_down() {
    let (_postgres, valet) = stage();
    let mut client = Raw::dial(valet.port());
    client.send(&startup(0x0003_270f, &LOGIN));
    let offer = client.next();
    assert_eq!(offer.tag, b'v', "{offer:?}");
    let (version, options) = negotiated(&offer);
    assert!(
        [0x0003_0000, 0x0003_0002].contains(&version) && options.is_empty(),
        "{offer:?}"
    );
    client.until_ready();
    assert_eq!(client.value("SELECT 1"), "1");
}

#[test]
fn version_3_2_is_spoken_or_negotiated_down() {
    let (_postgres, valet) = stage();
    let mut client = Raw::dial(valet.port());
    client.send(&startup(0x0003_0002, &LOGIN));
    let answer = client.until_ready();
    assert!(
        answer[0].tag == b'R' || negotiated(&answer[0]) == (0x0003_0000, vec![]),
        "{answer:?}"
    );
    assert!((4..=256).contains(&client.key.len()));
    assert_eq!(client.value("SELECT 1"), "1");
}

#[test]
fn unknown_protocol_options_are_named_and_the_session_begins() {
    let (_postgres, valet) = stage();
    let mut client = Raw::dial(valet.port());
    client.send(&startup(
        0x0003_0000,
        &[
            LOGIN[0],
            ("_pq_.teleport", "on"),
            LOGIN[1],
            ("_pq_.warp", "9"),
        ],
    ));
    let answer = client.until_ready();
    let (version, options) = negotiated(&answer[0]);
    assert!([0x0003_0000, 0x0003_0002].contains(&version));
    assert_eq!(options, ["_pq_.teleport", "_pq_.warp"]);
}

#[test]
fn the_database_is_the_upstream_url_s_where_none_is_named() {
    let (postgres, valet) = stage();
    if no_valet() {
        return;
    }
    postgres.sql("CREATE ROLE alice LOGIN");
    let mut client = Raw::connect_with(valet.port(), &[("user", "alice")]);
    assert_eq!(
        client.value("SELECT current_database() || ' ' || session_user"),
        "postgres alice"
    );
}

#[test]
fn a_startup_packet_without_a_user_is_refused() {
    let (_postgres, valet) = stage();
    assert_eq!(
        Raw::refused(valet.port(), &[("database", "postgres")]).sqlstate(),
        "28000"
    );
}

#[test]
fn an_unknown_database_or_role_is_refused_in_postgresql_s_words() {
    let (_postgres, valet) = stage();
    let error = Raw::refused(
        valet.port(),
        &[("user", "postgres"), ("database", "nowhere")],
    );
    assert_eq!(error.sqlstate(), "3D000");
    assert_eq!(error.field(b'S').as_deref(), Some("FATAL"));
    assert_eq!(
        error.field(b'M').as_deref(),
        Some("database \"nowhere\" does not exist")
    );
    let error = Raw::refused(
        valet.port(),
        &[("user", "nobody"), ("database", "postgres")],
    );
    assert_eq!(error.sqlstate(), "28000");
    assert_eq!(
        error.field(b'M').as_deref(),
        Some("role \"nobody\" does not exist")
    );
}

#[test]
fn a_bad_startup_option_is_refused_in_postgresql_s_words() {
    let (_postgres, valet) = stage();
    for (options, sqlstate) in [("-c nonsense=1", "42704"), ("-c work_mem=huge", "22023")] {
        let error = Raw::refused(valet.port(), &[LOGIN[0], LOGIN[1], ("options", options)]);
        assert_eq!(error.sqlstate(), sqlstate, "{error:?}");
    }
    assert_eq!(Raw::connect(valet.port()).value("SELECT 1"), "1");
}

#[test]
fn startup_settings_hold_and_reset_returns_to_them() {
    let (_postgres, valet) = stage();
    let settings = [
        ("options", "-c work_mem=3MB -c search_path=pg_catalog"),
        ("DateStyle", "SQL, DMY"),
    ];
    let mut client = Raw::connect_with(valet.port(), &[&LOGIN[..], &settings].concat());
    client.query("SET work_mem = '9MB'; SET DateStyle = 'German'; RESET work_mem; RESET DateStyle");
    assert_eq!(client.value("SHOW work_mem"), "3MB");
    assert_eq!(client.value("SHOW search_path"), "pg_catalog");
    assert_eq!(client.value("SHOW DateStyle"), "SQL, DMY");
    assert_eq!(client.parameters["DateStyle"], "SQL, DMY");
    assert_eq!(Raw::connect(valet.port()).value("SHOW work_mem"), "4MB");
}

#[test]
fn the_parameters_reported_at_startup_are_postgresql_s() {
    let (postgres, valet) = stage();
    let settings = [
        &LOGIN[..],
        &[("application_name", "app"), ("TimeZone", "Asia/Tokyo")],
    ]
    .concat();
    let straight = Raw::connect_with(postgres.port(), &settings).parameters;
    let mut through = Raw::connect_with(valet.port(), &settings).parameters;
    through.remove("pgvalet.session");
    assert_eq!(straight, through);
}

#[test]
fn a_session_sees_its_id_twice() {
    if no_valet() {
        return;
    }
    let (_postgres, valet) = stage();
    let (first, second) = (Raw::connect(valet.port()), Raw::connect(valet.port()));
    for client in [&first, &second] {
        assert_eq!(client.parameters["pgvalet.session"], client.pid.to_string());
        assert!(
            client.pid > 4_194_304,
            "{} could be the pid of a real process",
            client.pid
        );
    }
    assert_ne!(first.pid, second.pid);
    assert_ne!(first.key, second.key);
}

#[test]
fn a_client_that_says_nothing_is_let_go() {
    if no_valet() {
        return;
    }
    let postgres = Postgres::start();
    let valet = Valet::front_with(&postgres, &["--login-timeout", "2s"]);
    let (mut silent, mut slow) = (Raw::dial(valet.port()), Raw::dial(valet.port()));
    slow.send(&startup(0x0003_0000, &LOGIN)[..10]);
    for client in [&mut silent, &mut slow] {
        while let Some(message) = client.try_next() {
            assert_eq!(message.tag, b'E', "{message:?}");
        }
    }
    assert_eq!(Raw::connect(valet.port()).value("SELECT 1"), "1");
}

#[test]
fn clients_that_only_look_in_leave_nothing() {
    let (postgres, valet) = stage();
    for _ in 0..200 {
        drop(Raw::dial(valet.port()));
        let mut hasty = Raw::dial(valet.port());
        hasty.send(&messages::request(SSL_REQUEST));
        hasty.reset();
    }
    assert_eq!(Raw::connect(valet.port()).value("SELECT 1"), "1");
    crate::support::eventually("PostgreSQL is left alone", || {
        postgres.client_backends() <= 1
    });
}

#[test]
fn clients_come_over_a_unix_socket_too() {
    if no_valet() {
        return;
    }
    let postgres = Postgres::start();
    let directory = tempfile::tempdir().expect("a temporary directory");
    let listen = format!("unix:{}", directory.path().display());
    let valet = Valet::serve(&[
        "--upstream",
        &postgres.url("postgres", "postgres"),
        "--auth",
        "trust",
        "--listen",
        &listen,
    ]);
    let valet = valet.unwrap_or_else(|exit| panic!("{}", exit.log));
    let mut psql = std::process::Command::new("psql");
    psql.args([
        "-X",
        "-A",
        "-t",
        "-U",
        "postgres",
        "-p",
        "6432",
        "-c",
        "SELECT 6 * 7",
        "-h",
    ])
    .arg(directory.path());
    let output = psql.output().expect("psql can be run");
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "42\n",
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    drop(valet);
}

#[test]
fn a_client_that_only_stops_sending_still_gets_its_answer() {
    let (_postgres, valet) = stage();
    let mut client = Raw::connect(valet.port());
    client.send(&messages::query("SELECT generate_series(1, 3)"));
    client.half_close();
    assert_eq!(crate::support::tags(&client.until_ready()), "TDDDCZ");
    client.assert_closed();
}

/// What is remarked at a login, before the first request.
fn remarks(port: u16, parameters: &[(&str, &str)]) -> Vec<String> {
    let mut raw = Raw::dial(port);
    raw.send(&startup(0x0003_0000, parameters));
    let told = |notice: &Message| format!("{} {:?}", notice.sqlstate(), notice.field(b'M'));
    raw.remarks().iter().map(told).collect()
}

#[test]
fn what_postgresql_remarks_at_a_login_is_told_to_each_client() {
    let (postgres, valet) = stage();
    postgres.sql("CREATE ROLE lost LOGIN; ALTER ROLE lost SET default_tablespace = 'nowhere'");
    let long = "x".repeat(65);
    let options = format!("-c application_name={long}");
    for parameters in [
        vec![("user", "lost")],
        vec![("application_name", &*long)],
        vec![("options", &*options)],
        vec![("user", "lost"), ("application_name", &*long)],
        vec![("application_name", "short")],
    ] {
        let mut all = LOGIN.to_vec();
        all.retain(|(name, _)| parameters[0].0 != *name);
        all.extend(parameters);
        let direct = remarks(postgres.port(), &all);
        for turn in ["first", "second"] {
            assert_eq!(remarks(valet.port(), &all), direct, "{turn} {all:?}");
        }
    }
    assert!(
        valet
            .log()
            .contains("PostgreSQL says at the login: WARNING")
    );
}
