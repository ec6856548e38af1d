//! Owns listening sockets, bound before anything else starts, so that tests may use port 0.

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::task::{Poll, ready};

use rustix::net::{self, SocketFlags};

use crate::config::{Address, Tcp};
use crate::executor::Registered;
use crate::net::stream::tune;
use crate::net::{Socket, Stream};

/// The name of a unix socket within its directory, as libpq expects it.
pub const SOCKET_NAME: &str = ".s.PGSQL.6432";

/// A bound listener.
#[derive(Debug)]
pub enum Bound {
    Tcp(TcpListener),
    Unix(UnixListener, SocketFile),
}

/// The file of a listening unix socket, as we made it.
#[derive(Clone, Debug)]
pub struct SocketFile {
    pub path: PathBuf,
    /// Device and inode: a file of somebody else's at this path isn't ours to remove.
    identity: (u64, u64),
}

/// Who may connect to a unix socket.
#[derive(Clone, Copy, Debug)]
pub struct Access {
    pub mode: u32,
    /// Our own group by default.
    pub group: Option<u32>,
}

/// Binds an address; `tcp` is what its TCP connections are like. A unix address that is a directory gets a socket named as
/// libpq expects it; a socket file that nobody listens on any more is replaced.
///
/// # Errors
/// The kernel's: the address is in use, or not ours.
pub fn bind(address: &Address, tcp: Tcp) -> io::Result<Bound> {
    bind_with(address, tcp, None)
}

/// Binds an address for clients. By default a unix socket is open to every user of the machine, like PostgreSQL's own: who
/// may enter is the login's to decide, or the directory's.
///
/// # Errors
/// As [`bind`]; and a unix directory that doesn't exist, which would make a socket that libpq can't find.
pub fn bind_for_clients(address: &Address, tcp: Tcp, access: Access) -> io::Result<Bound> {
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
    bind_with(address, tcp, Some(access))
}

fn bind_with(address: &Address, tcp: Tcp, access: Option<Access>) -> io::Result<Bound> {
    match address {
        Address::Tcp(address) => {
            let listener = bind_tcp(*address, tcp)?;
            listener.set_nonblocking(true)?;
            Ok(Bound::Tcp(listener))
        }
        Address::Unix(path) => {
            let path = if path.is_dir() {
                path.join(SOCKET_NAME)
            } else {
                path.clone()
            };
            let (listener, file) = bind_unix(path, access)?;
            listener.set_nonblocking(true)?;
            Ok(Bound::Unix(listener, file))
        }
    }
}

/// Nobody can connect before the last step, by which time all is as it should be.
fn bind_unix(path: PathBuf, access: Option<Access>) -> io::Result<(UnixListener, SocketFile)> {
    use socket2::{Domain, SockAddr, Socket, Type};
    // Two that start at once must not take each other's new socket for a stale one.
    let _turn = path.parent().and_then(turn);
    remove_stale(&path)?;
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.bind(&SockAddr::unix(&path)?)?;
    let made = path.symlink_metadata()?;
    let file = SocketFile {
        path,
        identity: (made.dev(), made.ino()),
    };
    let opened = open_to(&file.path, access).and_then(|()| socket.listen(4096));
    if let Err(error) = opened {
        file.remove();
        return Err(error);
    }
    Ok((socket.into(), file))
}

fn open_to(path: &Path, access: Option<Access>) -> io::Result<()> {
    let Some(Access { mode, group }) = access else {
        return Ok(());
    };
    if let Some(group) = group {
        std::os::unix::fs::chown(path, None, Some(group)).map_err(|error| {
            io::Error::new(error.kind(), format!("unix_socket_group {group}: {error}"))
        })?;
    }
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
}

/// A lock on the directory, for as long as it is held; none where it can't be read.
fn turn(directory: &Path) -> Option<std::fs::File> {
    let directory = std::fs::File::open(directory).ok()?;
    directory.lock().ok()?;
    Some(directory)
}

