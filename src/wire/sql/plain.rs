//! Owns a quick yes: is a text one SELECT of the plainest kind? Most texts of most applications are.
//!
//! Where it says no, [`super::class`](fn@super::class) reads the text word by word.

use super::words::{LANES, MARGIN, windows};

/// Whether a text is one SELECT without parentheses, quotes, comments and words that write: it leaves nothing.
#[must_use]
pub fn is_plain_select(sql: &[u8]) -> bool {
    const SELECT: &[u8] = b"select";
    let text = sql.trim_ascii();
    let text = text.strip_suffix(b";").unwrap_or(text);
    let Some((word, rest)) = text.split_at_checked(SELECT.len()) else {
        return false;
    };
    let begins =
        word.eq_ignore_ascii_case(SELECT) && rest.first().is_some_and(u8::is_ascii_whitespace);
    begins && is_plain(rest)
}

fn is_plain(text: &[u8]) -> bool {
    let mut odd = [0; LANES];
    let rest = windows(text, |window| look(window, &mut odd));
    // Fewer than a window's bytes are left.
    let mut padded = [0; 2 * LANES + MARGIN];
    padded[..rest.len()].copy_from_slice(rest);
    for at in (0..rest.len()).step_by(LANES) {
        let window = padded[at..].first_chunk();
        look(window.expect("there is room behind the rest"), &mut odd);
    }
    odd == [0; LANES]
}

/// Marks places with a sign that calls, quotes, comments or parts statements, and beginnings of words that write.
#[inline(always)]
fn look(window: &[u8; LANES + MARGIN], odd: &mut [u8; LANES]) {
    for place in 0..LANES {
        let sign = window[place];
        let is = |offset: usize, letter: u8| u8::from(window[place + offset] | 0x20 == letter);
        let begins =
            |word: [u8; 4]| is(0, word[0]) & is(1, word[1]) & is(2, word[2]) & is(3, word[3]);
        let among = |known: u8| u8::from(sign == known);
        let digit = u8::from(window[place + 1].wrapping_sub(b'0') < 10);
        odd[place] |=
            among(b'(') | among(b'\'') | among(b'"') | among(b'\\') | among(b';') | among(b'/');
        odd[place] |= among(b'-') & u8::from(window[place + 1] == b'-');
        odd[place] |= among(b'$') & (1 ^ digit);
        odd[place] |= begins(*b"into") | begins(*b"inse") | begins(*b"upda");
        odd[place] |= begins(*b"dele") | begins(*b"next");
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire::sql::class::{Class, by_words};

    #[test]
    fn the_plainest_select_is_known() {
        for plain in [
            "SELECT abalance FROM pgbench_accounts WHERE aid = 12345;",
            "select 1",
            " SELECT a - b FROM t WHERE c = $1 AND d = $12 ORDER BY e LIMIT 3 ; ",
        ] {
            assert!(is_plain_select(plain.as_bytes()), "{plain}");
        }
    }

    #[test]
    fn what_is_odd_is_seen_wherever_it_stands() {
        for odd in [
            "f(", "'", "\"", "\\", ";", "/", "--", "$a", "$", " INTO", "insert", "Update",
            "DELETE", "nextval",
        ] {
            for before in 0..40 {
                for after in 0..40 {
                    let sql = format!("SELECT {}{odd}{}", "x".repeat(before), "y".repeat(after));
                    // A semicolon at the end parts nothing.
                    let end = odd == ";" && after == 0;
                    assert!(end || !is_plain_select(sql.as_bytes()), "{sql}");
                }
            }
        }
    }

    proptest! {
        #[test]
        fn whoever_reads_every_word_agrees(sql in "[sS]elect[ \n][ a-z0-9$;.,=*+()'-]{0,60}") {
            if is_plain_select(sql.as_bytes()) {
                prop_assert_eq!(by_words(sql.as_bytes(), &|_| false), Class::Read);
            }
        }
    }
}
