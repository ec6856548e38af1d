//! Owns the serving of HTTP on a bound listener, TCP or unix.

use std::time::Duration;

use axum::Router;

use crate::drain::{Phase, Shutdown};
use crate::net::Stream;
use crate::net::listen::{Bound, Listener, Peer};

/// How long to pause after an accept that failed: out of file descriptors must not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves `router` until pgvalet ends.
///
/// # Errors
/// The runtime refused the listener.
pub async fn serve(bound: Bound, router: Router, mut shutdown: Shutdown) -> std::io::Result<()> {
    let listener = Listener::new(bound)?;
    tokio::select! {
        served = axum::serve(listener, router) => served,
        () = shutdown.reached(Phase::Ending) => Ok(()),
    }
}

impl axum::serve::Listener for Listener {
    type Io = Stream;
    type Addr = Peer;

    async fn accept(&mut self) -> (Stream, Peer) {
        loop {
            match Listener::accept(self, Duration::ZERO).await {
                Ok(accepted) => return accepted,
                Err(error) => {
                    tracing::warn!("accept on the admin listener: {error}");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<Peer> {
        match self {
            Self::Tcp(listener) => listener.local_addr().map(Peer::Tcp),
            Self::Unix(..) => Ok(Peer::Unix { pid: 0, uid: None }),
        }
    }
}
