//! Owns the Idempotency-Key of reloads: the same key with the same body is the same reload, answered again.

use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hasher};
use std::sync::PoisonError;

use super::Desk;
use super::problem::Problem;
use super::reloads::Running;
use axum::http::{HeaderMap, StatusCode};

/// How many keys are remembered.
const REMEMBERED: usize = 100;
/// The longest key, in bytes.
const LONGEST: usize = 200;

/// The last keys, each with the hash of the request that it came with, and its reload.
pub(super) type Keys = VecDeque<(String, u64, Running)>;

/// The request's key, if it has one.
pub(super) fn key(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let Some(value) = headers.get("idempotency-key") else {
        return Ok(None);
    };
    match value.to_str() {
        Ok(key) if !key.is_empty() && key.len() <= LONGEST => Ok(Some(key.to_owned())),
        Ok(_) | Err(_) => {
            let detail = format!("Idempotency-Key: 1 to {LONGEST} characters of ASCII");
            Err(Problem::new(StatusCode::BAD_REQUEST, detail))
        }
    }
}

impl Desk {
    /// The reload of this key: the one that runs or ran, or the one that `begin` begins now.
    ///
    /// # Errors
    /// The key came with another request before.
    pub(super) fn once(
        &self,
        key: String,
        request: &[u8],
        begin: impl FnOnce() -> Running,
    ) -> Result<Running, Problem> {
        let mut hasher = DefaultHasher::new();
        hasher.write(request);
        let digest = hasher.finish();
        let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, known, running)) = keys.iter().find(|(known, ..)| *known == key) {
            if *known == digest {
                return Ok(running.clone());
            }
            let detail = "this Idempotency-Key came with another body before";
            return Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, detail));
        }
        if keys.len() >= REMEMBERED {
            keys.pop_front();
        }
        let running = begin();
        keys.push_back((key, digest, running.clone()));
        Ok(running)
    }
}
