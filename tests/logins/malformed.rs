//! Peers that don't keep to the protocol of a login, on both legs.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::stage::Stage;
use crate::support::messages::{frame, startup};
use crate::support::{Auth, Postgres, Raw, Valet, eventually, no_valet};

fn asked(port: u16, user: &str) -> (Raw, Vec<u8>) {
    let mut client = Raw::dial(port);
    let parameters = [("user", user), ("database", "postgres")];
    client.send(&startup(0x0003_0000, &parameters));
    let body = client.until(b'R').body;
    (client, body)
}

#[test]
fn what_is_no_password_is_refused_within_postgresql_s_bounds() {
    if no_valet() {
        return;
    }
    let postgres = Postgres::start_with(Auth::Scram, &[]);
    for method in ["password", "md5", "scram"] {
        let config = format!("[[logins]]\nmethod = \"{method}\"\n");
        let stage = Stage::new(&postgres, "postgres:postgres", &config);
        let long = [&vec![b'x'; 70_000][..], b"\0"].concat();
        let messages = [
            (frame(b'p', &long), "08P01"),
            (frame(b'p', b"no end"), "08P01"),
            (frame(b'p', b"one\0two\0"), "08P01"),
            (frame(b'p', b""), "08P01"),
            (
                frame(b'p', b"\0"),
                if method == "scram" { "08P01" } else { "28P01" },
            ),
            (frame(b'Q', b"SELECT 1\0"), "08P01"),
            (vec![b'p', 0xff, 0xff, 0xff, 0xff], "08P01"),
        ];
        for (message, code) in messages {
            let (mut client, _) = asked(stage.valet.port(), "postgres");
            client.send_if_open(&message);
            let error = client.until_error();
            assert_eq!(error.sqlstate(), code, "{method}: {error:?}");
        }
        assert_eq!(
            stage.login("postgres", "postgres").as_deref(),
            Ok("postgres")
        );
    }
}

#[test]
fn a_sasl_message_beyond_postgresql_s_bound_is_refused() {
    if no_valet() {
        return;
    }
    let postgres = Postgres::start_with(Auth::Scram, &[]);
    let stage = Stage::new(&postgres, "postgres:postgres", "");
    for nonce in [900, 1100] {
        let (mut client, _) = asked(stage.valet.port(), "postgres");
        let first = format!("n,,n=,r={}", "x".repeat(nonce));
        let length = u32::try_from(first.len()).expect("short").to_be_bytes();
        let body = [b"SCRAM-SHA-256\0", &length[..], first.as_bytes()].concat();
        client.send(&frame(b'p', &body));
        let answer = client.next();
        assert_eq!(
            answer.tag,
            if nonce < 1024 { b'R' } else { b'E' },
            "{answer:?}"
        );
    }
}

#[test]
fn a_name_that_somebody_made_up_writes_no_line_of_the_log() {
    if no_valet() {
        return;
    }
    let postgres = Postgres::start_with(Auth::Scram, &[]);
    for config in [
        "[[logins]]\nmethod = \"reject\"\n",
        "auth_query = \"SELECT 1/0, $1::text\"\n",
    ] {
        let stage = Stage::new(&postgres, "postgres:postgres", config);
        let user = "mallory\nFORGED by a client\u{1b}[31m";
        Raw::refused(
            stage.valet.port(),
            &[("user", user), ("database", "postgres")],
        );
        eventually("the log tells of it", || {
            stage.valet.log().contains("FORGED")
        });
        let log = stage.valet.log();
        assert!(log.lines().all(|line| !line.starts_with("FORGED")), "{log}");
        assert!(!log.contains('\u{1b}'), "{log}");
    }
}

#[test]
fn users_that_don_t_exist_are_asked_like_those_that_do() {
    if no_valet() {
        return;
    }
    let postgres = Postgres::start_with(Auth::Scram, &[]);
    for method in ["scram", "md5", "password"] {
        let config = format!("[[logins]]\nmethod = \"{method}\"\n");
        let stage = Stage::new(&postgres, "postgres:postgres", &config);
        let shape = |user: &str| {
            let (_, body) = asked(stage.valet.port(), user);
            (body.len(), body[..4].to_vec())
        };
        assert_eq!(shape("postgres"), shape("mallory"), "{method}");
    }
}

#[test]
fn logins_that_postgresql_refuses_don_t_storm_it() {
    if no_valet() {
        return;
    }
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = listener.local_addr().expect("bound").port();
    let accepted = Arc::new(AtomicUsize::new(0));
    let count = accepted.clone();
    std::thread::spawn(move || {
        let refusal = b"ESFATAL\0VFATAL\0C28P01\0Mno\0\0".to_vec();
        for socket in listener.incoming().flatten() {
            count.fetch_add(1, Ordering::Relaxed);
            // Who breaks off has heard enough.
            let _ = pretend(socket, std::slice::from_ref(&refusal));
        }
    });
    let upstream = format!("postgres://postgres:old@127.0.0.1:{port}/postgres?sslmode=disable");
    let valet = Valet::serve(&["--upstream", &upstream, "--auth", "trust"]);
    let valet = valet.unwrap_or_else(|exit| panic!("{}", exit.log));
    for _ in 0..100 {
        let error = Raw::refused(valet.port(), &[("user", "postgres")]);
        assert_eq!(error.sqlstate(), "28P01");
    }
    let accepted = accepted.load(Ordering::Relaxed);
    assert!(
        (1..50).contains(&accepted),
        "{accepted} logins for 100 clients"
    );
}

