//! Owns the looking after what nobody looks after: sessions whose process is gone, and backends that nobody leases.

use std::collections::HashMap;

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::HeaderMap;
use serde::Serialize;
use utoipa::ToSchema;

use super::Desk;
use super::bodies::{self, ReapBody, VerifyBody};
use super::routes::Answer;
use crate::events::Happening;
use crate::executor;
use crate::lease::SessionId;
use crate::lease::reload::Outcome;
use crate::process::{self, Fate};
use crate::shard::{Verdict, Verified};
use crate::view::LeaseView;

/// A session that nobody holds any more.
#[derive(Debug, Serialize, ToSchema)]
struct Orphan {
    #[serde(flatten)]
    session: LeaseView,
    outcome: &'static str,
    reason: String,
}

/// What `POST /v1/reap` found.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Reaped {
    dry_run: bool,
    /// Sessions that were looked at.
    sessions: usize,
    /// Those of them whose process is known.
    with_process: usize,
    orphans: Vec<Orphan>,
}

/// What `POST /v1/verify` found.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Verification {
    counts: Counts,
    backends: Vec<BackendView>,
}

#[derive(Debug, Default, Serialize, ToSchema)]
struct Counts {
    alive: usize,
    replaced: usize,
    dead: usize,
}

/// A backend that nobody leased.
#[derive(Debug, Serialize, ToSchema)]
struct BackendView {
    database: String,
    user: String,
    /// The pid of PostgreSQL's process.
    backend: u32,
    outcome: &'static str,
    /// The pid of the one in its place.
    by: Option<u32>,
    reason: Option<String>,
}

/// `POST /v1/reap`.
pub(super) async fn reap(
    State(desk): State<Desk>,
    headers: HeaderMap,
    body: Bytes,
) -> Answer<Reaped> {
    let dry_run = bodies::read::<ReapBody>(&headers, &body)?.dry_run;
    let (_, sessions) = desk.sessions().await?;
    let looked_at = sessions.len();
    let known = sessions
        .iter()
        .filter(|session| session.process.is_some())
        .count();
    let mut orphans = Vec::new();
    for (session, why) in orphaned(sessions).await {
        let (outcome, reason) = if dry_run {
            ("would_be_ended", why)
        } else {
            end(&desk, &session, why).await?
        };
        orphans.push(Orphan {
            session,
            outcome,
            reason,
        });
    }
    Ok(Json(Reaped {
        dry_run,
        sessions: looked_at,
        with_process: known,
        orphans,
    }))
}

/// The sessions whose process is gone, each with what shows it.
async fn orphaned(sessions: Vec<LeaseView>) -> Vec<(LeaseView, String)> {
    let judged = executor::aside(move || {
        let mut fates: HashMap<(u32, u64), Fate> = HashMap::new();
        let judge = |session: LeaseView| {
            let process = session.process.as_ref()?;
            let key = (process.pid, process.started);
            let fate = *fates
                .entry(key)
                .or_insert_with(|| process::fate(key.0, key.1));
            let heirs = match fate {
                Fate::Alive => return None,
                Fate::Gone => session
                    .client
                    .parse()
                    .map(process::holders)
                    .unwrap_or_default(),
            };
            let why = reason(process.pid, &heirs);
            Some((session, why))
        };
        sessions.into_iter().filter_map(judge).collect()
    });
    judged.await.unwrap_or_default()
}

fn reason(pid: u32, heirs: &[u32]) -> String {
    match heirs {
        [] => format!("its process {pid} is gone"),
        [heir, ..] => format!("its process {pid} is gone; process {heir} has inherited the socket"),
    }
}

async fn end(
    desk: &Desk,
    session: &LeaseView,
    why: String,
) -> Result<(&'static str, String), super::problem::Problem> {
    let id = SessionId::new(session.id);
    let outcome = desk.shards.reap(id).await?.unwrap_or(Outcome::Gone);
    let (word, reason) = match outcome {
        Outcome::Returned(_) => ("ended", why),
        Outcome::Gone | Outcome::Unknown | Outcome::Resting => ("gone", why),
        Outcome::Busy(busy) | Outcome::Spared(busy) => ("spared", format!("{why}, but {busy}")),
        Outcome::Pinned(pins) => ("spared", format!("{why}, but {pins}")),
    };
    tracing::info!(session = session.id, "reap: {word}: {reason}");
    desk.events.tell(Happening::Reaped {
        session: session.id,
        owner: session.owner.clone(),
        outcome: word,
        reason: reason.clone(),
    });
    Ok((word, reason))
}

/// `POST /v1/verify`.
pub(super) async fn verify(
    State(desk): State<Desk>,
    headers: HeaderMap,
    body: Bytes,
) -> Answer<Verification> {
    bodies::read::<VerifyBody>(&headers, &body)?;
    let backends = desk.shards.verify().await?;
    let mut counts = Counts::default();
    for one in &backends {
        match one.verdict {
            Verdict::Alive => counts.alive += 1,
            Verdict::Replaced(_) => counts.replaced += 1,
            Verdict::Dead(_) => counts.dead += 1,
        }
    }
    let backends = backends.into_iter().map(shown).collect();
    Ok(Json(Verification { counts, backends }))
}

fn shown(one: Verified) -> BackendView {
    let outcome = one.verdict.word();
    let (by, reason) = match one.verdict {
        Verdict::Alive => (None, None),
        Verdict::Replaced(by) => (Some(by), None),
        Verdict::Dead(reason) => (None, Some(reason)),
    };
    BackendView {
        database: one.database,
        user: one.user,
        backend: one.backend,
        outcome,
        by,
        reason,
    }
}
