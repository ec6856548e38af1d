//! Owns the reading of one value: durations, counts, addresses, choices, patterns, log filters.
//!
//! Refuses to know where a value came from; `load` adds that to the error.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use secrecy::SecretString;

use super::error::nearest;
use super::{Address, Group, LoginRule, Network, UserConfig, ValueProblem};
use crate::lease::rules::Rule;

/// A value as its source gave it.
#[derive(Clone, Debug)]
pub(super) enum Raw {
    /// One word or string.
    Text(String),
    /// A TOML integer.
    Integer(i64),
    /// Several strings: a TOML array, a flag given repeatedly, a variable with commas.
    List(Vec<String>),
    /// The `[users.NAME]` tables.
    Users(std::collections::BTreeMap<String, UserConfig>),
    /// The `[[rules]]` tables.
    Rules(Vec<Rule>),
    /// The `[[logins]]` tables.
    Logins(Vec<LoginRule>),
    /// A TOML value that no key takes; its type.
    Other(&'static str),
}

impl Raw {
    /// The one string, or why there isn't one.
    pub(super) fn text(&self) -> Result<&str, ValueProblem> {
        match self {
            Self::Text(text) => Ok(text),
            Self::List(list) => match list.as_slice() {
                [text] => Ok(text),
                several => Err(ValueProblem::Several {
                    count: several.len(),
                }),
            },
            Self::Integer(_) => Err(ValueProblem::Type { found: "a number" }),
            Self::Users(_) => Err(ValueProblem::Type { found: "a table" }),
            Self::Rules(_) | Self::Logins(_) => Err(ValueProblem::Type { found: "an array" }),
            Self::Other(found) => Err(ValueProblem::Type { found }),
        }
    }

    /// All strings, with commas separating, too.
    pub(super) fn list(&self) -> Result<Vec<String>, ValueProblem> {
        let split = |text: &String| {
            text.split(',')
                .map(|part| part.trim().to_owned())
                .filter(|part| !part.is_empty())
                .collect::<Vec<_>>()
        };
        match self {
            Self::Text(text) => Ok(split(text)),
            Self::List(list) => Ok(list.iter().flat_map(split).collect()),
            Self::Integer(_)
            | Self::Users(_)
            | Self::Rules(_)
            | Self::Logins(_)
            | Self::Other(_) => self.text().map(|_| Vec::new()),
        }
    }
}

/// What zero means to a duration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Zero {
    /// Zero turns the bound off.
    Off,
    /// Zero has no meaning.
    Refused,
}

/// A duration of at most `most`.
pub(super) fn duration(raw: &Raw, zero: Zero, most: Duration) -> Result<Duration, ValueProblem> {
    let text = match raw {
        Raw::Integer(0) => "0",
        Raw::Integer(number) => {
            return Err(ValueProblem::NoUnit {
                text: number.to_string(),
            });
        }
        Raw::Text(_)
        | Raw::List(_)
        | Raw::Users(_)
        | Raw::Rules(_)
        | Raw::Logins(_)
        | Raw::Other(_) => raw.text()?.trim(),
    };
    let shown = text.to_owned();
    let duration = humantime::parse_duration(text).map_err(|_| {
        if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
            ValueProblem::NoUnit {
                text: shown.clone(),
            }
        } else {
            ValueProblem::NotADuration {
                text: shown.clone(),
            }
        }
    })?;
    match zero {
        Zero::Refused if duration.is_zero() => Err(ValueProblem::Zero),
        Zero::Refused | Zero::Off if duration > most => Err(ValueProblem::TooLong { text: shown }),
        Zero::Refused | Zero::Off => Ok(duration),
    }
}

/// The path of a file.
/// A token: long enough not to be guessed, and fit for a header.
pub(super) fn token(text: &str) -> Result<SecretString, ValueProblem> {
    let text = text.trim();
    if text.len() >= 16 && text.len() <= 4096 && text.bytes().all(|byte| byte.is_ascii_graphic()) {
        Ok(SecretString::from(text))
    } else {
        Err(ValueProblem::NotAToken)
    }
}

pub(super) fn path(text: &str) -> Result<PathBuf, ValueProblem> {
    let path = Path::new(text);
    if path.is_absolute() {
        Ok(path.to_owned())
    } else {
        Err(ValueProblem::NotAPath {
            text: text.to_owned(),
        })
    }
}

/// Permission bits in octal digits, as chmod takes them.
pub(super) fn permissions(text: &str) -> Result<u32, ValueProblem> {
    let octal = (3..=4).contains(&text.len()) && text.bytes().all(|digit| digit.is_ascii_digit());
    let mode = u32::from_str_radix(text, 8)
        .ok()
        .filter(|mode| octal && *mode <= 0o777);
    mode.ok_or_else(|| ValueProblem::NotPermissions {
        text: text.to_owned(),
    })
}

/// A group of the system's, by name or number.
pub(super) fn group(raw: &Raw) -> Result<Group, ValueProblem> {
    let name = match raw {
        Raw::Integer(number) => number.to_string(),
        Raw::Text(_)
        | Raw::List(_)
        | Raw::Users(_)
        | Raw::Rules(_)
        | Raw::Logins(_)
        | Raw::Other(_) => raw.text()?.trim().to_owned(),
    };
    let by_name = || {
        let groups = std::fs::read_to_string("/etc/group").ok()?;
        let line = groups
            .lines()
            .find(|line| line.split(':').next() == Some(&name))?;
        line.split(':').nth(2)?.parse().ok()
    };
    match name.parse().ok().or_else(by_name) {
        Some(id) => Ok(Group { name, id }),
        None => Err(ValueProblem::NotAGroup { text: name }),
    }
}

