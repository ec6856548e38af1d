//! Owns the fleet: every pgvalet that listens on the same database, found and asked over LISTEN and NOTIFY.
//!
//! Anybody who may connect to that database may speak on its channels. So a request from there may ask for what cuts
//! nothing, and for more only if its backend's role is a member of ours; nobody is answered twice; what is no request is
//! refused, and said once in the log. Nothing that is said is answered by a question: no storm comes of it.

mod course;
mod link;
mod messages;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc};

use self::link::{ANSWER, FLEET, Link, RELOAD, State};
use self::messages::{Answer, Presence, Roll};
use super::Desk;
use super::problem::Problem;
use crate::backend::listener::Notification;
use crate::backend::{Dialer, Tokens};
use crate::clock::Clock;
use crate::config::Config;
use crate::drain::Shutdown;
use crate::lease::Moment;

pub(super) use course::{FleetView, InstanceView, of, roll};

/// How many instances are remembered, and listened to for one answer.
const INSTANCES: usize = 1000;
/// How many reloads may run at the same time because somebody asked over NOTIFY.
const AT_ONCE: usize = 4;
/// How many notifications a second are looked at, in the long run.
const A_SECOND: u64 = 20;
/// How many requests are remembered, so that none is carried out twice.
const REMEMBERED: usize = 100;
/// How long those that are not known yet have to answer the roll.
const STRANGERS: Duration = Duration::from_millis(150);
/// How long an instance that is known may take to answer the roll.
const ROLL: Duration = Duration::from_secs(1);

/// What is heard, and has to be looked at.
pub type Heard = mpsc::Receiver<Notification>;

/// This instance's place in the fleet. Clones share it.
#[derive(Clone, Debug)]
pub struct Fleet(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    instance: String,
    /// Which run of this instance: ids of requests must not come again after a restart.
    run: u64,
    last: AtomicU64,
    link: Link,
    /// The other instances, by the pids of their backends: of those PostgreSQL itself says whether they exist.
    members: Mutex<BTreeMap<u32, String>>,
    /// Who waits for answers to which request.
    awaited: Mutex<HashMap<String, mpsc::Sender<Said>>>,
    seen: Mutex<VecDeque<String>>,
    running: Semaphore,
    allowance: Mutex<(Moment, u64)>,
    /// Garbage was heard already.
    complained: AtomicBool,
    clock: Clock,
}

/// What an instance said, and which backend said it.
#[derive(Clone, Debug)]
enum Said {
    Answer(u32, Answer),
    Here(u32, Presence),
}

impl Fleet {
    /// Joins the fleet; gives what is heard, for [`listen`].
    ///
    /// # Errors
    /// The system refused a thread.
    pub fn join(
        config: Arc<Config>,
        way: (Dialer, Tokens),
        clock: Clock,
        shutdown: Shutdown,
    ) -> io::Result<(Self, Heard)> {
        let instance = config.instance();
        let (link, heard) = Link::start(config, way, clock, instance.clone(), shutdown)?;
        let run = u64::try_from(clock.wall(clock.now()).as_micros()).unwrap_or_default();
        let inner = Inner {
            instance,
            run,
            last: AtomicU64::new(0),
            link,
            members: Mutex::default(),
            awaited: Mutex::default(),
            seen: Mutex::default(),
            running: Semaphore::new(AT_ONCE),
            allowance: Mutex::new((clock.now(), A_SECOND)),
            complained: AtomicBool::new(false),
            clock,
        };
        Ok((Self(Arc::new(inner)), heard))
    }

    /// The id of a new request.
    fn number(&self) -> String {
        let number = self.0.last.fetch_add(1, Ordering::Relaxed) + 1;
        format!("{}/{:x}/{number}", self.0.instance, self.0.run)
    }

    fn members(&self) -> MutexGuard<'_, BTreeMap<u32, String>> {
        self.0
            .members
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// The pid of our own backend.
    ///
    /// # Errors
    /// The fleet is out of reach.
    fn own(&self) -> Result<u32, Problem> {
        match self.0.link.state() {
            State::Up(pid) => Ok(pid),
            State::Down(why) => Err(unreachable(&why)),
        }
    }

    /// The other instances whose backends still exist.
    async fn others(&self) -> Result<BTreeMap<u32, String>, Problem> {
        let known: Vec<u32> = self.members().keys().copied().collect();
        let alive = self
            .0
            .link
            .alive(&known)
            .await
            .map_err(|why| unreachable(&why))?;
        let mut members = self.members();
        members.retain(|pid, _| alive.contains(pid) || !known.contains(pid));
        Ok(members.clone())
    }

    fn meet(&self, pid: u32, instance: &str) {
        let mut members = self.members();
        if members.len() < INSTANCES || members.contains_key(&pid) {
            members.insert(pid, instance.to_owned());
        }
    }

    /// Hears what is said on this request from now on, until the value is dropped.
    fn await_answers(&self, id: &str) -> Awaited {
        let (sender, said) = mpsc::channel(2 * INSTANCES);
        let mut awaited = self
            .0
            .awaited
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        awaited.insert(id.to_owned(), sender);
        Awaited {
            fleet: self.clone(),
            id: id.to_owned(),
            said,
        }
    }

