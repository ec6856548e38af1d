//! Owns the orderly end: one value that everybody watches, from running over draining to ending.

use tokio::sync::watch;

/// How far the end has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    Running,
    /// No new clients; sessions end at their next quiet point.
    Draining,
    /// Everything ends now.
    Ending,
}

/// The hand that moves the phase on.
#[derive(Debug)]
pub struct Trigger(watch::Sender<Phase>);

/// The eyes on the phase. Clones see the same.
#[derive(Clone, Debug)]
pub struct Shutdown(watch::Receiver<Phase>);

/// A trigger and its shutdown, at `Running`.
#[must_use]
pub fn channel() -> (Trigger, Shutdown) {
    let (sender, receiver) = watch::channel(Phase::Running);
    (Trigger(sender), Shutdown(receiver))
}

impl Trigger {
    /// Moves one phase on: the first call drains, the second ends.
    pub fn advance(&self) {
        self.0.send_modify(|phase| {
            *phase = match phase {
                Phase::Running => Phase::Draining,
                Phase::Draining | Phase::Ending => Phase::Ending,
            }
        });
    }
}

impl Shutdown {
    /// Waits until `phase` is reached; a trigger that was dropped counts as the end. Cancel safe.
    pub async fn reached(&mut self, phase: Phase) {
        // An error means that the trigger is gone, and with it whoever could still want us to run.
        let _ = self.0.wait_for(|now| *now >= phase).await;
    }

    /// Whether `phase` is reached.
    #[must_use]
    pub fn is_at(&self, phase: Phase) -> bool {
        *self.0.borrow() >= phase
    }
}