/// A network in CIDR notation.
pub(super) fn network(text: &str) -> Result<Network, ValueProblem> {
    Network::read(text).ok_or_else(|| ValueProblem::NotANetwork {
        text: text.to_owned(),
    })
}

/// A query with the user's name in `$1`, or the word for the usual one.
pub(super) fn auth_query(text: &str) -> Result<String, ValueProblem> {
    let text = text.trim();
    if text == "default" || text.contains("$1") {
        Ok(text.to_owned())
    } else {
        Err(ValueProblem::NoParameter)
    }
}

/// A whole number in `range`.
pub(super) fn count(raw: &Raw, least: usize, most: usize) -> Result<usize, ValueProblem> {
    let number = match raw {
        Raw::Integer(number) => *number,
        Raw::Text(_)
        | Raw::List(_)
        | Raw::Users(_)
        | Raw::Rules(_)
        | Raw::Logins(_)
        | Raw::Other(_) => {
            let text = raw.text()?.trim();
            text.replace('_', "")
                .parse()
                .map_err(|_| ValueProblem::NotANumber {
                    text: text.to_owned(),
                })?
        }
    };
    usize::try_from(number)
        .ok()
        .filter(|number| (least..=most).contains(number))
        .ok_or(ValueProblem::OutOfRange { number })
}

/// The index of `raw` in `options`.
pub(super) fn choice(raw: &Raw, options: &[&'static str]) -> Result<usize, ValueProblem> {
    let text = raw.text()?.trim();
    options
        .iter()
        .position(|option| option.eq_ignore_ascii_case(text))
        .ok_or_else(|| ValueProblem::NotAChoice {
            text: text.to_owned(),
            near: nearest(text, options),
        })
}

/// `host:port` with an IP address, `localhost` or `*` as host, or `unix:/path`.
pub(super) fn address(text: &str) -> Result<Address, ValueProblem> {
    if let Some((scheme, _)) = text.split_once("://") {
        // Not quoted whole: a URL may hold a password.
        let text = format!("{scheme}://...");
        return Err(ValueProblem::NotAnAddress {
            text,
            why: "write it without a scheme",
        });
    }
    let problem = |why| ValueProblem::NotAnAddress {
        text: text.to_owned(),
        why,
    };
    if let Some(path) = text.strip_prefix("unix:") {
        return unix_path(path).map_err(problem).map(Address::Unix);
    }
    if text.starts_with('/') {
        return Err(problem("write a unix socket as unix:/path"));
    }
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Ok(Address::Tcp(address));
    }
    let (host, port) = text
        .rsplit_once(':')
        .ok_or(problem("the port is missing"))?;
    let port: u16 = port
        .parse()
        .map_err(|_| problem("the port isn't a number up to 65535"))?;
    match host {
        "localhost" => Ok(Address::Tcp((Ipv4Addr::LOCALHOST, port).into())),
        "*" => Ok(Address::Tcp((Ipv4Addr::UNSPECIFIED, port).into())),
        _ if host.contains(':') => Err(problem("write an IPv6 address in brackets, as [::1]:6432")),
        _ => Err(problem("the host is no IP address, nor localhost, nor *")),
    }
}

/// A path that fits a socket address.
fn unix_path(path: &str) -> Result<PathBuf, &'static str> {
    /// `sun_path` less its NUL, and less `/.s.PGSQL.65535`, which a directory gets.
    const LONGEST: usize = 107 - 15;
    match path {
        "" => Err("the path is missing"),
        _ if !Path::new(path).is_absolute() => Err("the path isn't absolute"),
        _ if path.len() > LONGEST => {
            Err("the path is longer than a unix socket's may be (92 bytes here)")
        }
        _ => Ok(PathBuf::from(path)),
    }
}

/// A name that people give, and read in views and logs.
pub(super) fn name(text: &str) -> Result<String, ValueProblem> {
    let count = text.chars().count();
    if (1..=63).contains(&count) && !text.chars().any(char::is_control) {
        Ok(text.to_owned())
    } else {
        Err(ValueProblem::NotAName {
            text: text.chars().take(80).collect(),
        })
    }
}

/// A custom setting's name (`app.tenant`), where `*` stands for any run of characters.
pub(super) fn pattern(text: &str) -> Result<String, ValueProblem> {
    let allowed = |c: char| c.is_alphanumeric() || matches!(c, '_' | '.' | '$' | '*');
    let dotted = text
        .split_once('.')
        .is_some_and(|(class, name)| !class.is_empty() && !name.is_empty());
    if dotted && text.chars().all(allowed) {
        Ok(text.to_lowercase())
    } else {
        Err(ValueProblem::NotAPattern {
            text: text.to_owned(),
        })
    }
}

/// A `tracing` filter. A bare word must be a level: `inof` would otherwise pass as the name of a target.
pub(super) fn filter(text: &str) -> Result<String, ValueProblem> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    let problem = || ValueProblem::NotAFilter {
        text: text.to_owned(),
    };
    let directives = || text.split(',').map(str::trim);
    let plain = |directive: &str| {
        directive.contains('=')
            || LEVELS
                .iter()
                .any(|level| level.eq_ignore_ascii_case(directive))
    };
    let parsed = tracing_subscriber::EnvFilter::builder().parse(text);
    if directives().all(plain) && parsed.is_ok() {
        Ok(text.to_owned())
    } else {
        Err(problem())
    }
}
