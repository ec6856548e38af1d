//! Owns what to watch for in passing SQL: state that the probe can't see afterwards.

use super::reserved::is_reserved;
use super::single::behind_blanks;
use super::virtual_setting::scan::Scan;
use super::{has_escaped_name, has_odd_blank};
use crate::lease::{Pin, Pins};
#[cfg(doc)]
use crate::wire::sql::Words;

/// The setting that is another name of `setseed()`: nobody can ask for it.
pub const SEED: &[u8] = b"seed";

/// What a text may leave behind that PostgreSQL can't be asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Watch {
    /// Pins for the rest of the session.
    pub pins: Pins,
    /// Names of custom settings that the text mentions.
    pub settings: Vec<String>,
    /// Parameters that name settings: `set_config($1, …)`.
    pub naming: Vec<Naming>,
}

/// Functions that leave what neither the probe nor DISCARD ALL knows: an origin, a temporary slot, a base backup.
const REPLICATING: [&[u8]; 7] = [
    b"pg_replication_origin_session_setup",
    b"pg_create_logical_replication_slot",
    b"pg_create_physical_replication_slot",
    b"pg_copy_logical_replication_slot",
    b"pg_copy_physical_replication_slot",
    b"pg_backup_start",
    b"pg_start_backup",
];

/// A parameter that names a setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Naming {
    /// Which one, counted from 0.
    pub parameter: u16,
    /// Whether what is set may outlast the transaction.
    pub lasts: bool,
}

/// Looks through a text that mentions something of interest ([`Words::state`]). Allocates only where it finds something.
///
/// It errs on the side of finding: a word inside a comment or a literal counts.
#[must_use]
pub fn watch(sql: &[u8]) -> Option<Watch> {
    let mut found = Watch::default();
    let mut any = false;
    let mut rest = sql;
    if has_odd_blank(sql) || has_escaped_name(sql) {
        found.pins.add(Pin::UnreadableSetting);
        any = true;
    }
    // Every word of interest begins with one of these letters; few texts have many.
    while let Some(at) = rest
        .iter()
        .position(|byte| matches!(byte | 0x20, b's' | b'l' | b'r' | b'p'))
    {
        let fresh =
            at == 0 && rest.len() == sql.len() || !is_word(sql[sql.len() - rest.len() + at - 1]);
        rest = &rest[at..];
        if fresh {
            let word = &rest[..rest
                .iter()
                .position(|byte| !is_word(*byte))
                .unwrap_or(rest.len())];
            let before = &sql[..sql.len() - rest.len()];
            any |= look(before, word, &rest[word.len()..], &mut found);
        }
        rest = &rest[1..];
    }
    any.then_some(found)
}

fn look(before: &[u8], word: &[u8], after: &[u8], found: &mut Watch) -> bool {
    let is = |name: &[u8]| word.eq_ignore_ascii_case(name);
    if is(b"setseed") && calls(after) {
        found.pins.add(Pin::Setseed);
        true
    } else if is(b"load") && !is_literal(before.last().copied(), after) && begins_literal(after) {
        found.pins.add(Pin::Load);
        true
    } else if is(b"set") || is(b"reset") || is(b"session") || is(b"local") {
        found.settings.extend(dotted(after));
        if is(b"set") && sets_seed(before, after) {
            found.pins.add(Pin::Setseed);
        }
        true
    } else if is(b"set_config") {
        set_config(after, found);
        true
    } else if REPLICATING.iter().any(|known| is(known)) && calls(after) {
        found.pins.add(Pin::Replication);
        true
    } else {
        false
    }
}

/// Whether it is `SET SEED TO`, the same as `setseed()`, and not a column of that name in an UPDATE.
fn sets_seed(before: &[u8], after: &[u8]) -> bool {
    const BEGINNINGS: [&[u8]; 4] = [b"seed", b"\"seed\"", b"session", b"local"];
    let next = behind_blanks(after).unwrap_or_default();
    let begins = |word: &&[u8]| {
        let start = next.get(..word.len());
        start.is_some_and(|start| start.eq_ignore_ascii_case(word))
    };
    if !BEGINNINGS.iter().any(begins) {
        return false;
    }
    let mut scan = Scan::new(next);
    let _ = scan.keyword(b"session") || scan.keyword(b"local");
    let name = scan.identifier().unwrap_or_default();
    let is_set = scan.symbol(b'=') || scan.keyword(b"to");
    let updates = !matches!(before.trim_ascii_end(), [] | [.., b';' | b'\'' | b'$'])
        && before
            .windows(6)
            .any(|word| word.eq_ignore_ascii_case(b"update"));
    name.eq_ignore_ascii_case(SEED) && is_set && !updates
}

