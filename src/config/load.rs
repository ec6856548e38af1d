//! Owns the making of a [`Config`]: flags over variables over the file over defaults, and what must fit together.
//!
//! Refuses to open a socket, and to read the process's own environment: [`Sources`] holds all that it looks at.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};

use super::error::Conflict;
use super::file::{self, Setting, key_named};
use super::value::Raw;
use super::{
    Address, Auth, Balance, Config, ConfigError, ConfigErrors, Kind, Listening, Origin, Pgpass,
    PgpassProblem, Place, ProxyProtocol, Target, Tls, Upstream, UpstreamHost, UpstreamTls,
    UserConfig, ValueProblem, access, logins, upstream, variables,
};

/// All that a configuration is read from. Kept, so that SIGHUP reads it again.
#[derive(Clone, Default)]
pub struct Sources {
    /// Values of flags by key name, in their order.
    pub flags: Vec<(String, String)>,
    /// `--config`; it wins over PGVALET_CONFIG.
    pub file: Option<PathBuf>,
    /// The environment.
    pub vars: BTreeMap<String, String>,
    /// The user's home, for `.pgpass`.
    pub home: Option<PathBuf>,
    /// The user's name: who logs in where the URL names nobody.
    pub os_user: Option<String>,
}

/// A configuration, and what the user should know about it.
#[derive(Debug)]
pub struct Loaded {
    /// The values.
    pub config: Config,
    /// What was left aside.
    pub warnings: Vec<Warning>,
    /// Where each value that isn't a default comes from, by key.
    pub origins: BTreeMap<&'static str, Origin>,
}

/// Something that was left aside.
#[derive(Debug, thiserror::Error)]
pub enum Warning {
    /// The password file.
    #[error(transparent)]
    Pgpass(#[from] PgpassProblem),
    /// The configuration holds a password, and others can read the file.
    #[error("{}: others can read this file, and it holds passwords; make it 0600 or less", path.display())]
    Readable { path: PathBuf },
    /// Tokens go over the network as they are.
    #[error(
        "{listener} is beyond loopback and has no TLS (`admin_tls_cert`): tokens go there in clear"
    )]
    TokensInClear { listener: String },
}

impl Sources {
    /// The process's own environment and user, with the command line's `flags` and `file`.
    pub fn of_process(flags: Vec<(String, String)>, file: Option<PathBuf>) -> Self {
        let text = |value: std::ffi::OsString| value.into_string().ok();
        let vars = std::env::vars_os()
            .filter_map(|(name, value)| Some((text(name)?, text(value)?)))
            .collect();
        Self {
            flags,
            file,
            vars,
            home: std::env::home_dir(),
            os_user: crate::process::user_name(rustix::process::geteuid().as_raw()),
        }
    }
}

/// Reads and checks everything.
///
/// # Errors
///
/// All that is wrong, at once.
pub fn load(sources: &Sources) -> Result<Loaded, ConfigErrors> {
    let mut errors = Vec::new();
    let path = file_path(sources);
    let mut settings: BTreeMap<&'static str, Setting> = BTreeMap::new();
    let layers = [
        path.as_deref()
            .map(|path| file::read(path, &mut errors))
            .unwrap_or_default(),
        variables::read(&sources.vars, &mut errors),
        read_flags(&sources.flags, &mut errors),
    ];
    settings.extend(
        layers
            .into_iter()
            .flatten()
            .map(|setting| (setting.key.name, setting)),
    );

    let upstream = read_upstream(&settings, sources, &mut errors);
    let mut config = Config::for_upstream(upstream.unwrap_or_else(nowhere));
    for setting in settings.values_mut() {
        if let (Kind::Users, Raw::Users(users)) = (&setting.key.kind, &mut setting.raw) {
            config.users = std::mem::take(users);
        } else if let (Kind::Rules, Raw::Rules(rules)) = (&setting.key.kind, &mut setting.raw) {
            config.rules = std::mem::take(rules);
        } else if let (Kind::Logins, Raw::Logins(logins)) = (&setting.key.kind, &mut setting.raw) {
            config.logins = std::mem::take(logins);
        } else if let Err(problem) = setting.key.kind.set(&mut config, &setting.raw) {
            errors.push(value_error(setting, problem));
        }
    }
    let origins = settings
        .iter()
        .map(|(name, setting)| (*name, setting.origin.clone()))
        .collect();
    errors.extend(conflicts(&mut config, &origins));
    let mut warnings = Vec::new();
    read_passwords(&mut config, sources, &mut warnings);
    warnings.extend(
        path.as_deref()
            .and_then(|path| readable_passwords(path, &config, &origins)),
    );
    let in_clear = access::tokens_in_clear(&config);
    warnings.extend(in_clear.map(|listener| Warning::TokensInClear { listener }));
    if errors.is_empty() {
        Ok(Loaded {
            config,
            warnings,
            origins,
        })
    } else {
        Err(ConfigErrors(errors))
    }
}

