//! Owns the one backend of a pool that listens for its detached sessions (`listening = "share"`), and what each shall hear.
//!
//! PostgreSQL keeps all notifications in one queue, in the order of commits. A marker is a notification of ours: it stands
//! at the same place of the queue for every backend that listens. Up to the marker one of two backends tells a session,
//! from there on the other one: so each notification is told once, and in order, whatever else goes on.
//!
//! The backend is the one of the session that needed it first; it goes when no session that came to it is left.

mod marks;
mod serve;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use crate::backend::listener::Notification;
use crate::backend::{Lent, Pool};
use crate::executor;

pub use marks::{Passed, hand_over, take_over};
use serve::serve;

/// How much a session may leave unread, in bytes, before it is closed.
pub const MOST_UNREAD: usize = 1 << 20;

/// How long the backend may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// The one backend of a pool that listens, as long as anybody holds this.
#[derive(Debug)]
pub struct Ears {
    inner: Rc<Inner>,
    orders: mpsc::UnboundedSender<Order>,
}

/// A session's place among those that the backend listens for. Dropped, it is given up.
#[derive(Debug)]
pub struct Ear {
    ears: Rc<Ears>,
    number: u64,
}

/// Why a session can't go on: it may have missed something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deaf {
    /// The backend that listened is gone.
    Lost,
    /// The client doesn't read: too much waits for it.
    Slow,
}

#[derive(Debug)]
struct Inner {
    /// The channel of the markers: its name is known to nobody else.
    channel: String,
    state: RefCell<State>,
}

#[derive(Debug, Default)]
struct State {
    sessions: BTreeMap<u64, Hearing>,
    /// The number of the next session.
    next: u64,
    lost: bool,
}

/// What one session shall hear.
#[derive(Debug, Default)]
struct Hearing {
    channels: BTreeSet<String>,
    /// What comes is the session's. Each marker turns it over.
    open: bool,
    /// The markers that are on their way, in their order.
    marks: VecDeque<String>,
    /// What came, as frames.
    heard: Vec<u8>,
    /// Something found no room.
    overflowed: bool,
    waker: Option<Waker>,
}

/// What is asked of the backend.
#[derive(Debug)]
enum Order {
    /// Listen on these channels, too. The reply is dropped where that fails.
    Listen(Vec<String>, oneshot::Sender<()>),
    /// Don't listen any more where nobody wants it.
    Tidy,
}

impl Ears {
    /// Makes a session's backend the one that listens: on those `channels` on which it does already, for that session
    /// first. What the backend tells goes on without a gap.
    ///
    /// The reply comes once it serves; it brings the backend back where PostgreSQL refuses.
    #[must_use]
    pub fn found(
        pool: &Rc<Pool>,
        lent: Lent,
        channels: BTreeSet<String>,
    ) -> (Ear, oneshot::Receiver<Result<(), Lent>>) {
        let (orders, received) = mpsc::unbounded_channel();
        let mut state = State::default();
        let hearing = Hearing {
            channels: channels.clone(),
            open: true,
            ..Hearing::default()
        };
        let number = state.enter(hearing);
        let inner = Rc::new(Inner {
            channel: format!("pgvalet_{}", random()),
            state: RefCell::new(state),
        });
        let ears = Rc::new(Self {
            inner: inner.clone(),
            orders,
        });
        pool.set_ears(&ears);
        let (served, reply) = oneshot::channel();
        let (pool, on) = (pool.clone(), channels);
        executor::spawn(serve(pool, lent, on, inner, received, served));
        (Ear { ears, number }, reply)
    }

    /// Whether its backend is gone.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.inner.state.borrow().lost
    }

    /// A place for one more session, which hears nothing yet.
    #[must_use]
    pub fn join(self: &Rc<Self>) -> Ear {
        let number = self.inner.state.borrow_mut().enter(Hearing::default());
        Ear {
            ears: self.clone(),
            number,
        }
    }

    /// The channel of the markers.
    #[must_use]
    pub fn channel(&self) -> &str {
        &self.inner.channel
    }
}

impl State {
    fn enter(&mut self, hearing: Hearing) -> u64 {
        let number = self.next;
        self.next += 1;
        self.sessions.insert(number, hearing);
        number
    }
}

impl Ear {
    /// Whose place it is.
    #[must_use]
    pub fn ears(&self) -> &Rc<Ears> {
        &self.ears
    }

    fn with<T>(&self, look: impl FnOnce(&mut Hearing) -> T) -> T {
        let mut state = self.ears.inner.state.borrow_mut();
        let hearing = state.sessions.get_mut(&self.number);
        look(hearing.expect("its place is given up with the value"))
    }

    /// The channels that it stands for.
    #[must_use]
    pub fn channels(&self) -> BTreeSet<String> {
        self.with(|hearing| hearing.channels.clone())
    }

