//! Owns the text of a statement as people may see it: literals and comments removed.

/// The longest text that a view shows, in characters.
const SHOWN: usize = 240;

/// `sql` with each literal replaced by `?`, comments dropped and white space folded.
///
/// A text that was cut in the middle of a literal or comment loses that part: nothing of a literal ever shows.
#[must_use]
pub fn fingerprint(sql: &[u8]) -> String {
    let mut scan = Scan {
        sql,
        at: 0,
        out: String::new(),
    };
    while scan.at < sql.len() && scan.out.len() <= SHOWN * 4 {
        scan.step();
    }
    let text = scan.out.trim_end().trim_end_matches(';').trim_end();
    match text.char_indices().nth(SHOWN) {
        Some((cut, _)) => format!("{}…", &text[..cut]),
        None => text.to_owned(),
    }
}

/// What a name, begun, goes on with.
const fn is_inner(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'$') || byte >= 0x80
}

struct Scan<'a> {
    sql: &'a [u8],
    at: usize,
    out: String,
}

impl Scan<'_> {
    fn peek(&self, ahead: usize) -> u8 {
        self.sql.get(self.at + ahead).copied().unwrap_or(0)
    }

    /// Takes one token: what a `$` or a quote means depends on whether a name goes on there, so names are taken whole.
    fn step(&mut self) {
        match (self.peek(0), self.peek(1)) {
            (b'-', b'-') => self.skip_line(),
            (b'/', b'*') => self.skip_comment(),
            (b'\'', _) => self.literal(0, false),
            (b'e' | b'E', b'\'') => self.literal(1, true),
            (b'b' | b'B' | b'x' | b'X' | b'n' | b'N', b'\'') => self.literal(1, false),
            (b'"', _) => self.quoted_name(),
            (b'$', digit) if digit.is_ascii_digit() => {
                self.plain(1);
                self.plain_while(|byte| byte.is_ascii_digit());
            }
            (b'$', _) => self.dollar(),
            (b'.', digit) if digit.is_ascii_digit() => self.number(),
            (digit, _) if digit.is_ascii_digit() => self.number(),
            (space, _) if space.is_ascii_whitespace() => {
                self.at += 1;
                self.space();
            }
            (letter, _) if is_inner(letter) => self.plain_while(is_inner),
            _ => self.plain(1),
        }
    }

    fn space(&mut self) {
        if !self.out.is_empty() && !self.out.ends_with(' ') {
            self.out.push(' ');
        }
    }

    fn plain(&mut self, length: usize) {
        let start = self.at;
        self.at += length;
        self.out
            .push_str(&String::from_utf8_lossy(&self.sql[start..self.at]));
    }

    fn plain_while(&mut self, goes_on: impl Fn(u8) -> bool) {
        let rest = &self.sql[self.at..];
        let end = rest.iter().position(|byte| !goes_on(*byte));
        self.plain(end.unwrap_or(rest.len()));
    }

    fn skip_line(&mut self) {
        let rest = &self.sql[self.at..];
        self.at += memchr::memchr2(b'\n', b'\r', rest).unwrap_or(rest.len());
        self.space();
    }

    fn skip_comment(&mut self) {
        let mut depth = 0;
        while self.at < self.sql.len() {
            match (self.peek(0), self.peek(1)) {
                (b'/', b'*') => (depth, self.at) = (depth + 1, self.at + 2),
                (b'*', b'/') => (depth, self.at) = (depth - 1, self.at + 2),
                _ => self.at += 1,
            }
            if depth == 0 {
                break;
            }
        }
        self.space();
    }

    /// A literal that opens `prefix` bytes ahead; a doubled quote stays inside it, a backslash only in `E''`.
    fn literal(&mut self, prefix: usize, backslashes: bool) {
        self.at += prefix + 1;
        while self.at < self.sql.len() {
            match (self.peek(0), self.peek(1)) {
                (b'\\', _) if backslashes => self.at += 2,
                (b'\'', b'\'') => self.at += 2,
                (b'\'', _) => {
                    self.at += 1;
                    break;
                }
                _ => self.at += 1,
            }
        }
        self.out.push('?');
    }

    fn quoted_name(&mut self) {
        let rest = &self.sql[self.at + 1..];
        let length = memchr::memchr(b'"', rest).map_or(rest.len(), |end| end + 1) + 1;
        self.out.push_str(&String::from_utf8_lossy(
            &self.sql[self.at..self.at + length],
        ));
        self.at += length;
    }

    /// `$tag$…$tag$`, or a plain dollar.
    fn dollar(&mut self) {
        let rest = &self.sql[self.at..];
        let tag = rest[1..]
            .iter()
            .position(|byte| !(byte.is_ascii_alphanumeric() || *byte == b'_' || *byte >= 0x80));
        let Some(tag) = tag
            .filter(|end| rest[1 + end] == b'$')
            .map(|end| &rest[..end + 2])
        else {
            return self.plain(1);
        };
        let body = &rest[tag.len()..];
        self.at += memchr::memmem::find(body, tag).map_or(rest.len(), |end| end + 2 * tag.len());
        self.out.push('?');
    }

    /// A number, and the name that may stick to it, as PostgreSQL up to version 14 reads it.
    fn number(&mut self) {
        loop {
            match (self.peek(0), self.peek(1)) {
                (b'0'..=b'9' | b'.', _) => self.at += 1,
                (b'e' | b'E', b'+' | b'-') if self.peek(2).is_ascii_digit() => self.at += 2,
                (byte, next) if byte != b'$' && next != b'\'' && is_inner(byte) => {
                    let rest = &self.sql[self.at..];
                    let end = rest.iter().position(|byte| !is_inner(*byte));
                    self.at += end.unwrap_or(rest.len());
                    break;
                }
                _ => break,
            }
        }
        self.out.push('?');
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::fingerprint;

    #[test]
    fn literals_go_and_names_stay() {
        let cases = [
            (
                "INSERT INTO jobs (name, n) VALUES ('a''b', 42)",
                "INSERT INTO jobs (name, n) VALUES (?, ?)",
            ),
            (
                "select  *\n from t1 where x=-1.5e-3;",
                "select * from t1 where x=-?",
            ),
            (
                "SELECT E'a\\'b', $1, $$body$$, $f$x$$y$f$",
                "SELECT ?, $1, ?, ?",
            ),
            (
                "/* app:web */ SELECT \"Col 1\" -- trailing 'x'",
                "SELECT \"Col 1\"",
            ),
            ("ALTER ROLE a PASSWORD 'sec", "ALTER ROLE a PASSWORD ?"),
            ("SELECT x'ff', 0x1F, .5", "SELECT ?, ?, ?"),
            ("SELECT $tag$ cut", "SELECT ?"),
            // PostgreSQL refuses these, and yet they are shown.
            ("SELECT $1$x$body$x$, 1$x$body$x$", "SELECT $1?, ??"),
            ("SELECT $a$x$a$$b$y$b$ $a$x$a$e'\\'z'", "SELECT ?? ??"),
            ("SELECT 1 -- a\r, 'b'", "SELECT ? , ?"),
            ("SELECT a$x$b, 1e'\\'z'", "SELECT a$x$b, ??"),
            ("SELECT 1e--\"\n1, 'b'", "SELECT ? ?, ?"),
            ("", ""),
        ];
        for (sql, expected) in cases {
            assert_eq!(fingerprint(sql.as_bytes()), expected, "{sql}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(sql in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = fingerprint(&sql);
        }

        #[test]
        fn a_quoted_secret_never_shows(secret in "[a-z]{12}", cut in 0usize..60) {
            let sql = format!("UPDATE t SET p = 'x{secret}' WHERE q = $a${secret}$a$ AND r = E'{secret}'");
            let cut = &sql[..cut.min(sql.len())];
            prop_assert!(!fingerprint(cut.as_bytes()).contains(&secret));
            prop_assert!(!fingerprint(sql.as_bytes()).contains(&secret));
        }
    }
}
