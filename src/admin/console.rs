//! Owns the SQL console: the virtual databases `pgvalet` and `pgbouncer`, where people and programs that know PgBouncer
//! find its commands and columns.
//!
//! A guest was let in by the front door, and holds no backend. pgwire's server API answers, the simple protocol and the
//! extended one; the frames are cut and judged here first.

mod command;
mod config_rows;
mod frames;
mod handler;
mod orders;
mod shows;
mod stats;
mod table;

use std::collections::HashSet;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use pgwire::api::{ClientInfo, DefaultClient, NoopHandler, PgWireConnectionState};
use pgwire::messages::PgWireFrontendMessage;
use pgwire::tokio::server::{PgWireMessageServerCodec, process_error, process_message};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, copy, duplex, split};
use tokio::sync::Semaphore;
use tokio_util::codec::Framed;

use super::Desk;
use crate::clock::timers;
use crate::lease::Status;
use crate::session::{ConsoleDesk, Guest, Rank};
use crate::wire::reply::{self, ClientError, Fault};

use command::Command;
use frames::Bad;
use handler::Handler;
pub use stats::Averages;

/// How many guests there may be at once.
const MAX_GUESTS: usize = 100;
/// How many statements and portals one guest may name.
const MAX_NAMES: usize = 256;
/// How much of one direction is on its way between a guest and its answers, in bytes.
const PIPE: usize = 16 << 10;
/// How long a guest may take over its answers before it is let go.
const ANSWERING: Duration = Duration::from_secs(60);
/// The version whose console this one resembles: programs compare numbers.
const RESEMBLES: &str = "1.18.0";

type Wire = Framed<DuplexStream, PgWireMessageServerCodec<Command>>;

/// Serves guests of the console.
#[derive(Debug)]
pub struct Console {
    desk: Desk,
    averages: Arc<Averages>,
    places: Arc<Semaphore>,
}

impl Console {
    /// A console that looks and orders by way of `desk`.
    #[must_use]
    pub fn new(desk: Desk, averages: Arc<Averages>) -> Self {
        Self {
            desk,
            averages,
            places: Arc::new(Semaphore::new(MAX_GUESTS)),
        }
    }
}

impl ConsoleDesk for Console {
    fn serve(&self, mut guest: Guest) -> Pin<Box<dyn Future<Output = ()>>> {
        let place = self.places.clone().try_acquire_owned();
        let handler = Handler::new(&self.desk, self.averages.clone(), guest.rank);
        Box::pin(async move {
            let Ok(_place) = place else {
                let error = ClientError::new(Fault::Proxy, "53300", "too many guests already");
                // It may be gone already; then nobody is left to be told.
                let _ = guest.stream.write_all(&error.fatal()).await;
                return;
            };
            tracing::info!(user = %guest.user, application = %guest.application, "the console has a guest");
            if let Err(error) = host(guest, handler).await {
                tracing::debug!("a guest of the console left: {error}");
            }
        })
    }
}

/// Answers a guest until it leaves. pgwire may be on any thread, and a guest's stream is its thread's: between the two is a
/// pipe.
async fn host(mut guest: Guest, handler: Handler) -> std::io::Result<()> {
    guest.stream.write_all(&welcome(&guest)).await?;
    guest.stream.flush().await?;
    let secure = guest.stream.is_tls();
    let (near, far) = duplex(PIPE);
    let (mut hears, mut says) = split(guest.stream);
    let (mut answers, mut questions) = split(far);
    let inward = async {
        // Its end, whatever it was, is the end of the conversation.
        let _ = copy(&mut hears, &mut questions).await;
        let _ = questions.shutdown().await;
        std::future::pending::<()>().await;
    };
    let mut outward = pin!(copy(&mut answers, &mut says));
    let talked = tokio::select! {
        talked = converse(near, secure, handler) => talked,
        said = &mut outward => return said.map(drop),
        () = inward => Ok(()),
    };
    let said = timers::timeout(ANSWERING, outward).await;
    talked.and(said.map_err(|_| std::io::ErrorKind::TimedOut)?.map(drop))
}

