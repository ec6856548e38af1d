//! Owns the front door: from an accepted socket to a logged-in session (protocol chapter 55.2.1).

use std::collections::BTreeMap;
use std::rc::Rc;

use tokio::io::AsyncWriteExt;

use crate::backend::parameters::{application_name, cut};
use crate::backend::{Baseline, Lent, Parameters};
use crate::config::Knock;
use crate::lease::book::Process;
use crate::lease::{ClientAddress, Profile, Status};
use crate::net::Stream;
use crate::net::listen::Peer;
use crate::session::first::{self, Line, Opened};
use crate::session::leg::Spill;
use crate::session::replication::{self, Wish};
use crate::session::statements::Statements;
use crate::session::virtual_settings::Virtuals;
use crate::session::{Guest, Phase, Rank, Rare, Session, Shared, attach, console};
use crate::wire::cut::Cursor;
use crate::wire::options;
use crate::wire::reply::{self, ClientError, Fault};
use crate::wire::startup::{NEWEST_MINOR, Startup};
use crate::wire::tracker::Tracker;

/// Who has come in.
pub(super) enum Greeted {
    Session(Box<Session>),
    /// A guest of the console.
    Guest(Guest),
}

/// Leads one connection through its login, `listener` being the place of its listener among those for clients. `None` when
/// it asked for a cancel only, or was refused.
pub(super) async fn greet(
    shared: &Rc<Shared>,
    stream: Stream,
    peer: Peer,
    listener: usize,
) -> Option<Greeted> {
    let (line, startup) = match first::open(shared, stream).await {
        Opened::Startup(line, startup) => (line, startup),
        Opened::Done => return None,
        Opened::Refused(mut line, error) => {
            refuse(shared, &mut line, &error).await;
            return None;
        }
    };
    let mut door = Door {
        shared,
        line,
        minor: startup.minor.min(NEWEST_MINOR),
    };
    match door.admit(startup, &peer, listener).await {
        Ok(Welcome::Session(admitted)) => Some(Greeted::Session(door.into_session(*admitted))),
        Ok(Welcome::Guest {
            rank,
            user,
            application,
        }) => Some(Greeted::Guest(Guest {
            stream: door.line.stream,
            rank,
            user,
            application,
        })),
        Err(Refusal::Told(error)) => {
            refuse(shared, &mut door.line, &error).await;
            None
        }
        Err(Refusal::Gone) => None,
    }
}

/// Refuses a connection once it has said hello: before, libpq would not show the text.
pub(super) async fn turn_away(shared: &Shared, stream: Stream, error: &ClientError) {
    if let Opened::Startup(mut line, _) = first::open(shared, stream).await {
        refuse(shared, &mut line, error).await;
    }
}

async fn refuse(shared: &Shared, line: &mut Line, error: &ClientError) {
    shared.metrics.fault(error.fault, &error.code);
    // It may hold a name that somebody made up: no line of ours is theirs to write.
    let text = error.message.replace(char::is_control, " ");
    tracing::info!(sqlstate = %error.code, fault = error.fault.word(), "a client was refused: {text}");
    // It may be gone already; then nobody is left to be told.
    let _ = line.say(&error.fatal()).await;
    let _ = line.stream.shutdown().await;
}

/// Why no session came of a connection.
pub(super) enum Refusal {
    /// The client shall hear this.
    Told(ClientError),
    /// The client is gone.
    Gone,
}

impl From<ClientError> for Refusal {
    fn from(error: ClientError) -> Self {
        Self::Told(error)
    }
}

impl From<std::io::Error> for Refusal {
    fn from(_: std::io::Error) -> Self {
        Self::Gone
    }
}

/// A connection that has sent its startup packet.
pub(super) struct Door<'a> {
    pub(super) shared: &'a Rc<Shared>,
    pub(super) line: Line,
    /// The minor protocol version that both sides speak from here on.
    minor: u16,
}

