//! Owns what instances of a fleet say to each other: JSON that fits a NOTIFY, and nothing that others of the same
//! database mustn't read.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::admin::views::ReloadRecord;

/// The longest payload of a NOTIFY, in bytes: it must be shorter than 8000.
pub(super) const LONGEST: usize = 7999;
/// How much of a text that another instance sends is kept, in characters.
const KEPT: usize = 300;

/// Who asks for a reload of the fleet, so that the answers find back.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Caller {
    pub id: String,
    pub from: String,
}

/// A request on `pgvalet_reload`: the body of `POST /v1/reloads`, and who asks, where an instance does.
#[derive(Debug)]
pub(super) struct Request {
    pub caller: Option<Caller>,
    pub body: Value,
}

impl Request {
    /// The payload, if it fits.
    pub fn write(body: &Value, caller: &Caller) -> Option<String> {
        let mut all = body.as_object().cloned().unwrap_or_default();
        all.insert("fleet".to_owned(), serde_json::to_value(caller).ok()?);
        let text = Value::Object(all).to_string();
        (text.len() <= LONGEST).then_some(text)
    }

    /// Reads a payload; an empty one is an empty body.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn read(payload: &str) -> Result<Self, String> {
        let mut body: Map<String, Value> = if payload.trim().is_empty() {
            Map::new()
        } else {
            serde_json::from_str(payload).map_err(|error| error.to_string())?
        };
        let caller = body.remove("fleet").map(serde_json::from_value::<Caller>);
        let caller = caller
            .transpose()
            .map_err(|error| format!("fleet: {error}"))?;
        let caller = caller.map(|caller| Caller {
            id: cut(caller.id),
            from: cut(caller.from),
        });
        Ok(Self {
            caller,
            body: Value::Object(body),
        })
    }
}

/// How far an instance has come with a reload.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Progress {
    Began,
    Done,
    /// It didn't begin, or was broken off.
    Failed,
}

/// An answer on `pgvalet_reload_answer`. Counts only: whoever may listen needn't be one who may see sessions.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct Answer {
    /// The request's id; none for a request that anybody made by hand.
    pub id: Option<String>,
    pub instance: String,
    pub state: Progress,
    /// The reload's id at that instance.
    #[serde(default)]
    pub reload: Option<String>,
    #[serde(default)]
    pub generation: Option<u64>,
    #[serde(default)]
    pub took: Option<String>,
    #[serde(default)]
    pub counts: BTreeMap<String, u64>,
    #[serde(default)]
    pub reason: Option<String>,
}

impl Answer {
    /// An answer that only says how far it has come.
    pub fn new(id: Option<String>, instance: &str, state: Progress) -> Self {
        Self {
            id,
            instance: instance.to_owned(),
            state,
            reload: None,
            generation: None,
            took: None,
            counts: BTreeMap::new(),
            reason: None,
        }
    }

    /// That it is done, and what came of it.
    pub fn done(id: Option<String>, instance: &str, record: &ReloadRecord) -> Self {
        Self {
            reload: Some(record.id.clone()),
            generation: Some(record.generation),
            took: Some(record.took_text()),
            counts: record.counts(),
            ..Self::new(id, instance, Progress::Done)
        }
    }

    /// That it failed, and why.
    pub fn failed(id: Option<String>, instance: &str, reason: String) -> Self {
        Self {
            reason: Some(cut(reason)),
            ..Self::new(id, instance, Progress::Failed)
        }
    }

    /// Reads a payload.
    pub fn read(payload: &str) -> Option<Self> {
        let answer: Self = serde_json::from_str(payload).ok()?;
        Some(Self {
            instance: cut(answer.instance),
            reload: answer.reload.map(cut),
            took: answer.took.map(cut),
            counts: answer.counts.into_iter().take(20).collect(),
            reason: answer.reason.map(cut),
            ..answer
        })
    }
}

/// What is said on `pgvalet_fleet`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(tag = "what", rename_all = "snake_case")]
pub(super) enum Roll {
    /// Who is there?
    Call { id: String, instance: String },
    /// I am.
    Here { id: String, presence: Presence },
}

/// What an instance says of itself.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub(super) struct Presence {
    pub instance: String,
    pub version: String,
    pub sessions: u64,
    pub leases: u64,
    pub generation: u64,
}

impl Roll {
    /// Reads a payload.
    pub fn read(payload: &str) -> Option<Self> {
        Some(match serde_json::from_str(payload).ok()? {
            Self::Call { id, instance } => Self::Call {
                id: cut(id),
                instance: cut(instance),
            },
            Self::Here { id, presence } => Self::Here {
                id: cut(id),
                presence: Presence {
                    instance: cut(presence.instance),
                    version: cut(presence.version),
                    ..presence
                },
            },
        })
    }
}

/// A text of another instance, bounded.
fn cut(text: String) -> String {
    text.chars().take(KEPT).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn a_request_comes_back_as_it_was_written() {
        let caller = Caller {
            id: "a/1/1".into(),
            from: "a".into(),
        };
        let body = json!({"min_idle": "1s", "owner": "O'Brien\\"});
        let read = Request::read(&Request::write(&body, &caller).unwrap()).unwrap();
        assert_eq!((read.caller, read.body), (Some(caller.clone()), body));
        let long = json!({"owner": "x".repeat(8000)});
        assert_eq!(Request::write(&long, &caller), None);
    }

    #[test]
    fn what_is_typed_by_hand_is_read_and_garbage_is_not() {
        assert!(Request::read("").unwrap().caller.is_none());
        assert_eq!(
            Request::read(r#"{"busy":"spare"}"#).unwrap().body,
            json!({"busy": "spare"})
        );
        for garbage in ["[]", "hello", "{", r#"{"fleet":1}"#, "null"] {
            assert!(Request::read(garbage).is_err(), "{garbage}");
        }
    }

    #[test]
    fn an_answer_always_fits() {
        let counts = (0..20).map(|n| (format!("{n:050}"), u64::MAX)).collect();
        let answer = Answer {
            counts,
            ..Answer::failed(Some("x".repeat(KEPT)), &"é".repeat(63), "é".repeat(9000))
        };
        let text = serde_json::to_string(&answer).unwrap();
        assert!(text.len() <= LONGEST, "{}", text.len());
    }

    proptest! {
        #[test]
        fn nothing_that_is_said_panics(payload in ".{0,200}") {
            let _ = (Request::read(&payload), Answer::read(&payload), Roll::read(&payload));
        }
    }
}