/// A PostgreSQL that answers each message of a login with the next of these, and then is silent.
fn pretender(answers: Vec<Vec<u8>>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = listener.local_addr().expect("bound").port();
    std::thread::spawn(move || {
        for socket in listener.incoming().flatten() {
            // Who breaks off has seen through it.
            let _ = pretend(socket, &answers);
        }
    });
    port
}

fn pretend(mut socket: TcpStream, answers: &[Vec<u8>]) -> std::io::Result<()> {
    let mut length = [0; 4];
    socket.read_exact(&mut length)?;
    let mut body = vec![0; u32::from_be_bytes(length) as usize - 4];
    socket.read_exact(&mut body)?;
    let mut nonce = String::new();
    for answer in answers {
        let text = String::from_utf8_lossy(answer).replace("NONCE", &nonce);
        // The messages are ASCII, but for lengths, which are made anew.
        let answer = frame(answer[0], &text.as_bytes()[1..]);
        socket.write_all(&answer)?;
        let mut header = [0; 5];
        socket.read_exact(&mut header)?;
        let length = u32::from_be_bytes([header[1], header[2], header[3], header[4]]) as usize;
        let mut body = vec![0; length - 4];
        socket.read_exact(&mut body)?;
        let text = String::from_utf8_lossy(&body).into_owned();
        if let Some((_, found)) = text.split_once("r=") {
            nonce = found.split(',').next().unwrap_or_default().to_owned();
        }
    }
    socket.read_to_end(&mut Vec::new()).map(drop)
}

#[test]
fn an_upstream_that_cheats_at_its_login_is_told_apart_from_a_wrong_password() {
    if no_valet() {
        return;
    }
    let offer = b"R\0\0\0\x0aSCRAM-SHA-256\0\0".to_vec();
    let challenge = |text: &str| [b"R\0\0\0\x0b", text.as_bytes()].concat();
    let salt = "s=W22ZaJ0SNY7soEsUEjb6gQ==";
    let honest = challenge(&format!("rNONCEx,{salt},i=4096").replacen('r', "r=", 1));
    let long = challenge(&format!("r=NONCE{},{salt},i=4096", "x".repeat(10_000)));
    let cases = [
        (
            vec![b"ESERROR\0Mboom\0\0".to_vec()],
            "an error without an SQLSTATE came",
        ),
        (vec![b"ESERR".to_vec()], "an error without an SQLSTATE came"),
        (vec![b"R\0".to_vec()], "a short authentication request"),
        (vec![b"R\0\0\0\x05ab".to_vec()], "a short salt"),
        (
            vec![b"R\0\0\0\x0aSCRAM-SHA-512\0\0".to_vec()],
            "other than SCRAM-SHA-256",
        ),
        (
            vec![b"R\0\0\0\x63".to_vec()],
            "authentication method 99 is unknown",
        ),
        (
            vec![offer.clone(), challenge(&format!("r=other,{salt},i=4096"))],
            "nonce isn't an answer",
        ),
        (
            vec![
                offer.clone(),
                challenge(&format!("r=NONCEx,{salt},i=999999999")),
            ],
            "so many iterations",
        ),
        (vec![offer.clone(), long], "a SCRAM message is too long"),
        (vec![offer.clone(), challenge("")], "isn't what RFC 5802"),
        (
            vec![
                offer,
                honest,
                b"R\0\0\0\x0cv=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=".to_vec(),
            ],
            "doesn't know the SCRAM keys itself",
        ),
    ];
    for (answers, said) in cases {
        let port = pretender(answers);
        let upstream =
            format!("postgres://postgres:secret@127.0.0.1:{port}/postgres?sslmode=disable");
        let valet = Valet::serve(&["--upstream", &upstream, "--auth", "trust"]);
        let valet = valet.unwrap_or_else(|exit| panic!("{}", exit.log));
        let error = Raw::refused(valet.port(), &[("user", "postgres")]);
        let text = error.field(b'M').unwrap_or_default();
        assert!(text.contains(said), "{said}: {error:?}");
        assert!(!error.sqlstate().is_empty(), "{error:?}");
    }
}

#[test]
fn users_that_don_t_exist_keep_their_salt_like_those_that_do() {
    if no_valet() {
        return;
    }
    let postgres = Postgres::start_with(Auth::Scram, &[]);
    let stage = Stage::new(&postgres, "postgres:postgres", "");
    let challenge = |user: &str| {
        let (mut client, _) = asked(stage.valet.port(), user);
        let first = "n,,n=,r=rOprNGfwEbeRWgbNEkqO";
        let length = u32::try_from(first.len()).expect("short").to_be_bytes();
        let body = [b"SCRAM-SHA-256\0", &length[..], first.as_bytes()].concat();
        client.send(&frame(b'p', &body));
        let text = client.until(b'R').body[4..].to_vec();
        let text = String::from_utf8(text).expect("SCRAM is ASCII");
        let (nonce, rest) = text.split_once(",s=").expect("it has a salt");
        (nonce.len(), rest.to_owned())
    };
    let (nonce, known) = challenge("postgres");
    assert_eq!(challenge("postgres"), (nonce, known.clone()));
    let (other_nonce, unknown) = challenge("mallory");
    assert_eq!(challenge("mallory"), (nonce, unknown.clone()));
    assert_eq!((other_nonce, unknown.len()), (nonce, known.len()));
    assert_ne!(unknown, known, "each has a salt of its own");
    assert!(known.ends_with(",i=4096") && unknown.ends_with(",i=4096"));
}
