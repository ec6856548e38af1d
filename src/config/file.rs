//! Owns the reading of the TOML file: which keys it sets, and on which lines.
//!
//! Refuses to interpret values, and to quote a line: it may hold a password.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use secrecy::SecretString;
use toml::de::{DeTable, DeValue};

use super::error::Hint;
use super::keys::YEAR;
use super::value::{Raw, Zero};
use super::{
    ConfigError, KEYS, Key, Kind, Origin, SecretFile, UserConfig, ValueProblem, Visibility, logins,
    rules, value,
};

/// What a user takes, in words.
pub(super) const USER: &str = "`[users.NAME]` with `password = \"...\"` or `password_file = \"/...\"`, or `password_command = \"...\"`";

/// Its keys.
const OF_USER: [&str; 4] = [
    "password",
    "password_file",
    "password_command",
    "password_command_lifetime",
];

/// A key with its value and its place.
pub(super) struct Setting {
    pub(super) key: &'static Key,
    pub(super) raw: Raw,
    pub(super) origin: Origin,
}

/// The key called `name`.
pub(super) fn key_named(name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.name == name)
}

/// What to say about an unknown key.
pub(super) fn hint_for_key(name: &str) -> Hint {
    let public = KEYS
        .iter()
        .filter(|key| key.visibility == Visibility::Public);
    Hint::for_name(name, public.map(|key| key.name))
}

/// Reads the file at `path`; what is wrong goes to `errors`, the rest is returned.
pub(super) fn read(path: &Path, errors: &mut Vec<ConfigError>) -> Vec<Setting> {
    match std::fs::read_to_string(path) {
        Ok(text) => parse(path, &text, errors),
        Err(source) => {
            errors.push(ConfigError::Unreadable {
                path: path.to_owned(),
                source,
            });
            Vec::new()
        }
    }
}

fn parse(path: &Path, text: &str, errors: &mut Vec<ConfigError>) -> Vec<Setting> {
    let at = |span: Range<usize>| Origin::File {
        path: path.to_owned(),
        line: line(text, span.start),
    };
    let table = match DeTable::parse(text) {
        Ok(table) => table.into_inner(),
        Err(error) => {
            let line = error.span().map_or(1, |span| line(text, span.start));
            let message = error.message().to_owned();
            errors.push(ConfigError::Syntax {
                path: path.to_owned(),
                line,
                message,
            });
            return Vec::new();
        }
    };
    let mut settings = Vec::new();
    for (name, value) in &table {
        let origin = at(name.span());
        let Some(key) = key_named(name.get_ref()) else {
            let name = name.get_ref().to_string();
            let hint = hint_for_key(&name);
            errors.push(ConfigError::Unknown {
                origin,
                what: "key",
                name,
                hint,
            });
            continue;
        };
        let raw = match (&key.kind, value.get_ref()) {
            (Kind::Users, DeValue::Table(users)) => Raw::Users(read_users(users, &at, errors)),
            (Kind::Rules, DeValue::Array(tables)) => Raw::Rules(rules::read(tables, &at, errors)),
            (Kind::Logins, DeValue::Array(tables)) => {
                Raw::Logins(logins::read(tables, &at, errors))
            }
            (_, value) => raw(value),
        };
        settings.push(Setting { key, raw, origin });
    }
    settings
}

/// Reads users as an inline table, from a variable.
pub(super) fn users_from_variable(
    text: &str,
    variable: &str,
    errors: &mut Vec<ConfigError>,
) -> Raw {
    let origin = |_: Range<usize>| Origin::Variable(variable.to_owned());
    let parsed = DeValue::parse(text).map(toml::Spanned::into_inner);
    match parsed {
        Ok(DeValue::Table(users)) => Raw::Users(read_users(&users, &origin, errors)),
        Ok(_) | Err(_) => {
            errors.push(ConfigError::Value {
                origin: origin(0..0),
                key: "users".to_owned(),
                problem: ValueProblem::NotUsers,
                allowed: "{ NAME = { password = \"...\" }, ... }".to_owned(),
            });
            Raw::Users(BTreeMap::new())
        }
    }
}

