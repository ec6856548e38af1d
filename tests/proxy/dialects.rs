//! The protocol's minor versions towards PostgreSQL: 3.2 where it is spoken, older ones where it isn't.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc;

use crate::support::messages::{self, frame};
use crate::support::{Auth, DEADLINE, Postgres, Raw, Valet, eventually, no_valet, skip, tags};

/// How somebody who pretends to be PostgreSQL takes a startup packet of 3.2.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Manners {
    /// "unsupported frontend protocol", as PostgreSQL before 9.3 and some poolers.
    Refuses,
    HangsUp,
    /// As PostgreSQL up to 17.
    Negotiates,
    /// It wants something that nobody offered.
    Overbids,
    /// As PostgreSQL 18, with a key of so many bytes.
    Speaks {
        key: usize,
    },
}

struct Pretender {
    port: u16,
    /// The minor version of each startup packet, and the body of each cancel request.
    heard: mpsc::Receiver<Vec<u8>>,
}

impl Pretender {
    fn start(manners: Manners) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("it is bound").port();
        let (sender, heard) = mpsc::channel();
        std::thread::spawn(move || {
            for socket in listener.incoming().flatten() {
                let sender = sender.clone();
                // Who breaks off is served no longer.
                std::thread::spawn(move || serve(socket, manners, &sender));
            }
        });
        Self { port, heard }
    }

    fn behind_valet(&self) -> Valet {
        let url = format!(
            "postgres://postgres@127.0.0.1:{}/postgres?sslmode=disable",
            self.port
        );
        let valet = Valet::serve(&["--upstream", &url, "--auth", "trust"]);
        valet.unwrap_or_else(|exit| panic!("{}", exit.log))
    }

    #[track_caller]
    fn next(&self) -> Vec<u8> {
        self.heard.recv_timeout(DEADLINE).expect("pgvalet comes")
    }
}

fn serve(
    mut socket: TcpStream,
    manners: Manners,
    heard: &mpsc::Sender<Vec<u8>>,
) -> std::io::Result<()> {
    let mut length = [0; 4];
    socket.read_exact(&mut length)?;
    let mut packet = vec![0; u32::from_be_bytes(length) as usize - 4];
    socket.read_exact(&mut packet)?;
    if packet[..2] != [0, 3] {
        // A cancel request.
        let _ = heard.send(packet[4..].to_vec());
        return Ok(());
    }
    let minor = packet[3];
    let _ = heard.send(vec![minor]);
    let mut key = 4;
    match manners {
        Manners::Refuses if minor > 0 => {
            let body = b"SFATAL\0VFATAL\0C0A000\0Munsupported frontend protocol 3.2\0\0";
            return socket.write_all(&frame(b'E', body));
        }
        Manners::HangsUp if minor > 0 => return Ok(()),
        Manners::Negotiates => socket.write_all(&frame(b'v', &[0, 3, 0, 0, 0, 0, 0, 0]))?,
        Manners::Overbids => socket.write_all(&frame(b'v', &[0, 3, 0, 9, 0, 0, 0, 0]))?,
        Manners::Speaks { key: length } => key = length,
        Manners::Refuses | Manners::HangsUp => {}
    }
    let data = [&[0, 0, 0, 77][..], &vec![7; key]].concat();
    let welcome = [
        frame(b'R', &[0; 4]),
        frame(b'S', b"application_name\0\0"),
        frame(b'K', &data),
        frame(b'Z', b"I"),
    ]
    .concat();
    socket.write_all(&welcome)?;
    refuse_questions(&mut socket)
}

/// Refuses what is asked by the extended protocol, as pgvalet itself does; a simple query is never answered.
fn refuse_questions(socket: &mut TcpStream) -> std::io::Result<()> {
    loop {
        let mut header = [0; 5];
        socket.read_exact(&mut header)?;
        let [kind, length @ ..] = header;
        let mut body = vec![0; u32::from_be_bytes(length) as usize - 4];
        socket.read_exact(&mut body)?;
        if kind == b'S' {
            let error = frame(b'E', b"SERROR\0VERROR\0C42501\0Mask somebody else\0\0");
            socket.write_all(&[error, frame(b'Z', b"I")].concat())?;
        }
    }
}

