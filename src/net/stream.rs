//! Owns one connected socket of either leg.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::TlsStream;

use crate::config::Tcp;
use crate::net::Socket;

/// A connected socket: TCP, TLS over it, or unix.
#[derive(Debug)]
pub enum Stream {
    Tcp(Socket),
    /// Boxed: nobody else shall pay for its size.
    Tls(Box<TlsStream<Socket>>),
    Unix(Socket),
}

/// Where a connection to PostgreSQL leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spot {
    /// The number of the upstream's host.
    pub host: usize,
    /// Which of its addresses; none for a unix socket.
    pub address: Option<SocketAddr>,
}

/// What a socket that nobody reads has to say.
#[derive(Debug, PartialEq, Eq)]
pub enum Pulse {
    /// Nothing: it is alive, as far as the kernel knows.
    Quiet,
    /// There are bytes to read, or its end.
    Stirring,
}

impl Stream {
    /// Connects over TCP.
    ///
    /// # Errors
    /// The kernel's.
    pub async fn connect_tcp(address: SocketAddr, tcp: Tcp) -> io::Result<Self> {
        let stream = Socket::connect_tcp(address).await?;
        tune(&stream, tcp)?;
        Ok(Self::Tcp(stream))
    }

    /// Connects to a unix socket.
    ///
    /// # Errors
    /// The kernel's.
    pub fn connect_unix(path: &Path) -> io::Result<Self> {
        Ok(Self::Unix(Socket::connect_unix(path)?))
    }

    /// Whether it is encrypted.
    #[must_use]
    pub fn is_tls(&self) -> bool {
        matches!(self, Self::Tls(_))
    }

    /// The certificate that the peer has shown, if any.
    #[must_use]
    pub fn peer_certificate(&self) -> Option<&CertificateDer<'static>> {
        match self {
            Self::Tls(stream) => stream.get_ref().1.peer_certificates()?.first(),
            Self::Tcp(_) | Self::Unix(_) => None,
        }
    }

    /// The protocol that was agreed on with TLS, if any.
    #[must_use]
    pub fn alpn(&self) -> Option<&[u8]> {
        match self {
            Self::Tls(stream) => stream.get_ref().1.alpn_protocol(),
            Self::Tcp(_) | Self::Unix(_) => None,
        }
    }

    /// The TCP connection below, if any.
    #[must_use]
    pub fn tcp(&self) -> Option<&Socket> {
        match self {
            Self::Tcp(stream) => Some(stream),
            Self::Tls(stream) => Some(stream.get_ref().0),
            Self::Unix(_) => None,
        }
    }

    /// The socket itself, where nothing is encrypted.
    pub fn plain_mut(&mut self) -> Option<&mut Socket> {
        match self {
            Self::Tcp(stream) | Self::Unix(stream) => Some(stream),
            Self::Tls(_) => None,
        }
    }

    /// Whether anything waits to be read.
    #[must_use]
    pub fn pulse(&self) -> Pulse {
        let stirs = match self {
            Self::Tcp(stream) | Self::Unix(stream) => stream.is_readable(),
            // It may have been read from the socket already.
            Self::Tls(stream) => {
                !stream.get_ref().1.wants_read() || stream.get_ref().0.is_readable()
            }
        };
        if stirs { Pulse::Stirring } else { Pulse::Quiet }
    }

    /// Whether there is nothing to read before the next event, which wakes whoever has polled last. What TLS keeps isn't known.
    #[inline]
    #[must_use]
    pub fn is_drained(&self) -> bool {
        match self {
            Self::Tcp(stream) | Self::Unix(stream) => !stream.is_readable(),
            Self::Tls(_) => false,
        }
    }

    /// Reads what is there, without waiting. A short read takes the readiness with it: no second read will find nothing.
    ///
    /// # Errors
    /// `WouldBlock` when nothing is; else the kernel's, or that of TLS.
    pub fn try_read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) | Self::Unix(stream) => stream.receive(buf).into(),
            Self::Tls(_) => {
                let mut buf = ReadBuf::new(buf);
                let mut context = Context::from_waker(Waker::noop());
                let read = at_once(Pin::new(self).poll_read(&mut context, &mut buf));
                read.map(|()| buf.filled().len())
            }
        }
    }

    /// Writes what fits into the socket's buffer, without waiting. TLS takes some more: only a flush sends it all.
    ///
    /// # Errors
    /// `WouldBlock` when nothing fits; else the kernel's, or that of TLS.
    #[inline]
    pub fn try_write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) | Self::Unix(stream) => stream.send(buf).into(),
            Self::Tls(stream) => {
                let mut context = Context::from_waker(Waker::noop());
                at_once(Pin::new(stream).poll_write(&mut context, buf))
            }
        }
    }

    /// Writes like `try_write`, but a short message, if nothing is encrypted, goes only once all tasks that are due had their
    /// say. What doesn't fit then is told by `is_stuck`; if the connection is broken by then, reading finds its end.
    ///
    /// # Errors
    /// `WouldBlock` when nothing fits; else the kernel's, or that of TLS.
    #[inline]
    pub fn post(&mut self, buf: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) | Self::Unix(stream) => stream.post(buf).into(),
            Self::Tls(_) => self.try_write(buf),
        }
    }

    /// Whether something that was posted didn't fit: a flush sends it.
    #[inline]
    #[must_use]
    pub fn is_stuck(&self) -> bool {
        match self {
            Self::Tcp(stream) | Self::Unix(stream) => stream.is_stuck(),
            Self::Tls(stream) => stream.get_ref().0.is_stuck(),
        }
    }

    /// Whether a flush has something to do.
    #[must_use]
    pub fn owes(&self) -> bool {
        match self {
            Self::Tcp(stream) | Self::Unix(stream) => stream.owes(),
            Self::Tls(_) => true,
        }
    }

    /// Reads like `poll_read`, into plain memory.
    ///
    /// # Errors
    /// The kernel's, or that of TLS.
    #[inline]
    pub fn poll_recv(&mut self, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        match self {
            Self::Tcp(stream) | Self::Unix(stream) => stream.poll_receive(cx, buf),
            // What the socket says is not what the connection has to say.
            Self::Tls(_) => {
                let mut buf = ReadBuf::new(buf);
                let read = Pin::new(self).poll_read(cx, &mut buf);
                read.map_ok(|()| buf.filled().len())
            }
        }
    }
}

