//! Owns how a data thread runs its tasks: all of them its own, woken by its sockets, by each other, or from elsewhere.
//!
//! A task of a general runtime is woken through locks and counts that other threads may be at, and its sockets are armed
//! anew at each wait: more than a third of what the relay costs in user space. Here an event of the kernel's sets a flag
//! and queues a task, both in the thread's own memory. What is rarer stays tokio's: channels, and, on another thread's
//! runtime, timers and work that takes its time.

mod outbox;
mod reactor;
#[cfg(test)]
mod tests;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::task::JoinError;
use tokio::time::Instant;

use crate::clock::timers;

use reactor::{Door, Patience, Reactor};

pub use reactor::Registered;
#[cfg(test)]
pub(crate) use tests::on_executor;

/// How many polls there are at most between two looks at the sockets.
const TURN: usize = 256;

/// How long a rest is.
const REST: Duration = Duration::from_millis(1);

/// For how many tasks, and how many file descriptors, there is room without moving anything. Memory that nobody touches costs
/// nothing; a table that grows leaves its old place behind, which does.
const ROOM: usize = 16 << 10;

thread_local! {
    /// This thread's executor, while one runs.
    static HERE: RefCell<Option<Rc<Executor>>> = const { RefCell::new(None) };
}

/// What runs on one thread.
struct Executor {
    tasks: RefCell<Tasks>,
    /// Who is to be polled, in this order.
    due: RefCell<VecDeque<TaskId>>,
    /// Who is to be polled once sockets had their say.
    yielded: RefCell<Vec<Waker>>,
    /// Who is to be polled when its rest is over.
    resting: RefCell<Vec<(Instant, Waker)>>,
    reactor: Rc<Reactor>,
    elsewhere: Arc<Elsewhere>,
    lender: Handle,
}

/// Runs `future` on this thread, and what it spawns for as long as it runs; the rest is dropped then. Timers and work aside
/// are `lender`'s, which another thread runs.
///
/// # Errors
/// The system refused what is needed to wait for events, or the wait itself.
///
/// # Panics
/// On a thread that has an executor already.
pub fn block_on<T: 'static>(
    lender: Handle,
    future: impl Future<Output = T> + 'static,
) -> io::Result<T> {
    let occupied = HERE.with_borrow(Option::is_some);
    assert!(!occupied, "this thread has an executor");
    let reactor = Rc::new(Reactor::new()?);
    let door = reactor.door()?;
    let here = Rc::new(Executor {
        tasks: RefCell::new(Tasks {
            slots: Vec::with_capacity(ROOM),
            free: Vec::new(),
        }),
        due: RefCell::default(),
        yielded: RefCell::default(),
        resting: RefCell::default(),
        reactor,
        elsewhere: Arc::new(Elsewhere {
            woken: Mutex::default(),
            door,
        }),
        lender,
    });
    HERE.set(Some(here.clone()));
    let _leaving = Leaving;
    let given = Rc::new(Cell::new(None));
    let give = given.clone();
    let whole = here.spawn(Box::pin(async move { give.set(Some(future.await)) }));
    loop {
        here.poll_due();
        if let Some(output) = given.take() {
            return Ok(output);
        }
        if !here.tasks.borrow().has(whole) {
            return Err(io::Error::other("the thread's own task has panicked"));
        }
        here.wait()?;
    }
}

/// Ends the thread's executor, whatever way it is left.
struct Leaving;

impl Drop for Leaving {
    fn drop(&mut self) {
        let Some(here) = HERE.with_borrow(Option::clone) else {
            return;
        };
        // A task's end may spawn another.
        loop {
            let left = std::mem::take(&mut here.tasks.borrow_mut().slots);
            if left.is_empty() {
                break;
            }
            here.tasks.borrow_mut().free.clear();
            drop(left);
        }
        here.reactor.flush();
        HERE.set(None);
    }
}

/// Runs a future as a task of this thread. Without an executor it is dropped.
pub fn spawn(future: impl Future<Output = ()> + 'static) -> Task {
    let id = HERE.with_borrow(|here| {
        let here = here.as_ref()?;
        Some(here.spawn(Box::pin(future)))
    });
    Task(id)
}

/// A task, which goes on when this is dropped.
#[derive(Debug)]
pub struct Task(Option<TaskId>);

impl Task {
    /// Drops the task where it waits. A task that ends itself goes on to its next wait.
    pub fn abort(self) {
        let here = HERE.with_borrow(Option::clone);
        if let (Some(here), Some(id)) = (here, self.0) {
            let ended = here.tasks.borrow_mut().remove(id);
            drop(ended);
        }
    }
}

