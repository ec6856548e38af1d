//! Owns how a data thread answers commands.

use std::rc::Rc;

use tokio::sync::{mpsc, oneshot};

use super::commands::{ClaimWish, Command, OwnerParks, ReloadWish};
use super::sample::sample;
use super::{AT_A_STRETCH, console, fence, look, verify};
use crate::executor;
use crate::lease::book::Process;
use crate::lease::reload::{Method, Outcome, Pinned};
use crate::lease::{Claim, SessionId};
use crate::ledger::{Cause, Ledger, Order, Patience, ReturnOrder};
use crate::reload::{self, Report};
use crate::session::Shared;
use crate::view::LeaseView;

/// Answers commands until nobody can send any more.
pub(super) async fn answer(shared: Rc<Shared>, mut commands: mpsc::Receiver<Command>) {
    while let Some(command) = commands.recv().await {
        obey(&shared, command);
    }
}

/// Answers one command; what takes longer goes on as a task. An asker who is gone needs no answer.
fn obey(shared: &Rc<Shared>, command: Command) {
    let ledger = &shared.ledger;
    match command {
        Command::Sessions(reply) => {
            let shared = shared.clone();
            later(reply, async move { sessions(&shared).await });
        }
        Command::Claim {
            source,
            claims,
            reply,
        } => drop(reply.send(take_claims(ledger, source, claims))),
        Command::Reload { wish, hold, reply } => {
            if wish.fence && !wish.wish.dry_run {
                fence::raise(shared, &wish, hold);
            }
            let shared = shared.clone();
            later(reply, async move { carry_out(&shared, *wish).await });
        }
        Command::Reap(id, reply) => {
            let shared = shared.clone();
            later(reply, async move { reap(&shared.ledger, id).await });
        }
        Command::Verify(reply) => {
            let shared = shared.clone();
            later(reply, async move { verify::verify(&shared).await });
        }
        Command::Return { id, method, reply } => {
            let shared = shared.clone();
            later(
                reply,
                async move { give_back(&shared.ledger, id, method).await },
            );
        }
        Command::Processes(found, reply) => {
            let shared = shared.clone();
            later(reply, async move {
                note_processes(&shared.ledger, found).await;
            });
        }
        Command::Sample(reply) => {
            let shared = shared.clone();
            later(reply, async move { sample(&shared).await });
        }
        Command::Parks(reply) => {
            let shared = shared.clone();
            later(reply, async move {
                look(&shared).await;
                let parks = shared.ledger.parks().into_iter();
                parks.map(OwnerParks::from).collect()
            });
        }
        Command::Console(ask) => console::obey(shared, ask),
        Command::Cancel(key, reply) => {
            let forwarded = shared.cancels.forward(key);
            later(reply, forwarded);
        }
    }
}

/// Answers as soon as `work` is done, beside everything else.
fn later<T: 'static>(reply: oneshot::Sender<T>, work: impl Future<Output = T> + 'static) {
    executor::spawn(async move { drop(reply.send(work.await)) });
}

async fn note_processes(ledger: &Ledger, found: Vec<(SessionId, Process)>) {
    for (number, (id, process)) in found.into_iter().enumerate() {
        if number % AT_A_STRETCH == AT_A_STRETCH - 1 {
            executor::yield_now().await;
        }
        let mut book = ledger.book_mut();
        if let Some(slot) = book.find(id) {
            book.entry_mut(slot).process = Some(Rc::new(process));
        }
    }
}

/// Carries out a reload on this data thread.
async fn carry_out(shared: &Shared, wish: ReloadWish) -> Report {
    if wish.recycle && !wish.wish.dry_run {
        let next = shared.ledger.book().generation().next();
        shared.pools.recycle(next);
    }
    let request = reload_request(&shared.ledger, wish);
    let cancel = |key| shared.cancels.forward(key);
    reload::run(&shared.ledger, request, shared.config.policies(), &cancel).await
}

/// Every session as it is when its turn comes: where there are very many, others get theirs in between.
async fn sessions(shared: &Shared) -> (u64, Vec<LeaseView>) {
    let ledger = &shared.ledger;
    let policies = shared.config.policies();
    let ids: Vec<SessionId> = ledger.book().entries().map(|(_, entry)| entry.id).collect();
    let generation = ledger.book().generation();
    let mut views = Vec::with_capacity(ids.len());
    for (number, stretch) in ids.chunks(AT_A_STRETCH).enumerate() {
        if number > 0 {
            executor::rest().await;
        }
        let book = ledger.book();
        let slots = stretch.iter().filter_map(|id| book.find(*id));
        views.extend(slots.map(|slot| LeaseView::of(ledger, slot, &policies)));
    }
    (generation.0, views)
}

/// Takes in claims; gives the ids that no session has.
fn take_claims(ledger: &Ledger, source: Option<String>, claims: Vec<ClaimWish>) -> Vec<SessionId> {
    let source = source.map(Rc::from);
    let claims = claims.into_iter();
    let claims = claims
        .map(|wish| claim(ledger, wish, source.as_ref()))
        .collect();
    ledger.book_mut().claim(source.as_ref(), claims)
}

fn claim(ledger: &Ledger, wish: ClaimWish, source: Option<&Rc<str>>) -> (SessionId, Claim) {
    let claim = Claim {
        owner: wish.owner.map(Rc::from),
        state: wish.state,
        since: wish.held_for.map(|held| ledger.now().before(held)),
        place: wish.place.map(Rc::from),
        source: source.cloned(),
    };
    (wish.id, claim)
}

fn reload_request(ledger: &Ledger, wish: ReloadWish) -> reload::Request {
    let claims = |all: Vec<ClaimWish>| {
        all.into_iter()
            .map(|one| claim(ledger, one, None))
            .collect()
    };
    reload::Request {
        wish: wish.wish,
        deadline: wish.deadline,
        submitted: wish.submitted.map(claims),
        progress: wish.progress,
    }
}

async fn reap(ledger: &Ledger, id: SessionId) -> Option<Outcome> {
    asked(ledger, id, Order::Reap).await
}

async fn give_back(ledger: &Ledger, id: SessionId, method: Method) -> Option<Outcome> {
    let order = |reply| {
        Order::Return(ReturnOrder {
            method,
            pinned: Pinned::Spare,
            cause: Cause::Forced,
            patience: Patience::Now,
            reply: Some(reply),
        })
    };
    asked(ledger, id, order).await
}

/// What became of a session that was given an order; `None` when there is no such session.
async fn asked(
    ledger: &Ledger,
    id: SessionId,
    order: impl FnOnce(oneshot::Sender<Outcome>) -> Order,
) -> Option<Outcome> {
    let (reply, answer) = oneshot::channel();
    if !ledger.order(id, order(reply)) {
        return None;
    }
    Some(answer.await.unwrap_or(Outcome::Gone))
}
