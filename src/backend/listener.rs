//! Owns a connection of our own that listens (PostgreSQL documentation, LISTEN and NOTIFY): no session ever gets it.

use std::collections::VecDeque;

use tokio::io::AsyncReadExt;

use crate::backend::connect::Login;
use crate::backend::open::open;
use crate::backend::{Answers, Backend, Lost};
use crate::clock::Clock;
use crate::lease::{BackendId, Generation};
use crate::wire::extended::write_frame;
use crate::wire::frame::{HEADER, Header, cstr};
use crate::wire::reply::ClientError;

/// The longest message that may come unasked, in bytes: a payload has at most 8000.
const MAX_MESSAGE: usize = 64 << 10;

/// What somebody has said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notification {
    /// The backend of whoever said it: PostgreSQL itself vouches for it.
    pub pid: u32,
    pub channel: String,
    pub payload: String,
}

impl Notification {
    /// Those that `frames` hold, in their order.
    pub fn all(mut frames: &[u8]) -> impl Iterator<Item = Self> {
        std::iter::from_fn(move || {
            let header = Header::read(frames).ok().flatten()?;
            let heard = frames.get(HEADER..header.total()).and_then(read);
            frames = frames.get(header.total()..).unwrap_or_default();
            heard
        })
    }

    /// The message itself.
    #[must_use]
    pub fn frame(&self) -> Vec<u8> {
        let (channel, payload) = (self.channel.as_bytes(), self.payload.as_bytes());
        let body = [&self.pid.to_be_bytes()[..], channel, b"\0", payload, b"\0"];
        let mut frame = Vec::new();
        write_frame(&mut frame, b'A', &body.concat());
        frame
    }
}

/// A connection that listens.
#[derive(Debug)]
pub struct Listener {
    backend: Backend,
    heard: VecDeque<Notification>,
}

impl Listener {
    /// Logs in. Cancel safe: what was begun is closed.
    ///
    /// # Errors
    /// As for any backend.
    pub async fn open(login: &Login<'_>, clock: Clock) -> Result<Self, ClientError> {
        let backend = open(login, BackendId(0), clock, Generation::default()).await?;
        Ok(Self::of(backend))
    }

    /// Makes one of a backend that no session has any more.
    #[must_use]
    pub const fn of(backend: Backend) -> Self {
        Self {
            backend,
            heard: VecDeque::new(),
        }
    }

    /// The pid of its backend.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.backend.key.key.pid
    }

    /// Runs a simple query. Not cancel safe.
    ///
    /// # Errors
    /// The connection is lost. PostgreSQL's own error is an answer.
    pub async fn ask(&mut self, sql: &str) -> Result<Answers, Lost> {
        let mut request = Vec::new();
        write_frame(&mut request, b'Q', &[sql.as_bytes(), b"\0"].concat());
        let answers = self.backend.exchange(&request, 1).await?;
        self.heard.extend(Notification::all(&answers.notifications));
        Ok(answers)
    }

    /// The next notification. Cancel safe.
    ///
    /// # Errors
    /// The connection is lost.
    pub async fn next(&mut self) -> Result<Notification, Lost> {
        loop {
            if let Some(heard) = self.heard.pop_front() {
                return Ok(heard);
            }
            let unread = &mut self.backend.unread;
            let header = Header::read(unread).map_err(|_| Lost::Protocol)?;
            match header {
                Some(header) if header.body > MAX_MESSAGE => return Err(Lost::Protocol),
                Some(header) if unread.len() >= header.total() => {
                    let frame: Vec<u8> = unread.drain(..header.total()).collect();
                    match header.kind {
                        b'A' => self.heard.extend(read(&frame[5..])),
                        b'S' | b'N' => {}
                        b'E' => {
                            let words = ClientError::from_postgresql(&frame[5..]);
                            return Err(Lost::Ended(Box::new(words)));
                        }
                        _ => return Err(Lost::Protocol),
                    }
                }
                Some(_) | None => {
                    if self.backend.stream.read_buf(unread).await? == 0 {
                        return Err(Lost::Closed);
                    }
                }
            }
        }
    }
}

/// Reads a NotificationResponse.
fn read(body: &[u8]) -> Option<Notification> {
    let (pid, rest) = body.split_first_chunk::<4>()?;
    let (channel, rest) = cstr(rest)?;
    let (payload, _) = cstr(rest)?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Some(Notification {
        pid: u32::from_be_bytes(*pid),
        channel: text(channel),
        payload: text(payload),
    })
}

/// A text as a literal, whatever `standard_conforming_strings` says.
#[must_use]
pub fn literal(text: &str) -> String {
    let escaped = text
        .replace('\\', r"\\")
        .replace('\'', "''")
        .replace('\0', "");
    format!(" E'{escaped}'")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_notification_is_read_and_a_cut_one_is_not() {
        let heard = read(b"\0\0\0\x07pgvalet_reload\0{}\0").unwrap();
        assert_eq!(
            (heard.pid, &*heard.channel, &*heard.payload),
            (7, "pgvalet_reload", "{}")
        );
        assert_eq!(read(b"\0\0\0\x07pgvalet_reload\0{}"), None);
        assert_eq!(read(b"\0\0"), None);
    }

    #[test]
    fn a_literal_ends_where_it_should() {
        assert_eq!(literal(r"a'b\c"), r" E'a''b\\c'");
    }
}
