//! Owns the validated configuration: plain values, handed in, never global.
//!
//! Refuses to start anything or to open a socket; reading files, variables and flags is `load`'s.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use secrecy::SecretString;

use crate::lease::reload::Method;
use crate::lease::rules::{IdleInTransaction, Policies, Policy, Rule};

mod access;
mod error;
mod file;
mod keys;
mod kind;
mod load;
pub mod logins;
mod pgpass;
mod rules;
mod secret;
mod show;
#[cfg(test)]
mod tests;
mod upstream;
mod value;
mod variables;

pub use access::AdminAccess;
pub use error::{ConfigError, ConfigErrors, Origin, UrlProblem, ValueProblem};
pub use keys::{KEYS, Key, Visibility, reference};
pub use kind::Kind;
pub use load::{Loaded, Sources, Warning, load};
pub use logins::{Knock, LoginRule, Method as LoginMethod, Network};
pub use pgpass::{Pgpass, PgpassProblem};
pub use secret::{Secret, SecretFile};

/// Everything `run` needs, checked. Build it with [`load()`], or `Config::for_upstream` in tests.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where PostgreSQL is, and the default database, user and password.
    pub upstream: Upstream,
    /// A shell command whose output is the password of `upstream`'s user.
    pub password_command: Option<String>,
    /// How long such a password holds; a new one is asked for ahead of its end.
    pub password_command_lifetime: Duration,
    /// Where clients connect.
    pub listen: Vec<Address>,
    /// Where the admin API listens.
    pub admin: Address,
    /// Who may do what over the admin API, and over the console.
    pub admin_access: AdminAccess,
    /// Where `/metrics`, `/healthz` and `/readyz` are scraped.
    pub metrics: Address,
    /// How clients prove who they are, where there are no `logins`.
    pub auth: Auth,
    /// How clients prove who they are: the first rule that covers one decides, and without one it stays outside.
    pub logins: Vec<LoginRule>,
    /// How PostgreSQL is asked for the secret of a user whom the configuration doesn't know; `None` for the usual query.
    pub auth_query: Option<String>,
    /// Who asks it; `None` for the upstream URL's user.
    pub auth_user: Option<String>,
    /// How long its answer is good for; zero means for one login only.
    pub auth_query_cache: Duration,
    /// Whether clients on TCP may or must encrypt.
    pub tls: Tls,
    /// The certificate that clients see, with its intermediates: PEM.
    pub tls_cert: Option<PathBuf>,
    /// Its key: PEM, not encrypted.
    pub tls_key: Option<PathBuf>,
    /// The roots that clients' own certificates must have: PEM.
    pub tls_client_ca: Option<PathBuf>,
    /// When a lease ends by itself.
    pub mode: Mode,
    /// The bound of each (database, user) pool, in backends.
    pub max_backends: usize,
    /// The bound of replication connections, which are in no pool; zero refuses them.
    pub max_replication: usize,
    /// The bound of accepted client connections.
    pub max_sessions: usize,
    /// How long a session waits for a backend; zero means without limit.
    pub acquire_timeout: Duration,
    /// How long opening a backend (connect and login) may take; zero means without limit.
    pub connect_timeout: Duration,
    /// How long a client may take from accept to the end of its login; zero means without limit.
    pub login_timeout: Duration,
    /// Idle time from which a held or unclaimed lease counts as parked.
    pub park_after: Duration,
    /// Parked time after which a lease is returned by itself; zero means never.
    pub return_after: Duration,
    /// How such a lease is returned.
    pub return_method: ReturnMethod,
    /// Age at which a backend is replaced when nobody holds it; zero means never.
    pub backend_lifetime: Duration,
    /// Time after which a backend that nobody holds is closed; zero means never.
    pub backend_idle_timeout: Duration,
    /// How long a drain waits for busy sessions; zero means without limit.
    pub drain_timeout: Duration,
    /// How TCP connections of both legs are kept alive, and given up.
    pub tcp: Tcp,
    /// The permission bits of clients' unix sockets.
    pub unix_socket_mode: u32,
    /// The group that owns them; None for our own.
    pub unix_socket_group: Option<Group>,
    /// Whether clients on TCP come through a load balancer that says who they are.
    pub proxy_protocol: ProxyProtocol,
    /// Where such balancers are.
    pub proxy_protocol_from: Vec<Network>,
    /// Data threads, each with its share of the pool.
    pub threads: usize,
    /// Whether this pgvalet is part of the fleet of the upstream URL's database.
    pub fleet: FleetMode,
    /// What others call this pgvalet; the host's name, where it is none.
    pub instance: Option<String>,
    /// Patterns of custom settings that are captured and restored besides those seen in traffic.
    pub preserve_settings: Vec<String>,
    /// What a session's LISTEN does to its lease.
    pub listening: Listening,
    /// Detach at every quiet point: the proof that a detach loses nothing. Not for production.
    pub chaos_return: ChaosReturn,
    /// A `tracing` filter, such as `info` or `pgvalet=debug`.
    pub log: String,
    /// How log lines are written.
    pub log_format: LogFormat,
    /// Passwords of users other than the upstream URL's, by user name.
    pub users: BTreeMap<String, UserConfig>,
    /// What holds for some owners, applications, databases and users only.
    pub rules: Vec<Rule>,
    /// What libpq's password file knows.
    pub pgpass: Pgpass,
}

