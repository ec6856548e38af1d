//! Owns the ring of the last events, and those who follow them.
//!
//! A reader has a queue of its own. One that doesn't keep up is dropped, and told so: it slows nobody down.

#[cfg(test)]
mod tests;

use std::collections::{HashMap, VecDeque};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde::Serialize;
use tokio::sync::{mpsc, oneshot};

use crate::clock::Clock;
use crate::events::{Happening, Kind, Kinds, Told};
use crate::lease::Moment;
use crate::view::timestamp;

/// How many events are kept.
const KEPT: usize = 4096;
/// How much memory their texts may take together, in bytes.
const KEPT_BYTES: usize = 2 << 20;
/// How many events one reader may be behind.
const BEHIND: usize = 256;
/// How many readers there may be.
const READERS: usize = 64;
/// For so long faults of the same kind about the same thing are one event.
const ONCE_PER: Duration = Duration::from_secs(1);
/// How many such things are told apart.
const SUBJECTS: usize = 1000;

/// An event's id: which run of pgvalet, and which event of that run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventId {
    run: u64,
    number: u64,
}

impl std::fmt::Display for EventId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:x}-{}", self.run, self.number)
    }
}

/// A text that can't be an event's id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this is no id of an event")]
pub struct NoEventId;

impl FromStr for EventId {
    type Err = NoEventId;

    fn from_str(text: &str) -> Result<Self, NoEventId> {
        let (run, number) = text.split_once('-').ok_or(NoEventId)?;
        let run = u64::from_str_radix(run, 16).map_err(|_| NoEventId)?;
        let number = number.parse().map_err(|_| NoEventId)?;
        Ok(Self { run, number })
    }
}

/// An event as readers get it.
#[derive(Debug)]
pub struct Event {
    pub id: EventId,
    pub kind: Kind,
    /// A JSON object.
    pub data: String,
}

/// What a reader gets.
#[derive(Debug)]
pub struct Subscription {
    /// The last event that the reader can know: from here on it gets all.
    pub at: EventId,
    /// How many events are missing between the one that it knew and the first that it gets; `None` where nobody can tell.
    pub missed: Option<u64>,
    /// The events since the one that it knew.
    pub backlog: Vec<Arc<Event>>,
    /// What happens from now on.
    pub live: mpsc::Receiver<Arc<Event>>,
    /// Set when the reader was dropped, since it was too slow.
    pub dropped: Arc<AtomicBool>,
}

/// Why nobody may follow now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("{READERS} readers follow events already")]
    TooMany,
    #[error("pgvalet is shutting down")]
    Ending,
}

#[derive(Debug)]
struct Wish {
    after: Option<EventId>,
    kinds: Kinds,
    reply: oneshot::Sender<Result<Subscription, Refused>>,
}

/// Where readers ask for events. Clones ask the same hub.
#[derive(Clone, Debug)]
pub struct Desk(mpsc::Sender<Wish>);

impl Desk {
    /// Follows these kinds, after the event that the reader knows, or from now on.
    ///
    /// # Errors
    /// There are too many readers, or pgvalet is ending.
    pub async fn follow(
        &self,
        after: Option<EventId>,
        kinds: Kinds,
    ) -> Result<Subscription, Refused> {
        let (reply, answer) = oneshot::channel();
        let wish = Wish {
            after,
            kinds,
            reply,
        };
        self.0.send(wish).await.map_err(|_| Refused::Ending)?;
        answer.await.map_err(|_| Refused::Ending)?
    }
}

#[derive(Debug)]
struct Reader {
    kinds: Kinds,
    queue: mpsc::Sender<Arc<Event>>,
    dropped: Arc<AtomicBool>,
}

/// Keeps the last events, and passes new ones on.
#[derive(Debug)]
pub struct Hub {
    clock: Clock,
    told: Told,
    wishes: mpsc::Receiver<Wish>,
    /// The last event's id.
    last: EventId,
    ring: VecDeque<Arc<Event>>,
    /// The length of all texts in the ring, in bytes.
    bytes: usize,
    readers: Vec<Reader>,
    /// When a fault was last told, and how many of the same were not, since.
    faults: HashMap<(Kind, String), (Moment, u64)>,
}

/// What is written of an event.
#[derive(Serialize)]
struct Written<'a> {
    at: String,
    /// How many of the same came since the last that was told.
    #[serde(skip_serializing_if = "Option::is_none")]
    repeated: Option<u64>,
    #[serde(flatten)]
    what: &'a Happening,
}

impl Hub {
    /// A hub without a memory yet, and where readers ask.
    #[must_use]
    pub fn new(clock: Clock, told: Told) -> (Self, Desk) {
        let (sender, wishes) = mpsc::channel(READERS);
        let run = u64::try_from(clock.wall(clock.now()).as_micros()).unwrap_or_default();
        let hub = Self {
            clock,
            told,
            wishes,
            last: EventId { run, number: 0 },
            ring: VecDeque::new(),
            bytes: 0,
            readers: Vec::new(),
            faults: HashMap::new(),
        };
        (hub, Desk(sender))
    }

