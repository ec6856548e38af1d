//! Owns listening sockets, bound before anything else starts, so that tests may use port 0.

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::config::Address;
use crate::net::Stream;

/// The name of a unix socket within its directory, as libpq expects it.
pub const SOCKET_NAME: &str = ".s.PGSQL.6432";

/// A bound listener.
#[derive(Debug)]
pub enum Bound {
    Tcp(TcpListener),
    Unix(UnixListener, PathBuf),
}

/// Binds an address. A unix address that is a directory gets a socket named as libpq expects it; a socket file that
/// nobody listens on any more is replaced.
///
/// # Errors
/// The kernel's: the address is in use, or not ours.
pub fn bind(address: &Address) -> io::Result<Bound> {
    match address {
        Address::Tcp(address) => {
            let listener = bind_tcp(*address)?;
            listener.set_nonblocking(true)?;
            Ok(Bound::Tcp(listener))
        }
        Address::Unix(path) => {
            let path = if path.is_dir() {
                path.join(SOCKET_NAME)
            } else {
                path.clone()
            };
            remove_stale(&path)?;
            let listener = UnixListener::bind(&path)?;
            listener.set_nonblocking(true)?;
            Ok(Bound::Unix(listener, path))
        }
    }
}

/// Binds an address for clients. Like PostgreSQL's own socket, a unix one is open to every user of the machine: who may
/// enter is the login's to decide, or the directory's.
///
/// # Errors
/// As [`bind`]; and a unix directory that doesn't exist, which would make a socket that libpq can't find.
pub fn bind_for_clients(address: &Address) -> io::Result<Bound> {
    if let Address::Unix(path) = address {
        let named = path
            .file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with(".s.PGSQL."));
        if !named && !path.is_dir() {
            let text =
                "the directory doesn't exist; libpq looks for a socket named .s.PGSQL.6432 in it";
            return Err(io::Error::new(io::ErrorKind::NotFound, text));
        }
    }
    let bound = bind(address)?;
    if let Bound::Unix(_, path) = &bound {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777))?;
    }
    Ok(bound)
}

fn bind_tcp(address: SocketAddr) -> io::Result<TcpListener> {
    use socket2::{Domain, Protocol, Socket, Type};
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(4096)?;
    Ok(socket.into())
}

fn remove_stale(path: &Path) -> io::Result<()> {
    let is_socket = path
        .symlink_metadata()
        .is_ok_and(|meta| meta.file_type().is_socket());
    if is_socket && UnixStream::connect(path).is_err() {
        std::fs::remove_file(path)?;
    }
    Ok(())
}

impl Bound {
    /// The same socket once more.
    ///
    /// # Errors
    /// The kernel's.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(match self {
            Self::Tcp(listener) => Self::Tcp(listener.try_clone()?),
            Self::Unix(listener, path) => Self::Unix(listener.try_clone()?, path.clone()),
        })
    }
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(listener) => match listener.local_addr() {
                Ok(address) => address.fmt(f),
                Err(error) => error.fmt(f),
            },
            Self::Unix(_, path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// A listener on a runtime.
#[derive(Debug)]
pub enum Listener {
    Tcp(tokio::net::TcpListener),
    Unix(tokio::net::UnixListener, PathBuf),
}

/// Who connected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer {
    Tcp(SocketAddr),
    /// By the process's credentials.
    Unix {
        /// 0 where the kernel doesn't say.
        pid: u32,
        /// The user that it runs as, where the kernel says so.
        uid: Option<u32>,
    },
}

impl Listener {
    /// Registers a bound listener with the runtime of this thread.
    ///
    /// # Errors
    /// The runtime's.
    pub fn new(bound: Bound) -> io::Result<Self> {
        Ok(match bound {
            Bound::Tcp(listener) => Self::Tcp(tokio::net::TcpListener::from_std(listener)?),
            Bound::Unix(listener, path) => {
                Self::Unix(tokio::net::UnixListener::from_std(listener)?, path)
            }
        })
    }

    /// Waits for the next connection. Cancel safe.
    ///
    /// # Errors
    /// The kernel's; out of file descriptors among them: wait a little before the next try.
    pub async fn accept(&self, user_timeout: Duration) -> io::Result<(Stream, Peer)> {
        match self {
            Self::Tcp(listener) => {
                let (stream, address) = listener.accept().await?;
                Ok((Stream::accepted(stream, user_timeout)?, Peer::Tcp(address)))
            }
            Self::Unix(listener, _) => {
                let (stream, _) = listener.accept().await?;
                let credentials = stream.peer_cred().ok();
                let pid = credentials.and_then(|credentials| credentials.pid());
                let pid = pid.and_then(|pid| u32::try_from(pid).ok()).unwrap_or(0);
                let uid = credentials.map(|credentials| credentials.uid());
                Ok((Stream::Unix(stream), Peer::Unix { pid, uid }))
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Self::Unix(_, path) = self {
            // A socket file without a listener only confuses; if it is gone already, all the better.
            let _ = std::fs::remove_file(path);
        }
    }
}
