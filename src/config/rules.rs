//! Owns the `[[rules]]` of the configuration: the table of their keys, and the reading and showing of them.

use std::ops::Range;
use std::time::Duration;

use toml::de::{DeArray, DeTable, DeValue};

use super::error::Hint;
use super::file::{raw, type_name};
use super::value::{self, Raw, Zero};
use super::{ConfigError, Origin, ValueProblem};
use crate::lease::reload::Method;
use crate::lease::rules::{IdleInTransaction, Implicit, Pattern, Rule};

/// What a key of a rule takes, and where it goes.
enum Kind {
    Name,
    Pattern(fn(&mut Rule) -> &mut Option<Pattern>),
    Duration(fn(&mut Rule) -> &mut Option<Duration>, Zero),
    Method,
    Count,
    Implicit,
    IdleInTransaction,
}

/// Every key of a rule.
const KEYS: [(&str, Kind); 11] = [
    ("name", Kind::Name),
    ("owner", Kind::Pattern(|rule| &mut rule.owner)),
    ("application", Kind::Pattern(|rule| &mut rule.application)),
    ("database", Kind::Pattern(|rule| &mut rule.database)),
    ("user", Kind::Pattern(|rule| &mut rule.user)),
    (
        "park_after",
        Kind::Duration(|rule| &mut rule.park_after, Zero::Refused),
    ),
    (
        "return_after",
        Kind::Duration(|rule| &mut rule.return_after, Zero::Off),
    ),
    ("return_method", Kind::Method),
    ("max_leases", Kind::Count),
    ("forbid_implicit", Kind::Implicit),
    ("idle_in_transaction", Kind::IdleInTransaction),
];

const METHODS: [&str; 2] = ["detach", "close"];
const IN_TRANSACTION: [&str; 2] = ["report", "close"];
const MOST: Duration = Duration::from_secs(365 * 24 * 3600);

/// What `rules` takes, in words.
pub(super) const ALLOWED: &str = "`[[rules]]` tables, see below";

impl Kind {
    fn allowed(&self) -> String {
        let words = match self {
            Self::Name => "a string",
            Self::Pattern(_) => "a name or a pattern such as \"import*\"",
            Self::Duration(_, Zero::Off) => {
                "a duration such as \"500ms\" or \"30s\"; \"0s\" for off"
            }
            Self::Duration(_, Zero::Refused) => "a duration such as \"500ms\" or \"30s\"",
            Self::Method => "\"detach\" or \"close\"",
            Self::Count => "a whole number from 0 to 100000",
            Self::Implicit => "true or false",
            Self::IdleInTransaction => "\"report\" or \"close\"",
        };
        words.to_owned()
    }

    fn set(&self, rule: &mut Rule, given: &DeValue<'_>) -> Result<(), ValueProblem> {
        let raw = raw(given);
        match self {
            Self::Name => rule.name = raw.text()?.into(),
            Self::Pattern(slot) => *slot(rule) = Some(Pattern(raw.text()?.into())),
            Self::Duration(slot, zero) => *slot(rule) = Some(value::duration(&raw, *zero, MOST)?),
            Self::Method => {
                let methods = [Method::Detach, Method::Close];
                rule.return_method = Some(methods[value::choice(&raw, &METHODS)?]);
            }
            Self::Count => rule.max_leases = Some(value::count(&raw, 0, 100_000)?),
            Self::Implicit => {
                let DeValue::Boolean(forbidden) = given else {
                    let found = type_name(given);
                    return Err(ValueProblem::Type { found });
                };
                rule.implicit = Some(if *forbidden {
                    Implicit::Forbidden
                } else {
                    Implicit::Allowed
                });
            }
            Self::IdleInTransaction => {
                let choices = [IdleInTransaction::Report, IdleInTransaction::Close];
                rule.idle_in_transaction = Some(choices[value::choice(&raw, &IN_TRANSACTION)?]);
            }
        }
        Ok(())
    }

