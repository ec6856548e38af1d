//! Owns the reading of PGVALET_* variables: which keys they set, and which ones are somebody else's.

use std::collections::BTreeMap;

use super::error::Hint;
use super::file::{Setting, key_named, users_from_variable};
use super::value::Raw;
use super::{ConfigError, KEYS, Kind, Origin, Visibility, logins, rules};

/// Variables that aren't keys, but known: the file, the client commands, the demo and the app's glue read them.
const OTHERS: [&str; 4] = [
    "PGVALET_CONFIG",
    "PGVALET_ADMIN_URL",
    "PGVALET_ADMIN_TOKEN",
    "PGVALET_PG_BIN",
];

/// Reads the PGVALET_* variables among `vars`; what is wrong goes to `errors`. An empty one counts as not set.
pub(super) fn read(vars: &BTreeMap<String, String>, errors: &mut Vec<ConfigError>) -> Vec<Setting> {
    let mut settings = Vec::new();
    for (name, value) in vars {
        let Some(rest) = name.strip_prefix("PGVALET_") else {
            continue;
        };
        if value.is_empty() || OTHERS.contains(&name.as_str()) || is_elsewhere(rest, value) {
            continue;
        }
        let origin = Origin::Variable(name.clone());
        let known = rest.bytes().all(|byte| !byte.is_ascii_lowercase());
        match key_named(&rest.to_ascii_lowercase()).filter(|_| known) {
            Some(key) => {
                let raw = match key.kind {
                    Kind::Users => users_from_variable(value, name, errors),
                    Kind::Rules => rules::from_variable(value, name, errors),
                    Kind::Logins => logins::from_variable(value, name, errors),
                    _ => Raw::Text(value.clone()),
                };
                settings.push(Setting { key, raw, origin });
            }
            None => {
                let hint = hint(name);
                errors.push(ConfigError::Unknown {
                    origin,
                    what: "variable",
                    name: name.clone(),
                    hint,
                });
            }
        }
    }
    settings
}

/// Whether it belongs to the tests, to the app's glue, or is one that Kubernetes and Docker set for a service that is
/// called pgvalet (`PGVALET_SERVICE_HOST`, `PGVALET_PORT=tcp://...`, `PGVALET_ADMIN_PORT_6433_TCP_ADDR`).
fn is_elsewhere(rest: &str, value: &str) -> bool {
    let ours = rest.starts_with("TEST_") || rest.starts_with("GLUE_");
    let service = rest.ends_with("SERVICE_HOST") || rest.contains("SERVICE_PORT");
    let link = rest.ends_with("PORT") && value.contains("://");
    let port = rest.split_once("PORT_").is_some_and(|(_, port)| {
        port.starts_with(|c: char| c.is_ascii_digit())
            && ["_TCP", "_UDP", "_SCTP"]
                .iter()
                .any(|protocol| port.contains(protocol))
    });
    ours || service || link || port
}

fn hint(name: &str) -> Hint {
    let public = KEYS
        .iter()
        .filter(|key| key.visibility == Visibility::Public);
    let mut known: Vec<String> = public.map(super::Key::variable).collect();
    known.extend(OTHERS.map(str::to_owned));
    // Without the prefix that all share: it would make everything look near.
    let bare = |name: &str| name.strip_prefix("PGVALET_").unwrap_or(name).to_owned();
    let names: Vec<String> = known.iter().map(|name| bare(name)).collect();
    match Hint::for_name(&bare(name), names.iter().map(String::as_str)) {
        Hint::Nearest(near) => Hint::Nearest(format!("PGVALET_{near}")),
        Hint::All(_) => Hint::All(known),
    }
}