/// What is known of a client that was let in.
struct Admitted {
    pool: Rc<crate::backend::Pool>,
    baseline: Rc<Baseline>,
    told: Rc<Parameters>,
    /// The backend of a replication connection.
    lent: Option<Lent>,
    profile: Profile,
    process: Option<Rc<Process>>,
    /// The startup option `pgvalet.owner`.
    owner: Option<String>,
}

/// Where a client wants to, and may go.
enum Welcome {
    Session(Box<Admitted>),
    /// To the console.
    Guest {
        rank: Rank,
        user: String,
        application: String,
    },
}

impl Door<'_> {
    async fn admit(
        &mut self,
        mut startup: Startup,
        peer: &Peer,
        listener: usize,
    ) -> Result<Welcome, Refusal> {
        if startup.minor > NEWEST_MINOR || !startup.options.is_empty() {
            let offer = reply::negotiate(self.minor, startup.options.clone());
            self.line.say(&offer).await?;
        }
        let ours = options::take_ours(&mut startup.parameters);
        let parameters = &startup.parameters;
        let (database, user) = whom(parameters, &self.shared.config.upstream.database)?;
        let replication = Wish::read(parameters.get("replication").map(String::as_str))?;
        let demand = self.shared.config.tls;
        first::judge(demand, &self.line, peer, (&database, &user))?;
        let knock = self.knock(listener, peer, (&database, &user), replication);
        let mut application = parameters
            .get("application_name")
            .cloned()
            .unwrap_or_default();
        // The database of physical replication means nothing, not even where it is the console's.
        if replication == Wish::None && console::VIRTUAL.contains(&&*database) {
            let rank = self.let_in(&knock, peer).await?;
            return Ok(Welcome::Guest {
                rank,
                user,
                application,
            });
        }
        let shown = Box::pin(self.authenticate(&knock, peer)).await?;
        self.remark_on(&application);
        let pool = self.shared.pools.get(&database, &user);
        pool.learn_proof(shown);
        let baseline = pool.intern(Baseline::of_startup(parameters));
        let (told, lent) = match replication {
            Wish::None => {
                let told = self.reports(&pool, &baseline, &application).await?;
                application = told.get("application_name").unwrap_or_default().to_owned();
                (told, None)
            }
            Wish::Physical | Wish::Logical => {
                let opened =
                    replication::open(self.shared, &pool, &baseline, &application, replication);
                let lent = opened.await?;
                (lent.backend.parameters.clone(), Some(lent))
            }
        };
        let (client, process) = describe(peer);
        let profile = Profile {
            database: pool.database.clone(),
            user: pool.user.clone(),
            application: application.into(),
            client,
        };
        Ok(Welcome::Session(Box::new(Admitted {
            pool,
            baseline,
            told,
            lent,
            profile,
            process,
            owner: ours.get("owner").filter(|owner| !owner.is_empty()).cloned(),
        })))
    }

    /// PostgreSQL says so where it cuts a name.
    fn remark_on(&mut self, application: &str) {
        let taken = cut(application);
        if taken != application {
            self.line.hold(&reply::truncated(application, taken));
        }
    }

    /// What the rules about logins look at.
    fn knock<'a>(
        &self,
        listener: usize,
        peer: &Peer,
        (database, user): (&'a str, &'a str),
        replication: Wish,
    ) -> Knock<'a> {
        Knock {
            listener,
            database,
            user,
            address: match peer {
                Peer::Tcp(address) => Some(address.ip()),
                Peer::Unix { .. } => None,
            },
            encrypted: self.line.stream.is_tls(),
            replication: replication == Wish::Physical,
        }
    }

    /// Lets a guest of the console in, by the rules about the console's database.
    async fn let_in(&mut self, knock: &Knock<'_>, peer: &Peer) -> Result<Rank, Refusal> {
        if console::is_own(&self.line.stream, knock.user) {
            self.line.say(&reply::authentication_ok()).await?;
            return Ok(Rank::Operator);
        }
        Box::pin(self.authenticate(knock, peer)).await?;
        // The console speaks for itself from here on.
        self.line.say(b"").await?;
        Ok(console::rank(&self.shared.config, knock.user)?)
    }

    /// What PostgreSQL reports to a new session: known from an earlier login, or asked for by opening a backend now.
    async fn reports(
        &self,
        pool: &Rc<crate::backend::Pool>,
        baseline: &Rc<Baseline>,
        application: &str,
    ) -> Result<Rc<Parameters>, ClientError> {
        let mut told = match pool.reports(baseline) {
            Some(known) => known,
            None => attach::first_login(self.shared, pool, baseline, application).await?,
        };
        let application = application_name(application, told.get("server_version"));
        if told.get("application_name") != Some(&*application) {
            Rc::make_mut(&mut told).set("application_name", &application);
            told = pool.share(told);
        }
        Ok(told)
    }

    fn into_session(self, admitted: Admitted) -> Box<Session> {
        let Admitted {
            pool,
            baseline,
            told,
            lent,
            profile,
            process,
            owner,
        } = admitted;
        let secret = self
            .shared
            .ledger
            .draw_secret(if self.minor >= 2 { 32 } else { 4 });
        let application = profile.application.clone();
        let (id, slot) = self.shared.ledger.open(profile, secret.clone());
        let mut book = self.shared.ledger.book_mut();
        book.entry_mut(slot).process = process;
        if let Some(owner) = owner {
            book.entry_mut(slot).declare_startup(&owner);
        }
        drop(book);
        let mut welcome = self.line.held;
        let notices = match &lent {
            Some(lent) => Some(lent.backend.notices.as_slice().into()),
            None => pool.notices(&baseline),
        };
        welcome.extend_from_slice(&notices.unwrap_or_default());
        let reports = told.frames();
        welcome.reserve(reports.len() + 256);
        welcome.extend_from_slice(reports);
        reply::parameter_status(&mut welcome, "pgvalet.session", &id.to_string());
        reply::backend_key_data(&mut welcome, id.get(), &secret);
        welcome.extend_from_slice(&reply::ready(Status::Idle));
        let mut to_client = Spill::default();
        to_client.push(&welcome);
        let blank = pool.blank.clone();
        let mut session = Box::new(Session {
            shared: self.shared.clone(),
            pool,
            id,
            slot,
            client: self.line.stream,
            lent: None,
            tracker: Tracker::default(),
            statements: Statements::default(),
            virtuals: Virtuals::default(),
            inbound: Cursor::default(),
            to_backend: Spill::default(),
            outbound: Cursor::default(),
            to_client,
            phase: Phase::Resting,
            rare: Rare::new(application, baseline, told, blank),
        });
        if let Some(lent) = lent {
            session.replicate(lent);
        }
        session
    }
}

