//! Owns the table of keys: name, what is allowed, default, meaning, and the field that each one fills.
//!
//! Files, variables, flags, `pgvalet check` and the reference all read this one table.

use std::time::Duration;

use super::kind::{Choice, Kind};
use super::value::Zero;
use super::{
    Auth, ChaosReturn, Config, FleetMode, Listening, LogFormat, Mode, ProxyProtocol, ReturnMethod,
    Tls,
};

/// One key.
#[derive(Debug)]
pub struct Key {
    /// As in the file; `PGVALET_<NAME>` as a variable, with dashes as a flag.
    pub name: &'static str,
    /// What it takes, and where it goes.
    pub kind: Kind,
    /// What it means, in one line.
    pub about: &'static str,
    /// Whether people are told of it.
    pub visibility: Visibility,
}

/// Whether a key is shown in `--help` and in the reference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Visibility {
    /// Everywhere.
    Public,
    /// Taken, but for tests only.
    Hidden,
}

/// Makes a [`Choice`] of a field whose variants are listed in the order of their words.
macro_rules! choice {
    ($field:ident: $($word:literal => $variant:path),+) => {
        Kind::Choice(Choice {
            options: &[$($word),+],
            set: |config, index| config.$field = [$($variant),+][index],
            get: |config| [$($variant),+].iter().position(|variant| *variant == config.$field).unwrap_or(0),
        })
    };
}

/// A duration field.
macro_rules! duration {
    ($field:ident, $zero:ident, $most:expr) => {
        Kind::Duration(|config| &mut config.$field, Zero::$zero, $most)
    };
}

/// A password that was changed is taken for the old one for no longer.
const HOUR: Duration = Duration::from_secs(3600);
/// Longer durations are typing errors, and might overflow sums of times.
pub(super) const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);
/// TCP_USER_TIMEOUT is a signed count of milliseconds.
const KERNEL: Duration = Duration::from_secs(24 * 24 * 3600);

/// The kernel counts these in seconds, up to 32767.
const KEEPALIVE: Duration = Duration::from_secs(32_767);

const fn key(name: &'static str, kind: Kind, about: &'static str) -> Key {
    Key {
        name,
        kind,
        about,
        visibility: Visibility::Public,
    }
}

