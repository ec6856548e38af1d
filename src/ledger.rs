//! Owns the shared handle on the book of one data thread, and each session's mailbox.
//!
//! Refuses to touch a socket: whoever wants something of a session leaves an order, and the session's task obeys.

use std::cell::{Cell, Ref, RefCell, RefMut};
use std::net::SocketAddr;
use std::rc::Rc;
use std::task::Waker;

mod holders;
mod orders;

use holders::{Held, Holders};
pub use orders::{Order, Orders, Patience, ReturnOrder};

use crate::clock::Clock;
pub use crate::lease::Cause;
use crate::lease::history::{History, Look, Parked, Parks, Turns};
use crate::lease::reload::{Outcome, Pinned};
use crate::lease::rules::{Due, Policies};
use crate::lease::{Book, BookError, Event, LeaseState, Moment, Profile, SessionId, Slot};
use crate::net::stream::Spot;
use crate::wire::startup::CancelKey;

/// What a cancel request needs to know of the backend that a session holds.
#[derive(Debug)]
pub struct CancelTarget {
    /// PostgreSQL's key of the backend.
    pub key: CancelKey,
    /// When the backend was opened.
    pub born: Moment,
    /// This end of the connection; none for a unix socket.
    pub local: Option<SocketAddr>,
    /// Whether it is encrypted.
    pub encrypted: bool,
    /// Where it runs.
    pub spot: Spot,
    /// How many cancels are under way: the backend changes hands only at zero.
    pub in_flight: Cell<u32>,
    /// Who has it, or had it last.
    pub held: Cell<Option<Held>>,
}

#[derive(Debug, Default)]
struct Mailbox {
    orders: Orders,
    waker: Option<Waker>,
    /// The secret of our own BackendKeyData.
    secret: Box<[u8]>,
    target: Option<Rc<CancelTarget>>,
}

/// Randomness, taken from the system a kilobyte at a time.
#[derive(Default)]
struct Secrets(RefCell<Vec<u8>>);

impl Secrets {
    const STOCK: usize = 1024;

    /// A secret of `length` bytes, at most a kilobyte.
    fn draw(&self, length: usize) -> Box<[u8]> {
        let mut stock = self.0.borrow_mut();
        if stock.len() < length {
            stock.resize(Self::STOCK, 0);
            getrandom::fill(&mut stock).expect("the system gave randomness when pgvalet started");
        }
        let rest = stock.len() - length;
        stock.split_off(rest).into()
    }
}

impl std::fmt::Debug for Secrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secrets")
    }
}

/// The book and the mailboxes of one data thread.
#[derive(Debug)]
pub struct Ledger {
    clock: Clock,
    book: RefCell<Book>,
    mail: RefCell<Vec<Mailbox>>,
    /// The rules under which sessions are about to take a lease, one entry a session.
    acquiring: RefCell<Vec<usize>>,
    history: RefCell<History>,
    /// Those who rest, and of whom PostgreSQL may be asked ahead.
    unasked: RefCell<Vec<SessionId>>,
    secrets: Secrets,
    holders: Holders,
    /// Ids are dealt in steps of `stride` from here, so that shards never deal the same one.
    next: Cell<u32>,
    stride: u32,
}

impl Ledger {
    /// The ledger of shard number `shard` of `shards`.
    #[must_use]
    pub fn new(clock: Clock, shard: u32, shards: u32) -> Self {
        Self {
            clock,
            book: RefCell::default(),
            mail: RefCell::default(),
            acquiring: RefCell::default(),
            history: RefCell::default(),
            unasked: RefCell::default(),
            secrets: Secrets::default(),
            holders: Holders::default(),
            next: Cell::new(SessionId::FIRST + shard),
            stride: shards,
        }
    }

    /// Makes room for so many sessions: see [`Book::make_room`].
    pub fn make_room(&self, sessions: usize) {
        self.book.borrow_mut().make_room(sessions);
        self.mail.borrow_mut().reserve(sessions);
    }

    /// Which of `shards` deals this id.
    #[must_use]
    pub const fn shard_of(id: SessionId, shards: u32) -> u32 {
        id.get().wrapping_sub(SessionId::FIRST) % shards
    }

    /// The present moment, to the tick.
    #[must_use]
    pub fn now(&self) -> Moment {
        self.clock.now()
    }

    /// The clock.
    #[must_use]
    pub const fn clock(&self) -> Clock {
        self.clock
    }

    /// A key for the cancel requests of a new session, of so many bytes.
    pub fn draw_secret(&self, length: usize) -> Box<[u8]> {
        self.secrets.draw(length)
    }

