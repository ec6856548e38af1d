//! Owns a data thread: its listeners, its sessions, and the commands that others send it.
//!
//! The thread shares nothing but messages: whoever wants to know or change something sends a command.

mod commands;
mod console;
mod fence;
mod foresight;
mod obey;
mod sample;
mod verify;

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;

use crate::backend::counts::Changes;
use crate::backend::{Dialer, Pools, Shares, Tokens, cancel};
use crate::clock::{Clock, timers};
use crate::config::Config;
use crate::drain::{Phase, Shutdown};
use crate::events::{Events, Happening};
use crate::executor;
use crate::lease::history::Turns;
use crate::ledger::{Cause, Ledger, Order};
use crate::metrics::Metrics;
use crate::net::Bound;
use crate::net::listen::Listener;
use crate::net::tls::{ClientTls, Handshakes};
use crate::session::auth::Verifiers;
use crate::session::{CancelDesk, ConsoleDesk, Scratch, Shared, serve, turn_away};
use crate::view::{self, LeaseView};
use crate::wire::reply::{ClientError, Fault};
use crate::wire::startup::CancelKey;

use foresight::Foresight;

pub use commands::{ClaimWish, Command, Gone, OwnerParks, ReloadWish, Shards};
pub use console::{Ask, BackendFigures, Change, PoolFigures, SessionFigures, Totals};
pub use verify::{Verdict, Verified};

/// How often pools are tended.
const TEND_EVERY: Duration = Duration::from_secs(1);

/// How many sessions are looked at before queries get their turn: some 100 µs.
const AT_A_STRETCH: usize = 128;

/// For how many sessions there is room without moving anything.
const ROOM: usize = 64 << 10;

/// How long to pause after an accept that failed: out of file descriptors must not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long the last words to sessions that are cut may take.
const CUTTING: Duration = Duration::from_secs(1);

/// What a data thread is made of.
#[derive(Debug)]
pub struct Parts {
    pub config: Arc<Config>,
    pub clock: Clock,
    pub listeners: Vec<Bound>,
    pub transport: Transport,
    pub verifiers: Arc<Verifiers>,
    pub metrics: Arc<Metrics>,
    pub events: Events,
    pub commands: mpsc::Receiver<Command>,
    pub shards: Shards,
    /// Who serves the console.
    pub console: Arc<dyn ConsoleDesk>,
    pub number: u32,
    pub shutdown: Shutdown,
    /// Whose timers the thread uses, and where it has work done that takes its time.
    pub timers: Handle,
}

/// How both legs are encrypted. Clones share the certificates, and the thread for handshakes.
#[derive(Clone, Debug)]
pub struct Transport {
    /// None where clients can't encrypt.
    pub clients: Option<ClientTls>,
    pub dialer: Dialer,
    /// The passwords that commands give.
    pub tokens: Tokens,
    pub handshakes: Handshakes,
    /// What sessions of any thread have defined.
    pub changes: Changes,
}

/// Runs a data thread to its end, on an executor of its own.
///
/// # Errors
/// The system refused an executor or a listener.
pub fn run(parts: Parts) -> std::io::Result<()> {
    executor::block_on(parts.timers.clone(), live(parts))?
}

async fn live(parts: Parts) -> std::io::Result<()> {
    let Parts {
        config,
        clock,
        listeners,
        transport,
        verifiers,
        metrics,
        events,
        commands,
        shards,
        console,
        number,
        shutdown,
        timers: _,
    } = parts;
    let ledger = Rc::new(Ledger::new(clock, number, shards.count()));
    let max_sessions = share_of(config.max_sessions, &shards, number);
    ledger.make_room(max_sessions.min(ROOM));
    let shares = shares(&config, &shards, number);
    let dialer = transport.dialer;
    let pools = Pools::new(
        config.clone(),
        (dialer.clone(), transport.tokens),
        transport.changes,
        clock,
        events.clone(),
        shares,
    );
    let desk = Desk {
        dialer,
        ledger: ledger.clone(),
        shards,
        number,
    };
    let shared = Rc::new(Shared {
        config: config.clone(),
        max_sessions,
        ledger,
        pools: Rc::new(pools),
        tls: transport.clients,
        handshakes: transport.handshakes,
        verifiers,
        metrics,
        events,
        scratch: Scratch::default(),
        cancels: Box::new(desk),
        console,
    });
    serve_until_drained(shared, listeners, commands, shutdown).await
}

