//! Owns the routes of the admin API, and of the scrape endpoint.

use std::collections::BTreeSet;

use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::middleware;
use axum::response::{IntoResponse, Response};
use axum::{Json, Router};
use serde::Serialize;

use super::bodies::{self, ClaimsBody, ReturnBody};
use super::problem::{Path, Problem};
use super::serve::bounded;
use super::table::{Listeners, ROUTES, Route};
use super::views::{
    AccountView, Leaks, Leases, OwnerReturn, Owners, Returned, Sessions, TakenClaims,
};
use super::{Desk, guard};
use crate::drain::Phase;
use crate::events::Happening;
use crate::lease::SessionId;
use crate::lease::reload::Outcome;
use crate::pacer::Paced;
use crate::reload::Account;

/// How many sessions an answer has at most that is made at once.
const SHORT: usize = 200;

/// How much of a longer one is written without a rest, in bytes.
const STRETCH: usize = 64 << 10;

/// How many owners an event names.
const OWNERS: usize = 20;

pub(super) type Answer<T> = Result<Json<T>, Problem>;

/// The admin API. It includes what the scrape endpoint has.
pub fn admin(desk: Desk) -> Router {
    let guarded = guard::Guard::new(&desk.config);
    let judged = middleware::from_fn_with_state(guarded, guard::admit);
    router(|_| true).layer(judged).with_state(desk)
}

/// What a scraper and an orchestrator need, and nothing else.
pub fn scrape(desk: Desk) -> Router {
    router(|route| route.listeners == Listeners::Both).with_state(desk)
}

/// The routes of the table that `served` picks. Their requests are read whole before they get anywhere.
fn router(served: impl Fn(&Route) -> bool) -> Router<Desk> {
    let mut router = Router::new();
    for route in ROUTES.iter().filter(|route| served(route)) {
        router = router.route(route.path, (route.serve)(route.method.filter()));
    }
    router
        .fallback(not_found)
        .method_not_allowed_fallback(wrong_method)
        .layer(middleware::from_fn(bounded))
        .layer(DefaultBodyLimit::disable())
}

async fn not_found(uri: Uri) -> Problem {
    Problem::new(
        StatusCode::NOT_FOUND,
        format!("nothing is at {}", uri.path()),
    )
}

async fn wrong_method(uri: Uri) -> Problem {
    Problem::new(
        StatusCode::METHOD_NOT_ALLOWED,
        format!("{} takes another method", uri.path()),
    )
}

/// The process runs and answers.
pub(super) async fn healthz() -> &'static str {
    "ok\n"
}

/// Clients may connect.
pub(super) async fn readyz(State(desk): State<Desk>) -> Result<&'static str, Problem> {
    if desk.shutdown.is_at(Phase::Draining) {
        return Err(Problem::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "pgvalet is draining",
        ));
    }
    Ok("ready\n")
}

pub(super) async fn metrics(State(desk): State<Desk>) -> Result<Response, Problem> {
    let sample = desk.shards.sample().await?;
    let text = desk.metrics.render(&sample);
    let text =
        text.map_err(|error| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
    Ok((
        [(
            header::CONTENT_TYPE,
            "text/plain; version=0.0.4; charset=utf-8",
        )],
        text,
    )
        .into_response())
}

pub(super) async fn leases(State(desk): State<Desk>) -> Result<Response, Problem> {
    let (generation, mut leases) = desk.sessions().await?;
    leases.retain(|lease| lease.state != "none");
    Ok(list(leases.len(), Leases { generation, leases }).await)
}

pub(super) async fn sessions(State(desk): State<Desk>) -> Result<Response, Problem> {
    let (generation, sessions) = desk.sessions().await?;
    let list = list(
        sessions.len(),
        Sessions {
            generation,
            sessions,
        },
    );
    Ok(list.await)
}

/// An answer with so many members. The text of a long one is made beside: this thread has the data threads' timers.
async fn list<T: Serialize + Send + 'static>(members: usize, answer: T) -> Response {
    if members <= SHORT {
        return Json(answer).into_response();
    }
    let made = crate::executor::aside(move || {
        let mut text = Paced::new(STRETCH);
        let written = serde_json::to_writer(&mut text, &answer);
        written.map(|()| text.into_text())
    });
    let Ok(Ok(text)) = made.await else {
        let status = StatusCode::INTERNAL_SERVER_ERROR;
        return Problem::new(status, "the answer can't be made").into_response();
    };
    ([(header::CONTENT_TYPE, "application/json")], text).into_response()
}

