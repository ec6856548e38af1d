//! Owns the table of keys: name, what is allowed, default, meaning, and the field that each one fills.
//!
//! Files, variables, flags, `pgvalet check` and the reference all read this one table.

use std::path::PathBuf;
use std::time::Duration;

use super::value::{self, Raw, Zero};
use super::{Address, Auth, ChaosReturn, Config, LogFormat, Mode, ReturnMethod, Tls, ValueProblem};

/// A field of the configuration.
type Slot<T> = fn(&mut Config) -> &mut T;

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

/// What a key takes, and the field that it fills.
#[derive(Debug)]
pub enum Kind {
    /// The upstream URL.
    Upstream,
    /// The `[users.NAME]` tables.
    Users,
    /// The `[[rules]]` tables.
    Rules,
    /// The `[[logins]]` tables.
    Logins,
    /// One address.
    Address(Slot<Address>),
    /// One address or more.
    Addresses(Slot<Vec<Address>>),
    /// A duration up to the bound.
    Duration(Slot<Duration>, Zero, Duration),
    /// A whole number from..=to.
    Count(Slot<usize>, usize, usize),
    /// One of some words.
    Choice(Choice),
    /// Names of custom settings.
    Patterns(Slot<Vec<String>>),
    /// A log filter.
    Filter(Slot<String>),
    /// A file.
    Path(Slot<Option<PathBuf>>),
    /// A name.
    Name(Slot<Option<String>>),
    /// A query for secrets.
    Query(Slot<Option<String>>),
}

/// One of some words, and how it is written to and read from its field.
#[derive(Debug)]
pub struct Choice {
    /// The words.
    pub options: &'static [&'static str],
    set: fn(&mut Config, usize),
    get: fn(&Config) -> usize,
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
const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);
/// TCP_USER_TIMEOUT is a signed count of milliseconds.
const KERNEL: Duration = Duration::from_secs(24 * 24 * 3600);

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
        "listen",
        Kind::Addresses(|c| &mut c.listen),
        "Where clients connect; `unix:/dir` makes `/dir/.s.PGSQL.6432`",
    ),
    key(
        "admin",
        Kind::Address(|c| &mut c.admin),
        "Where the admin API listens; loopback or a unix socket",
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
        duration!(tcp_user_timeout, Off, KERNEL),
        "How long a silent peer may leave data unacknowledged, on both legs",
    ),
    key(
        "threads",
        Kind::Count(|c| &mut c.threads, 1, 256),
        "Data threads, each with its share of the pool",
    ),
    key(
        "preserve_settings",
        Kind::Patterns(|c| &mut c.preserve_settings),
        "Custom settings that a detach keeps, besides those seen in the session's traffic",
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
        kind: choice!(chaos_return: "off" => ChaosReturn::Off, "always" => ChaosReturn::Always),
        about: "Detach at every quiet point: a proof for tests, not for production",
        visibility: Visibility::Hidden,
    },
    key(
        "users",
        Kind::Users,
        "Users other than the URL's: `[users.NAME]` tables with `password` or `password_file`",
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

    /// The flag that carries it, without leading dashes; tables have none.
    pub fn flag(&self) -> Option<String> {
        match self.kind {
            Kind::Users | Kind::Rules | Kind::Logins => None,
            _ => Some(self.name.replace('_', "-")),
        }
    }
}

impl Kind {
    /// What the key takes, in words.
    pub fn allowed(&self) -> String {
        match self {
            Self::Upstream => {
                "postgres://user:password@host:port/database, special characters percent-encoded; \
                 ?host=/directory for a unix socket; \
                 ?sslmode=, sslrootcert=, sslcert= and sslkey= as in libpq"
                    .to_owned()
            }
            Self::Users => super::file::USER.to_owned(),
            Self::Logins => super::logins::ALLOWED.to_owned(),
            Self::Rules => super::rules::ALLOWED.to_owned(),
            Self::Address(_) => "host:port or unix:/path".to_owned(),
            Self::Addresses(_) => "host:port or unix:/directory, or several".to_owned(),
            Self::Duration(_, Zero::Off, _) => {
                "a duration such as \"500ms\", \"30s\" or \"1h 30m\"; \"0s\" for off".to_owned()
            }
            Self::Duration(_, Zero::Refused, _) => {
                "a duration such as \"500ms\", \"30s\" or \"1h 30m\"".to_owned()
            }
            Self::Count(_, least, most) => format!("a whole number from {least} to {most}"),
            Self::Choice(choice) => {
                choice.options.iter().map(|word| format!("\"{word}\"")).collect::<Vec<_>>().join(" or ")
            }
            Self::Patterns(_) => "names such as \"app.tenant\" or patterns such as \"app.*\"".to_owned(),
            Self::Filter(_) => {
                "off, error, warn, info, debug or trace, or a filter such as \"info,pgvalet::session=debug\"".to_owned()
            }
            Self::Path(_) => "the absolute path of a PEM file".to_owned(),
            Self::Name(_) => "a name".to_owned(),
            Self::Query(_) => {
                "\"default\", or a query for name and secret with the user's name in $1, all names qualified".to_owned()
            }
        }
    }

