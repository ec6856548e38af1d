//! Owns the wait for the kernel's events, and who is woken by them.
//!
//! All but listeners are registered edge by edge (`epoll(7)`, EPOLLET): an event says that something has changed, and what it
//! said stays true until a call finds nothing any more.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, Event, EventData, EventFlags};
use rustix::event::{EventfdFlags, Timespec, eventfd};
use rustix::io::Errno;
use rustix::net::{SendFlags, Shutdown, send, shutdown};

use super::outbox::Outbox;
use super::{HERE, ROOM};

/// How many events are taken in at most before the tasks that they woke have their turn.
const EVENTS: usize = 1024;

/// The event that stands for other threads.
const DOOR: u64 = u64::MAX;

const READING: EventFlags = EventFlags::IN
    .union(EventFlags::RDHUP)
    .union(EventFlags::ET);

pub(super) struct Reactor {
    epoll: OwnedFd,
    sources: RefCell<Sources>,
    events: RefCell<Vec<Event>>,
    outbox: RefCell<Outbox>,
    /// Whether the task that is polled is the only one of its turn.
    alone: Cell<bool>,
}

/// What other threads knock at.
pub(super) struct Door(OwnedFd);

impl Door {
    /// Ends the wait.
    pub fn knock(&self) {
        // It can only fail once somebody has knocked 2^64 times: then it is awake.
        let _ = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
    }
}

/// How long to wait for events.
#[derive(Clone, Copy)]
pub enum Patience {
    /// Not at all.
    None,
    /// A millisecond.
    Moment,
    Endless,
}

const AT_ONCE: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 0,
};

/// A whole millisecond: a finer limit needs a system call that a sandbox may not know.
const MOMENT: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 1_000_000,
};

impl Reactor {
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            sources: RefCell::new(Sources {
                places: Vec::with_capacity(ROOM),
                free: Vec::new(),
            }),
            events: RefCell::new(Vec::with_capacity(EVENTS)),
            outbox: RefCell::new(Outbox::new()),
            alone: Cell::new(false),
        })
    }

    /// What ends the wait from another thread.
    pub fn door(&self) -> io::Result<Door> {
        let door = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let flags = EventFlags::IN | EventFlags::ET;
        epoll::add(&self.epoll, &door, EventData::new_u64(DOOR), flags)?;
        Ok(Door(door))
    }

    /// Takes events in, and wakes whom they concern; waits for them for so long. Whether somebody knocked.
    #[inline]
    pub fn wait(&self, patience: Patience) -> io::Result<bool> {
        let mut events = self.events.borrow_mut();
        events.clear();
        let spare = spare_capacity(&mut events);
        // One call for each, so that nothing is left to compute.
        let waited = match patience {
            Patience::Endless => epoll::wait(&self.epoll, spare, None),
            Patience::None => epoll::wait(&self.epoll, spare, Some(&AT_ONCE)),
            Patience::Moment => epoll::wait(&self.epoll, spare, Some(&MOMENT)),
        };
        match waited {
            Ok(_) => {}
            Err(Errno::INTR) => return Ok(false),
            Err(error) => return Err(error.into()),
        }
        let mut knocked = false;
        let sources = self.sources.borrow();
        for event in &*events {
            let (key, flags) = (event.data.u64(), event.flags);
            if key == DOOR {
                knocked = true;
            } else if let Some(source) = sources.find(key) {
                source.learn(flags);
            }
        }
        Ok(knocked)
    }

    /// Takes note whether others are polled in the turn of the task that is polled next.
    #[inline]
    pub fn note_alone(&self, alone: bool) {
        self.alone.set(alone);
    }

    /// Sends what the tasks of this turn have posted.
    #[inline]
    pub fn flush(&self) {
        let mut outbox = self.outbox.borrow_mut();
        if !outbox.is_empty() {
            outbox.flush();
        }
    }
}

/// Who is registered. An event that was under way when its source went names one that isn't there any more.
#[derive(Default)]
struct Sources {
    places: Vec<Place>,
    free: Vec<u32>,
}

#[derive(Default)]
struct Place {
    generation: u32,
    source: Option<Rc<Source>>,
}

impl Sources {
    fn add(&mut self, source: Rc<Source>) -> u64 {
        let index = self.free.pop().unwrap_or_else(|| {
            self.places.push(Place::default());
            u32::try_from(self.places.len() - 1).unwrap_or(u32::MAX)
        });
        let place = &mut self.places[index as usize];
        place.source = Some(source);
        (u64::from(place.generation) << 32) | u64::from(index)
    }

    fn find(&self, key: u64) -> Option<&Source> {
        let place = self.places.get(index(key))?;
        let source = place.source.as_deref();
        source.filter(|_| u64::from(place.generation) == key >> 32)
    }