fn file_path(sources: &Sources) -> Option<PathBuf> {
    let variable = || {
        sources
            .vars
            .get("PGVALET_CONFIG")
            .filter(|path| !path.is_empty())
            .map(PathBuf::from)
    };
    sources.file.clone().or_else(variable)
}

/// A flag given repeatedly is a list.
fn read_flags(flags: &[(String, String)], errors: &mut Vec<ConfigError>) -> Vec<Setting> {
    let mut lists: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for (name, value) in flags {
        lists.entry(name).or_default().push(value.clone());
    }
    let mut settings = Vec::new();
    for (name, values) in lists {
        let origin = Origin::Flag(name.replace('_', "-"));
        match key_named(name) {
            Some(key) => settings.push(Setting {
                key,
                raw: Raw::List(values),
                origin,
            }),
            None => errors.push(ConfigError::Unknown {
                origin,
                what: "key",
                name: name.to_owned(),
                hint: file::hint_for_key(name),
            }),
        }
    }
    settings
}

fn value_error(setting: &Setting, problem: ValueProblem) -> ConfigError {
    ConfigError::Value {
        origin: setting.origin.clone(),
        key: setting.key.name.to_owned(),
        problem,
        allowed: setting.key.kind.allowed(),
    }
}

fn read_upstream(
    settings: &BTreeMap<&'static str, Setting>,
    sources: &Sources,
    errors: &mut Vec<ConfigError>,
) -> Option<Upstream> {
    let Some(setting) = settings.get("upstream") else {
        // An unreadable file may well name it: one error a cause.
        if errors.is_empty() {
            errors.push(ConfigError::NoUpstream);
        }
        return None;
    };
    let os_user = sources.os_user.as_deref().unwrap_or("postgres");
    let parsed = setting
        .raw
        .text()
        .and_then(|url| Ok(upstream::parse(url, os_user)?));
    parsed
        .map_err(|problem| errors.push(value_error(setting, problem)))
        .ok()
}

/// Stands in for an upstream that is wrong, so that the other values are checked in the same run.
fn nowhere() -> Upstream {
    Upstream {
        places: Vec::new(),
        target: Target::default(),
        balance: Balance::default(),
        database: String::new(),
        user: String::new(),
        password: None,
        tls: UpstreamTls::default(),
    }
}

/// PGPASSWORD is the URL's user's, where the URL has none; the password file serves everybody.
fn read_passwords(config: &mut Config, sources: &Sources, warnings: &mut Vec<Warning>) {
    let variable = |name: &str| sources.vars.get(name).filter(|value| !value.is_empty());
    let is_url = |(user, ..): (&str, &str, Duration)| user == config.upstream.user;
    let prints = config.password_commands().any(is_url);
    if config.upstream.password.is_none() && !prints {
        config.upstream.password = variable("PGPASSWORD").cloned().map(SecretString::from);
    }
    let explicit = variable("PGPASSFILE").map(PathBuf::from);
    let default = || {
        sources
            .home
            .as_ref()
            .map(|home| home.join(".pgpass"))
            .filter(|path| path.exists())
    };
    let Some(path) = explicit.or_else(default) else {
        return;
    };
    match Pgpass::read(&path) {
        Ok(pgpass) => config.pgpass = pgpass,
        Err(problem) => warnings.push(problem.into()),
    }
}

fn readable_passwords(
    path: &Path,
    config: &Config,
    origins: &BTreeMap<&'static str, Origin>,
) -> Option<Warning> {
    use std::os::unix::fs::PermissionsExt;
    let in_file = |key| matches!(origins.get(key), Some(Origin::File { .. }));
    let has_password = |user: &UserConfig| {
        user.password
            .as_ref()
            .is_some_and(|password| !password.expose_secret().is_empty())
    };
    let secret = (in_file("upstream") && config.upstream.password.is_some())
        || (in_file("users") && config.users.values().any(has_password))
        || in_file("admin_token")
        || in_file("admin_readonly_token");
    let mode = std::fs::metadata(path).ok()?.permissions().mode();
    (secret && mode & 0o007 != 0).then(|| Warning::Readable {
        path: path.to_owned(),
    })
}

