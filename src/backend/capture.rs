//! Owns the question that finds out what state a session has: PostgreSQL itself is asked.
//!
//! The probe is one pipeline of named extended-protocol statements, so that the client's unnamed statement stays; every
//! name and operator in it is qualified, since a client's `search_path` may be hostile (CVE-2025-12819); it runs in a
//! transaction of its own, so that `default_transaction_*` can't hold it up, and under the login role, so that nothing
//! is hidden from it.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::backend::parameters::APPLICATION_NAME;
use crate::backend::state::{Scene, SqlPrepared};
use crate::backend::{Answers, Backend, Lost, State};
use crate::lease::{Pin, Pins, Status};
use crate::wire::extended::write_frame;
use crate::wire::sql;

/// How long the probe may take: a backend that doesn't answer by then is lost.
const PATIENCE: Duration = Duration::from_secs(10);

/// The name of the probe's statements; each is closed within the pipeline, and seen by nobody.
const NAME: &[u8] = b"_pgvalet_probe\0";

pub(super) const BEGIN: &str = "BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY NOT DEFERRABLE";
/// What the probe itself changes, in its own transaction.
macro_rules! own_settings {
    () => {
        "ARRAY['statement_timeout', 'transaction_timeout', 'lock_timeout', 'client_encoding', 'jit']"
    };
}
/// Asked for before the probe changes it.
const PRIOR: &str = concat!(
    "SELECT 'prior', n, pg_catalog.current_setting(n, true) FROM pg_catalog.unnest(",
    own_settings!(),
    ") AS names(n)"
);
pub(super) const UNHURRIED: &str = "SET LOCAL statement_timeout = 0";
/// PostgreSQL itself ends a question that takes too long: the session is then pinned, and goes on.
const PATIENT: &str = "SET LOCAL statement_timeout = '5s'";
/// From PostgreSQL 17 on.
const UNHURRIED_ALL: &str = "SET LOCAL transaction_timeout = 0";
/// What the planner thinks of the probe depends on the session's settings: compiling it would take longer than running it.
const AS_IT_IS: &str = "SET LOCAL jit = off";
/// A table that somebody has locked isn't waited for.
const NO_WAITING: &str = "SET LOCAL lock_timeout = '100ms'";
pub(super) const IN_UTF8: &str = "SET LOCAL client_encoding = 'UTF8'";
const ROLE: &str = "SELECT 'role', pg_catalog.current_setting('role'), NULL";
pub(super) const AS_LOGIN: &str = "SET LOCAL ROLE NONE";
pub(super) const COMMIT: &str = "COMMIT";

/// How many statements are listed at most: a session that has more is pinned anyway.
const MOST_STATEMENTS: usize = 20_000;
/// How many channels are listed at most: a session that listens on more is pinned.
pub const MOST_CHANNELS: usize = 1_000;
/// How many statements of SQL `PREPARE` are kept at most.
const MOST_SQL: usize = 100;

