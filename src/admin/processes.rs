//! Owns the looking up of the processes behind sessions: when somebody looks at sessions, and a few times for each.
//!
//! A process that calls exec stays the same process under another command line: that is read again.

use std::collections::HashMap;
use std::net::SocketAddr;

use super::Desk;
use crate::config::ProxyProtocol;
use crate::executor;
use crate::lease::SessionId;
use crate::lease::book::Process;
use crate::process::{self, Fate, Found};
use crate::shard::Gone;
use crate::view::LeaseView;

/// How often a session's process is looked for: the kernel's table of sockets, read while it changes, may lack some.
const TRIES: u8 = 3;

/// How often each session was looked up already.
pub(super) type Known = tokio::sync::Mutex<HashMap<u32, u8>>;

/// What is to be looked up.
#[derive(Debug, Default)]
struct Questions {
    /// Sessions on loopback whose process nobody has found yet.
    new: Vec<(u32, SocketAddr)>,
    /// Processes that are known, each with its sessions.
    old: HashMap<Found, Vec<u32>>,
}

impl Desk {
    /// The generation, and every session, with the processes behind them as far as this machine can tell.
    pub(super) async fn sessions(&self) -> Result<(u64, Vec<LeaseView>), Gone> {
        let (generation, sessions) = self.shards.sessions().await?;
        if self.config.proxy_protocol == ProxyProtocol::Require {
            // Addresses are what a load balancer says: no socket of this machine.
            return Ok((generation, sessions));
        }
        let mut known = self.known.lock().await;
        let questions = Questions::of(&sessions, &known);
        if questions.new.is_empty() && questions.old.is_empty() {
            return Ok((generation, sessions));
        }
        let tries = |id: u32| known.get(&id).copied().unwrap_or(0).saturating_add(1);
        *known = sessions.iter().map(|one| (one.id, tries(one.id))).collect();
        let answers = executor::aside(move || questions.answer());
        let answers = answers.await.unwrap_or_default();
        if answers.is_empty() {
            return Ok((generation, sessions));
        }
        self.shards.processes(answers).await?;
        self.shards.sessions().await
    }
}

impl Questions {
    fn of(sessions: &[LeaseView], known: &HashMap<u32, u8>) -> Self {
        let mut questions = Self::default();
        for session in sessions {
            if let Some(process) = &session.process {
                let found = Found {
                    pid: process.pid,
                    started: process.started,
                    command: process.command.clone(),
                };
                questions.old.entry(found).or_default().push(session.id);
            } else if known.get(&session.id).is_none_or(|tries| *tries < TRIES) {
                let address: Option<SocketAddr> = session.client.parse().ok();
                let local = address.filter(|address| address.ip().to_canonical().is_loopback());
                questions
                    .new
                    .extend(local.map(|address| (session.id, address)));
            }
        }
        questions
    }

    /// What is new: reads much of /proc.
    fn answer(self) -> Vec<(SessionId, Process)> {
        let addresses: Vec<SocketAddr> = self.new.iter().map(|(_, address)| *address).collect();
        let behind = process::behind(&addresses);
        let new = self.new.iter();
        let new = new.filter_map(|(id, address)| Some((*id, behind.get(address)?.clone())));
        let old = self.old.into_iter().flat_map(|(found, ids)| {
            let again = again(&found);
            ids.into_iter()
                .filter_map(move |id| Some((id, again.clone()?)))
        });
        let all = new.collect::<Vec<_>>().into_iter().chain(old);
        all.map(|(id, found)| (SessionId::new(id), found.into()))
            .collect()
    }
}

/// The same process under another command line, if that has changed. Of one that is gone the last one is kept.
fn again(found: &Found) -> Option<Found> {
    let command = process::command(found.pid);
    let changed = !command.is_empty() && command != found.command;
    let same = || process::fate(found.pid, found.started) == Fate::Alive;
    (changed && same()).then(|| Found {
        command,
        ..found.clone()
    })
}

impl From<Found> for Process {
    fn from(found: Found) -> Self {
        Self {
            pid: found.pid,
            started: found.started,
            command: found.command,
        }
    }
}