/// Whether a parenthesis is next. Where a comment can't be followed, it may be.
fn calls(after: &[u8]) -> bool {
    let after = after.strip_prefix(b"\"").unwrap_or(after);
    behind_blanks(after).is_none_or(|next| next.starts_with(b"("))
}

/// Whether a word is all that a literal holds. Not of `'load''x'''`: what it holds may be carried out.
fn is_literal(before: Option<u8>, after: &[u8]) -> bool {
    before == Some(b'\'') && after.starts_with(b"'") && !after.starts_with(b"''")
}

/// Whether a literal is next, of whatever kind.
fn begins_literal(after: &[u8]) -> bool {
    behind_blanks(after).is_none_or(|next| match next {
        [b'\'' | b'$', ..] | [b'e' | b'E', b'\'', ..] | [b'u' | b'U', b'&', ..] => true,
        [..] => false,
    })
}

/// `app.tenant` at the start of `text`, quoted or not.
fn dotted(text: &[u8]) -> Option<String> {
    let name = behind_blanks(text).unwrap_or_default();
    let end = name
        .iter()
        .position(|byte| !(is_word(*byte) || matches!(byte, b'.' | b'"' | b'$')))
        .unwrap_or(name.len());
    let (name, rest) = name.split_at(end);
    let ends = !matches!(
        rest.trim_ascii_start(),
        [b'.', ..] | [b'-', b'-', ..] | [b'/', b'*', ..]
    );
    if name.is_empty() || name.ends_with(b".") || !ends {
        return parted(text);
    }
    let name = std::str::from_utf8(name).ok()?.replace('"', "");
    name.contains('.').then(|| name.to_ascii_lowercase())
}

/// The same where blanks or comments stand between the parts. What isn't set there is prose.
fn parted(text: &[u8]) -> Option<String> {
    let mut scan = Scan::new(text);
    let mut name = scan.identifier()?;
    let first = name.len();
    while scan.symbol(b'.') {
        name.push(b'.');
        name.extend(scan.identifier()?);
    }
    if name.len() == first {
        return None;
    }
    let is_set = scan.symbol(b'=') || scan.keyword(b"to") || scan.ends();
    let name = is_set.then(|| String::from_utf8(name).ok())??;
    Some(name.to_ascii_lowercase())
}

/// `set_config('app.tenant', …)`: a name that is neither a literal nor a parameter can't be read. What holds for one
/// transaction only leaves nothing but its name.
fn set_config(after: &[u8], found: &mut Watch) {
    let argument = after
        .trim_ascii_start()
        .strip_prefix(b"(")
        .map(<[u8]>::trim_ascii_start);
    let Some((name, rest)) = argument.and_then(first_argument) else {
        if !is_local(after) {
            found.pins.add(Pin::UnreadableSetting);
        }
        return;
    };
    match name {
        Name::Literal(name) => {
            let name = name.to_ascii_lowercase();
            if name.as_bytes() == SEED {
                found.pins.add(Pin::Setseed);
            }
            if is_reserved(&name) || name.contains('.') && !is_local(rest) {
                found.settings.push(name);
            }
        }
        Name::Parameter(parameter) => {
            let lasts = !is_local(rest);
            found.naming.push(Naming { parameter, lasts });
        }
    }
}

/// Whether the arguments of a `set_config`, from their parenthesis on, plainly name a setting that ends with its transaction.
pub(super) fn sets_for_its_transaction(arguments: &[u8]) -> bool {
    let argument = arguments.strip_prefix(b"(").map(<[u8]>::trim_ascii_start);
    match argument.and_then(first_argument) {
        Some((Name::Literal(name), rest)) => {
            let name = name.to_ascii_lowercase();
            name.as_bytes() != SEED && !is_reserved(&name) && is_local(rest)
        }
        Some((Name::Parameter(_), _)) | None => false,
    }
}

