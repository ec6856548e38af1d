//! Owns a conversation of our own with a backend: a request, and all its answers.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::backend::Backend;
use crate::clock::timers;
use crate::lease::Status;
use crate::wire::frame::Header;
use crate::wire::reply::{ClientError, Fields};

/// The most that one conversation may bring, in bytes: more than every setting and prepared statement we keep.
const MAX_ANSWER: usize = 64 << 20;

/// A backend that can't be spoken with any more.
#[derive(Debug, thiserror::Error)]
pub enum Lost {
    #[error("the connection to PostgreSQL broke: {0}")]
    Io(#[from] io::Error),
    #[error("PostgreSQL closed the connection")]
    Closed,
    #[error("PostgreSQL ended the connection: {}", .0.message)]
    Ended(Box<ClientError>),
    #[error("PostgreSQL didn't answer within {}", humantime::format_duration(*.0))]
    Late(Duration),
    #[error("PostgreSQL sent something that the protocol doesn't allow here")]
    Protocol,
}

/// All answers to one request of ours.
#[derive(Debug)]
pub struct Answers {
    /// The columns of each row, in order.
    pub rows: Vec<Vec<Option<String>>>,
    /// The first error.
    pub error: Option<Fields>,
    /// The status of the last ReadyForQuery.
    pub status: Status,
    /// Notifications that came meanwhile, as frames: they are the session's.
    pub notifications: Vec<u8>,
}

/// How long a backend may take to answer us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// As long as the question says: somebody waits.
    Brisk,
    /// As long as it takes.
    Leisurely,
}

impl Backend {
    /// As [`Backend::exchange`], within `patience`, unless nobody waits for it.
    ///
    /// Not cancel safe: a backend whose conversation was broken off is lost.
    ///
    /// # Errors
    /// As there; and the time is over.
    pub async fn exchange_within(
        &mut self,
        patience: Duration,
        request: &[u8],
        readies: usize,
    ) -> Result<Answers, Lost> {
        if self.pace == Pace::Leisurely {
            return self.exchange(request, readies).await;
        }
        let answers = timers::timeout(patience, self.exchange(request, readies)).await;
        answers.map_err(|_| Lost::Late(patience))?
    }

    /// Sends `request` and reads until `readies` ReadyForQuery have come.
    ///
    /// Not cancel safe: a backend whose conversation was broken off is lost.
    ///
    /// # Errors
    /// The connection broke, or what came isn't the protocol.
    pub async fn exchange(&mut self, request: &[u8], readies: usize) -> Result<Answers, Lost> {
        let mut answers = Answers {
            rows: Vec::new(),
            error: None,
            status: Status::Idle,
            notifications: Vec::new(),
        };
        let mut unread = std::mem::take(&mut self.unread);
        let mut statuses = Vec::new();
        {
            let (mut reader, mut writer) = tokio::io::split(&mut self.stream);
            let write = async {
                writer.write_all(request).await?;
                writer.flush().await.map_err(Lost::from)
            };
            let read = read_answers(
                &mut reader,
                &mut unread,
                readies,
                &mut answers,
                &mut statuses,
            );
            tokio::try_join!(write, read)?;
        }
        self.unread = unread;
        for body in statuses {
            self.note_parameter(&body);
        }
        Ok(answers)
    }
}

async fn read_answers(
    reader: &mut (impl AsyncReadExt + Unpin),
    unread: &mut Vec<u8>,
    readies: usize,
    answers: &mut Answers,
    statuses: &mut Vec<Vec<u8>>,
) -> Result<(), Lost> {
    let mut left = readies;
    let mut total = 0;
    while left > 0 {
        while let Some(header) = Header::read(unread).map_err(|_| Lost::Protocol)? {
            if header.body > MAX_ANSWER {
                return Err(Lost::Protocol);
            }
            if unread.len() < header.total() {
                break;
            }
            let frame: Vec<u8> = unread.drain(..header.total()).collect();
            match header.kind {
                b'S' => statuses.push(frame[5..].to_vec()),
                b'A' => answers.notifications.extend_from_slice(&frame),
                kind => left -= usize::from(answers.take(kind, &frame[5..])?),
            }
            if left == 0 {
                return Ok(());
            }
        }
        let count = reader.read_buf(unread).await?;
        total += count;
        if count == 0 {
            return Err(Lost::Closed);
        }
        if total > MAX_ANSWER {
            return Err(Lost::Protocol);
        }
    }
    Ok(())
}

impl Answers {
    /// Takes in one message; `true` for a ReadyForQuery.
    fn take(&mut self, kind: u8, body: &[u8]) -> Result<bool, Lost> {
        match kind {
            b'Z' => {
                self.status = body
                    .first()
                    .copied()
                    .and_then(Status::from_byte)
                    .ok_or(Lost::Protocol)?;
                return Ok(true);
            }
            b'D' => self.rows.push(read_row(body).ok_or(Lost::Protocol)?),
            b'E' => {
                let fields = Fields::read(body);
                if matches!(fields.severity.as_str(), "FATAL" | "PANIC") {
                    let words = ClientError::from_postgresql(body);
                    return Err(Lost::Ended(Box::new(words)));
                }
                self.error.get_or_insert(fields);
            }
            _ => {}
        }
        Ok(false)
    }
}

/// Reads the columns of a DataRow in text format.
fn read_row(body: &[u8]) -> Option<Vec<Option<String>>> {
    let (count, mut rest) = body.split_first_chunk::<2>()?;
    let mut row = Vec::new();
    for _ in 0..u16::from_be_bytes(*count) {
        let (length, tail) = rest.split_first_chunk::<4>()?;
        rest = tail;
        match usize::try_from(i32::from_be_bytes(*length)) {
            Err(_) => row.push(None),
            Ok(length) => {
                row.push(Some(
                    String::from_utf8_lossy(rest.get(..length)?).into_owned(),
                ));
                rest = &rest[length..];
            }
        }
    }
    Some(row)
}

#[cfg(test)]
mod tests {
    use super::read_row;

    #[test]
    fn a_row_is_read_with_its_nulls() {
        let row = read_row(b"\0\x03\0\0\0\x01a\xFF\xFF\xFF\xFF\0\0\0\0").unwrap();
        assert_eq!(row, [Some("a".to_owned()), None, Some(String::new())]);
    }

    #[test]
    fn a_row_that_is_cut_is_refused() {
        assert_eq!(read_row(b"\0\x01\0\0\0\x05ab"), None);
        assert_eq!(read_row(b"\0"), None);
    }
}
