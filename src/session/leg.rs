//! Owns what one direction keeps between two reads besides where its scan stands: what a socket would not take.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::AsyncWrite;

use crate::net::Stream;

/// Bytes that a socket would not take yet: while there are any, nothing more is read for it.
#[derive(Debug, Default)]
pub(super) struct Spill(Option<Box<Pending>>);

#[derive(Debug, Default)]
struct Pending {
    /// Empty where only TLS itself still holds some.
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

    /// Counts what the stream itself holds as unwritten.
    pub fn hold(&mut self) {
        self.0.get_or_insert_default();
    }

    /// Writes what the socket takes; the memory is freed with the last byte.
    pub fn poll_flush(
        &mut self,
        stream: &mut (impl AsyncWrite + Unpin),
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        while let Some(pending) = &mut self.0 {
            let rest = &pending.bytes[pending.written..];
            if rest.is_empty() {
                ready!(Pin::new(&mut *stream).poll_flush(cx))?;
                self.0 = None;
                break;
            }
            match ready!(Pin::new(&mut *stream).poll_write(cx, rest))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                count => pending.written += count,
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Writes `bytes`, as far as the socket takes them; the rest waits. Short ones go when all tasks had their say.
    #[inline]
    pub fn poll_write(
        &mut self,
        stream: &mut Stream,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> io::Result<()> {
        let mut rest = bytes;
        if self.0.is_none() && !rest.is_empty() {
            match stream.post(rest) {
                Ok(count) if count == rest.len() && !stream.is_tls() => return Ok(()),
                Ok(count) => rest = &rest[count..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        self.push(rest);
        if self.0.is_none() {
            // TLS takes more than the socket does: what it still holds counts as unwritten.
            if stream.is_tls() && Pin::new(stream).poll_flush(cx)?.is_pending() {
                self.hold();
            }
            return Ok(());
        }
        match self.poll_flush(stream, cx) {
            Poll::Ready(written) => written,
            Poll::Pending => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    /// Takes everything at once, as TLS does, and lets go of it when it may.
    #[derive(Default)]
    struct Hoarder {
        held: Vec<u8>,
        sent: Vec<u8>,
        may_send: bool,
    }

    impl AsyncWrite for Hoarder {
        fn poll_write(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            self.held.extend_from_slice(bytes);
            Poll::Ready(Ok(bytes.len()))
        }

        fn poll_flush(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            if !self.may_send {
                return Poll::Pending;
            }
            let held = std::mem::take(&mut self.held);
            self.sent.extend_from_slice(&held);
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[test]
    fn bytes_that_tls_still_holds_count_as_unwritten() {
        let mut context = Context::from_waker(Waker::noop());
        let (mut spill, mut hoarder) = (Spill::default(), Hoarder::default());

        spill.push(b"one");
        assert!(spill.poll_flush(&mut hoarder, &mut context).is_pending());
        assert!(!spill.is_empty());
        spill.push(b"two");
        assert!(spill.poll_flush(&mut hoarder, &mut context).is_pending());

        hoarder.may_send = true;
        assert!(spill.poll_flush(&mut hoarder, &mut context).is_ready());
        assert!(spill.is_empty());
        assert_eq!(hoarder.sent, b"onetwo");
    }
}
