//! Owns the markers: how a session's channels pass from its own backend to the shared one, and back.

use super::{Ear, PATIENCE, quoted};
use crate::backend::capture::{self, write_statement};
use crate::backend::listener::Notification;
use crate::backend::{Backend, Lost};
use crate::lease::Status;
use crate::wire::extended::write_frame;

/// What a session's own backend told while a marker went by.
#[derive(Debug, Default)]
pub struct Passed {
    /// PostgreSQL refused: all is as it was.
    pub refused: bool,
    /// Up to the marker, as frames.
    pub before: Vec<u8>,
    /// From the marker on, as frames.
    pub after: Vec<u8>,
}

/// Sends a marker on a session's own backend, which listens on nothing afterwards: the shared one tells from there on.
///
/// Not cancel safe: what is broken off loses the backend.
///
/// # Errors
/// The backend is lost, and where the marker stands can't be known.
pub async fn hand_over(backend: &mut Backend, ear: &Ear) -> Result<Passed, Lost> {
    let mut request = Vec::new();
    let mark = ear.mark();
    write_mark(&mut request, [].into_iter(), ear, &mark);
    let mut passed = pass(backend, ear, &mark, &request, 1).await?;
    if !passed.refused {
        let mut request = Vec::new();
        write_statement(&mut request, "UNLISTEN *", None);
        write_frame(&mut request, b'S', b"");
        let answers = backend.exchange_within(PATIENCE, &request, 1).await?;
        if answers.error.is_some() {
            return Err(Lost::Protocol);
        }
        // What came behind the marker is told by the shared one.
        passed.after.clear();
    }
    Ok(passed)
}

/// Has a session's own backend listen on its channels, and sends a marker: it tells from there on.
///
/// Not cancel safe: what is broken off loses the backend.
///
/// # Errors
/// The backend is lost, and where the marker stands can't be known.
pub async fn take_over(backend: &mut Backend, ear: &Ear) -> Result<Passed, Lost> {
    let (mut request, mark) = (Vec::new(), ear.mark());
    write_mark(&mut request, ear.channels().iter(), ear, &mark);
    let text = format!("UNLISTEN {}", quoted(ear.ears().channel()));
    write_statement(&mut request, &text, None);
    write_frame(&mut request, b'S', b"");
    pass(backend, ear, &mark, &request, 2).await
}

/// Appends one transaction that listens on these channels and on the markers', and sends a marker. It needn't wait for
/// the disk.
fn write_mark<'a>(
    out: &mut Vec<u8>,
    channels: impl Iterator<Item = &'a String>,
    ear: &Ear,
    mark: &str,
) {
    let marks = quoted(ear.ears().channel());
    for text in [
        "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE NOT DEFERRABLE",
        "SET LOCAL statement_timeout = 0",
        "SET LOCAL synchronous_commit = off",
    ] {
        write_statement(out, text, None);
    }
    for name in channels.map(|name| quoted(name)).chain([marks.clone()]) {
        write_statement(out, &format!("LISTEN {name}"), None);
    }
    // A marker is made of digits, letters and a colon.
    write_statement(out, &format!("NOTIFY {marks}, '{mark}'"), None);
    write_statement(out, "COMMIT", None);
    write_frame(out, b'S', b"");
}

async fn pass(
    backend: &mut Backend,
    ear: &Ear,
    mark: &str,
    request: &[u8],
    readies: usize,
) -> Result<Passed, Lost> {
    let mut answers = backend.exchange_within(PATIENCE, request, readies).await?;
    if answers.error.is_some() || answers.status != Status::Idle {
        answers.notifications.extend(capture::abort(backend).await?);
    }
    let (mut passed, mut seen) = (Passed::default(), false);
    for heard in Notification::all(&answers.notifications) {
        if heard.channel == ear.ears().channel() {
            seen |= heard.payload == mark;
        } else if seen {
            passed.after.extend(heard.frame());
        } else {
            passed.before.extend(heard.frame());
        }
    }
    match (answers.error, seen) {
        (None, true) => {}
        (Some(error), false) => {
            tracing::warn!("PostgreSQL refused a session's channels: {}", error.message);
            ear.unmark();
            passed.refused = true;
        }
        // PostgreSQL tells a session its own notifications before it says that it is ready.
        (None, false) | (Some(_), true) => return Err(Lost::Protocol),
    }
    Ok(passed)
}
