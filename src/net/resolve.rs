//! Owns the looking up of names: anew for each connection, so that a change is followed, and off the data thread.

use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::Arc;

use crate::executor;

type LookUp = dyn Fn(&str, u16) -> io::Result<Vec<SocketAddr>> + Send + Sync;

/// Looks names up. Clones share it.
#[derive(Clone)]
pub struct Resolver(Arc<LookUp>);

impl Resolver {
    /// Looks up in this way, which may block.
    pub fn new(
        look_up: impl Fn(&str, u16) -> io::Result<Vec<SocketAddr>> + Send + Sync + 'static,
    ) -> Self {
        Self(Arc::new(look_up))
    }

    /// The system's: /etc/hosts, DNS, and whatever else it is set up with.
    #[must_use]
    pub fn system() -> Self {
        Self::new(|host, port| Ok((host, port).to_socket_addrs()?.collect()))
    }

    /// The addresses of `host` now, at least one; an IP address is its own. Cancel safe.
    ///
    /// # Errors
    /// The resolver's.
    pub async fn look_up(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        if let Ok(address) = host.parse::<IpAddr>() {
            return Ok(vec![SocketAddr::new(address, port)]);
        }
        let (look_up, name) = (self.0.clone(), host.to_owned());
        let found = executor::aside(move || look_up(&name, port)).await;
        let found = found.map_err(io::Error::other)??;
        if found.is_empty() {
            let text = format!("{host} has no address");
            return Err(io::Error::new(io::ErrorKind::NotFound, text));
        }
        Ok(found)
    }
}

impl std::fmt::Debug for Resolver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Resolver")
    }
}
