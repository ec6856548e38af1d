//! Owns the restoring of a session's state on another backend, and the proof that nothing is missing.

use std::collections::BTreeSet;

use crate::backend::capture::{self, Found, write_statement, write_statement_with};
use crate::backend::{Backend, Lost, State};
use crate::wire::extended::write_frame;

/// What a session wants to find on its backend.
#[derive(Debug)]
pub struct Wanted<'a> {
    pub state: &'a State,
    /// The names of its custom settings.
    pub custom: &'a BTreeSet<String>,
    /// The user that pgvalet logged in as.
    pub login: &'a str,
}

/// Why a session can't go on, on this backend.
#[derive(Debug, thiserror::Error)]
pub enum NotRestored {
    #[error(transparent)]
    Lost(#[from] Lost),
    #[error("PostgreSQL refused to restore the session's state: {0}")]
    Refused(String),
    #[error("the session's state came back different: {0}")]
    Different(String),
}

/// Restores a session on a clean backend, in one round trip, and verifies by the same probe that found the state.
///
/// Not cancel safe: a restore that is broken off loses the backend.
///
/// # Errors
/// The backend must be thrown away, and the session with it: it is never continued on a guess.
pub async fn restore(backend: &mut Backend, wanted: &Wanted<'_>) -> Result<(), NotRestored> {
    let mut request = Vec::new();
    write_restore(&mut request, wanted);
    capture::write_probe(&mut request, wanted.custom, backend.version());
    let mut answers = backend.exchange(&request, 2).await?;
    if let Some(error) = answers.error {
        return Err(NotRestored::Refused(error.message));
    }
    // What `set_config` answers has one column.
    answers.rows.retain(|row| row.len() > 1);
    verify(&capture::found(answers, wanted.login)?, wanted)
}

/// Appends one transaction. It is not hurried by the session's own `statement_timeout`, and reads values as UTF-8.
fn write_restore(out: &mut Vec<u8>, wanted: &Wanted<'_>) {
    const SET: &str = "SELECT pg_catalog.set_config($1, $2, false)";
    for text in [
        "BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY NOT DEFERRABLE",
        "SET LOCAL statement_timeout = 0",
        "SET LOCAL client_encoding = 'UTF8'",
    ] {
        write_statement(out, text, None);
    }
    let late = |name: &str| {
        matches!(
            name,
            "statement_timeout" | "transaction_timeout" | "client_encoding"
        )
    };
    let (last, first): (Vec<_>, Vec<_>) = wanted
        .state
        .settings
        .iter()
        .chain(&wanted.state.custom)
        .partition(|(name, _)| late(name));
    for (name, value) in first {
        write_statement_with(out, SET, &[Some(name), Some(value)]);
    }
    if let Some(role) = &wanted.state.role {
        write_statement_with(out, SET, &[Some("role"), Some(role)]);
    }
    write_prepared(out, wanted.state);
    for (name, value) in last {
        write_statement_with(out, SET, &[Some(name), Some(value)]);
    }
    write_statement(out, "COMMIT", None);
    write_frame(out, b'S', b"");
}

/// What SQL prepared is prepared again where its names mean what they meant.
fn write_prepared(out: &mut Vec<u8>, state: &State) {
    const LOCAL: &str = "SELECT pg_catalog.set_config($1, $2, true)";
    let mut scene = state.scene();
    for prepared in &state.prepared {
        let under = &prepared.under;
        if scene.search_path != under.search_path {
            match &under.search_path {
                None => write_statement(out, "SET LOCAL search_path TO DEFAULT", None),
                Some(path) => write_statement_with(out, LOCAL, &[Some("search_path"), Some(path)]),
            }
        }
        if scene.role != under.role {
            let role = under.role.as_deref().unwrap_or("none");
            write_statement_with(out, LOCAL, &[Some("role"), Some(role)]);
        }
        scene.clone_from(under);
        write_statement(out, &prepared.text, None);
    }
    if scene.role != state.role {
        let role = state.role.as_deref().unwrap_or("none");
        write_statement_with(out, LOCAL, &[Some("role"), Some(role)]);
    }
}

fn verify(found: &Found, wanted: &Wanted<'_>) -> Result<(), NotRestored> {
    let different = |what: &str| Err(NotRestored::Different(what.to_owned()));
    if !found.pins.is_empty() {
        return different(&found.pins.words());
    }
    if !found.channels.is_empty() {
        return different("channels");
    }
    if found.state.role != wanted.state.role {
        return different("role");
    }
    let pairs = || found.state.prepared.iter().zip(&wanted.state.prepared);
    if found.state.prepared.len() != wanted.state.prepared.len()
        || !pairs().all(|(found, wanted)| found.looks_like(wanted))
    {
        return different("what SQL prepared");
    }
    let strange = |ours: &[(String, String)], theirs: &[(String, String)]| {
        let missing = ours.iter().find(|pair| !theirs.contains(pair));
        missing
            .or_else(|| theirs.iter().find(|pair| !ours.contains(pair)))
            .map(|(name, _)| name.clone())
    };
    if let Some(name) = strange(&wanted.state.settings, &found.state.settings) {
        return different(&name);
    }
    // A setting that another session of this backend once made reads as empty, not as unknown, for good.
    let asked = |name: &String| wanted.state.custom.iter().any(|(wanted, _)| wanted == name);
    let custom = found
        .state
        .custom
        .iter()
        .filter(|(name, value)| !value.is_empty() || asked(name));
    let custom: Vec<_> = custom.cloned().collect();
    if let Some(name) = strange(&wanted.state.custom, &custom) {
        return different(&name);
    }
    Ok(())
}
