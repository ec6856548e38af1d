//! Owns the client commands: what each asks of the admin API, and how its answer is printed.

use std::time::Duration;

use bytes::Bytes;
use clap::{Args, ValueEnum};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::client::{AdminAddress, Client, ClientError};
use super::proof::ProofArgs;
use super::views::{Leaks, Leases, Owners, Reload, Returns, Sessions};
use super::{Exit, complain, follow, print, tables};

/// How long an answer may take, beyond what the caller lets pgvalet wait.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where `pgvalet serve` puts the admin API unless told otherwise.
const ADMIN: &str = "127.0.0.1:6433";

/// What all client commands take.
#[derive(Args, Debug)]
pub(super) struct Common {
    /// Where pgvalet's admin API listens: host:port, http://host:port, https://host:port or unix:/path
    #[arg(long, value_name = "ADDR", env = "PGVALET_ADMIN_URL", default_value = ADMIN, value_parser = admin)]
    admin: AdminAddress,
    #[command(flatten)]
    proof: ProofArgs,
    /// Print the answer as JSON, for programs
    #[arg(long)]
    json: bool,
}

#[derive(Args, Debug)]
pub(super) struct LeasesArgs {
    #[command(flatten)]
    common: Common,
    /// List sessions that hold no backend, too
    #[arg(long)]
    all: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Method {
    /// The session stays, and takes a backend again at its next query
    Detach,
    /// The session ends with FATAL 57P01
    Close,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Busy {
    /// Wait for it up to the deadline
    Wait,
    /// Leave it alone
    Spare,
    /// Wait for it likewise, then cancel what it runs
    Cancel,
    /// Wait for it likewise, then end it with FATAL 57P01
    Close,
}

#[expect(
    clippy::struct_excessive_bools,
    reason = "the switches of a command line, each of its own"
)]
#[derive(Args, Debug)]
pub(super) struct ReloadArgs {
    #[command(flatten)]
    common: Common,
    /// Only leases that have been idle for at least this long, such as 500ms
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    min_idle: Option<Duration>,
    /// Wait this long for busy ones, such as 2s; without it the answer comes at once
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    deadline: Option<Duration>,
    /// Only leases of this owner
    #[arg(long)]
    owner: Option<String>,
    /// Only leases of this database
    #[arg(long)]
    database: Option<String>,
    /// Only leases of this user
    #[arg(long)]
    user: Option<String>,
    /// Only leases of this application_name
    #[arg(long)]
    application: Option<String>,
    /// Only leases of the client process with this pid
    #[arg(long, value_name = "PID")]
    process: Option<u32>,
    /// What to do about leases that are busy
    #[arg(long)]
    busy: Option<Busy>,
    /// How to return a lease
    #[arg(long)]
    method: Option<Method>,
    /// Replace backends that were opened before, once nobody holds them
    #[arg(long)]
    recycle: bool,
    /// Say what would happen, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Hold up the sessions' next request until the reload ends, or its deadline is over
    #[arg(long, requires = "deadline")]
    fence: bool,
    /// Print each outcome as it falls
    #[arg(long)]
    follow: bool,
    /// On every pgvalet of this database's fleet
    #[arg(long)]
    fleet: bool,
}

#[derive(Args, Debug)]
pub(super) struct ReturnArgs {
    #[command(flatten)]
    common: Common,
    /// The session whose lease is returned
    #[arg(
        value_name = "ID",
        required_unless_present = "owner",
        conflicts_with = "owner"
    )]
    id: Option<u64>,
    /// Return all leases of this owner
    #[arg(long)]
    owner: Option<String>,
    /// How to return it
    #[arg(long)]
    method: Option<Method>,
}

/// `pgvalet leases`.
pub(super) fn leases(args: &LeasesArgs) -> Exit {
    if args.all {
        show(&args.common, "/v1/sessions", |answer: Sessions| {
            tables::leases(&answer.sessions)
        })
    } else {
        show(&args.common, "/v1/leases", |answer: Leases| {
            tables::leases(&answer.leases)
        })
    }
}

/// `pgvalet owners`.
pub(super) fn owners(common: &Common) -> Exit {
    show(common, "/v1/owners", |answer: Owners| {
        tables::owners(&answer.owners)
    })
}

/// `pgvalet leaks`.
pub(super) fn leaks(common: &Common) -> Exit {
    show(common, "/v1/leaks", |answer: Leaks| tables::leaks(&answer))
}

/// `pgvalet reload`.
pub(super) fn reload(args: &ReloadArgs) -> Exit {
    let patience = PATIENCE + args.deadline.unwrap_or_default();
    let client = match args.common.client_with(patience) {
        Ok(client) => client,
        Err(exit) => return exit,
    };
    let path = if args.fleet {
        "/v1/reloads?scope=fleet"
    } else {
        "/v1/reloads"
    };
    if args.follow {
        return follow::reload(&args.common, &client, path, args.body());
    }
    let answer = block_on(client.post(path, args.body()));
    finish(
        &args.common,
        answer.and_then(|body| read(&client, body)),
        |answer: &Reload| (tables::reload(answer), Exit::Success),
    )
}

