//! Owns the following of events over HTTP, as server-sent events.

use std::sync::atomic::Ordering;

use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::sse::{Event, KeepAlive, Sse};
use futures_util::stream::{self, Stream, StreamExt};
use serde::Deserialize;
use serde_json::json;

use super::problem::Problem;
use super::{Desk, HEARTBEAT};
use crate::events::{self, EventId, Kind, Kinds, Refused, Subscription};

/// What to follow.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wish {
    /// `lease,reload.ended`: classes and names, all by default.
    kinds: Option<String>,
}

impl From<Refused> for Problem {
    fn from(refused: Refused) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, refused.to_string())
    }
}

/// `GET /v1/events`.
pub(super) async fn follow(
    State(desk): State<Desk>,
    wish: Result<Query<Wish>, axum::extract::rejection::QueryRejection>,
    headers: HeaderMap,
) -> Result<Sse<impl Stream<Item = Result<Event, axum::Error>>>, Problem> {
    let Query(wish) =
        wish.map_err(|error| Problem::new(StatusCode::UNPROCESSABLE_ENTITY, error.body_text()))?;
    let kinds = match wish.kinds.as_deref() {
        None | Some("") => Kinds::ALL,
        Some(list) => Kinds::read(list).map_err(|word| unknown(&word))?,
    };
    let subscription = desk.followers.follow(known(&headers)?, kinds).await?;
    let keep_alive = KeepAlive::new().interval(HEARTBEAT);
    Ok(Sse::new(told(subscription)).keep_alive(keep_alive))
}

fn unknown(word: &str) -> Problem {
    let kinds: Vec<_> = Kind::ALL.iter().map(|kind| kind.word()).collect();
    let detail = format!("kinds: \"{word}\" is none of {}", kinds.join(", "));
    Problem::new(StatusCode::UNPROCESSABLE_ENTITY, detail).with("path", "kinds")
}

/// The last event that the reader knows.
fn known(headers: &HeaderMap) -> Result<Option<EventId>, Problem> {
    let Some(value) = headers
        .get("last-event-id")
        .filter(|value| !value.is_empty())
    else {
        return Ok(None);
    };
    let id = value.to_str().ok().and_then(|text| text.parse().ok());
    let wrong = || {
        Problem::new(
            StatusCode::BAD_REQUEST,
            "Last-Event-ID: no event has such an id",
        )
    };
    id.map(Some).ok_or_else(wrong)
}

/// First where the reader stands, and what it missed; then the events. A reader that was too slow hears that at last.
fn told(subscription: Subscription) -> impl Stream<Item = Result<Event, axum::Error>> {
    let Subscription {
        at,
        missed,
        backlog,
        live,
        dropped,
    } = subscription;
    let gap = (missed != Some(0)).then(|| {
        let event = Event::default().event(Kind::Gap.word());
        event.json_data(json!({ "lost": missed }))
    });
    let backlog = backlog.into_iter().map(|event| Ok(written(&event)));
    // Its id comes behind the backlog: whoever breaks off before it goes on where it was.
    let open = Event::default().event("open").id(at.to_string());
    let open = open.json_data(json!({ "version": env!("CARGO_PKG_VERSION") }));
    let first = gap.into_iter().chain(backlog).chain([open]);
    let live = stream::unfold((live, dropped), |(mut live, dropped)| async move {
        if let Some(event) = live.recv().await {
            return Some((Ok(written(&event)), (live, dropped)));
        }
        // Said once.
        dropped.swap(false, Ordering::AcqRel).then(|| {
            let text =
                json!({ "reason": "this reader was too slow: come again with Last-Event-ID" });
            let event = Event::default().event("dropped").json_data(text);
            (event, (live, dropped))
        })
    });
    stream::iter(first).chain(live)
}

fn written(event: &events::Event) -> Event {
    Event::default()
        .event(event.kind.word())
        .id(event.id.to_string())
        .data(&event.data)
}
