//! Owns the kernel's sockets of both legs, TCP and unix alike.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use rustix::io::Errno;
use rustix::net::{
    self, AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, UCred,
};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::executor::Registered;

/// A connected socket that doesn't block.
#[derive(Debug)]
pub struct Socket {
    fd: Registered,
    /// What was read of it and belongs to whoever reads next.
    ahead: Box<[u8]>,
}

/// A socket on its way from one thread to another.
pub(super) struct Loose {
    pub socket: OwnedFd,
    /// What was read of it already.
    pub ahead: Box<[u8]>,
}

impl Loose {
    /// Registers it with the executor of this thread.
    ///
    /// # Errors
    /// The kernel's.
    pub fn registered(self) -> io::Result<Socket> {
        let ahead = self.ahead;
        Ok(Socket {
            ahead,
            ..Socket::new(self.socket)?
        })
    }
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
    /// Registers a connected socket that doesn't block with the executor of this thread.
    ///
    /// # Errors
    /// The kernel's.
    pub fn new(socket: OwnedFd) -> io::Result<Self> {
        Ok(Self {
            fd: Registered::new(socket)?,
            ahead: Box::default(),
        })
    }

    /// Connects over TCP. Cancel safe: the connection is closed.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) async fn connect_tcp(address: SocketAddr) -> io::Result<Self> {
        let family = match address {
            SocketAddr::V4(_) => AddressFamily::INET,
            SocketAddr::V6(_) => AddressFamily::INET6,
        };
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = net::socket_with(family, SocketType::STREAM, flags, None)?;
        match net::connect(&socket, &address) {
            Ok(()) | Err(Errno::INPROGRESS) => {}
            Err(error) => return Err(error.into()),
        }
        let socket = Self::new(socket)?;
        poll_fn(|cx| socket.fd.poll_writable(cx)).await?;
        net::sockopt::socket_error(&socket)??;
        Ok(socket)
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

    /// Takes it from the executor of this thread.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn loose(self) -> io::Result<Loose> {
        Ok(Loose {
            socket: self.fd.into_inner()?,
            ahead: self.ahead,
        })
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

    /// Whether there is something to read, as far as anybody knows.
    #[inline]
    pub(super) fn is_readable(&self) -> bool {
        !self.ahead.is_empty() || self.fd.is_readable()
    }

    #[inline]
    pub(super) fn receive(&mut self, buf: &mut [u8]) -> Tried {
        if !self.ahead.is_empty() {
            return Tried::Done(self.receive_ahead(buf));
        }
        if !self.fd.is_readable() {
            return Tried::NotReady;
        }
        match net::recv(&self.fd, &mut *buf, RecvFlags::empty()) {
            Ok((count, _)) => {
                // A second call would only say that all is read.
                if count < buf.len() {
                    self.fd.nothing_to_read();
                }
                Tried::Done(count)
            }
            Err(Errno::AGAIN) => {
                self.fd.nothing_to_read();
                Tried::NotReady
            }
            Err(error) => Tried::Failed(error),
        }
    }

    #[cold]
    fn receive_ahead(&mut self, buf: &mut [u8]) -> usize {
        let count = self.ahead.len().min(buf.len());
        let (now, later) = self.ahead.split_at(count);
        buf[..count].copy_from_slice(now);
        self.ahead = later.into();
        count
    }

    /// Receives whatever is known: a new socket's first bytes are often there before anybody was told.
    ///
    /// # Errors
    /// `WouldBlock` where nothing is there; else the kernel's.
    pub fn receive_early(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if !self.ahead.is_empty() {
            return Ok(self.receive_ahead(buf));
        }
        Ok(net::recv(&*self, buf, RecvFlags::empty())?.0)
    }

    /// Has `buf` sent once all tasks that are due had their say, if it is short. If the connection is broken by then, reading
    /// finds its end.
    #[inline]
    pub(super) fn post(&self, buf: &[u8]) -> Tried {
        if self.fd.post(buf) {
            return Tried::Done(buf.len());
        }
        self.send(buf)
    }

    /// Whether something that was posted didn't fit: `poll_flush` sends it.
    #[inline]
    pub(super) fn is_stuck(&self) -> bool {
        self.fd.is_stuck()
    }

    /// Whether something that was posted isn't sent yet.
    pub(super) fn owes(&self) -> bool {
        self.fd.owes()
    }

    #[inline]
    pub(super) fn send(&self, buf: &[u8]) -> Tried {
        match self.fd.settle() {
            Ok(true) => {}
            Ok(false) => return Tried::NotReady,
            Err(error) => return Tried::Failed(error),
        }
        match net::send(&self.fd, buf, SendFlags::NOSIGNAL) {
            Ok(count) => Tried::Done(count),
            Err(Errno::AGAIN) => {
                self.fd.no_room();
                Tried::NotReady
            }
            Err(error) => Tried::Failed(error),
        }
    }

    /// Receives what is there, or has the task woken when something is.
    #[inline]
    pub(super) fn poll_receive(
        &mut self,
        cx: &Context<'_>,
        buf: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        if self.ahead.is_empty() {
            ready!(self.fd.poll_readable(cx));
        }
        match self.receive(buf) {
            Tried::NotReady => Poll::Pending,
            tried => Poll::Ready(tried.into()),
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let count = ready!(self.get_mut().poll_receive(cx, buf.initialize_unfilled()))?;
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
                Tried::NotReady => ready!(socket.fd.poll_writable(cx))?,
                tried => break Poll::Ready(tried.into()),
            }
        }
    }

    /// Sends what was posted.
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.fd.settle()? {
            ready!(self.fd.poll_writable(cx))?;
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.as_mut().poll_flush(cx))?;
        Poll::Ready(Ok(net::shutdown(&*self, net::Shutdown::Write)?))
    }
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
    use crate::executor::on_executor;
    use crate::net::Stream;

    #[test]
    fn a_full_socket_is_registered_for_writing_and_still_wakes_its_reader() {
        on_executor(async {
            let (near, mut far) = UnixStream::pair().unwrap();
            near.set_nonblocking(true).unwrap();
            let mut near = Stream::Unix(Socket::new(near.into()).unwrap());
            let mut buf = [0; 8];
            let waits = poll_fn(|cx| Poll::Ready(near.poll_recv(cx, &mut buf).is_pending()));
            assert!(waits.await);

            let mut sent = 0;
            let mut chunk = || near.try_write(&[7; 4096]);
            while let Ok(count) = chunk() {
                sent += count;
            }
            let full =
                poll_fn(|cx| Poll::Ready(Pin::new(&mut near).poll_write(cx, b"x").is_pending()));
            assert!(full.await);

            far.write_all(b"news").unwrap();
            let read = poll_fn(|cx| near.poll_recv(cx, &mut buf)).await.unwrap();
            assert_eq!(&buf[..read], b"news");
            far.read_exact(&mut vec![0; sent]).unwrap();
            let written = poll_fn(|cx| Pin::new(&mut near).poll_write(cx, b"x"))
                .await
                .unwrap();
            assert_eq!(written, 1);
        });
    }

    #[test]
    fn nobody_listens_is_an_error() {
        on_executor(async {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let address = listener.local_addr().unwrap();
            let mut there = Stream::Tcp(Socket::connect_tcp(address).await.unwrap());
            listener.accept().unwrap().0.write_all(b"hello").unwrap();
            let mut buf = [0; 8];
            let read = poll_fn(|cx| there.poll_recv(cx, &mut buf)).await.unwrap();
            assert_eq!(&buf[..read], b"hello");
            drop(listener);
            let refused = Socket::connect_tcp(address).await.unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        });
    }
}
