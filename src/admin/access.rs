//! Owns who may do what: the proof that a caller shows, and the role that it gives.
//!
//! A unix socket's permissions are its proof. On TCP everybody has to show a token or a certificate as soon as the
//! configuration names any; without any, the listener is on loopback, and everybody there is an operator.

use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use rustls::pki_types::CertificateDer;
use secrecy::{ExposeSecret, SecretString};

use super::problem::Problem;
use crate::config::AdminAccess;
use crate::executor;
use crate::net::tls::is_named;

/// The longest token, in bytes.
const LONGEST: u64 = 4096;
/// The shortest one.
const SHORTEST: usize = 16;

/// What a caller may do. Each one may do what those before it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Anybody: is it alive?
    Anyone,
    /// Looks.
    Reader,
    /// Changes things, too.
    Operator,
}

impl Role {
    /// The word in errors and in the documentation.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Anyone => "anyone",
            Self::Reader => "reader",
            Self::Operator => "operator",
        }
    }
}

/// How a request reached us.
#[derive(Clone, Debug)]
pub(super) enum Link {
    /// A unix socket.
    Unix,
    /// TCP, with the certificate that the caller has shown, if any: its roots are checked.
    Tcp(Option<CertificateDer<'static>>),
}

/// What is wrong with a token's file.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    #[error("{}: can't be read: {source}", path.display())]
    Unreadable {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("{}: holds no token: {SHORTEST} to {LONGEST} characters of visible ASCII", path.display())]
    NoToken { path: PathBuf },
}

/// Knows who may do what. Clones share the configuration.
#[derive(Clone, Debug)]
pub struct Access(Arc<AdminAccess>);

impl Access {
    /// By this configuration.
    #[must_use]
    pub fn new(configured: AdminAccess) -> Self {
        Self(Arc::new(configured))
    }

    /// Whether a caller over this link has to show something.
    pub(super) fn asks(&self, link: &Link) -> bool {
        matches!(link, Link::Tcp(_)) && self.0.asks_for_proof()
    }

    /// The role of a caller.
    ///
    /// # Errors
    /// A token that isn't ours.
    pub(super) async fn role(&self, link: &Link, headers: &HeaderMap) -> Result<Role, Problem> {
        if !self.asks(link) {
            return Ok(Role::Operator);
        }
        let certified = match link {
            Link::Unix => Role::Operator,
            Link::Tcp(Some(certificate)) => self.of_certificate(certificate),
            Link::Tcp(None) => Role::Anyone,
        };
        if !headers.contains_key(header::AUTHORIZATION) {
            return Ok(certified);
        }
        let shown = bearer(headers).ok_or_else(|| unknown(INVALID_REQUEST))?;
        let role = self.of_token(shown).await;
        role.map(|role| role.max(certified))
            .ok_or_else(|| unknown(INVALID_TOKEN))
    }

    fn of_certificate(&self, certificate: &CertificateDer<'_>) -> Role {
        let mut names = self.0.tls_operators.iter();
        if names.any(|name| name == "*" || is_named(certificate, name)) {
            Role::Operator
        } else {
            Role::Reader
        }
    }

    async fn of_token(&self, shown: &str) -> Option<Role> {
        let access = self.0.clone();
        let read = move || {
            let operator = token(access.token_file.as_deref(), access.token.as_ref());
            let reader = token(
                access.readonly_token_file.as_deref(),
                access.readonly_token.as_ref(),
            );
            (operator, reader)
        };
        // A file system that hangs holds up nobody else.
        let (operator, reader) = executor::aside(read).await.ok()?;
        let is = |known: Option<SecretString>| {
            known.is_some_and(|known| same(known.expose_secret().as_bytes(), shown.as_bytes()))
        };
        // Both are compared, whichever it is.
        match (is(operator), is(reader)) {
            (true, _) => Some(Role::Operator),
            (false, true) => Some(Role::Reader),
            (false, false) => None,
        }
    }
}

/// Whether every token that is configured can be read.
///
/// # Errors
/// The first one that can't.
pub fn check(access: &AdminAccess) -> Result<(), TokenError> {
    let files = [&access.token_file, &access.readonly_token_file];
    for path in files.into_iter().flatten() {
        read(path)?;
    }
    Ok(())
}

/// The token in effect: the file's, as it is now, or the configuration's. A file that can't be read opens nothing.
fn token(file: Option<&Path>, configured: Option<&SecretString>) -> Option<SecretString> {
    let Some(path) = file else {
        return configured.cloned();
    };
    let read = read(path);
    read.inspect_err(|error| tracing::error!("a caller of the admin API was refused: {error}"))
        .ok()
}