async fn serve_until_drained(
    shared: Rc<Shared>,
    listeners: Vec<Bound>,
    commands: mpsc::Receiver<Command>,
    shutdown: Shutdown,
) -> std::io::Result<()> {
    let mut accepting = Vec::new();
    for (place, bound) in listeners.into_iter().enumerate() {
        let listener = (place, Listener::new(bound)?);
        accepting.push(executor::spawn(accept(
            shared.clone(),
            listener,
            shutdown.clone(),
        )));
    }
    let answering = executor::spawn(obey::answer(shared.clone(), commands));
    let tending = executor::spawn(tend(shared.clone()));
    drain(&shared, shutdown).await;
    for task in accepting.into_iter().chain([answering, tending]) {
        task.abort();
    }
    Ok(())
}

/// What the data thread of this number has of a bound.
fn share_of(whole: usize, shards: &Shards, number: u32) -> usize {
    let (count, place) = (shards.count() as usize, number as usize);
    whole / count + usize::from(place < whole % count)
}

fn shares(config: &Config, shards: &Shards, number: u32) -> Shares {
    Shares {
        pool: share_of(config.max_backends, shards, number),
        replication: config.max_replication.div_ceil(shards.count() as usize),
    }
}

/// Takes connections in until pgvalet drains.
async fn accept(shared: Rc<Shared>, (place, listener): (usize, Listener), mut shutdown: Shutdown) {
    let accepting = async {
        loop {
            match listener.accept().await {
                Ok((stream, peer)) if shared.ledger.book().len() < shared.max_sessions => {
                    executor::spawn(serve(shared.clone(), stream, peer, place));
                }
                Ok((stream, peer)) => {
                    let error =
                        ClientError::new(Fault::Proxy, "53300", "sorry, too many clients already")
                            .hint("`max_sessions` of pgvalet sets the bound.");
                    executor::spawn(turn_away(shared.clone(), stream, peer, error));
                }
                Err(error) => {
                    tracing::warn!("accept: {error}");
                    pause(&listener).await;
                }
            }
        }
    };
    tokio::select! {
        () = accepting => {}
        () = shutdown.reached(Phase::Draining) => {}
    }
}

/// Leaves those who connect waiting for a while, and isn't woken by them.
async fn pause(listener: &Listener) {
    let paused = listener.listen(false);
    timers::sleep(ACCEPT_PAUSE).await;
    if let Err(error) = paused.and_then(|()| listener.listen(true)) {
        tracing::error!("epoll: {error}");
    }
}

/// Tends pools, and orders what the rules say about parked sessions.
async fn tend(shared: Rc<Shared>) {
    let policies = shared.config.policies();
    let patience = policies.patience();
    let every = patience.map_or(TEND_EVERY, |patience| {
        (patience / 4).clamp(Duration::from_millis(50), TEND_EVERY)
    });
    let mut ticks = timers::interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut tended = shared.ledger.now();
    let foresight = Foresight::start(shared.clone());
    loop {
        ticks.tick().await;
        if patience.is_some() {
            sweep(&shared).await;
        }
        let now = shared.ledger.now();
        if now.since(tended) >= TEND_EVERY / 2 {
            tended = now;
            look(&shared).await;
            foresight.note(shared.ledger.take_unasked());
            shared.pools.tend();
            for pool in shared.pools.all() {
                shared.nudge_deferred(&pool);
            }
        }
    }
}

/// Orders what the rules say about parked sessions.
async fn sweep(shared: &Shared) {
    let policies = shared.config.policies();
    let places = shared.ledger.ripe();
    for (number, stretch) in places.chunks(AT_A_STRETCH).enumerate() {
        if number > 0 {
            executor::yield_now().await;
        }
        shared.ledger.sweep(stretch, &policies);
    }
}

