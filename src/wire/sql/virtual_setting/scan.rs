//! Owns the tokens of SQL, as far as statements about settings have any.

/// A place in a text.
pub(in crate::wire::sql) struct Scan<'a> {
    rest: &'a [u8],
}

impl<'a> Scan<'a> {
    pub fn new(sql: &'a [u8]) -> Self {
        Self { rest: sql }
    }

    /// Passes over white space and comments; a comment that doesn't end stays.
    fn skip(&mut self) {
        loop {
            self.rest = match self.rest {
                [b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c, rest @ ..] => rest,
                [b'-', b'-', rest @ ..] => &rest[line(rest)..],
                [b'/', b'*', ..] => match comment(self.rest) {
                    Some(end) => &self.rest[end..],
                    None => return,
                },
                _ => return,
            };
        }
    }

    /// Whether nothing but semicolons is left.
    pub fn ends(&mut self) -> bool {
        while self.symbol(b';') {}
        self.rest.is_empty()
    }

    /// Takes this character.
    pub fn symbol(&mut self, symbol: u8) -> bool {
        self.skip();
        match self.rest.split_first() {
            Some((first, rest)) if *first == symbol => {
                self.rest = rest;
                true
            }
            Some(_) | None => false,
        }
    }

    /// Takes this word, in any case.
    pub fn keyword(&mut self, word: &[u8]) -> bool {
        self.skip();
        let end = word_end(self.rest);
        let is = self.rest[..end].eq_ignore_ascii_case(word);
        if is {
            self.rest = &self.rest[end..];
        }
        is
    }

    /// Takes a name: lower case unless quoted.
    pub fn identifier(&mut self) -> Option<Vec<u8>> {
        self.skip();
        if let Some(quoted) = self.rest.strip_prefix(b"\"") {
            let (name, rest) = quoted_text(quoted, b'"')?;
            self.rest = rest;
            return Some(name).filter(|name| !name.is_empty());
        }
        let starts = self
            .rest
            .first()
            .is_some_and(|byte| is_word(*byte) && !byte.is_ascii_digit() && *byte != b'$');
        let end = word_end(self.rest);
        let (name, rest) = self.rest.split_at(end);
        starts.then(|| {
            self.rest = rest;
            name.to_ascii_lowercase()
        })
    }

    /// Takes a plain literal. One with a backslash is left: its meaning depends on a setting.
    pub fn literal(&mut self) -> Option<String> {
        self.skip();
        let (text, rest) = quoted_text(self.rest.strip_prefix(b"'")?, b'\'')?;
        if text.contains(&b'\\') {
            return None;
        }
        self.rest = rest;
        Some(String::from_utf8_lossy(&text).into_owned())
    }

    /// Takes a whole number.
    pub fn number(&mut self) -> Option<String> {
        self.skip();
        let end = word_end(self.rest);
        let (word, rest) = self.rest.split_at(end);
        let digits = !word.is_empty() && word.iter().all(u8::is_ascii_digit);
        digits.then(|| {
            self.rest = rest;
            String::from_utf8_lossy(word).into_owned()
        })
    }
}

const fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'$') || byte >= 0x80
}

fn word_end(text: &[u8]) -> usize {
    text.iter()
        .position(|byte| !is_word(*byte))
        .unwrap_or(text.len())
}

fn line(text: &[u8]) -> usize {
    memchr::memchr2(b'\n', b'\r', text).unwrap_or(text.len())
}

/// Where the comment that begins here ends; comments nest.
fn comment(text: &[u8]) -> Option<usize> {
    let (mut depth, mut at) = (0, 0);
    loop {
        match text.get(at..at + 2)? {
            b"/*" => (depth, at) = (depth + 1, at + 2),
            b"*/" => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            return Some(at);
        }
    }
}

/// What stands before the closing quote, doubled ones undone, and what stands behind it.
fn quoted_text(text: &[u8], quote: u8) -> Option<(Vec<u8>, &[u8])> {
    let (mut inner, mut rest) = (Vec::new(), text);
    loop {
        let end = memchr::memchr(quote, rest)?;
        inner.extend_from_slice(&rest[..end]);
        rest = &rest[end + 1..];
        match rest.strip_prefix(&[quote]) {
            Some(more) => {
                inner.push(quote);
                rest = more;
            }
            None => return Some((inner, rest)),
        }
    }
}

/// The statements of a text, split at the semicolons outside of literals, names and comments. Empty ones are left out.
pub(super) fn pieces(sql: &[u8]) -> Vec<&[u8]> {
    let (mut pieces, mut start, mut at) = (Vec::new(), 0, 0);
    while at < sql.len() {
        if sql[at] == b';' {
            pieces.push(&sql[start..at]);
            start = at + 1;
        }
        at += token(&sql[at..], at > 0 && is_word(sql[at - 1]));
    }
    pieces.push(&sql[start.min(sql.len())..]);
    pieces.retain(|piece| !Scan::new(piece).ends());
    pieces
}

/// How long the token at the beginning of `text` is; one that doesn't end takes everything.
fn token(text: &[u8], in_word: bool) -> usize {
    let quoted = |from: usize, quote| {
        quoted_text(&text[from..], quote).map_or(text.len(), |(_, rest)| text.len() - rest.len())
    };
    match text {
        [b'-', b'-', rest @ ..] => 2 + line(rest),
        [b'/', b'*', ..] => comment(text).unwrap_or(text.len()),
        [b'e' | b'E', b'\'', ..] if !in_word => escaped(text),
        [b'\'', ..] => quoted(1, b'\''),
        [b'"', ..] => quoted(1, b'"'),
        [b'$', rest @ ..] if !in_word => dollar(text, rest),
        _ => 1,
    }
}

/// The length of `E'…'`.
fn escaped(text: &[u8]) -> usize {
    let mut at = 2;
    while at < text.len() {
        match text[at] {
            b'\\' => at += 2,
            b'\'' => return at + 1,
            _ => at += 1,
        }
    }
    text.len()
}

/// The length of `$tag$…$tag$`, or of a plain dollar.
fn dollar(text: &[u8], rest: &[u8]) -> usize {
    let tag = rest
        .iter()
        .position(|byte| !is_word(*byte) || *byte == b'$')
        .filter(|end| rest[*end] == b'$' && !rest[0].is_ascii_digit());
    let Some(end) = tag else { return 1 };
    let (tag, body) = text.split_at(end + 2);
    memchr::memmem::find(body, tag).map_or(text.len(), |found| found + 2 * tag.len())
}