enum Name<'a> {
    Literal(&'a str),
    Parameter(u16),
}

/// The first argument of a call, and the text from the comma behind it on.
fn first_argument(text: &[u8]) -> Option<(Name<'_>, &[u8])> {
    let (name, rest) = if let Some(text) = text.strip_prefix(b"'") {
        let end = memchr::memchr(b'\'', text)?;
        // With a backslash it depends on a setting where it ends.
        let name = std::str::from_utf8(&text[..end]).ok()?;
        if name.contains('\\') {
            return None;
        }
        (Name::Literal(name), &text[end + 1..])
    } else {
        let text = text.strip_prefix(b"$")?;
        let end = text.iter().position(|byte| !byte.is_ascii_digit())?;
        let number: u16 = std::str::from_utf8(&text[..end]).ok()?.parse().ok()?;
        (Name::Parameter(number.checked_sub(1)?), &text[end..])
    };
    // `::text` changes nothing.
    let rest = rest.trim_ascii_start();
    let rest = match rest.strip_prefix(b"::") {
        Some(cast) => {
            let cast = cast.trim_ascii_start();
            (cast.get(..4)?.eq_ignore_ascii_case(b"text")).then(|| cast[4..].trim_ascii_start())?
        }
        None => rest,
    };
    rest.starts_with(b",").then_some((name, rest))
}

/// Whether the call's last argument is plainly `true`: behind the last comma before the first closing parenthesis. In
/// doubt it isn't.
fn is_local(text: &[u8]) -> bool {
    let text = text.trim_ascii_start();
    let text = text.strip_prefix(b"(").unwrap_or(text);
    let Some(end) = memchr::memchr(b')', text) else {
        return false;
    };
    let inside = &text[..end];
    let last = memchr::memrchr(b',', inside).map(|comma| inside[comma + 1..].trim_ascii());
    is_simple(inside) && last.is_some_and(|last| last.eq_ignore_ascii_case(b"true"))
}

