//! Owns the questions that are asked ahead: what state sessions have that rest, so that PostgreSQL needn't be asked when many
//! of them return at once, as in a reload.
//!
//! One session at a time, with rests in between: nobody waits for the answers, and others want to use PostgreSQL.

use std::rc::Rc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use crate::clock::timers;
use crate::executor;
use crate::lease::SessionId;
use crate::ledger::Order;
use crate::session::Shared;

/// How many sessions may wait for it. Whoever finds no place is asked when it returns.
const PLACES: usize = 10_000;

/// For so long a session that doesn't answer keeps others from their turn.
const TURN: Duration = Duration::from_secs(1);

/// Takes note of sessions of whom PostgreSQL is asked; dropped, it asks no more.
#[derive(Debug)]
pub(super) struct Foresight(mpsc::Sender<SessionId>);

impl Foresight {
    /// Begins to ask.
    pub fn start(shared: Rc<Shared>) -> Self {
        let (noted, places) = mpsc::channel(PLACES);
        executor::spawn(ask(shared, places));
        Self(noted)
    }

    /// These rest, and what state they have isn't known.
    pub fn note(&self, sessions: Vec<SessionId>) {
        for session in sessions {
            if self.0.try_send(session).is_err() {
                break;
            }
        }
    }
}

/// How long the rest after each question is, which takes PostgreSQL a millisecond or two.
const REST: Duration = Duration::from_millis(5);

async fn ask(shared: Rc<Shared>, mut places: mpsc::Receiver<SessionId>) {
    while let Some(session) = places.recv().await {
        let (reply, asked) = oneshot::channel();
        // Both are no reason to stop: it is gone or busy by now, or its backend is.
        let known = shared.ledger.order(session, Order::Foresee(reply));
        if known && timers::timeout(TURN, asked).await.is_ok() {
            timers::sleep(REST).await;
        }
    }
}