    /// The value as TOML, where the rule sets it.
    fn get(&self, rule: &Rule) -> Option<toml::Value> {
        let rule = &mut rule.clone();
        let text = |text: &str| toml::Value::String(text.to_owned());
        match self {
            Self::Name => Some(text(&rule.name)),
            Self::Pattern(slot) => slot(rule).as_ref().map(|pattern| text(&pattern.0)),
            Self::Duration(slot, _) => {
                slot(rule).map(|span| text(&humantime::format_duration(span).to_string()))
            }
            Self::Method => rule.return_method.map(|method| text(method.word())),
            Self::Count => {
                let bound = rule.max_leases?;
                Some(toml::Value::Integer(
                    i64::try_from(bound).unwrap_or(i64::MAX),
                ))
            }
            Self::Implicit => {
                let forbidden = |implicit| implicit == Implicit::Forbidden;
                rule.implicit
                    .map(|implicit| toml::Value::Boolean(forbidden(implicit)))
            }
            Self::IdleInTransaction => rule.idle_in_transaction.map(|choice| {
                text(IN_TRANSACTION[usize::from(choice == IdleInTransaction::Close)])
            }),
        }
    }
}

/// Reads rules as an inline array, from a variable.
pub(super) fn from_variable(text: &str, variable: &str, errors: &mut Vec<ConfigError>) -> Raw {
    let origin = |_: Range<usize>| Origin::Variable(variable.to_owned());
    match DeValue::parse(text).map(toml::Spanned::into_inner) {
        Ok(DeValue::Array(tables)) => Raw::Rules(read(&tables, &origin, errors)),
        Ok(_) | Err(_) => Raw::Other("anything but an inline array of tables"),
    }
}

/// Reads the tables of `[[rules]]`; what is wrong goes to `errors`.
pub(super) fn read(
    tables: &DeArray<'_>,
    at: &dyn Fn(Range<usize>) -> Origin,
    errors: &mut Vec<ConfigError>,
) -> Vec<Rule> {
    let mut rules = Vec::new();
    for (number, table) in (1..).zip(tables.iter()) {
        match table.get_ref() {
            DeValue::Table(fields) => rules.push(read_rule(number, fields, at, errors)),
            other => errors.push(ConfigError::Value {
                origin: at(table.span()),
                key: "rules".to_owned(),
                problem: ValueProblem::Type {
                    found: type_name(other),
                },
                allowed: ALLOWED.to_owned(),
            }),
        }
    }
    rules
}

fn read_rule(
    number: usize,
    fields: &DeTable<'_>,
    at: &dyn Fn(Range<usize>) -> Origin,
    errors: &mut Vec<ConfigError>,
) -> Rule {
    let mut rule = Rule {
        name: format!("rule {number}").into(),
        ..Rule::default()
    };
    for (field, value) in fields {
        let (name, origin) = (field.get_ref().as_ref(), at(field.span()));
        let full_name = format!("rules.{name}");
        let Some((_, kind)) = KEYS.iter().find(|(known, _)| *known == name) else {
            errors.push(ConfigError::Unknown {
                origin,
                what: "key",
                name: full_name,
                hint: Hint::for_name(name, KEYS.iter().map(|(known, _)| *known)),
            });
            continue;
        };
        if let Err(problem) = kind.set(&mut rule, value.get_ref()) {
            errors.push(ConfigError::Value {
                origin,
                key: full_name,
                problem,
                allowed: kind.allowed(),
            });
        }
    }
    rule
}

/// The rules as TOML.
pub(super) fn show(rules: &[Rule]) -> String {
    let mut text = String::new();
    for rule in rules {
        text.push_str("\n[[rules]]\n");
        for (name, kind) in &KEYS {
            if let Some(value) = kind.get(rule) {
                text.push_str(&format!("{name} = {value}\n"));
            }
        }
    }
    text
}