    /// Fills the key's field. `load` sees to the upstream and the tables.
    pub(super) fn set(&self, config: &mut Config, raw: &Raw) -> Result<(), ValueProblem> {
        match self {
            Self::Upstream => {}
            // Tables are taken as they are read: this is something else.
            Self::Users | Self::Rules | Self::Logins => {
                raw.text()?;
                return Err(ValueProblem::Type { found: "a string" });
            }
            Self::Address(slot) => *slot(config) = value::address(raw.text()?.trim())?,
            Self::Addresses(slot) => {
                let texts = raw.list()?;
                let addresses = texts
                    .iter()
                    .map(|text| value::address(text))
                    .collect::<Result<Vec<_>, _>>()?;
                if addresses.is_empty() {
                    return Err(ValueProblem::Several { count: 0 });
                }
                *slot(config) = addresses;
            }
            Self::Duration(slot, zero, most) => *slot(config) = value::duration(raw, *zero, *most)?,
            Self::Count(slot, least, most) => *slot(config) = value::count(raw, *least, *most)?,
            Self::Choice(choice) => (choice.set)(config, value::choice(raw, choice.options)?),
            Self::Patterns(slot) => {
                *slot(config) = raw
                    .list()?
                    .iter()
                    .map(|text| value::pattern(text))
                    .collect::<Result<_, _>>()?;
            }
            Self::Filter(slot) => *slot(config) = value::filter(raw.text()?.trim())?,
            Self::Path(slot) => *slot(config) = Some(value::path(raw.text()?)?),
            Self::Name(slot) => *slot(config) = Some(raw.text()?.to_owned()),
            Self::Query(slot) => *slot(config) = Some(value::auth_query(raw.text()?)?),
        }
        Ok(())
    }

    /// The field's value as TOML; None where it has none, for rules, and for the upstream and the users, whose secrets `show` hides.
    pub(super) fn get(&self, config: &Config) -> Option<toml::Value> {
        // A slot is the one way to the field, and wants a mutable configuration.
        let config = &mut config.clone();
        let texts = |list: Vec<String>| {
            toml::Value::Array(list.into_iter().map(toml::Value::String).collect())
        };
        Some(match self {
            Self::Upstream | Self::Users | Self::Rules | Self::Logins => return None,
            Self::Address(slot) => toml::Value::String(slot(config).to_string()),
            Self::Addresses(slot) => match slot(config).as_slice() {
                [address] => toml::Value::String(address.to_string()),
                several => texts(several.iter().map(Address::to_string).collect()),
            },
            Self::Duration(slot, _, _) => {
                toml::Value::String(humantime::format_duration(*slot(config)).to_string())
            }
            Self::Count(slot, _, _) => {
                toml::Value::Integer(i64::try_from(*slot(config)).unwrap_or(i64::MAX))
            }
            Self::Choice(choice) => {
                toml::Value::String(choice.options[(choice.get)(config)].to_owned())
            }
            Self::Patterns(slot) => texts(slot(config).clone()),
            Self::Filter(slot) => toml::Value::String(slot(config).clone()),
            Self::Path(slot) => {
                toml::Value::String(slot(config).as_ref()?.to_string_lossy().into_owned())
            }
            Self::Name(slot) | Self::Query(slot) => toml::Value::String(slot(config).clone()?),
        })
    }
}

/// The reference of all public keys, as the table in docs/configuration.md.
pub fn reference() -> String {
    let defaults = Config::for_upstream(super::Upstream {
        host: super::UpstreamHost::Tcp("localhost".to_owned()),
        port: 5432,
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
