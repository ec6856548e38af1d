//! Owns the judgement on rules about logins: those that let in whom they shouldn't, and those that can never match.

use super::{Encrypted, LoginRule, Method, Source};
use crate::config::error::LoginConflict;
use crate::config::{Address, Config, Tls};

/// Finds the listeners that the rules name, and what can't be meant as it is written.
pub(in crate::config) fn unfit(config: &mut Config) -> Vec<LoginConflict> {
    let mut found = Vec::new();
    let mut rules = std::mem::take(&mut config.logins);
    for (number, rule) in (1..).zip(&mut rules) {
        let method = rule.method.word();
        let mut add = |why| {
            found.push(LoginConflict {
                number,
                method,
                why,
            })
        };
        if let Some(listen) = &rule.listen {
            let named = |address: &Address| address.to_string() == *listen;
            rule.listener = config.listen.iter().position(named);
            if rule.listener.is_none() {
                add("its `listener` isn't one of `listen`");
                continue;
            }
        }
        let scope = Scope::of(rule, config);
        for (is_so, why) in scope.mistakes() {
            if is_so {
                add(why);
            }
        }
    }
    config.logins = rules;
    found
}

/// Whom a rule can be about, with these listeners.
struct Scope<'a> {
    rule: &'a LoginRule,
    config: &'a Config,
    listeners: Vec<&'a Address>,
}

type Mistakes = Vec<(bool, &'static str)>;

impl<'a> Scope<'a> {
    fn of(rule: &'a LoginRule, config: &'a Config) -> Self {
        let listeners = match rule.listener {
            Some(place) => vec![&config.listen[place]],
            None => config.listen.iter().collect(),
        };
        Self {
            rule,
            config,
            listeners,
        }
    }

    /// Whether clients of other machines reach it.
    fn is_open(&self) -> bool {
        self.listeners.iter().any(|address| !address.is_local())
    }

    fn has_unix(&self) -> bool {
        let is_unix = |address: &&Address| matches!(address, Address::Unix(_));
        self.listeners.iter().any(is_unix)
    }

    fn has_tcp(&self) -> bool {
        let is_tcp = |address: &&Address| matches!(address, Address::Tcp(_));
        self.listeners.iter().any(is_tcp)
    }

    fn names_unix(&self) -> bool {
        self.rule.sources.contains(&Source::Unix)
    }

    /// Whether it says that clients are of this machine.
    fn stays_near(&self) -> bool {
        let is_near = |source: &Source| match source {
            Source::Unix => true,
            Source::Network(network) => network.is_loopback(),
        };
        !self.rule.sources.is_empty() && self.rule.sources.iter().all(is_near)
    }

    fn mistakes(&self) -> Mistakes {
        let rule = self.rule;
        let wants_tls = rule.tls == Some(Encrypted::Yes);
        let always_tls = matches!(self.config.tls, Tls::Require | Tls::Verify);
        let named = matches!(rule.method, Method::Cert | Method::Peer);
        let mut found = vec![
            (
                wants_tls && self.config.tls == Tls::Disable,
                "it never matches, as `tls` is \"disable\"",
            ),
            (
                wants_tls && self.names_unix(),
                "unix sockets are never encrypted; take \"unix\" out of `address`, or `tls` out",
            ),
            (
                rule.tls == Some(Encrypted::No) && always_tls && !self.names_unix(),
                "it never matches, as `tls` lets nobody in without encryption",
            ),
            (
                self.names_unix() && !self.has_unix(),
                "it never matches, as no such listener is a unix socket",
            ),
            (
                !rule.map.is_empty() && !named,
                "`map` is for \"cert\" and \"peer\" only",
            ),
        ];
        found.extend(match rule.method {
            Method::Trust => vec![(
                self.is_open() && rule.sources.is_empty(),
                "it would let anyone in from anywhere; name who with `address` (\"localhost\", \"unix\", \"10.1.0.0/16\")",
            )],
            Method::Password => vec![(
                self.is_open() && rule.tls.is_none() && !self.stays_near(),
                "passwords would cross the network in clear; say `tls = \"yes\"`, or `tls = \"any\"` if you mean it",
            )],
            Method::Cert => self.certificate_mistakes(),
            Method::Peer => self.peer_mistakes(),
            Method::Scram | Method::Md5 | Method::Reject => Vec::new(),
        });
        found
    }

    fn certificate_mistakes(&self) -> Mistakes {
        let (rule, config) = (self.rule, self.config);
        vec![
            (
                config.tls == Tls::Disable || config.tls_client_ca.is_none(),
                "it needs TLS with `tls_client_ca`, which signs clients' certificates",
            ),
            (
                matches!(rule.tls, Some(Encrypted::No | Encrypted::Any)),
                "there is no certificate without TLS; leave `tls` out, or say \"yes\"",
            ),
            (
                self.names_unix() || !self.has_tcp(),
                "unix sockets know no certificates",
            ),
        ]
    }

    fn peer_mistakes(&self) -> Mistakes {
        let is_network = |source: &Source| *source != Source::Unix;
        let names_network = self.rule.sources.iter().any(is_network);
        let wants_tls = self.rule.tls == Some(Encrypted::Yes);
        vec![(
            names_network || wants_tls || !self.has_unix(),
            "the system knows the user behind a unix socket only; have one in `listen`, and name no network",
        )]
    }
}