/// `[users.NAME] password = "..."`.
fn read_users(
    users: &DeTable<'_>,
    at: &dyn Fn(Range<usize>) -> Origin,
    errors: &mut Vec<ConfigError>,
) -> BTreeMap<String, UserConfig> {
    let mut known = BTreeMap::new();
    for (name, value) in users {
        let user = name.get_ref().to_string();
        match value.get_ref() {
            DeValue::Table(fields) => {
                let config = read_user(&user, fields, at, errors);
                known.insert(user, config);
            }
            other => errors.push(wrong_user(at(name.span()), format!("users.{user}"), other)),
        }
    }
    known
}

fn read_user(
    user: &str,
    fields: &DeTable<'_>,
    at: &dyn Fn(Range<usize>) -> Origin,
    errors: &mut Vec<ConfigError>,
) -> UserConfig {
    let mut config = UserConfig::default();
    for (field, value) in fields {
        let (name, origin) = (field.get_ref().as_ref(), at(field.span()));
        let full_name = format!("users.{user}.{name}");
        match (name, value.get_ref()) {
            ("password", DeValue::String(text)) => {
                config.password = Some(SecretString::from(text.to_string()));
            }
            ("password_file", DeValue::String(text)) => match secret_file(text) {
                Ok(file) => config.password_file = Some(file),
                Err(problem) => {
                    let allowed = "the absolute path of a file that holds the secret";
                    errors.push(wrong_value(origin, full_name, problem, allowed));
                }
            },
            ("password_command", DeValue::String(text)) => {
                let command = Some(text.trim().to_owned());
                config.password_command = command.filter(|text| !text.is_empty());
            }
            ("password_command_lifetime", value) => {
                match value::duration(&raw(value), Zero::Refused, YEAR) {
                    Ok(lifetime) => config.password_command_lifetime = Some(lifetime),
                    Err(problem) => {
                        let allowed = "a duration such as \"15m\"";
                        errors.push(wrong_value(origin, full_name, problem, allowed));
                    }
                }
            }
            (known, other) if OF_USER.contains(&known) => {
                errors.push(wrong_user(origin, full_name, other));
            }
            (other, _) => {
                let hint = Hint::for_name(other, OF_USER);
                errors.push(ConfigError::Unknown {
                    origin,
                    what: "key",
                    name: full_name,
                    hint,
                });
            }
        }
    }
    if config.password.is_some() && config.password_file.is_some() {
        let origin = fields.keys().next().map(|field| at(field.span()));
        errors.push(ConfigError::Value {
            origin: origin.unwrap_or(Origin::Default),
            key: format!("users.{user}.password"),
            problem: ValueProblem::Both {
                other: "password_file",
            },
            allowed: "one of them".to_owned(),
        });
    }
    config
}

fn secret_file(text: &str) -> Result<SecretFile, ValueProblem> {
    let path = value::path(text)?;
    SecretFile::open(&path).map_err(|error| ValueProblem::Unreadable {
        path,
        why: error.to_string(),
    })
}

fn wrong_user(origin: Origin, key: String, value: &DeValue<'_>) -> ConfigError {
    let problem = ValueProblem::Type {
        found: type_name(value),
    };
    wrong_value(origin, key, problem, USER)
}

fn wrong_value(origin: Origin, key: String, problem: ValueProblem, allowed: &str) -> ConfigError {
    ConfigError::Value {
        origin,
        key,
        problem,
        allowed: allowed.to_owned(),
    }
}

pub(super) fn type_name(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "a number",
        DeValue::Float(_) => "a fraction",
        DeValue::Boolean(_) => "a boolean",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "an array",
        DeValue::Table(_) => "a table",
    }
}

pub(super) fn raw(value: &DeValue<'_>) -> Raw {
    match value {
        DeValue::String(text) => Raw::Text(text.to_string()),
        DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
            .map_or(Raw::Other("a number of that size"), Raw::Integer),
        DeValue::Array(items) => {
            let texts = items
                .iter()
                .map(|item| item.get_ref().as_str().map(str::to_owned));
            texts.collect::<Option<Vec<_>>>().map_or(
                Raw::Other("an array of other things than strings"),
                Raw::List,
            )
        }
        DeValue::Float(_) | DeValue::Boolean(_) | DeValue::Datetime(_) | DeValue::Table(_) => {
            Raw::Other(type_name(value))
        }
    }
}

/// The line of `offset`, from 1.
fn line(text: &str, offset: usize) -> usize {
    1 + text
        .bytes()
        .take(offset)
        .filter(|byte| *byte == b'\n')
        .count()
}