    /// Enters a new session.
    pub fn open(&self, profile: Profile, secret: Box<[u8]>) -> (SessionId, Slot) {
        let mut book = self.book.borrow_mut();
        let mut id = SessionId::new(self.next.get());
        while book.find(id).is_some() {
            id = self.after(id);
        }
        self.next.set(self.after(id).get());
        let slot = book.open(id, profile, self.now());
        let mut mail = self.mail.borrow_mut();
        if mail.len() <= slot.index() {
            mail.resize_with(slot.index() + 1, Mailbox::default);
        }
        mail[slot.index()] = Mailbox {
            secret,
            ..Mailbox::default()
        };
        (id, slot)
    }

    fn after(&self, id: SessionId) -> SessionId {
        let next = id.get() + self.stride;
        let wrapped = SessionId::FIRST + (id.get() - SessionId::FIRST) % self.stride;
        SessionId::new(if next <= SessionId::LAST {
            next
        } else {
            wrapped
        })
    }

    /// Strikes a session out. Orders that it hasn't obeyed are answered: it is gone.
    pub fn close(&self, slot: Slot) {
        self.book.borrow_mut().close(slot);
        let left = std::mem::take(&mut self.mail.borrow_mut()[slot.index()]);
        if let Some(target) = &left.target {
            holders::left(target, self.now());
        }
        for order in left.orders {
            match order {
                Order::Return(order) => order.answer(Outcome::Gone),
                // Whoever asked may have stopped waiting.
                Order::Reap(reply) => drop(reply.send(Outcome::Gone)),
                Order::Drain
                | Order::End(_)
                | Order::EndIdle(_)
                | Order::Fence
                | Order::Lift
                | Order::Foresee(_) => {}
            }
        }
    }