/// Where PostgreSQL is, and who logs in there unless the client says otherwise.
#[derive(Clone, Debug)]
pub struct Upstream {
    /// Its hosts, in the order of the URL; never empty.
    pub places: Vec<Place>,
    /// Which of them are asked for a backend.
    pub target: Target,
    /// In which order they are asked.
    pub balance: Balance,
    /// The default database.
    pub database: String,
    /// The default user.
    pub user: String,
    /// The password of `user`.
    pub password: Option<SecretString>,
    /// How the connection is encrypted.
    pub tls: UpstreamTls,
}

/// One of the upstream's hosts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub host: UpstreamHost,
    /// The TCP port, or the suffix of the unix socket's name.
    pub port: u16,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.host {
            UpstreamHost::Tcp(host) => write!(f, "{host}:{}", self.port),
            UpstreamHost::Unix(directory) => {
                write!(f, "{}/.s.PGSQL.{}", directory.display(), self.port)
            }
        }
    }
}

/// libpq's target_session_attrs: what a host must be for a backend to be opened on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Target {
    /// Anything.
    #[default]
    Any,
    /// It takes writes.
    ReadWrite,
    /// It takes none.
    ReadOnly,
    /// It isn't a standby.
    Primary,
    /// It is a standby.
    Standby,
    /// A standby where there is one, else anything.
    PreferStandby,
}

/// libpq's load_balance_hosts: in which order hosts, and their addresses, are asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Balance {
    /// That of the URL, and of the resolver.
    #[default]
    Disable,
    /// Another one each time.
    Random,
}

/// How connections to PostgreSQL are encrypted. Unix sockets never are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UpstreamTls {
    pub mode: SslMode,
    /// Whose signature PostgreSQL's certificate must bear.
    pub root: Option<RootSource>,
    /// The certificate that we show, with its intermediates: PEM.
    pub cert: Option<PathBuf>,
    /// Its key: PEM, not encrypted.
    pub key: Option<PathBuf>,
}

/// libpq's sslmode.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SslMode {
    /// Never.
    Disable,
    /// Only where PostgreSQL refuses us without.
    Allow,
    /// Where PostgreSQL offers it.
    #[default]
    Prefer,
    /// Always; with whomever, unless a root is given.
    Require,
    /// Always, with a certificate that the root has signed.
    VerifyCa,
    /// Always, with a certificate that the root has signed for this host.
    VerifyFull,
}

/// Where roots of trust come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RootSource {
    /// The system's certificate store.
    System,
    /// A PEM file.
    File(PathBuf),
}

/// A host name or address, or the directory of a unix socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UpstreamHost {
    /// A name, looked up at each connect, or an address.
    Tcp(String),
    /// The directory that holds `.s.PGSQL.<port>`.
    Unix(PathBuf),
}