/// `pgvalet return`.
pub(super) fn give_back(args: &ReturnArgs) -> Exit {
    let client = match args.common.client() {
        Ok(client) => client,
        Err(exit) => return exit,
    };
    let mut body = Map::new();
    insert(&mut body, "method", args.method.map(word));
    let body = Value::Object(body).to_string();
    let Some(owner) = &args.owner else {
        let path = format!("/v1/leases/{}/return", args.id.unwrap_or_default());
        let answer = block_on(client.post(&path, body));
        return finish(
            &args.common,
            answer.and_then(|body| read(&client, body)),
            |answer: &Value| (one_return(answer), Exit::Success),
        );
    };
    let path = format!(
        "/v1/owners/{}/return",
        utf8_percent_encode(owner, NON_ALPHANUMERIC)
    );
    let answer = block_on(client.post(&path, body));
    finish(
        &args.common,
        answer.and_then(|body| read(&client, body)),
        |answer: &Returns| {
            let refused = answer
                .leases
                .iter()
                .any(|lease| matches!(lease.outcome.as_str(), "busy" | "pinned"));
            (
                tables::outcomes(&answer.leases),
                if refused { Exit::Failed } else { Exit::Success },
            )
        },
    )
}

impl ReloadArgs {
    /// The request: only what was said, so that defaults stay pgvalet's.
    fn body(&self) -> String {
        let mut body = Map::new();
        let shown = |duration: Duration| humantime::format_duration(duration).to_string();
        insert(&mut body, "min_idle", self.min_idle.map(shown));
        insert(&mut body, "deadline", self.deadline.map(shown));
        insert(&mut body, "owner", self.owner.clone());
        insert(&mut body, "database", self.database.clone());
        insert(&mut body, "user", self.user.clone());
        insert(&mut body, "application", self.application.clone());
        insert(&mut body, "process", self.process);
        insert(&mut body, "busy", self.busy.map(word));
        insert(&mut body, "method", self.method.map(word));
        insert(&mut body, "recycle", self.recycle.then_some(true));
        insert(&mut body, "dry_run", self.dry_run.then_some(true));
        insert(&mut body, "fence", self.fence.then_some(true));
        Value::Object(body).to_string()
    }
}

fn insert(body: &mut Map<String, Value>, name: &str, value: Option<impl Into<Value>>) {
    if let Some(value) = value {
        body.insert(name.to_owned(), value.into());
    }
}

/// The word of a choice, the same on the command line and in JSON.
fn word(choice: impl ValueEnum) -> String {
    choice
        .to_possible_value()
        .map(|value| value.get_name().to_owned())
        .unwrap_or_default()
}

/// An empty variable counts as not set.
fn admin(text: &str) -> Result<AdminAddress, &'static str> {
    if text.is_empty() {
        ADMIN.parse()
    } else {
        text.parse()
    }
}

pub(super) fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text)
        .map_err(|error| format!("{error}; allowed: 500ms, 30s, 1m 30s and so on"))
}

fn one_return(answer: &Value) -> String {
    let text = |name: &str| answer.get(name).and_then(Value::as_str).unwrap_or_default();
    let session = answer
        .get("session")
        .map(Value::to_string)
        .unwrap_or_default();
    let reason = answer
        .get("reason")
        .and_then(Value::as_str)
        .map(|reason| format!(" ({reason})"))
        .unwrap_or_default();
    tables::printable(&format!("session {session}: {}{reason}", text("outcome"))) + "\n"
}

impl Common {
    /// The admin API, with the usual patience. A proof that can't be shown is said, and ends the command.
    pub(super) fn client(&self) -> Result<Client, Exit> {
        self.client_with(PATIENCE)
    }

    /// The same, with this patience.
    pub(super) fn client_with(&self, patience: Duration) -> Result<Client, Exit> {
        let encrypted = matches!(self.admin, AdminAddress::Tls(_));
        let proof = self.proof.load(encrypted).map_err(|problem| {
            complain(&problem);
            Exit::Usage
        })?;
        Ok(Client::new(self.admin.clone(), patience).showing(proof))
    }

    /// Whether programs read the answer.
    pub(super) const fn is_json(&self) -> bool {
        self.json
    }
}

/// GETs `path`, and prints it.
pub(super) fn show<A: DeserializeOwned>(
    common: &Common,
    path: &str,
    table: impl Fn(A) -> String,
) -> Exit {
    let client = match common.client() {
        Ok(client) => client,
        Err(exit) => return exit,
    };
    let answer = block_on(client.get(path)).and_then(|body| read::<A>(&client, body));
    let answer = answer.map(|(body, answer)| (body, table(answer)));
    finish(common, answer, |table| (table.clone(), Exit::Success))
}

/// The body as it came, and as it is understood.
pub(super) fn read<A: DeserializeOwned>(
    client: &Client,
    body: Bytes,
) -> Result<(Bytes, A), ClientError> {
    match serde_json::from_slice(&body) {
        Ok(answer) => Ok((body, answer)),
        Err(error) => Err(client.not_pgvalet(format!("unexpected answer: {error}"))),
    }
}

/// Prints an answer as its body or as a table, or says what went wrong.
pub(super) fn finish<A>(
    common: &Common,
    answer: Result<(Bytes, A), ClientError>,
    table: impl Fn(&A) -> (String, Exit),
) -> Exit {
    match answer {
        Ok((body, answer)) => {
            let (text, exit) = table(&answer);
            let text = if common.json {
                format!("{}\n", String::from_utf8_lossy(&body).trim_end())
            } else {
                text
            };
            match print(&text) {
                Exit::Success => exit,
                failed => failed,
            }
        }
        Err(error) => failed(&error),
    }
}

/// Says what went wrong.
pub(super) fn failed(error: &ClientError) -> Exit {
    complain(&tables::printable(&error.to_string()));
    match error {
        ClientError::Refused { .. } => Exit::Failed,
        ClientError::Unreachable { .. }
        | ClientError::Silent { .. }
        | ClientError::NotPgvalet { .. } => Exit::Unreachable,
    }
}

pub(super) fn block_on<T>(
    future: impl Future<Output = Result<T, ClientError>>,
) -> Result<T, ClientError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime
        .expect("a runtime needs an epoll descriptor and a timer, which every process may have")
        .block_on(future)
}
