//! Owns the effective configuration as TOML, with secrets as `***`.

use std::net::Ipv6Addr;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use super::upstream::{TARGETS, word};
use super::{
    Balance, Config, KEYS, Key, Kind, Loaded, Place, RootSource, SslMode, Target, Upstream,
    UpstreamHost, Visibility,
};

/// What stands for a secret.
pub(super) const HIDDEN: &str = "***";
/// Encoded in a piece of a URL: all but the unreserved characters of RFC 3986.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

impl Config {
    /// The values in effect as TOML. Passwords are `***`.
    pub fn effective_toml(&self) -> String {
        self.toml_with(|_| None)
    }

    fn toml_with(&self, note: impl Fn(&Key) -> Option<String>) -> String {
        let mut text = String::new();
        for key in KEYS {
            let value = match key.kind {
                Kind::Upstream => Some(toml::Value::String(self.upstream.to_string())),
                _ => key.kind.get(self),
            };
            let (Some(value), true) = (value, self.is_shown(key)) else {
                continue;
            };
            let note = note(key)
                .map(|note| format!("  # {note}"))
                .unwrap_or_default();
            text.push_str(&format!("{} = {value}{note}\n", key.name));
        }
        for (name, user) in &self.users {
            text.push_str(&format!("\n[users.{}]\n", toml_key(name)));
            if user.password.is_some() {
                text.push_str(&format!("password = \"{HIDDEN}\"\n"));
            }
            if let Some(file) = &user.password_file {
                let path = toml::Value::String(file.path().to_string_lossy().into_owned());
                text.push_str(&format!("password_file = {path}\n"));
            }
            if let Some(command) = &user.password_command {
                let command = toml::Value::String(command.clone());
                text.push_str(&format!("password_command = {command}\n"));
            }
            if let Some(lifetime) = user.password_command_lifetime {
                let lifetime = humantime::format_duration(lifetime);
                text.push_str(&format!("password_command_lifetime = \"{lifetime}\"\n"));
            }
        }
        text.push_str(&super::logins::show(&self.logins));
        text.push_str(&super::rules::show(&self.rules));
        text
    }

    /// A hidden key shows only where somebody has set it.
    fn is_shown(&self, key: &Key) -> bool {
        match key.visibility {
            // Beside rules about logins it would say nothing, and isn't allowed.
            Visibility::Public => key.name != "auth" || self.logins.is_empty(),
            Visibility::Hidden => {
                key.kind.get(self) != key.kind.get(&Self::for_upstream(self.upstream.clone()))
            }
        }
    }
}

impl Loaded {
    /// The values in effect as TOML, each with where it comes from. Passwords are `***`.
    pub fn effective_toml(&self) -> String {
        self.config
            .toml_with(|key| self.origins.get(key.name).map(ToString::to_string))
    }
}

/// A name as a TOML key: bare where it can be.
fn toml_key(name: &str) -> String {
    let bare = !name.is_empty()
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'));
    if bare {
        name.to_owned()
    } else {
        toml::Value::String(name.to_owned()).to_string()
    }
}

/// The URL, with the password as `***`.
impl std::fmt::Display for Upstream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let encode = |text: &str| utf8_percent_encode(text, RESERVED).to_string();
        let password = if self.password.is_some() {
            format!(":{HIDDEN}")
        } else {
            String::new()
        };
        let place = |place: &Place| match &place.host {
            UpstreamHost::Tcp(host) if host.parse::<Ipv6Addr>().is_ok() => {
                format!("[{host}]:{}", place.port)
            }
            UpstreamHost::Tcp(host) => format!("{}:{}", encode(host), place.port),
            UpstreamHost::Unix(path) => {
                format!("{}:{}", encode(&path.to_string_lossy()), place.port)
            }
        };
        let places: Vec<String> = self.places.iter().map(place).collect();
        write!(
            f,
            "postgres://{}{password}@{}/{}",
            encode(&self.user),
            places.join(","),
            encode(&self.database)
        )?;
        let parameters = parameters(self);
        for (index, (name, value)) in parameters.iter().enumerate() {
            let delimiter = if index == 0 { '?' } else { '&' };
            write!(f, "{delimiter}{name}={}", encode(value))?;
        }
        Ok(())
    }
}

/// What a URL must say to get this, besides defaults.
fn parameters(upstream: &Upstream) -> Vec<(&'static str, String)> {
    let tls = &upstream.tls;
    let target = TARGETS
        .iter()
        .find(|(_, target)| *target == upstream.target);
    let target = target.filter(|_| upstream.target != Target::default());
    let file = |path: &std::path::PathBuf| path.to_string_lossy().into_owned();
    let mode = (tls.mode != SslMode::default()).then(|| word(tls.mode).to_owned());
    let root = tls.root.as_ref().map(|root| match root {
        RootSource::System => "system".to_owned(),
        RootSource::File(path) => file(path),
    });
    [
        ("sslmode", mode),
        ("sslrootcert", root),
        ("sslcert", tls.cert.as_ref().map(file)),
        ("sslkey", tls.key.as_ref().map(file)),
        (
            "target_session_attrs",
            target.map(|(word, _)| (*word).to_owned()),
        ),
        (
            "load_balance_hosts",
            (upstream.balance == Balance::Random).then(|| "random".to_owned()),
        ),
    ]
    .into_iter()
    .filter_map(|(name, value)| Some((name, value?)))
    .collect()
}
