//! Owns the client's side of the wire: messages as bytes, and a connection that does no more work than it must.
//!
//! (PostgreSQL documentation, chapter 55.7.) Blocking, and without a driver: what a load generator costs is taken from
//! what is measured.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use crate::Failure;
use crate::scram::Scram;
use crate::tls::{Tls, TlsStream};

const PROTOCOL_3_0: u32 = 0x0003_0000;
const SSL_REQUEST: u32 = 80_877_103;

/// Where somebody listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A port of 127.0.0.1.
    Tcp(u16),
    /// The directory of a socket, and the port in its name.
    Unix(PathBuf, u16),
}

impl Address {
    /// As libpq wants it.
    pub fn host(&self) -> String {
        match self {
            Self::Tcp(_) => "127.0.0.1".to_owned(),
            Self::Unix(directory, _) => directory.display().to_string(),
        }
    }

    pub fn port(&self) -> u16 {
        match self {
            Self::Tcp(port) | Self::Unix(_, port) => *port,
        }
    }

    fn dial(&self) -> io::Result<Socket> {
        match self {
            Self::Tcp(port) => {
                let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, *port))?;
                stream.set_nodelay(true)?;
                Ok(Socket::Tcp(stream))
            }
            Self::Unix(directory, port) => {
                UnixStream::connect(directory.join(format!(".s.PGSQL.{port}"))).map(Socket::Unix)
            }
        }
    }
}

/// How a client logs in.
#[derive(Clone, Debug, Default)]
pub struct Login {
    /// With this password, by SCRAM-SHA-256; else it expects to be trusted.
    pub scram: Option<Scram>,
    /// Encrypted, where there is one.
    pub tls: Option<Tls>,
    /// `application_name`; "bench" by default.
    pub application: Option<&'static str>,
}

/// A connection, encrypted or not.
#[derive(Debug)]
pub enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
    Tls(Box<TlsStream>),
}

impl Read for Socket {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read(buffer),
            Self::Unix(stream) => stream.read(buffer),
            Self::Tls(stream) => stream.read(buffer),
        }
    }
}

impl Write for Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.write(bytes),
            Self::Unix(stream) => stream.write(bytes),
            Self::Tls(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.flush(),
            Self::Unix(stream) => stream.flush(),
            Self::Tls(stream) => stream.flush(),
        }
    }
}

/// A session of user and database `postgres`, ready for a query.
#[derive(Debug)]
pub struct Client {
    socket: Socket,
}

impl Client {
    pub fn connect(address: &Address, login: &Login) -> Result<Self, Failure> {
        let mut socket = address.dial()?;
        if let Some(tls) = &login.tls {
            socket.write_all(&[8u32.to_be_bytes(), SSL_REQUEST.to_be_bytes()].concat())?;
            let mut answer = [0];
            socket.read_exact(&mut answer)?;
            socket = match socket {
                Socket::Tcp(stream) if answer == *b"S" => Socket::Tls(Box::new(tls.over(stream)?)),
                Socket::Tcp(_) | Socket::Unix(_) | Socket::Tls(_) => {
                    return Err("it doesn't encrypt".into());
                }
            };
        }
        let mut client = Self { socket };
        client.send(&startup(login.application.unwrap_or("bench")))?;
        client.log_in(login.scram.as_ref())?;
        Ok(client)
    }

