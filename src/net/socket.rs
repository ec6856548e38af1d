//! Owns the kernel's sockets of both legs, TCP and unix alike.
//!
//! A socket is registered for reading alone, until it would not take what was written: a new one is always writable, and a
//! unix socket becomes so each time that its peer has read, which would wake us for nothing, once a message.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use rustix::io::Errno;
use rustix::net::{
    self, AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, UCred,
};
use socket2::SockRef;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;

/// A connected socket that doesn't block.
#[derive(Debug)]
pub struct Socket {
    fd: AsyncFd<OwnedFd>,
    interest: Interest,
    /// The registration is new: whoever was registered to be woken isn't any more.
    renewed: bool,
    /// What was read of it and belongs to whoever reads next.
    ahead: Box<[u8]>,
}

/// What a call that doesn't wait came to.
pub(super) enum Tried {
    NotReady,
    Done(usize),
    Failed(Errno),
}

impl From<Tried> for io::Result<usize> {
    fn from(tried: Tried) -> Self {
        match tried {
            Tried::NotReady => Err(io::ErrorKind::WouldBlock.into()),
            Tried::Done(count) => Ok(count),
            Tried::Failed(error) => Err(error.into()),
        }
    }
}

impl Socket {
    /// Registers a connected socket that doesn't block with the runtime of this thread.
    ///
    /// # Errors
    /// The runtime's.
    pub fn new(socket: OwnedFd) -> io::Result<Self> {
        let interest = Interest::READABLE;
        Ok(Self {
            fd: register(socket, interest)?,
            interest,
            renewed: false,
            ahead: Box::default(),
        })
    }

    /// Connects over TCP.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) async fn connect_tcp(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        Self::new(stream.into_std()?.into())
    }

    /// Connects to a unix socket: at once, or not at all.
    ///
    /// # Errors
    /// The kernel's; `WouldBlock` where too many wait to be accepted.
    pub(super) fn connect_unix(path: &Path) -> io::Result<Self> {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        net::connect(&socket, &SocketAddrUnix::new(path)?)?;
        Self::new(socket)
    }

    /// Takes it from the runtime of this thread.
    pub(super) fn into_fd(self) -> OwnedFd {
        self.fd.into_inner()
    }

    /// This end's address; none of a unix socket.
    #[must_use]
    pub fn local_address(&self) -> Option<SocketAddr> {
        SockRef::from(self).local_addr().ok()?.as_socket()
    }

    /// The other end's address; none of a unix socket.
    #[must_use]
    pub fn peer_address(&self) -> Option<SocketAddr> {
        SockRef::from(self).peer_addr().ok()?.as_socket()
    }

    /// The process at the other end, and its user.
    ///
    /// # Errors
    /// The kernel's.
    pub fn peer_credentials(&self) -> io::Result<UCred> {
        Ok(net::sockopt::socket_peercred(self)?)
    }

    /// Gives bytes that were read back to whoever reads next.
    pub fn unread(&mut self, bytes: &[u8]) {
        self.ahead = [bytes, &self.ahead].concat().into();
    }

    /// Waits until there is something to read, as far as anybody knows.
    pub(super) fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.ahead.is_empty() {
            return Poll::Ready(Ok(()));
        }
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

    /// Makes the call if the socket is ready, as far as anybody knows. Calls the kernel directly: neither libc's wrappers, nor
    /// a second call that would only say that all is done.
    #[inline]
    fn attempt(
        &self,
        wanted: usize,
        interest: Interest,
        call: impl FnOnce(BorrowedFd<'_>) -> Result<usize, Errno>,
    ) -> Tried {
        let mut tried = Tried::NotReady;
        let call = || match call(self.as_fd()) {
            Ok(count) => {
                tried = Tried::Done(count);
                if (1..wanted).contains(&count) {
                    Err(io::ErrorKind::WouldBlock.into())
                } else {
                    Ok(())
                }
            }
            Err(Errno::AGAIN) => Err(io::ErrorKind::WouldBlock.into()),
            Err(error) => {
                tried = Tried::Failed(error);
                Ok(())
            }
        };
        // What it says is in `tried` already.
        let _: io::Result<()> = if interest.is_writable() && !self.interest.is_writable() {
            call()
        } else {
            self.fd.try_io(interest, |_| call())
        };
        tried
    }

    #[inline]
    pub(super) fn receive(&mut self, buf: &mut [u8]) -> Tried {
        if !self.ahead.is_empty() {
            return Tried::Done(self.receive_ahead(buf));
        }
        self.attempt(buf.len(), Interest::READABLE, |socket| {
            Ok(net::recv(socket, &mut *buf, RecvFlags::empty())?.0)
        })
    }

    #[cold]
    fn receive_ahead(&mut self, buf: &mut [u8]) -> usize {
        let count = self.ahead.len().min(buf.len());
        let (now, later) = self.ahead.split_at(count);
        buf[..count].copy_from_slice(now);
        self.ahead = later.into();
        count
    }

    /// Receives whatever the runtime believes: a new socket's first bytes are often there before anybody was told.
    ///
    /// # Errors
    /// `WouldBlock` where nothing is there; else the kernel's.
    pub fn receive_early(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if !self.ahead.is_empty() {
            return Ok(self.receive_ahead(buf));
        }
        Ok(net::recv(&*self, buf, RecvFlags::empty())?.0)
    }

    #[inline]
    pub(super) fn send(&self, buf: &[u8]) -> Tried {
        self.attempt(buf.len(), Interest::WRITABLE, |socket| {
            net::send(socket, buf, SendFlags::NOSIGNAL)
        })
    }

    /// Receives, and registers its waker only when it isn't registered yet: that is what `armed` remembers.
    #[inline]
    pub(super) fn poll_receive(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut [u8],
        armed: &mut bool,
    ) -> Poll<io::Result<usize>> {
        *armed &= !std::mem::take(&mut self.renewed);
        loop {
            if !*armed {
                match self.poll_readable(cx) {
                    Poll::Pending => {
                        *armed = true;
                        return Poll::Pending;
                    }
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                    Poll::Ready(Ok(())) => {}
                }
            }
            match self.receive(buf) {
                Tried::NotReady if *armed => return Poll::Pending,
                Tried::NotReady => {}
                tried => {
                    *armed = false;
                    return Poll::Ready(tried.into());
                }
            }
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let count = ready!(
            self.get_mut()
                .poll_receive(cx, buf.initialize_unfilled(), &mut false)
        )?;
        buf.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let socket = self.get_mut();
        loop {
            match socket.send(buf) {
                Tried::NotReady => ready!(socket.poll_writable(cx))?,
                tried => break Poll::Ready(tried.into()),
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(net::shutdown(&*self, net::Shutdown::Write)?))
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

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::net::Stream;

    #[tokio::test]
    async fn a_full_socket_is_registered_for_writing_and_still_wakes_its_reader() {
        let (near, mut far) = UnixStream::pair().unwrap();
        near.set_nonblocking(true).unwrap();
        let mut near = Stream::Unix(Socket::new(near.into()).unwrap());
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
