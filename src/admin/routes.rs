//! Owns the routes of the admin API, and of the scrape endpoint.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::middleware;
use axum::response::{IntoResponse, Response};
use axum::{Json, Router};

use super::bodies::{self, ClaimsBody, ReloadBody, ReturnBody};
use super::problem::{Path, Problem};
use super::serve::bounded;
use super::table::{Listeners, ROUTES, Route};
use super::views::{
    AccountView, Course, Leaks, Leases, OwnerReturn, Owners, ReloadRecord, Reloads, Returned,
    Sessions, TakenClaims,
};
use super::{Desk, guard, idempotency};
use crate::drain::Phase;
use crate::lease::SessionId;
use crate::lease::reload::Outcome;
use crate::reload::Account;
use crate::shard::ReloadWish;
use crate::view::timestamp;

type Answer<T> = Result<Json<T>, Problem>;

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

pub(super) async fn leases(State(desk): State<Desk>) -> Answer<Leases> {
    let (generation, mut leases) = desk.sessions().await?;
    leases.retain(|lease| lease.state != "none");
    Ok(Json(Leases { generation, leases }))
}

pub(super) async fn sessions(State(desk): State<Desk>) -> Answer<Sessions> {
    let (generation, sessions) = desk.sessions().await?;
    Ok(Json(Sessions {
        generation,
        sessions,
    }))
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
    let unknown: Vec<u32> = desk
        .shards
        .claim(source, claims)
        .await?
        .into_iter()
        .map(SessionId::get)
        .collect();
    let accepted = count - unknown.len();
    Ok(Json(TakenClaims { accepted, unknown }))
}

pub(super) async fn reload(
    State(desk): State<Desk>,
    headers: HeaderMap,
    body: Bytes,
) -> Answer<ReloadRecord> {
    let wish = bodies::read::<ReloadBody>(&headers, &body)?.into_wish()?;
    let record = match idempotency::key(&headers)? {
        None => carry_out(&desk, wish).await?,
        Some(key) => {
            let once = desk.once(key, &body)?;
            let first = once.get_or_try_init(|| carry_out(&desk, wish));
            first.await?.clone()
        }
    };
    Ok(Json(record))
}

async fn carry_out(desk: &Desk, wish: ReloadWish) -> Result<ReloadRecord, Problem> {
    let dry_run = wish.wish.dry_run;
    if wish.wish.selector.process.is_some() {
        desk.sessions().await?;
    }
    let (id, began) = (desk.number(), desk.clock.precise());
    let report = desk.shards.reload(wish).await?;
    let took = desk.clock.precise().since(began);
    desk.metrics.reloaded(took);
    let record = ReloadRecord::new(
        Course {
            id,
            started: timestamp(&desk.clock, began),
            took,
            dry_run,
        },
        report,
    );
    tracing::info!(
        id,
        generation = record.generation,
        "reload: {}",
        record.summary()
    );
    desk.remember(Arc::new(record.clone()));
    Ok(record)
}

pub(super) async fn reloads(State(desk): State<Desk>) -> Json<Reloads> {
    let records: Vec<ReloadRecord> = desk
        .recall_all()
        .iter()
        .map(|record| record.as_ref().clone())
        .collect();
    Json(Reloads { reloads: records })
}

pub(super) async fn reload_by_id(State(desk): State<Desk>, Path(id): Path) -> Answer<ReloadRecord> {
    let missing = || {
        Problem::new(
            StatusCode::NOT_FOUND,
            format!("no reload has the id {id}; the last 100 are kept"),
        )
    };
    Ok(Json(desk.recall(&id).ok_or_else(missing)?.as_ref().clone()))
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
