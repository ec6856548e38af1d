//! Owns what callers may send: JSON with durations as strings, every key known, every length bounded.

use std::time::Duration;

use axum::http::{HeaderMap, StatusCode, header};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use utoipa::ToSchema;

use super::problem::Problem;
use crate::lease::reload::{Busy, Method, Pinned, Selector, Wish};
use crate::lease::{ClaimState, SessionId};
use crate::shard::{ClaimWish, ReloadWish};

/// The longest body that is read, in bytes: ten thousand claims.
pub(super) const MAX_BODY: usize = 4 << 20;

/// Reads a body; an empty one is the default.
pub(super) fn read<T: DeserializeOwned + Default>(
    headers: &HeaderMap,
    body: &[u8],
) -> Result<T, Problem> {
    if body.trim_ascii().is_empty() {
        Ok(T::default())
    } else {
        require(headers, body)
    }
}

/// A body that was read before, as it is.
pub(super) fn value(body: &[u8]) -> serde_json::Value {
    serde_json::from_slice(body).unwrap_or_else(|_| serde_json::json!({}))
}

/// Reads a body that must be there.
pub(super) fn require<T: DeserializeOwned>(headers: &HeaderMap, body: &[u8]) -> Result<T, Problem> {
    let kind = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or("application/json");
    let kind = kind
        .split(';')
        .next()
        .unwrap_or_default()
        .trim()
        .to_ascii_lowercase();
    let object = body.trim_ascii_start().starts_with(b"{");
    // `curl -d` calls everything a form: what looks like JSON is read as JSON.
    let form = kind == "application/x-www-form-urlencoded" && object;
    if !(kind == "application/json" || kind.ends_with("+json") || form) {
        let detail = format!("the body must be application/json, not {kind}");
        return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, detail));
    }
    if !object {
        return Err(Problem::new(
            StatusCode::BAD_REQUEST,
            "the body must be a JSON object",
        ));
    }
    let mut json = serde_json::Deserializer::from_slice(body);
    let value = serde_path_to_error::deserialize(&mut json).map_err(|error| unreadable(&error))?;
    json.end().map_err(|error| {
        Problem::new(
            StatusCode::BAD_REQUEST,
            format!("after the JSON value: {error}"),
        )
    })?;
    Ok(value)
}

fn unreadable(error: &serde_path_to_error::Error<serde_json::Error>) -> Problem {
    let path = error.path().to_string();
    let inner = error.inner();
    let status = if inner.is_data() {
        StatusCode::UNPROCESSABLE_ENTITY
    } else {
        StatusCode::BAD_REQUEST
    };
    let place = if path == "." {
        String::new()
    } else {
        format!("{path}: ")
    };
    Problem::new(status, format!("{place}{inner}")).with("path", path)
}

/// A duration such as `500ms` or `1m 30s`.
fn span<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    let Some(text) = Option::<String>::deserialize(deserializer)? else {
        return Ok(None);
    };
    let parsed = if text == "0" {
        Ok(Duration::ZERO)
    } else {
        humantime::parse_duration(&text)
    };
    let wrong = |error| {
        serde::de::Error::custom(format!(
            "\"{text}\" is no duration such as \"500ms\" or \"30s\": {error}"
        ))
    };
    parsed.map(Some).map_err(wrong)
}

/// One claim: the app's word on a session.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct ClaimBody {
    id: u32,
    owner: Option<String>,
    /// The class of the owner, such as `Thread`: shown with its name.
    class: Option<String>,
    #[serde(default)]
    state: StateBody,
    #[serde(default, deserialize_with = "span")]
    #[schema(value_type = Option<String>, example = "500ms")]
    held_for: Option<Duration>,
    #[serde(rename = "where")]
    place: Option<String>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum StateBody {
    #[default]
    Held,
    Resting,
}

/// How much of a text of a claim is kept, in characters.
const KEPT: usize = 400;

impl From<ClaimBody> for ClaimWish {
    fn from(body: ClaimBody) -> Self {
        let cut = |text: String| text.chars().take(KEPT).collect::<String>();
        let owner = match (body.owner.filter(|owner| !owner.is_empty()), body.class) {
            (Some(owner), Some(class)) if !class.is_empty() => Some(format!("{owner} ({class})")),
            (owner, _) => owner,
        };
        Self {
            id: SessionId::new(body.id),
            owner: owner.map(cut),
            state: match body.state {
                StateBody::Held => ClaimState::Held,
                StateBody::Resting => ClaimState::Resting,
            },
            held_for: body.held_for,
            place: body.place.map(cut),
        }
    }
}

/// `PUT /v1/claims`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ClaimsBody {
    source: Option<String>,
    #[serde(alias = "sessions")]
    claims: Vec<ClaimBody>,
}

impl ClaimsBody {
    /// The source, and its claims.
    pub fn into_parts(self) -> (Option<String>, Vec<ClaimWish>) {
        (
            self.source
                .map(|source| source.chars().take(KEPT).collect()),
            self.claims.into_iter().map(Into::into).collect(),
        )
    }
}

