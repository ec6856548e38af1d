//! Owns the course of a reload on one data thread: it asks sessions for their leases, and accounts for each.
//!
//! Refuses to touch a session: it leaves orders, and awaits what the sessions answer.

use std::pin::Pin;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

use crate::lease::reload::{Busy, Outcome, Selector, Triage, Wish, busy, triage};
use crate::lease::rules::Policies;
use crate::lease::{Claim, LeaseState, SessionId};
use crate::ledger::{Cause, Ledger, Order, Patience, ReturnOrder};
use crate::view::LeaseView;
use crate::wire::startup::CancelKey;

/// How long a reload without a deadline waits for sessions at a quiet point: they need one round trip to PostgreSQL.
const GRACE: Duration = Duration::from_millis(250);

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

/// A session whose answer is awaited.
struct Asked {
    index: usize,
    answer: oneshot::Receiver<Outcome>,
    until: Instant,
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
    } = request;
    let began = now();
    let mut report = Report {
        generation: begin(ledger, &wish),
        accounts: Vec::new(),
    };
    let targets = targets(ledger, &wish.selector, submitted);
    let mut asked = Vec::new();
    for id in targets {
        let (view, verdict) = judge(ledger, id, &wish, &policies);
        let index = report.accounts.len();
        let outcome = match verdict {
            Triage::Account(outcome) => outcome,
            Triage::Ask { quiet: false } if deadline.is_none() && !presses(wish.busy) => {
                busy_now(ledger, id)
            }
            Triage::Ask { quiet } => {
                let grace = if quiet { GRACE } else { Duration::ZERO };
                let until = began + deadline.unwrap_or_default().max(grace);
                asked.push(Asked {
                    index,
                    answer: ask(ledger, id, &wish, deadline),
                    until,
                });
                Outcome::Gone
            }
        };
        report.accounts.push(Account { id, view, outcome });
    }
    let late = collect(ledger, &mut report, asked).await;
    for asked in &late {
        press(ledger, report.accounts[asked.index].id, wish.busy, cancel).await;
    }
    let until = now() + PRESSED;
    for asked in late.into_iter().filter(|_| presses(wish.busy)) {
        let account = &mut report.accounts[asked.index];
        account.outcome = settled(ledger, account.id, wish.busy, asked.answer, until).await;
    }
    report
}

/// Whether a reload does something about sessions that are still busy in the end.
const fn presses(busy: Busy) -> bool {
    match busy {
        Busy::Wait | Busy::Spare => false,
        Busy::Cancel | Busy::Close => true,
    }
}

/// Takes in the answers that come in time; gives back those that didn't.
async fn collect(ledger: &Ledger, report: &mut Report, asked: Vec<Asked>) -> Vec<Asked> {
    let mut late = Vec::new();
    for mut asked in asked {
        let account = &mut report.accounts[asked.index];
        account.outcome = match timeout_at(asked.until, &mut asked.answer).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => Outcome::Gone,
            Err(_) => {
                let outcome = busy_now(ledger, account.id);
                late.push(asked);
                outcome
            }
        };
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
    match (timeout_at(until, answer).await, how) {
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
    let order = Order::Return(ReturnOrder {
        method: wish.method,
        pinned: wish.pinned,
        cause: Cause::Reload,
        patience,
        reply: Some(reply),
    });
    ledger.order(id, order);
    answer
}

#[expect(
    clippy::disallowed_methods,
    reason = "a deadline is the runtime's timer, not a moment in the book"
)]
fn now() -> Instant {
    Instant::now()
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
    let view = LeaseView::of(
        entry,
        ledger.backend_pid(slot),
        &ledger.clock(),
        ledger.now(),
        policies,
    );
    (Some(view), triage(entry, wish, ledger.now()))
}

/// The outcome of a session that didn't answer in time.
fn busy_now(ledger: &Ledger, id: SessionId) -> Outcome {
    let book = ledger.book();
    book.find(id)
        .map_or(Outcome::Gone, |slot| busy(book.entry(slot)))
}
