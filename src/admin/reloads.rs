//! Owns reloads over HTTP: one begins, goes on whatever becomes of its caller, and is remembered.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream::{self, Stream, StreamExt};
use serde::Deserialize;
use serde_json::json;
use tokio::sync::{mpsc, watch};

use super::bodies::{self, ReloadBody};
use super::fleet::{self, Fleet};
use super::problem::{Path, Problem};
use super::routes::Answer;
use super::views::{AccountView, Course, ReloadRecord, Reloads};
use super::{Desk, HEARTBEAT, idempotency};
use crate::events::Happening;
use crate::lease::Moment;
use crate::reload::Account;
use crate::shard::ReloadWish;
use crate::view::{duration, timestamp};

/// A reload that runs, or is done. Clones await the same.
#[derive(Clone, Debug)]
pub(super) struct Running {
    /// The reload's id.
    id: u64,
    done: watch::Receiver<Option<Result<Arc<ReloadRecord>, Problem>>>,
}

impl Running {
    /// Its record, when it is done. Cancel safe: the reload goes on.
    pub async fn done(mut self) -> Result<Arc<ReloadRecord>, Problem> {
        let ended = self.done.wait_for(Option::is_some).await;
        let record = ended.ok().and_then(|ended| ended.clone());
        record.unwrap_or_else(|| {
            let detail = "the reload was broken off: pgvalet is shutting down";
            Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail))
        })
    }
}

/// Where a reload is carried out.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
enum Scope {
    /// Here.
    #[default]
    Local,
    /// At every pgvalet of the fleet.
    Fleet,
}

/// What stands behind the path.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Where {
    #[serde(default)]
    scope: Scope,
}

fn unprocessable(detail: String) -> Problem {
    Problem::new(StatusCode::UNPROCESSABLE_ENTITY, detail)
}

