//! Owns one client from accept to end: its login, its relay, and the returning of its lease.
//!
//! Only the session's own task touches its sockets: whoever wants its lease leaves an order in its mailbox.

mod adapt;
mod attach;
pub mod auth;
mod client;
mod console;
mod first;
mod handshake;
mod leg;
mod listening;
mod login;
mod naming;
mod proxied;
mod relay;
mod replication;
mod replies;
mod returning;
mod rules;
mod statements;
mod unnamed;
mod virtual_settings;

use std::cell::Cell;
use std::collections::BTreeSet;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Sleep;

use crate::backend::ears::Ear;
use crate::backend::survey::Edition;
use crate::backend::{Baseline, Grant, Lent, Parameters, Pool, Pools, State};
use crate::clock::timers;
use crate::config::Config;
use crate::events::Events;
use crate::executor;
use crate::lease::{Pins, SessionId, Slot};
use crate::ledger::{Ledger, Orders};
use crate::metrics::Metrics;
use crate::net::Stream;
use crate::net::listen::Peer;
use crate::net::tls::{ClientTls, Handshakes};
use crate::wire::cut::Cursor;
use crate::wire::extended::Statement;
use crate::wire::reply::ClientError;
use crate::wire::sql::Class;
use crate::wire::tracker::Tracker;

use adapt::Moving;
use auth::Verifiers;
use handshake::Greeted;
use leg::Spill;
use statements::Statements;
use virtual_settings::Virtuals;

/// How many texts of a lease are read in mode `session`; after more, PostgreSQL is asked what they have left.
const MOST_READ: u8 = 64;

/// How long a connection that is turned away may take to say hello.
const TURNING_AWAY: Duration = Duration::from_secs(2);

/// What all sessions of one data thread share.
#[derive(Debug)]
pub struct Shared {
    pub config: Arc<Config>,
    /// This thread's share of `max_sessions`.
    pub max_sessions: usize,
    pub ledger: Rc<Ledger>,
    pub pools: Rc<Pools>,
    /// None where clients can't encrypt.
    pub tls: Option<ClientTls>,
    pub handshakes: Handshakes,
    pub verifiers: Arc<Verifiers>,
    pub metrics: Arc<Metrics>,
    pub events: Events,
    /// The one buffer that every session reads into: no session owns one.
    pub scratch: Scratch,
    /// Whether a cancel reaches its session on another data thread.
    pub cancels: CancelRoute,
    /// Who serves the console.
    pub console: Arc<dyn ConsoleDesk>,
}

impl Shared {
    /// Asks sessions that keep a backend, since nobody waited for one, whether to return it now.
    pub fn nudge_deferred(&self, pool: &Pool) {
        for deferred in pool.deferred() {
            self.ledger.nudge(deferred);
        }
    }
}

pub use console::{ConsoleDesk, Guest, Rank};

/// Hands a cancel request to whoever knows the session.
pub type CancelRoute = Box<dyn CancelDesk>;

/// Where cancel requests go.
pub trait CancelDesk: std::fmt::Debug {
    /// Forwards the request; the returned future ends when it is no longer in flight.
    fn forward(
        &self,
        key: crate::wire::startup::CancelKey,
    ) -> std::pin::Pin<Box<dyn Future<Output = ()>>>;
}

/// A buffer that is lent for one read, and back before the task yields.
pub struct Scratch(Cell<Option<Box<[u8]>>>);

impl Scratch {
    /// How much one read takes at most, in bytes.
    pub const SIZE: usize = 64 << 10;

    /// Lends the buffer.
    fn take(&self) -> Box<[u8]> {
        self.0
            .take()
            .unwrap_or_else(|| vec![0; Self::SIZE].into_boxed_slice())
    }

    fn put(&self, buffer: Box<[u8]>) {
        self.0.set(Some(buffer));
    }
}

impl std::fmt::Debug for Scratch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Scratch")
    }
}

