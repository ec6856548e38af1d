//! Owns the reading of the upstream URL, by libpq's rules (PostgreSQL documentation, 34.1.1.2, connection URIs).
//!
//! Refuses to quote any part of a URL in an error unless it can't be a piece of a password.

use std::path::PathBuf;

use percent_encoding::percent_decode_str;
use secrecy::SecretString;

use super::error::Hint;
use super::{
    Balance, Place, RootSource, SslMode, Target, Upstream, UpstreamHost, UpstreamTls, UrlProblem,
};

/// The parameters that are taken.
const PARAMETERS: [&str; 13] = [
    "host",
    "port",
    "user",
    "password",
    "dbname",
    "sslmode",
    "sslrootcert",
    "sslcert",
    "sslkey",
    "gssencmode",
    "application_name",
    "target_session_attrs",
    "load_balance_hosts",
];

/// The pieces of a URL, percent-decoded.
#[derive(Default)]
struct Parts {
    user: Option<String>,
    password: Option<String>,
    hosts: Vec<String>,
    /// One for each host, or one for all; empty ones are the default.
    ports: Vec<String>,
    database: Option<String>,
    sslmode: Option<SslMode>,
    sslrootcert: Option<RootSource>,
    sslcert: Option<PathBuf>,
    sslkey: Option<PathBuf>,
    target: Target,
    balance: Balance,
}

/// libpq's words for [`Target`].
pub(super) const TARGETS: [(&str, Target); 6] = [
    ("any", Target::Any),
    ("read-write", Target::ReadWrite),
    ("read-only", Target::ReadOnly),
    ("primary", Target::Primary),
    ("standby", Target::Standby),
    ("prefer-standby", Target::PreferStandby),
];

/// libpq's words for [`Balance`].
const BALANCES: [(&str, Balance); 2] = [("disable", Balance::Disable), ("random", Balance::Random)];

/// libpq's words for [`SslMode`].
pub(super) const SSL_MODES: [(&str, SslMode); 6] = [
    ("disable", SslMode::Disable),
    ("allow", SslMode::Allow),
    ("prefer", SslMode::Prefer),
    ("require", SslMode::Require),
    ("verify-ca", SslMode::VerifyCa),
    ("verify-full", SslMode::VerifyFull),
];

/// Reads `url`; the user is `os_user` where it names none, the database is the user's where it names none.
pub(super) fn parse(url: &str, os_user: &str) -> Result<Upstream, UrlProblem> {
    let url = url.trim();
    let rest = url
        .strip_prefix("postgres://")
        .or_else(|| url.strip_prefix("postgresql://"))
        .ok_or(UrlProblem::Scheme)?;
    let mut parts = Parts::default();
    let (location, query) = match rest.split_once('?') {
        Some((location, query)) => (location, Some(query)),
        None => (rest, None),
    };
    let (authority, database) = match location.split_once('/') {
        Some((authority, database)) => (authority, Some(database)),
        None => (location, None),
    };
    parts.read_authority(authority)?;
    // Before anything that could be quoted: an unencoded delimiter in a password shows up as a bad port.
    parts
        .ports
        .iter()
        .try_for_each(|text| port(text).map(drop))?;
    if let Some(database) = database {
        if database.contains(['/', '@']) {
            return Err(UrlProblem::Delimiter { part: "database" });
        }
        parts.database = non_empty(decode(database, "database")?);
    }
    if let Some(query) = query {
        parts.read_query(query)?;
    }
    parts.finish(os_user)
}

impl Parts {
    /// `user:password@host:port`, each optional.
    fn read_authority(&mut self, authority: &str) -> Result<(), UrlProblem> {
        let host = match authority.rsplit_once('@') {
            None => authority,
            Some((login, host)) => {
                let (user, password) = match login.split_once(':') {
                    Some((user, password)) => (user, Some(password)),
                    None => (login, None),
                };
                self.user = non_empty(decode(user, "user")?);
                self.password = password
                    .map(|password| decode(password, "password"))
                    .transpose()?
                    .and_then(non_empty);
                host
            }
        };
        for place in host.split(',') {
            let (host, port) = split_port(place)?;
            self.hosts.push(decode(host, "host")?);
            self.ports.push(port.to_owned());
        }
        Ok(())
    }