/// Whether what stands before a parenthesis is outside of literals, names and comments at its end, and calls nothing:
/// however backslashes are read.
fn is_simple(text: &[u8]) -> bool {
    let follows =
        |at: usize, wanted: fn(u8) -> bool| text.get(at + 1).is_some_and(|next| wanted(*next));
    let quotes = memchr::memchr_iter(b'\'', text).count();
    quotes.is_multiple_of(2)
        && text.iter().enumerate().all(|(at, byte)| match byte {
            b'(' | b'"' | b'\\' => false,
            b'$' => follows(at, |next| next.is_ascii_digit()),
            b'-' => !follows(at, |next| next == b'-'),
            b'/' => !follows(at, |next| next == b'*'),
            _ => true,
        })
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
        assert_eq!(
            settings("SET /* the */ app.tenant TO 7; SET SESSION -- a\n app.other = 1"),
            ["app.tenant", "app.other"]
        );
        assert_eq!(settings("SET app.ten$ant = 7"), ["app.ten$ant"]);
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
        for local in [
            "select set_config(n, v, true) from s",
            "select set_config('a.b', 'c', TRUE )",
        ] {
            assert!(
                pins(local).is_empty() && settings(local).is_empty(),
                "{local}"
            );
        }
        assert_eq!(
            settings("select set_config('plpgsql.x', 'y', true)"),
            ["plpgsql.x"]
        );
        for kept in [
            "select set_config(n, f(1, true), false)",
            "select set_config(n, ', true)', false)",
            "select set_config(n, 'a', -- , true)\n false)",
            "select set_config('a.b', $$, 'c', true)$$, false)",
            "select set_config('a.b', \"c, true)\", false)",
            "select set_config('a.b', '\\', true) ', false)",
            "select set_config--, true)\n('a.b', 'c', false)",
            "select '\\'', set_config('\\',a.b', 'c', false)",
        ] {
            assert!(
                !pins(kept).is_empty() || !settings(kept).is_empty(),
                "{kept}"
            );
        }
        assert_eq!(
            watch(b"SELECT abalance FROM pgbench_accounts WHERE aid = 1"),
            None
        );
    }

    #[test]
    fn the_seed_has_other_names() {
        for seeded in [
            "SET SEED TO 0.5",
            "set session /* it */ seed = 0.5",
            "SELECT 1 FOR UPDATE; SET LOCAL \"seed\" TO 0.5",
            "DO $$BEGIN SET seed = 0.5; END$$",
            "SELECT set_config('Seed', '0.5', true)",
        ] {
            assert!(pins(seeded).contains(Pin::Setseed), "{seeded}");
        }
        for column in [
            "UPDATE t SET seed = 1",
            "INSERT INTO t VALUES (1) ON CONFLICT (a) DO UPDATE SET seed = 1",
            "SET seedling = 1",
        ] {
            assert!(pins(column).is_empty(), "{column}");
        }
    }

    #[test]
    fn names_whose_parts_stand_apart_are_harvested() {
        for apart in [
            "SET app . tenant = 7",
            "SET app /* the */ .tenant TO 7",
            "SET app. \"Tenant\" = 7",
            "SET /* a /* nested */ one */ app.tenant = 7",
            "RESET app. -- the\n tenant;",
        ] {
            assert_eq!(settings(apart), ["app.tenant"], "{apart}");
        }
        assert_eq!(settings("SET app . \"a\" . b TO 7"), ["app.a.b"]);
        for prose in ["SELECT 1 /* set up. Then reset. */", "SET work_mem = 1"] {
            assert!(settings(prose).is_empty(), "{prose}");
        }
    }

    #[test]
    fn calls_are_found_behind_comments_and_in_quotes() {
        for call in ["select setseed/**/(0.5)", "select \"setseed\" (0.5)"] {
            assert!(pins(call).contains(Pin::Setseed), "{call}");
        }
        for load in [
            "LOAD /* it */ 'x'",
            "LOAD E'x'",
            "LOAD $$x$$",
            "DO $$BEGIN EXECUTE 'LOAD ''x'''; END$$",
            "DO $$BEGIN EXECUTE 'LOAD''x'''; END$$",
        ] {
            assert!(pins(load).contains(Pin::Load), "{load}");
        }
    }

    #[test]
    fn what_discard_all_does_not_know_pins() {
        for pinned in [
            "SELECT pg_replication_origin_session_setup('o')",
            "select * from pg_catalog.\"pg_create_physical_replication_slot\" ('s', true, true)",
            "SELECT pg_backup_start('b')",
        ] {
            assert!(pins(pinned).contains(Pin::Replication), "{pinned}");
        }
        for none in [
            "SELECT pg_backup_start FROM pg_replication_slots",
            "SELECT pg_backup_stop()",
        ] {
            assert_eq!(watch(none.as_bytes()), None, "{none}");
        }
    }

    #[test]
    fn a_name_that_has_escapes_pins() {
        for escaped in [
            r#"SET U&"\0061pp".tenant = 7"#,
            r#"SELECT u&"s!0065t_config"('a.b', 'c', false) /* set */"#,
        ] {
            assert!(pins(escaped).contains(Pin::UnreadableSetting), "{escaped}");
        }
        assert!(pins(r#"SET app.x = 1; SELECT a&"b""#).is_empty());
    }

    #[test]
    fn parameters_that_name_settings_are_found() {
        let naming = |sql: &str| {
            let found = watch(sql.as_bytes()).unwrap_or_default().naming;
            let each = |naming: Naming| (naming.parameter, naming.lasts);
            found.into_iter().map(each).collect::<Vec<_>>()
        };
        assert_eq!(naming("SELECT set_config($1, $2, false)"), [(0, true)]);
        assert_eq!(naming("SELECT set_config($1, $2, true)"), [(0, false)]);
        assert_eq!(
            naming("SELECT set_config('a.b', $1, false), set_config( $12::text , $2, $3)"),
            [(11, true)]
        );
        assert!(pins("SELECT set_config($1, $2, false)").is_empty());
        for unreadable in [
            "set_config($1 || 'x', $2, false)",
            "set_config($0, '', false)",
            "set_config($1",
        ] {
            assert!(!pins(unreadable).is_empty(), "{unreadable}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(sql in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = watch(&sql);
        }
    }
}