/// Where a listener binds. For clients, a unix address is the directory of `.s.PGSQL.6432`, or a socket path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// An address and port; port 0 takes a free one.
    Tcp(SocketAddr),
    /// A directory or a socket's own path.
    Unix(PathBuf),
}

impl Address {
    /// Whether only this machine can reach it.
    pub fn is_local(&self) -> bool {
        match self {
            Self::Tcp(address) => address.ip().to_canonical().is_loopback(),
            Self::Unix(_) => true,
        }
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// How a client proves who it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Auth {
    /// SCRAM-SHA-256 with the upstream user's password.
    Scram,
    /// No proof; only on loopback and unix listeners.
    Trust,
}

/// Whether clients on TCP may or must encrypt. Unix sockets never leave the machine, and are never encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tls {
    /// They can't.
    Disable,
    /// They may.
    Allow,
    /// They must.
    Require,
    /// They must, and show a certificate that `tls_client_ca` has signed.
    Verify,
}

/// How TCP connections are kept alive, and given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tcp {
    /// How long sent bytes may stay unacknowledged; zero means the kernel's.
    pub user_timeout: Duration,
    /// Silence after which a probe is sent; zero means never.
    pub keepalive_idle: Duration,
    /// Time between probes.
    pub keepalive_interval: Duration,
    /// How many may stay unanswered; zero means the kernel's.
    pub keepalive_count: usize,
}

impl Tcp {
    /// Keepalives, and the kernel's bound for what is unacknowledged.
    pub const USUAL: Self = Self {
        user_timeout: Duration::ZERO,
        keepalive_idle: Duration::from_secs(60),
        keepalive_interval: Duration::from_secs(10),
        keepalive_count: 0,
    };
}

/// A group of the system's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// As it was given: a name, or a number.
    pub name: String,
    pub id: u32,
}

/// Whether clients on TCP come through a load balancer that says who they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyProtocol {
    /// They connect themselves.
    Disable,
    /// Each connection begins with a header of version 2.
    Require,
}

/// When a lease ends by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// At disconnect.
    Session,
    /// At the end of each transaction, too.
    Transaction,
}

/// How a lease is returned. See the glossary in the README.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReturnMethod {
    /// The session stays; its next request takes a backend again.
    Detach,
    /// The session ends with FATAL 57P01.
    Close,
}

/// What a session's LISTEN does to its lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listening {
    /// The session keeps its backend.
    Pin,
    /// One backend of the pool listens for all sessions that are detached.
    Share,
}

/// Whether every quiet point detaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChaosReturn {
    /// Only where a return is due.
    Off,
    /// At every quiet point.
    Always,
    /// Only where a return is due; but at every quiet point PostgreSQL is asked ahead for what the return would have to ask.
    Ask,
}

/// Whether a pgvalet finds others of its database, and is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FleetMode {
    Off,
    /// It keeps a connection that listens.
    On,
}

/// How log lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// What the configuration knows of one user.
#[derive(Clone, Debug, Default)]
pub struct UserConfig {
    /// What logs in upstream, and what a client's proof is checked against: a password, or a secret in one of
    /// PostgreSQL's notations.
    pub password: Option<SecretString>,
    /// The same in a file of its own.
    pub password_file: Option<SecretFile>,
    /// A command that prints what logs in upstream: then the others are for clients only.
    pub password_command: Option<String>,
    /// How long its password holds; `None` for `password_command_lifetime`.
    pub password_command_lifetime: Option<Duration>,
}

