//! Owns the `[[logins]]` of the configuration: the reading and showing of them.

use std::ops::Range;

use toml::de::{DeArray, DeTable, DeValue};

use super::{DatabaseName, Encrypted, LoginRule, Method, Network, Source};
use crate::config::error::Hint;
use crate::config::file::{raw, type_name};
use crate::config::value::{self, Raw};
use crate::config::{ConfigError, Origin, ValueProblem};
use crate::lease::rules::Pattern;

/// Every key of a rule, in the order in which it is shown.
const KEYS: [&str; 7] = [
    "listener", "database", "user", "address", "tls", "method", "map",
];
const METHODS: [Method; 7] = [
    Method::Scram,
    Method::Md5,
    Method::Password,
    Method::Cert,
    Method::Peer,
    Method::Trust,
    Method::Reject,
];
const ENCRYPTED: [&str; 3] = ["yes", "no", "any"];

/// What `logins` takes, in words.
pub(in crate::config) const ALLOWED: &str = "`[[logins]]` tables, see below";

/// What a key takes, in words.
fn allowed(key: &str) -> &'static str {
    match key {
        "listener" => "one of the addresses of `listen`",
        "database" => {
            "\"all\", \"sameuser\", \"replication\", a name or a pattern such as \"shop*\", or several"
        }
        "user" => "\"all\", a name or a pattern such as \"app*\", or several",
        "address" => {
            "\"unix\", \"localhost\", an address or a network such as \"10.0.0.0/8\", or several"
        }
        "tls" => "\"yes\", \"no\" or \"any\"",
        "map" => "{ \"name\" = \"user\" } or { \"name\" = [\"user\", \"other*\"] }",
        _ => "\"scram\", \"md5\", \"password\", \"cert\", \"peer\", \"trust\" or \"reject\"",
    }
}

/// Reads rules as an inline array, from a variable.
pub(in crate::config) fn from_variable(
    text: &str,
    variable: &str,
    errors: &mut Vec<ConfigError>,
) -> Raw {
    let origin = |_: Range<usize>| Origin::Variable(variable.to_owned());
    match DeValue::parse(text).map(toml::Spanned::into_inner) {
        Ok(DeValue::Array(tables)) => Raw::Logins(read(&tables, &origin, errors)),
        Ok(_) | Err(_) => Raw::Other("anything but an inline array of tables"),
    }
}

/// Reads the tables of `[[logins]]`; what is wrong goes to `errors`.
pub(in crate::config) fn read(
    tables: &DeArray<'_>,
    at: &dyn Fn(Range<usize>) -> Origin,
    errors: &mut Vec<ConfigError>,
) -> Vec<LoginRule> {
    let mut rules = Vec::new();
    for table in tables {
        let origin = at(table.span());
        match table.get_ref() {
            DeValue::Table(fields) => rules.extend(read_rule(fields, &origin, at, errors)),
            other => {
                let found = type_name(other);
                errors.push(wrong(
                    origin,
                    "logins",
                    ALLOWED,
                    ValueProblem::Type { found },
                ));
            }
        }
    }
    rules
}

fn wrong(origin: Origin, key: &str, allowed: &str, problem: ValueProblem) -> ConfigError {
    ConfigError::Value {
        origin,
        key: key.to_owned(),
        problem,
        allowed: allowed.to_owned(),
    }
}

fn read_rule(
    fields: &DeTable<'_>,
    whole: &Origin,
    at: &dyn Fn(Range<usize>) -> Origin,
    errors: &mut Vec<ConfigError>,
) -> Option<LoginRule> {
    let mut rule = LoginRule {
        listener: None,
        listen: None,
        databases: Vec::new(),
        users: Vec::new(),
        sources: Vec::new(),
        tls: None,
        // Nobody gets in by a rule that was never read to its end.
        method: Method::Reject,
        map: Default::default(),
    };
    for (field, value) in fields {
        let (name, origin) = (field.get_ref().as_ref(), at(field.span()));
        let full_name = format!("logins.{name}");
        if !KEYS.contains(&name) {
            errors.push(ConfigError::Unknown {
                origin,
                what: "key",
                name: full_name,
                hint: Hint::for_name(name, KEYS),
            });
        } else if let Err(problem) = set(&mut rule, name, value.get_ref()) {
            errors.push(wrong(origin, &full_name, allowed(name), problem));
        }
    }
    if fields.keys().any(|key| key.get_ref() == "method") {
        return Some(rule);
    }
    let missing = ValueProblem::Missing;
    errors.push(wrong(
        whole.clone(),
        "logins.method",
        allowed("method"),
        missing,
    ));
    None
}

