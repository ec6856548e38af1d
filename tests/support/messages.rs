//! Frontend messages as bytes, and backend messages as a tag with a body. Protocol chapter 55.7.

/// One message from the backend.
#[derive(Clone, PartialEq, Eq)]
pub struct Message {
    pub tag: u8,
    pub body: Vec<u8>,
}

impl Message {
    /// A field of an ErrorResponse or NoticeResponse: `b'C'` is the SQLSTATE, `b'M'` the message, `b'H'` the hint.
    pub fn field(&self, code: u8) -> Option<String> {
        let fields = self.body.split(|&byte| byte == 0);
        fields
            .filter(|field| !field.is_empty())
            .find(|field| field[0] == code)
            .map(|field| text(&field[1..]))
    }

    pub fn sqlstate(&self) -> String {
        self.field(b'C').unwrap_or_default()
    }

    /// The columns of a DataRow as text, NULL as "NULL".
    pub fn columns(&self) -> Vec<String> {
        assert_eq!(self.tag, b'D', "not a DataRow: {self:?}");
        let count = u16::from_be_bytes([self.body[0], self.body[1]]);
        let mut rest = &self.body[2..];
        let mut column = || {
            let length = i32::from_be_bytes(rest[..4].try_into().expect("four bytes"));
            let value = usize::try_from(length)
                .map_or("NULL".to_owned(), |length| text(&rest[4..4 + length]));
            rest = &rest[4 + usize::try_from(length).unwrap_or(0)..];
            value
        };
        (0..count).map(|_| column()).collect()
    }

    /// The transaction status of a ReadyForQuery: `I`, `T` or `E`.
    pub fn status(&self) -> char {
        assert_eq!(self.tag, b'Z', "not a ReadyForQuery: {self:?}");
        self.body[0] as char
    }
}

impl std::fmt::Debug for Message {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{}[{}]{:?}",
            self.tag as char,
            self.body.len(),
            text(&self.body[..self.body.len().min(300)])
        )
    }
}

/// The tags of some messages, in order: the shape of an answer, such as "TDCZ".
pub fn tags(messages: &[Message]) -> String {
    messages.iter().map(|message| message.tag as char).collect()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A frame of `tag`, its length, and `body`.
pub fn frame(tag: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).expect("a test's message is small");
    [&[tag], &length.to_be_bytes()[..], body].concat()
}

fn cstr(text: &str) -> Vec<u8> {
    [text.as_bytes(), &[0]].concat()
}

/// A StartupMessage of protocol version `version` (`0x0003_0000` is 3.0).
pub fn startup(version: u32, parameters: &[(&str, &str)]) -> Vec<u8> {
    let pairs: Vec<u8> = parameters
        .iter()
        .flat_map(|(name, value)| [cstr(name), cstr(value)].concat())
        .collect();
    let length = u32::try_from(9 + pairs.len()).expect("a test's message is small");
    [
        &length.to_be_bytes()[..],
        &version.to_be_bytes(),
        &pairs,
        &[0],
    ]
    .concat()
}

/// A startup packet of a bare request code: SSLRequest, GSSENCRequest.
pub fn request(code: u32) -> Vec<u8> {
    [8u32.to_be_bytes(), code.to_be_bytes()].concat()
}

pub const SSL_REQUEST: u32 = 80_877_103;
pub const GSSENC_REQUEST: u32 = 80_877_104;

pub fn cancel_request(pid: i32, key: &[u8]) -> Vec<u8> {
    let length = u32::try_from(12 + key.len()).expect("a key is short");
    [
        &length.to_be_bytes()[..],
        &80_877_102u32.to_be_bytes(),
        &pid.to_be_bytes(),
        key,
    ]
    .concat()
}

pub fn query(sql: &str) -> Vec<u8> {
    frame(b'Q', &cstr(sql))
}

