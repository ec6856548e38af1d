//! Owns the process's signals, and what each of them asks for.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProcessSignal {
    /// The first SIGTERM or SIGINT: let busy sessions finish.
    Drain,
    /// The second one: end at once.
    End,
    /// SIGHUP: read the configuration again.
    Reload,
}

/// SIGTERM, SIGINT and SIGHUP from now on.
#[derive(Debug)]
pub struct Signals {
    term: Signal,
    interrupt: Signal,
    hangup: Signal,
    /// Whether a drain was asked for already.
    phase: Phase,
}

#[derive(Clone, Copy, Debug)]
enum Phase {
    Running,
    Draining,
}

impl Signals {
    /// Takes the signals over from the system's defaults; needs a tokio runtime.
    ///
    /// # Errors
    ///
    /// Where the system refuses a handler.
    pub fn install() -> io::Result<Self> {
        Ok(Self {
            term: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
            phase: Phase::Running,
        })
    }

    /// Waits for the next signal. Cancel safe: a signal that comes in between is kept.
    pub async fn next(&mut self) -> ProcessSignal {
        tokio::select! {
            _ = self.hangup.recv() => return ProcessSignal::Reload,
            _ = self.term.recv() => {}
            _ = self.interrupt.recv() => {}
        }
        match std::mem::replace(&mut self.phase, Phase::Draining) {
            Phase::Running => ProcessSignal::Drain,
            Phase::Draining => ProcessSignal::End,
        }
    }
}
