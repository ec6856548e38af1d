//! An upstream that logs in as PostgreSQL does, and then talks nonsense: to a client's request, to our own questions, and
//! unasked. The client hears of an outage, nothing of pgvalet's breaks, and the next one is served as well as can be.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

use crate::support::messages::{self, frame};
use crate::support::{Raw, Valet, no_valet};

/// How it answers.
#[derive(Clone, Copy)]
struct Manners {
    /// To a simple query.
    query: &'static [u8],
    /// To anything else: a client's extended protocol, or ours.
    other: &'static [u8],
}

/// CommandComplete and ReadyForQuery.
const FINE: &[u8] = b"C\0\0\0\x08SET\0Z\0\0\0\x05I";

/// ErrorResponse and ReadyForQuery.
const REFUSED: &[u8] = b"E\0\0\0\x1cSERROR\0C42501\0Mnot you\0\0Z\0\0\0\x05I";

fn start(manners: Manners, flags: &[&str]) -> Valet {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let port = listener.local_addr().expect("it is bound").port();
    std::thread::spawn(move || {
        for socket in listener.incoming().flatten() {
            // Who hangs up has heard enough.
            std::thread::spawn(move || drop(serve(socket, manners)));
        }
    });
    let url = format!("postgres://postgres@127.0.0.1:{port}/postgres?sslmode=disable");
    let flags = [&["--upstream", &url, "--auth", "trust"], flags].concat();
    Valet::serve(&flags).unwrap_or_else(|exit| panic!("{}", exit.log))
}

fn serve(mut socket: TcpStream, manners: Manners) -> std::io::Result<()> {
    let mut length = [0; 4];
    socket.read_exact(&mut length)?;
    let mut packet = vec![0; u32::from_be_bytes(length) as usize - 4];
    socket.read_exact(&mut packet)?;
    let mut login = frame(b'R', &[0; 4]);
    login.extend(frame(b'S', b"server_version\x0016.0\0"));
    login.extend(frame(b'S', b"client_encoding\0UTF8\0"));
    login.extend(frame(b'K', &[0, 0, 0, 9, 1, 2, 3, 4]));
    login.extend(frame(b'Z', b"I"));
    socket.write_all(&login)?;
    // It is polite to what pgvalet asks at first, until the client says something.
    let mut woken = false;
    loop {
        let mut header = [0; 5];
        socket.read_exact(&mut header)?;
        let [kind, length @ ..] = header;
        let mut body = vec![0; u32::from_be_bytes(length) as usize - 4];
        socket.read_exact(&mut body)?;
        let says = |words: &[u8]| body.windows(words.len()).any(|window| window == words);
        woken |= says(b"SELECT 1") || says(b"SELECT $1") || says(b"SET app.tenant");
        match kind {
            b'Q' if woken => socket.write_all(manners.query)?,
            b'Q' => socket.write_all(FINE)?,
            b'S' if woken => socket.write_all(manners.other)?,
            b'S' => socket.write_all(REFUSED)?,
            _ => {}
        }
    }
}

/// Messages that nothing good can be made of.
const NONSENSE: [&[u8]; 7] = [
    // Lengths below a message's own size, and beyond what PostgreSQL knows.
    b"D\0\0\0\x03",
    b"T\xff\xff\xff\xff",
    b"\0\0\0\0\0",
    b"HTTP/1.1 400 Bad Request\r\n\r\n",
    // A row that says to have more than it has, and a transaction status that nobody knows.
    b"D\0\0\0\x06\xff\xffZ\0\0\0\x05?",
    // Completions of what nobody asked for, and an error without an SQLSTATE.
    b"1\0\0\0\x043\0\0\0\x04W\0\0\0\x07\0\0\0E\0\0\0\x0eSERROR\0M\0\0Z\0\0\0\x05I",
    // More answers than questions.
    b"Z\0\0\0\x05IZ\0\0\0\x05TZ\0\0\0\x05EZ\0\0\0\x05I",
];

#[track_caller]
fn lives_on(valet: &Valet, nonsense: &[u8]) {
    drop(Raw::connect(valet.port()));
    let log = valet.log();
    assert!(!log.contains("panicked"), "{nonsense:?}: {log}");
}

#[test]
fn nonsense_in_the_middle_of_a_relay_ends_one_session_and_nothing_else() {
    if no_valet() {
        return;
    }
    for nonsense in NONSENSE {
        let manners = Manners {
            query: nonsense,
            other: nonsense,
        };
        let valet = start(manners, &[]);
        for request in [
            messages::query("SELECT 1"),
            messages::extended("SELECT $1", &["1"]),
        ] {
            let mut client = Raw::connect(valet.port());
            client.send(&request);
            // Where the stream can't be followed, the client is told.
            let length = u32::from_be_bytes(nonsense[1..5].try_into().expect("four bytes"));
            if !(4..0x4000_0000).contains(&length) {
                let error = client.until_error();
                assert_eq!(error.sqlstate(), "08006", "{nonsense:?}: {error:?}");
                client.assert_closed();
            } else {
                while client.try_next().is_some_and(|message| message.tag != b'Z') {}
                client.send_if_open(&messages::terminate());
            }
        }
        lives_on(&valet, nonsense);
    }
}

#[test]
fn nonsense_to_our_own_questions_is_never_taken_for_an_answer() {
    if no_valet() {
        return;
    }
    for nonsense in NONSENSE {
        let manners = Manners {
            query: FINE,
            other: nonsense,
        };
        let valet = start(
            manners,
            &["--mode", "transaction", "--acquire-timeout", "5s"],
        );
        let mut client = Raw::connect(valet.port());
        // The probe comes behind it.
        client.send(&messages::query("SET app.tenant = '7'"));
        client.until(b'Z');
        client.send_if_open(&messages::query("SELECT 1"));
        while let Some(message) = client.try_next() {
            if message.tag == b'E' {
                assert_eq!(message.sqlstate().len(), 5, "{nonsense:?}: {message:?}");
                break;
            }
            if message.tag == b'Z' {
                break;
            }
        }
        lives_on(&valet, nonsense);
    }
}