    /// Runs until nobody can tell anything any more.
    pub async fn run(mut self) {
        loop {
            tokio::select! {
                happening = self.told.receiver.recv() => match happening {
                    Some(happening) => self.take(&happening),
                    None => return,
                },
                Some(wish) = self.wishes.recv() => {
                    // Who asks follows what is told from now on: not what came before, and waits here.
                    while let Ok(happening) = self.told.receiver.try_recv() {
                        self.take(&happening);
                    }
                    let subscription = self.subscribe(wish.after, wish.kinds);
                    // A reader that has gone meanwhile is found out at the next event.
                    let _ = wish.reply.send(subscription);
                }
            }
        }
    }

    fn take(&mut self, happening: &Happening) {
        let lost = self.told.shared.lost.swap(0, Ordering::Relaxed);
        if lost > 0 {
            self.publish(&Happening::Lost { lost }, None);
        }
        match self.repeats(happening) {
            Repeats::Yes => {}
            Repeats::No(before) => self.publish(happening, before),
        }
    }

    /// Whether a fault was told just now.
    fn repeats(&mut self, happening: &Happening) -> Repeats {
        let Some(subject) = happening.subject() else {
            return Repeats::No(None);
        };
        let now = self.clock.now();
        if self.faults.len() >= SUBJECTS {
            self.faults.retain(|_, (at, _)| now.since(*at) < ONCE_PER);
        }
        let key = (happening.kind(), subject);
        if let Some((at, count)) = self.faults.get_mut(&key)
            && now.since(*at) < ONCE_PER
        {
            *count += 1;
            return Repeats::Yes;
        }
        let before = self.faults.insert(key, (now, 0));
        Repeats::No(before.map(|(_, count)| count).filter(|count| *count > 0))
    }

    fn publish(&mut self, what: &Happening, repeated: Option<u64>) {
        let written = Written {
            at: timestamp(&self.clock, self.clock.precise()),
            repeated,
            what,
        };
        let data = match serde_json::to_string(&written) {
            Ok(data) => data,
            Err(error) => return tracing::error!("an event can't be written: {error}"),
        };
        self.last.number += 1;
        let event = Arc::new(Event {
            id: self.last,
            kind: what.kind(),
            data,
        });
        self.bytes += event.data.len();
        self.ring.push_back(event.clone());
        while self.ring.len() > KEPT || self.bytes > KEPT_BYTES {
            let Some(oldest) = self.ring.pop_front() else {
                break;
            };
            self.bytes -= oldest.data.len();
        }
        let before = self.readers.len();
        self.readers.retain(|reader| reader.give(&event));
        if self.readers.len() != before {
            self.tell_who_follows();
        }
    }

    fn subscribe(&mut self, after: Option<EventId>, kinds: Kinds) -> Result<Subscription, Refused> {
        self.readers.retain(|reader| !reader.queue.is_closed());
        if self.readers.len() >= READERS {
            return Err(Refused::TooMany);
        }
        let (missed, backlog) = match after {
            None => (Some(0), Vec::new()),
            Some(after) => self.since(after, kinds),
        };
        let (queue, live) = mpsc::channel(BEHIND);
        let dropped = Arc::new(AtomicBool::new(false));
        self.readers.push(Reader {
            kinds,
            queue,
            dropped: dropped.clone(),
        });
        self.tell_who_follows();
        Ok(Subscription {
            at: self.last,
            missed,
            backlog,
            live,
            dropped,
        })
    }

    /// How many events behind `after` are forgotten, and the rest. Of another run nobody can tell how many.
    fn since(&self, after: EventId, kinds: Kinds) -> (Option<u64>, Vec<Arc<Event>>) {
        let known = after.run == self.last.run && after.number <= self.last.number;
        let oldest = self
            .ring
            .front()
            .map_or(self.last.number + 1, |event| event.id.number);
        let first = if known { after.number + 1 } else { 0 };
        let missed = known.then(|| oldest.saturating_sub(first));
        let rest = self.ring.iter();
        let rest = rest.filter(|event| event.id.number >= first && kinds.has(event.kind));
        (missed, rest.cloned().collect())
    }

    fn tell_who_follows(&self) {
        let all = self
            .readers
            .iter()
            .fold(0, |all, reader| all | reader.kinds.0);
        self.told.shared.followed.store(all, Ordering::Relaxed);
    }
}

enum Repeats {
    Yes,
    /// And how many before were not told.
    No(Option<u64>),
}

impl Reader {
    /// Passes an event on; `false` when the reader is gone, or dropped from here on.
    fn give(&self, event: &Arc<Event>) -> bool {
        if !self.kinds.has(event.kind) {
            return !self.queue.is_closed();
        }
        match self.queue.try_send(event.clone()) {
            Ok(()) => true,
            Err(mpsc::error::TrySendError::Closed(_)) => false,
            Err(mpsc::error::TrySendError::Full(_)) => {
                self.dropped.store(true, Ordering::Release);
                false
            }
        }
    }
}
