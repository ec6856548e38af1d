//! Owns the first packets of a connection: requests for encryption, a cancel, or the startup packet.
//!
//! What was sent in clear ahead of an encryption is refused, never obeyed (CVE-2021-3935).

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::config::Tls;
use crate::net::Stream;
use crate::net::listen::Peer;
use crate::net::tls::{ALPN, Identity};
use crate::session::Shared;
use crate::wire::reply::{ClientError, Fault};
use crate::wire::startup::{self, BadPacket, First, Startup};

/// How many requests for encryption one connection may make.
const MAX_REQUESTS: usize = 4;

/// How much is read of a new connection at once, in bytes.
const FIRST: usize = 512;

/// The first byte of a TLS handshake: no startup packet is so long that it could begin like this.
const CLIENT_HELLO: u8 = 0x16;

/// A client's connection, before it is a session.
#[derive(Debug)]
pub(super) struct Line {
    pub stream: Stream,
    /// What the handshake was made with, where there was one.
    pub identity: Option<Arc<Identity>>,
    /// What goes out with whatever is said next: one system call, and one waking of the client, for both.
    pub held: Vec<u8>,
}

/// How the first packets ended.
pub(super) enum Opened {
    /// The client wants a session.
    Startup(Line, Startup),
    /// It wants nothing more, or is gone.
    Done,
    /// It shall hear why not.
    Refused(Line, ClientError),
}

/// What one packet asks for.
enum Asked {
    Startup(Startup),
    /// TLS from here on.
    Tls(How),
    Again,
    Done,
}

/// How TLS begins.
#[derive(Clone, Copy, PartialEq, Eq)]
enum How {
    /// By SSLRequest.
    Requested,
    /// By the first byte: PostgreSQL 17's direct negotiation, which demands ALPN.
    Direct,
}

impl Line {
    /// Says something together with what is said next.
    pub(super) fn hold(&mut self, bytes: &[u8]) {
        self.held.extend_from_slice(bytes);
    }

    /// Says something, to the last byte.
    pub(super) async fn say(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        if self.held.is_empty() {
            self.stream.write_all(bytes).await?;
        } else {
            self.hold(bytes);
            let all = std::mem::take(&mut self.held);
            self.stream.write_all(&all).await?;
        }
        self.stream.flush().await
    }
}

impl Line {
    /// Reads the length of a packet, and with it what a system call gives: mostly all of the packet. What an encrypted line
    /// has to say is read exactly.
    async fn read_to(&mut self, read: &mut Vec<u8>) -> std::io::Result<[u8; 4]> {
        const LENGTH: usize = size_of::<u32>();
        if let Some(socket) = self.stream.plain_mut() {
            read.resize(FIRST, 0);
            let count = match socket.receive_early(read) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => socket.read(read).await,
                early => early,
            };
            read.truncate(count?);
        }
        if read.len() < LENGTH {
            self.read_rest(read, LENGTH).await?;
        }
        let length = read.first_chunk();
        Ok(*length.expect("so much was read"))
    }

    /// Reads what is missing of a packet of `length` bytes. What is too much belongs to whoever reads next.
    async fn read_rest(&mut self, read: &mut Vec<u8>, length: usize) -> std::io::Result<()> {
        if let Some(socket) = self.stream.plain_mut()
            && read.len() > length
        {
            socket.unread(&read.split_off(length));
        }
        let from = read.len();
        read.resize(length, 0);
        self.stream.read_exact(&mut read[from..]).await?;
        Ok(())
    }
}

/// Reads up to the startup packet: encryption is agreed on or declined, a cancel request is carried out.
pub(super) async fn open(shared: &Shared, stream: Stream) -> Opened {
    let mut line = Line {
        stream,
        identity: None,
        held: Vec::new(),
    };
    for _ in 0..MAX_REQUESTS {
        match ask(shared, &mut line).await {
            Ok(Asked::Startup(startup)) => return Opened::Startup(line, startup),
            Ok(Asked::Done) => return Opened::Done,
            Ok(Asked::Again) => {}
            Ok(Asked::Tls(how)) => match encrypt(shared, line, how).await {
                Ok(encrypted) => line = encrypted,
                Err(end) => return end,
            },
            Err(error) => return Opened::Refused(line, error),
        }
    }
    let error = ClientError::new(Fault::Client, "08P01", "too many requests for encryption");
    Opened::Refused(line, error)
}