/// `POST /v1/reloads`.
pub(super) async fn reload(
    State(desk): State<Desk>,
    query: Result<Query<Where>, QueryRejection>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Problem> {
    let mut wish = bodies::read::<ReloadBody>(&headers, &body)?.into_wish()?;
    let Query(query) = query.map_err(|error| unprocessable(error.body_text()))?;
    let streamed = wants_stream(&headers);
    let (progress, accounts) = mpsc::unbounded_channel();
    wish.progress = streamed.then_some(progress);
    let asks_fleet = query.scope == Scope::Fleet;
    let asked = match query.scope {
        Scope::Local => None,
        // Refusals come at once, and take no key.
        Scope::Fleet => Some((fleet::of(&desk)?.clone(), bodies::value(&body))),
    };
    let begin = || match asked {
        None => begin(&desk, wish, None),
        Some((fleet, body)) => begin_fleet(&desk, fleet, wish, body),
    };
    let running = match idempotency::key(&headers)? {
        None => begin(),
        Some(key) => desk.once(key, &[&[u8::from(asks_fleet)], &body[..]].concat(), begin)?,
    };
    if streamed {
        return Ok(stream(running, accounts).into_response());
    }
    let record = running.done().await?;
    Ok(Json(record.as_ref()).into_response())
}

/// Whether the caller asks for server-sent events.
fn wants_stream(headers: &HeaderMap) -> bool {
    let accept = headers.get(header::ACCEPT);
    accept
        .and_then(|value| value.to_str().ok())
        .is_some_and(|value| value.contains("text/event-stream"))
}

/// Begins a reload. It goes on to its end even if nobody awaits it.
pub(super) fn begin(desk: &Desk, wish: ReloadWish, from: Option<String>) -> Running {
    spawn(desk, |desk, id| async move {
        let course = Started::new(&desk, id, &wish, from);
        let record = course.carry_out(wish).await?;
        Ok(course.end(record))
    })
}

/// The same of the whole fleet: our own part here, and the others' answers.
fn begin_fleet(desk: &Desk, fleet: Fleet, wish: ReloadWish, body: serde_json::Value) -> Running {
    spawn(desk, |desk, id| async move {
        let asked = fleet.ask(&body, &wish).await?;
        let course = Started::new(&desk, id, &wish, None);
        let (record, others) = tokio::join!(course.carry_out(wish), asked.answers());
        Ok(course.end(record?.with_fleet(fleet.own_view(), others)))
    })
}

fn spawn<F>(desk: &Desk, work: impl FnOnce(Desk, u64) -> F) -> Running
where
    F: Future<Output = Result<Arc<ReloadRecord>, Problem>> + Send + 'static,
{
    let id = desk.number();
    let (sender, done) = watch::channel(None);
    let work = work(desk.clone(), id);
    tokio::spawn(async move {
        // Nobody may be waiting any more; the record is kept.
        let _ = sender.send(Some(work.await));
    });
    Running { id, done }
}

/// A reload that has started.
struct Started {
    desk: Desk,
    id: u64,
    began: Moment,
    dry_run: bool,
    from: Option<String>,
}

impl Started {
    fn new(desk: &Desk, id: u64, wish: &ReloadWish, from: Option<String>) -> Self {
        let started = Self {
            desk: desk.clone(),
            id,
            began: desk.clock.precise(),
            dry_run: wish.wish.dry_run,
            from,
        };
        desk.remember(Arc::new(ReloadRecord::running(
            started.course(Duration::ZERO),
        )));
        desk.events.tell(Happening::ReloadBegan {
            id: id.to_string(),
            dry_run: wish.wish.dry_run,
            fence: wish.fence,
            deadline: wish.deadline.map(duration),
            from: started.from.clone(),
        });
        started
    }

    fn course(&self, took: Duration) -> Course {
        Course {
            id: self.id,
            started: timestamp(&self.desk.clock, self.began),
            took,
            dry_run: self.dry_run,
            from: self.from.clone(),
        }
    }

    async fn carry_out(&self, wish: ReloadWish) -> Result<ReloadRecord, Problem> {
        if wish.wish.selector.process.is_some() {
            self.desk.sessions().await?;
        }
        let report = self.desk.shards.reload(wish).await?;
        let took = self.desk.clock.precise().since(self.began);
        self.desk.metrics.reloaded(took);
        Ok(ReloadRecord::new(self.course(took), report))
    }

    fn end(&self, record: ReloadRecord) -> Arc<ReloadRecord> {
        let (id, generation, from) = (self.id, record.generation, self.from.as_deref());
        tracing::info!(id, generation, from, "reload: {}", record.summary());
        let record = Arc::new(record);
        self.desk.remember(record.clone());
        self.desk.events.tell(record.ended());
        record
    }
}

/// Each account as it falls, then the record.
fn stream(
    running: Running,
    accounts: mpsc::UnboundedReceiver<Account>,
) -> Sse<impl Stream<Item = Result<Event, axum::Error>>> {
    let began = Event::default().event("began");
    let began = began.json_data(json!({ "id": running.id.to_string() }));
    let outcomes = stream::unfold(accounts, |mut accounts| async move {
        let account = accounts.recv().await?;
        let event = Event::default().event("outcome");
        let event = event.json_data(AccountView::from(account));
        Some((event, accounts))
    });
    let ended = stream::once(async move {
        match running.done().await {
            Ok(record) => Event::default().event("done").json_data(record.as_ref()),
            Err(problem) => Event::default().event("problem").json_data(problem.body()),
        }
    });
    let all = stream::once(std::future::ready(began)).chain(outcomes);
    Sse::new(all.chain(ended)).keep_alive(KeepAlive::new().interval(HEARTBEAT))
}

/// `GET /v1/reloads`.
pub(super) async fn list(State(desk): State<Desk>) -> Json<Reloads> {
    let records = desk.recall_all();
    let reloads = records.iter().map(|record| record.as_ref().clone());
    Json(Reloads {
        reloads: reloads.collect(),
    })
}

/// `GET /v1/reloads/{id}`.
pub(super) async fn by_id(State(desk): State<Desk>, Path(id): Path) -> Answer<ReloadRecord> {
    let missing = || {
        Problem::new(
            StatusCode::NOT_FOUND,
            format!("no reload has the id {id}; the last 100 are kept"),
        )
    };
    Ok(Json(desk.recall(&id).ok_or_else(missing)?.as_ref().clone()))
}