/// All keys, in the order in which people read about them.
pub static KEYS: &[Key] = &[
    key(
        "upstream",
        Kind::Upstream,
        "Where PostgreSQL is, with the default user, password and database",
    ),
    key(
        "password_command",
        Kind::Command(|c| &mut c.password_command),
        "Prints the password of `upstream`'s user, such as a cloud's token; run by /bin/sh",
    ),
    key(
        "password_command_lifetime",
        duration!(password_command_lifetime, Refused, YEAR),
        "How long such a password holds; a new one is fetched after three quarters of it",
    ),
    key(
        "listen",
        Kind::Addresses(|c| &mut c.listen),
        "Where clients connect; `unix:/dir` makes `/dir/.s.PGSQL.6432`",
    ),
    key(
        "admin",
        Kind::Address(|c| &mut c.admin),
        "Where the admin API listens; beyond loopback and unix sockets only with a token or certificates",
    ),
    key(
        "admin_token",
        Kind::Secret(|c| &mut c.admin_access.token),
        "What operators of the admin API show; then everybody on TCP must show something",
    ),
    key(
        "admin_token_file",
        Kind::Path(|c| &mut c.admin_access.token_file),
        "A file that holds it, such as a mounted secret, read at each use; it wins over `admin_token`",
    ),
    key(
        "admin_readonly_token",
        Kind::Secret(|c| &mut c.admin_access.readonly_token),
        "What callers show who only look",
    ),
    key(
        "admin_readonly_token_file",
        Kind::Path(|c| &mut c.admin_access.readonly_token_file),
        "A file that holds it, likewise",
    ),
    key(
        "admin_tls_cert",
        Kind::Path(|c| &mut c.admin_access.tls_cert),
        "The certificate of the admin listener on TCP, which then speaks https; read again when it changes",
    ),
    key(
        "admin_tls_key",
        Kind::Path(|c| &mut c.admin_access.tls_key),
        "Its key; read again together with it",
    ),
    key(
        "admin_tls_client_ca",
        Kind::Path(|c| &mut c.admin_access.tls_client_ca),
        "The roots of callers' certificates: whoever shows one may look",
    ),
    key(
        "admin_tls_operators",
        Kind::Names(|c| &mut c.admin_access.tls_operators),
        "The names of certificates (common name, or DNS name) whose holders are operators",
    ),
    key(
        "admin_users",
        Kind::Names(|c| &mut c.admin_access.users),
        "The users who may do everything on the console; none is the upstream URL's user",
    ),
    key(
        "stats_users",
        Kind::Names(|c| &mut c.admin_access.stats_users),
        "The users who may look there",
    ),
    key(
        "metrics",
        Kind::Address(|c| &mut c.metrics),
        "Where /metrics, /healthz and /readyz are served",
    ),
    key(
        "auth",
        choice!(auth: "scram" => Auth::Scram, "trust" => Auth::Trust),
        "How clients prove who they are, where there are no `[[logins]]`; `trust` only on loopback and unix listeners",
    ),
    key(
        "auth_query",
        Kind::Query(|c| &mut c.auth_query),
        "How PostgreSQL is asked for the secrets of users that aren't in the configuration; off without it and `auth_user`",
    ),
    key(
        "auth_user",
        Kind::Name(|c| &mut c.auth_user),
        "Who asks `auth_query`; the URL's user by default",
    ),
    key(
        "auth_query_cache",
        duration!(auth_query_cache, Off, HOUR),
        "How long the answer of `auth_query` is good for",
    ),
    key(
        "tls",
        choice!(tls: "disable" => Tls::Disable, "allow" => Tls::Allow, "require" => Tls::Require, "verify" => Tls::Verify),
        "Whether clients on TCP may encrypt, must, or must and show a certificate of their own",
    ),
    key(
        "tls_cert",
        Kind::Path(|c| &mut c.tls_cert),
        "The certificate that clients see, with its intermediates; read again when it changes, and on SIGHUP",
    ),
    key(
        "tls_key",
        Kind::Path(|c| &mut c.tls_key),
        "Its key; read again together with it",
    ),
    key(
        "tls_client_ca",
        Kind::Path(|c| &mut c.tls_client_ca),
        "The roots that clients' certificates must have: those that are shown, and for `verify` all",
    ),
    key(
        "mode",
        choice!(mode: "session" => Mode::Session, "transaction" => Mode::Transaction),
        "When a lease ends by itself: at disconnect, or at the end of each transaction",
    ),
    key(
        "max_backends",
        Kind::Count(|c| &mut c.max_backends, 1, 100_000),
        "The bound of each pool, that is of each (database, user), in backends",
    ),
    key(
        "max_replication",
        Kind::Count(|c| &mut c.max_replication, 0, 10_000),
        "The bound of replication connections, which are in no pool; 0 refuses them",
    ),
    key(
        "max_sessions",
        Kind::Count(|c| &mut c.max_sessions, 1, 10_000_000),
        "The bound of client connections",
    ),
    key(
        "acquire_timeout",
        duration!(acquire_timeout, Off, YEAR),
        "How long a session waits for a backend before it gets SQLSTATE 53300",
    ),
    key(
        "connect_timeout",
        duration!(connect_timeout, Off, YEAR),
        "How long opening a backend may take, login included",
    ),
    key(
        "park_after",
        duration!(park_after, Refused, YEAR),
        "Idle time from which a held or unclaimed lease counts as parked",
    ),
    key(
        "return_after",
        duration!(return_after, Off, YEAR),
        "Parked time after which a lease is returned by itself; zero is never",
    ),
    key(
        "return_method",
        choice!(return_method: "detach" => ReturnMethod::Detach, "close" => ReturnMethod::Close),
        "How such a lease is returned: the session stays, or ends with 57P01",
    ),
    key(
        "backend_lifetime",
        duration!(backend_lifetime, Off, YEAR),
        "Age at which a backend is replaced once nobody holds it",
    ),
    key(
        "backend_idle_timeout",
        duration!(backend_idle_timeout, Off, YEAR),
        "Time after which a backend that nobody holds is closed",
    ),
    key(
        "login_timeout",
        duration!(login_timeout, Off, YEAR),
        "How long a client may take to log in",
    ),
    key(
        "drain_timeout",
        duration!(drain_timeout, Off, YEAR),
        "How long the end waits for busy sessions after SIGTERM",
    ),
    key(
        "tcp_user_timeout",
        Kind::Duration(|c| &mut c.tcp.user_timeout, Zero::Off, KERNEL),
        "How long a silent peer may leave data unacknowledged, on both legs",
    ),
    key(
        "tcp_keepalive_idle",
        Kind::Duration(|c| &mut c.tcp.keepalive_idle, Zero::Off, KEEPALIVE),
        "Silence after which a peer is probed, on both legs",
    ),
    key(
        "tcp_keepalive_interval",
        Kind::Duration(|c| &mut c.tcp.keepalive_interval, Zero::Refused, KEEPALIVE),
        "Time between such probes",
    ),
    key(
        "tcp_keepalive_count",
        Kind::Count(|c| &mut c.tcp.keepalive_count, 0, 127),
        "How many of them may stay unanswered; 0 is the kernel's default",
    ),
    key(
        "unix_socket_mode",
        Kind::Permissions(|c| &mut c.unix_socket_mode),
        "The permissions of clients' unix sockets",
    ),
    key(
        "unix_socket_group",
        Kind::Group(|c| &mut c.unix_socket_group),
        "The group of clients' unix sockets; our own by default",
    ),
    key(
        "proxy_protocol",
        choice!(proxy_protocol: "disable" => ProxyProtocol::Disable, "require" => ProxyProtocol::Require),
        "Whether each client on TCP comes with a load balancer's PROXY header, version 2, that names its address",
    ),
    key(
        "proxy_protocol_from",
        Kind::Networks(|c| &mut c.proxy_protocol_from),
        "Where such load balancers are; nobody else is let in",
    ),
    key(
        "threads",
        Kind::Count(|c| &mut c.threads, 1, 256),
        "Data threads, each with its share of the pool",
    ),
    key(
        "fleet",
        choice!(fleet: "off" => FleetMode::Off, "on" => FleetMode::On),
        "Whether this pgvalet and others of the URL's database find each other; costs one backend",
    ),
    key(
        "instance",
        Kind::Label(|c| &mut c.instance),
        "What the fleet calls this pgvalet; the host's name (in Kubernetes the pod's), where it isn't set",
    ),
    key(
        "preserve_settings",
        Kind::Patterns(|c| &mut c.preserve_settings),
        "Custom settings that a detach keeps, besides those seen in the session's traffic",
    ),
    key(
        "listening",
        choice!(listening: "pin" => Listening::Pin, "share" => Listening::Share),
        "Whether LISTEN keeps a session's backend, or one backend of the pool listens for all that are detached",
    ),
    key(
        "log",
        Kind::Filter(|c| &mut c.log),
        "What is logged, to stderr",
    ),
    key(
        "log_format",
        choice!(log_format: "text" => LogFormat::Text, "json" => LogFormat::Json),
        "How log lines are written",
    ),
    Key {
        name: "chaos_return",
        kind: choice!(chaos_return: "off" => ChaosReturn::Off, "always" => ChaosReturn::Always, "ask" => ChaosReturn::Ask),
        about: "Detach at every quiet point: a proof for tests, not for production",
        visibility: Visibility::Hidden,
    },
    key(
        "users",
        Kind::Users,
        "Users other than the URL's: `[users.NAME]` tables with `password` or `password_file`, or `password_command`",
    ),
    key(
        "logins",
        Kind::Logins,
        "Who may log in how: the first that matches decides, and nobody else gets in",
    ),
    key(
        "rules",
        Kind::Rules,
        "What holds for some owners, applications, databases or users only",
    ),
];

