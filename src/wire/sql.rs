//! Owns what is read from SQL text without a parser: a fingerprint for people, and what to watch for.
//!
//! Refuses to decide what a statement does: PostgreSQL itself is asked for that.

mod class;
mod databases;
mod fingerprint;
pub mod harmless;
pub mod hazards;
mod plain;
mod reserved;
mod roles;
mod single;
pub mod virtual_setting;
mod watch;
mod words;

/// Whether a vertical tab is in a text: a blank from PostgreSQL 16 on, an error before, and nothing that our readers look
/// behind.
fn has_odd_blank(sql: &[u8]) -> bool {
    memchr::memchr(0x0b, sql).is_some()
}

/// Whether a name with escapes may be in a text: what `U&"a\0070p"` comes to isn't read.
fn has_escaped_name(sql: &[u8]) -> bool {
    let starts = |at: usize| at > 0 && sql[at - 1].eq_ignore_ascii_case(&b'u');
    memchr::memmem::find_iter(sql, b"&\"").any(starts)
}

/// Whether a text is nothing but the word that opens or closes a transaction.
#[must_use]
pub fn is_mere_bracket(sql: &[u8]) -> bool {
    let word = sql.strip_suffix(b";").unwrap_or(sql);
    match word.len() {
        5 => word.eq_ignore_ascii_case(b"begin"),
        6 => word.eq_ignore_ascii_case(b"commit"),
        8 => word.eq_ignore_ascii_case(b"rollback"),
        _ => false,
    }
}

/// Whether a text is nothing but a statement that goes back to the `application_name` of the login. In doubt it isn't.
#[must_use]
pub fn resets_the_name(sql: &[u8]) -> bool {
    const SUCH: [&[&str]; 5] = [
        &["discard", "all"],
        &["reset", "all"],
        &["reset", "application_name"],
        &["set", "application_name", "to", "default"],
        &["set", "application_name", "=", "default"],
    ];
    let text = sql.trim_ascii_end();
    let text = text.strip_suffix(b";").unwrap_or(text).trim_ascii();
    if text.len() > 64 || !matches!(text.first(), Some(b'd' | b'D' | b'r' | b'R' | b's' | b'S')) {
        return false;
    }
    let words = || {
        text.split(u8::is_ascii_whitespace)
            .filter(|word| !word.is_empty())
    };
    SUCH.iter().any(|such| {
        words().count() == such.len()
            && words()
                .zip(*such)
                .all(|(word, such)| word.eq_ignore_ascii_case(such.as_bytes()))
    })
}

/// Whether a text only opens or closes a transaction, or is empty: it is no work of its own.
#[must_use]
pub fn is_bracket(sql: &[u8]) -> bool {
    let begins = |byte: &u8| !(byte.is_ascii_whitespace() || *byte == b';');
    let text = &sql[sql.iter().position(begins).unwrap_or(sql.len())..];
    let [first, second, ..] = text else {
        return text.is_empty();
    };
    let words: &[&[u8]] = match (first | 0x20, second | 0x20) {
        (b'b', b'e') => &[b"begin"],
        (b's', b't') => &[b"start"],
        (b'c', b'o') => &[b"commit"],
        (b'e', b'n') => &[b"end"],
        (b'r', b'o') => &[b"rollback"],
        (b'a', b'b') => &[b"abort"],
        (b's', b'a') => &[b"savepoint"],
        (b'r', b'e') => &[b"release"],
        _ => return false,
    };
    let end = text
        .iter()
        .position(|byte| !byte.is_ascii_alphabetic())
        .unwrap_or(text.len());
    words
        .iter()
        .any(|word| word.eq_ignore_ascii_case(&text[..end]))
}

pub use class::{Class, class, class_knowing, class_of_tag};
pub use databases::changes_databases;
pub use fingerprint::fingerprint;
pub use reserved::is_reserved;
pub use roles::{changes_roles, may_change_role};
pub use single::{is_one_prepare, reads_always_alike};
pub use watch::{Naming, SEED, Watch, watch};
pub use words::Words;

/// Whether the tag of a CommandComplete belongs to a command that leaves no state in the session by itself.
#[must_use]
pub fn leaves_nothing(tag: &[u8]) -> bool {
    const TAGS: [&[u8]; 21] = [
        b"SELECT",
        b"INSERT",
        b"UPDATE",
        b"DELETE",
        b"MERGE",
        b"BEGIN",
        b"COMMIT",
        b"ROLLBACK",
        b"START",
        b"SAVEPOINT",
        b"RELEASE",
        b"FETCH",
        b"MOVE",
        b"CLOSE",
        b"COPY",
        b"SHOW",
        b"DECLARE",
        b"PREPARE TRANSACTION",
        b"NOTIFY",
        b"LOCK TABLE",
        b"TRUNCATE",
    ];
    TAGS.iter().any(|known| tag.starts_with(known))
}

