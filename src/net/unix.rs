//! Owns the unix sockets of both legs.
//!
//! A unix socket becomes writable each time that its peer has read: who asks to be told of it is woken for nothing, once a
//! message. So a socket is registered for reading alone, until it would not take what was written.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::task::{Context, Poll, ready};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, UCred};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A connected unix socket.
#[derive(Debug)]
pub struct UnixSocket {
    fd: AsyncFd<UnixStream>,
    interest: Interest,
    /// The registration is new: whoever was registered to be woken isn't any more.
    renewed: bool,
}

impl UnixSocket {
    /// Registers a connected socket with the runtime of this thread.
    ///
    /// # Errors
    /// The runtime's.
    pub fn new(socket: impl Into<OwnedFd>) -> io::Result<Self> {
        let socket = UnixStream::from(socket.into());
        socket.set_nonblocking(true)?;
        Self::registered(socket)
    }

    /// Registers one that doesn't block.
    pub(super) fn registered(socket: UnixStream) -> io::Result<Self> {
        let interest = Interest::READABLE;
        Ok(Self {
            fd: register(socket, interest)?,
            interest,
            renewed: false,
        })
    }

    /// Connects at once, or not at all: a unix socket has no way to go.
    ///
    /// # Errors
    /// The kernel's; `WouldBlock` where too many wait to be accepted.
    pub fn connect(path: &Path) -> io::Result<Self> {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
        Self::registered(socket.into())
    }

    /// The process at the other end, and its user.
    ///
    /// # Errors
    /// The kernel's.
    pub fn peer_credentials(&self) -> io::Result<UCred> {
        Ok(rustix::net::sockopt::socket_peercred(self)?)
    }

    /// Waits until there is something to read, as far as anybody knows.
    pub(super) fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.fd.poll_read_ready(cx).map_ok(drop)
    }

    /// Waits until there is room. The task is woken once more where the registration is new: it has to arm anew what it had
    /// armed.
    pub(super) fn poll_writable(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.interest.is_writable() {
            cx.waker().wake_by_ref();
            let interest = self.interest | Interest::WRITABLE;
            let Ok(fd) = self
                .fd
                .get_ref()
                .try_clone()
                .and_then(|again| register(again, interest))
            else {
                // Out of file descriptors: tried again as long as it takes.
                return Poll::Pending;
            };
            (self.fd, self.interest, self.renewed) = (fd, interest, true);
        }
        ready!(self.fd.poll_write_ready(cx))?.retain_ready();
        Poll::Ready(Ok(()))
    }

    /// Whether the registration is new since this was last asked.
    pub(super) fn is_renewed(&mut self) -> bool {
        std::mem::take(&mut self.renewed)
    }

    /// Makes the call if the socket is ready, as far as anybody knows; `WouldBlock` from the call says that it isn't.
    pub(super) fn attempt(
        &self,
        interest: Interest,
        call: impl FnOnce() -> io::Result<()>,
    ) -> io::Result<()> {
        if interest.is_writable() && !self.interest.is_writable() {
            return call();
        }
        self.fd.try_io(interest, |_| call())
    }
}

/// Registers what owns a file descriptor that stays the same, as everything in the standard library does.
#[expect(
    deprecated,
    reason = "the way that replaces it is unsafe for the sake of types whose descriptor may change"
)]
pub(super) fn register<T: AsRawFd + AsFd>(socket: T, interest: Interest) -> io::Result<AsyncFd<T>> {
    AsyncFd::with_interest(socket, interest)
}

impl AsFd for UnixSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::io::{Read, Write};
    use std::pin::Pin;

    use tokio::io::AsyncWrite;

    use super::*;
    use crate::net::Stream;

    #[tokio::test]
    async fn a_full_socket_is_registered_for_writing_and_still_wakes_its_reader() {
        let (near, mut far) = UnixStream::pair().unwrap();
        let mut near = Stream::Unix(UnixSocket::new(near).unwrap());
        let (mut armed, mut buf) = (false, [0; 8]);
        let waits =
            poll_fn(|cx| Poll::Ready(near.poll_recv(cx, &mut buf, &mut armed).is_pending()));
        assert!(waits.await && armed);

        let mut sent = 0;
        let mut chunk = || near.try_write(&[7; 4096]);
        while let Ok(count) = chunk() {
            sent += count;
        }
        let full = poll_fn(|cx| Poll::Ready(Pin::new(&mut near).poll_write(cx, b"x").is_pending()));
        assert!(full.await);

        far.write_all(b"news").unwrap();
        let read = poll_fn(|cx| near.poll_recv(cx, &mut buf, &mut armed))
            .await
            .unwrap();
        assert_eq!(&buf[..read], b"news");
        far.read_exact(&mut vec![0; sent]).unwrap();
        let written = poll_fn(|cx| Pin::new(&mut near).poll_write(cx, b"x"))
            .await
            .unwrap();
        assert_eq!(written, 1);
    }
}