/// Does what takes its time, or waits for a file system, on another thread. Cancel safe: it goes on, unheard.
///
/// # Errors
/// It panicked, or the program is about to end.
#[expect(
    clippy::disallowed_methods,
    reason = "this is where a data thread's work goes"
)]
pub async fn aside<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, JoinError> {
    lent(|| tokio::task::spawn_blocking(work)).await
}

/// Makes something that only a general runtime has. It remembers where it was made.
pub(crate) fn lent<T>(make: impl FnOnce() -> T) -> T {
    let lender = HERE.with_borrow(|here| here.as_ref().map(|here| here.lender.clone()));
    let _place = lender.as_ref().map(Handle::enter);
    make()
}

/// Lets all other tasks that are due go first, and those whose sockets have something. Cancel safe.
pub async fn yield_now() {
    pause(wake_later).await;
}

/// Lets everybody else have the processor for a millisecond, in the middle of long work. To yield isn't enough: whoever works
/// on in one piece uses up its share, and where there are few processors, PostgreSQL or a client waits for one, for
/// milliseconds. Cancel safe.
pub async fn rest() {
    let over = timers::now() + REST;
    pause(|cx| {
        HERE.with_borrow(|here| match here {
            Some(here) => here.resting.borrow_mut().push((over, cx.waker().clone())),
            None => cx.waker().wake_by_ref(),
        });
    })
    .await;
}

/// Is pending once: whoever is told wakes the task.
async fn pause(tell: impl Fn(&Context<'_>)) {
    let mut paused = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut paused, true) {
            return Poll::Ready(());
        }
        tell(cx);
        Poll::Pending
    })
    .await;
}

/// Has the task polled again when all others that are due were, and those whose sockets have something.
pub fn wake_later(cx: &Context<'_>) {
    HERE.with_borrow(|here| match here {
        Some(here) => here.yielded.borrow_mut().push(cx.waker().clone()),
        None => cx.waker().wake_by_ref(),
    });
}

impl Executor {
    fn spawn(&self, future: Pin<Box<dyn Future<Output = ()>>>) -> TaskId {
        let id = self.tasks.borrow_mut().add(future, &self.elsewhere);
        self.due.borrow_mut().push_back(id);
        id
    }

    fn poll_due(&self) {
        for polls in 0..TURN {
            let mut due = self.due.borrow_mut();
            let Some(id) = due.pop_front() else {
                break;
            };
            // A program that is under test shall meet what a busy one does.
            let alone = polls == 0 && due.is_empty() && !cfg!(debug_assertions);
            self.reactor.note_alone(alone);
            drop(due);
            self.poll(id);
        }
        self.reactor.flush();
    }

    /// Takes events in: waits for them if nobody is due any more.
    #[inline]
    fn wait(&self) -> io::Result<()> {
        let idle = self.due.borrow().is_empty() && self.yielded.borrow().is_empty();
        let rests = !self.resting.borrow().is_empty();
        let knocked = self.reactor.wait(match (idle, rests) {
            (false, _) => Patience::None,
            (true, true) => Patience::Moment,
            (true, false) => Patience::Endless,
        })?;
        if knocked {
            self.let_in();
        }
        if rests {
            self.end_rests();
        }
        if !self.yielded.borrow().is_empty() {
            let yielded = self.yielded.take();
            yielded.into_iter().for_each(Waker::wake);
        }
        Ok(())
    }

    /// Wakes those whose rest is over.
    #[cold]
    fn end_rests(&self) {
        let now = timers::now();
        let mut resting = self.resting.borrow_mut();
        for (_, waker) in resting.extract_if(.., |(over, _)| *over <= now) {
            waker.wake();
        }
    }

    #[inline]
    fn poll(&self, id: TaskId) {
        let Some(mut running) = self.tasks.borrow_mut().take(id) else {
            return;
        };
        let mut context = Context::from_waker(&running.waker);
        let poll = AssertUnwindSafe(|| running.future.as_mut().poll(&mut context));
        match catch_unwind(poll) {
            Ok(Poll::Pending) => {
                let aborted = self.tasks.borrow_mut().put_back(id, running);
                drop(aborted);
                return;
            }
            Ok(Poll::Ready(())) => {}
            Err(_) => tracing::error!("a task has panicked: it is ended, all others go on"),
        }
        let place = self.tasks.borrow_mut().remove(id);
        drop((place, running));
    }

