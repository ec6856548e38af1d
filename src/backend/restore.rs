//! Owns the restoring of a session's state on another backend, and the proof that nothing is missing.

use std::collections::BTreeSet;

use crate::backend::capture::{self, Found, Reach, write_statement, write_statement_with};
use crate::backend::state::SqlPrepared;
use crate::backend::{Answers, Backend, Lost, State};
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

/// Restores a session on a clean backend, in one round trip, and verifies by the same probe that found the state. Gives what
/// SQL prepared and PostgreSQL refuses by now: a table may be gone. Without a proxy, such a statement fails when it is run.
///
/// Not cancel safe: a restore that is broken off loses the backend.
///
/// # Errors
/// The backend must be thrown away, and the session with it: it is never continued on a guess.
pub async fn restore(
    backend: &mut Backend,
    wanted: &Wanted<'_>,
) -> Result<Vec<SqlPrepared>, NotRestored> {
    let answers = attempt(backend, wanted).await?;
    if answers.error.is_none() || wanted.state.prepared.is_empty() {
        verify(answers, wanted)?;
        return Ok(Vec::new());
    }
    capture::abort(backend).await?;
    let mut state = wanted.state.clone();
    let mut lost = Vec::new();
    for prepared in std::mem::take(&mut state.prepared) {
        state.prepared = vec![prepared.clone()];
        if is_refused(backend, &state).await? {
            lost.push(prepared);
        }
    }
    state.prepared = wanted.state.prepared.clone();
    state.prepared.retain(|prepared| !lost.contains(prepared));
    let wanted = Wanted {
        state: &state,
        ..*wanted
    };
    verify(attempt(backend, &wanted).await?, &wanted)?;
    Ok(lost)
}

/// Restores everything, or nothing, and asks what there is now.
async fn attempt(backend: &mut Backend, wanted: &Wanted<'_>) -> Result<Answers, Lost> {
    let mut request = Vec::new();
    write_restore(&mut request, wanted.state, &["COMMIT"]);
    capture::write_probe(&mut request, wanted.custom, Reach::Whole, backend.version());
    backend.exchange(&request, 2).await
}

/// Whether PostgreSQL finds fault with the one statement that SQL prepared in this state. Nothing stays of the attempt.
async fn is_refused(backend: &mut Backend, state: &State) -> Result<bool, Lost> {
    let mut request = Vec::new();
    write_restore(&mut request, state, &["DEALLOCATE ALL", "ROLLBACK"]);
    let answers = backend.exchange(&request, 1).await?;
    let Some(error) = answers.error else {
        return Ok(false);
    };
    capture::abort(backend).await?;
    // Names and rights, a schema, a literal, what isn't supported: not what passes.
    let lasting = ["42", "3F", "22", "0A"];
    Ok(lasting.iter().any(|class| error.code.starts_with(class)))
}

/// Appends one transaction. It is not hurried by the session's own `statement_timeout`, and reads values as UTF-8.
fn write_restore(out: &mut Vec<u8>, state: &State, end: &[&str]) {
    const SET: &str = "SELECT pg_catalog.set_config($1, $2, false)";
    for text in [capture::BEGIN, capture::UNHURRIED, capture::IN_UTF8] {
        write_statement(out, text, None);
    }
    let late = |name: &str| {
        matches!(
            name,
            "statement_timeout" | "transaction_timeout" | "client_encoding"
        )
    };
    let (last, first): (Vec<_>, Vec<_>) = state
        .settings
        .iter()
        .chain(&state.custom)
        .partition(|(name, _)| late(name));
    for (name, value) in first {
        write_statement_with(out, SET, &[Some(name), Some(value)]);
    }
    if let Some(role) = &state.role {
        write_statement_with(out, SET, &[Some("role"), Some(role)]);
    }
    write_prepared(out, state);
    for (name, value) in last {
        write_statement_with(out, SET, &[Some(name), Some(value)]);
    }
    for text in end {
        write_statement(out, text, None);
    }
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

fn verify(mut answers: Answers, wanted: &Wanted<'_>) -> Result<(), NotRestored> {
    if let Some(error) = answers.error {
        return Err(NotRestored::Refused(error.message));
    }
    // What `set_config` answers has one column.
    answers.rows.retain(|row| row.len() > 1);
    compare(&capture::found(answers, wanted.login)?, wanted)
}

fn compare(found: &Found, wanted: &Wanted<'_>) -> Result<(), NotRestored> {
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