pub(super) async fn owners(State(desk): State<Desk>) -> Answer<Owners> {
    Ok(Json(Owners::of(desk.sessions().await?.1)))
}

pub(super) async fn leaks(State(desk): State<Desk>) -> Answer<Leaks> {
    let (_, sessions) = desk.sessions().await?;
    let parks = desk.shards.parks().await?;
    Ok(Json(Leaks::of(sessions, &parks, desk.config.park_after)))
}

pub(super) async fn claims(
    State(desk): State<Desk>,
    headers: HeaderMap,
    body: Bytes,
) -> Answer<TakenClaims> {
    let (source, claims) = bodies::require::<ClaimsBody>(&headers, &body)?.into_parts();
    let count = claims.len();
    let owners: BTreeSet<String> = claims
        .iter()
        .filter_map(|claim| claim.owner.clone())
        .collect();
    let unknown: Vec<u32> = desk
        .shards
        .claim(source.clone(), claims)
        .await?
        .into_iter()
        .map(SessionId::get)
        .collect();
    desk.events.tell(Happening::Claimed {
        source,
        accepted: count - unknown.len(),
        unknown: unknown.len(),
        owners: owners.into_iter().take(OWNERS).collect(),
    });
    let accepted = count - unknown.len();
    Ok(Json(TakenClaims { accepted, unknown }))
}

pub(super) async fn return_lease(
    State(desk): State<Desk>,
    Path(id): Path,
    headers: HeaderMap,
    body: Bytes,
) -> Answer<Returned> {
    let method = bodies::read::<ReturnBody>(&headers, &body)?.method();
    let missing = || Problem::new(StatusCode::NOT_FOUND, format!("no session has the id {id}"));
    let number: u32 = id.parse().map_err(|_| missing())?;
    let outcome = desk
        .shards
        .give_back(SessionId::new(number), method)
        .await?
        .ok_or_else(missing)?;
    tracing::info!(
        session = number,
        method = method.word(),
        "return by a call: {}",
        outcome.word()
    );
    let answer = Returned {
        session: number,
        outcome: outcome.word(),
        reason: outcome.reason().map(ToOwned::to_owned),
    };
    match outcome {
        Outcome::Returned(_) | Outcome::Gone => Ok(Json(answer)),
        Outcome::Resting
        | Outcome::Spared(_)
        | Outcome::Busy(_)
        | Outcome::Pinned(_)
        | Outcome::Unknown => {
            let detail = format!(
                "session {number} is {}: {}",
                outcome.word(),
                outcome.reason().unwrap_or("no reason")
            );
            let problem = Problem::new(StatusCode::CONFLICT, detail).with("session", number);
            Err(problem
                .with("outcome", outcome.word())
                .with("reason", outcome.reason()))
        }
    }
}

pub(super) async fn return_owner(
    State(desk): State<Desk>,
    Path(owner): Path,
    headers: HeaderMap,
    body: Bytes,
) -> Answer<OwnerReturn> {
    let method = bodies::read::<ReturnBody>(&headers, &body)?.method();
    let (_, sessions) = desk.sessions().await?;
    let mut accounts = Vec::new();
    for view in sessions
        .into_iter()
        .filter(|session| session.owner == owner)
    {
        let id = SessionId::new(view.id);
        let outcome = desk
            .shards
            .give_back(id, method)
            .await?
            .unwrap_or(Outcome::Gone);
        accounts.push(AccountView::from(Account {
            id,
            view: Some(view),
            outcome,
        }));
    }
    if accounts.is_empty() {
        return Err(Problem::new(
            StatusCode::NOT_FOUND,
            format!("no session belongs to the owner \"{owner}\""),
        ));
    }
    Ok(Json(OwnerReturn {
        owner,
        leases: accounts,
    }))
}
