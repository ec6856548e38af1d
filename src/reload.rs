//! Owns the course of a reload on one data thread: it asks sessions for their leases, and accounts for each.
//!
//! Refuses to touch a session: it leaves orders, and awaits what the sessions answer.

use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

use crate::lease::reload::{Busy, Outcome, Selector, Triage, Wish, busy, triage};
use crate::lease::rules::Policies;
use crate::lease::{Claim, LeaseState, SessionId};
use crate::ledger::{Cause, Ledger, Order, Patience, ReturnOrder};
use crate::view::LeaseView;

/// How long a reload without a deadline waits for sessions at a quiet point: they need one round trip to PostgreSQL.
const GRACE: Duration = Duration::from_millis(250);

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

/// Carries out a reload: returns what is quiet, waits for what is busy, cuts nothing.
///
/// Cancel safe: sessions that wait for their quiet point drop the order once nobody awaits the answer.
pub async fn run(ledger: &Ledger, request: Request, policies: Policies<'_>) -> Report {
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
            Triage::Ask { quiet: false } if deadline.is_none() => busy_now(ledger, id),
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
    for Asked {
        index,
        answer,
        until,
    } in asked
    {
        let account = &mut report.accounts[index];
        account.outcome = match timeout_at(until, answer).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => Outcome::Gone,
            Err(_) => busy_now(ledger, account.id),
        };
    }
    report
}

/// Leaves an order for a session, and gives where its answer will come.
fn ask(
    ledger: &Ledger,
    id: SessionId,
    wish: &Wish,
    deadline: Option<Duration>,
) -> oneshot::Receiver<Outcome> {
    let patience = if deadline.is_some() && wish.busy == Busy::Wait {
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
