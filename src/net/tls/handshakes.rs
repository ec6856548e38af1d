//! Owns the thread on which TLS handshakes run: their cryptography takes milliseconds, and a data thread has none to spare.
//!
//! A socket goes there, and comes back with the connection that was negotiated; from then on it belongs to the data thread.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, ServerConfig, ServerConnection};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::runtime::{Builder, Handle};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

use crate::net::socket::Loose;
use crate::net::{Socket, Stream};

/// Where handshakes run. Clones share the thread; it ends with the last of them.
#[derive(Clone, Debug)]
pub struct Handshakes {
    runtime: Handle,
    _alive: mpsc::Sender<()>,
}

impl Handshakes {
    /// Starts the thread.
    ///
    /// # Errors
    /// The system refused a thread or a runtime.
    pub fn start() -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (alive, mut ended) = mpsc::channel::<()>(1);
        let work = move || {
            runtime.block_on(ended.recv());
        };
        std::thread::Builder::new()
            .name("pgvalet-tls".to_owned())
            .spawn(work)?;
        Ok(Self {
            runtime: handle,
            _alive: alive,
        })
    }

    /// Runs something that takes its time.
    pub fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        drop(self.runtime.spawn(work));
    }

    /// Shakes hands with a client.
    ///
    /// Cancel safe: the connection is closed.
    ///
    /// # Errors
    /// The handshake failed; the client was told by an alert.
    pub async fn accept(&self, socket: Socket, config: Arc<ServerConfig>) -> io::Result<Stream> {
        let socket = socket.loose()?;
        let acceptor = TlsAcceptor::from(config);
        let there = acceptor.clone();
        let shaken = self.runtime.spawn(async move {
            let (guest, connection) = there.accept(Guest::new(socket)?).await?.into_inner();
            Ok::<_, io::Error>((guest.loose()?, connection))
        });
        let (socket, connection): (_, ServerConnection) = Awaited(shaken).await?;
        // There is nothing left to negotiate: this only puts the two together again.
        let put = |fresh: &mut ServerConnection| *fresh = connection;
        let stream = acceptor.accept_with(socket.registered()?, put).await?;
        Ok(Stream::Tls(Box::new(TlsStream::Server(stream))))
    }

    /// Shakes hands with a client whose connection is, and stays, another runtime's.
    ///
    /// Cancel safe: the connection is closed.
    ///
    /// # Errors
    /// The handshake failed; the client was told by an alert.
    pub async fn accept_there(
        &self,
        stream: TcpStream,
        config: Arc<ServerConfig>,
    ) -> io::Result<tokio_rustls::server::TlsStream<TcpStream>> {
        let shaken = TlsAcceptor::from(config).accept(stream);
        Awaited(self.runtime.spawn(shaken.into_future())).await
    }

    /// Shakes hands with PostgreSQL.
    ///
    /// Cancel safe: the connection is closed.
    ///
    /// # Errors
    /// The handshake failed, or the other side isn't whom the configuration trusts.
    pub async fn connect(
        &self,
        socket: Socket,
        config: Arc<ClientConfig>,
        name: ServerName<'static>,
    ) -> io::Result<Stream> {
        let socket = socket.loose()?;
        let connector = TlsConnector::from(config);
        let (there, called) = (connector.clone(), name.clone());
        let shaken = self.runtime.spawn(async move {
            let guest = Guest::new(socket)?;
            let (guest, connection) = there.connect(called, guest).await?.into_inner();
            Ok::<_, io::Error>((guest.loose()?, connection))
        });
        let (socket, connection): (_, ClientConnection) = Awaited(shaken).await?;
        let put = |fresh: &mut ClientConnection| *fresh = connection;
        let stream = connector
            .connect_with(name, socket.registered()?, put)
            .await?;
        Ok(Stream::Tls(Box::new(TlsStream::Client(stream))))
    }
}

/// A socket while it is on this thread.
struct Guest {
    stream: TcpStream,
    /// What was read of it before it came.
    ahead: Box<[u8]>,
}

impl Guest {
    fn new(loose: Loose) -> io::Result<Self> {
        Ok(Self {
            stream: TcpStream::from_std(loose.socket.into())?,
            ahead: loose.ahead,
        })
    }

    fn loose(self) -> io::Result<Loose> {
        Ok(Loose {
            socket: self.stream.into_std()?.into(),
            ahead: self.ahead,
        })
    }
}

impl AsyncRead for Guest {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.ahead.is_empty() {
            return Pin::new(&mut self.stream).poll_read(cx, buf);
        }
        let count = self.ahead.len().min(buf.remaining());
        buf.put_slice(&self.ahead[..count]);
        self.ahead = self.ahead[count..].into();
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Guest {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// A task that ends when nobody waits for it any more.
struct Awaited<T>(JoinHandle<io::Result<T>>);

impl<T> Future for Awaited<T> {
    type Output = io::Result<T>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let joined = Pin::new(&mut self.0).poll(cx);
        joined.map(|joined| joined.unwrap_or_else(|error| Err(io::Error::other(error))))
    }
}

impl<T> Drop for Awaited<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}
