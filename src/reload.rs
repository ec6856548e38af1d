//! Owns the course of a reload on one data thread: it asks sessions for their leases, and accounts for each.
//!
//! Refuses to touch a session: it leaves orders, and awaits what the sessions answer.

use std::pin::Pin;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::{self, FuturesUnordered};
use tokio::sync::{mpsc, oneshot};
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

/// How much longer for each of them: they take turns, each with a probe at most, and with rests in between.
const GRACE_OF_EACH: Duration = Duration::from_millis(1);

/// How many sessions at a quiet point are asked at the same time: each has PostgreSQL work for a moment, and others must
/// get to it, too.
const PACE: usize = 4;

/// How many sessions are judged without a rest: some 50 µs.
const JUDGED: usize = 32;

/// How many return their leases without a rest: some 30 µs here, and as much for those who are told.
const RETURNED: usize = 8;

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
    let targets = targets(ledger, &wish.selector, submitted);
    let many = u32::try_from(targets.len()).unwrap_or(u32::MAX);
    let terms = Terms {
        ledger,
        wish: &wish,
        deadline,
        began: timers::now(),
        grace: GRACE.saturating_add(GRACE_OF_EACH.saturating_mul(many)),
    };
    let mut quiet = Vec::new();
    let mut busy = Vec::new();
    for id in targets {
        if course.accounts.len() % JUDGED == JUDGED - 1 {
            executor::rest().await;
        }
        let (view, verdict) = judge(ledger, id, &wish, &policies);
        let index = course.enter(id, view);
        match verdict {
            Triage::Account(outcome) => course.settle(index, outcome),
            Triage::Ask { quiet: true } => quiet.push((index, id)),
            Triage::Ask { quiet: false } if deadline.is_none() && !presses(wish.busy) => {
                course.settle(index, busy_now(ledger, id));
            }
            // At once, so that its next quiet point isn't missed.
            Triage::Ask { quiet: false } => busy.push(terms.ask(index, id)),
        }
    }
    let late = collect(&terms, &mut course, quiet, busy).await;
    for asked in &late {
        press(ledger, asked.id, wish.busy, cancel).await;
    }
    let until = timers::now() + PRESSED;
    for asked in late {
        let outcome = settled(ledger, asked.id, wish.busy, asked.answer, until).await;
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
    id: SessionId,
    answer: oneshot::Receiver<Outcome>,
}

/// On which terms sessions are asked.
struct Terms<'a> {
    ledger: &'a Ledger,
    wish: &'a Wish,
    deadline: Option<Duration>,
    began: Instant,
    /// How long sessions at a quiet point have at least.
    grace: Duration,
}

impl Terms<'_> {
    /// Leaves an order for a session.
    fn ask(&self, index: usize, id: SessionId) -> Asked {
        let waits = self.deadline.is_some() && self.wish.busy != Busy::Spare;
        let patience = if waits || presses(self.wish.busy) {
            Patience::Wait
        } else {
            Patience::Now
        };
        let (reply, answer) = oneshot::channel();
        self.order(id, patience, Some(reply));
        Asked { index, id, answer }
    }

    /// Until when one is waited for.
    fn until(&self, quiet: bool) -> Instant {
        let grace = if quiet { self.grace } else { Duration::ZERO };
        self.began + self.deadline.unwrap_or_default().max(grace)
    }

    /// The turn of a session at a quiet point: asks it for its lease, and gives its answer, unless it has begun a request
    /// meanwhile, and keeps others from theirs.
    async fn turn(&self, index: usize, id: SessionId) -> (Asked, Option<Outcome>) {
        let mut asked = self.ask(index, id);
        let ends = self.until(true).min(timers::now() + TURN);
        let answer = timers::timeout_at(ends, &mut asked.answer).await.ok();
        (asked, answer.map(|answer| answer.unwrap_or(Outcome::Gone)))
    }

    /// The answer of a session, however many turns it takes; `None` when it doesn't come in time.
    async fn wait(&self, mut asked: Asked, quiet: bool) -> (Asked, Option<Outcome>) {
        let answer = timers::timeout_at(self.until(quiet), &mut asked.answer).await;
        if answer.is_err() && quiet && self.deadline.is_none() && !presses(self.wish.busy) {
            // Nobody waits for the answer; the return itself goes on.
            self.order(asked.id, Patience::Now, None);
        }
        let outcome = answer.map(|answer| answer.unwrap_or(Outcome::Gone));
        (asked, outcome.ok())
    }

    fn order(&self, id: SessionId, patience: Patience, reply: Option<oneshot::Sender<Outcome>>) {
        let order = Order::Return(ReturnOrder {
            method: self.wish.method,
            pinned: self.wish.pinned,
            cause: Cause::Reload,
            patience,
            reply,
        });
        self.ledger.order(id, order);
    }
}

/// Whether a reload does something about sessions that are still busy in the end.
const fn presses(busy: Busy) -> bool {
    match busy {
        Busy::Wait | Busy::Spare => false,
        Busy::Cancel | Busy::Close => true,
    }
}

/// Asks those at a quiet point in turns, and takes in all answers as they come; gives back those who didn't answer in time, and
/// are to be pressed.
async fn collect(
    terms: &Terms<'_>,
    course: &mut Course,
    quiet: Vec<(usize, SessionId)>,
    busy: Vec<Asked>,
) -> Vec<Asked> {
    let mut turns = stream::iter(quiet)
        .map(|(index, id)| terms.turn(index, id))
        .buffer_unordered(PACE);
    let waiting = busy.into_iter().map(|asked| terms.wait(asked, false));
    let mut waiting = waiting.collect::<FuturesUnordered<_>>();
    let mut late = Vec::new();
    let mut turned = 0_usize;
    loop {
        let (asked, outcome) = tokio::select! {
            biased;
            Some((asked, outcome)) = turns.next() => {
                turned += 1;
                // Where PostgreSQL needn't be asked, a return is over at once: clients get their turn before the next one.
                executor::yield_now().await;
                if turned.is_multiple_of(RETURNED) {
                    executor::rest().await;
                }
                if outcome.is_none() {
                    waiting.push(terms.wait(asked, true));
                    continue;
                }
                (asked, outcome)
            }
            Some(answer) = waiting.next() => answer,
            else => break,
        };
        match outcome {
            Some(outcome) => course.settle(asked.index, outcome),
            None if presses(terms.wish.busy) => late.push(asked),
            None => course.settle(asked.index, busy_now(terms.ledger, asked.id)),
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
