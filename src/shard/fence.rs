//! Owns the fences of reloads on one data thread: the selected sessions begin no request meanwhile.
//!
//! A fence falls when its reload ends or its deadline is over, whatever becomes of the caller. Fences add up: a session
//! goes on when the last one has fallen.

use std::rc::Rc;

use tokio::sync::watch;

use super::commands::ReloadWish;
use crate::clock::timers;
use crate::executor;
use crate::lease::SessionId;
use crate::ledger::{Ledger, Order};
use crate::session::Shared;

/// A fence that stands: dropped, it falls.
struct Fence {
    ledger: Rc<Ledger>,
    ids: Vec<SessionId>,
}

impl Drop for Fence {
    fn drop(&mut self) {
        for id in &self.ids {
            self.ledger.order(*id, Order::Lift);
        }
    }
}

/// Raises the fence of a reload around the sessions that it selects now, with or without a lease. It stands until the
/// sender of `hold` is gone, and no longer than to the deadline.
pub(super) fn raise(shared: &Rc<Shared>, wish: &ReloadWish, mut hold: watch::Receiver<()>) {
    let deadline = wish.deadline.unwrap_or_default();
    let fence = around(shared.ledger.clone(), wish);
    executor::spawn(async move {
        let ended = async { while hold.changed().await.is_ok() {} };
        // Over, or ended: both let it fall.
        let _ = timers::timeout(deadline, ended).await;
        drop(fence);
    });
}

fn around(ledger: Rc<Ledger>, wish: &ReloadWish) -> Fence {
    let ids: Vec<SessionId> = match &wish.submitted {
        Some(submitted) => submitted.iter().map(|claim| claim.id).collect(),
        None => {
            let book = ledger.book();
            let entries = book.entries().map(|(_, entry)| entry);
            let selected = entries.filter(|entry| wish.wish.selector.matches(entry));
            selected.map(|entry| entry.id).collect()
        }
    };
    let ids = ids.into_iter();
    let ids = ids.filter(|id| ledger.order(*id, Order::Fence)).collect();
    Fence { ledger, ids }
}
