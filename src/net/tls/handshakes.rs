//! Owns the thread on which TLS handshakes run: their cryptography takes milliseconds, and a data thread has none to spare.
//!
//! A socket goes there, and comes back with the connection that was negotiated; from then on it belongs to the data thread.

use std::future::Future;
use std::io;
use std::sync::Arc;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, ServerConfig, ServerConnection};
use tokio::runtime::{Builder, Handle};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

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

    /// Shakes hands with a client. `ahead` is what was read of its ClientHello already.
    ///
    /// Cancel safe: the connection is closed.
    ///
    /// # Errors
    /// The handshake failed; the client was told by an alert.
    pub async fn accept(
        &self,
        socket: Socket,
        config: Arc<ServerConfig>,
        ahead: Vec<u8>,
    ) -> io::Result<Stream> {
        let socket = socket.into_fd();
        let acceptor = TlsAcceptor::from(config);
        let there = acceptor.clone();
        let shaken = self.runtime.spawn(async move {
            let socket = Socket::new(socket)?;
            let mut rest = &ahead[..];
            let mut read = Ok(0);
            let shaking = there.accept_with(socket, |connection| {
                if !rest.is_empty() {
                    read = connection.read_tls(&mut rest);
                }
            });
            read?;
            let (socket, connection) = shaking.await?.into_inner();
            Ok::<_, io::Error>((socket.into_fd(), connection))
        });
        let (socket, connection): (_, ServerConnection) = Awaited(shaken).await?;
        // There is nothing left to negotiate: this only puts the two together again.
        let put = |fresh: &mut ServerConnection| *fresh = connection;
        let stream = acceptor.accept_with(Socket::new(socket)?, put).await?;
        Ok(Stream::Tls(Box::new(TlsStream::Server(stream))))
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
        let socket = socket.into_fd();
        let connector = TlsConnector::from(config);
        let (there, called) = (connector.clone(), name.clone());
        let shaken = self.runtime.spawn(async move {
            let socket = Socket::new(socket)?;
            let (socket, connection) = there.connect(called, socket).await?.into_inner();
            Ok::<_, io::Error>((socket.into_fd(), connection))
        });
        let (socket, connection): (_, ClientConnection) = Awaited(shaken).await?;
        let put = |fresh: &mut ClientConnection| *fresh = connection;
        let stream = connector
            .connect_with(name, Socket::new(socket)?, put)
            .await?;
        Ok(Stream::Tls(Box::new(TlsStream::Client(stream))))
    }
}

/// A task that ends when nobody waits for it any more.
struct Awaited<T>(JoinHandle<io::Result<T>>);

impl<T> Future for Awaited<T> {
    type Output = io::Result<T>;

    fn poll(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Self::Output> {
        let joined = std::pin::Pin::new(&mut self.0).poll(cx);
        joined.map(|joined| joined.unwrap_or_else(|error| Err(io::Error::other(error))))
    }
}

impl<T> Drop for Awaited<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}
