//! Owns who may do what over the admin API and over the console, as configured, and what of it can't be.

use std::path::PathBuf;

use secrecy::SecretString;

use super::error::Conflict;
use super::{Address, Config};

/// Who may do what over the admin API, and over the console.
#[derive(Clone, Debug, Default)]
pub struct AdminAccess {
    /// What operators show.
    pub token: Option<SecretString>,
    /// The file that holds it, read at each use.
    pub token_file: Option<PathBuf>,
    /// What those show who only look.
    pub readonly_token: Option<SecretString>,
    /// The file that holds it, read at each use.
    pub readonly_token_file: Option<PathBuf>,
    /// The admin listener's certificate, with its intermediates: PEM.
    pub tls_cert: Option<PathBuf>,
    /// Its key: PEM, not encrypted.
    pub tls_key: Option<PathBuf>,
    /// The roots that callers' certificates must have: PEM.
    pub tls_client_ca: Option<PathBuf>,
    /// The names of certificates whose holders are operators; `*` is everybody whose certificate has a root.
    pub tls_operators: Vec<String>,
    /// The database users who may do everything on the console; empty is the upstream URL's user.
    pub users: Vec<String>,
    /// The database users who may look there.
    pub stats_users: Vec<String>,
}

impl AdminAccess {
    /// Whether callers over TCP have to prove who they are.
    #[must_use]
    pub fn asks_for_proof(&self) -> bool {
        self.has_tokens() || self.tls_client_ca.is_some()
    }

    /// Whether any token is good.
    #[must_use]
    pub fn has_tokens(&self) -> bool {
        let texts = [&self.token, &self.readonly_token];
        let files = [&self.token_file, &self.readonly_token_file];
        texts.iter().any(|text| text.is_some()) || files.iter().any(|file| file.is_some())
    }
}

/// TLS of the admin listener that can't be.
pub(super) fn admin_tls(config: &Config) -> Option<(&'static str, Conflict)> {
    let AdminAccess {
        tls_cert,
        tls_key,
        tls_client_ca,
        tls_operators,
        ..
    } = &config.admin_access;
    if !tls_operators.is_empty() && tls_client_ca.is_none() {
        return Some(("admin_tls_operators", Conflict::OperatorsWithout));
    }
    let present = [tls_cert, tls_key, tls_client_ca].map(Option::is_some);
    let missing = match present {
        [false, false, false] => return None,
        [true, true, _] => None,
        [false, _, _] => Some("`admin_tls_cert`"),
        [true, false, _] => Some("`admin_tls_key`"),
    };
    let listener = config.admin.to_string();
    match (missing, &config.admin) {
        (Some(missing), _) => Some(("admin_tls_cert", Conflict::AdminTlsWithout { missing })),
        (None, Address::Unix(_)) => Some(("admin_tls_cert", Conflict::AdminTlsOnUnix { listener })),
        (None, Address::Tcp(_)) => None,
    }
}

/// The listener, where tokens go over the network as they are.
pub(super) fn tokens_in_clear(config: &Config) -> Option<String> {
    let clear = !config.admin.is_local() && config.admin_access.tls_cert.is_none();
    clear.then(|| config.admin.to_string())
}