/// What statements make that say so.
macro_rules! told {
    () => {
        concat!(
    "\
SELECT CASE WHEN name OPERATOR(pg_catalog.=) ANY (",
    own_settings!(),
    ") THEN 'reset' \
 WHEN context OPERATOR(pg_catalog.=) 'superuser' THEN 'restricted' ELSE 'setting' END, name, \
 CASE WHEN name OPERATOR(pg_catalog.=) ANY (",
    own_settings!(),
    ") \
 THEN reset_val WHEN pg_catalog.strpos(name, '.') OPERATOR(pg_catalog.>) 0 THEN pg_catalog.current_setting(name) \
 ELSE setting END FROM pg_catalog.pg_show_all_settings() \
 WHERE name OPERATOR(pg_catalog.=) ANY (",
    own_settings!(),
    ") \
 OR source OPERATOR(pg_catalog.=) 'session' \
 AND name OPERATOR(pg_catalog.<>) ALL (ARRAY['transaction_isolation', 'transaction_read_only', 'transaction_deferrable']) \
UNION ALL SELECT 'superuser', pg_catalog.current_setting('is_superuser'), NULL \
UNION ALL SELECT 'session_user', SESSION_USER::pg_catalog.text, NULL \
UNION ALL SELECT 'custom', n, pg_catalog.current_setting(n, true) FROM pg_catalog.unnest($1::pg_catalog.text[]) AS names(n) \
UNION ALL (SELECT 'listen', c, NULL FROM pg_catalog.pg_listening_channels() AS channels(c) LIMIT 1001) \
UNION ALL (SELECT 'statement', name, NULL FROM pg_catalog.pg_prepared_statement() \
 WHERE NOT from_sql AND name OPERATOR(pg_catalog.<>) '_pgvalet_probe' LIMIT 20001) \
UNION ALL (SELECT 'prepare', name, pg_catalog.concat(parameter_types::pg_catalog.oid[], ' ', \
 CASE WHEN pg_catalog.octet_length(statement) OPERATOR(pg_catalog.<=) 65536 THEN statement END) \
 FROM pg_catalog.pg_prepared_statement() WHERE from_sql LIMIT 101)"
)
    };
}
const TOLD: &str = told!();
/// All there is. Locks are sought among everybody's: that takes longer than all else.
const WHOLE: &str = concat!(
    told!(),
    " \
UNION ALL (SELECT 'advisory_lock', NULL, NULL FROM pg_catalog.pg_lock_status() \
 WHERE pid OPERATOR(pg_catalog.=) pg_catalog.pg_backend_pid() AND locktype OPERATOR(pg_catalog.=) 'advisory' LIMIT 1) \
UNION ALL (SELECT 'temp', NULL, NULL FROM pg_catalog.pg_depend \
 WHERE refclassid OPERATOR(pg_catalog.=) 2615 AND refobjid OPERATOR(pg_catalog.=) pg_catalog.pg_my_temp_schema() \
   AND pg_catalog.pg_my_temp_schema() OPERATOR(pg_catalog.<>) 0 LIMIT 1) \
UNION ALL (SELECT 'cursor', NULL, NULL FROM pg_catalog.pg_cursor() WHERE is_holdable LIMIT 1)"
);

/// How far a probe looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Settings, roles, prepared statements and channels: what statements make that say so.
    Told,
    /// Whatever code may have made besides: locks, temporary tables, cursors.
    Whole,
}

impl Reach {
    const fn question(self) -> &'static str {
        match self {
            Self::Told => TOLD,
            Self::Whole => WHOLE,
        }
    }
}

/// What the probe found.
#[derive(Debug, Default)]
pub struct Found {
    pub state: State,
    pub pins: Pins,
    /// The protocol-level prepared statements that exist, by name.
    pub statements: BTreeSet<String>,
    /// The channels that it listens on: one more than [`MOST_CHANNELS`] at most.
    pub channels: BTreeSet<String>,
    /// Notifications that came meanwhile: the session's client gets them.
    pub notifications: Vec<u8>,
}

/// Asks a backend at a quiet point what state it holds. `login` is the user that pgvalet logged in as.
///
/// Not cancel safe: a probe that is broken off loses the backend.
///
/// # Errors
/// The backend is lost. A probe that PostgreSQL refuses isn't an error: it pins.
pub async fn capture(
    backend: &mut Backend,
    login: &str,
    custom: &BTreeSet<String>,
    reach: Reach,
) -> Result<Found, Lost> {
    let mut request = Vec::new();
    write_probe(&mut request, custom, reach, backend.version());
    let answers = backend.exchange_within(PATIENCE, &request, 1).await?;
    if answers.error.is_some() || answers.status != Status::Idle {
        let mut notifications = answers.notifications;
        // They come where a transaction ends: some may have waited for this.
        notifications.extend(abort(backend).await?);
        return Ok(Found {
            pins: [Pin::ProbeFailed].into_iter().collect(),
            notifications,
            ..Found::default()
        });
    }
    found(answers, login)
}

/// Has PostgreSQL look again at what SQL prepared under these names: `false` where one can't be run any more, or would now
/// have other columns. Gives the notifications that came meanwhile, too.
///
/// Not cancel safe: a question that is broken off loses the backend.
///
/// # Errors
/// The backend is lost.
pub async fn are_sound(backend: &mut Backend, names: &[&str]) -> Result<(bool, Vec<u8>), Lost> {
    let mut request = Vec::new();
    for text in [BEGIN, PATIENT, NO_WAITING, IN_UTF8] {
        write_statement(&mut request, text, None);
    }
    for name in names {
        write_frame(&mut request, b'D', &[b"S", name.as_bytes(), b"\0"].concat());
    }
    write_statement(&mut request, COMMIT, None);
    write_frame(&mut request, b'S', b"");
    let mut answers = backend.exchange_within(PATIENCE, &request, 1).await?;
    if answers.error.is_some() {
        answers.notifications.extend(abort(backend).await?);
    }
    Ok((answers.error.is_none(), answers.notifications))
}

