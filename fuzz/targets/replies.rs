//! Messages of PostgreSQL's, and those that name statements: what is read is what they say, and is written back unchanged.

use pgvalet::wire::extended::{self, Statement, Target, Value};
use pgvalet::wire::frame::{HEADER, Header, cstr};
use pgvalet::wire::reply::{self, Fields};

pub fn run(data: &[u8]) {
    let Some((kind, body)) = data.split_first() else {
        return;
    };
    match kind % 5 {
        0 => fields(body),
        1 => signature(body),
        2 => statement(body),
        3 => bind(body),
        _ => names(body),
    }
}

fn fields(body: &[u8]) {
    let fields = Fields::read(body);
    let read = fields.severity.len() + fields.code.len() + fields.message.len();
    // What isn't UTF-8 is replaced by three bytes each.
    assert!(read <= 3 * body.len());
    let again = [
        (b'V', &fields.severity),
        (b'C', &fields.code),
        (b'M', &fields.message),
    ];
    let mut written = Vec::new();
    for (kind, text) in again {
        written.push(kind);
        written.extend_from_slice(text.as_bytes());
        written.push(0);
    }
    written.push(0);
    assert_eq!(Fields::read(&written), fields);
}

/// Only process ids change, and only in whole NotificationResponses of whoever is asked for.
fn signature(body: &[u8]) {
    let mut signed = body.to_vec();
    reply::sign(&mut signed, |pid| (pid == 7).then_some(0x0102_0304));
    assert_eq!(signed.len(), body.len());
    let mut at = 0;
    while let Ok(Some(header)) = Header::read(&body[at..]) {
        let end = (at + header.total()).min(body.len());
        let (before, after) = (&body[at..end], &signed[at..end]);
        let pid = before.get(HEADER..HEADER + 4);
        if pid == Some(&[0, 0, 0, 7]) {
            assert_eq!(after[HEADER..HEADER + 4], [1, 2, 3, 4]);
            assert_eq!(before[..HEADER], after[..HEADER]);
            assert_eq!(before[HEADER + 4..], after[HEADER + 4..]);
        } else {
            assert_eq!(before, after);
        }
        at = end;
    }
    assert_eq!(body[at..], signed[at..]);
}

fn statement(body: &[u8]) {
    let Some(read) = Statement::read(body) else {
        assert!(body.iter().filter(|byte| **byte == 0).count() < 2);
        return;
    };
    let mut written = Vec::new();
    read.write_parse(&mut written);
    assert_eq!(written[HEADER..], *body, "it is written as it came");
    assert!(read.weight() >= body.len() - 2);
    assert_eq!(extended::parse_name(body), Some(&*read.name));
    assert_eq!(extended::parse_text(body), Some(&*read.text));
}

/// A Bind that is cut off never says other than the whole, but that it doesn't know.
fn bind(body: &[u8]) {
    for index in 0..4 {
        let value = extended::bind_value(body, index);
        if let Value::Bytes(bytes) = value {
            assert!(bytes.len() <= body.len());
        }
        for end in (0..body.len()).rev().take(64) {
            let less = extended::bind_value(&body[..end], index);
            assert!(less == value || less == Value::Missing);
        }
    }
    if let Some(name) = extended::bind_statement(body) {
        let (_, rest) = cstr(body).expect("a portal's name stands before it");
        assert_eq!(cstr(rest).map(|(name, _)| name), Some(name));
    }
}

fn names(body: &[u8]) {
    match extended::target(body) {
        Some(Target::Statement(name)) => {
            assert!(body.starts_with(&[b"S", name, b"\0"].concat()));
        }
        Some(Target::Portal(name)) => {
            assert!(body.starts_with(&[b"P", name, b"\0"].concat()));
        }
        None => assert!(!matches!(body, [b'S' | b'P', rest @ ..] if rest.contains(&0))),
    }
}
