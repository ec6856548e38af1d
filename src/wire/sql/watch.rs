//! Owns what to watch for in passing SQL: state that the probe can't see afterwards.

use crate::lease::{Pin, Pins};
#[cfg(doc)]
use crate::wire::sql::Words;

/// What a text may leave behind that PostgreSQL can't be asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Watch {
    /// Pins for the rest of the session.
    pub pins: Pins,
    /// Names of custom settings that the text mentions.
    pub settings: Vec<String>,
}

/// Looks through a text that mentions something of interest ([`Words::state`]). Allocates only where it finds something.
///
/// It errs on the side of finding: a word inside a comment or a literal counts.
#[must_use]
pub fn watch(sql: &[u8]) -> Option<Watch> {
    let mut found = Watch::default();
    let mut any = false;
    let mut rest = sql;
    // Every word of interest has an `s` or an `l` first; few texts have many.
    while let Some(at) = rest
        .iter()
        .position(|byte| matches!(byte | 0x20, b's' | b'l' | b'r'))
    {
        let fresh =
            at == 0 && rest.len() == sql.len() || !is_word(sql[sql.len() - rest.len() + at - 1]);
        rest = &rest[at..];
        if fresh {
            let word = &rest[..rest
                .iter()
                .position(|byte| !is_word(*byte))
                .unwrap_or(rest.len())];
            let before = sql[..sql.len() - rest.len()].last().copied();
            any |= look(before, word, &rest[word.len()..], &mut found);
        }
        rest = &rest[1..];
    }
    any.then_some(found)
}

fn look(before: Option<u8>, word: &[u8], after: &[u8], found: &mut Watch) -> bool {
    let is = |name: &[u8]| word.eq_ignore_ascii_case(name);
    let next = after.trim_ascii_start().first().copied();
    if is(b"setseed") && next == Some(b'(') {
        found.pins.add(Pin::Setseed);
        true
    } else if is(b"load") && next == Some(b'\'') && before != Some(b'\'') {
        found.pins.add(Pin::Load);
        true
    } else if is(b"set") || is(b"reset") || is(b"session") || is(b"local") {
        found.settings.extend(dotted(after.trim_ascii_start()));
        true
    } else if is(b"set_config") {
        set_config(after, found);
        true
    } else {
        false
    }
}

/// `app.tenant` at the start of `text`, quoted or not.
fn dotted(text: &[u8]) -> Option<String> {
    let end = text
        .iter()
        .position(|byte| !(is_word(*byte) || matches!(byte, b'.' | b'"')))
        .unwrap_or(text.len());
    let name = std::str::from_utf8(&text[..end]).ok()?.replace('"', "");
    name.contains('.').then(|| name.to_ascii_lowercase())
}

/// `set_config('app.tenant', …)`: a name that isn't a literal can't be read.
fn set_config(after: &[u8], found: &mut Watch) {
    let argument = after
        .trim_ascii_start()
        .strip_prefix(b"(")
        .map(<[u8]>::trim_ascii_start);
    let literal = argument.and_then(|text| text.strip_prefix(b"'"));
    let name = literal.and_then(|text| {
        let end = memchr::memchr(b'\'', text)?;
        let alone = text[end + 1..].trim_ascii_start().starts_with(b",");
        alone.then(|| &text[..end])
    });
    match name.and_then(|name| std::str::from_utf8(name).ok()) {
        Some(name) if name.contains('.') => found.settings.push(name.to_ascii_lowercase()),
        Some(_) => {}
        None => found.pins.add(Pin::UnreadableSetting),
    }
}

const fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte >= 0x80
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn settings(sql: &str) -> Vec<String> {
        watch(sql.as_bytes()).unwrap_or_default().settings
    }

    fn pins(sql: &str) -> Pins {
        watch(sql.as_bytes()).unwrap_or_default().pins
    }

    #[test]
    fn names_of_custom_settings_are_harvested() {
        assert_eq!(settings("SET app.tenant = '7'"), ["app.tenant"]);
        assert_eq!(
            settings("set session \"app\".\"Tenant\" to 7"),
            ["app.tenant"]
        );
        assert_eq!(
            settings("SET LOCAL app.tenant = 7; RESET my.x"),
            ["app.tenant", "my.x"]
        );
        assert_eq!(
            settings("SELECT set_config('app.user', $1, false)"),
            ["app.user"]
        );
        assert!(settings("UPDATE t SET app = 7").is_empty());
    }

    #[test]
    fn what_the_probe_can_not_see_pins() {
        assert_eq!(
            pins("select setseed(0.5)"),
            [Pin::Setseed].into_iter().collect()
        );
        assert_eq!(
            pins("LOAD 'auto_explain'"),
            [Pin::Load].into_iter().collect()
        );
        assert_eq!(
            watch(b"/* load the page */ SELECT 'load', setseed FROM loads"),
            None
        );
        assert_eq!(
            pins("select set_config(n, v, false) from s"),
            [Pin::UnreadableSetting].into_iter().collect()
        );
        assert_eq!(
            watch(b"SELECT abalance FROM pgbench_accounts WHERE aid = 1"),
            None
        );
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(sql in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = watch(&sql);
        }
    }
}
