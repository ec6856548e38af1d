//! Owns the course of what a whole fleet is asked: the roll, and a reload, by whoever asks and by those who are asked.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Serialize;
use serde_json::Value;
use tokio::time::Instant;
use utoipa::ToSchema;

use super::link::{ANSWER, RELOAD};
use super::messages::{self, Answer, Caller, Presence, Progress, Request};
use super::{Awaited, Fleet, ROLL, STRANGERS, Said, unreachable};
use crate::admin::Desk;
use crate::admin::bodies::ReloadBody;
use crate::admin::problem::Problem;
use crate::admin::reloads;
use crate::admin::routes::Answer as Reply;
use crate::admin::views::ReloadRecord;
use crate::backend::listener::Notification;
use crate::clock::timers;
use crate::lease::reload::{Busy, Method, Pinned};
use crate::shard::ReloadWish;

/// How long instances have to answer beyond the reload's own deadline.
const GRACE: Duration = Duration::from_secs(2);

/// One pgvalet of the fleet, as people see it.
#[derive(Clone, Debug, Default, Serialize, ToSchema)]
pub struct InstanceView {
    pub instance: String,
    /// Its backend's pid, by which two of the same name are told apart.
    pub backend: u32,
    /// `here` is the one that was asked; others `answered` or are `silent`, and in a reload are `done` or `failed`.
    pub state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sessions: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    leases: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    generation: Option<u64>,
    /// The reload's id at that instance.
    #[serde(skip_serializing_if = "Option::is_none")]
    reload: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    took: Option<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub counts: BTreeMap<String, u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

impl InstanceView {
    fn new(instance: String, backend: u32, state: &'static str) -> Self {
        Self {
            instance,
            backend,
            state,
            ..Self::default()
        }
    }

    /// With what it has counted.
    pub(in crate::admin) fn with_counts(self, counts: BTreeMap<String, u64>) -> Self {
        Self { counts, ..self }
    }

    fn present(presence: Presence, backend: u32, state: &'static str) -> Self {
        Self {
            version: Some(presence.version),
            sessions: Some(presence.sessions),
            leases: Some(presence.leases),
            generation: Some(presence.generation),
            ..Self::new(presence.instance, backend, state)
        }
    }

    fn answered(answer: Answer, backend: u32) -> Self {
        let state = match answer.state {
            Progress::Began => "silent",
            Progress::Done => "done",
            Progress::Failed => "failed",
        };
        let late = "it began, and has not said in time that it is done".to_owned();
        let reason = answer.reason;
        Self {
            generation: answer.generation,
            reload: answer.reload,
            took: answer.took,
            counts: answer.counts,
            reason: reason.or((answer.state == Progress::Began).then_some(late)),
            ..Self::new(answer.instance, backend, state)
        }
    }

    fn silent(instance: String, backend: u32) -> Self {
        Self::new(instance, backend, "silent")
    }
}

/// The fleet that this instance is part of.
///
/// # Errors
/// It is part of none.
pub(in crate::admin) fn of(desk: &Desk) -> Result<&Fleet, Problem> {
    desk.fleet.as_ref().ok_or_else(|| {
        let detail = "this pgvalet is part of no fleet: set fleet = \"on\"";
        Problem::new(StatusCode::UNPROCESSABLE_ENTITY, detail)
    })
}

/// `GET /v1/fleet`.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::admin) struct FleetView {
    instances: Vec<InstanceView>,
}

/// `GET /v1/fleet`.
pub(in crate::admin) async fn roll(State(desk): State<Desk>) -> Reply<FleetView> {
    let fleet = of(&desk)?;
    let own = fleet.own()?;
    let known = fleet.others().await?;
    let mut all = vec![InstanceView::present(
        fleet.presence(&desk).await,
        own,
        "here",
    )];
    let id = fleet.number();
    let mut awaited = fleet.await_answers(&id);
    let instance = fleet.0.instance.clone();
    fleet
        .say(super::FLEET, &messages::Roll::Call { id, instance })
        .await;
    let began = timers::now();
    let mut missing: BTreeMap<u32, String> = known;
    let mut heard = BTreeSet::new();
    loop {
        let until = began + if missing.is_empty() { STRANGERS } else { ROLL };
        let Ok(Some(said)) = timers::timeout_at(until, awaited.said.recv()).await else {
            break;
        };
        if let Said::Here(pid, presence) = said
            && heard.insert(pid)
        {
            missing.remove(&pid);
            all.push(InstanceView::present(presence, pid, "answered"));
        }
    }
    let silent = missing
        .into_iter()
        .map(|(pid, name)| InstanceView::silent(name, pid));
    all.extend(silent);
    Ok(Json(FleetView { instances: all }))
}

/// A reload that the whole fleet was asked for: what is left to do is to wait for its answers.
pub(in crate::admin) struct Asked {
    awaited: Awaited,
    missing: BTreeMap<u32, String>,
    until: Instant,
}