    /// The book, to be read. Never held across an await.
    pub fn book(&self) -> Ref<'_, Book> {
        self.book.borrow()
    }

    /// The book, to be changed. Never held across an await.
    pub fn book_mut(&self) -> RefMut<'_, Book> {
        self.book.borrow_mut()
    }

    /// Takes one transition of a session's lease. Gives the state that it leaves, and when that was.
    ///
    /// # Errors
    /// The book's: always a defect of pgvalet.
    pub fn step(&self, slot: Slot, event: Event) -> Result<(LeaseState, Moment), BookError> {
        let (mut book, now) = (self.book.borrow_mut(), self.clock.now());
        let before = book.entry(slot).state;
        book.step(slot, event, now)?;
        Ok((before, now))
    }

    /// Leaves an order for a session, and wakes its task. `false` when there is no such session.
    pub fn order(&self, id: SessionId, order: Order) -> bool {
        let Some(slot) = self.book.borrow().find(id) else {
            return false;
        };
        let waker = {
            let mailbox = &mut self.mail.borrow_mut()[slot.index()];
            mailbox.orders.push(order);
            mailbox.waker.clone()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
        true
    }

    /// Takes the oldest order out of a session's mailbox.
    pub fn take_order(&self, slot: Slot) -> Option<Order> {
        self.mail.borrow_mut()[slot.index()].orders.pop()
    }

    /// Tells the mailbox whom to wake.
    pub fn attend(&self, slot: Slot, waker: &Waker) {
        let mailbox = &mut self.mail.borrow_mut()[slot.index()];
        if !mailbox
            .waker
            .as_ref()
            .is_some_and(|known| known.will_wake(waker))
        {
            mailbox.waker = Some(waker.clone());
        }
    }

    /// Wakes a session's task, so that it looks again whether it is at a quiet point.
    pub fn nudge(&self, id: SessionId) {
        let Some(slot) = self.book.borrow().find(id) else {
            return;
        };
        let waker = self.mail.borrow()[slot.index()].waker.clone();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Says which backend session `id` holds from here on: a cancel of the session reaches it.
    pub fn aim(&self, slot: Slot, id: SessionId, target: Rc<CancelTarget>) {
        self.holders.took(&target, id, self.now());
        self.mail.borrow_mut()[slot.index()].target = Some(target);
    }

    /// The session holds no backend any more.
    pub fn aim_at_nothing(&self, slot: Slot) {
        if let Some(target) = self.mail.borrow_mut()[slot.index()].target.take() {
            holders::left(&target, self.now());
        }
    }

    /// Which session sent what a listener on the backend `own` hears of process id `pid`, where that is beyond doubt.
    #[must_use]
    pub fn sender(&self, pid: u32, own: &CancelTarget) -> Option<SessionId> {
        self.holders.sender(pid, own)
    }

    /// The pid of PostgreSQL's process behind a session's lease.
    #[must_use]
    pub fn backend_pid(&self, slot: Slot) -> Option<u32> {
        self.mail.borrow()[slot.index()]
            .target
            .as_ref()
            .map(|target| target.key.pid)
    }

    /// What is known of the backend behind a session's lease.
    #[must_use]
    pub fn target(&self, slot: Slot) -> Option<Rc<CancelTarget>> {
        self.mail.borrow()[slot.index()].target.clone()
    }

    /// The key with which a session's client would cancel what it runs.
    #[must_use]
    pub fn cancel_key(&self, id: SessionId) -> Option<CancelKey> {
        let slot = self.book.borrow().find(id)?;
        let secret = self.mail.borrow()[slot.index()].secret.clone();
        Some(CancelKey {
            pid: id.get(),
            secret,
        })
    }

    /// The backend that a cancel request reaches: only with the right secret, and only while a request is unanswered.
    #[must_use]
    pub fn cancel_target(&self, key: &CancelKey) -> Option<(SessionId, Rc<CancelTarget>)> {
        let book = self.book.borrow();
        let id = SessionId::new(key.pid);
        let slot = book.find(id)?;
        let mail = self.mail.borrow();
        let mailbox = &mail[slot.index()];
        let right = mailbox.secret.len() == key.secret.len()
            && mailbox
                .secret
                .iter()
                .zip(&key.secret)
                .fold(0, |differ, (a, b)| differ | (a ^ b))
                == 0;
        let active = matches!(book.entry(slot).state, LeaseState::Active { .. });
        if right && active {
            Some((id, mailbox.target.clone()?))
        } else {
            None
        }
    }

    /// Where to look for sessions that were parked for too long.
    #[must_use]
    pub fn ripe(&self) -> Vec<Slot> {
        self.book.borrow().ripe(self.now())
    }

    /// Orders what the rules say about the sessions at these places that are parked.
    pub fn sweep(&self, places: &[Slot], policies: &Policies<'_>) {
        let overdue = self.book.borrow().overdue(places, self.now(), policies);
        for (id, due) in overdue {
            let order = match due {
                Due::End => Order::EndIdle(Cause::Parked),
                Due::Return(method) => Order::Return(ReturnOrder {
                    method,
                    pinned: Pinned::Spare,
                    cause: Cause::Parked,
                    patience: Patience::Now,
                    reply: None,
                }),
            };
            self.order(id, order);
        }
    }

    /// Begins to look who is parked now, for the memory of parks; and where to look.
    pub fn begin_look(&self) -> (Look, Vec<Slot>) {
        let mut book = self.book.borrow_mut();
        let stirred = book.take_stirred();
        let look = self.history.borrow_mut().begin(stirred, self.now());
        (look, book.restless())
    }

    /// Looks at some of those places; gives what is new.
    #[must_use]
    pub fn look_at(&self, look: &Look, places: &[Slot], policies: &Policies<'_>) -> Turns {
        let (book, now) = (self.book.borrow(), self.now());
        let mut seen = Vec::new();
        let parked = book.parked(places, now, policies);
        let parked = parked.map(|(slot, until, sight)| {
            seen.push((slot, until));
            sight
        });
        let turns = self.history.borrow_mut().see(look, parked, now);
        drop(book);
        let mut book = self.book.borrow_mut();
        let unasked = book.take_unasked(places, now, policies);
        self.unasked.borrow_mut().extend(unasked);
        for (slot, until) in seen {
            book.settle(slot, until);
        }
        turns
    }

    /// The sessions of which looks have found that PostgreSQL may be asked ahead of their return ([`Book::take_unasked`]).
    #[must_use]
    pub fn take_unasked(&self) -> Vec<SessionId> {
        self.unasked.take()
    }

    /// Every place was looked at; gives the parks that are over.
    #[must_use]
    pub fn end_look(&self, look: Look) -> Vec<Parked> {
        self.history.borrow_mut().finish(look, self.now())
    }

    /// What each owner's parks came to in the last hour.
    #[must_use]
    pub fn parks(&self) -> Vec<Parks> {
        self.history.borrow().last_hour(self.now())
    }

    /// Counts a session in that is about to take a lease under rule number `index`, until the value is dropped.
    pub fn reserve(self: &Rc<Self>, index: usize) -> Reserved {
        self.acquiring.borrow_mut().push(index);
        Reserved {
            ledger: self.clone(),
            index,
        }
    }

    /// How many sessions are about to take a lease under rule number `index`.
    #[must_use]
    pub fn reserved(&self, index: usize) -> usize {
        let acquiring = self.acquiring.borrow();
        acquiring.iter().filter(|known| **known == index).count()
    }
}

/// A session that is about to take a lease which a rule bounds.
#[derive(Debug)]
pub struct Reserved {
    ledger: Rc<Ledger>,
    index: usize,
}

impl Drop for Reserved {
    fn drop(&mut self) {
        let mut acquiring = self.ledger.acquiring.borrow_mut();
        if let Some(at) = acquiring.iter().position(|known| *known == self.index) {
            acquiring.swap_remove(at);
        }
    }
}