    /// `name=value&...`; a parameter overrides what stands before the question mark, as in libpq.
    fn read_query(&mut self, query: &str) -> Result<(), UrlProblem> {
        if query.contains('@') {
            return Err(UrlProblem::Delimiter { part: "query" });
        }
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').ok_or_else(|| unknown(pair))?;
            let value = decode(value, "query")?;
            match name {
                "host" => self.hosts = list(&value),
                "port" => self.ports = list(&value),
                "user" => self.user = non_empty(value),
                "password" => self.password = non_empty(value),
                "dbname" => self.database = non_empty(value),
                "sslmode" => self.sslmode = Some(sslmode(&value)?),
                "sslrootcert" if value == "system" => self.sslrootcert = Some(RootSource::System),
                "sslrootcert" => {
                    self.sslrootcert = Some(RootSource::File(file("sslrootcert", value)?));
                }
                "sslcert" => self.sslcert = Some(file("sslcert", value)?),
                "sslkey" => self.sslkey = Some(file("sslkey", value)?),
                "target_session_attrs" => {
                    let allowed = "any, read-write, read-only, primary, standby, prefer-standby";
                    self.target = one_of(&TARGETS, &value, ("target_session_attrs", allowed))?;
                }
                "load_balance_hosts" => {
                    let name = ("load_balance_hosts", "disable, random");
                    self.balance = one_of(&BALANCES, &value, name)?;
                }
                "gssencmode" if matches!(value.as_str(), "disable" | "prefer") => {}
                // Each client brings its own; it is taken so that an app's URL can be pasted.
                "application_name" => {}
                "connect_timeout" => {
                    return Err(UrlProblem::Elsewhere {
                        name: "connect_timeout",
                        instead: "the key connect_timeout",
                    });
                }
                "options" => {
                    return Err(UrlProblem::Elsewhere {
                        name: "options",
                        instead: "the client's own startup options",
                    });
                }
                _ => return Err(unknown(name)),
            }
        }
        Ok(())
    }

    fn finish(mut self, os_user: &str) -> Result<Upstream, UrlProblem> {
        let tls = self.tls()?;
        let places = self.places()?;
        let user = self.user.unwrap_or_else(|| os_user.to_owned());
        Ok(Upstream {
            places,
            target: self.target,
            balance: self.balance,
            database: self.database.unwrap_or_else(|| user.clone()),
            user,
            password: self.password.map(SecretString::from),
            tls,
        })
    }

    /// The hosts with their ports, by libpq's rules: one port serves all.
    fn places(&mut self) -> Result<Vec<Place>, UrlProblem> {
        let (hosts, ports) = (
            std::mem::take(&mut self.hosts),
            std::mem::take(&mut self.ports),
        );
        if hosts.iter().all(String::is_empty) {
            return Err(UrlProblem::NoHost);
        }
        if ports.len() > 1 && ports.len() != hosts.len() {
            return Err(UrlProblem::Ports {
                ports: ports.len(),
                hosts: hosts.len(),
            });
        }
        let place = |(index, host): (usize, String)| {
            let text = ports
                .get(index)
                .or(ports.first().filter(|_| ports.len() == 1));
            let host = match host {
                host if host.is_empty() => return Err(UrlProblem::NoHost),
                host if host.starts_with('/') => UpstreamHost::Unix(PathBuf::from(host)),
                host => UpstreamHost::Tcp(host),
            };
            let port = text.map_or(Ok(5432), |text| port(text))?;
            Ok(Place { host, port })
        };
        hosts.into_iter().enumerate().map(place).collect()
    }

    /// What is said of TLS, by libpq's rules; it has no default files here.
    fn tls(&mut self) -> Result<UpstreamTls, UrlProblem> {
        let root = self.sslrootcert.take();
        let system = root == Some(RootSource::System);
        let default = if system {
            SslMode::VerifyFull
        } else {
            SslMode::default()
        };
        let mode = self.sslmode.unwrap_or(default);
        if system && mode != SslMode::VerifyFull {
            return Err(UrlProblem::WeakSystemRoots);
        }
        if matches!(mode, SslMode::VerifyCa | SslMode::VerifyFull) && root.is_none() {
            return Err(UrlProblem::NoRoots { mode: word(mode) });
        }
        if self.sslcert.is_some() != self.sslkey.is_some() {
            return Err(UrlProblem::HalfPair);
        }
        Ok(UpstreamTls {
            mode,
            root,
            cert: self.sslcert.take(),
            key: self.sslkey.take(),
        })
    }
}

