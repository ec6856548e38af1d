//! Owns what one direction keeps between two reads: where the scan stands, and what a socket would not take.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::AsyncWrite;

use crate::net::Stream;

/// Where the scan of one direction stands.
#[derive(Debug, Default)]
pub(super) struct Cursor {
    /// Bytes of the current frame's body that are still to come, and pass unread.
    pub skip: usize,
    /// Those bytes are dropped, not forwarded.
    pub dropping: bool,
    /// `carry` begins with a frame that waits until everything before it is answered: nothing more is read meanwhile.
    pub held: bool,
    /// The beginning of a frame that can't be judged yet. Empty, and without memory, at most moments.
    pub carry: Vec<u8>,
}

impl Cursor {
    /// Whether the scan stands between two frames.
    pub fn is_between_frames(&self) -> bool {
        self.skip == 0 && self.carry.is_empty()
    }

    /// Keeps the beginning of a frame.
    pub fn keep(&mut self, bytes: &[u8]) {
        self.carry.extend_from_slice(bytes);
    }
}

/// Bytes that a socket would not take yet: while there are any, nothing more is read for it.
#[derive(Debug, Default)]
pub(super) struct Spill(Option<Box<Pending>>);

#[derive(Debug)]
struct Pending {
    bytes: Vec<u8>,
    written: usize,
}

impl Spill {
    /// Whether all is written.
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// Adds bytes behind those that wait.
    pub fn push(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        match &mut self.0 {
            Some(pending) => pending.bytes.extend_from_slice(bytes),
            None => {
                self.0 = Some(Box::new(Pending {
                    bytes: bytes.to_vec(),
                    written: 0,
                }))
            }
        }
    }

    /// Writes what the socket takes; the memory is freed with the last byte.
    pub fn poll_flush(
        &mut self,
        stream: &mut (impl AsyncWrite + Unpin),
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        while let Some(pending) = &mut self.0 {
            let rest = &pending.bytes[pending.written..];
            match Pin::new(&mut *stream).poll_write(cx, rest) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(count)) => pending.written += count,
            }
            if pending.written == pending.bytes.len() {
                self.0 = None;
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Writes `bytes` at once, as far as the socket takes them; the rest waits.
    pub fn poll_write(
        &mut self,
        stream: &mut Stream,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> io::Result<()> {
        let mut rest = bytes;
        if self.0.is_none() && !rest.is_empty() {
            match stream.try_write(rest) {
                Ok(count) => rest = &rest[count..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        self.push(rest);
        if self.0.is_none() {
            return Ok(());
        }
        match self.poll_flush(stream, cx) {
            Poll::Ready(written) => written,
            Poll::Pending => Ok(()),
        }
    }
}