    /// Has the backend listen on `channels` for this session, which hears nothing of it before the next marker. `false`
    /// where that fails. Cancel safe.
    pub async fn listen(&self, channels: &BTreeSet<String>) -> bool {
        let before =
            self.with(|hearing| std::mem::replace(&mut hearing.channels, channels.clone()));
        let (reply, done) = oneshot::channel();
        let order = Order::Listen(channels.iter().cloned().collect(), reply);
        let listens = self.ears.orders.send(order).is_ok() && done.await.is_ok();
        if !before.is_subset(channels) {
            // A backend that is gone listens to nothing.
            let _ = self.ears.orders.send(Order::Tidy);
        }
        listens
    }

    /// A new marker, which turns over who tells the session: to be sent on the other backend.
    #[must_use]
    pub fn mark(&self) -> String {
        let mark = format!("{}:{}", self.number, random());
        self.with(|hearing| hearing.marks.push_back(mark.clone()));
        mark
    }

    /// The last marker wasn't sent.
    pub fn unmark(&self) {
        self.with(|hearing| hearing.marks.pop_back());
    }

    /// What came for the session since it last asked, as frames.
    ///
    /// # Errors
    /// Something may have been missed, or will be.
    pub fn poll_heard(&self, cx: &mut Context<'_>) -> Poll<Result<Vec<u8>, Deaf>> {
        let lost = self.ears.is_lost();
        self.with(|hearing| {
            if hearing.overflowed {
                return Poll::Ready(Err(Deaf::Slow));
            }
            if !hearing.heard.is_empty() {
                return Poll::Ready(Ok(std::mem::take(&mut hearing.heard)));
            }
            if lost && hearing.relies() {
                return Poll::Ready(Err(Deaf::Lost));
            }
            hearing.attend(cx);
            Poll::Pending
        })
    }

    /// Whether so much waits that the session has to end, whether its client reads or not.
    pub fn is_overfull(&self, cx: &Context<'_>) -> bool {
        self.with(|hearing| {
            hearing.attend(cx);
            hearing.overflowed
        })
    }

    /// Waits until every marker has been seen; gives what came up to the last one.
    ///
    /// # Errors
    /// Something may have been missed.
    pub fn poll_marked(&self, cx: &mut Context<'_>) -> Poll<Result<Vec<u8>, Deaf>> {
        let lost = self.ears.is_lost();
        self.with(|hearing| {
            if hearing.overflowed {
                return Poll::Ready(Err(Deaf::Slow));
            }
            if hearing.marks.is_empty() {
                return Poll::Ready(Ok(std::mem::take(&mut hearing.heard)));
            }
            if lost {
                return Poll::Ready(Err(Deaf::Lost));
            }
            hearing.attend(cx);
            Poll::Pending
        })
    }
}

impl Drop for Ear {
    fn drop(&mut self) {
        let mut state = self.ears.inner.state.borrow_mut();
        state.sessions.remove(&self.number);
        drop(state);
        // A backend that is gone listens to nothing.
        let _ = self.ears.orders.send(Order::Tidy);
    }
}

impl Hearing {
    /// Whether it counts on the backend, now or once a marker has come.
    fn relies(&self) -> bool {
        self.open || !self.marks.is_empty()
    }

    fn attend(&mut self, cx: &Context<'_>) {
        match &mut self.waker {
            Some(waker) => waker.clone_from(cx.waker()),
            None => self.waker = Some(cx.waker().clone()),
        }
    }

    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    fn hear(&mut self, frame: &[u8]) {
        if self.heard.len() + frame.len() > MOST_UNREAD {
            self.overflowed = true;
        } else {
            self.heard.extend_from_slice(frame);
        }
        self.wake();
    }
}

impl Inner {
    /// Takes in what the backend told: a marker, or what is for all who want it.
    fn take(&self, notification: &Notification) {
        let mut state = self.state.borrow_mut();
        if notification.channel == self.channel {
            let mark = &notification.payload;
            let number = mark
                .split_once(':')
                .and_then(|(number, _)| number.parse().ok());
            let hearing = number.and_then(|number: u64| state.sessions.get_mut(&number));
            if let Some(hearing) = hearing
                && hearing.marks.front() == Some(mark)
            {
                hearing.marks.pop_front();
                hearing.open = !hearing.open;
                hearing.wake();
            }
            return;
        }
        let mut frame = Vec::new();
        for hearing in state.sessions.values_mut() {
            if hearing.open && hearing.channels.contains(&notification.channel) {
                if frame.is_empty() {
                    frame = notification.frame();
                }
                hearing.hear(&frame);
            }
        }
    }

    /// The backend is gone.
    fn lose(&self) {
        let mut state = self.state.borrow_mut();
        state.lost = true;
        for hearing in state.sessions.values_mut() {
            hearing.wake();
        }
    }

    /// Channels of `on` that nobody wants.
    fn unwanted(&self, on: &BTreeSet<String>) -> Vec<String> {
        let state = self.state.borrow();
        let wanted = |name: &&String| {
            let mut sessions = state.sessions.values();
            sessions.any(|hearing| hearing.channels.contains(*name))
        };
        on.iter().filter(|name| !wanted(name)).cloned().collect()
    }
}

/// A channel's name as PostgreSQL reads it.
fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// What nobody can guess.
fn random() -> String {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).expect("the system gave randomness when pgvalet started");
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
