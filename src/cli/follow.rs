//! Owns what goes on for a while: `pgvalet events`, and a reload that is followed.

use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use hyper::Method;
use hyper::header::HeaderName;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};

use super::client::{Ask, Client, ClientError};
use super::commands::{Common, block_on, finish, read};
use super::stream::{Flow, Told};
use super::tables::printable;
use super::views::{Reload, ReloadLease};
use super::{Exit, complain, print, tables};
use crate::clock::timers;

/// How long to wait before a stream that broke is asked for again.
const AGAIN: Duration = Duration::from_secs(1);

#[derive(Args, Debug)]
pub(super) struct EventsArgs {
    #[command(flatten)]
    common: Common,
    /// Only these: classes such as lease or reload, or names such as lease.parked, separated by commas
    #[arg(long, value_name = "LIST")]
    kinds: Option<String>,
    /// Begin behind the event with this id, as far as pgvalet still has what came after it
    #[arg(long, value_name = "ID")]
    after: Option<String>,
    /// End after so many events
    #[arg(long, value_name = "N")]
    count: Option<u64>,
}

/// What `pgvalet events` knows between two streams.
struct Course<'a> {
    args: &'a EventsArgs,
    last: Option<String>,
    left: Option<u64>,
    connected: bool,
    /// Set when stdout is closed, or all that was wanted has come.
    done: Option<Exit>,
}

/// `pgvalet events`.
pub(super) fn events(args: &EventsArgs) -> Exit {
    let mut course = Course {
        args,
        last: args.after.clone(),
        left: args.count,
        connected: false,
        done: (args.count == Some(0)).then_some(Exit::Success),
    };
    let client = match args.common.client() {
        Ok(client) => client,
        Err(exit) => return exit,
    };
    let followed = block_on(course.run(&client));
    match (course.done, followed) {
        (Some(exit), _) => exit,
        (None, Ok(())) => Exit::Success,
        (None, Err(error)) => super::commands::failed(&error),
    }
}

impl Course<'_> {
    /// Follows until there is enough; a stream that breaks is taken up again where it was.
    async fn run(&mut self, client: &Client) -> Result<(), ClientError> {
        let kinds = self.args.kinds.as_deref().unwrap_or_default();
        let path = match utf8_percent_encode(kinds, NON_ALPHANUMERIC).to_string() {
            kinds if kinds.is_empty() => "/v1/events".to_owned(),
            kinds => format!("/v1/events?kinds={kinds}"),
        };
        let mut told = false;
        while self.done.is_none() {
            let id = self.last.iter();
            let id = id.map(|id| (HeaderName::from_static("last-event-id"), id.clone()));
            let ask = Ask {
                method: Method::GET,
                path: &path,
                body: Bytes::new(),
                headers: id.collect(),
            };
            let followed = client.follow(ask, &mut |event| self.take(&event)).await;
            match followed {
                Ok(()) => {}
                Err(error @ ClientError::Refused { .. }) => return Err(error),
                Err(error) if !self.connected => return Err(error),
                Err(_) => {}
            }
            if self.done.is_none() {
                if !std::mem::replace(&mut told, true) {
                    complain("the stream broke; it is taken up again where it was");
                }
                timers::sleep(AGAIN).await;
            }
        }
        Ok(())
    }

    fn take(&mut self, told: &Told) -> Flow {
        self.connected = true;
        if told.id.is_some() {
            self.last.clone_from(&told.id);
        }
        if matches!(told.event.as_str(), "open" | "dropped") {
            return Flow::More;
        }
        let text = if self.args.common.is_json() {
            as_json(told)
        } else {
            as_line(told)
        };
        self.left = self.left.map(|left| left.saturating_sub(1));
        match print(&format!("{text}\n")) {
            Exit::Success if self.left == Some(0) => self.done = Some(Exit::Success),
            Exit::Success => return Flow::More,
            failed => self.done = Some(failed),
        }
        Flow::Enough
    }
}

/// The event as one JSON object.
fn as_json(told: &Told) -> String {
    let mut all = json!({ "event": told.event, "id": told.id });
    if let (Value::Object(all), Ok(Value::Object(data))) =
        (&mut all, serde_json::from_str(&told.data))
    {
        all.extend(data);
    }
    all.to_string()
}

/// The event as a line for people: when, what, and its members.
fn as_line(told: &Told) -> String {
    let data: Value = serde_json::from_str(&told.data).unwrap_or_default();
    let at = data["at"].as_str().unwrap_or_default();
    let mut line = format!("{at:24} {:17}", told.event);
    let order = [
        "session",
        "owner",
        "evidence",
        "cause",
        "method",
        "outcome",
        "reason",
        "rule",
        "id",
        "from",
        "verdict",
        "state",
        "idle",
        "took",
        "database",
        "user",
        "backend",
        "by",
        "sqlstate",
        "message",
        "last_statement",
        "where",
        "lost",
        "repeated",
    ];
    for name in order {
        match &data[name] {
            Value::Null => {}
            Value::String(text) if text.is_empty() => {}
            Value::String(text) if text.contains(' ') => {
                line.push_str(&format!(" {name}={text:?}"))
            }
            Value::String(text) => line.push_str(&format!(" {name}={text}")),
            other => line.push_str(&format!(" {name}={other}")),
        }
    }
    if let Value::Object(counts) = &data["counts"] {
        let counts = counts.iter().filter(|(_, count)| count.as_u64() != Some(0));
        counts.for_each(|(word, count)| line.push_str(&format!(" {word}={count}")));
    }
    printable(&line)
}

/// A reload whose outcomes are printed as they fall; the record comes last.
pub(super) fn reload(common: &Common, client: &Client, path: &str, body: String) -> Exit {
    let mut record = None;
    let mut take = |told: Told| {
        match told.event.as_str() {
            "outcome" if !common.is_json() => {
                let lease: ReloadLease = serde_json::from_str(&told.data).unwrap_or_default();
                print(&tables::outcome_line(&lease));
            }
            "done" => record = Some(Ok(Bytes::from(told.data))),
            "problem" => record = Some(Err(told.data)),
            _ => {}
        }
        if record.is_some() {
            Flow::Enough
        } else {
            Flow::More
        }
    };
    let ask = Ask {
        method: Method::POST,
        path,
        body: body.into(),
        headers: Vec::new(),
    };
    let followed = block_on(client.follow(ask, &mut take));
    let answer = followed.and_then(|()| match record {
        Some(Ok(body)) => read::<Reload>(client, body),
        Some(Err(problem)) => Err(client.problem(problem.as_bytes())),
        None => Err(client.not_pgvalet("the stream broke before the reload was done".to_owned())),
    });
    finish(common, answer, |answer: &Reload| {
        (tables::reload_line(answer), Exit::Success)
    })
}