impl Default for Scratch {
    fn default() -> Self {
        Self(Cell::new(Some(vec![0; Self::SIZE].into_boxed_slice())))
    }
}

/// Serves one connection to its end. `listener` is the place of its listener among those for clients.
pub async fn serve(shared: Rc<Shared>, stream: Stream, peer: Peer, listener: usize) {
    let limit = shared.config.login_timeout;
    let greet = Box::pin(greet(&shared, stream, peer, listener));
    let greeted = if limit.is_zero() {
        greet.await
    } else {
        match timers::timeout(limit, greet).await {
            Ok(greeted) => greeted,
            Err(_) => {
                tracing::info!("a client did not finish its login within login_timeout");
                return;
            }
        }
    };
    match greeted {
        // A task of its own: what the login needed is freed, and the session's future is as small as its life.
        Some(Greeted::Session(session)) => drop(executor::spawn(session.run())),
        Some(Greeted::Guest(guest)) => drop(executor::spawn(shared.console.serve(guest))),
        None => {}
    }
}

async fn greet(
    shared: &Rc<Shared>,
    mut stream: Stream,
    peer: Peer,
    listener: usize,
) -> Option<Greeted> {
    let peer = proxied::introduce(shared, &mut stream, peer).await?;
    handshake::greet(shared, stream, peer, listener).await
}

/// Turns one connection away with this error. Cancel requests are still carried out.
pub async fn turn_away(shared: Rc<Shared>, mut stream: Stream, peer: Peer, error: ClientError) {
    let turning = async {
        if proxied::introduce(&shared, &mut stream, peer)
            .await
            .is_some()
        {
            handshake::turn_away(&shared, stream, &error).await;
        }
    };
    // Whoever says nothing hears nothing.
    let _ = timers::timeout(TURNING_AWAY, turning).await;
}

/// One logged-in client.
#[derive(Debug)]
struct Session {
    shared: Rc<Shared>,
    pool: Rc<Pool>,
    id: SessionId,
    slot: Slot,
    client: Stream,
    /// The backend that is held, with the right to hold it.
    lent: Option<Lent>,
    tracker: Tracker,
    statements: Statements,
    /// Statements about our own settings.
    virtuals: Virtuals,
    /// Client to backend: where the scan stands, and what the backend's socket would not take yet.
    inbound: Cursor,
    to_backend: Spill,
    /// Backend to client.
    outbound: Cursor,
    to_client: Spill,
    phase: Phase,
    rare: Rare,
}

/// A session's memory is that of its sockets and this. The allocator gives 640 bytes to one that is any larger.
const _: () = assert!(size_of::<Session>() <= 512);

/// What the book says of the lease, as far as the relay must know without asking it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Requests are unanswered, and the book knows.
    Active,
    /// Every request is answered, or there is no lease.
    Resting,
}

/// Whose application_name a backend bears.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Name {
    /// The session's own.
    #[default]
    Own,
    /// A RESET was answered: what PostgreSQL reports next tells.
    Asked,
    /// That of whoever opened the backend: the session's own is due.
    Foreign,
}

/// A request that gets no backend.
#[derive(Debug)]
struct Refusal {
    error: ClientError,
    /// The error was sent; the request's ReadyForQuery wasn't.
    told: bool,
}

