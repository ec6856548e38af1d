//! Owns calls of pgvalet's HTTP endpoints.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};

use crate::Failure;

/// The body of an answer, which must be a success.
pub fn call(port: u16, method: &str, path: &str, body: &str) -> Result<String, Failure> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    let length = body.len();
    let request = format!(
        "{method} {path} HTTP/1.0\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
    );
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or("no HTTP answer")?;
    let status = head.split(' ').nth(1).unwrap_or_default();
    if status == "200" {
        return Ok(body.to_owned());
    }
    Err(format!("{method} {path}: {status}: {body}").into())
}
