//! Owns the scrubbing of a backend before another session gets it.

use std::rc::Rc;
use std::time::Duration;

use crate::backend::{Backend, Home};
use crate::lease::Status;
use crate::wire::extended::write_frame;

/// How long a scrub may take before the backend is thrown away instead.
const PATIENCE: Duration = Duration::from_secs(10);

/// Scrubs a backend: rolls back what is open, discards all session state. `None` when it has to be thrown away.
///
/// Not cancel safe: a scrub that is broken off throws the backend away.
pub async fn reset(mut backend: Box<Backend>, status: Status) -> Option<Box<Backend>> {
    if backend.stained || backend.key.in_flight.get() > 0 {
        return None;
    }
    let mut request = Vec::new();
    let mut readies = 1;
    match status {
        Status::Idle => {}
        Status::InTransaction | Status::Failed => {
            write_frame(&mut request, b'Q', b"ROLLBACK\0");
            readies += 1;
        }
    }
    write_frame(&mut request, b'Q', b"DISCARD ALL\0");
    let answers = backend.exchange_within(PATIENCE, &request, readies).await;
    let answers = answers.ok()?;
    if answers.error.is_some() || answers.status != Status::Idle {
        return None;
    }
    backend.home = Home::Clean;
    backend.carries = Rc::default();
    backend.prepared.clear();
    backend.spent = false;
    backend.opaque = false;
    Some(backend)
}