async fn ask(shared: &Shared, line: &mut Line) -> Result<Asked, ClientError> {
    let mut read = Vec::new();
    let Ok(length) = line.read_to(&mut read).await else {
        return Ok(Asked::Done);
    };
    if length[0] == CLIENT_HELLO && is_willing(shared, &line.stream) {
        if let Some(socket) = line.stream.plain_mut() {
            socket.unread(&read);
        }
        return Ok(Asked::Tls(How::Direct));
    }
    let length = match startup::packet_length(length) {
        Ok(length) => length,
        Err(error) => return turn_down(shared, &error),
    };
    if line.read_rest(&mut read, length).await.is_err() {
        return Ok(Asked::Done);
    }
    let first = match startup::read(&read[size_of::<u32>()..]) {
        Ok(first) => first,
        Err(error) => return turn_down(shared, &error),
    };
    match first {
        // Encrypted already: PostgreSQL, too, takes a second request for a strange version.
        First::Ssl if line.stream.is_tls() => Err(bad_packet(&BadPacket::Version {
            major: 1234,
            minor: 5679,
        })),
        First::Gssenc if line.stream.is_tls() => Err(bad_packet(&BadPacket::Version {
            major: 1234,
            minor: 5680,
        })),
        First::Ssl if is_willing(shared, &line.stream) => accept_request(line).await,
        First::Ssl | First::Gssenc => decline_request(line).await,
        First::Cancel(key) => {
            shared.cancels.forward(key).await;
            // libpq takes a TLS connection that ends without a goodbye for a failure.
            let _ = line.stream.shutdown().await;
            Ok(Asked::Done)
        }
        First::Startup(startup) => Ok(Asked::Startup(startup)),
    }
}

/// Unix sockets are never encrypted, as with PostgreSQL.
fn is_willing(shared: &Shared, stream: &Stream) -> bool {
    shared.tls.is_some() && matches!(stream, Stream::Tcp(_))
}

async fn accept_request(line: &mut Line) -> Result<Asked, ClientError> {
    refuse_haste(line).await?;
    Ok(match line.say(b"S").await {
        Ok(()) => Asked::Tls(How::Requested),
        Err(_) => Asked::Done,
    })
}

async fn decline_request(line: &mut Line) -> Result<Asked, ClientError> {
    refuse_haste(line).await?;
    Ok(match line.say(b"N").await {
        Ok(()) => Asked::Again,
        Err(_) => Asked::Done,
    })
}

/// CVE-2021-3935: what came before our answer to a request for encryption could be anybody's.
async fn refuse_haste(line: &mut Line) -> Result<(), ClientError> {
    let ahead = match line.stream.plain_mut() {
        Some(socket) => socket.receive_early(&mut [0]),
        None => line.stream.try_read(&mut [0]),
    };
    if matches!(ahead, Err(error) if error.kind() == ErrorKind::WouldBlock) {
        return Ok(());
    }
    // Who is gone already needs no answer.
    let _ = line.say(b"N").await;
    let text = "received unencrypted data after an encryption request";
    Err(ClientError::new(Fault::Client, "08P01", text))
}

async fn encrypt(shared: &Shared, line: Line, how: How) -> Result<Line, Opened> {
    let Some(tls) = &shared.tls else {
        return Err(Opened::Done);
    };
    let accepted = tls.accept(&shared.handshakes, line.stream).await;
    let (stream, identity) = accepted.map_err(|error| {
        // The client was told by an alert.
        shared.metrics.fault(Fault::Client, "08P01");
        tracing::info!("a client's TLS handshake failed: {error}");
        Opened::Done
    })?;
    let line = Line {
        stream,
        identity: Some(identity),
        held: Vec::new(),
    };
    if how == How::Direct && line.stream.alpn() != Some(ALPN) {
        let text = "direct TLS connection without the ALPN protocol \"postgresql\"";
        let error = ClientError::new(Fault::Client, "08P01", text);
        return Err(Opened::Refused(line, error));
    }
    Ok(line)
}

/// Whether a client may come in over this line, as pg_hba.conf would judge it, and in its words.
pub(super) fn judge(
    demand: Tls,
    line: &Line,
    peer: &Peer,
    (database, user): (&str, &str),
) -> Result<(), ClientError> {
    let Peer::Tcp(address) = peer else {
        return Ok(());
    };
    match demand {
        Tls::Disable | Tls::Allow => Ok(()),
        Tls::Require | Tls::Verify if !line.stream.is_tls() => {
            Err(unencrypted(*address, database, user))
        }
        Tls::Verify if line.stream.peer_certificate().is_none() => Err(ClientError::new(
            Fault::Client,
            "28000",
            "connection requires a valid client certificate",
        )),
        Tls::Require | Tls::Verify => Ok(()),
    }
}

fn unencrypted(address: SocketAddr, database: &str, user: &str) -> ClientError {
    let host = address.ip().to_canonical();
    let text = format!(
        "no pg_hba.conf entry for host \"{host}\", user \"{user}\", database \"{database}\", no encryption"
    );
    ClientError::new(Fault::Client, "28000", text)
        .hint("pgvalet's `tls` demands encryption: connect with sslmode=require or stronger.")
}

/// Whoever sends what can't be a first packet hears nothing, as with PostgreSQL: a driver that says goodbye at once awaits
/// no answer.
fn turn_down(shared: &Shared, error: &BadPacket) -> Result<Asked, ClientError> {
    let words = bad_packet(error);
    if *error != BadPacket::Length {
        return Err(words);
    }
    shared.metrics.fault(words.fault, &words.code);
    tracing::info!("a connection ends before its login: {error}");
    Ok(Asked::Done)
}

fn bad_packet(error: &BadPacket) -> ClientError {
    let code = match error {
        BadPacket::Version { .. } => "0A000",
        BadPacket::Length | BadPacket::Layout | BadPacket::Encoding => "08P01",
    };
    ClientError::new(Fault::Client, code, error.to_string())
}