fn read(path: &Path) -> Result<SecretString, TokenError> {
    use std::io::Read;
    let unreadable = |source| TokenError::Unreadable {
        path: path.to_owned(),
        source,
    };
    let file = std::fs::File::open(path).map_err(unreadable)?;
    let mut text = Vec::new();
    file.take(LONGEST + 2)
        .read_to_end(&mut text)
        .map_err(unreadable)?;
    let token = text.trim_ascii();
    let fits = (SHORTEST..=LONGEST as usize).contains(&token.len());
    match std::str::from_utf8(token) {
        Ok(token) if fits && token.bytes().all(|byte| byte.is_ascii_graphic()) => {
            Ok(SecretString::from(token))
        }
        Ok(_) | Err(_) => Err(TokenError::NoToken {
            path: path.to_owned(),
        }),
    }
}

/// Compares in a time that depends on the length of what was shown only.
fn same(known: &[u8], shown: &[u8]) -> bool {
    let mut differ = u8::from(known.len() != shown.len());
    for (index, byte) in shown.iter().enumerate() {
        // A token is never empty: it was checked when it was read.
        differ |= byte ^ known[index % known.len()];
        differ = black_box(differ);
    }
    differ == 0
}

/// The token of `Authorization: Bearer …` (RFC 6750).
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

const REALM: &str = "Bearer realm=\"pgvalet\"";
const INVALID_REQUEST: &str = "Bearer realm=\"pgvalet\", error=\"invalid_request\"";
const INVALID_TOKEN: &str = "Bearer realm=\"pgvalet\", error=\"invalid_token\"";

fn unknown(challenge: &'static str) -> Problem {
    let detail =
        "the Authorization header holds no token that pgvalet knows: Bearer, and the token";
    Problem::new(StatusCode::UNAUTHORIZED, detail).challenge(HeaderValue::from_static(challenge))
}

/// Whether `role` suffices where `wanted` is asked for.
pub(super) fn judge(role: Role, wanted: Role) -> Result<(), Problem> {
    if role >= wanted {
        return Ok(());
    }
    if role == Role::Anyone {
        let detail = "show a token (Authorization: Bearer …) or a certificate";
        let problem = Problem::new(StatusCode::UNAUTHORIZED, detail);
        return Err(problem.challenge(HeaderValue::from_static(REALM)));
    }
    let detail = format!("this is for operators, and the caller is a {}", role.word());
    Err(Problem::new(StatusCode::FORBIDDEN, detail))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access(token: &str, reader: &str) -> Access {
        Access::new(AdminAccess {
            token: Some(token.into()),
            readonly_token: Some(reader.into()),
            ..AdminAccess::default()
        })
    }

    async fn role(access: &Access, value: &str) -> Option<Role> {
        let headers = HeaderMap::from_iter([(header::AUTHORIZATION, value.parse().unwrap())]);
        access.role(&Link::Tcp(None), &headers).await.ok()
    }

    #[tokio::test]
    async fn a_token_gives_its_role_and_nothing_else_does() {
        let access = access("operator-operator", "reader-reader-reader");
        let known = [
            ("Bearer operator-operator", Some(Role::Operator)),
            ("bearer reader-reader-reader", Some(Role::Reader)),
            ("Bearer operator-operato", None),
            ("Bearer operator-operatoroperator-operator", None),
            ("Bearer reader-reader-reader2", None),
            ("Bearer ", None),
            ("Bearer", None),
            ("Basic operator-operator", None),
        ];
        for (shown, expected) in known {
            assert_eq!(role(&access, shown).await, expected, "{shown}");
        }
        let nothing = access.role(&Link::Tcp(None), &HeaderMap::new()).await;
        assert_eq!(nothing.ok(), Some(Role::Anyone));
        let unix = access.role(&Link::Unix, &HeaderMap::new()).await;
        assert_eq!(unix.ok(), Some(Role::Operator));
    }

    #[tokio::test]
    async fn a_token_that_is_mounted_anew_counts_at_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("token");
        std::fs::write(&path, "the-first-token-1\n").unwrap();
        let access = Access::new(AdminAccess {
            token_file: Some(path.clone()),
            token: Some("the-other-token-1".into()),
            ..AdminAccess::default()
        });
        let first = "Bearer the-first-token-1";
        assert_eq!(role(&access, first).await, Some(Role::Operator));
        assert_eq!(role(&access, "Bearer the-other-token-1").await, None);

        std::fs::write(&path, "the-second-token-2").unwrap();
        assert_eq!(role(&access, first).await, None);
        let second = "Bearer the-second-token-2";
        assert_eq!(role(&access, second).await, Some(Role::Operator));

        std::fs::write(&path, "short").unwrap();
        assert_eq!(role(&access, second).await, None);
        assert_eq!(role(&access, "Bearer short").await, None);
    }
}