/// The database and user that a startup packet names; the upstream URL's database, when it names none. PostgreSQL cuts both to
/// the length that names have, and so does pgvalet: rules, pools and passwords are found by what is left.
fn whom(
    parameters: &BTreeMap<String, String>,
    default: &str,
) -> Result<(String, String), ClientError> {
    let named = |name: &str| {
        parameters
            .get(name)
            .filter(|value| !value.is_empty())
            .map(|value| cut(value).to_owned())
    };
    let Some(user) = named("user") else {
        let text = "no PostgreSQL user name specified in startup packet";
        return Err(ClientError::new(Fault::Client, "28000", text));
    };
    Ok((
        named("database").unwrap_or_else(|| default.to_owned()),
        user,
    ))
}

/// The client's address, and its process where the kernel says so.
fn describe(peer: &Peer) -> (ClientAddress, Option<Rc<Process>>) {
    match peer {
        Peer::Tcp(address) => (ClientAddress::Tcp(*address), None),
        Peer::Unix { pid: 0, .. } => (ClientAddress::Unix, None),
        Peer::Unix { pid, .. } => {
            let process = Process {
                pid: *pid,
                started: crate::process::started(*pid).unwrap_or(0),
                command: crate::process::command(*pid),
            };
            (ClientAddress::Unix, Some(Rc::new(process)))
        }
    }
}
