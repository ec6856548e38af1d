//! Owns the orderly end: one value that everybody watches, from running over draining to ending.

use tokio::sync::{mpsc, watch};

/// How far the end has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    Running,
    /// No new clients; sessions end at their next quiet point.
    Draining,
    /// Everything ends now.
    Ending,
}

/// What an operator may ask for from inside, as others do by signals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// Read the configuration again.
    Reload,
    Drain,
    End,
}

/// The hand that moves the phase on.
#[derive(Debug)]
pub struct Trigger {
    phase: watch::Sender<Phase>,
    wishes: mpsc::UnboundedReceiver<Wish>,
}

/// The eyes on the phase. Clones see the same.
#[derive(Clone, Debug)]
pub struct Shutdown {
    phase: watch::Receiver<Phase>,
    wishes: mpsc::UnboundedSender<Wish>,
}

/// A trigger and its shutdown, at `Running`.
#[must_use]
pub fn channel() -> (Trigger, Shutdown) {
    let (sender, receiver) = watch::channel(Phase::Running);
    let (wish, wishes) = mpsc::unbounded_channel();
    let trigger = Trigger {
        phase: sender,
        wishes,
    };
    let shutdown = Shutdown {
        phase: receiver,
        wishes: wish,
    };
    (trigger, shutdown)
}

impl Trigger {
    /// Moves one phase on: the first call drains, the second ends.
    pub fn advance(&self) {
        self.phase.send_modify(|phase| {
            *phase = match phase {
                Phase::Running => Phase::Draining,
                Phase::Draining | Phase::Ending => Phase::Ending,
            }
        });
    }

    /// Moves to the last phase.
    pub fn end(&self) {
        self.phase.send_replace(Phase::Ending);
    }

    /// The next thing that an operator asks for. Cancel safe.
    pub async fn wish(&mut self) -> Wish {
        match self.wishes.recv().await {
            Some(wish) => wish,
            // Everybody who could ask is gone.
            None => std::future::pending().await,
        }
    }
}

impl Shutdown {
    /// Asks for something, on behalf of an operator.
    pub fn ask(&self, wish: Wish) {
        // Without a trigger nobody could carry it out.
        let _ = self.wishes.send(wish);
    }

    /// Waits until `phase` is reached; a trigger that was dropped counts as the end. Cancel safe.
    pub async fn reached(&mut self, phase: Phase) {
        // An error means that the trigger is gone, and with it whoever could still want us to run.
        let _ = self.phase.wait_for(|now| *now >= phase).await;
    }

    /// Whether `phase` is reached.
    #[must_use]
    pub fn is_at(&self, phase: Phase) -> bool {
        *self.phase.borrow() >= phase
    }
}
