//! Owns the header that a load balancer sends ahead of a client's first packet, where `proxy_protocol` wants one.
//!
//! Whoever sends none, or mustn't, is left without an answer: only the log says why.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::AsyncReadExt;

use crate::clock::timers;
use crate::config::ProxyProtocol;
use crate::net::Stream;
use crate::net::listen::Peer;
use crate::session::Shared;
use crate::wire::proxy::{self, BadHeader, HEAD};
use crate::wire::reply::Fault;

/// How long a balancer may take: it sends its header with the first segment.
const PATIENCE: Duration = Duration::from_secs(5);

/// Why a connection is dropped.
#[derive(Debug, thiserror::Error)]
enum NoHeader {
    #[error("{0} isn't in proxy_protocol_from")]
    Stranger(SocketAddr),
    #[error("no header of the PROXY protocol came from {0}: {1}")]
    Bad(SocketAddr, BadHeader),
    #[error("no header of the PROXY protocol came from {0} within 5s")]
    Late(SocketAddr),
    /// It closed the connection without a word, as probes do.
    #[error("gone")]
    Gone,
}

/// Who really connected. `None` where the connection ends here.
pub(super) async fn introduce(shared: &Shared, stream: &mut Stream, peer: Peer) -> Option<Peer> {
    let Peer::Tcp(address) = peer else {
        return Some(peer);
    };
    if shared.config.proxy_protocol == ProxyProtocol::Disable {
        return Some(peer);
    }
    let trusted = &shared.config.proxy_protocol_from;
    let source = address.ip().to_canonical();
    let outcome = if trusted.iter().any(|network| network.holds(source)) {
        let read = timers::timeout(PATIENCE, read(stream, address)).await;
        read.unwrap_or(Err(NoHeader::Late(address)))
    } else {
        Err(NoHeader::Stranger(address))
    };
    match outcome {
        Ok(source) => Some(Peer::Tcp(source.unwrap_or(address))),
        Err(NoHeader::Gone) => None,
        Err(why) => {
            shared.metrics.fault(Fault::Client, "08P01");
            tracing::info!("a connection was dropped: {why}");
            None
        }
    }
}

/// Reads just the header: what follows is the client's.
async fn read(stream: &mut Stream, peer: SocketAddr) -> Result<Option<SocketAddr>, NoHeader> {
    let bad = |why| NoHeader::Bad(peer, why);
    let mut head = [0; HEAD];
    let mut filled = 0;
    while filled < HEAD {
        let count = stream.read(&mut head[filled..]).await;
        match count.map_err(|_| NoHeader::Gone)? {
            0 => return Err(NoHeader::Gone),
            count => filled += count,
        }
        proxy::check(&head[..filled]).map_err(bad)?;
    }
    let mut rest = vec![0; proxy::rest(head).map_err(bad)?];
    let read = stream.read_exact(&mut rest).await;
    read.map_err(|_| NoHeader::Gone)?;
    proxy::source(head, &rest).map_err(bad)
}
