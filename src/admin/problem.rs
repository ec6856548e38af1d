//! Owns the errors of the admin API: problem+json (RFC 9457).

use axum::Json;
use axum::extract::FromRequestParts;
use axum::extract::rejection::PathRejection;
use axum::http::request::Parts;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value, json};

use crate::shard::Gone;

/// An error as the caller sees it.
#[derive(Clone, Debug)]
pub(super) struct Problem {
    status: StatusCode,
    detail: String,
    members: Map<String, Value>,
    /// What a caller without a proof is asked for: WWW-Authenticate.
    challenge: Option<HeaderValue>,
}

impl Problem {
    /// A problem of this status; `detail` says what is wrong, and what would be right.
    pub fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Self {
            status,
            detail: detail.into(),
            members: Map::new(),
            challenge: None,
        }
    }

    /// What is wrong.
    pub fn detail(&self) -> &str {
        &self.detail
    }

    /// With what the caller has to show.
    pub fn challenge(mut self, challenge: HeaderValue) -> Self {
        self.challenge = Some(challenge);
        self
    }

    /// With a further member.
    pub fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.members.insert(name.to_owned(), value.into());
        self
    }
}

/// The one parameter of a path.
#[derive(Debug)]
pub(super) struct Path(pub String);

impl<S: Send + Sync> FromRequestParts<S> for Path {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let taken = axum::extract::Path::<String>::from_request_parts(parts, state).await;
        let wrong = |error: PathRejection| Problem::new(error.status(), error.body_text());
        taken.map(|path| Self(path.0)).map_err(wrong)
    }
}

impl From<Gone> for Problem {
    fn from(gone: Gone) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, gone.to_string())
    }
}

impl Problem {
    /// It as JSON.
    pub fn body(self) -> Value {
        let mut body = json!({
            "type": "about:blank",
            "title": self.status.canonical_reason().unwrap_or("Error"),
            "status": self.status.as_u16(),
            "detail": self.detail,
        });
        if let Value::Object(members) = &mut body {
            members.extend(self.members);
        }
        body
    }
}

impl IntoResponse for Problem {
    fn into_response(mut self) -> Response {
        let (status, challenge) = (self.status, self.challenge.take());
        let mut response = (status, Json(self.body())).into_response();
        response.headers_mut().insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/problem+json"),
        );
        if let Some(challenge) = challenge {
            response
                .headers_mut()
                .insert(header::WWW_AUTHENTICATE, challenge);
        }
        response
    }
}