    fn remove(&mut self, key: u64) {
        if let Some(place) = self.places.get_mut(index(key)) {
            place.source = None;
            // The highest is the door's.
            place.generation = (place.generation + 1) % u32::MAX;
            self.free.push((key & u64::from(u32::MAX)) as u32);
        }
    }
}

fn index(key: u64) -> usize {
    (key & u64::from(u32::MAX)) as usize
}

/// A file descriptor, what is known of it, and whom to wake.
pub(super) struct Source {
    fd: OwnedFd,
    /// There may be something to read.
    readable: Cell<bool>,
    /// There may be room.
    writable: Cell<bool>,
    /// The other side will send no more: there is an end to read.
    ended: Cell<bool>,
    /// Woken by each event, not only by the next: who reads for long needn't say so each time.
    reader: RefCell<Waker>,
    writer: RefCell<Option<Waker>>,
    /// How many messages of it are in the outbox.
    posted: Cell<u32>,
    /// What was posted, and didn't fit.
    stuck: RefCell<Box<[u8]>>,
}

impl Source {
    fn learn(&self, flags: EventFlags) {
        let over = EventFlags::HUP | EventFlags::ERR;
        if flags.intersects(over | EventFlags::RDHUP) {
            self.ended.set(true);
        }
        if flags.intersects(over | EventFlags::RDHUP | EventFlags::IN) {
            self.readable.set(true);
            self.reader.borrow().wake_by_ref();
        }
        if flags.intersects(over | EventFlags::OUT) {
            self.writable.set(true);
            if let Some(writer) = self.writer.take() {
                writer.wake();
            }
        }
    }

    /// Sends a message that was posted. What doesn't fit is kept, and the task woken: it learns of it by `is_stuck`.
    #[inline]
    pub fn send_posted(&self, bytes: &[u8]) {
        self.posted.set(self.posted.get() - 1);
        if !self.is_stuck() {
            match send(&self.fd, bytes, SendFlags::NOSIGNAL) {
                Ok(count) if count == bytes.len() => return,
                Ok(count) => self.keep(&bytes[count..]),
                Err(Errno::AGAIN) => self.keep(bytes),
                Err(_) => self.give_up(),
            }
        } else {
            self.keep(bytes);
        }
        self.reader.borrow().wake_by_ref();
    }

    #[cold]
    fn keep(&self, bytes: &[u8]) {
        self.writable.set(false);
        let mut stuck = self.stuck.borrow_mut();
        *stuck = [&stuck, bytes].concat().into();
    }

    /// Nothing may follow upon what was lost: both sides find the end of the connection.
    #[cold]
    fn give_up(&self) {
        // It is an end already, or there was no connection.
        let _ = shutdown(&self.fd, Shutdown::Both);
        self.ended.set(true);
    }

    #[inline]
    fn is_stuck(&self) -> bool {
        !self.stuck.borrow().is_empty()
    }
}

/// A file descriptor that doesn't block, registered with this thread's executor for reading; for writing from the first time
/// on that somebody had to wait for room. A new socket is always writable, and a unix socket becomes so each time that its
/// peer has read, which would wake us for nothing, once a message.
pub struct Registered {
    source: Rc<Source>,
    key: u64,
    reactor: Rc<Reactor>,
    /// Whether it is registered for writing, too.
    both: Cell<bool>,
}

/// It ends with the file descriptor: closed, it is no part of the kernel's list any more.
impl Drop for Registered {
    fn drop(&mut self) {
        self.reactor.sources.borrow_mut().remove(self.key);
    }
}

impl Registered {
    /// Registers it with the executor of this thread.
    ///
    /// # Errors
    /// The kernel's; `Unsupported` where no executor runs.
    pub fn new(fd: impl Into<OwnedFd>) -> io::Result<Self> {
        Self::with(fd.into(), READING)
    }

    /// Registers a listener. Events come for as long as somebody waits to be accepted: whoever has accepted one needn't ask
    /// whether there is another.
    ///
    /// # Errors
    /// The kernel's; `Unsupported` where no executor runs.
    pub fn listening(fd: impl Into<OwnedFd>) -> io::Result<Self> {
        Self::with(fd.into(), EventFlags::IN)
    }

    /// Has no events come any more, or again, of a listener.
    ///
    /// # Errors
    /// The kernel's.
    pub fn listen(&self, on: bool) -> io::Result<()> {
        let flags = if on {
            EventFlags::IN
        } else {
            EventFlags::empty()
        };
        epoll::modify(
            &self.reactor.epoll,
            self,
            EventData::new_u64(self.key),
            flags,
        )?;
        Ok(())
    }

