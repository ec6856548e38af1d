//! Owns one question about a text that changed roles: was it this one?

use super::single::behind_blanks;

/// What stands for roles without naming them.
const UNNAMED: [&[u8]; 4] = [b"all", b"current_role", b"current_user", b"session_user"];

/// Whether the tag of a CommandComplete tells of a role that was changed or dropped, or of a database that may have other
/// defaults now, for all of its roles.
#[must_use]
pub fn changes_roles(tag: &[u8]) -> bool {
    const TAGS: [&[u8]; 3] = [b"ALTER ROLE", b"DROP ROLE", b"ALTER DATABASE"];
    TAGS.iter().any(|known| tag.starts_with(known))
}

/// Whether a text that changed roles may have changed this one. In doubt it has.
#[must_use]
pub fn may_change_role(sql: &[u8], role: &str) -> bool {
    let contains =
        |word: &[u8]| (sql.windows(word.len().max(1))).any(|part| part.eq_ignore_ascii_case(word));
    let escapes = contains(b"U&") || contains(b"\"\"");
    let unnamed = UNNAMED.iter().any(|word| contains(word));
    !is_plain(sql) || escapes || unnamed || contains(role.as_bytes())
}

/// Whether the text itself is the command, so that it names whom it changes.
fn is_plain(sql: &[u8]) -> bool {
    let words = behind_blanks(sql).unwrap_or_default();
    let mut words = words
        .split(u8::is_ascii_whitespace)
        .filter(|word| !word.is_empty());
    let mut next_is = |known: &[&[u8]]| {
        let word = words.next().unwrap_or_default();
        known.iter().any(|known| word.eq_ignore_ascii_case(known))
    };
    next_is(&[b"alter", b"drop"]) && next_is(&[b"role", b"user", b"group"])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_role_that_a_text_changes_is_told_from_others() {
        for changed in [
            "ALTER ROLE App SET work_mem = '8MB'",
            "/* it */ drop user if exists other, app",
            "ALTER USER \"app\" RENAME TO x",
            "ALTER ROLE ALL SET work_mem = '8MB'",
            "alter role current_user nologin",
            "ALTER ROLE U&\"\\0061pp\" NOLOGIN",
            "BEGIN; ALTER ROLE other NOLOGIN; COMMIT",
            "ALTER DATABASE other SET work_mem = '8MB'",
            "",
        ] {
            assert!(may_change_role(changed.as_bytes(), "app"), "{changed}");
        }
        assert!(!may_change_role(b"ALTER ROLE other NOLOGIN", "app"));
        assert!(changes_roles(b"DROP ROLE\0") && !changes_roles(b"CREATE ROLE\0"));
    }
}