impl Fleet {
    /// Asks all others for a reload.
    ///
    /// # Errors
    /// The request doesn't suit a fleet or is too long, or the fleet is out of reach.
    pub(in crate::admin) async fn ask(
        &self,
        body: &Value,
        wish: &ReloadWish,
    ) -> Result<Asked, Problem> {
        self.own()?;
        if let Some(why) = unfit(wish) {
            return Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, why));
        }
        let caller = Caller {
            id: self.number(),
            from: self.0.instance.clone(),
        };
        let payload = Request::write(body, &caller).ok_or_else(|| {
            let detail = "the request is too long for a NOTIFY: at most 7999 bytes";
            Problem::new(StatusCode::UNPROCESSABLE_ENTITY, detail)
        })?;
        let missing = self.others().await?;
        let awaited = self.await_answers(&caller.id);
        let told = self.0.link.notify(RELOAD, payload).await;
        told.map_err(|why| unreachable(&why))?;
        Ok(Asked {
            awaited,
            missing,
            until: timers::now() + wish.deadline.unwrap_or_default() + GRACE,
        })
    }
}

impl Fleet {
    /// Our own part in a reload.
    pub(in crate::admin) fn own_view(&self) -> InstanceView {
        let backend = self.own().unwrap_or_default();
        InstanceView::new(self.0.instance.clone(), backend, "here")
    }
}

impl Asked {
    /// What each of the others answers; those that don't in time are silent.
    pub(in crate::admin) async fn answers(mut self) -> Vec<InstanceView> {
        let mut answers: BTreeMap<u32, Answer> = BTreeMap::new();
        let strangers = timers::now() + STRANGERS;
        loop {
            let waited_for = answers
                .values()
                .any(|answer| answer.state == Progress::Began)
                || !self.missing.is_empty();
            let until = if waited_for { self.until } else { strangers };
            let Ok(Some(said)) = timers::timeout_at(until, self.awaited.said.recv()).await else {
                break;
            };
            if let Said::Answer(pid, answer) = said {
                self.missing.remove(&pid);
                let known = answers.get(&pid).map(|known| known.state);
                // What is done stays done, whatever comes behind it.
                if known.is_none_or(|known| known == Progress::Began) {
                    answers.insert(pid, answer);
                }
            }
        }
        let answered = answers.into_iter();
        let answered = answered.map(|(pid, answer)| InstanceView::answered(answer, pid));
        let silent = self.missing.into_iter();
        let silent = silent.map(|(pid, instance)| InstanceView::silent(instance, pid));
        answered.chain(silent).collect()
    }
}

/// Why a reload can't be one of a fleet.
fn unfit(wish: &ReloadWish) -> Option<&'static str> {
    if wish.submitted.is_some() {
        Some("sessions: each pgvalet has ids of its own, a fleet has none")
    } else if wish.wish.selector.process.is_some() {
        Some("process: each machine has pids of its own, a fleet has none")
    } else {
        None
    }
}

/// Whether a reload may end sessions, cancel statements, hold up requests or close backends.
fn is_forceful(wish: &ReloadWish) -> bool {
    let busy = match wish.wish.busy {
        Busy::Wait | Busy::Spare => false,
        Busy::Cancel | Busy::Close => true,
    };
    busy || wish.wish.method == Method::Close
        || wish.wish.pinned == Pinned::Close
        || wish.fence
        || wish.recycle
}

/// Obeys a request that was heard, if whoever made it may make it.
pub(super) fn obey(desk: &Desk, fleet: &Fleet, heard: Notification) {
    let request = match Request::read(&heard.payload) {
        Ok(request) => request,
        Err(why) => return fleet.complain(&heard, &why),
    };
    let id = request.caller.as_ref().map(|caller| caller.id.clone());
    if id.as_ref().is_some_and(|id| !fleet.is_new(id)) {
        return;
    }
    let (desk, fleet) = (desk.clone(), fleet.clone());
    tokio::spawn(async move {
        let answer = match carry_out(&desk, &fleet, heard.pid, request).await {
            Ok(record) => Answer::done(id, &fleet.0.instance, &record),
            Err(why) => {
                fleet.complain(&heard, &why);
                Answer::failed(id, &fleet.0.instance, why)
            }
        };
        fleet.say(ANSWER, &answer).await;
    });
}

async fn carry_out(
    desk: &Desk,
    fleet: &Fleet,
    pid: u32,
    request: Request,
) -> Result<std::sync::Arc<ReloadRecord>, String> {
    let body: ReloadBody =
        serde_json::from_value(request.body).map_err(|error| error.to_string())?;
    let wish = body
        .into_wish()
        .map_err(|problem| problem.detail().to_owned())?;
    if let Some(why) = unfit(&wish) {
        return Err(why.to_owned());
    }
    if is_forceful(&wish) && !fleet.0.link.may_force(pid).await {
        let why = "only a member of pgvalet's own role, still connected, may ask for what cuts or holds up";
        return Err(why.to_owned());
    }
    let running = fleet.0.running.try_acquire();
    let _running = running.map_err(|_| "too many reloads at a time".to_owned())?;
    let (id, from) = match request.caller {
        Some(caller) => (Some(caller.id), caller.from),
        None => (None, "notify".to_owned()),
    };
    fleet
        .say(ANSWER, &Answer::new(id, &fleet.0.instance, Progress::Began))
        .await;
    let record = reloads::begin(desk, wish, Some(from)).done().await;
    record.map_err(|problem| problem.detail().to_owned())
}
