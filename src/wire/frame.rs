//! Owns the framing of messages: one type byte, a length that counts itself, a body (protocol chapter 55.2).

/// The bytes of a header: the type and the length.
pub const HEADER: usize = 5;

/// The longest message that PostgreSQL takes or sends (PQ_LARGE_MESSAGE_LIMIT), in bytes.
const MAX_LENGTH: u32 = 0x3FFF_FFFE;

/// A message whose length field is below its own size, or beyond what PostgreSQL knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a message of type {kind:#04x} claims a length of {length}, which is not within 4 and {MAX_LENGTH}"
)]
pub struct BadLength {
    pub kind: u8,
    pub length: u32,
}

/// The header of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The type byte.
    pub kind: u8,
    /// The bytes of the body.
    pub body: usize,
}

impl Header {
    /// The bytes of the whole frame.
    #[must_use]
    pub const fn total(self) -> usize {
        HEADER + self.body
    }

    /// Reads the header at the start of `bytes`; `None` when it isn't there as a whole yet.
    ///
    /// # Errors
    /// A length out of bounds: the stream can't be followed from there on.
    #[inline]
    pub fn read(bytes: &[u8]) -> Result<Option<Self>, BadLength> {
        let &[kind, a, b, c, d, ..] = bytes else {
            return Ok(None);
        };
        let length = u32::from_be_bytes([a, b, c, d]);
        if !(4..=MAX_LENGTH).contains(&length) {
            return Err(BadLength { kind, length });
        }
        Ok(Some(Self {
            kind,
            body: length as usize - 4,
        }))
    }
}

/// Splits a zero-terminated string off the front.
#[must_use]
pub fn cstr(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = memchr::memchr(0, bytes)?;
    Some((&bytes[..end], &bytes[end + 1..]))
}

/// The same for names, most of which end within eight bytes: those are looked at together. What is borrowed from one that
/// is zero reaches its high bit ("Bit Twiddling Hacks", determine if a word has a zero byte); the lowest such bit is right.
#[inline]
#[must_use]
pub fn name(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    const ONES: u64 = u64::from_ne_bytes([0x01; 8]);
    const HIGHS: u64 = u64::from_ne_bytes([0x80; 8]);
    if let Some(first) = bytes.first_chunk() {
        let word = u64::from_le_bytes(*first);
        let zeros = word.wrapping_sub(ONES) & !word & HIGHS;
        if zeros != 0 {
            let end = (zeros.trailing_zeros() / 8) as usize;
            return Some((&bytes[..end], &bytes[end + 1..]));
        }
    } else {
        let end = bytes.iter().position(|byte| *byte == 0)?;
        return Some((&bytes[..end], &bytes[end + 1..]));
    }
    cstr(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_read_only_when_it_is_whole() {
        assert_eq!(Header::read(b"Q\0\0\0"), Ok(None));
        assert_eq!(
            Header::read(b"Q\0\0\0\x09"),
            Ok(Some(Header {
                kind: b'Q',
                body: 5
            }))
        );
    }

    #[test]
    fn a_name_ends_where_its_zero_is() {
        let text: Vec<u8> = (0..40).map(|at| [0x01, 0x80, 0xFF, b'a'][at % 4]).collect();
        for (start, end) in (0..8).flat_map(|start| (start..32).map(move |end| (start, end))) {
            for rest in [&b""[..], b"\0", b"\x01", b"more\0and more\0"] {
                let bytes = [&text[start..end], b"\0", rest].concat();
                assert_eq!(name(&bytes), Some((&text[start..end], rest)));
                assert_eq!(name(&bytes), cstr(&bytes));
            }
            assert_eq!(name(&text[start..end]), None);
        }
    }

    #[test]
    fn a_length_below_its_own_size_is_refused() {
        assert_eq!(
            Header::read(b"Q\0\0\0\x03"),
            Err(BadLength {
                kind: b'Q',
                length: 3
            })
        );
    }
}