/// What is fine by itself, but not together.
fn conflicts(config: &mut Config, origins: &BTreeMap<&'static str, Origin>) -> Vec<ConfigError> {
    let unfit = logins::unfit(config).into_iter();
    let config = &*config;
    let mut found = reachable(config);
    found.extend(unfit.map(|conflict| ("logins", conflict.into())));
    if !config.logins.is_empty() && origins.contains_key("auth") {
        found.push(("auth", Conflict::AuthBesideLogins));
    }
    if config.threads > config.max_backends {
        let (threads, max_backends) = (config.threads, config.max_backends);
        found.push((
            "threads",
            Conflict::MoreThreadsThanBackends {
                threads,
                max_backends,
            },
        ));
    }
    let least = config.max_backends / config.threads.max(1);
    if config.listening == Listening::Share && least < 2 {
        let (threads, max_backends) = (config.threads, config.max_backends);
        found.push((
            "listening",
            Conflict::NoneLeftToLend {
                threads,
                max_backends,
            },
        ));
    }
    found.extend(collisions(config));
    if config.proxy_protocol == ProxyProtocol::Require && config.proxy_protocol_from.is_empty() {
        found.push(("proxy_protocol", Conflict::NobodyTrusted));
    }
    if config.password_command.is_some() && config.upstream.password.is_some() {
        found.push(("password_command", Conflict::TwoPasswords));
    }
    let url = config.users.get(&config.upstream.user);
    let knows = config.upstream.password.is_some() || config.password_command.is_some();
    if knows && url.is_some_and(|user| user.password_command.is_some()) {
        found.push(("users", Conflict::TwoCommands));
    }
    found.extend(tls_without(config).map(|conflict| ("tls", conflict)));
    found.extend(access::admin_tls(config));
    let error = |(key, conflict)| {
        let origin = origins.get(key).cloned().unwrap_or(Origin::Default);
        ConfigError::Conflict {
            origin,
            key,
            conflict,
        }
    };
    found.into_iter().map(error).collect()
}

/// TLS whose files aren't named.
fn tls_without(config: &Config) -> Option<Conflict> {
    let mode = match config.tls {
        Tls::Disable => return None,
        Tls::Allow => "allow",
        Tls::Require => "require",
        Tls::Verify => "verify",
    };
    let missing = if config.tls_cert.is_none() {
        "`tls_cert`"
    } else if config.tls_key.is_none() {
        "`tls_key`"
    } else if config.tls == Tls::Verify && config.tls_client_ca.is_none() {
        "`tls_client_ca`"
    } else {
        return None;
    };
    Some(Conflict::TlsWithout { mode, missing })
}

/// Listeners that others can reach, and mustn't.
fn reachable(config: &Config) -> Vec<(&'static str, Conflict)> {
    let mut found = Vec::new();
    if config.auth == Auth::Trust && config.logins.is_empty() {
        for listener in config.listen.iter().filter(|listener| !listener.is_local()) {
            let listener = listener.to_string();
            found.push(("auth", Conflict::TrustBeyondLoopback { listener }));
        }
    }
    if !config.admin.is_local() && !config.admin_access.asks_for_proof() {
        let listener = config.admin.to_string();
        found.push(("admin", Conflict::AdminBeyondLoopback { listener }));
    }
    found
}

/// Listeners on one address, and an upstream that is one of them.
fn collisions(config: &Config) -> Vec<(&'static str, Conflict)> {
    let mut found = Vec::new();
    let clients = config.listen.iter().map(|listener| ("listen", listener));
    let listeners: Vec<_> = clients
        .chain([("admin", &config.admin), ("metrics", &config.metrics)])
        .collect();
    for (index, (key, listener)) in listeners.iter().enumerate() {
        let earlier = listeners[..index]
            .iter()
            .find(|(_, other)| same_address(listener, other));
        if let Some((other, _)) = earlier {
            found.push((
                *key,
                Conflict::SameAddress {
                    listener: listener.to_string(),
                    other,
                },
            ));
        }
    }
    for listener in config
        .listen
        .iter()
        .filter(|listener| is_upstream(listener, &config.upstream))
    {
        found.push((
            "upstream",
            Conflict::Loop {
                listener: listener.to_string(),
            },
        ));
    }
    found
}

/// Port 0 is a free port, different each time.
fn same_address(one: &Address, other: &Address) -> bool {
    match (one, other) {
        (Address::Tcp(one), Address::Tcp(other)) => one == other && one.port() != 0,
        (Address::Unix(one), Address::Unix(other)) => one == other,
        (Address::Tcp(_), Address::Unix(_)) | (Address::Unix(_), Address::Tcp(_)) => false,
    }
}

/// Whether clients of `listener` are sent back to it; names other than localhost aren't looked up.
fn is_upstream(listener: &Address, upstream: &Upstream) -> bool {
    upstream
        .places
        .iter()
        .any(|place| is_place(listener, place))
}

fn is_place(listener: &Address, place: &Place) -> bool {
    match (listener, &place.host) {
        (Address::Tcp(listener), UpstreamHost::Tcp(host)) => {
            let same = host.parse() == Ok(listener.ip());
            let local =
                host == "localhost" || host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback());
            let hears_local = listener.ip().is_unspecified()
                || (host == "localhost" && listener.ip().is_loopback());
            listener.port() == place.port && (same || (local && hears_local))
        }
        (Address::Unix(listener), UpstreamHost::Unix(directory)) => {
            listener == directory && place.port == 6432
        }
        (Address::Tcp(_), UpstreamHost::Unix(_)) | (Address::Unix(_), UpstreamHost::Tcp(_)) => {
            false
        }
    }
}
