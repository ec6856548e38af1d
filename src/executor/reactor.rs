//! Owns the wait for the kernel's events, and who is woken by them.
//!
//! Everything is registered edge by edge (`epoll(7)`, EPOLLET): an event says that something has changed, and what it said
//! stays true until a call finds nothing any more.

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

use super::HERE;

/// How many events are taken in at most before the tasks that they woke have their turn.
const EVENTS: usize = 1024;

/// The event that stands for other threads.
const DOOR: u64 = u64::MAX;

const READING: EventFlags = EventFlags::IN
    .union(EventFlags::RDHUP)
    .union(EventFlags::ET);

pub(super) struct Reactor {
    epoll: Rc<OwnedFd>,
    sources: RefCell<Sources>,
    events: RefCell<Vec<Event>>,
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

impl Reactor {
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            epoll: Rc::new(epoll::create(epoll::CreateFlags::CLOEXEC)?),
            sources: RefCell::default(),
            events: RefCell::new(Vec::with_capacity(EVENTS)),
        })
    }

    /// What ends the wait from another thread.
    pub fn door(&self) -> io::Result<Door> {
        let door = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let flags = EventFlags::IN | EventFlags::ET;
        epoll::add(&*self.epoll, &door, EventData::new_u64(DOOR), flags)?;
        Ok(Door(door))
    }

    /// Takes events in, and wakes whom they concern; waits for them if `idle`. Whether somebody knocked.
    #[inline]
    pub fn wait(&self, idle: bool) -> io::Result<bool> {
        const AT_ONCE: Timespec = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let mut events = self.events.borrow_mut();
        events.clear();
        let limit = if idle { None } else { Some(&AT_ONCE) };
        match epoll::wait(&*self.epoll, spare_capacity(&mut events), limit) {
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

/// What is known of a file descriptor, and whom to wake.
struct Source {
    /// There may be something to read.
    readable: Cell<bool>,
    /// There may be room.
    writable: Cell<bool>,
    /// The other side will send no more: there is an end to read.
    ended: Cell<bool>,
    /// Woken by each event, not only by the next: who reads for long needn't say so each time.
    reader: RefCell<Waker>,
    writer: RefCell<Option<Waker>>,
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
}

/// A file descriptor that doesn't block, registered with this thread's executor for reading; for writing from the first time
/// on that somebody had to wait for room. A new socket is always writable, and a unix socket becomes so each time that its
/// peer has read, which would wake us for nothing, once a message.
pub struct Registered<T: AsFd> {
    io: T,
    registration: Registration,
}

/// Ends with the file descriptor: closed, it is no part of the kernel's list any more.
struct Registration {
    source: Rc<Source>,
    key: u64,
    epoll: Rc<OwnedFd>,
    /// Whether it is registered for writing, too.
    both: Cell<bool>,
}

impl Drop for Registration {
    fn drop(&mut self) {
        let _ = HERE.try_with(|here| {
            if let Some(here) = &*here.borrow()
                && Rc::ptr_eq(&here.reactor.epoll, &self.epoll)
            {
                here.reactor.sources.borrow_mut().remove(self.key);
            }
        });
    }
}

impl<T: AsFd> Registered<T> {
    /// Registers it with the executor of this thread.
    ///
    /// # Errors
    /// The kernel's; `Unsupported` where no executor runs.
    pub fn new(io: T) -> io::Result<Self> {
        let here = HERE.with_borrow(Option::clone);
        let here = here.ok_or(io::ErrorKind::Unsupported)?;
        let reactor = &here.reactor;
        let source = Rc::new(Source {
            readable: Cell::new(false),
            writable: Cell::new(true),
            ended: Cell::new(false),
            reader: RefCell::new(Waker::noop().clone()),
            writer: RefCell::default(),
        });
        let registration = Registration {
            key: reactor.sources.borrow_mut().add(source.clone()),
            source,
            epoll: reactor.epoll.clone(),
            both: Cell::new(false),
        };
        let key = EventData::new_u64(registration.key);
        epoll::add(&*registration.epoll, &io, key, READING)?;
        Ok(Self { io, registration })
    }

    /// Takes it from the executor.
    pub fn into_inner(self) -> T {
        // It is registered, and nothing else can go wrong.
        let _ = epoll::delete(&*self.registration.epoll, &self.io);
        self.io
    }

    #[must_use]
    pub fn get_ref(&self) -> &T {
        &self.io
    }

    /// Whether there is something to read, or an end, as far as anybody knows.
    #[inline]
    #[must_use]
    pub fn is_readable(&self) -> bool {
        let source = &*self.registration.source;
        source.readable.get() || source.ended.get()
    }

    /// Takes note that there was nothing more to read.
    #[inline]
    pub fn nothing_to_read(&self) {
        self.registration.source.readable.set(false);
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
        let mut reader = self.registration.source.reader.borrow_mut();
        if !reader.will_wake(cx.waker()) {
            reader.clone_from(cx.waker());
        }
    }

    /// Takes note that there was no room.
    pub fn no_room(&self) {
        self.registration.source.writable.set(false);
    }

    /// Waits until there is room, as far as anybody knows.
    ///
    /// # Errors
    /// The kernel's.
    pub fn poll_writable(&self, cx: &Context<'_>) -> Poll<io::Result<()>> {
        let registration = &self.registration;
        if registration.both.get() && registration.source.writable.get() {
            return Poll::Ready(Ok(()));
        }
        *registration.source.writer.borrow_mut() = Some(cx.waker().clone());
        if !registration.both.get() {
            // The kernel answers with an event for whatever is true now.
            let key = EventData::new_u64(registration.key);
            registration.source.writable.set(false);
            epoll::modify(
                &*registration.epoll,
                &self.io,
                key,
                READING | EventFlags::OUT,
            )?;
            registration.both.set(true);
        }
        Poll::Pending
    }
}

impl<T: AsFd> AsFd for Registered<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.io.as_fd()
    }
}

impl<T: AsFd + fmt::Debug> fmt::Debug for Registered<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.io.fmt(f)
    }
}