/// Whether the tag of a CommandComplete belongs to a command that makes or changes a definition behind which code may run.
/// What is dropped runs no more.
#[must_use]
pub fn defines(tag: &[u8]) -> bool {
    const CODELESS: [&[u8]; 11] = [
        b"ACCESS METHOD",
        b"COLLATION",
        b"DATABASE",
        b"DEFAULT PRIVILEGES",
        b"PUBLICATION",
        b"ROLE",
        b"SEQUENCE",
        b"STATISTICS",
        b"SUBSCRIPTION",
        b"TABLESPACE",
        b"TEXT SEARCH",
    ];
    let what = tag.strip_prefix(b"CREATE ").or(tag.strip_prefix(b"ALTER "));
    what.is_some_and(|what| !CODELESS.iter().any(|known| what.starts_with(known)))
}

/// Whether such a command makes or changes nothing but what runs the expressions of its own text: where that text was read,
/// and names nothing that makes state, it made nothing that does.
#[must_use]
pub fn defines_by_its_text(tag: &[u8]) -> bool {
    const TAGS: [&[u8]; 6] = [
        b"CREATE TABLE\0",
        b"ALTER TABLE\0",
        b"CREATE INDEX\0",
        b"ALTER INDEX\0",
        b"CREATE TYPE\0",
        b"ALTER TYPE\0",
    ];
    TAGS.contains(&tag)
}

/// Whether such a command makes nothing but a function of its own text's body.
#[must_use]
pub fn defines_a_body(tag: &[u8]) -> bool {
    matches!(tag, b"CREATE FUNCTION\0" | b"CREATE PROCEDURE\0")
}

/// Whether a text names prepared statements in SQL: then it must find just those of its session.
#[must_use]
pub fn names_statements(sql: &[u8]) -> bool {
    const WORDS: [&[u8]; 4] = [b"execute", b"deallocate", b"prepare", b"discard"];
    memchr::memchr3_iter(b'e', b'd', b'p', sql)
        .chain(memchr::memchr3_iter(b'E', b'D', b'P', sql))
        .any(|at| WORDS.iter().any(|word| stands_at(sql, at, word)))
}

/// Whether a text may run prepared statements in SQL.
#[must_use]
pub fn executes(sql: &[u8]) -> bool {
    memchr::memchr2_iter(b'e', b'E', sql).any(|at| stands_at(sql, at, b"execute"))
}

fn stands_at(sql: &[u8], at: usize, word: &[u8]) -> bool {
    sql.get(at..at + word.len())
        .is_some_and(|text| text.eq_ignore_ascii_case(word))
}

#[cfg(test)]
mod tests {
    use super::{Class, class, defines, is_bracket, is_mere_bracket, resets_the_name};

    #[test]
    fn only_the_plainest_resets_are_known() {
        for sql in [
            "DISCARD ALL",
            "reset  all ;",
            "RESET\tapplication_name",
            "SET application_name = DEFAULT",
            "set application_name TO default;",
        ] {
            assert!(resets_the_name(sql.as_bytes()), "{sql}");
        }
        for sql in [
            "",
            "DISCARD PLANS",
            "RESET ALL; SELECT 1",
            "RESET application_name_too",
            "SET application_name = 'default'",
            "SET LOCAL application_name TO DEFAULT",
        ] {
            assert!(!resets_the_name(sql.as_bytes()), "{sql}");
        }
    }

    #[test]
    fn a_mere_bracket_leaves_nothing() {
        for sql in ["BEGIN", "commit;", "Rollback", "COMMIT"] {
            assert!(is_mere_bracket(sql.as_bytes()), "{sql}");
            assert_eq!(class(sql.as_bytes()), Class::Read, "{sql}");
        }
        for sql in [
            "",
            ";",
            "ABORT",
            "BEGIN; SELECT f()",
            "RELEASE a",
            "COMMIT;;",
            "LISTEN",
        ] {
            assert!(!is_mere_bracket(sql.as_bytes()), "{sql}");
        }
    }

    #[test]
    fn a_tag_tells_whether_code_may_run_from_then_on() {
        for tag in [
            b"CREATE TRIGGER\0".as_slice(),
            b"ALTER TABLE\0",
            b"CREATE SCHEMA\0",
        ] {
            assert!(defines(tag));
        }
        for tag in [
            b"CREATE SEQUENCE\0".as_slice(),
            b"ALTER ROLE\0",
            b"DROP VIEW\0",
            b"SELECT 1\0",
        ] {
            assert!(!defines(tag));
        }
    }

    #[test]
    fn brackets_of_transactions_are_told_from_work() {
        for sql in [
            "BEGIN",
            "commit;",
            "  ROLLBACK TO a",
            "",
            ";",
            "; ",
            " Abort",
            "end",
            "START TRANSACTION",
            "release a",
            "SAVEPOINT active_record_1",
        ] {
            assert!(is_bracket(sql.as_bytes()), "{sql}");
        }
        for sql in [
            "SELECT 1",
            "CREATE TABLE t ()",
            "/* x */ COMMIT",
            "ENDS",
            "COPY t FROM STDIN",
            "; SELECT 1",
            "x",
            "INSERT INTO t VALUES (1)",
        ] {
            assert!(!is_bracket(sql.as_bytes()), "{sql}");
        }
    }
}
