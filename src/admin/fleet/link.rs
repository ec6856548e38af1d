//! Owns the connection to PostgreSQL over which a fleet talks, on a thread of its own: no data thread ever waits for it.

use std::io;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot, watch};

use crate::backend::connect::Login;
use crate::backend::listener::{Listener, Notification, literal};
use crate::backend::login::{Credentials, Proof};
use crate::backend::{Baseline, Dialer, Lost, Tokens};
use crate::clock::{Clock, timers};
use crate::config::Config;
use crate::drain::{Phase, Shutdown};
use crate::executor;

/// The first pause before another attempt, and the longest.
const PAUSES: [Duration; 2] = [Duration::from_millis(250), Duration::from_secs(15)];
/// How long PostgreSQL may take to answer a question of ours.
const PATIENCE: Duration = Duration::from_secs(5);
/// How many notifications may wait to be looked at.
const WAITING: usize = 256;

/// Where a fleet listens.
pub(super) const CHANNELS: [&str; 3] = [RELOAD, ANSWER, FLEET];
/// Reloads are asked for here.
pub(super) const RELOAD: &str = "pgvalet_reload";
/// They are answered here.
pub(super) const ANSWER: &str = "pgvalet_reload_answer";
/// Instances call the roll here.
pub(super) const FLEET: &str = "pgvalet_fleet";

/// Whether the link is up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Why not.
    Down(String),
    /// The pid of its backend.
    Up(u32),
}

/// What the link is asked.
enum Wish {
    Notify {
        channel: &'static str,
        payload: String,
        reply: oneshot::Sender<Result<(), String>>,
    },
    /// A question whose answer is one column of numbers.
    Numbers {
        sql: String,
        reply: oneshot::Sender<Result<Vec<u32>, String>>,
    },
}

/// The hand on the link. Clones hold the same.
#[derive(Clone, Debug)]
pub(super) struct Link {
    wishes: mpsc::Sender<Wish>,
    state: watch::Receiver<State>,
}

/// What the link's thread works with.
struct Work {
    config: Arc<Config>,
    dialer: Dialer,
    /// The passwords that commands give.
    tokens: Tokens,
    clock: Clock,
    instance: String,
    wishes: mpsc::Receiver<Wish>,
    state: watch::Sender<State>,
    heard: mpsc::Sender<Notification>,
}

impl Link {
    /// Starts the thread; gives what is heard.
    ///
    /// # Errors
    /// The system refused a thread.
    pub fn start(
        config: Arc<Config>,
        (dialer, tokens): (Dialer, Tokens),
        clock: Clock,
        instance: String,
        mut shutdown: Shutdown,
    ) -> io::Result<(Self, mpsc::Receiver<Notification>)> {
        let (wish, wishes) = mpsc::channel(64);
        let (said, state) = watch::channel(State::Down("not connected yet".to_owned()));
        let (hear, heard) = mpsc::channel(WAITING);
        let mut work = Work {
            config,
            dialer,
            tokens,
            clock,
            instance,
            wishes,
            state: said,
            heard: hear,
        };
        let lender = Handle::current();
        let whole = move || {
            executor::block_on(lender, async move {
                tokio::select! {
                    () = work.run() => {}
                    () = shutdown.reached(Phase::Ending) => {}
                }
            })
        };
        let named = thread::Builder::new().name("pgvalet-fleet".to_owned());
        named.spawn(move || {
            if let Err(error) = whole() {
                tracing::error!("the fleet's connection has no executor: {error}");
            }
        })?;
        let link = Self {
            wishes: wish,
            state,
        };
        Ok((link, heard))
    }

    /// Whether it is up.
    pub fn state(&self) -> State {
        self.state.borrow().clone()
    }

    /// Waits until it is up anew; `None` when the link's thread has ended. Cancel safe.
    pub async fn up(&mut self) -> Option<u32> {
        loop {
            self.state.changed().await.ok()?;
            if let State::Up(pid) = *self.state.borrow_and_update() {
                return Some(pid);
            }
        }
    }

    /// Tells everybody who listens.
    ///
    /// # Errors
    /// Why it can't, as text.
    pub async fn notify(&self, channel: &'static str, payload: String) -> Result<(), String> {
        let (reply, answer) = oneshot::channel();
        let wish = Wish::Notify {
            channel,
            payload,
            reply,
        };
        self.ask(wish, answer).await
    }

    /// Whether whoever has the backend `pid` now may do what our own role may.
    pub async fn may_force(&self, pid: u32) -> bool {
        let sql = format!(
            "SELECT 1 FROM pg_catalog.pg_stat_activity a, pg_catalog.pg_roles r WHERE a.pid = {pid} \
             AND r.rolname = CURRENT_USER AND pg_catalog.pg_has_role(a.usesysid, r.oid, 'MEMBER')"
        );
        self.numbers(sql).await.is_ok_and(|found| !found.is_empty())
    }

    /// Those of these backends that still exist.
    pub async fn alive(&self, pids: &[u32]) -> Result<Vec<u32>, String> {
        let list: Vec<String> = pids.iter().map(ToString::to_string).collect();
        let list = list.join(",");
        if list.is_empty() {
            return Ok(Vec::new());
        }
        let sql = format!("SELECT pid FROM pg_catalog.pg_stat_activity WHERE pid IN ({list})");
        self.numbers(sql).await
    }

    async fn numbers(&self, sql: String) -> Result<Vec<u32>, String> {
        let (reply, answer) = oneshot::channel();
        self.ask(Wish::Numbers { sql, reply }, answer).await
    }

