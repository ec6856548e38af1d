//! Owns a data thread: its listeners, its sessions, and the commands that others send it.
//!
//! The thread shares nothing but messages: whoever wants to know or change something sends a command.

mod commands;
mod sample;

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::spawn_local;
use tokio::time::{MissedTickBehavior, interval};

use crate::backend::{Dialer, Pools, cancel};
use crate::clock::Clock;
use crate::config::Config;
use crate::drain::{Phase, Shutdown};
use crate::ledger::{Cause, Ledger, Order};
use crate::metrics::Metrics;
use crate::net::Bound;
use crate::net::listen::Listener;
use crate::net::tls::{ClientTls, Handshakes};
use crate::session::auth::Verifiers;
use crate::session::{CancelDesk, Scratch, Shared, serve, turn_away};
use crate::wire::reply::{ClientError, Fault};
use crate::wire::startup::CancelKey;

pub use commands::{ClaimWish, Command, Gone, OwnerParks, ReloadWish, Shards};

/// How often pools are tended.
const TEND_EVERY: Duration = Duration::from_secs(1);

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
    pub commands: mpsc::Receiver<Command>,
    pub shards: Shards,
    pub number: u32,
    pub shutdown: Shutdown,
}

/// How both legs are encrypted. Clones share the certificates, and the thread for handshakes.
#[derive(Clone, Debug)]
pub struct Transport {
    /// None where clients can't encrypt.
    pub clients: Option<ClientTls>,
    pub dialer: Dialer,
    pub handshakes: Handshakes,
}

/// Runs a data thread to its end, on a runtime of its own.
///
/// # Errors
/// The system refused a runtime or a listener.
pub fn run(parts: Parts) -> std::io::Result<()> {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder
        .enable_all()
        .build_local(tokio::runtime::LocalOptions::default())?;
    runtime.block_on(live(parts))
}

async fn live(parts: Parts) -> std::io::Result<()> {
    let Parts {
        config,
        clock,
        listeners,
        transport,
        verifiers,
        metrics,
        commands,
        shards,
        number,
        shutdown,
    } = parts;
    let ledger = Rc::new(Ledger::new(clock, number, shards.count()));
    let (count, place) = (shards.count() as usize, number as usize);
    let share_of = |whole: usize| whole / count + usize::from(place < whole % count);
    let share = share_of(config.max_backends);
    let pools = Rc::new(Pools::new(
        config.clone(),
        transport.dialer.clone(),
        clock,
        share,
    ));
    let desk = Desk {
        dialer: transport.dialer,
        ledger: ledger.clone(),
        shards,
        number,
    };
    let shared = Rc::new(Shared {
        config: config.clone(),
        max_sessions: share_of(config.max_sessions),
        ledger,
        pools,
        tls: transport.clients,
        handshakes: transport.handshakes,
        verifiers,
        metrics,
        scratch: Scratch::default(),
        cancels: Box::new(desk),
    });
    let mut accepting = Vec::new();
    for (place, bound) in listeners.into_iter().enumerate() {
        let listener = (place, Listener::new(bound)?);
        accepting.push(spawn_local(accept(
            shared.clone(),
            listener,
            shutdown.clone(),
        )));
    }
    let answering = spawn_local(commands::answer(shared.clone(), commands));
    let tending = spawn_local(tend(shared.clone()));
    drain(&shared, shutdown).await;
    for task in accepting.into_iter().chain([answering, tending]) {
        task.abort();
    }
    Ok(())
}

/// Takes connections in until pgvalet drains.
async fn accept(shared: Rc<Shared>, (place, listener): (usize, Listener), mut shutdown: Shutdown) {
    let accepting = async {
        loop {
            match listener.accept(shared.config.tcp_user_timeout).await {
                Ok((stream, peer)) if shared.ledger.book().len() < shared.max_sessions => {
                    spawn_local(serve(shared.clone(), stream, peer, place));
                }
                Ok((stream, _)) => {
                    let error =
                        ClientError::new(Fault::Proxy, "53300", "sorry, too many clients already")
                            .hint("`max_sessions` of pgvalet sets the bound.");
                    spawn_local(turn_away(shared.clone(), stream, error));
                }
                Err(error) => {
                    tracing::warn!("accept: {error}");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    };
    tokio::select! {
        () = accepting => {}
        () = shutdown.reached(Phase::Draining) => {}
    }
}

/// Tends pools, and orders what the rules say about parked sessions.
async fn tend(shared: Rc<Shared>) {
    let policies = shared.config.policies();
    let patience = policies.patience();
    let every = patience.map_or(TEND_EVERY, |patience| {
        (patience / 4).clamp(Duration::from_millis(50), TEND_EVERY)
    });
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut tended = shared.ledger.now();
    loop {
        ticks.tick().await;
        if patience.is_some() {
            shared.ledger.sweep(&policies);
        }
        let now = shared.ledger.now();
        if now.since(tended) >= TEND_EVERY / 2 {
            tended = now;
            shared.ledger.look(&policies);
            shared.pools.tend();
        }
    }
}

/// Waits for the end: sessions leave at their next quiet point, within `drain_timeout`.
async fn drain(shared: &Shared, mut shutdown: Shutdown) {
    shutdown.reached(Phase::Draining).await;
    let left = async {
        let mut told = std::collections::HashSet::new();
        let mut ticks = interval(Duration::from_millis(20));
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
        done = tokio::time::timeout(limit, left) => {
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
        let mut ticks = interval(Duration::from_millis(10));
        while !shared.ledger.book().is_empty() {
            ticks.tick().await;
        }
        // Sessions leave the book before their last words are said.
        ticks.tick().await;
        ticks.tick().await;
    };
    // Whoever doesn't take its last words by then goes without.
    let _ = tokio::time::timeout(CUTTING, gone).await;
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
    if let Err(error) = cancel::send(&dialer, &target.key).await {
        tracing::warn!(session = %id, "a cancel request could not be forwarded: {error}");
    }
    target.in_flight.set(0);
    ledger.nudge(id);
}