    fn pass_on(&self, id: &str, said: Said) {
        let awaited = self
            .0
            .awaited
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(sender) = awaited.get(id) {
            // A flood of answers is cut off.
            let _ = sender.try_send(said);
        }
    }

    /// Whether there is room for one more notification: a flood of them must not become a flood of work.
    fn may_look(&self) -> bool {
        let now = self.0.clock.now();
        let mut allowance = self
            .0
            .allowance
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let (since, left) = *allowance;
        let earned = u64::try_from(now.since(since).as_millis()).unwrap_or(u64::MAX);
        let earned = earned.saturating_mul(A_SECOND) / 1000;
        let left = left.saturating_add(earned).min(A_SECOND);
        let since = if earned > 0 { now } else { since };
        *allowance = (since, left.saturating_sub(1));
        left > 0
    }

    fn complain(&self, heard: &Notification, why: &str) {
        if self.0.complained.swap(true, Ordering::Relaxed) {
            tracing::debug!(channel = %heard.channel, pid = heard.pid, "refused a notification: {why}");
        } else {
            tracing::warn!(
                channel = %heard.channel, pid = heard.pid,
                "refused a notification: {why}; further ones are logged at level debug"
            );
        }
    }

    async fn say(&self, channel: &'static str, message: &impl serde::Serialize) {
        let payload = serde_json::to_string(message);
        let payload = payload.expect("our own messages are plain values");
        if let Err(error) = self.0.link.notify(channel, payload).await {
            tracing::warn!("the fleet can't be told: {error}");
        }
    }

    /// Whether this request comes for the first time.
    fn is_new(&self, id: &str) -> bool {
        let mut seen = self.0.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.iter().any(|known| known == id) {
            return false;
        }
        if seen.len() >= REMEMBERED {
            seen.pop_front();
        }
        seen.push_back(id.to_owned());
        true
    }
}

fn unreachable(why: &str) -> Problem {
    let status = axum::http::StatusCode::SERVICE_UNAVAILABLE;
    Problem::new(status, format!("the fleet is out of reach: {why}"))
}

/// The answers to one request.
struct Awaited {
    fleet: Fleet,
    id: String,
    said: mpsc::Receiver<Said>,
}

impl Drop for Awaited {
    fn drop(&mut self) {
        let mut awaited = self
            .fleet
            .0
            .awaited
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        awaited.remove(&self.id);
    }
}

/// Looks at what is heard, for as long as anything is; calls the roll each time that the fleet comes within reach.
pub async fn listen(desk: Desk, fleet: Fleet, mut heard: Heard) {
    let mut link = fleet.0.link.clone();
    loop {
        tokio::select! {
            said = heard.recv() => match said {
                Some(said) => look(&desk, &fleet, said),
                None => return,
            },
            up = link.up() => match up {
                Some(_) => {
                    fleet.members().clear();
                    let fleet = fleet.clone();
                    tokio::spawn(async move { fleet.call().await });
                }
                None => return,
            },
        }
    }
}

/// Looks at one notification; what takes longer goes on as a task.
fn look(desk: &Desk, fleet: &Fleet, heard: Notification) {
    let own = fleet.own().is_ok_and(|own| own == heard.pid);
    if own {
        return;
    }
    match heard.channel.as_str() {
        ANSWER => match Answer::read(&heard.payload) {
            Some(answer) => {
                let id = answer.id.clone().unwrap_or_default();
                fleet.pass_on(&id, Said::Answer(heard.pid, answer));
            }
            None => fleet.complain(&heard, "it is no answer"),
        },
        FLEET => match Roll::read(&heard.payload) {
            Some(Roll::Here { id, presence }) => {
                fleet.meet(heard.pid, &presence.instance);
                fleet.pass_on(&id, Said::Here(heard.pid, presence));
            }
            Some(Roll::Call { id, instance }) if fleet.may_look() => {
                fleet.meet(heard.pid, &instance);
                let (desk, fleet) = (desk.clone(), fleet.clone());
                tokio::spawn(async move { fleet.answer_roll(&desk, id).await });
            }
            Some(Roll::Call { .. }) => fleet.complain(&heard, "too many at a time"),
            None => fleet.complain(&heard, "it is no roll call"),
        },
        RELOAD if fleet.may_look() => course::obey(desk, fleet, heard),
        RELOAD => fleet.complain(&heard, "too many at a time"),
        _ => {}
    }
}

impl Fleet {
    async fn call(&self) -> String {
        let id = self.number();
        let instance = self.0.instance.clone();
        self.say(
            FLEET,
            &Roll::Call {
                id: id.clone(),
                instance,
            },
        )
        .await;
        id
    }

    async fn answer_roll(&self, desk: &Desk, id: String) {
        let presence = self.presence(desk).await;
        self.say(FLEET, &Roll::Here { id, presence }).await;
    }

    /// What we say of ourselves.
    async fn presence(&self, desk: &Desk) -> Presence {
        // While pgvalet ends there is nothing to tell.
        let sample = desk.shards.sample().await.unwrap_or_default();
        let count = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
        let sessions = sample.pools.iter().map(|pool| pool.sessions).sum();
        let leases = sample.pools.iter().flat_map(|pool| &pool.leases);
        Presence {
            instance: self.0.instance.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            sessions: count(sessions),
            leases: count(leases.map(|(_, held)| held).sum()),
            generation: sample.generation,
        }
    }
}