pub fn parse(name: &str, sql: &str) -> Vec<u8> {
    frame(b'P', &[cstr(name), cstr(sql), vec![0, 0]].concat())
}

/// Parse with parameter types that the client chooses.
pub fn parse_typed(name: &str, sql: &str, types: &[u32]) -> Vec<u8> {
    let count = u16::try_from(types.len())
        .expect("few parameters")
        .to_be_bytes()
        .to_vec();
    let types: Vec<u8> = types.iter().flat_map(|oid| oid.to_be_bytes()).collect();
    frame(b'P', &[cstr(name), cstr(sql), count, types].concat())
}

/// Bind with text parameters and text results.
pub fn bind(portal: &str, statement: &str, values: &[&str]) -> Vec<u8> {
    let count = u16::try_from(values.len())
        .expect("few parameters")
        .to_be_bytes()
        .to_vec();
    let value = |value: &&str| {
        [
            &u32::try_from(value.len()).expect("short").to_be_bytes()[..],
            value.as_bytes(),
        ]
        .concat()
    };
    let values: Vec<u8> = values.iter().flat_map(value).collect();
    frame(
        b'B',
        &[
            cstr(portal),
            cstr(statement),
            vec![0, 0],
            count,
            values,
            vec![0, 0],
        ]
        .concat(),
    )
}

pub fn describe_statement(name: &str) -> Vec<u8> {
    frame(b'D', &[vec![b'S'], cstr(name)].concat())
}

pub fn describe_portal(name: &str) -> Vec<u8> {
    frame(b'D', &[vec![b'P'], cstr(name)].concat())
}

/// Execute; `limit` 0 is no limit.
pub fn execute(portal: &str, limit: u32) -> Vec<u8> {
    frame(b'E', &[cstr(portal), limit.to_be_bytes().to_vec()].concat())
}

pub fn close_statement(name: &str) -> Vec<u8> {
    frame(b'C', &[vec![b'S'], cstr(name)].concat())
}

pub fn close_portal(name: &str) -> Vec<u8> {
    frame(b'C', &[vec![b'P'], cstr(name)].concat())
}

pub fn sync() -> Vec<u8> {
    frame(b'S', &[])
}

pub fn flush() -> Vec<u8> {
    frame(b'H', &[])
}

pub fn terminate() -> Vec<u8> {
    frame(b'X', &[])
}

pub fn copy_data(data: &str) -> Vec<u8> {
    frame(b'd', data.as_bytes())
}

pub fn copy_done() -> Vec<u8> {
    frame(b'c', &[])
}

pub fn copy_fail(why: &str) -> Vec<u8> {
    frame(b'f', &cstr(why))
}

/// FunctionCall with binary arguments and a binary result.
pub fn function_call(oid: u32, arguments: &[&[u8]]) -> Vec<u8> {
    let count = u16::try_from(arguments.len())
        .expect("few arguments")
        .to_be_bytes();
    let argument = |value: &&[u8]| {
        [
            &u32::try_from(value.len()).expect("short").to_be_bytes()[..],
            value,
        ]
        .concat()
    };
    let arguments: Vec<u8> = arguments.iter().flat_map(argument).collect();
    frame(
        b'F',
        &[
            &oid.to_be_bytes()[..],
            &[0, 1, 0, 1],
            &count,
            &arguments,
            &[0, 1],
        ]
        .concat(),
    )
}

/// The unnamed statement, from Parse to Execute, without its Sync.
pub fn extended(sql: &str, values: &[&str]) -> Vec<u8> {
    [
        parse("", sql),
        bind("", "", values),
        describe_portal(""),
        execute("", 0),
    ]
    .concat()
}

/// A request that is carried out, and one more that is read, without a Sync behind them: `sql`, and a statement that is
/// made.
pub fn unsynced(sql: &str) -> Vec<u8> {
    let made = parse("last", "SELECT 1");
    [parse("", sql), bind("", "", &[]), execute("", 0), made].concat()
}