    /// Queues those whom other threads have woken.
    fn let_in(&self) {
        for id in self.elsewhere.take() {
            let bell = self.tasks.borrow().bell(id);
            if let Some(bell) = bell {
                // Whoever wakes it from now on does so anew; what was done before is seen by the poll.
                bell.rung.swap(false, Ordering::AcqRel);
                bell.queue(self);
            }
        }
    }
}

/// A task's name: no other task of the thread has it, ever again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct TaskId {
    place: u32,
    generation: u32,
}

#[derive(Default)]
struct Tasks {
    slots: Vec<Slot>,
    free: Vec<u32>,
}

#[derive(Default)]
struct Slot {
    generation: u32,
    /// None where nobody lives, and while it is polled.
    resting: Option<Running>,
    bell: Option<Arc<Bell>>,
}

struct Running {
    future: Pin<Box<dyn Future<Output = ()>>>,
    waker: Waker,
}

impl Tasks {
    fn add(
        &mut self,
        future: Pin<Box<dyn Future<Output = ()>>>,
        elsewhere: &Arc<Elsewhere>,
    ) -> TaskId {
        let place = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::default());
            u32::try_from(self.slots.len() - 1).unwrap_or(u32::MAX)
        });
        let slot = &mut self.slots[place as usize];
        let generation = slot.generation;
        let id = TaskId { place, generation };
        let bell = Arc::new(Bell {
            id,
            due: AtomicBool::new(true),
            rung: AtomicBool::new(false),
            elsewhere: elsewhere.clone(),
        });
        slot.bell = Some(bell.clone());
        slot.resting = Some(Running {
            future,
            waker: bell.into(),
        });
        id
    }

    fn slot(&mut self, id: TaskId) -> Option<&mut Slot> {
        let slot = self.slots.get_mut(id.place as usize)?;
        (slot.generation == id.generation).then_some(slot)
    }

    fn has(&self, id: TaskId) -> bool {
        self.bell(id).is_some()
    }

    fn bell(&self, id: TaskId) -> Option<Arc<Bell>> {
        let slot = self.slots.get(id.place as usize)?;
        slot.bell
            .clone()
            .filter(|_| slot.generation == id.generation)
    }

    /// To be polled.
    fn take(&mut self, id: TaskId) -> Option<Running> {
        let slot = self.slot(id)?;
        if let Some(bell) = &slot.bell {
            bell.due.store(false, Ordering::Relaxed);
        }
        slot.resting.take()
    }

    /// Gives it back if nobody wants it any more.
    fn put_back(&mut self, id: TaskId, running: Running) -> Option<Running> {
        match self.slot(id) {
            Some(slot) => {
                slot.resting = Some(running);
                None
            }
            None => Some(running),
        }
    }

    /// Frees the place. Whoever asks drops what was there, when nothing is borrowed: its end may do anything.
    fn remove(&mut self, id: TaskId) -> Option<Slot> {
        let slot = self.slot(id)?;
        let next = Slot {
            generation: slot.generation.wrapping_add(1),
            ..Slot::default()
        };
        let ended = std::mem::replace(slot, next);
        self.free.push(id.place);
        Some(ended)
    }
}

/// What wakes a task, from any thread.
struct Bell {
    id: TaskId,
    /// It is queued. Only its own thread reads and writes this.
    due: AtomicBool,
    /// Another thread has woken it, and it wasn't queued since.
    rung: AtomicBool,
    elsewhere: Arc<Elsewhere>,
}

impl Bell {
    /// On its own thread.
    fn queue(&self, here: &Executor) {
        if !self.due.load(Ordering::Relaxed) {
            self.due.store(true, Ordering::Relaxed);
            here.due.borrow_mut().push_back(self.id);
        }
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // A thread that is about to end may have forgotten already.
        let queued = HERE.try_with(|here| match &*here.borrow() {
            Some(here) if Arc::ptr_eq(&here.elsewhere, &self.elsewhere) => {
                self.queue(here);
                true
            }
            _ => false,
        });
        if !queued.unwrap_or(false) && !self.rung.swap(true, Ordering::AcqRel) {
            self.elsewhere.wake(self.id);
        }
    }
}

/// Where other threads leave word.
struct Elsewhere {
    woken: Mutex<Vec<TaskId>>,
    door: Door,
}

impl Elsewhere {
    fn wake(&self, id: TaskId) {
        let mut woken = self.woken.lock().unwrap_or_else(PoisonError::into_inner);
        woken.push(id);
        let first = woken.len() == 1;
        drop(woken);
        if first {
            self.door.knock();
        }
    }

    fn take(&self) -> Vec<TaskId> {
        std::mem::take(&mut self.woken.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