/// `POST /v1/reloads`.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ReloadBody {
    #[serde(default)]
    selector: SelectorBody,
    database: Option<String>,
    user: Option<String>,
    owner: Option<String>,
    application: Option<String>,
    process: Option<u32>,
    #[serde(default, deserialize_with = "span")]
    #[schema(value_type = Option<String>, example = "500ms")]
    min_idle: Option<Duration>,
    #[serde(default, deserialize_with = "span")]
    #[schema(value_type = Option<String>, example = "500ms")]
    deadline: Option<Duration>,
    #[serde(default)]
    busy: BusyBody,
    #[serde(default)]
    pinned: PinnedBody,
    #[serde(default)]
    method: MethodBody,
    #[serde(default)]
    recycle: bool,
    #[serde(default)]
    fence: bool,
    #[serde(default)]
    dry_run: bool,
    sessions: Option<Vec<ClaimBody>>,
}

/// The same selector, one level down.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct SelectorBody {
    database: Option<String>,
    user: Option<String>,
    owner: Option<String>,
    application: Option<String>,
    process: Option<u32>,
    #[serde(default, deserialize_with = "span")]
    #[schema(value_type = Option<String>, example = "500ms")]
    min_idle: Option<Duration>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum BusyBody {
    #[default]
    Wait,
    Spare,
    Cancel,
    Close,
}

#[derive(Clone, Copy, Debug, Default, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum PinnedBody {
    #[default]
    Spare,
    Close,
}

impl From<PinnedBody> for Pinned {
    fn from(body: PinnedBody) -> Self {
        match body {
            PinnedBody::Spare => Self::Spare,
            PinnedBody::Close => Self::Close,
        }
    }
}

#[derive(Clone, Copy, Debug, Default, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum MethodBody {
    #[default]
    Detach,
    Close,
}

impl From<MethodBody> for Method {
    fn from(body: MethodBody) -> Self {
        match body {
            MethodBody::Detach => Self::Detach,
            MethodBody::Close => Self::Close,
        }
    }
}

/// The longest deadline: a caller that is gone must not be waited for forever.
const MAX_DEADLINE: Duration = Duration::from_secs(3600);

impl ReloadBody {
    /// What the data threads are asked for.
    pub fn into_wish(self) -> Result<ReloadWish, Problem> {
        let wrong = |path: &str, detail: &str| {
            Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, detail).with("path", path))
        };
        let busy = match self.busy {
            BusyBody::Wait => Busy::Wait,
            BusyBody::Spare => Busy::Spare,
            BusyBody::Cancel => Busy::Cancel,
            BusyBody::Close => Busy::Close,
        };
        if self.fence && self.deadline.is_none_or(|deadline| deadline.is_zero()) {
            return wrong("fence", "fence: needs a deadline, at which it falls");
        }
        if self
            .deadline
            .is_some_and(|deadline| deadline > MAX_DEADLINE)
        {
            return wrong("deadline", "deadline: at most 1h");
        }
        let selector = Selector {
            database: self.database.or(self.selector.database),
            user: self.user.or(self.selector.user),
            owner: self.owner.or(self.selector.owner),
            application: self.application.or(self.selector.application),
            process: self.process.or(self.selector.process),
        };
        let min_idle = self.min_idle.or(self.selector.min_idle).unwrap_or_default();
        let wish = Wish {
            selector,
            min_idle,
            busy,
            method: self.method.into(),
            pinned: self.pinned.into(),
            dry_run: self.dry_run,
        };
        let submitted = self
            .sessions
            .map(|all| all.into_iter().map(Into::into).collect());
        Ok(ReloadWish {
            wish,
            deadline: self.deadline,
            recycle: self.recycle,
            submitted,
            fence: self.fence,
            progress: None,
        })
    }
}

/// `POST /v1/reap`.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ReapBody {
    #[serde(default)]
    pub dry_run: bool,
}

/// `POST /v1/verify`: nothing to say yet.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct VerifyBody {}

/// `POST /v1/leases/{id}/return` and `POST /v1/owners/{owner}/return`.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ReturnBody {
    #[serde(default)]
    method: MethodBody,
}

impl ReturnBody {
    /// How the lease is to be returned.
    pub fn method(&self) -> Method {
        self.method.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reload(json: &str) -> Result<ReloadWish, Problem> {
        read::<ReloadBody>(&HeaderMap::new(), json.as_bytes())?.into_wish()
    }

    #[test]
    fn an_empty_body_asks_for_everything_at_once() {
        let wish = reload("").unwrap();
        assert_eq!(wish.wish.min_idle, Duration::ZERO);
        assert_eq!(wish.deadline, None);
    }

    #[test]
    fn durations_are_strings() {
        let wish = reload(r#"{"min_idle": "500ms", "deadline": "2s"}"#).unwrap();
        assert_eq!(
            (wish.wish.min_idle, wish.deadline),
            (Duration::from_millis(500), Some(Duration::from_secs(2)))
        );
        assert!(reload(r#"{"min_idle": 500}"#).is_err());
        assert!(reload(r#"{"min_idle": "soon"}"#).is_err());
    }

    #[test]
    fn a_fence_needs_a_deadline() {
        assert!(reload(r#"{"fence": true}"#).is_err());
        assert!(reload(r#"{"fence": true, "deadline": "0"}"#).is_err());
        assert!(
            reload(r#"{"fence": true, "deadline": "1s"}"#)
                .unwrap()
                .fence
        );
    }

    #[test]
    fn unknown_keys_are_refused() {
        assert!(reload(r#"{"min_idel": "500ms"}"#).is_err());
        assert!(reload("{} trailing").is_err());
    }
}
