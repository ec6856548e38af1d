//! SQL's tokens, as PostgreSQL's scan.l has them, read the slow and plain way: what the fast readers are held against.

/// Whether a backslash means something in a plain literal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backslash {
    /// `standard_conforming_strings = on`.
    Plain,
    /// `standard_conforming_strings = off`.
    Escapes,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Word,
    Quoted,
    /// A literal; the token's `inner` is what stands between its quotes.
    Literal,
    Number,
    /// `$1`
    Parameter,
    Sign,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token<'a> {
    pub kind: Kind,
    pub text: &'a [u8],
    /// Where it begins.
    pub at: usize,
    /// From where to where it holds a literal's content.
    pub inner: (usize, usize),
}

impl Token<'_> {
    pub fn is(&self, word: &str) -> bool {
        match self.kind {
            Kind::Word => self.text.eq_ignore_ascii_case(word.as_bytes()),
            Kind::Quoted => self.text == format!("\"{word}\"").as_bytes(),
            Kind::Literal | Kind::Number | Kind::Parameter | Kind::Sign => false,
        }
    }

    pub fn is_sign(&self, sign: u8) -> bool {
        self.kind == Kind::Sign && self.text == [sign]
    }
}

/// The tokens of a text; `None` where PostgreSQL refuses it whole, since something doesn't end.
pub fn tokens(sql: &[u8], backslash: Backslash) -> Option<Vec<Token<'_>>> {
    let (mut tokens, mut at) = (Vec::new(), 0);
    while let Some(first) = sql.get(at) {
        let rest = &sql[at..];
        let second = rest.get(1).copied();
        let (kind, length, inner) = match (*first, second) {
            (b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c, _) => {
                at += 1;
                continue;
            }
            (b'-', Some(b'-')) => {
                at += rest
                    .iter()
                    .position(|byte| matches!(byte, b'\n' | b'\r'))
                    .unwrap_or(rest.len());
                continue;
            }
            (b'/', Some(b'*')) => {
                at += comment(rest)?;
                continue;
            }
            (b'e' | b'E', Some(b'\'')) => literal(rest, 2, true)?,
            (b'b' | b'B' | b'x' | b'X' | b'n' | b'N', Some(b'\'')) => {
                let escapes = backslash == Backslash::Escapes && matches!(first, b'n' | b'N');
                literal(rest, 2, escapes)?
            }
            (b'\'', _) => literal(rest, 1, backslash == Backslash::Escapes)?,
            (b'"', _) => {
                let (_, length, inner) = closed(rest, 1, b'"', false)?;
                (Kind::Quoted, length, inner)
            }
            (b'$', Some(b'0'..=b'9')) => {
                let digits = rest[1..].iter().take_while(|byte| byte.is_ascii_digit());
                (Kind::Parameter, 1 + digits.count(), (0, 0))
            }
            (b'$', _) => match dollar(rest) {
                Some(found) => found?,
                None => (Kind::Sign, 1, (0, 0)),
            },
            (byte, _) if is_start(byte) => {
                let length = rest.iter().take_while(|byte| is_inner(**byte)).count();
                (Kind::Word, length, (0, 0))
            }
            (byte, _) if byte.is_ascii_digit() => {
                let digits = rest.iter().take_while(|byte| byte.is_ascii_digit());
                (Kind::Number, digits.count(), (0, 0))
            }
            _ => (Kind::Sign, 1, (0, 0)),
        };
        tokens.push(Token {
            kind,
            text: &rest[..length],
            at,
            inner: (at + inner.0, at + inner.1),
        });
        at += length;
    }
    Some(tokens)
}

const fn is_start(byte: u8) -> bool {
    byte.is_ascii_alphabetic() || byte == b'_' || byte >= 0x80
}

const fn is_inner(byte: u8) -> bool {
    is_start(byte) || byte.is_ascii_digit() || byte == b'$'
}

fn comment(text: &[u8]) -> Option<usize> {
    let (mut depth, mut at) = (0_usize, 0);
    loop {
        match (text.get(at)?, text.get(at + 1)) {
            (b'/', Some(b'*')) => (depth, at) = (depth + 1, at + 2),
            (b'*', Some(b'/')) => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            return Some(at);
        }
    }
}

type Found = (Kind, usize, (usize, usize));

fn literal(text: &[u8], from: usize, escapes: bool) -> Option<Found> {
    closed(text, from, b'\'', escapes)
}

fn closed(text: &[u8], from: usize, quote: u8, escapes: bool) -> Option<Found> {
    let mut at = from;
    loop {
        match text.get(at)? {
            b'\\' if escapes => at += 2,
            byte if *byte == quote && text.get(at + 1) == Some(&quote) => at += 2,
            byte if *byte == quote => return Some((Kind::Literal, at + 1, (from, at))),
            _ => at += 1,
        }
    }
}

/// `None` where it is no dollar-quoted literal, `Some(None)` where it doesn't end.
fn dollar(text: &[u8]) -> Option<Option<Found>> {
    let tag = text[1..]
        .iter()
        .take_while(|byte| is_inner(**byte) && **byte != b'$')
        .count();
    if text.get(1 + tag) != Some(&b'$') || text[1].is_ascii_digit() {
        return None;
    }
    let (tag, body) = text.split_at(tag + 2);
    let end = body.windows(tag.len()).position(|window| window == tag);
    Some(end.map(|end| {
        let inner = (tag.len(), tag.len() + end);
        (Kind::Literal, end + 2 * tag.len(), inner)
    }))
}