/// What a session needs at few moments of its life.
#[expect(
    clippy::struct_excessive_bools,
    reason = "facts that are independent of each other, each read alone"
)]
#[derive(Debug)]
struct Rare {
    baseline: Rc<Baseline>,
    /// The `application_name` of its startup packet: what RESET shall go back to.
    application: Rc<str>,
    /// Whether a RESET went back to the application_name of whoever opened the backend.
    name: Name,
    /// The backend was opened under another name than the session's own.
    guest: bool,
    /// A RESET that goes back to it was sent, and nothing behind it yet: what comes next must find the session's own name again.
    unnamed: bool,
    /// One was sent, and not everything is answered since.
    resetting: bool,
    /// What the client was told by ParameterStatus, while no backend is held.
    told: Rc<Parameters>,
    /// The session's settings, as the last probe found them.
    saved: Rc<State>,
    /// What its statements may have left since then.
    class: Class,
    trail: Trail,
    /// What it defined since then.
    defined: Defined,
    /// The text by which it changed roles in its transaction; empty where there were several.
    roles: Option<Box<[u8]>>,
    /// The last probe found something that pins it.
    pinned: bool,
    /// The backend that is held has just the session's own named statements, no others.
    at_home: bool,
    moving: Moving,
    /// The statement of the last Bind, where it isn't known what its rows look like: a Describe of its portal will tell.
    bound: Option<(Box<[u8]>, Rc<Statement>)>,
    /// Names of custom settings seen in its traffic.
    custom: Rc<BTreeSet<String>>,
    /// One of them outlasts `DISCARD ALL` in its backend, and others would notice.
    stains: bool,
    /// Pins that the probe can't see.
    sticky: Pins,
    /// Orders that wait for the next quiet point: one of each reload that is under way.
    waiting: Orders,
    /// How many reloads hold up its next request.
    fences: u16,
    /// A request was refused for want of a backend: everything up to its Sync is skipped.
    refusing: Option<Box<Refusal>>,
    /// The client closed its side while requests were unanswered: how long they are still awaited.
    client_closed: Option<Pin<Box<Sleep>>>,
    /// A request was answered since the mode last looked whether to return the lease.
    answered: bool,
    /// PostgreSQL itself told the client that the connection ends.
    told_fatal: bool,
    /// PostgreSQL has closed the connection, by itself: nothing runs there any more.
    backend_closed: bool,
    /// What the pool granted, on its way to `attach`.
    granted: Option<Box<Grant>>,
    /// Its place at the backend that listens for it while it has none itself.
    ear: Option<Box<Ear>>,
}

/// What a session has made or changed that others may run into.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Defined {
    #[default]
    Nothing,
    /// What runs expressions of texts that were read.
    Told,
    /// Anything.
    Untold,
}

/// How far the texts of a lease tell what they defined: none but what was read ran, and it named nothing that makes state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Tame {
    No,
    /// In expressions.
    Expressions,
    /// In the bodies of functions, too.
    Bodies,
}

/// What its `class` rests on.
#[derive(Debug)]
struct Trail {
    /// What was known of the database when the lease began.
    edition: Edition,
    /// In mode `session`: how many texts of this lease are still read.
    unread: u8,
    /// The unnamed statement was made in this lease, so that its text counts already.
    unnamed_is_read: bool,
    /// Something ran in this lease besides what opens and closes transactions.
    ran: bool,
    /// Statements whose literals could be read otherwise are here.
    readings_are_kept: bool,
    tame: Tame,
}

impl Default for Trail {
    fn default() -> Self {
        Self {
            edition: Edition::default(),
            unread: MOST_READ,
            unnamed_is_read: false,
            ran: false,
            readings_are_kept: false,
            tame: Tame::Bodies,
        }
    }
}

impl Rare {
    /// What a session begins with.
    fn new(
        application: Rc<str>,
        baseline: Rc<Baseline>,
        told: Rc<Parameters>,
        saved: Rc<State>,
    ) -> Self {
        Self {
            application,
            name: Name::Own,
            guest: false,
            unnamed: false,
            resetting: false,
            baseline,
            told,
            saved,
            class: Class::Read,
            trail: Trail::default(),
            defined: Defined::Nothing,
            roles: None,
            pinned: false,
            at_home: true,
            moving: Moving::default(),
            bound: None,
            custom: Rc::default(),
            stains: false,
            sticky: Pins::default(),
            waiting: Orders::default(),
            fences: 0,
            refusing: None,
            client_closed: None,
            answered: false,
            told_fatal: false,
            backend_closed: false,
            granted: None,
            ear: None,
        }
    }
}
