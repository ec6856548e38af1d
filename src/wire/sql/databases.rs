//! Owns one question about a text: does it create, change or drop a database?

use super::single::behind_blanks;

/// Whether a text begins with `CREATE`, `ALTER` or `DROP DATABASE`: PostgreSQL refuses most of these while anybody is
/// connected to the database in question.
#[must_use]
pub fn changes_databases(sql: &[u8]) -> bool {
    let Some(text) = behind_blanks(sql) else {
        return false;
    };
    if !matches!(
        text.first().map(|byte| byte | 0x20),
        Some(b'a' | b'c' | b'd')
    ) {
        return false;
    }
    let mut words = text
        .split(u8::is_ascii_whitespace)
        .filter(|word| !word.is_empty());
    let mut next_is = |known: &[&[u8]]| {
        words
            .next()
            .is_some_and(|word| known.iter().any(|known| word.eq_ignore_ascii_case(known)))
    };
    next_is(&[b"create", b"alter", b"drop"]) && next_is(&[b"database"])
}

#[cfg(test)]
mod tests {
    use super::changes_databases;

    #[test]
    fn statements_about_databases_are_told_from_others() {
        for sql in [
            "DROP DATABASE shop",
            "/* a test */ create\n database \"x\" TEMPLATE shop",
            "ALTER DATABASE shop RENAME TO mart",
        ] {
            assert!(changes_databases(sql.as_bytes()), "{sql}");
        }
        for sql in [
            "",
            "DROP TABLE database",
            "COMMIT",
            "SELECT 'DROP DATABASE'",
            "/*",
        ] {
            assert!(!changes_databases(sql.as_bytes()), "{sql}");
        }
    }
}
