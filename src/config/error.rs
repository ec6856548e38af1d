//! Owns what can be wrong with a configuration, in words that name the place, the key and what is allowed.
//!
//! Refuses to hold a secret: no variant carries the text of a URL or a password.

use std::fmt;
use std::path::PathBuf;

/// Where a value was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Nowhere: the default.
    Default,
    /// On the command line; the flag's name without dashes.
    Flag(String),
    /// In the environment; the variable's name.
    Variable(String),
    /// In the TOML file, on this line (from 1).
    File { path: PathBuf, line: usize },
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::Flag(name) => write!(f, "flag --{name}"),
            Self::Variable(name) => write!(f, "variable {name}"),
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
        }
    }
}

/// One thing that is wrong with the configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file can't be read.
    #[error("{}: can't be read: {source}", path.display())]
    Unreadable {
        path: PathBuf,
        source: std::io::Error,
    },
    /// The file isn't TOML. The message never quotes the line: it may hold a password.
    #[error("{}:{line}: not valid TOML: {message}", path.display())]
    Syntax {
        path: PathBuf,
        line: usize,
        message: String,
    },
    /// A key or a variable that doesn't exist.
    #[error("{origin}: unknown {what} `{name}`; {hint}")]
    Unknown {
        origin: Origin,
        /// "key" or "variable".
        what: &'static str,
        name: String,
        hint: Hint,
    },
    /// A value that its key doesn't take.
    #[error("{origin}: {key}: {problem}; allowed: {allowed}")]
    Value {
        origin: Origin,
        key: String,
        problem: ValueProblem,
        allowed: String,
    },
    /// No upstream at all.
    #[error(
        "upstream: not given: say where PostgreSQL is with --upstream, PGVALET_UPSTREAM or `upstream` in the file; \
         allowed: postgres://user:password@host:port/database"
    )]
    NoUpstream,
    /// Values that are fine each for itself, but not together.
    #[error("{origin}: {key}: {conflict}")]
    Conflict {
        origin: Origin,
        key: &'static str,
        conflict: Conflict,
    },
}

/// The nearest known name, or all of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hint {
    /// One name is near.
    Nearest(String),
    /// None is near.
    All(Vec<String>),
}

impl Hint {
    /// The name among `known` that `name` was probably meant to be.
    pub(super) fn for_name<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Self {
        let known: Vec<&str> = known.into_iter().collect();
        match nearest(name, &known) {
            Some(near) => Self::Nearest(near.to_owned()),
            None => Self::All(known.into_iter().map(str::to_owned).collect()),
        }
    }
}

impl fmt::Display for Hint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nearest(name) => write!(f, "did you mean `{name}`?"),
            Self::All(names) => write!(f, "known are: {}", names.join(", ")),
        }
    }
}

/// The name among `known` that is near enough to `name` to be worth a question.
pub(super) fn nearest<'a>(name: &str, known: &[&'a str]) -> Option<&'a str> {
    /// Below this, a suggestion would rather puzzle than help.
    const NEAR: f64 = 0.6;
    let canonical = |text: &str| text.to_ascii_lowercase().replace('-', "_");
    let name = canonical(name);
    known
        .iter()
        .map(|candidate| {
            let candidate_name = canonical(candidate);
            let typo = strsim::normalized_damerau_levenshtein(&name, &candidate_name);
            let part = candidate_name.split('_').any(|word| word == name);
            (if part { typo.max(NEAR) } else { typo }, *candidate)
        })
        .filter(|(score, _)| *score >= NEAR)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}