/// What was done without waiting.
fn at_once<T>(done: Poll<io::Result<T>>) -> io::Result<T> {
    match done {
        Poll::Ready(result) => result,
        Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
    }
}

/// No delay for small messages, a keepalive for silent peers, and the bound for unacknowledged bytes. On Linux a listener's
/// connections inherit all of it: that saves each of them five system calls.
pub(super) fn tune(socket: &impl AsFd, tcp: Tcp) -> io::Result<()> {
    let socket = SockRef::from(socket);
    socket.set_tcp_nodelay(true)?;
    if !tcp.keepalive_idle.is_zero() {
        // The kernel counts in seconds, from one on.
        let whole = |time: Duration| time.max(Duration::from_secs(1));
        let mut keepalive = TcpKeepalive::new()
            .with_time(whole(tcp.keepalive_idle))
            .with_interval(whole(tcp.keepalive_interval));
        if let Some(count) = u32::try_from(tcp.keepalive_count)
            .ok()
            .filter(|count| *count > 0)
        {
            keepalive = keepalive.with_retries(count);
        }
        socket.set_tcp_keepalive(&keepalive)?;
    }
    if !tcp.user_timeout.is_zero() {
        socket.set_tcp_user_timeout(Some(tcp.user_timeout))?;
    }
    Ok(())
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) | Self::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => match Pin::new(stream).poll_read(cx, buf) {
                // A peer that is killed says no goodbye. The protocol's own frames tell whether anything is missing.
                Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    Poll::Ready(Ok(()))
                }
                read => read,
            },
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) | Self::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    /// What TLS has taken, or what was posted, may not have reached the socket yet: only a flush says that it has.
    #[inline]
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) | Self::Unix(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) | Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::executor::on_executor;

    #[test]
    fn both_ends_are_set_up_alike() {
        on_executor(async {
            let tcp = Tcp {
                user_timeout: Duration::from_secs(7),
                keepalive_idle: Duration::from_secs(33),
                keepalive_interval: Duration::from_secs(5),
                keepalive_count: 4,
            };
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            tune(&listener, tcp).unwrap();
            let address = listener.local_addr().unwrap();
            let near = Stream::connect_tcp(address, tcp).await.unwrap();
            let far = listener.accept().unwrap().0;
            far.set_nonblocking(true).unwrap();
            let far = Stream::Tcp(Socket::new(far.into()).unwrap());
            for stream in [&near, &far] {
                let socket = SockRef::from(stream.tcp().unwrap());
                assert!(socket.tcp_nodelay().unwrap() && socket.keepalive().unwrap());
                assert_eq!(socket.tcp_user_timeout().unwrap(), Some(tcp.user_timeout));
                assert_eq!(socket.tcp_keepalive_time().unwrap(), tcp.keepalive_idle);
                assert_eq!(
                    socket.tcp_keepalive_interval().unwrap(),
                    tcp.keepalive_interval
                );
                assert_eq!(socket.tcp_keepalive_retries().unwrap(), 4);
            }
            let off = Tcp {
                keepalive_idle: Duration::ZERO,
                ..tcp
            };
            let silent = Stream::connect_tcp(address, off).await.unwrap();
            assert!(!SockRef::from(silent.tcp().unwrap()).keepalive().unwrap());
        });
    }
}