/// Reads the answers to a probe that PostgreSQL carried out.
///
/// # Errors
/// They are none.
pub fn found(answers: Answers, login: &str) -> Result<Found, Lost> {
    let mut found = Found {
        notifications: answers.notifications,
        ..Found::default()
    };
    let mut own = Own::default();
    for row in answers.rows {
        found.take(row, login, &mut own)?;
    }
    let restricted = own.restricted && !own.superuser;
    found.state.settings.extend(own.changed());
    found.state.settings.sort();
    found.state.custom.sort();
    // The same setting, by its name and among all.
    found.state.custom.dedup();
    found.state.prepared.sort();
    if restricted {
        found.pins.add(Pin::SuperuserSetting);
    }
    if found.statements.len() > MOST_STATEMENTS || found.state.prepared.len() > MOST_SQL {
        found.pins.add(Pin::PrepareLarge);
    }
    Ok(found)
}

/// Whether a backend at a quiet point has an unnamed statement; and notifications that came meanwhile.
///
/// Not cancel safe: a question that is broken off loses the backend.
///
/// # Errors
/// The backend is lost.
pub async fn has_unnamed(backend: &mut Backend) -> Result<(bool, Vec<u8>), Lost> {
    let mut request = Vec::new();
    write_frame(&mut request, b'D', b"S\0");
    write_frame(&mut request, b'S', b"");
    let answers = backend.exchange_within(PATIENCE, &request, 1).await?;
    let exists = answers.error.is_none_or(|error| error.code != "26000");
    Ok((exists, answers.notifications))
}

/// Ends a transaction of ours, in a way that leaves the client's unnamed statement alone; gives the notifications that
/// came.
pub(super) async fn abort(backend: &mut Backend) -> Result<Vec<u8>, Lost> {
    let mut request = Vec::new();
    // What failed as it ran wasn't closed any more, and statements outlive their transaction.
    write_frame(&mut request, b'C', &[b"S", NAME].concat());
    write_statement(&mut request, "ROLLBACK", None);
    write_frame(&mut request, b'S', b"");
    let answers = backend.exchange_within(PATIENCE, &request, 1).await?;
    if answers.status == Status::Idle {
        Ok(answers.notifications)
    } else {
        Err(Lost::Protocol)
    }
}

/// What the probe's rows say of each other.
#[derive(Debug, Default)]
struct Own {
    /// The login user is a superuser.
    superuser: bool,
    /// A setting was made that only superusers may make.
    restricted: bool,
    // The settings that the probe itself changes: as they were before, and as RESET would make them.
    prior: Vec<(String, String)>,
    reset: Vec<(String, String)>,
}

impl Own {
    /// Those that the session had changed.
    fn changed(self) -> impl Iterator<Item = (String, String)> {
        let Self { prior, reset, .. } = self;
        prior.into_iter().filter(move |(name, value)| {
            !reset
                .iter()
                .any(|(known, default)| known == name && millis(default) == millis(value))
        })
    }
}

/// A timeout in milliseconds, as `current_setting` shows it with a unit and `reset_val` without; any other text as it is.
fn millis(value: &str) -> Result<u64, &str> {
    let digits = value
        .find(|letter: char| !letter.is_ascii_digit())
        .unwrap_or(value.len());
    let number: u64 = value[..digits].parse().map_err(|_| value)?;
    let unit = match &value[digits..] {
        "" | "ms" => 1,
        "s" => 1_000,
        "min" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(value),
    };
    Ok(number.saturating_mul(unit))
}

/// Appends the probe's pipeline: it ends in one ReadyForQuery.
pub fn write_probe(out: &mut Vec<u8>, custom: &BTreeSet<String>, reach: Reach, version: u32) {
    for text in [BEGIN, PRIOR, PATIENT, NO_WAITING, AS_IT_IS] {
        write_statement(out, text, None);
    }
    if version >= 17 {
        write_statement(out, UNHURRIED_ALL, None);
    }
    for text in [IN_UTF8, ROLE, AS_LOGIN] {
        write_statement(out, text, None);
    }
    write_statement(out, reach.question(), Some(&array(custom)));
    write_statement(out, COMMIT, None);
    write_frame(out, b'S', b"");
}