#[test]
fn the_newest_version_is_asked_for_and_an_older_one_is_agreed_on_at_no_cost() {
    if no_valet() {
        return;
    }
    let pretender = Pretender::start(Manners::Negotiates);
    let valet = pretender.behind_valet();
    Raw::connect(valet.port());
    assert_eq!(pretender.next(), [2]);
    assert!(
        pretender.heard.try_recv().is_err(),
        "one connection was enough"
    );
}

#[test]
fn whoever_refuses_the_newest_version_or_hangs_up_is_asked_for_an_older_one_once() {
    if no_valet() {
        return;
    }
    for manners in [Manners::Refuses, Manners::HangsUp] {
        let pretender = Pretender::start(manners);
        let valet = pretender.behind_valet();
        let _first = Raw::connect(valet.port());
        assert_eq!([pretender.next(), pretender.next()], [[2], [0]]);
        // Other startup parameters need another login, and it is remembered.
        let login = [
            ("user", "postgres"),
            ("database", "postgres"),
            ("TimeZone", "UTC"),
        ];
        let _second = Raw::connect_with(valet.port(), &login);
        assert_eq!(pretender.next(), [0]);
    }
}

#[test]
fn a_version_that_nobody_offered_is_refused() {
    if no_valet() {
        return;
    }
    let pretender = Pretender::start(Manners::Overbids);
    let valet = pretender.behind_valet();
    let error = Raw::refused(
        valet.port(),
        &[("user", "postgres"), ("database", "postgres")],
    );
    assert_eq!(error.sqlstate(), "08006");
}

#[test]
fn cancel_keys_of_4_to_256_bytes_come_back_as_they_were() {
    if no_valet() {
        return;
    }
    for length in [4, 32, 256] {
        let pretender = Pretender::start(Manners::Speaks { key: length });
        let valet = pretender.behind_valet();
        let mut client = Raw::connect(valet.port());
        assert_eq!(pretender.next(), [2]);
        client.send(&messages::query("SELECT 1"));
        let (pid, key) = (client.pid, client.key.clone());
        let expected = [&[0, 0, 0, 77][..], &vec![7; length]].concat();
        // The request has to arrive before its cancel means anything.
        eventually("the cancel arrives with the key", || {
            Raw::dial(valet.port()).send(&messages::cancel_request(pid, &key));
            pretender
                .heard
                .try_recv()
                .is_ok_and(|heard| heard == expected)
        });
    }
    for length in [3, 257] {
        let pretender = Pretender::start(Manners::Speaks { key: length });
        let valet = pretender.behind_valet();
        let error = Raw::refused(
            valet.port(),
            &[("user", "postgres"), ("database", "postgres")],
        );
        assert_eq!(error.sqlstate(), "08006", "{length}");
    }
}

#[test]
fn postgresql_18_is_spoken_to_in_3_2_and_cancels_work_on_both_legs() {
    let postgres = match Postgres::start_version(18, Auth::Trust, &[]) {
        Ok(postgres) => postgres,
        Err(why) => return skip(&format!("no PostgreSQL 18: {why}")),
    };
    let valet = Valet::front(&postgres);
    for (minor, length) in [(0_u32, 4), (2, 32)] {
        let mut client = Raw::dial(valet.port());
        let login = [("user", "postgres"), ("database", "postgres")];
        client.send(&messages::startup(0x0003_0000 | minor, &login));
        client.until_ready();
        assert_eq!(client.key.len(), length);
        client.send(&messages::query("SELECT pg_sleep(600)"));
        eventually("the statement runs", || {
            let running = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep%' AND wait_event = 'PgSleep'";
            postgres.sql(running) == "1"
        });
        Raw::dial(valet.port()).send(&messages::cancel_request(client.pid, &client.key));
        let answer = client.until_ready();
        assert_eq!(tags(&answer), "TEZ");
        let error = answer
            .iter()
            .find(|message| message.tag == b'E')
            .expect("an error");
        assert_eq!(error.sqlstate(), "57014");
    }
}
