//! Owns the course of a reload on one data thread: it asks sessions for their leases, and accounts for each.
//!
//! Refuses to touch a session: it leaves orders, and awaits what the sessions answer.

use std::pin::Pin;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::Instant;

use crate::clock::timers;
use crate::executor;
use crate::lease::reload::{Busy, Outcome, Selector, Triage, Wish, busy, triage};
use crate::lease::rules::Policies;
use crate::lease::{Claim, LeaseState, SessionId};
use crate::ledger::{Cause, Ledger, Order, Patience, ReturnOrder};
use crate::view::LeaseView;
use crate::wire::startup::CancelKey;

/// How long a reload without a deadline waits for sessions at a quiet point: they need one round trip to PostgreSQL.
const GRACE: Duration = Duration::from_millis(250);

/// How many sessions at a quiet point are asked at the same time: each has PostgreSQL work for a moment, and others must
/// get to it, too.
const PACE: usize = 4;

/// How many sessions are judged before others of the data thread get their turn.
const AT_A_STRETCH: usize = 16;

/// For so long a session that doesn't answer keeps others from their turn.
const TURN: Duration = Duration::from_millis(100);

/// How long a session that was cancelled or closed may take to answer.
const PRESSED: Duration = Duration::from_secs(1);

/// What a reload is asked to do on one data thread.
#[derive(Debug, Default)]
pub struct Request {
    pub wish: Wish,
    /// How long busy sessions are waited for; without one, not at all.
    pub deadline: Option<Duration>,
    /// The sessions that the app submits, with its claims on them: then exactly these are judged.
    pub submitted: Option<Vec<(SessionId, Claim)>>,
    /// Where each account goes as it falls.
    pub progress: Option<mpsc::UnboundedSender<Account>>,
}

/// The account of one session.
#[derive(Clone, Debug)]
pub struct Account {
    /// The session's id.
    pub id: SessionId,
    /// The session as it was when the reload began; `None` for an id that no session has.
    pub view: Option<LeaseView>,
    pub outcome: Outcome,
}

/// What a reload did.
#[derive(Clone, Debug, Default)]
pub struct Report {
    pub generation: u64,
    pub accounts: Vec<Account>,
}

/// Cancels what a session runs, as its own client would; ends when the cancel is no longer in flight.
pub type Canceller<'a> = dyn Fn(CancelKey) -> Pin<Box<dyn Future<Output = ()>>> + 'a;

/// Carries out a reload: returns what is quiet, waits for what is busy, and cuts only what `busy` says.
///
/// Cancel safe: sessions that wait for their quiet point drop the order once nobody awaits the answer.
pub async fn run(
    ledger: &Ledger,
    request: Request,
    policies: Policies<'_>,
    cancel: &Canceller<'_>,
) -> Report {
    let Request {
        wish,
        deadline,
        submitted,
        progress,
    } = request;
    let mut course = Course {
        generation: begin(ledger, &wish),
        accounts: Vec::new(),
        progress,
    };
    let terms = Terms {
        ledger,
        wish: &wish,
        deadline,
        began: timers::now(),
        pace: Semaphore::new(PACE),
    };
    let waiting = FuturesUnordered::new();
    for id in targets(ledger, &wish.selector, submitted) {
        if course.accounts.len() % AT_A_STRETCH == AT_A_STRETCH - 1 {
            executor::yield_now().await;
        }
        let (view, verdict) = judge(ledger, id, &wish, &policies);
        let index = course.enter(id, view);
        match verdict {
            Triage::Account(outcome) => course.settle(index, outcome),
            Triage::Ask { quiet: false } if deadline.is_none() && !presses(wish.busy) => {
                course.settle(index, busy_now(ledger, id));
            }
            Triage::Ask { quiet } => waiting.push(terms.obtain(index, id, quiet)),
        }
    }
    let late = collect(ledger, &mut course, waiting, wish.busy).await;
    for asked in &late {
        press(ledger, course.accounts[asked.index].id, wish.busy, cancel).await;
    }
    let until = timers::now() + PRESSED;
    for asked in late {
        let id = course.accounts[asked.index].id;
        let outcome = settled(ledger, id, wish.busy, asked.answer, until).await;
        course.settle(asked.index, outcome);
    }
    Report {
        generation: course.generation,
        accounts: course.accounts,
    }
}

