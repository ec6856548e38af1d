//! Owns the ordered rules of who may log in how (`[[logins]]`): pg_hba.conf's meaning, the first match decides.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::lease::rules::Pattern;

mod fit;
mod read;

pub(super) use fit::unfit;
pub(super) use read::{ALLOWED, from_variable, read, show};

/// One rule. What it doesn't name, it doesn't care about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoginRule {
    /// The place in `listen` of the listener that it is about.
    pub listener: Option<usize>,
    /// The listener as it was written.
    listen: Option<String>,
    pub databases: Vec<DatabaseName>,
    pub users: Vec<Pattern>,
    pub sources: Vec<Source>,
    /// As it was written; what follows from the method isn't.
    pub tls: Option<Encrypted>,
    pub method: Method,
    /// Which users a certificate's or process's name may log in as; without it, the one of its own name.
    pub map: BTreeMap<String, Vec<Pattern>>,
}

/// What a rule says of databases.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DatabaseName {
    /// The one called like the user.
    SameUser,
    /// Connections for physical replication, which name none.
    Replication,
    Named(Pattern),
}

/// Where a client comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    Unix,
    Network(Network),
}

/// The addresses that begin with the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    bits: u8,
}

/// What a rule says of encryption.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encrypted {
    Yes,
    No,
    Any,
}

/// How a client proves who it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    Scram,
    Md5,
    /// The password in clear.
    Password,
    /// A certificate that `tls_client_ca` has signed, with the user's name.
    Cert,
    /// The operating system's word on the process behind a unix socket.
    Peer,
    Trust,
    Reject,
}

/// Who knocks, and where.
#[derive(Clone, Copy, Debug)]
pub struct Knock<'a> {
    /// The place in `listen` of the listener that took the connection.
    pub listener: usize,
    pub database: &'a str,
    pub user: &'a str,
    /// `None` for a unix socket.
    pub address: Option<IpAddr>,
    pub encrypted: bool,
    /// Whether it wants physical replication, and so no database.
    pub replication: bool,
}

impl Method {
    /// The word in the configuration.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Scram => "scram",
            Self::Md5 => "md5",
            Self::Password => "password",
            Self::Cert => "cert",
            Self::Peer => "peer",
            Self::Trust => "trust",
            Self::Reject => "reject",
        }
    }
}

impl LoginRule {
    /// Whether it is this rule that decides, unless an earlier one does.
    #[must_use]
    pub fn covers(&self, knock: &Knock<'_>) -> bool {
        self.listener.is_none_or(|place| place == knock.listener)
            && self.covers_source(knock)
            && self.covers_database(knock)
            && (self.users.is_empty() || self.users.iter().any(|name| name.matches(knock.user)))
    }

    fn covers_source(&self, knock: &Knock<'_>) -> bool {
        let from = match knock.address.map(|address| address.to_canonical()) {
            // A rule about encryption is one about TCP, unless it names unix sockets.
            None => {
                self.sources.contains(&Source::Unix)
                    || (self.sources.is_empty() && self.demanded() == Encrypted::Any)
            }
            Some(address) => {
                let within = |source: &Source| match source {
                    Source::Unix => false,
                    Source::Network(network) => network.holds(address),
                };
                self.method != Method::Peer
                    && (self.sources.is_empty() || self.sources.iter().any(within))
            }
        };
        let encrypted = match self.demanded() {
            Encrypted::Yes => knock.encrypted,
            Encrypted::No => !knock.encrypted,
            Encrypted::Any => true,
        };
        from && encrypted
    }

    /// What it says of encryption, and what follows from its method.
    fn demanded(&self) -> Encrypted {
        match (self.tls, self.method) {
            (Some(tls), _) => tls,
            (None, Method::Cert) => Encrypted::Yes,
            (
                None,
                Method::Scram
                | Method::Md5
                | Method::Password
                | Method::Peer
                | Method::Trust
                | Method::Reject,
            ) => Encrypted::Any,
        }
    }

    fn covers_database(&self, knock: &Knock<'_>) -> bool {
        let covers = |name: &DatabaseName| match name {
            DatabaseName::SameUser => !knock.replication && knock.database == knock.user,
            DatabaseName::Replication => knock.replication,
            DatabaseName::Named(pattern) => !knock.replication && pattern.matches(knock.database),
        };
        match self.databases.as_slice() {
            // As with `all`, which is not about replication either.
            [] => !knock.replication,
            names => names.iter().any(covers),
        }
    }

    /// Whether who bears `name` may log in as `user`.
    #[must_use]
    pub fn lets(&self, name: &str, user: &str) -> bool {
        if self.map.is_empty() {
            return name == user;
        }
        let users = self.map.get(name);
        users.is_some_and(|users| users.iter().any(|pattern| pattern.matches(user)))
    }
}

impl Network {
    /// Reads `10.0.0.0/8`, `::1/128`, or an address alone.
    #[must_use]
    pub fn read(text: &str) -> Option<Self> {
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().ok()?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let bits = match bits {
            Some(bits) => bits.parse().ok().filter(|bits| *bits <= most)?,
            None => most,
        };
        Some(Self { address, bits })
    }

    /// Whether an address is within.
    #[must_use]
    pub fn holds(&self, address: IpAddr) -> bool {
        let same = |one: u128, other: u128, width: u8| {
            let rest = u32::from(width - self.bits);
            one.checked_shr(rest) == other.checked_shr(rest)
        };
        match (self.address, address) {
            (IpAddr::V4(one), IpAddr::V4(other)) => {
                same(one.to_bits().into(), other.to_bits().into(), 32)
            }
            (IpAddr::V6(one), IpAddr::V6(other)) => same(one.to_bits(), other.to_bits(), 128),
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
        }
    }

    /// Whether only this machine has such addresses.
    fn is_loopback(&self) -> bool {
        let least = if self.address.is_ipv4() { 8 } else { 128 };
        self.address.is_loopback() && self.bits >= least
    }
}

impl std::fmt::Display for Network {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.address, self.bits)
    }
}

#[cfg(test)]
mod tests;
