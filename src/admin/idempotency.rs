//! Owns the Idempotency-Key of reloads: the same key with the same body is the same reload, answered again.

use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hasher};
use std::sync::{Arc, PoisonError};

use axum::http::{HeaderMap, StatusCode};
use tokio::sync::OnceCell;

use super::problem::Problem;
use super::{Desk, ReloadRecord};

/// How many keys are remembered.
const REMEMBERED: usize = 100;
/// The longest key, in bytes.
const LONGEST: usize = 200;

/// A reload that is carried out once, whoever asks first.
pub(super) type Once = Arc<OnceCell<ReloadRecord>>;

/// The last keys, each with the hash of the body that it came with.
pub(super) type Keys = VecDeque<(String, u64, Once)>;

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
    /// The reload of this key.
    ///
    /// # Errors
    /// The key came with another body before.
    pub(super) fn once(&self, key: String, body: &[u8]) -> Result<Once, Problem> {
        let mut hasher = DefaultHasher::new();
        hasher.write(body);
        let digest = hasher.finish();
        let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, known, once)) = keys.iter().find(|(known, ..)| *known == key) {
            if *known == digest {
                return Ok(once.clone());
            }
            let detail = "this Idempotency-Key came with another body before";
            return Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, detail));
        }
        if keys.len() >= REMEMBERED {
            keys.pop_front();
        }
        let once = Once::default();
        keys.push_back((key, digest, once.clone()));
        Ok(once)
    }
}