/// Takes in who is parked now, and tells what is new about it.
async fn look(shared: &Shared) {
    let (ledger, policies) = (&shared.ledger, shared.config.policies());
    let (look, places) = ledger.begin_look();
    for (number, stretch) in places.chunks(AT_A_STRETCH).enumerate() {
        if number > 0 {
            executor::yield_now().await;
        }
        tell(shared, ledger.look_at(&look, stretch, &policies));
    }
    let ended = ledger.end_look(look);
    let began = Vec::new();
    tell(shared, Turns { began, ended });
}

/// Tells who parked, and whose park is over.
fn tell(shared: &Shared, turns: Turns) {
    let (ledger, policies) = (&shared.ledger, shared.config.policies());
    let (book, now) = (ledger.book(), ledger.now());
    for parked in turns.ended {
        let idle = now.since(parked.since);
        let slot = book.find(parked.session);
        shared.events.tell(Happening::Unparked {
            session: parked.session.get(),
            owner: parked.owner.to_string(),
            idle: view::duration(idle),
            idle_seconds: idle.as_secs_f64(),
            state: slot.map_or("gone", |slot| book.entry(slot).state.word()),
        });
    }
    for slot in turns.began.into_iter().filter_map(|id| book.find(id)) {
        let view = LeaseView::of(ledger, slot, &policies);
        shared.events.tell(Happening::Parked(Box::new(view)));
    }
}

/// Waits for the end: sessions leave at their next quiet point, within `drain_timeout`.
async fn drain(shared: &Shared, mut shutdown: Shutdown) {
    shutdown.reached(Phase::Draining).await;
    let left = async {
        let mut told = std::collections::HashSet::new();
        let mut ticks = timers::interval(Duration::from_millis(20));
        while !shared.ledger.book().is_empty() {
            ticks.tick().await;
            let ids = shared.ledger.book().ids();
            for id in ids.into_iter().filter(|id| told.insert(*id)) {
                shared.ledger.order(id, Order::Drain);
            }
        }
    };
    let limit = shared.config.drain_timeout;
    let limit = if limit.is_zero() {
        Duration::MAX
    } else {
        limit
    };
    tokio::select! {
        done = timers::timeout(limit, left) => {
            if done.is_err() {
                tracing::warn!(sessions = shared.ledger.book().len(), "drain_timeout is over: the rest is cut");
            }
        }
        () = shutdown.reached(Phase::Ending) => {}
    }
    cut(shared).await;
}

/// Ends every session that is left: its client is told, its statement cancelled.
async fn cut(shared: &Shared) {
    let ids = shared.ledger.book().ids();
    for id in ids {
        shared.ledger.order(id, Order::End(Cause::Drained));
    }
    let gone = async {
        let mut ticks = timers::interval(Duration::from_millis(10));
        while !shared.ledger.book().is_empty() {
            ticks.tick().await;
        }
        // Sessions leave the book before their last words are said.
        ticks.tick().await;
        ticks.tick().await;
    };
    // Whoever doesn't take its last words by then goes without.
    let _ = timers::timeout(CUTTING, gone).await;
}

/// Sends cancel requests to the session that they name, on whichever data thread it lives.
#[derive(Debug)]
struct Desk {
    dialer: Dialer,
    ledger: Rc<Ledger>,
    shards: Shards,
    number: u32,
}

impl CancelDesk for Desk {
    fn forward(&self, key: CancelKey) -> std::pin::Pin<Box<dyn Future<Output = ()>>> {
        let home = Ledger::shard_of(crate::lease::SessionId::new(key.pid), self.shards.count());
        if home != self.number {
            let shards = self.shards.clone();
            return Box::pin(async move { shards.cancel(home, key).await });
        }
        Box::pin(forward_here(self.dialer.clone(), self.ledger.clone(), key))
    }
}

/// Cancels what a session of this data thread runs. At most one cancel a backend is under way.
async fn forward_here(dialer: Dialer, ledger: Rc<Ledger>, key: CancelKey) {
    let Some((id, target)) = ledger.cancel_target(&key) else {
        return;
    };
    if target.in_flight.get() > 0 {
        return;
    }
    target.in_flight.set(1);
    if let Err(error) = cancel::send(&dialer, &target).await {
        tracing::warn!(session = %id, "a cancel request could not be forwarded: {error}");
    }
    target.in_flight.set(0);
    ledger.nudge(id);
}
