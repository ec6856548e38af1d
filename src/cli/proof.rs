//! Owns what a client command shows to the admin API: a token, a certificate; and whom it trusts.
//!
//! A token comes from a variable or a file, never from the command line: others can read that.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use hyper::header::HeaderValue;
use rustls::ClientConfig;

use crate::net::tls;

/// What a caller shows, and whom it trusts. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Proof {
    /// The value of the Authorization header, marked as a secret.
    pub(super) authorization: Option<HeaderValue>,
    pub(super) tls: Option<Arc<ClientConfig>>,
}

/// The flags and variables of it.
#[derive(Args, Clone, Debug)]
pub(super) struct ProofArgs {
    /// A file with the token for the admin API, instead of the variable PGVALET_ADMIN_TOKEN
    #[arg(long, value_name = "FILE", env = "PGVALET_ADMIN_TOKEN_FILE")]
    admin_token_file: Option<PathBuf>,
    /// For https: the roots of the admin API's certificate, instead of the system's
    #[arg(long, value_name = "FILE", env = "PGVALET_ADMIN_CA")]
    admin_ca: Option<PathBuf>,
    /// For https: a certificate to show
    #[arg(
        long,
        value_name = "FILE",
        env = "PGVALET_ADMIN_CERT",
        requires = "admin_key"
    )]
    admin_cert: Option<PathBuf>,
    /// Its key
    #[arg(
        long,
        value_name = "FILE",
        env = "PGVALET_ADMIN_KEY",
        requires = "admin_cert"
    )]
    admin_key: Option<PathBuf>,
}

impl ProofArgs {
    /// Reads what they name; TLS only where `encrypted`. What is wrong comes as a text.
    pub(super) fn load(&self, encrypted: bool) -> Result<Proof, String> {
        Ok(Proof {
            authorization: self.authorization()?,
            tls: encrypted.then(|| self.tls()).transpose()?,
        })
    }

    fn authorization(&self) -> Result<Option<HeaderValue>, String> {
        let named = self.admin_token_file.as_ref();
        let token = match named.filter(|path| !path.as_os_str().is_empty()) {
            Some(path) => std::fs::read_to_string(path)
                .map_err(|error| format!("{}: {error}", path.display()))?,
            None => std::env::var("PGVALET_ADMIN_TOKEN").unwrap_or_default(),
        };
        if token.trim().is_empty() {
            return Ok(None);
        }
        let value = HeaderValue::try_from(format!("Bearer {}", token.trim()));
        let mut value = value.map_err(|_| "the token holds characters that no header may")?;
        value.set_sensitive(true);
        Ok(Some(value))
    }

    fn tls(&self) -> Result<Arc<ClientConfig>, String> {
        let set = |path: &Option<PathBuf>| path.clone().filter(|path| !path.as_os_str().is_empty());
        let shown = set(&self.admin_cert).zip(set(&self.admin_key));
        let config = tls::https(set(&self.admin_ca), shown);
        config.map(Arc::new).map_err(|error| error.to_string())
    }
}