async fn converse(near: DuplexStream, secure: bool, handler: Handler) -> std::io::Result<()> {
    let mut client = DefaultClient::new(([0, 0, 0, 0], 0).into(), secure);
    client.set_state(PgWireConnectionState::ReadyForQuery);
    let mut wire = Framed::new(near, PgWireMessageServerCodec::new(client));
    let (handler, noop) = (Arc::new(handler), Arc::new(NoopHandler));
    let mut names = HashSet::new();
    loop {
        let message = match frames::next(wire.get_mut()).await? {
            Ok(Some(message)) => message,
            Ok(None) => return Ok(()),
            Err(Bad { error, fatal: true }) => {
                wire.get_mut().write_all(&error.fatal()).await?;
                return wire.get_mut().flush().await;
            }
            Err(Bad { error, .. }) => {
                fail(&mut wire, handler::error(&error), true).await?;
                continue;
            }
        };
        let extended = message.is_extended_query();
        if let Err(error) = count(&mut names, &message) {
            fail(&mut wire, handler::error(&error), true).await?;
            continue;
        }
        let done = process_message(
            message,
            &mut wire,
            noop.clone(),
            handler.clone(),
            handler.clone(),
            noop.clone(),
            noop.clone(),
        )
        .await;
        if let Err(error) = done {
            fail(&mut wire, error, extended).await?;
        }
        if wire.write_buffer().len() > MAX_UNSENT {
            flush(&mut wire).await?;
        }
    }
}

/// How much may be answered ahead of a Sync or Flush, in bytes.
const MAX_UNSENT: usize = 1 << 20;

async fn flush(wire: &mut Wire) -> std::io::Result<()> {
    use futures_util::SinkExt;
    let flushed = SinkExt::<pgwire::messages::PgWireBackendMessage>::flush(wire);
    timers::timeout(ANSWERING, flushed)
        .await
        .map_err(|_| std::io::Error::from(std::io::ErrorKind::TimedOut))?
}

async fn fail(
    wire: &mut Wire,
    error: pgwire::error::PgWireError,
    until_sync: bool,
) -> std::io::Result<()> {
    process_error(wire, error, until_sync).await
}

/// Bounds the names that a guest gives to statements and portals.
fn count(
    names: &mut HashSet<(u8, String)>,
    message: &PgWireFrontendMessage,
) -> Result<(), ClientError> {
    let named = match message {
        PgWireFrontendMessage::Parse(parse) => parse.name.clone().map(|name| (b'S', name)),
        PgWireFrontendMessage::Bind(bind) => bind.portal_name.clone().map(|name| (b'P', name)),
        PgWireFrontendMessage::Close(close) => {
            if let Some(name) = close.name.clone() {
                names.remove(&(close.target_type, name));
            }
            None
        }
        _ => None,
    };
    let Some(named) = named else {
        return Ok(());
    };
    if names.len() >= MAX_NAMES && !names.contains(&named) {
        let text = "too many prepared statements and portals on the console";
        return Err(ClientError::new(Fault::Client, "53400", text));
    }
    names.insert(named);
    Ok(())
}

/// What a client is told once its login is done: parameters that drivers look for, a key, and that we are ready.
fn welcome(guest: &Guest) -> Vec<u8> {
    let version = format!("{RESEMBLES}/pgvalet");
    let is_operator = if guest.rank == Rank::Operator {
        "on"
    } else {
        "off"
    };
    let parameters = [
        ("server_version", version.as_str()),
        ("server_encoding", "UTF8"),
        ("client_encoding", "UTF8"),
        ("application_name", &guest.application),
        ("DateStyle", "ISO, MDY"),
        ("TimeZone", "UTC"),
        ("integer_datetimes", "on"),
        ("IntervalStyle", "postgres"),
        ("standard_conforming_strings", "on"),
        ("is_superuser", is_operator),
        ("session_authorization", &guest.user),
    ];
    let mut welcome = Vec::with_capacity(512);
    for (name, value) in parameters {
        reply::parameter_status(&mut welcome, name, value);
    }
    // Nothing that runs here can be cancelled: the key opens nothing.
    reply::backend_key_data(&mut welcome, 1, &[0; 4]);
    welcome.extend_from_slice(&reply::ready(Status::Idle));
    welcome
}

/// Reads one frame of at most this many bytes.
const MAX_FRAME: usize = 16 << 10;

/// The next frame's kind and body; none at the end of the connection.
async fn frame(stream: &mut DuplexStream) -> std::io::Result<Option<Result<(u8, BytesMut), Bad>>> {
    let mut header = [0; 5];
    if stream.read(&mut header[..1]).await? == 0 {
        return Ok(None);
    }
    stream.read_exact(&mut header[1..]).await?;
    let [kind, length @ ..] = header;
    let length = u32::from_be_bytes(length) as usize;
    if !(4..=MAX_FRAME).contains(&length) {
        return Ok(Some(Err(Bad::fatal(
            "a message of that length isn't for the console",
        ))));
    }
    let mut body = BytesMut::zeroed(length - 4);
    stream.read_exact(&mut body).await?;
    Ok(Some(Ok((kind, body))))
}