impl Key {
    /// The variable that carries it.
    pub fn variable(&self) -> String {
        format!("PGVALET_{}", self.name.to_ascii_uppercase())
    }

    /// Its value as people read it; secrets are hidden, tables are not shown.
    pub fn shown(&self, config: &Config) -> String {
        match (&self.kind, self.kind.get(config)) {
            (Kind::Upstream, _) => config.upstream.to_string(),
            (_, Some(toml::Value::String(text))) => text,
            (_, Some(value)) => value.to_string(),
            (_, None) => String::new(),
        }
    }

    /// The flag that carries it, without leading dashes; tables have none.
    pub fn flag(&self) -> Option<String> {
        match self.kind {
            Kind::Users | Kind::Rules | Kind::Logins | Kind::Secret(_) => None,
            _ => Some(self.name.replace('_', "-")),
        }
    }
}

/// The reference of all public keys, as the table in docs/configuration.md.
pub fn reference() -> String {
    let defaults = Config::for_upstream(super::Upstream {
        places: Vec::new(),
        target: super::Target::default(),
        balance: super::Balance::default(),
        database: "postgres".to_owned(),
        user: "postgres".to_owned(),
        password: None,
        tls: super::UpstreamTls::default(),
    });
    let mut table = String::from("| key | default | allowed | meaning |\n|---|---|---|---|\n");
    for key in KEYS
        .iter()
        .filter(|key| key.visibility == Visibility::Public)
    {
        let default = match key.kind.get(&defaults) {
            Some(value) => format!("`{value}`"),
            None => "none".to_owned(),
        };
        table.push_str(&format!(
            "| `{}` | {default} | {} | {} |\n",
            key.name,
            key.kind.allowed(),
            key.about
        ));
    }
    table
}