impl SocketFile {
    /// Removes it, unless somebody else's stands in its place by now.
    fn remove(&self) {
        let is_ours = self
            .path
            .symlink_metadata()
            .is_ok_and(|now| (now.dev(), now.ino()) == self.identity);
        if is_ours {
            // If it is gone already, all the better.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn bind_tcp(address: SocketAddr, tcp: Tcp) -> io::Result<TcpListener> {
    use socket2::{Domain, Protocol, Socket, Type};
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    // Before the first connection can come.
    tune(&socket, tcp)?;
    socket.listen(4096)?;
    Ok(socket.into())
}

fn remove_stale(path: &Path) -> io::Result<()> {
    let is_socket = path
        .symlink_metadata()
        .is_ok_and(|meta| meta.file_type().is_socket());
    // A full backlog, or a socket that isn't ours to use, is somebody's.
    let is_dead = || {
        UnixStream::connect(path)
            .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
    };
    if is_socket && is_dead() {
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
            Self::Unix(listener, file) => Self::Unix(listener.try_clone()?, file.clone()),
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
            Self::Unix(_, file) => write!(f, "unix:{}", file.path.display()),
        }
    }
}

/// A listener of an executor.
#[derive(Debug)]
pub enum Listener {
    Tcp(Registered),
    Unix(Registered, Guarded),
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
    /// Registers a bound listener with the executor of this thread.
    ///
    /// # Errors
    /// The kernel's.
    pub fn new(bound: Bound) -> io::Result<Self> {
        Ok(match bound {
            Bound::Tcp(listener) => Self::Tcp(Registered::new(listener)?),
            Bound::Unix(listener, file) => Self::Unix(Registered::new(listener)?, Guarded(file)),
        })
    }

    /// Waits for the next connection. Cancel safe.
    ///
    /// # Errors
    /// The kernel's; out of file descriptors among them: wait a little before the next try.
    pub async fn accept(&self) -> io::Result<(Stream, Peer)> {
        match self {
            Self::Tcp(listener) => {
                let (socket, address) = accepted(listener, accept_tcp).await?;
                Ok((Stream::Tcp(Socket::new(socket)?), Peer::Tcp(address)))
            }
            Self::Unix(listener, _) => {
                let accept = |listener: &Registered| Ok(net::accept_with(listener, CONNECTION)?);
                let socket = accepted(listener, accept).await?;
                let socket = Socket::new(socket)?;
                let credentials = socket.peer_credentials().ok();
                let pid = credentials.map(|credentials| credentials.pid.as_raw_pid());
                let pid = pid.and_then(|pid| u32::try_from(pid).ok()).unwrap_or(0);
                let uid = credentials.map(|credentials| credentials.uid.as_raw());
                Ok((Stream::Unix(socket), Peer::Unix { pid, uid }))
            }
        }
    }
}

/// What a connection is like from the first moment.
const CONNECTION: SocketFlags = SocketFlags::NONBLOCK.union(SocketFlags::CLOEXEC);

/// Takes the next one in, when there is one.
async fn accepted<T>(
    listener: &Registered,
    accept: impl Fn(&Registered) -> io::Result<T>,
) -> io::Result<T> {
    poll_fn(|cx| {
        ready!(listener.poll_readable(cx));
        match accept(listener) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                listener.nothing_to_read();
                Poll::Pending
            }
            accepted => Poll::Ready(accepted),
        }
    })
    .await
}

fn accept_tcp(listener: &Registered) -> io::Result<(OwnedFd, SocketAddr)> {
    let (socket, address) = net::acceptfrom_with(listener, CONNECTION)?;
    let address = address.and_then(|address| SocketAddr::try_from(address).ok());
    // It was gone again before anybody took it in.
    let address = address.ok_or(io::ErrorKind::ConnectionAborted)?;
    Ok((socket, address))
}

/// Removes a socket's file with its listener: alone it only confuses.
#[derive(Debug)]
pub struct Guarded(SocketFile);

impl Drop for Guarded {
    fn drop(&mut self) {
        self.0.remove();
    }
}

/// A listener of a tokio runtime: HTTP is served beside the data threads.
#[derive(Debug)]
pub enum HttpListener {
    Tcp(tokio::net::TcpListener),
    Unix(tokio::net::UnixListener, Guarded),
}

/// A connection to it.
#[derive(Debug)]
pub enum HttpStream {
    Tcp(tokio::net::TcpStream, SocketAddr),
    Unix(tokio::net::UnixStream),
}

impl HttpListener {
    /// Registers a bound listener with the runtime.
    ///
    /// # Errors
    /// The runtime's.
    pub fn new(bound: Bound) -> io::Result<Self> {
        Ok(match bound {
            Bound::Tcp(listener) => Self::Tcp(tokio::net::TcpListener::from_std(listener)?),
            Bound::Unix(listener, file) => {
                let listener = tokio::net::UnixListener::from_std(listener)?;
                Self::Unix(listener, Guarded(file))
            }
        })
    }

    /// Waits for the next connection. Cancel safe.
    ///
    /// # Errors
    /// The kernel's; out of file descriptors among them: wait a little before the next try.
    pub async fn accept(&self) -> io::Result<HttpStream> {
        Ok(match self {
            Self::Tcp(listener) => {
                let (stream, address) = listener.accept().await?;
                HttpStream::Tcp(stream, address)
            }
            Self::Unix(listener, _) => HttpStream::Unix(listener.accept().await?.0),
        })
    }
}