    async fn ask<T>(
        &self,
        wish: Wish,
        answer: oneshot::Receiver<Result<T, String>>,
    ) -> Result<T, String> {
        let ending = || "pgvalet is shutting down".to_owned();
        self.wishes.send(wish).await.map_err(|_| ending())?;
        answer.await.map_err(|_| ending())?
    }
}

impl Work {
    /// Keeps the connection up for as long as anybody may want it.
    async fn run(&mut self) {
        let [mut pause, longest] = PAUSES;
        loop {
            let why = match self.connect().await {
                Ok(mut listener) => {
                    [pause, _] = PAUSES;
                    tracing::info!(instance = %self.instance, pid = listener.pid(), "the fleet is within reach");
                    self.state.send_replace(State::Up(listener.pid()));
                    match self.serve(&mut listener).await {
                        Ok(()) => return,
                        Err(error) => error.to_string(),
                    }
                }
                Err(why) => why,
            };
            let news = State::Down(why.clone());
            if *self.state.borrow() != news {
                tracing::warn!(instance = %self.instance, "the fleet is out of reach: {why}");
            }
            self.state.send_replace(news);
            if !self.pause(pause, &why).await {
                return;
            }
            pause = (pause * 2).min(longest);
        }
    }

    async fn connect(&self) -> Result<Listener, String> {
        let upstream = &self.config.upstream;
        let utf8 = ("client_encoding".to_owned(), "UTF8".to_owned());
        let application = format!("pgvalet fleet {}", self.instance);
        let credentials = Credentials::default();
        let token = self.tokens.of(&upstream.user);
        let proof = match token {
            Some(token) => {
                let token = token.current(self.config.connect_timeout).await;
                Proof::Password(token.map_err(|error| error.message)?)
            }
            // A file of users may be read for it: this thread has nothing else to do.
            None => {
                let secret = self.config.secret_for(&upstream.database, &upstream.user);
                credentials.proof(secret, false)
            }
        };
        let login = Login {
            dialer: &self.dialer,
            database: &upstream.database,
            user: &upstream.user,
            proof,
            credentials: &credentials,
            application: &application,
            baseline: Baseline([utf8].into()).into(),
            timeout: self.config.connect_timeout,
        };
        let listener = Listener::open(&login, self.clock).await;
        let mut listener = listener.map_err(|error| {
            if let (Some(token), "28P01" | "28000") = (token, &*error.code) {
                token.doubt();
            }
            error.message
        })?;
        // Unknown before PostgreSQL 14, and refused there without harm.
        let quiet = listener.ask("SET idle_session_timeout = 0").await;
        quiet.map_err(|error| error.to_string())?;
        let listens: String = CHANNELS
            .iter()
            .map(|name| format!("LISTEN {name};"))
            .collect();
        let answers = listener
            .ask(&listens)
            .await
            .map_err(|error| error.to_string())?;
        match answers.error {
            None => Ok(listener),
            Some(error) => Err(error.message),
        }
    }

    /// Hears and says; ends well when nobody holds the link any more.
    async fn serve(&mut self, listener: &mut Listener) -> Result<(), Lost> {
        let mut full = false;
        loop {
            tokio::select! {
                heard = listener.next() => {
                    // A flood must not grow in memory: what finds no room is not heard.
                    let lost = self.heard.try_send(heard?).is_err();
                    if lost && !full {
                        tracing::warn!("notifications come faster than they can be looked at: some are dropped");
                    }
                    full = lost;
                }
                wish = self.wishes.recv() => match wish {
                    None => return Ok(()),
                    Some(wish) => {
                        let done = timers::timeout(PATIENCE, carry_out(listener, wish)).await;
                        done.unwrap_or(Err(Lost::Late(PATIENCE)))?;
                    }
                }
            }
        }
    }

    /// Waits before the next attempt; `false` when nobody holds the link any more.
    async fn pause(&mut self, pause: Duration, why: &str) -> bool {
        let until = timers::now() + pause;
        loop {
            tokio::select! {
                () = timers::sleep_until(until) => return true,
                wish = self.wishes.recv() => {
                    // Whoever asked may have stopped waiting.
                    match wish {
                        None => return false,
                        Some(Wish::Notify { reply, .. }) => drop(reply.send(Err(why.to_owned()))),
                        Some(Wish::Numbers { reply, .. }) => drop(reply.send(Err(why.to_owned()))),
                    }
                }
            }
        }
    }
}

/// Not cancel safe: a question that is broken off loses the connection.
async fn carry_out(listener: &mut Listener, wish: Wish) -> Result<(), Lost> {
    // Whoever asked may have stopped waiting.
    match wish {
        Wish::Notify {
            channel,
            payload,
            reply,
        } => {
            let sql = format!(
                "SELECT pg_catalog.pg_notify('{channel}',{})",
                literal(&payload)
            );
            let error = listener.ask(&sql).await?.error;
            let _ = reply.send(error.map_or(Ok(()), |error| Err(error.message)));
        }
        Wish::Numbers { sql, reply } => {
            let answers = listener.ask(&sql).await?;
            let cells = answers.rows.into_iter().flatten().flatten();
            let numbers = cells.filter_map(|text| text.parse().ok()).collect();
            let _ = reply.send(
                answers
                    .error
                    .map_or(Ok(numbers), |error| Err(error.message)),
            );
        }
    }
    Ok(())
}
