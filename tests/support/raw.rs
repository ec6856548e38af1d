//! A client that sends exactly the bytes it is told to, and reads one message at a time, each within the deadline.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};

use super::messages::{self, Message};
use super::{DEADLINE, tags};

pub struct Raw {
    stream: TcpStream,
    /// ParameterStatus as last reported.
    pub parameters: BTreeMap<String, String>,
    /// From BackendKeyData: what a CancelRequest must carry. Through pgvalet the pid is the session's id.
    pub pid: i32,
    pub key: Vec<u8>,
}

impl Raw {
    /// Connects, and sends nothing yet.
    #[track_caller]
    pub fn dial(port: u16) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", port)).expect("somebody listens there");
        stream
            .set_read_timeout(Some(DEADLINE))
            .expect("a timeout can be set");
        stream
            .set_write_timeout(Some(DEADLINE))
            .expect("a timeout can be set");
        stream.set_nodelay(true).expect("nodelay can be set");
        Self {
            stream,
            parameters: BTreeMap::new(),
            pid: 0,
            key: Vec::new(),
        }
    }

    /// A session of user and database `postgres`, ready for its first query. Where both sides trust.
    #[track_caller]
    pub fn connect(port: u16) -> Self {
        Self::connect_with(port, &[("user", "postgres"), ("database", "postgres")])
    }

    #[track_caller]
    pub fn connect_with(port: u16, parameters: &[(&str, &str)]) -> Self {
        let mut raw = Self::dial(port);
        raw.send(&messages::startup(0x0003_0000, parameters));
        let answer = raw.until_ready();
        assert!(!tags(&answer).contains('E'), "{answer:?}");
        raw
    }

    /// Reads up to ReadyForQuery; its status, or `None` where the login is refused.
    pub fn until_end_of_login(&mut self) -> Option<char> {
        loop {
            let message = self.try_next()?;
            match message.tag {
                b'E' => return None,
                b'Z' => return Some(message.status()),
                _ => {}
            }
        }
    }

    /// The session ends, with a word on its backend that is gone.
    #[track_caller]
    pub fn assert_told_of_loss(&mut self) {
        let code = self.until(b'E').sqlstate();
        assert!(
            matches!(code.as_str(), "57P01" | "57P02" | "08006"),
            "{code}"
        );
        self.assert_closed();
    }

    /// Like [`Self::connect_with`], for a login that is refused: its ErrorResponse.
    #[track_caller]
    pub fn refused(port: u16, parameters: &[(&str, &str)]) -> Message {
        let mut raw = Self::dial(port);
        raw.send(&messages::startup(0x0003_0000, parameters));
        let error = raw.until(b'E');
        raw.assert_closed();
        error
    }

    /// This session's id as pgvalet names it.
    pub fn session(&self) -> u64 {
        u64::try_from(self.pid).expect("a session's id is positive")
    }

    #[track_caller]
    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("the other side reads");
    }

    /// Sends what the other side may not read to the end.
    pub fn send_if_open(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes);
    }

    /// The next message, whatever it is. ParameterStatus and BackendKeyData are remembered as well.
    #[track_caller]
    pub fn next(&mut self) -> Message {
        self.try_next().expect("the connection is open")
    }

    /// The next message, or `None` where the other side closed the connection.
    #[track_caller]
    pub fn try_next(&mut self) -> Option<Message> {
        let tag = self.byte()?;
        let mut length = [0; 4];
        self.read(&mut length);
        let length = u32::from_be_bytes(length) as usize;
        assert!(length >= 4, "a message of {length} bytes can't be");
        let mut body = vec![0; length - 4];
        self.read(&mut body);
        let message = Message { tag, body };
        self.remember(&message);
        Some(message)
    }

    /// The next message that isn't a ParameterStatus, notice or notification; those may come at any time.
    #[track_caller]
    pub fn answer(&mut self) -> Message {
        loop {
            let message = self.next();
            if !matches!(message.tag, b'S' | b'N' | b'A') {
                return message;
            }
        }
    }

    /// Skips to the next message of `tag`.
    #[track_caller]
    pub fn until(&mut self, tag: u8) -> Message {
        loop {
            let message = self.next();
            if message.tag == tag {
                return message;
            }
            assert!(
                message.tag != b'E',
                "waiting for {}, came {message:?}",
                tag as char
            );
        }
    }

    /// Skips to the next ErrorResponse.
    #[track_caller]
    pub fn until_error(&mut self) -> Message {
        loop {
            let message = self.next();
            if message.tag == b'E' {
                return message;
            }
        }
    }

    /// All messages up to and including the next ReadyForQuery, without those that may come at any time.
    #[track_caller]
    pub fn until_ready(&mut self) -> Vec<Message> {
        let mut messages = Vec::new();
        loop {
            messages.push(self.answer());
            if messages.last().is_some_and(|last| last.tag == b'Z') {
                return messages;
            }
        }
    }

    /// The notices up to the next ReadyForQuery.
    #[track_caller]
    pub fn remarks(&mut self) -> Vec<Message> {
        let mut remarks = Vec::new();
        loop {
            let message = self.next();
            match message.tag {
                b'N' => remarks.push(message),
                b'Z' => return remarks,
                _ => {}
            }
        }
    }

    /// Runs a simple query.
    #[track_caller]
    pub fn query(&mut self, sql: &str) -> Vec<Message> {
        self.send(&messages::query(sql));
        self.until_ready()
    }

    /// Runs a simple query that must not fail; the first column of its first row, or "".
    #[track_caller]
    pub fn value(&mut self, sql: &str) -> String {
        let answer = self.query(sql);
        assert!(!tags(&answer).contains('E'), "{sql}: {answer:?}");
        let row = answer.iter().find(|message| message.tag == b'D');
        row.map(|row| row.columns().swap_remove(0))
            .unwrap_or_default()
    }

    /// Runs a simple query that must fail; its SQLSTATE.
    #[track_caller]
    pub fn failure(&mut self, sql: &str) -> String {
        let answer = self.query(sql);
        answer
            .iter()
            .find(|message| message.tag == b'E')
            .unwrap_or_else(|| panic!("{sql}: {answer:?}"))
            .sqlstate()
    }

    /// One byte, such as the answer to SSLRequest; `None` at the end.
    #[track_caller]
    pub fn byte(&mut self) -> Option<u8> {
        let mut byte = [0];
        // Unlike `read`, `read_exact` goes on after a signal, SIGCONT among them.
        match self.stream.read_exact(&mut byte) {
            Ok(()) => Some(byte[0]),
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::ConnectionReset | ErrorKind::UnexpectedEof
                ) =>
            {
                None
            }
            Err(error) => panic!("nothing came within {DEADLINE:?}: {error}"),
        }
    }

    /// Everything up to the end, as it came.
    #[track_caller]
    pub fn rest(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        match self.stream.read_to_end(&mut rest) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
            Err(error) => panic!("no end came within {DEADLINE:?}: {error}"),
        }
        rest
    }

    #[track_caller]
    pub fn assert_closed(&mut self) {
        if let Some(message) = self.try_next() {
            panic!("the connection is still open: {message:?}");
        }
    }

    /// Closes our sending half only.
    pub fn half_close(&self) {
        self.stream
            .shutdown(Shutdown::Write)
            .expect("the socket is open");
    }

    /// Goes away with a TCP reset, as a killed client may.
    pub fn reset(self) {
        socket2::SockRef::from(&self.stream)
            .set_linger(Some(std::time::Duration::ZERO))
            .expect("linger can be set");
    }

    /// Sends Terminate, and waits until the other side has closed.
    pub fn goodbye(mut self) {
        self.send(&messages::terminate());
        while self.try_next().is_some() {}
    }

    #[track_caller]
    fn read(&mut self, buffer: &mut [u8]) {
        self.stream
            .read_exact(buffer)
            .expect("a whole message comes within the deadline");
    }

    fn remember(&mut self, message: &Message) {
        match message.tag {
            b'S' => {
                let mut parts = message
                    .body
                    .split(|&byte| byte == 0)
                    .map(|part| String::from_utf8_lossy(part).into_owned());
                if let (Some(name), Some(value)) = (parts.next(), parts.next()) {
                    self.parameters.insert(name, value);
                }
            }
            b'K' => {
                self.pid = i32::from_be_bytes(message.body[..4].try_into().expect("four bytes"));
                self.key = message.body[4..].to_vec();
            }
            _ => {}
        }
    }
}
