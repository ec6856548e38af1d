//! Owns SHOW CONFIG: pgvalet's own keys, and PgBouncer's names for those that it has, too.

use super::table::{Row, row};
use crate::config::{Address, Auth, Config, KEYS, Mode, Visibility};

/// Every key with its value and default, by name. Nothing changes while it runs.
pub(super) fn rows(config: &Config) -> Vec<Row> {
    let defaults = Config::for_upstream(config.upstream.clone());
    let mut rows: Vec<(String, String, String)> = Vec::new();
    for key in KEYS
        .iter()
        .filter(|key| key.visibility == Visibility::Public)
    {
        let (value, default) = (key.shown(config), key.shown(&defaults));
        rows.push((key.name.to_owned(), value, default));
    }
    let both = familiar(config).into_iter().zip(familiar(&defaults));
    for ((name, value), (_, default)) in both {
        if !rows.iter().any(|(known, ..)| known == name) {
            rows.push((name.to_owned(), value, default));
        }
    }
    rows.sort();
    let row = |(name, value, default): (String, String, String)| row![name, value, default, "no"];
    rows.into_iter().map(row).collect()
}

/// What PgBouncer calls by these names.
fn familiar(config: &Config) -> Vec<(&'static str, String)> {
    let seconds = |duration: std::time::Duration| duration.as_secs().to_string();
    let first = config.listen.first();
    let (host, port) = match first {
        Some(Address::Tcp(address)) => (address.ip().to_string(), address.port()),
        Some(Address::Unix(_)) | None => (String::new(), 0),
    };
    vec![
        ("listen_addr", host),
        ("listen_port", port.to_string()),
        ("max_client_conn", config.max_sessions.to_string()),
        ("default_pool_size", config.max_backends.to_string()),
        ("min_pool_size", "0".to_owned()),
        ("reserve_pool_size", "0".to_owned()),
        ("max_db_connections", "0".to_owned()),
        ("max_user_connections", "0".to_owned()),
        ("pool_mode", pool_mode(config).to_owned()),
        (
            "auth_type",
            match config.auth {
                Auth::Scram => "scram-sha-256",
                Auth::Trust => "trust",
            }
            .to_owned(),
        ),
        ("query_wait_timeout", seconds(config.acquire_timeout)),
        ("server_connect_timeout", seconds(config.connect_timeout)),
        ("server_lifetime", seconds(config.backend_lifetime)),
        ("server_idle_timeout", seconds(config.backend_idle_timeout)),
        ("client_login_timeout", seconds(config.login_timeout)),
    ]
}

/// The mode, which PgBouncer calls by the same words.
pub(super) fn pool_mode(config: &Config) -> &'static str {
    match config.mode {
        Mode::Session => "session",
        Mode::Transaction => "transaction",
    }
}