/// What a reload has done so far.
struct Course {
    generation: u64,
    /// One for each target. Whoever hasn't answered yet stands as gone.
    accounts: Vec<Account>,
    progress: Option<mpsc::UnboundedSender<Account>>,
}

impl Course {
    fn enter(&mut self, id: SessionId, view: Option<LeaseView>) -> usize {
        let outcome = Outcome::Gone;
        self.accounts.push(Account { id, view, outcome });
        self.accounts.len() - 1
    }

    fn settle(&mut self, index: usize, outcome: Outcome) {
        let account = &mut self.accounts[index];
        account.outcome = outcome;
        if let Some(progress) = &self.progress {
            // Whoever followed may have left; the reload goes on.
            let _ = progress.send(account.clone());
        }
    }
}

/// A session that was asked.
struct Asked {
    index: usize,
    answer: oneshot::Receiver<Outcome>,
}

/// On which terms sessions are asked.
struct Terms<'a> {
    ledger: &'a Ledger,
    wish: &'a Wish,
    deadline: Option<Duration>,
    began: Instant,
    /// Returns that may be under way at the same time.
    pace: Semaphore,
}

impl Terms<'_> {
    /// Asks a session for its lease, and gives its answer; `None` when that doesn't come in time. One at a quiet point is
    /// asked when it is its turn, one that is busy at once, so that its next quiet point isn't missed.
    async fn obtain(&self, index: usize, id: SessionId, quiet: bool) -> (Asked, Option<Outcome>) {
        let grace = if quiet { GRACE } else { Duration::ZERO };
        let until = self.began + self.deadline.unwrap_or_default().max(grace);
        let turn = if quiet {
            timers::timeout_at(until, self.pace.acquire()).await.ok()
        } else {
            None
        };
        let mut answer = ask(self.ledger, id, self.wish, self.deadline);
        let mut answered = Err(());
        if turn.is_some() {
            // Whoever has begun a request meanwhile must not keep others from their turn.
            let turn_ends = until.min(timers::now() + TURN);
            answered = timers::timeout_at(turn_ends, &mut answer)
                .await
                .map_err(drop);
            // Where PostgreSQL needn't be asked, a return is over at once: clients get their turn before the next one.
            executor::yield_now().await;
        }
        drop(turn);
        if answered.is_err() {
            answered = timers::timeout_at(until, &mut answer).await.map_err(drop);
        }
        let late = quiet && answered.is_err() && self.deadline.is_none();
        if late && !presses(self.wish.busy) {
            // Nobody waits for the answer; the return itself goes on.
            order(self.ledger, id, self.wish, Patience::Now, None);
        }
        let outcome = answered.map(|answer| answer.unwrap_or(Outcome::Gone));
        (Asked { index, answer }, outcome.ok())
    }
}

/// Whether a reload does something about sessions that are still busy in the end.
const fn presses(busy: Busy) -> bool {
    match busy {
        Busy::Wait | Busy::Spare => false,
        Busy::Cancel | Busy::Close => true,
    }
}

/// Takes in the answers as they come; gives back those who didn't answer in time, and are to be pressed.
async fn collect(
    ledger: &Ledger,
    course: &mut Course,
    mut waiting: FuturesUnordered<impl Future<Output = (Asked, Option<Outcome>)>>,
    how: Busy,
) -> Vec<Asked> {
    let mut late = Vec::new();
    while let Some((asked, outcome)) = waiting.next().await {
        match outcome {
            Some(outcome) => course.settle(asked.index, outcome),
            None if presses(how) => late.push(asked),
            None => {
                let outcome = busy_now(ledger, course.accounts[asked.index].id);
                course.settle(asked.index, outcome);
            }
        }
    }
    late
}