/// One statement of the pipeline: prepared, run and closed again, with at most one parameter.
pub fn write_statement(out: &mut Vec<u8>, text: &str, parameter: Option<&str>) {
    let parameters: Vec<Option<&str>> = parameter.into_iter().map(Some).collect();
    write_statement_with(out, text, &parameters);
}

/// One statement of a pipeline, with its parameters in text form.
pub fn write_statement_with(out: &mut Vec<u8>, text: &str, parameters: &[Option<&str>]) {
    write_frame(out, b'P', &[NAME, text.as_bytes(), b"\0\0\0"].concat());
    let mut bind = [b"\0", NAME, b"\0\0"].concat();
    let count = u16::try_from(parameters.len()).expect("our own statements have few parameters");
    bind.extend_from_slice(&count.to_be_bytes());
    for value in parameters {
        match value {
            None => bind.extend_from_slice(&(-1_i32).to_be_bytes()),
            Some(value) => {
                let length =
                    u32::try_from(value.len()).expect("a setting is far shorter than 4 GB");
                bind.extend_from_slice(&length.to_be_bytes());
                bind.extend_from_slice(value.as_bytes());
            }
        }
    }
    bind.extend_from_slice(b"\0\0");
    write_frame(out, b'B', &bind);
    write_frame(out, b'E', b"\0\0\0\0\0");
    write_frame(out, b'C', &[b"S", NAME].concat());
}

/// The names as an array literal.
fn array(names: &BTreeSet<String>) -> String {
    let quoted = names
        .iter()
        .map(|name| format!("\"{}\"", name.replace('\\', "\\\\").replace('"', "\\\"")));
    format!("{{{}}}", quoted.collect::<Vec<_>>().join(","))
}

impl Found {
    fn take(&mut self, row: Vec<Option<String>>, login: &str, own: &mut Own) -> Result<(), Lost> {
        let [Some(kind), name, value] =
            <[Option<String>; 3]>::try_from(row).map_err(|_| Lost::Protocol)?
        else {
            return Err(Lost::Protocol);
        };
        let name = name.unwrap_or_default();
        match kind.as_str() {
            "prior" => own.prior.extend(value.map(|value| (name, value))),
            "superuser" => own.superuser = name == "on",
            "reset" => own.reset.push((name, value.unwrap_or_default())),
            "role" => self.state.role = Some(name).filter(|role| role != "none"),
            // It is reported whenever it changes, and goes from backend to backend by itself.
            "setting" if name == APPLICATION_NAME => {}
            "restricted" | "setting" => {
                own.restricted |= kind == "restricted";
                let value = value.unwrap_or_default();
                // Where its library isn't loaded, it is a custom setting.
                if name.contains('.') {
                    self.state.custom.push((name, value));
                } else {
                    self.state.settings.push((name, value));
                }
            }
            "custom" => self.state.custom.extend(value.map(|value| (name, value))),
            "session_user" if name != login => self.pins.add(Pin::SessionAuthorization),
            "session_user" => {}
            "advisory_lock" => self.pins.add(Pin::AdvisoryLock),
            "temp" => self.pins.add(Pin::Temp),
            "listen" => drop(self.channels.insert(name)),
            "cursor" => self.pins.add(Pin::Cursor),
            "prepare" => self.take_prepared(name, &value.unwrap_or_default()),
            "statement" => {
                self.statements.insert(name);
            }
            _ => return Err(Lost::Protocol),
        }
        Ok(())
    }

    /// A statement of SQL `PREPARE`: its parameters' types, and the text that made it.
    fn take_prepared(&mut self, name: String, value: &str) {
        match value.split_once(' ') {
            Some((types, text)) if sql::is_one_prepare(text.as_bytes()) => {
                self.state.prepared.push(SqlPrepared {
                    name,
                    text: text.to_owned(),
                    types: types.to_owned(),
                    under: Scene::default(),
                });
            }
            Some((_, "")) => self.pins.add(Pin::PrepareLarge),
            Some(_) | None => self.pins.add(Pin::PrepareMulti),
        }
    }
}