/// Why a value isn't taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ValueProblem {
    /// A TOML value of the wrong type.
    #[error("{found} isn't taken here")]
    Type { found: &'static str },
    /// Several values for a key that takes one.
    #[error("{count} values were given, one is taken")]
    Several { count: usize },
    /// No duration.
    #[error("`{text}` isn't a duration")]
    NotADuration { text: String },
    /// A duration without its unit.
    #[error("`{text}` has no unit; did you mean \"{text}s\"?")]
    NoUnit { text: String },
    /// No token. It isn't quoted: it is a secret.
    #[error("that is no token")]
    NotAToken,
    /// Zero, where zero has no meaning.
    #[error("zero isn't taken here")]
    Zero,
    /// A duration above the bound.
    #[error("`{text}` is too long")]
    TooLong { text: String },
    /// No whole number.
    #[error("`{text}` isn't a whole number")]
    NotANumber { text: String },
    /// A number out of its range.
    #[error("{number} is out of range")]
    OutOfRange { number: i64 },
    /// Not one of the choices.
    #[error("`{text}` isn't one of them{}", near.map(|name| format!(" (did you mean \"{name}\"?)")).unwrap_or_default())]
    NotAChoice {
        text: String,
        near: Option<&'static str>,
    },
    /// No address.
    #[error("`{text}` isn't an address: {why}")]
    NotAnAddress { text: String, why: &'static str },
    /// No name of a custom setting.
    #[error("`{text}` isn't the name of a custom setting, nor a pattern of such names")]
    NotAPattern { text: String },
    /// No name for people.
    #[error("`{text}` isn't a name of 1 to 63 printable characters")]
    NotAName { text: String },
    /// No filter of log lines.
    #[error("`{text}` isn't a log filter")]
    NotAFilter { text: String },
    /// A path that depends on where pgvalet is started.
    #[error("`{text}` isn't an absolute path")]
    NotAPath { text: String },
    /// No permission bits.
    #[error("`{text}` isn't three or four octal digits up to 0777")]
    NotPermissions { text: String },
    /// No group.
    #[error("`{text}` isn't a group of this system")]
    NotAGroup { text: String },
    /// Something about the upstream URL.
    #[error(transparent)]
    Url(#[from] UrlProblem),
    /// No network.
    #[error("`{text}` isn't an address or a network")]
    NotANetwork { text: String },
    /// A query that can't tell users apart.
    #[error("the query has no $1, which stands for the user's name")]
    NoParameter,
    /// A key that has to be there.
    #[error("it isn't given")]
    Missing,
    /// Two keys that say the same.
    #[error("`{other}` is given, too")]
    Both { other: &'static str },
    /// A file that has to be there.
    #[error("{} can't be read: {why}", path.display())]
    Unreadable { path: PathBuf, why: String },
    /// An inline table that isn't one.
    #[error("not an inline table of users")]
    NotUsers,
}

/// What is wrong with an upstream URL. The URL itself isn't shown: it may hold a password.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UrlProblem {
    /// Another scheme, or none.
    #[error("the URL doesn't begin with postgres:// or postgresql://")]
    Scheme,
    /// A `%` that isn't followed by two hexadecimal digits, or bytes that aren't UTF-8.
    #[error("the {part} isn't percent-encoded correctly (write a `%` itself as %25)")]
    Encoding { part: &'static str },
    /// A NUL byte.
    #[error("the {part} holds a NUL byte")]
    Nul { part: &'static str },
    /// No host.
    #[error("the URL names no host (localhost, or ?host=/var/run/postgresql for a unix socket)")]
    NoHost,
    /// More ports than hosts, or fewer.
    #[error("the URL names {ports} ports for {hosts} hosts; allowed: one port, or one for each")]
    Ports { ports: usize, hosts: usize },
    /// A word that libpq doesn't have either.
    #[error("{name} is none of {allowed}")]
    Word {
        name: &'static str,
        allowed: &'static str,
    },
    /// No port number.
    #[error(
        "the port isn't a number from 1 to 65535 (are `/`, `?`, `@` and `%` in the password percent-encoded?)"
    )]
    Port,
    /// A delimiter where none can be.
    #[error(
        "the {part} holds a bare `/` or `@` (are such characters in user, password and database percent-encoded?)"
    )]
    Delimiter { part: &'static str },
    /// A certificate is to be verified against nothing.
    #[error(
        "sslmode={mode} needs sslrootcert: the absolute path of a PEM file, or system for the system's certificate store"
    )]
    NoRoots { mode: &'static str },
    /// The system's store signs for anybody: only the name tells hosts apart.
    #[error("sslrootcert=system needs sslmode=verify-full: those authorities sign for anybody")]
    WeakSystemRoots,
    /// A certificate without its key, or the other way round.
    #[error("sslcert and sslkey go together")]
    HalfPair,
    /// A path that depends on where pgvalet is started.
    #[error("{name} isn't an absolute path")]
    RelativePath { name: &'static str },
    /// An sslmode that libpq doesn't have either.
    #[error("sslmode is none of disable, allow, prefer, require, verify-ca, verify-full")]
    SslMode,
    /// A parameter that libpq takes, but pgvalet has elsewhere.
    #[error("the parameter {name} isn't taken in the URL; use {instead}")]
    Elsewhere {
        name: &'static str,
        instead: &'static str,
    },
    /// A parameter that isn't known. Its name is shown only where it is one, not a piece of a password.
    #[error("unknown parameter{}; {hint}", name.as_ref().map(|name| format!(" `{name}`")).unwrap_or_default())]
    Parameter { name: Option<String>, hint: Hint },
}

/// Values that don't go together.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Conflict {
    /// Trust on a listener that others can reach.
    #[error(
        "\"trust\" would let anyone who reaches {listener} log in; allowed: \"scram\", or listeners on loopback \
         (127.0.0.1:6432, [::1]:6432) and unix sockets only"
    )]
    TrustBeyondLoopback { listener: String },
    /// The admin API on a listener that others can reach.
    #[error(
        "{listener} can be reached from elsewhere, and asks nobody for a proof; allowed: `admin_token_file`, \
         `admin_readonly_token_file` or `admin_tls_client_ca` with it, or else loopback (127.0.0.1:6433, [::1]:6433) or \
         unix:/path; probes and scrapes go to `metrics`"
    )]
    AdminBeyondLoopback { listener: String },
    /// TLS for the admin API without what it needs.
    #[error("the admin listener's TLS needs {missing}, too")]
    AdminTlsWithout { missing: &'static str },
    /// TLS on a socket that is none.
    #[error(
        "{listener} is a unix socket, and has no TLS; allowed: host:port, or no `admin_tls_` keys"
    )]
    AdminTlsOnUnix { listener: String },
    /// Operators by name, and nobody whose name could be known.
    #[error("names of certificates mean nothing without `admin_tls_client_ca`")]
    OperatorsWithout,
    /// Two listeners on one address.
    #[error("{listener} is taken already by `{other}`; allowed: an address of its own each")]
    SameAddress {
        listener: String,
        other: &'static str,
    },
    /// The upstream is our own listener.
    #[error(
        "{listener} is this pgvalet's own `listen` address; allowed: where PostgreSQL itself listens"
    )]
    Loop { listener: String },
    /// TLS without what it needs.
    #[error("\"{mode}\" needs {missing}; allowed: \"disable\", or TLS with its files")]
    TlsWithout {
        mode: &'static str,
        missing: &'static str,
    },
    /// The URL has a password, too.
    #[error("`upstream` holds a password already; allowed: one of the two")]
    TwoPasswords,
    /// The URL's user has a command of its own, too.
    #[error(
        "a `password_command` for the user of `upstream`, who has a password already; allowed: one of them"
    )]
    TwoCommands,
    /// Load balancers that nobody would believe.
    #[error(
        "\"require\" needs proxy_protocol_from: the networks of the load balancers whose word counts"
    )]
    NobodyTrusted,
    /// A rule about logins that can't be meant as it is written.
    #[error(transparent)]
    Login(#[from] LoginConflict),
    /// `auth` beside rules.
    #[error(
        "it says nothing where there are `[[logins]]`; allowed: leave it out, and make it the last rule"
    )]
    AuthBesideLogins,
    /// Fewer backends than threads.
    #[error(
        "{threads} threads can't share {max_backends} backends; allowed: at most `max_backends`"
    )]
    MoreThreadsThanBackends { threads: usize, max_backends: usize },
    /// The only backend would listen.
    #[error(
        "\"share\" keeps one backend of each thread to listen, and {max_backends} backends on {threads} threads leave \
         none to lend; allowed: at least two backends a thread"
    )]
    NoneLeftToLend { threads: usize, max_backends: usize },
}

/// A rule of `[[logins]]` that lets in whom it shouldn't, or never anybody.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("rule {number} (\"{method}\"): {why}")]
pub struct LoginConflict {
    /// Its place, from 1.
    pub number: usize,
    pub method: &'static str,
    pub why: &'static str,
}

/// Everything that is wrong, in the order found; never empty.
#[derive(Debug)]
pub struct ConfigErrors(pub Vec<ConfigError>);

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.0.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            write!(f, "{error}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}
