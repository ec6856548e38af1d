//! Owns two questions about a text that is to be read again later: is it one statement, and does it read the same?

/// Whether a text is one `PREPARE` and nothing else. In doubt it isn't.
#[must_use]
pub fn is_one_prepare(sql: &[u8]) -> bool {
    let Some(text) = behind_blanks(sql) else {
        return false;
    };
    text.get(..7)
        .is_some_and(|word| word.eq_ignore_ascii_case(b"prepare"))
        && !text.get(7).is_some_and(|byte| goes_on(*byte))
        && one_statement(text)
}

/// Whether a word goes on with this byte.
const fn goes_on(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'$') || !byte.is_ascii()
}

/// Whether a text means the same whatever `DateStyle`, `TimeZone` and the like are: it has no literal that they could
/// change the reading of. In doubt it doesn't.
#[must_use]
pub fn reads_always_alike(sql: &[u8]) -> bool {
    let dollar = |at: usize| !sql.get(at + 1).is_some_and(u8::is_ascii_digit);
    if !sql.is_ascii() || memchr::memchr_iter(b'$', sql).any(dollar) {
        return false;
    }
    match memchr::memchr(b'\'', sql) {
        None => true,
        Some(_) => only_words(sql),
    }
}

/// Whether no literal could be a date or a time: these have digits, or one of a few words. Where a comment could hide a
/// literal's end, or a backslash could, it isn't known.
fn only_words(sql: &[u8]) -> bool {
    const MOMENTS: [&[u8]; 4] = [b"now", b"today", b"tomorrow", b"yesterday"];
    let comment = |start: &[u8]| memchr::memmem::find(sql, start).is_some();
    if memchr::memchr(b'\\', sql).is_some() || comment(b"--") || comment(b"/*") {
        return false;
    }
    // Literals on two lines are one, so they are looked at together.
    let mut literals = Vec::new();
    let mut rest = sql;
    while let Some(start) = memchr::memchr2(b'\'', b'"', rest) {
        let inside = &rest[start + 1..];
        let Some(end) = memchr::memchr(rest[start], inside) else {
            return false;
        };
        if rest[start] == b'\'' {
            literals.extend(inside[..end].iter().map(u8::to_ascii_lowercase));
        }
        rest = &inside[end + 1..];
    }
    !literals.iter().any(u8::is_ascii_digit)
        && MOMENTS
            .iter()
            .all(|word| memchr::memmem::find(&literals, word).is_none())
}

/// The text from its first token on; `None` where a comment doesn't end.
pub(super) fn behind_blanks(sql: &[u8]) -> Option<&[u8]> {
    let mut rest = sql.trim_ascii_start();
    loop {
        let end = if rest.starts_with(b"--") {
            memchr::memchr2(b'\n', b'\r', rest).map_or(rest.len(), |end| end + 1)
        } else if rest.starts_with(b"/*") {
            let inside = &rest[2..];
            let end = memchr::memmem::find(inside, b"*/")?;
            // In `/*/*/` the second one begins with the last sign of what looks like an end.
            if memchr::memmem::find(&inside[..=end], b"/*").is_some() {
                return None;
            }
            end + 4
        } else {
            return Some(rest);
        };
        rest = rest[end..].trim_ascii_start();
    }
}

/// Whether nothing but blanks and semicolons stands behind the first semicolon outside of quotes and comments.
fn one_statement(sql: &[u8]) -> bool {
    if memchr::memchr(b';', sql).is_none() {
        return true;
    }
    let mut at = 0;
    while let Some(byte) = sql.get(at) {
        at = match byte {
            b';' => {
                let mut rest = &sql[at + 1..];
                while let Some(text) = behind_blanks(rest) {
                    let Some(more) = text.strip_prefix(b";") else {
                        return text.is_empty();
                    };
                    rest = more;
                }
                return false;
            }
            // What a backslash means depends on a setting.
            b'\\' => return false,
            quote @ (b'\'' | b'"') => match memchr::memchr(*quote, &sql[at + 1..]) {
                Some(end) if memchr::memchr(b'\\', &sql[at + 1..at + 1 + end]).is_none() => {
                    at + end + 2
                }
                _ => return false,
            },
            b'-' | b'/' => match behind_blanks(&sql[at..]) {
                Some(rest) if rest.len() < sql.len() - at => sql.len() - rest.len(),
                Some(_) => at + 1,
                None => return false,
            },
            b'$' if !sql.get(at + 1).is_some_and(u8::is_ascii_digit) => return false,
            _ => at + 1,
        };
    }
    true
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn one_prepare_is_told_from_several_statements() {
        for sql in [
            "PREPARE p AS SELECT 1",
            "  prepare \"P;q\" (int) AS SELECT ';' -- ; \n ; ;",
            "/* ; */ PREPARE p AS SELECT $1 /* ; */;",
            "PREPARE p AS SELECT 1; -- the end",
            "-- first\nPREPARE p AS SELECT 'it''s; fine'",
        ] {
            assert!(is_one_prepare(sql.as_bytes()), "{sql}");
        }
        for sql in [
            "PREPARE p AS SELECT 1; PREPARE q AS SELECT 2",
            "SELECT 1; PREPARE p AS SELECT 1",
            "PREPARE p AS SELECT ';'; SET a.b = 1",
            "PREPARE p AS SELECT E'\\';' ; DROP TABLE t",
            "PREPARE p AS SELECT $$;$$; DROP TABLE t",
            "DO $$ BEGIN EXECUTE 'PREPARE p AS SELECT 1'; END $$",
            "PREPARE p AS SELECT 1; /* open",
            "PREPARE$1 AS SELECT 1",
            "/*/",
            "/*/ PREPARE p AS SELECT 1",
        ] {
            assert!(!is_one_prepare(sql.as_bytes()), "{sql}");
        }
    }

    #[test]
    fn a_text_with_literals_may_read_differently() {
        for sql in [
            "INSERT INTO t VALUES ($1, 7, \"x\")",
            "SELECT set_config('TimeZone', $1, false)",
            "SELECT \"it's 1\" FROM t WHERE a = 'it''s' AND b = '{}'",
        ] {
            assert!(reads_always_alike(sql.as_bytes()), "{sql}");
        }
        for sql in [
            "SELECT '1/2/2024'::date",
            "SELECT $$1/2/2024$$",
            "SELECT é",
            "SELECT 'x', 'Today'::date",
            "SELECT 'to'\n'day'::date",
            "SELECT timestamptz 'now'",
            "/* it's */ SELECT '1/2/2024'::date",
            "SELECT \"it's\", '1/2/2024'::date",
            "SELECT 'a\\', '1/2/2024'::date",
            "SELECT 'open",
        ] {
            assert!(!reads_always_alike(sql.as_bytes()), "{sql}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(sql in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = is_one_prepare(&[b"PREPARE p AS ", &sql[..]].concat());
            let _ = reads_always_alike(&sql);
        }

        #[test]
        fn a_second_statement_is_found(before in "[a-z0-9 ,.'\"()=*/$-]{0,40}", blank in "[ \n]{0,3}") {
            let sql = format!("PREPARE p AS SELECT {before} ;{blank}DROP TABLE t");
            // Where the text before opens a quote or a comment, the rest is inside of it.
            let open = before.contains(['\'', '"']) || before.contains("--") || before.contains("/*");
            prop_assert!(open || !is_one_prepare(sql.as_bytes()));
        }
    }
}
