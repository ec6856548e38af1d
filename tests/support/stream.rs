//! A stream of server-sent events, read one at a time, each within the deadline.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;

use serde_json::Value;

use super::DEADLINE;

/// One event.
#[derive(Clone, Debug)]
pub struct Told {
    pub event: String,
    pub id: String,
    pub data: Value,
}

pub struct Stream {
    reader: BufReader<TcpStream>,
}

impl Stream {
    /// Asks in HTTP/1.0, so that the answer comes without chunks. The answer must be a stream.
    #[track_caller]
    pub fn open(port: u16, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", port)).expect("the admin API accepts");
        Self::on(stream, method, path, headers, body)
    }

    /// The same on a connection with settings of its own.
    #[track_caller]
    pub fn on(
        mut stream: TcpStream,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Self {
        stream
            .set_read_timeout(Some(DEADLINE))
            .expect("a timeout can be set");
        let headers = super::http::lines(headers);
        let length = body.len();
        let head = format!(
            "{method} {path} HTTP/1.0\r\nHost: localhost\r\nContent-Length: {length}\r\n\
             Content-Type: application/json\r\nAccept: text/event-stream\r\n{headers}\r\n"
        );
        stream
            .write_all((head + body).as_bytes())
            .expect("the request can be sent");
        let mut stream = Self {
            reader: BufReader::new(stream),
        };
        let status = stream.line().expect("a status line");
        assert!(status.contains(" 200 "), "{status}");
        while stream.line().is_some_and(|line| !line.is_empty()) {}
        stream
    }

    fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        let read = self.reader.read_line(&mut line);
        let count =
            read.unwrap_or_else(|error| panic!("nothing came within {DEADLINE:?}: {error}"));
        (count > 0).then(|| line.trim_end().to_owned())
    }

    /// The next event; `None` at the end of the stream.
    #[track_caller]
    pub fn next(&mut self) -> Option<Told> {
        let mut told = Told {
            event: String::new(),
            id: String::new(),
            data: Value::Null,
        };
        loop {
            let line = self.line()?;
            match line.split_once(": ").unwrap_or((&line, "")) {
                ("event", value) => value.clone_into(&mut told.event),
                ("id", value) => value.clone_into(&mut told.id),
                ("data", value) => told.data = serde_json::from_str(value).expect("JSON"),
                ("", "") if !told.event.is_empty() => return Some(told),
                _ => {}
            }
        }
    }

    /// Skips to the next event of this kind.
    #[track_caller]
    pub fn until(&mut self, event: &str) -> Told {
        loop {
            let told = self.next().expect("the stream goes on");
            if told.event == event {
                return told;
            }
        }
    }
}
