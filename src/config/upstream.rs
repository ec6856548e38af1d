//! Owns the reading of the upstream URL, by libpq's rules (PostgreSQL documentation, 34.1.1.2, connection URIs).
//!
//! Refuses to quote any part of a URL in an error unless it can't be a piece of a password.

use std::path::PathBuf;

use percent_encoding::percent_decode_str;
use secrecy::SecretString;

use super::error::Hint;
use super::{Upstream, UpstreamHost, UrlProblem};

/// The parameters that are taken.
const PARAMETERS: [&str; 8] = [
    "host",
    "port",
    "user",
    "password",
    "dbname",
    "sslmode",
    "gssencmode",
    "application_name",
];

/// The pieces of a URL, percent-decoded.
#[derive(Default)]
struct Parts {
    user: Option<String>,
    password: Option<String>,
    host: Option<String>,
    port: Option<String>,
    database: Option<String>,
}

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
    parts.port.as_deref().map_or(Ok(0), port)?;
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
        if host.contains(',') {
            return Err(UrlProblem::SeveralHosts);
        }
        let (host, port) = match host
            .strip_prefix('[')
            .and_then(|inner| inner.split_once(']'))
        {
            Some((address, "")) => (address, None),
            Some((address, port)) => (
                address,
                Some(port.strip_prefix(':').ok_or(UrlProblem::Port)?),
            ),
            None => match host.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (host, None),
            },
        };
        self.host = non_empty(decode(host, "host")?);
        self.port = port.map(str::to_owned).and_then(non_empty);
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
                "host" => self.host = non_empty(value),
                "port" => self.port = non_empty(value),
                "user" => self.user = non_empty(value),
                "password" => self.password = non_empty(value),
                "dbname" => self.database = non_empty(value),
                "sslmode" => check_sslmode(&value)?,
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

    fn finish(self, os_user: &str) -> Result<Upstream, UrlProblem> {
        let host = self.host.ok_or(UrlProblem::NoHost)?;
        if host.contains(',') {
            return Err(UrlProblem::SeveralHosts);
        }
        let host = if host.starts_with('/') {
            UpstreamHost::Unix(PathBuf::from(host))
        } else {
            UpstreamHost::Tcp(host)
        };
        let user = self.user.unwrap_or_else(|| os_user.to_owned());
        Ok(Upstream {
            host,
            port: self.port.as_deref().map_or(Ok(5432), port)?,
            database: self.database.unwrap_or_else(|| user.clone()),
            user,
            password: self.password.map(SecretString::from),
        })
    }
}

fn port(text: &str) -> Result<u16, UrlProblem> {
    text.parse()
        .ok()
        .filter(|port| *port != 0)
        .ok_or(UrlProblem::Port)
}

fn non_empty(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

fn check_sslmode(mode: &str) -> Result<(), UrlProblem> {
    match mode {
        "disable" | "allow" | "prefer" => Ok(()),
        "require" => Err(UrlProblem::Tls { mode: "require" }),
        "verify-ca" => Err(UrlProblem::Tls { mode: "verify-ca" }),
        "verify-full" => Err(UrlProblem::Tls {
            mode: "verify-full",
        }),
        _ => Err(UrlProblem::SslMode),
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