    fn log_in(&mut self, scram: Option<&Scram>) -> Result<(), Failure> {
        loop {
            let (tag, body) = self.message()?;
            let code = body.first_chunk().map(|code| u32::from_be_bytes(*code));
            match (tag, code, scram) {
                (b'R', Some(10), Some(scram)) => scram.answer(self)?,
                (b'R', Some(10), None) => return Err("a password is asked for".into()),
                (b'E', ..) => return Err(error_text(&body).into()),
                (b'Z', ..) => return Ok(()),
                _ => {}
            }
        }
    }

    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.socket.write_all(bytes)?;
        self.socket.flush()
    }

    /// One message. Reads no further than its end: for what isn't measured.
    pub fn message(&mut self) -> io::Result<(u8, Vec<u8>)> {
        let mut header = [0; 5];
        self.socket.read_exact(&mut header)?;
        let length = u32::from_be_bytes([header[1], header[2], header[3], header[4]]) as usize;
        let mut body = vec![0; length.saturating_sub(4)];
        self.socket.read_exact(&mut body)?;
        Ok((header[0], body))
    }

    /// Sends a request, and reads to its ReadyForQuery. `buffer` holds what one receive may bring.
    pub fn round_trip(&mut self, request: &[u8], buffer: &mut [u8]) -> Result<(), Failure> {
        self.send(request)?;
        self.until_ready(buffer).map(|_| ())
    }

    /// Reads to the next ReadyForQuery; the bytes that came.
    pub fn until_ready(&mut self, buffer: &mut [u8]) -> Result<u64, Failure> {
        let mut frames = Frames::default();
        let mut bytes = 0;
        loop {
            let count = self.socket.read(buffer)?;
            if count == 0 {
                return Err("the connection was closed".into());
            }
            bytes += count as u64;
            if frames.pass(&buffer[..count])? == Passed::Ready {
                return Ok(bytes);
            }
        }
    }

    /// Says goodbye, and waits until the other side has closed.
    pub fn goodbye(mut self) -> io::Result<()> {
        self.send(&frame(b'X', &[]))?;
        self.socket.read(&mut [0; 64]).map(|_| ())
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Passed {
    More,
    Ready,
}

/// Follows frames by their headers, whatever pieces they come in.
#[derive(Debug, Default)]
struct Frames {
    header: [u8; 5],
    /// How much of the header has come.
    have: usize,
    /// How much of the body is still to come.
    body: usize,
}

impl Frames {
    /// Ready once a ReadyForQuery has come whole. An ErrorResponse fails: a load is meant to succeed.
    fn pass(&mut self, mut bytes: &[u8]) -> Result<Passed, Failure> {
        while !bytes.is_empty() {
            if self.have < 5 {
                let count = bytes.len().min(5 - self.have);
                self.header[self.have..self.have + count].copy_from_slice(&bytes[..count]);
                self.have += count;
                bytes = &bytes[count..];
                if self.have < 5 {
                    break;
                }
                let [tag, a, b, c, d] = self.header;
                self.body = (u32::from_be_bytes([a, b, c, d]) as usize).saturating_sub(4);
                if tag == b'E' {
                    let text = error_text(&bytes[..self.body.min(bytes.len())]);
                    return Err(text.into());
                }
            }
            let count = bytes.len().min(self.body);
            self.body -= count;
            bytes = &bytes[count..];
            if self.body == 0 {
                self.have = 0;
                if self.header[0] == b'Z' {
                    return Ok(Passed::Ready);
                }
            }
        }
        Ok(Passed::More)
    }
}

/// The message of an ErrorResponse.
fn error_text(body: &[u8]) -> String {
    let mut fields = body.split(|&byte| byte == 0);
    let text = fields.find_map(|field| field.strip_prefix(b"M"));
    String::from_utf8_lossy(text.unwrap_or(b"an error without a message")).into_owned()
}

pub fn frame(tag: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).unwrap_or(u32::MAX);
    [&[tag], &length.to_be_bytes()[..], body].concat()
}

fn startup(application: &str) -> Vec<u8> {
    let pairs = format!("user\0postgres\0database\0postgres\0application_name\0{application}\0\0");
    let length = u32::try_from(8 + pairs.len()).unwrap_or(u32::MAX);
    let version = PROTOCOL_3_0.to_be_bytes();
    [&length.to_be_bytes(), &version, pairs.as_bytes()].concat()
}

pub fn query(sql: &str) -> Vec<u8> {
    frame(b'Q', &[sql.as_bytes(), &[0]].concat())
}

/// Parse, with the types of parameters left to PostgreSQL.
pub fn parse(name: &str, sql: &str) -> Vec<u8> {
    frame(
        b'P',
        &[name.as_bytes(), &[0], sql.as_bytes(), &[0, 0, 0]].concat(),
    )
}

/// Bind of one text parameter, Describe, Execute and Sync: what libpq sends for one statement.
pub fn run(name: &str, value: &str) -> Vec<u8> {
    let length = u32::try_from(value.len()).unwrap_or(u32::MAX);
    let bind = [
        &[0],
        name.as_bytes(),
        &[0, 0, 1, 0, 0, 0, 1],
        &length.to_be_bytes(),
        value.as_bytes(),
        &[0, 1, 0, 0],
    ];
    [
        frame(b'B', &bind.concat()),
        frame(b'D', b"P\0"),
        frame(b'E', &[0, 0, 0, 0, 0]),
        sync(),
    ]
    .concat()
}

pub fn sync() -> Vec<u8> {
    frame(b'S', &[])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_followed_whatever_pieces_it_comes_in() {
        let answer = [
            frame(b'D', &[7; 300]),
            frame(b'C', b"SELECT 1\0"),
            frame(b'Z', b"I"),
        ]
        .concat();
        for size in 1..answer.len() {
            let mut frames = Frames::default();
            let passed: Vec<Passed> = answer
                .chunks(size)
                .map(|piece| frames.pass(piece).unwrap())
                .collect();
            let (last, before) = passed.split_last().unwrap();
            assert_eq!(*last, Passed::Ready, "pieces of {size}");
            assert!(before.iter().all(|passed| *passed == Passed::More));
        }
    }

    #[test]
    fn an_error_ends_a_load() {
        let error = frame(b'E', b"SERROR\0C53300\0Mtoo many\0\0");
        let failure = Frames::default().pass(&error).unwrap_err();
        assert_eq!(failure.to_string(), "too many");
    }
}
