//! Owns the parts of extended-protocol messages that a decision needs: names and statement texts (chapter 55.7).

use std::rc::Rc;

use crate::wire::frame::{cstr, name};
use crate::wire::sql::{self, Class, is_bracket, reads_always_alike};

/// A prepared statement, as its Parse message said it.
#[derive(Debug, PartialEq, Eq)]
pub struct Statement {
    /// Its name; empty for the unnamed one.
    pub name: Box<[u8]>,
    /// The SQL text.
    pub text: Rc<[u8]>,
    /// The parameter types, as they stand in the message.
    types: Box<[u8]>,
    /// What running it may leave in the session.
    pub class: Class,
    /// It only opens or closes a transaction.
    pub bracket: bool,
    /// No setting changes how its text reads.
    pub plain: bool,
}

impl Statement {
    /// Reads the whole body of a Parse message.
    #[must_use]
    pub fn read(body: &[u8]) -> Option<Self> {
        Self::read_with(body, |text| text.into(), sql::class)
    }

    /// The same, with a text that `share` may take from one that is there already, and the class that `class` finds.
    pub fn read_with(
        body: &[u8],
        share: impl FnOnce(&[u8]) -> Rc<[u8]>,
        class: impl FnOnce(&[u8]) -> Class,
    ) -> Option<Self> {
        let (name, rest) = name(body)?;
        let (text, types) = cstr(rest)?;
        Some(Self {
            name: name.into(),
            text: share(text),
            types: types.into(),
            class: class(text),
            bracket: is_bracket(text),
            plain: reads_always_alike(text),
        })
    }

    /// About how much memory it takes, in bytes, if its text isn't shared.
    #[must_use]
    pub fn weight(&self) -> usize {
        128 + 2 * self.name.len() + self.text.len() + self.types.len()
    }

    /// Appends the Parse message that makes this statement.
    pub fn write_parse(&self, out: &mut Vec<u8>) {
        write_frame(
            out,
            b'P',
            &[&self.name, &b"\0"[..], &self.text, b"\0", &self.types].concat(),
        );
    }
}

/// Appends a frame.
pub fn write_frame(out: &mut Vec<u8>, kind: u8, body: &[u8]) {
    let length =
        u32::try_from(body.len() + 4).expect("a body comes from a frame with a 32-bit length");
    out.push(kind);
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(body);
}

/// The name of the statement that a Parse message makes.
#[must_use]
pub fn parse_name(body: &[u8]) -> Option<&[u8]> {
    Some(name(body)?.0)
}

/// The SQL text of a Parse message, or as much of it as is there.
#[must_use]
pub fn parse_text(body: &[u8]) -> Option<&[u8]> {
    let (_, rest) = name(body)?;
    Some(cstr(rest).map_or(rest, |(text, _)| text))
}

/// The value of a parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value<'a> {
    /// The message has no such parameter, or isn't there that far.
    Missing,
    Null,
    Bytes(&'a [u8]),
}

/// The value of a Bind message's parameter, the first being 0. Text is the same in both formats.
#[must_use]
pub fn bind_value(body: &[u8], index: u16) -> Value<'_> {
    read_value(body, index).unwrap_or(Value::Missing)
}

fn read_value(body: &[u8], index: u16) -> Option<Value<'_>> {
    let (_, rest) = name(body)?;
    let (_, rest) = name(rest)?;
    let (formats, rest) = rest.split_first_chunk::<2>()?;
    let rest = rest.get(2 * usize::from(u16::from_be_bytes(*formats))..)?;
    let (count, mut rest) = rest.split_first_chunk::<2>()?;
    for at in 0..u16::from_be_bytes(*count) {
        let (length, tail) = rest.split_first_chunk::<4>()?;
        let (value, length) = match usize::try_from(i32::from_be_bytes(*length)) {
            Err(_) => (Value::Null, 0),
            Ok(length) => (Value::Bytes(tail.get(..length)?), length),
        };
        if at == index {
            return Some(value);
        }
        rest = &tail[length..];
    }
    None
}

/// The name of the portal that a Bind message makes.
#[must_use]
pub fn bind_portal(body: &[u8]) -> Option<&[u8]> {
    Some(name(body)?.0)
}

/// The name of the statement that a Bind message runs.
#[must_use]
pub fn bind_statement(body: &[u8]) -> Option<&[u8]> {
    let (_, rest) = name(body)?;
    Some(name(rest)?.0)
}

/// What a Describe or Close message is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target<'a> {
    Statement(&'a [u8]),
    Portal(&'a [u8]),
}

/// Reads the body of a Describe or Close message.
#[must_use]
pub fn target(body: &[u8]) -> Option<Target<'_>> {
    let (kind, rest) = body.split_first()?;
    let (name, _) = name(rest)?;
    match kind {
        b'S' => Some(Target::Statement(name)),
        b'P' => Some(Target::Portal(name)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parse_message_is_kept_and_written_back_unchanged() {
        let statement = Statement::read(b"s1\0SELECT $1\0\0\x01\0\0\0\x17").unwrap();
        let mut out = Vec::new();

        statement.write_parse(&mut out);

        assert_eq!(&*statement.text, b"SELECT $1");
        assert_eq!(out, b"P\0\0\0\x17s1\0SELECT $1\0\0\x01\0\0\0\x17");
    }

    #[test]
    fn a_short_body_is_no_statement() {
        assert_eq!(Statement::read(b"s1\0SELECT"), None);
        assert_eq!(bind_statement(b"portal\0stat"), None);
        assert_eq!(target(b""), None);
    }

    #[test]
    fn a_parameter_s_value_is_found_whatever_stands_before_it() {
        let bind = b"portal\0s\0\0\x01\0\0\0\x03\xFF\xFF\xFF\xFF\0\0\0\x03a.b\0\0\0\x01x\0\0";
        assert_eq!(bind_value(bind, 0), Value::Null);
        assert_eq!(bind_value(bind, 1), Value::Bytes(b"a.b"));
        assert_eq!(bind_value(bind, 2), Value::Bytes(b"x"));
        assert_eq!(bind_value(bind, 3), Value::Missing);
        for cut in 0..bind.len() - 8 {
            assert_eq!(bind_value(&bind[..cut], 2), Value::Missing, "{cut}");
        }
    }
}