/// A port; an empty one is the default.
fn port(text: &str) -> Result<u16, UrlProblem> {
    if text.is_empty() {
        return Ok(5432);
    }
    text.parse()
        .ok()
        .filter(|port| *port != 0)
        .ok_or(UrlProblem::Port)
}

/// `host:port`, `[::1]:port` or `host`; the port is empty where there is none.
fn split_port(place: &str) -> Result<(&str, &str), UrlProblem> {
    match place
        .strip_prefix('[')
        .and_then(|inner| inner.split_once(']'))
    {
        Some((address, "")) => Ok((address, "")),
        Some((address, port)) => Ok((address, port.strip_prefix(':').ok_or(UrlProblem::Port)?)),
        None => Ok(place.split_once(':').unwrap_or((place, ""))),
    }
}

fn list(text: &str) -> Vec<String> {
    text.split(',').map(str::to_owned).collect()
}

fn one_of<T: Copy>(
    words: &[(&str, T)],
    text: &str,
    (name, allowed): (&'static str, &'static str),
) -> Result<T, UrlProblem> {
    let known = words.iter().find(|(word, _)| *word == text);
    known
        .map(|(_, value)| *value)
        .ok_or(UrlProblem::Word { name, allowed })
}

fn non_empty(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

fn sslmode(text: &str) -> Result<SslMode, UrlProblem> {
    let known = SSL_MODES.iter().find(|(word, _)| *word == text);
    known.map(|(_, mode)| *mode).ok_or(UrlProblem::SslMode)
}

/// libpq's word for a mode.
pub(super) fn word(mode: SslMode) -> &'static str {
    SSL_MODES
        .iter()
        .find(|(_, known)| *known == mode)
        .map_or("", |(word, _)| word)
}

fn file(name: &'static str, text: String) -> Result<PathBuf, UrlProblem> {
    let path = PathBuf::from(text);
    if path.is_absolute() {
        Ok(path)
    } else {
        Err(UrlProblem::RelativePath { name })
    }
}

/// An unknown parameter; named only if it looks like a parameter's name.
fn unknown(name: &str) -> UrlProblem {
    let plain = name.len() <= 32
        && name
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte == b'_');
    let hint = Hint::for_name(name, PARAMETERS);
    UrlProblem::Parameter {
        name: plain.then(|| name.to_owned()),
        hint,
    }
}

/// Percent-decodes strictly: libpq refuses a stray `%`, and so a password with one is never half understood.
fn decode(text: &str, part: &'static str) -> Result<String, UrlProblem> {
    let bytes = text.as_bytes();
    let stray = bytes.iter().enumerate().any(|(at, byte)| {
        *byte == b'%'
            && !bytes
                .get(at + 1..at + 3)
                .is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit))
    });
    let decoded = percent_decode_str(text).decode_utf8();
    match decoded {
        Ok(decoded) if !stray && !decoded.contains('\0') => Ok(decoded.into_owned()),
        Ok(_) if !stray => Err(UrlProblem::Nul { part }),
        Ok(_) | Err(_) => Err(UrlProblem::Encoding { part }),
    }
}
