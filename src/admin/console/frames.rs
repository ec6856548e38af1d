//! Owns the reading of a guest's messages: every length and count is judged before pgwire's types are made of them
//! (protocol chapter 55.7).

use bytes::{Buf, Bytes, BytesMut};
use pgwire::messages::PgWireFrontendMessage as Message;
use pgwire::messages::extendedquery::{Bind, Close, Describe, Execute, Flush, Parse, Sync};
use pgwire::messages::simplequery::Query;

use tokio::io::DuplexStream;

use crate::wire::reply::{ClientError, Fault};

/// A message that isn't taken.
#[derive(Debug)]
pub(super) struct Bad {
    pub error: ClientError,
    /// Nothing that follows could be understood.
    pub fatal: bool,
}

impl Bad {
    /// The connection ends with it.
    pub fn fatal(text: &str) -> Self {
        Self {
            error: ClientError::new(Fault::Client, "08P01", text),
            fatal: true,
        }
    }
}

/// The next message; none when the guest leaves. Not cancel safe.
pub(super) async fn next(
    stream: &mut DuplexStream,
) -> std::io::Result<Result<Option<Message>, Bad>> {
    let (kind, body) = match super::frame(stream).await? {
        None => return Ok(Ok(None)),
        Some(Err(bad)) => return Ok(Err(bad)),
        Some(Ok(frame)) => frame,
    };
    if kind == b'X' {
        return Ok(Ok(None));
    }
    let mut body = Body(body);
    let read = read(kind, &mut body).filter(|_| body.0.is_empty());
    let wrong = || match kind {
        b'Q' | b'P' | b'B' | b'D' | b'E' | b'C' | b'S' | b'H' => {
            Bad::fatal("a message that can't be read")
        }
        b'F' => Bad {
            error: ClientError::new(Fault::Client, "0A000", "the console calls no functions"),
            fatal: true,
        },
        _ => Bad::fatal("a message of a kind that isn't for the console"),
    };
    Ok(read.map(Some).ok_or_else(wrong))
}

fn read(kind: u8, body: &mut Body) -> Option<Message> {
    Some(match kind {
        b'Q' => Message::Query(Query::new(body.text()?)),
        b'P' => {
            let (name, query) = (body.name()?, body.text()?);
            Message::Parse(Parse::new(name, query, body.list(Body::u32)?))
        }
        b'B' => {
            let (portal, statement) = (body.name()?, body.name()?);
            let formats = body.list(Body::i16)?;
            let values = body.list(Body::value)?;
            let results = body.list(Body::i16)?;
            Message::Bind(Bind::new(portal, statement, formats, values, results))
        }
        b'D' => Message::Describe(Describe::new(body.u8()?, body.name()?)),
        b'E' => Message::Execute(Execute::new(body.name()?, body.rows()?)),
        b'C' => Message::Close(Close::new(body.u8()?, body.name()?)),
        b'S' => Message::Sync(Sync::new()),
        b'H' => Message::Flush(Flush::new()),
        _ => return None,
    })
}

/// What is left of a message's body.
struct Body(BytesMut);

impl Body {
    fn text(&mut self) -> Option<String> {
        let end = memchr::memchr(0, &self.0)?;
        let text = self.0.split_to(end);
        self.0.advance(1);
        String::from_utf8(text.to_vec()).ok()
    }

    /// A text that may be empty: then it is no name.
    fn name(&mut self) -> Option<Option<String>> {
        let name = self.text()?;
        Some((!name.is_empty()).then_some(name))
    }

    fn u8(&mut self) -> Option<u8> {
        self.0.try_get_u8().ok()
    }

    fn u32(&mut self) -> Option<u32> {
        self.0.try_get_u32().ok()
    }

    fn i16(&mut self) -> Option<i16> {
        self.0.try_get_i16().ok()
    }

    /// A bound of rows; a negative one is none.
    fn rows(&mut self) -> Option<i32> {
        Some(self.0.try_get_i32().ok()?.max(0))
    }

    fn value(&mut self) -> Option<Option<Bytes>> {
        let length = self.0.try_get_i32().ok()?;
        let Ok(length) = usize::try_from(length) else {
            return (length == -1).then_some(None);
        };
        (length <= self.0.len()).then(|| Some(self.0.split_to(length).freeze()))
    }

    /// A count, and so many of something: as many as there are bytes, at most.
    fn list<T>(&mut self, item: impl Fn(&mut Self) -> Option<T>) -> Option<Vec<T>> {
        let count = self.0.try_get_u16().ok()?;
        (0..count).map(|_| item(self)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(kind: u8, bytes: Vec<u8>) {
            let mut body = Body(BytesMut::from(&bytes[..]));
            let _ = read(kind, &mut body);
        }
    }

    #[test]
    fn a_bind_is_read_to_its_end() {
        let mut body = Body(BytesMut::from(
            &b"p\0s\0\0\x01\0\x01\0\x02\0\0\0\x02hi\xff\xff\xff\xff\0\x01\0\0"[..],
        ));
        let Some(Message::Bind(bind)) = read(b'B', &mut body) else {
            panic!("it is a Bind")
        };
        assert!(body.0.is_empty());
        assert_eq!(bind.parameters, [Some(Bytes::from_static(b"hi")), None]);
        assert_eq!(bind.result_column_format_codes, [0]);
    }
}
