//! Owns the door to the console: which databases are virtual, and who may enter them.
//!
//! Refuses to know what is said there: `ConsoleDesk` serves whoever was let in.

use std::pin::Pin;

use crate::config::Config;
use crate::net::Stream;
use crate::wire::reply::{ClientError, Fault};

/// The databases that PostgreSQL never sees.
pub(super) const VIRTUAL: [&str; 2] = ["pgvalet", "pgbouncer"];

/// What a guest may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rank {
    /// Look.
    Reader,
    /// Change things, too.
    Operator,
}

/// A client that was let in, and was told nothing yet but that its login is fine.
#[derive(Debug)]
pub struct Guest {
    pub stream: Stream,
    pub rank: Rank,
    pub user: String,
    pub application: String,
}

/// Serves guests of the console.
pub trait ConsoleDesk: std::fmt::Debug + Send + Sync {
    /// Serves one to its end.
    fn serve(&self, guest: Guest) -> Pin<Box<dyn Future<Output = ()>>>;
}

/// Whether this user needs no password: it came over a unix socket from pgvalet's own user, under the console's name.
pub(super) fn is_own(stream: &Stream, user: &str) -> bool {
    let Stream::Unix(socket) = stream else {
        return false;
    };
    let own = rustix::process::geteuid().as_raw();
    VIRTUAL.contains(&user)
        && socket
            .peer_credentials()
            .is_ok_and(|credentials| credentials.uid.as_raw() == own)
}

/// What a user may do on the console.
///
/// # Errors
/// Nothing: the client hears so, as from PgBouncer.
pub(super) fn rank(config: &Config, user: &str) -> Result<Rank, ClientError> {
    let access = &config.admin_access;
    let among = |names: &[String]| names.iter().any(|name| name == user || name == "*");
    let by_default = access.users.is_empty() && user == config.upstream.user;
    if by_default || among(&access.users) {
        Ok(Rank::Operator)
    } else if among(&access.stats_users) {
        Ok(Rank::Reader)
    } else {
        let text = format!("user \"{user}\" may not use the console");
        let error = ClientError::new(Fault::Client, "42501", text);
        Err(error.hint("`admin_users` and `stats_users` of pgvalet name who may."))
    }
}
