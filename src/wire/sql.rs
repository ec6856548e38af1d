//! Owns what is read from SQL text without a parser: a fingerprint for people, and what to watch for.
//!
//! Refuses to decide what a statement does: PostgreSQL itself is asked for that.

mod class;
mod fingerprint;
pub mod hazards;
mod plain;
mod single;
pub mod virtual_setting;
mod watch;
mod words;

/// Whether a text only opens or closes a transaction, or is empty: it is no work of its own.
#[must_use]
pub fn is_bracket(sql: &[u8]) -> bool {
    let text = sql.trim_ascii_start();
    let [first, second, ..] = text else {
        return matches!(text, [] | [b';']);
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
        _ => return *first == b';',
    };
    let end = text
        .iter()
        .position(|byte| !byte.is_ascii_alphabetic())
        .unwrap_or(text.len());
    words
        .iter()
        .any(|word| word.eq_ignore_ascii_case(&text[..end]))
}

pub use class::{Class, class, class_of_tag};
pub use fingerprint::fingerprint;
pub use single::{is_one_prepare, reads_always_alike};
pub use watch::{Watch, watch};
pub use words::Words;

/// Whether the tag of a CommandComplete belongs to a command that leaves no state in the session by itself.
#[must_use]
pub fn leaves_nothing(tag: &[u8]) -> bool {
    const TAGS: [&[u8]; 18] = [
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
    ];
    TAGS.iter().any(|known| tag.starts_with(known))
}

/// Whether the tag of a CommandComplete belongs to a command that makes, changes or drops a definition.
#[must_use]
pub fn defines(tag: &[u8]) -> bool {
    [&b"CREATE "[..], b"ALTER ", b"DROP "]
        .iter()
        .any(|known| tag.starts_with(known))
}

/// Whether a text may be one that PostgreSQL refuses while anybody else is connected to the database that it names.
#[must_use]
pub fn wants_database_alone(sql: &[u8]) -> bool {
    let text = sql.trim_ascii_start();
    let Some(first) = text.first() else {
        return false;
    };
    let verb: &[u8] = match first | 0x20 {
        b'd' => b"drop",
        b'c' => b"create",
        b'a' => b"alter",
        _ => return false,
    };
    let Some((start, rest)) = text.split_at_checked(verb.len()) else {
        return false;
    };
    const OBJECT: &[u8] = b"database";
    start.eq_ignore_ascii_case(verb)
        && (rest.trim_ascii_start().get(..OBJECT.len()))
            .is_some_and(|object| object.eq_ignore_ascii_case(OBJECT))
}

/// Whether a text names prepared statements in SQL: then it must find just those of its session.
#[must_use]
pub fn names_statements(sql: &[u8]) -> bool {
    const WORDS: [&[u8]; 4] = [b"execute", b"deallocate", b"prepare", b"discard"];
    let starts = |at: usize| {
        WORDS.iter().any(|word| {
            sql.get(at..at + word.len())
                .is_some_and(|text| text.eq_ignore_ascii_case(word))
        })
    };
    memchr::memchr3_iter(b'e', b'd', b'p', sql)
        .chain(memchr::memchr3_iter(b'E', b'D', b'P', sql))
        .any(starts)
}

#[cfg(test)]
mod tests {
    use super::{is_bracket, wants_database_alone};

    #[test]
    fn what_wants_a_database_alone_is_told_from_the_rest() {
        for sql in [
            "DROP DATABASE shop",
            " drop  database IF EXISTS shop",
            "create\ndatabase a template b",
            "ALTER DATABASE a RENAME TO b",
        ] {
            assert!(wants_database_alone(sql.as_bytes()), "{sql}");
        }
        for sql in [
            "",
            "d",
            "DROP",
            "DROP TABLE database",
            "COMMIT",
            "SELECT 1",
            "CREATE DATA",
        ] {
            assert!(!wants_database_alone(sql.as_bytes()), "{sql}");
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
            "x",
            "INSERT INTO t VALUES (1)",
        ] {
            assert!(!is_bracket(sql.as_bytes()), "{sql}");
        }
    }
}