    fn with(fd: OwnedFd, flags: EventFlags) -> io::Result<Self> {
        let here = HERE.with_borrow(Option::clone);
        let reactor = here.ok_or(io::ErrorKind::Unsupported)?.reactor.clone();
        let source = Rc::new(Source {
            fd,
            readable: Cell::new(false),
            writable: Cell::new(true),
            ended: Cell::new(false),
            reader: RefCell::new(Waker::noop().clone()),
            writer: RefCell::default(),
            posted: Cell::new(0),
            stuck: RefCell::default(),
        });
        let key = reactor.sources.borrow_mut().add(source.clone());
        let registered = Self {
            source,
            key,
            reactor,
            both: Cell::new(false),
        };
        let data = EventData::new_u64(key);
        epoll::add(&registered.reactor.epoll, &registered, data, flags)?;
        Ok(registered)
    }

    /// Takes it from the executor.
    ///
    /// # Errors
    /// The kernel's.
    pub fn into_inner(self) -> io::Result<OwnedFd> {
        self.reactor.flush();
        epoll::delete(&self.reactor.epoll, &self)?;
        self.source.fd.try_clone()
    }

    /// Whether there is something to read, or an end, as far as anybody knows.
    #[inline]
    #[must_use]
    pub fn is_readable(&self) -> bool {
        let source = &*self.source;
        source.readable.get() || source.ended.get()
    }

    /// Takes note that there was nothing more to read.
    #[inline]
    pub fn nothing_to_read(&self) {
        self.source.readable.set(false);
    }

    /// Whether there is something to read, as far as anybody knows; each event from now on wakes the task.
    #[inline]
    pub fn poll_readable(&self, cx: &Context<'_>) -> Poll<()> {
        self.wake(cx);
        if self.is_readable() {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }

    /// Each event from now on wakes this task, and no other.
    #[inline]
    fn wake(&self, cx: &Context<'_>) {
        let mut reader = self.source.reader.borrow_mut();
        if !reader.will_wake(cx.waker()) {
            reader.clone_from(cx.waker());
        }
    }

    /// Takes note that there was no room.
    pub fn no_room(&self) {
        self.source.writable.set(false);
    }

    /// Waits until there is room, as far as anybody knows.
    ///
    /// # Errors
    /// The kernel's.
    pub fn poll_writable(&self, cx: &Context<'_>) -> Poll<io::Result<()>> {
        let source = &*self.source;
        if self.both.get() && source.writable.get() {
            return Poll::Ready(Ok(()));
        }
        *source.writer.borrow_mut() = Some(cx.waker().clone());
        if !self.both.get() {
            // The kernel answers with an event for whatever is true now.
            let (key, flags) = (EventData::new_u64(self.key), READING | EventFlags::OUT);
            source.writable.set(false);
            epoll::modify(&self.reactor.epoll, self, key, flags)?;
            self.both.set(true);
        }
        Poll::Pending
    }

    /// Takes a short message in, which is sent once all tasks of this turn had their say, before whatever else is sent. If
    /// the connection is broken by then, reading finds its end. Whoever is alone in this turn needn't wait.
    #[inline]
    pub fn post(&self, bytes: &[u8]) -> bool {
        let source = &self.source;
        if self.reactor.alone.get()
            || source.is_stuck()
            || !self.reactor.outbox.borrow_mut().post(source, bytes)
        {
            return false;
        }
        source.posted.set(source.posted.get() + 1);
        true
    }

    /// Whether something that was posted didn't fit when it was its turn.
    #[inline]
    #[must_use]
    pub fn is_stuck(&self) -> bool {
        self.source.is_stuck()
    }

    /// Whether something that was posted isn't sent yet.
    #[must_use]
    pub fn owes(&self) -> bool {
        self.source.posted.get() > 0 || self.is_stuck()
    }

    /// Whether all that was posted is sent; what is still in the outbox goes now.
    ///
    /// # Errors
    /// The kernel's.
    #[inline]
    pub fn settle(&self) -> Result<bool, Errno> {
        if self.source.posted.get() > 0 {
            self.reactor.flush();
        }
        if self.is_stuck() {
            return self.send_stuck();
        }
        Ok(true)
    }

    #[cold]
    fn send_stuck(&self) -> Result<bool, Errno> {
        let mut stuck = self.source.stuck.borrow_mut();
        match send(&self.source.fd, &stuck, SendFlags::NOSIGNAL) {
            Ok(count) => *stuck = stuck[count..].into(),
            Err(Errno::AGAIN) => {}
            Err(error) => return Err(error),
        }
        if !stuck.is_empty() {
            self.no_room();
        }
        Ok(stuck.is_empty())
    }
}

impl AsFd for Registered {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.source.fd.as_fd()
    }
}

impl fmt::Debug for Registered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.source.fd.fmt(f)
    }
}