fn set(rule: &mut LoginRule, key: &str, given: &DeValue<'_>) -> Result<(), ValueProblem> {
    let raw = raw(given);
    match key {
        "listener" => rule.listen = Some(value::address(raw.text()?.trim())?.to_string()),
        "database" => rule.databases = several(&raw, |name| Ok(database(name)))?,
        "user" => rule.users = several(&raw, |name| Ok(pattern(name)))?,
        "address" => rule.sources = several(&raw, sources)?.concat(),
        "tls" => {
            let choices = [Encrypted::Yes, Encrypted::No, Encrypted::Any];
            rule.tls = Some(choices[value::choice(&raw, &ENCRYPTED)?]);
        }
        "map" => rule.map = map(given)?,
        _ => rule.method = METHODS[value::choice(&raw, &METHODS.map(Method::word))?],
    }
    Ok(())
}

/// One or more: a list of none would be a rule about nobody, or about everybody.
fn several<T>(
    raw: &Raw,
    read: impl Fn(&str) -> Result<T, ValueProblem>,
) -> Result<Vec<T>, ValueProblem> {
    let list = raw.list()?;
    if list.is_empty() {
        return Err(ValueProblem::Several { count: 0 });
    }
    list.iter().map(|text| read(text)).collect()
}

fn pattern(name: &str) -> Pattern {
    Pattern(if name == "all" { "*" } else { name }.into())
}

fn database(name: &str) -> DatabaseName {
    match name {
        "sameuser" => DatabaseName::SameUser,
        "replication" => DatabaseName::Replication,
        name => DatabaseName::Named(pattern(name)),
    }
}

fn sources(text: &str) -> Result<Vec<Source>, ValueProblem> {
    let network = |text: &str| {
        let read = Network::read(text).map(Source::Network);
        let text = text.to_owned();
        read.ok_or(ValueProblem::NotANetwork { text })
    };
    match text {
        "unix" => Ok(vec![Source::Unix]),
        "localhost" => ["127.0.0.0/8", "::1/128"]
            .into_iter()
            .map(network)
            .collect(),
        text => Ok(vec![network(text)?]),
    }
}

fn map(
    given: &DeValue<'_>,
) -> Result<std::collections::BTreeMap<String, Vec<Pattern>>, ValueProblem> {
    let DeValue::Table(names) = given else {
        let found = type_name(given);
        return Err(ValueProblem::Type { found });
    };
    let users = |value: &DeValue<'_>| several(&raw(value), |name| Ok(pattern(name)));
    names
        .iter()
        .map(|(name, value)| Ok((name.get_ref().to_string(), users(value.get_ref())?)))
        .collect()
}

/// The rules as TOML.
pub(in crate::config) fn show(rules: &[LoginRule]) -> String {
    let texts = |list: Vec<String>| -> toml::Value { list.into() };
    let patterns = |list: &[Pattern]| texts(list.iter().map(|name| name.0.to_string()).collect());
    let mut text = String::new();
    for rule in rules {
        text.push_str("\n[[logins]]\n");
        let databases = rule.databases.iter().map(ToString::to_string).collect();
        let sources = rule.sources.iter().map(ToString::to_string).collect();
        let tls = rule.tls.map(|tls| ENCRYPTED[tls as usize].into());
        let map = rule
            .map
            .iter()
            .map(|(name, users)| (name.clone(), patterns(users)));
        let map: toml::Table = map.collect();
        let values = [
            rule.listen.clone().map(toml::Value::String),
            (!rule.databases.is_empty()).then(|| texts(databases)),
            (!rule.users.is_empty()).then(|| patterns(&rule.users)),
            (!rule.sources.is_empty()).then(|| texts(sources)),
            tls,
            Some(rule.method.word().into()),
            (!map.is_empty()).then_some(toml::Value::Table(map)),
        ];
        for (name, value) in KEYS.iter().zip(values) {
            if let Some(value) = value {
                text.push_str(&format!("{name} = {value}\n"));
            }
        }
    }
    text
}

impl std::fmt::Display for DatabaseName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::SameUser => "sameuser",
            Self::Replication => "replication",
            Self::Named(pattern) => &pattern.0,
        })
    }
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unix => f.write_str("unix"),
            Self::Network(network) => network.fmt(f),
        }
    }
}
