//! Round trips as pgbench makes them, each in one write, over TCP or a unix socket.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::Path;

use crate::support::DEADLINE;
use crate::support::messages::{bind, describe_portal, execute, parse, query, startup, sync};

/// How a query is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Simple,
    Extended,
    Prepared,
}

pub const PROTOCOLS: [Protocol; 3] = [Protocol::Simple, Protocol::Extended, Protocol::Prepared];

impl Protocol {
    /// What is sent once.
    fn before(self) -> Vec<u8> {
        match self {
            Self::Simple | Self::Extended => self.request(),
            Self::Prepared => [parse("p", "SELECT $1::int"), sync()].concat(),
        }
    }

    /// What is sent for each round trip.
    fn request(self) -> Vec<u8> {
        let run = |name| {
            let rest = [describe_portal(""), execute("", 0), sync()].concat();
            [bind("", name, &["7"]), rest].concat()
        };
        match self {
            Self::Simple => query("SELECT 7"),
            Self::Extended => [parse("", "SELECT $1::int"), run("")].concat(),
            Self::Prepared => run("p"),
        }
    }
}

trait Socket: Read + Write {}
impl<T: Read + Write> Socket for T {}

/// A session that has warmed up: the next round trips are like all further ones.
pub struct Warm {
    socket: Box<dyn Socket>,
    request: Vec<u8>,
}

impl Warm {
    pub fn over_tcp(port: u16, protocol: Protocol) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", port)).expect("somebody listens there");
        stream.set_nodelay(true).expect("nodelay can be set");
        stream
            .set_read_timeout(Some(DEADLINE))
            .expect("a timeout can be set");
        Self::up(Box::new(stream), protocol)
    }

    pub fn over_unix(directory: &Path, protocol: Protocol) -> Self {
        let path = directory.join(".s.PGSQL.6432");
        let stream = UnixStream::connect(path).expect("somebody listens there");
        stream
            .set_read_timeout(Some(DEADLINE))
            .expect("a timeout can be set");
        Self::up(Box::new(stream), protocol)
    }

    fn up(socket: Box<dyn Socket>, protocol: Protocol) -> Self {
        let request = protocol.request();
        let mut warm = Self { socket, request };
        let hello = startup(
            0x0003_0000,
            &[("user", "postgres"), ("database", "postgres")],
        );
        for bytes in [hello, protocol.before()] {
            warm.socket.write_all(&bytes).expect("the other side reads");
            warm.until_ready();
        }
        warm.round_trips(50);
        warm
    }

    pub fn round_trips(&mut self, count: usize) {
        for _ in 0..count {
            self.socket
                .write_all(&self.request)
                .expect("the other side reads");
            self.until_ready();
        }
    }

    fn until_ready(&mut self) {
        let mut answer = Vec::new();
        let mut buffer = [0; 4096];
        // A ReadyForQuery is the end of every answer here.
        while !answer.ends_with(b"Z\0\0\0\x05I") {
            let count = self.socket.read(&mut buffer).expect("an answer comes");
            assert!(count > 0, "the connection is closed: {answer:?}");
            answer.extend_from_slice(&buffer[..count]);
        }
    }
}
