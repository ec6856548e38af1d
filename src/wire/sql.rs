//! Owns what is read from SQL text without a parser: a fingerprint for people, and what to watch for.
//!
//! Refuses to decide what a statement does: PostgreSQL itself is asked for that.

mod fingerprint;
pub mod virtual_setting;
mod watch;

/// Whether a text only opens or closes a transaction, or is empty: it is no work of its own.
#[must_use]
pub fn is_bracket(sql: &[u8]) -> bool {
    const WORDS: [&[u8]; 9] = [
        b"BEGIN",
        b"START",
        b"COMMIT",
        b"END",
        b"ROLLBACK",
        b"ABORT",
        b"SAVEPOINT",
        b"RELEASE",
        b"",
    ];
    let text = sql.trim_ascii_start();
    match text.first() {
        Some(
            b'B' | b'S' | b'C' | b'E' | b'R' | b'A' | b'b' | b's' | b'c' | b'e' | b'r' | b'a'
            | b';',
        )
        | None => {
            let end = text
                .iter()
                .position(|byte| !byte.is_ascii_alphabetic())
                .unwrap_or(text.len());
            WORDS
                .iter()
                .any(|word| word.eq_ignore_ascii_case(&text[..end]))
        }
        Some(_) => false,
    }
}

pub use fingerprint::fingerprint;
pub use watch::{Watch, watch};

#[cfg(test)]
mod tests {
    use super::is_bracket;

    #[test]
    fn brackets_of_transactions_are_told_from_work() {
        for sql in [
            "BEGIN",
            "commit;",
            "  ROLLBACK TO a",
            "",
            ";",
            "SAVEPOINT active_record_1",
        ] {
            assert!(is_bracket(sql.as_bytes()), "{sql}");
        }
        for sql in [
            "SELECT 1",
            "CREATE TABLE t ()",
            "/* x */ COMMIT",
            "ENDS",
            "INSERT INTO t VALUES (1)",
        ] {
            assert!(!is_bracket(sql.as_bytes()), "{sql}");
        }
    }
}
