//! Owns libpq's password file (PostgreSQL documentation, 34.16): `host:port:database:user:password` lines.
//!
//! Refuses a file that others can read, as libpq does.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use secrecy::SecretString;

use super::{Place, Upstream, UpstreamHost};

/// The lines of a password file, in their order: the first match wins.
#[derive(Clone, Debug, Default)]
pub struct Pgpass {
    entries: Vec<Entry>,
}

#[derive(Clone, Debug)]
struct Entry {
    /// Host, port, database and user.
    fields: [Field; 4],
    password: SecretString,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Field {
    Any,
    Exactly(String),
}

/// Why a password file was left aside.
#[derive(Debug, thiserror::Error)]
pub enum PgpassProblem {
    /// Others may read it.
    #[error(
        "password file {} is ignored: others can read it (mode {mode:04o}); make it 0600 or less",
        path.display()
    )]
    Permissions { path: PathBuf, mode: u32 },
    /// A directory, a device.
    #[error("password file {} is ignored: not a plain file", path.display())]
    NotAFile { path: PathBuf },
    /// It can't be read.
    #[error("password file {} is ignored: {source}", path.display())]
    Unreadable {
        path: PathBuf,
        source: std::io::Error,
    },
}

impl Pgpass {
    /// Reads the file at `path`.
    ///
    /// # Errors
    ///
    /// Where libpq would ignore the file: it isn't there, isn't plain, or others can read it.
    pub fn read(path: &Path) -> Result<Self, PgpassProblem> {
        let unreadable = |source| PgpassProblem::Unreadable {
            path: path.to_owned(),
            source,
        };
        let metadata = fs::metadata(path).map_err(unreadable)?;
        if !metadata.is_file() {
            return Err(PgpassProblem::NotAFile {
                path: path.to_owned(),
            });
        }
        let mode = metadata.permissions().mode() & 0o7777;
        if mode & 0o077 != 0 {
            return Err(PgpassProblem::Permissions {
                path: path.to_owned(),
                mode,
            });
        }
        let bytes = fs::read(path).map_err(unreadable)?;
        Ok(Self::parse(&String::from_utf8_lossy(&bytes)))
    }

    /// Reads the file's text; lines with too few fields are skipped, as in libpq.
    pub fn parse(text: &str) -> Self {
        Self {
            entries: text.lines().filter_map(entry).collect(),
        }
    }

    /// The password of `user` in `database` at `upstream`: that of its first host for which there is one.
    pub fn password(
        &self,
        upstream: &Upstream,
        database: &str,
        user: &str,
    ) -> Option<&SecretString> {
        let places = upstream.places.iter();
        places
            .filter_map(|place| self.password_at(place, database, user))
            .next()
    }

    fn password_at(&self, place: &Place, database: &str, user: &str) -> Option<&SecretString> {
        let host = match &place.host {
            UpstreamHost::Tcp(host) => host.as_str(),
            // libpq looks a default socket directory up as localhost; /tmp is its own default, the other Debian's.
            UpstreamHost::Unix(path) => match path.to_str()? {
                "/tmp" | "/var/run/postgresql" | "/run/postgresql" => "localhost",
                other => other,
            },
        };
        let port = place.port.to_string();
        let wanted = [host, &port, database, user];
        self.entries
            .iter()
            .find(|entry| {
                entry
                    .fields
                    .iter()
                    .zip(wanted)
                    .all(|(field, wanted)| field.matches(wanted))
            })
            .map(|entry| &entry.password)
    }
}

impl Field {
    fn matches(&self, wanted: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Exactly(text) => text == wanted,
        }
    }
}

fn entry(line: &str) -> Option<Entry> {
    if line.starts_with('#') {
        return None;
    }
    let mut rest = line;
    let mut fields = [Field::Any, Field::Any, Field::Any, Field::Any];
    for field in &mut fields {
        let (text, after) = cut(rest)?;
        rest = after;
        if text != "*" {
            *field = Field::Exactly(unescape(text));
        }
    }
    // The password ends at an unescaped colon or at the end of the line.
    let password = unescape(cut(rest).map_or(rest, |(text, _)| text));
    (!password.is_empty()).then(|| Entry {
        fields,
        password: SecretString::from(password),
    })
}

/// The text up to the next colon that no backslash escapes, and what follows it.
fn cut(text: &str) -> Option<(&str, &str)> {
    let mut escaped = false;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b':' => return Some((&text[..at], &text[at + 1..])),
            _ => {}
        }
    }
    None
}

/// Each backslash stands for the character behind it.
fn unescape(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        plain.push(if c == '\\' {
            chars.next().unwrap_or(c)
        } else {
            c
        });
    }
    plain
}