/// Does what the caller asked for about a session that is still busy.
async fn press(ledger: &Ledger, id: SessionId, how: Busy, cancel: &Canceller<'_>) {
    match how {
        Busy::Wait | Busy::Spare => {}
        Busy::Cancel => {
            if let Some(key) = ledger.cancel_key(id) {
                cancel(key).await;
            }
        }
        Busy::Close => {
            ledger.order(id, Order::End(Cause::Reload));
        }
    }
}

/// What came of a session that was cancelled or closed.
async fn settled(
    ledger: &Ledger,
    id: SessionId,
    how: Busy,
    answer: oneshot::Receiver<Outcome>,
    until: Instant,
) -> Outcome {
    match (timers::timeout_at(until, answer).await, how) {
        (Ok(Ok(Outcome::Gone) | Err(_)), Busy::Close) => {
            Outcome::Returned(Some("closed while busy"))
        }
        (Ok(Ok(Outcome::Returned(None))), Busy::Cancel) => {
            Outcome::Returned(Some("its statement was cancelled"))
        }
        (Ok(Ok(outcome)), _) => outcome,
        (Ok(Err(_)), _) => Outcome::Gone,
        (Err(_), _) => busy_now(ledger, id),
    }
}

/// Leaves an order for a session, and gives where its answer will come.
fn ask(
    ledger: &Ledger,
    id: SessionId,
    wish: &Wish,
    deadline: Option<Duration>,
) -> oneshot::Receiver<Outcome> {
    let waits = deadline.is_some() && wish.busy != Busy::Spare;
    let patience = if waits || presses(wish.busy) {
        Patience::Wait
    } else {
        Patience::Now
    };
    let (reply, answer) = oneshot::channel();
    order(ledger, id, wish, patience, Some(reply));
    answer
}

fn order(
    ledger: &Ledger,
    id: SessionId,
    wish: &Wish,
    patience: Patience,
    reply: Option<oneshot::Sender<Outcome>>,
) {
    let order = Order::Return(ReturnOrder {
        method: wish.method,
        pinned: wish.pinned,
        cause: Cause::Reload,
        patience,
        reply,
    });
    ledger.order(id, order);
}

fn begin(ledger: &Ledger, wish: &Wish) -> u64 {
    let mut book = ledger.book_mut();
    if wish.dry_run {
        book.generation().0
    } else {
        book.raise_generation().0
    }
}

/// Whom the reload concerns: the submitted sessions, or every lease that the selector matches.
fn targets(
    ledger: &Ledger,
    selector: &Selector,
    submitted: Option<Vec<(SessionId, Claim)>>,
) -> Vec<SessionId> {
    if let Some(submitted) = submitted {
        let ids = submitted.iter().map(|(id, _)| *id).collect();
        ledger.book_mut().claim(None, submitted);
        return ids;
    }
    let book = ledger.book();
    let held = book
        .entries()
        .filter(|(_, entry)| !matches!(entry.state, LeaseState::Ended { .. }));
    held.filter(|(_, entry)| selector.matches(entry))
        .map(|(_, entry)| entry.id)
        .collect()
}

fn judge(
    ledger: &Ledger,
    id: SessionId,
    wish: &Wish,
    policies: &Policies<'_>,
) -> (Option<LeaseView>, Triage) {
    let book = ledger.book();
    let Some(slot) = book.find(id) else {
        return (None, Triage::Account(Outcome::Unknown));
    };
    let entry = book.entry(slot);
    let view = LeaseView::of(ledger, slot, policies);
    (Some(view), triage(entry, wish, ledger.now()))
}

/// The outcome of a session that didn't answer in time.
fn busy_now(ledger: &Ledger, id: SessionId) -> Outcome {
    let book = ledger.book();
    book.find(id)
        .map_or(Outcome::Gone, |slot| busy(book.entry(slot)))
}