impl Config {
    /// What holds for which sessions.
    #[must_use]
    pub fn policies(&self) -> Policies<'_> {
        let general = Policy {
            park_after: self.park_after,
            return_after: self.return_after,
            return_method: match self.return_method {
                ReturnMethod::Detach => Method::Detach,
                ReturnMethod::Close => Method::Close,
            },
            idle_in_transaction: IdleInTransaction::Report,
        };
        Policies {
            general,
            rules: &self.rules,
        }
    }

    /// What is known of `user` in `database`: the upstream URL's password when it is that user's, else `[users.NAME]`,
    /// else the first matching line of the password file.
    ///
    /// It may read a file: where [`Self::reads_a_file`] says so, call it off the data thread.
    pub fn secret_for(&self, database: &str, user: &str) -> Option<Secret> {
        if user == self.upstream.user
            && let Some(password) = &self.upstream.password
        {
            // The URL's is a password, whatever it looks like: it logs in upstream as it is.
            return Some(Secret::Password(password.clone()));
        }
        let known = self.users.get(user);
        let inline = known.and_then(|known| known.password.as_ref().map(Secret::read));
        let mounted = || {
            known?
                .password_file
                .as_ref()
                .map(|file| Secret::read(&file.current()))
        };
        let listed = || {
            let password = self.pgpass.password(&self.upstream, database, user);
            password.cloned().map(Secret::Password)
        };
        inline.or_else(mounted).or_else(listed)
    }

    /// The commands that print passwords, by whom these are for, and how long they hold.
    pub fn password_commands(&self) -> impl Iterator<Item = (&str, &str, Duration)> {
        let general = self.password_command_lifetime;
        let url = self.password_command.as_deref();
        let url = url.map(|command| (&*self.upstream.user, command, general));
        let users = self.users.iter().filter_map(move |(name, user)| {
            let lifetime = user.password_command_lifetime.unwrap_or(general);
            Some((&**name, user.password_command.as_deref()?, lifetime))
        });
        url.into_iter().chain(users)
    }

    /// Whether what is known of `user` stands in a file of its own.
    #[must_use]
    pub fn reads_a_file(&self, user: &str) -> bool {
        let known = self.users.get(user);
        known.is_some_and(|known| known.password_file.is_some())
    }

    /// Whether PostgreSQL is asked about users whom the configuration doesn't know.
    #[must_use]
    pub fn asks_postgresql(&self) -> bool {
        self.auth_query.is_some() || self.auth_user.is_some()
    }

    /// What others call this pgvalet: as configured, else the host's name, which in Kubernetes is the pod's.
    #[must_use]
    pub fn instance(&self) -> String {
        let host = || {
            rustix::system::uname()
                .nodename()
                .to_string_lossy()
                .into_owned()
        };
        self.instance.clone().unwrap_or_else(host)
    }

    /// The defaults, in front of `upstream`.
    pub fn for_upstream(upstream: Upstream) -> Self {
        let loopback = |port| Address::Tcp(SocketAddr::from(([127, 0, 0, 1], port)));
        Self {
            upstream,
            password_command: None,
            password_command_lifetime: Duration::from_secs(15 * 60),
            listen: vec![loopback(6432)],
            admin: loopback(6433),
            admin_access: AdminAccess::default(),
            metrics: loopback(9127),
            auth: Auth::Scram,
            logins: Vec::new(),
            auth_query: None,
            auth_user: None,
            auth_query_cache: Duration::from_secs(10),
            tls: Tls::Disable,
            tls_cert: None,
            tls_key: None,
            tls_client_ca: None,
            mode: Mode::Session,
            max_backends: 20,
            max_replication: 10,
            max_sessions: 10_000,
            acquire_timeout: Duration::from_secs(30),
            connect_timeout: Duration::from_secs(5),
            login_timeout: Duration::from_secs(60),
            park_after: Duration::from_secs(5),
            return_after: Duration::ZERO,
            return_method: ReturnMethod::Detach,
            backend_lifetime: Duration::from_secs(3600),
            backend_idle_timeout: Duration::from_secs(600),
            drain_timeout: Duration::from_secs(30),
            tcp: Tcp {
                user_timeout: Duration::from_secs(30),
                ..Tcp::USUAL
            },
            unix_socket_mode: 0o777,
            unix_socket_group: None,
            proxy_protocol: ProxyProtocol::Disable,
            proxy_protocol_from: Vec::new(),
            threads: 1,
            fleet: FleetMode::Off,
            instance: None,
            preserve_settings: Vec::new(),
            listening: Listening::Pin,
            chaos_return: ChaosReturn::Off,
            log: "info".to_owned(),
            log_format: LogFormat::Text,
            users: BTreeMap::new(),
            rules: Vec::new(),
            pgpass: Pgpass::default(),
        }
    }
}
