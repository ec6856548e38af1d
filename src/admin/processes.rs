//! Owns the looking up of the processes behind sessions: when somebody looks at sessions, and once for each.

use std::collections::HashSet;
use std::net::SocketAddr;

use super::Desk;
use crate::config::ProxyProtocol;
use crate::lease::SessionId;
use crate::lease::book::Process;
use crate::process;
use crate::shard::Gone;
use crate::view::LeaseView;

/// The sessions that were looked up already.
pub(super) type Known = tokio::sync::Mutex<HashSet<u32>>;

impl Desk {
    /// The generation, and every session, with the processes behind them as far as this machine can tell.
    pub(super) async fn sessions(&self) -> Result<(u64, Vec<LeaseView>), Gone> {
        let (generation, sessions) = self.shards.sessions().await?;
        if self.config.proxy_protocol == ProxyProtocol::Require {
            // Addresses are what a load balancer says: no socket of this machine.
            return Ok((generation, sessions));
        }
        let mut known = self.known.lock().await;
        let new: Vec<(u32, SocketAddr)> = sessions
            .iter()
            .filter_map(|session| candidate(session, &known))
            .collect();
        if new.is_empty() {
            return Ok((generation, sessions));
        }
        *known = sessions.iter().map(|session| session.id).collect();
        let addresses: Vec<SocketAddr> = new.iter().map(|(_, address)| *address).collect();
        let found = tokio::task::spawn_blocking(move || process::behind(&addresses))
            .await
            .unwrap_or_default();
        let processes = new.iter().filter_map(|(id, address)| {
            let found = found.get(address)?;
            Some((
                SessionId::new(*id),
                Process {
                    pid: found.pid,
                    command: found.command.clone(),
                },
            ))
        });
        self.shards.processes(processes.collect()).await?;
        self.shards.sessions().await
    }
}

/// A session on loopback TCP whose process nobody has looked for yet.
fn candidate(session: &LeaseView, known: &HashSet<u32>) -> Option<(u32, SocketAddr)> {
    let address: SocketAddr = session.client.parse().ok()?;
    let new = session.process.is_none()
        && address.ip().to_canonical().is_loopback()
        && !known.contains(&session.id);
    new.then_some((session.id, address))
}
