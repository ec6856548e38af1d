//! Owns the reading of statements about our own settings (`pgvalet.owner`, `pgvalet.scope`, `pgvalet.pin`), and about our views (`pgvalet.session`,
//! `pgvalet.leases`, `pgvalet.leaks`).
//!
//! Refuses whatever is more than exactly one such statement, and any form that it doesn't know: PostgreSQL takes those
//! as custom settings, harmlessly.

pub(super) mod scan;
#[cfg(test)]
mod tests;

use scan::Scan;

/// The longest text that can be such a statement, in bytes.
pub const LONGEST: usize = 1024;

/// How much of a name that a client gives is kept, in characters.
const KEPT: usize = 400;

/// One statement about a virtual setting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Virtual {
    pub verb: Verb,
    pub meaning: Meaning,
}

/// How it was said: the answer's shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    Set,
    Reset,
    /// `SELECT set_config(…)`
    Call,
    Show,
}

/// What a statement says or asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Meaning {
    Change(Change),
    Show(Shown),
}

/// What the app says of its session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Who holds it; `None` says that it rests in the app's pool.
    Owner(Option<Box<str>>),
    /// The explicit scope that begins; `None` ends it.
    Scope(Option<Box<str>>),
    Pin(Switch),
}

/// Whether a session keeps its backend whatever happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Switch {
    On,
    Off,
}

/// What SHOW asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shown {
    Session,
    /// What the session's user holds.
    Leases,
    /// What of that is parked.
    Leaks,
    Owner,
    Scope,
    Pin,
}

/// The settings' names behind `pgvalet.`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Name {
    Session,
    Leases,
    Leaks,
    Owner,
    Scope,
    Pin,
}

/// A value as it was written.
enum Value {
    Text(String),
    /// `DEFAULT`, or RESET.
    Default,
}

/// Reads a text that is exactly one statement about a virtual setting; comments, white space and semicolons around it
/// don't matter.
#[must_use]
pub fn read(sql: &[u8]) -> Option<Virtual> {
    if sql.len() > LONGEST {
        return None;
    }
    let mut scan = Scan::new(sql);
    let found = statement(&mut scan)?;
    scan.ends().then_some(found)
}

/// What the statements of a text of several statements say, in their order; nothing for a single statement.
#[must_use]
pub fn within(sql: &[u8]) -> Vec<Change> {
    let pieces = scan::pieces(sql);
    if pieces.len() < 2 {
        return Vec::new();
    }
    let changes = pieces
        .into_iter()
        .filter_map(|piece| match read(piece)?.meaning {
            Meaning::Change(change) => Some(change),
            Meaning::Show(_) => None,
        });
    changes.collect()
}

/// The statement's name in a text that is exactly `DEALLOCATE [PREPARE] name`.
#[must_use]
pub fn deallocated(sql: &[u8]) -> Option<Box<[u8]>> {
    let mut scan = Scan::new(sql);
    if sql.len() > LONGEST || !scan.keyword(b"deallocate") {
        return None;
    }
    scan.keyword(b"prepare");
    let name = scan.identifier()?;
    let all = name == b"all";
    (scan.ends() && !all).then(|| name.into())
}

fn statement(scan: &mut Scan<'_>) -> Option<Virtual> {
    let (verb, meaning) = if scan.keyword(b"set") {
        scan.keyword(b"session");
        let name = name(scan)?;
        if !(scan.symbol(b'=') || scan.keyword(b"to")) {
            return None;
        }
        (Verb::Set, change(name, value(scan)?)?)
    } else if scan.keyword(b"reset") {
        (Verb::Reset, change(name(scan)?, Value::Default)?)
    } else if scan.keyword(b"show") {
        (Verb::Show, Meaning::Show(shown(name(scan)?)))
    } else if scan.keyword(b"select") {
        (Verb::Call, call(scan)?)
    } else {
        return None;
    };
    Some(Virtual { verb, meaning })
}

/// `set_config('pgvalet.owner', 'x', false)`, qualified or not.
fn call(scan: &mut Scan<'_>) -> Option<Meaning> {
    if scan.keyword(b"pg_catalog") && !scan.symbol(b'.') {
        return None;
    }
    if !(scan.keyword(b"set_config") && scan.symbol(b'(')) {
        return None;
    }
    let setting = scan.literal()?;
    let (class, own) = setting.split_once('.')?;
    let name = class
        .eq_ignore_ascii_case("pgvalet")
        .then(|| named(own.as_bytes()))??;
    if !scan.symbol(b',') {
        return None;
    }
    let value = Value::Text(scan.literal()?);
    let ends = scan.symbol(b',') && scan.keyword(b"false") && scan.symbol(b')');
    if ends { change(name, value) } else { None }
}

/// `pgvalet.owner`, each part quoted or not.
fn name(scan: &mut Scan<'_>) -> Option<Name> {
    let class = scan.identifier()?;
    if !class.eq_ignore_ascii_case(b"pgvalet") || !scan.symbol(b'.') {
        return None;
    }
    named(&scan.identifier()?)
}

fn named(name: &[u8]) -> Option<Name> {
    let known = [
        (&b"session"[..], Name::Session),
        (b"leases", Name::Leases),
        (b"leaks", Name::Leaks),
        (b"owner", Name::Owner),
        (b"scope", Name::Scope),
        (b"pin", Name::Pin),
    ];
    known
        .into_iter()
        .find(|(known, _)| known.eq_ignore_ascii_case(name))
        .map(|(_, name)| name)
}

fn value(scan: &mut Scan<'_>) -> Option<Value> {
    if let Some(text) = scan.literal().or_else(|| scan.number()) {
        return Some(Value::Text(text));
    }
    if scan.keyword(b"default") {
        return Some(Value::Default);
    }
    let name = scan.identifier()?;
    Some(Value::Text(String::from_utf8_lossy(&name).into_owned()))
}

fn change(name: Name, value: Value) -> Option<Meaning> {
    let text = match value {
        Value::Text(text) => Some(text).filter(|text| !text.trim().is_empty()),
        Value::Default => None,
    };
    let kept = |text: String| text.chars().take(KEPT).collect::<String>().into();
    Some(Meaning::Change(match name {
        Name::Session | Name::Leases | Name::Leaks => return None,
        Name::Owner => Change::Owner(text.map(kept)),
        Name::Scope => Change::Scope(text.map(kept)),
        Name::Pin => Change::Pin(text.map_or(Some(Switch::Off), |text| switch(&text))?),
    }))
}

fn switch(text: &str) -> Option<Switch> {
    let is = |words: [&str; 4]| words.iter().any(|word| word.eq_ignore_ascii_case(text));
    if is(["on", "true", "yes", "1"]) {
        Some(Switch::On)
    } else if is(["off", "false", "no", "0"]) {
        Some(Switch::Off)
    } else {
        None
    }
}

const fn shown(name: Name) -> Shown {
    match name {
        Name::Session => Shown::Session,
        Name::Leases => Shown::Leases,
        Name::Leaks => Shown::Leaks,
        Name::Owner => Shown::Owner,
        Name::Scope => Shown::Scope,
        Name::Pin => Shown::Pin,
    }
}
