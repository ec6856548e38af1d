//! One HTTP/1.1 request on a connection of its own: enough for the admin API.

use std::io::{Read, Write};
use std::net::TcpStream;

use serde_json::Value;

use super::DEADLINE;

pub struct Response {
    pub status: u16,
    pub content_type: String,
    pub body: String,
    head: String,
}

impl Response {
    /// A header of the answer.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines().filter_map(|line| line.split_once(':'));
        let (_, value) = lines.find(|(key, _)| key.eq_ignore_ascii_case(name))?;
        Some(value.trim())
    }

    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body)
            .unwrap_or_else(|error| panic!("not JSON ({error}): {}", self.body))
    }
}

/// Sends a request with `headers` beyond Content-Length, and beyond Host unless it is among them; reads the whole answer.
#[track_caller]
pub fn request(
    port: u16,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> Response {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("the HTTP listener accepts");
    stream
        .set_read_timeout(Some(DEADLINE))
        .expect("a timeout can be set");
    let named = headers.iter().any(|(name, _)| *name == "Host");
    let host = if named { "" } else { "Host: localhost\r\n" };
    let headers = lines(headers);
    let length = body.len();
    let head = format!(
        "{method} {path} HTTP/1.1\r\n{host}Connection: close\r\nContent-Length: {length}\r\n{headers}\r\n"
    );
    stream
        .write_all((head + body).as_bytes())
        .expect("the request can be sent");
    let mut answer = Vec::new();
    stream
        .read_to_end(&mut answer)
        .expect("the answer comes within the deadline");
    parse(&String::from_utf8_lossy(&answer))
}

/// Headers as they stand in a request.
pub fn lines(headers: &[(&str, &str)]) -> String {
    let line = |(name, value): &(&str, &str)| format!("{name}: {value}\r\n");
    headers.iter().map(line).collect()
}

#[track_caller]
fn parse(answer: &str) -> Response {
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .unwrap_or_else(|| panic!("not HTTP: {answer:?}"));
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok())
        .expect("a status line");
    let header = |name: &str| {
        let found = head
            .lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.trim().to_owned())
    };
    let chunked = header("transfer-encoding").is_some_and(|value| value == "chunked");
    let body = if chunked {
        unchunk(body)
    } else {
        body.to_owned()
    };
    Response {
        status,
        content_type: header("content-type").unwrap_or_default(),
        body,
        head: head.to_owned(),
    }
}

fn unchunk(mut rest: &str) -> String {
    let mut body = String::new();
    while let Some((size, after)) = rest.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).expect("a chunk's size");
        body.push_str(&after[..size]);
        rest = after.get(size + 2..).unwrap_or_default();
    }
    body
}
