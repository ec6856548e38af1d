//! Owns a PostgreSQL of cardboard: it trusts everybody, and answers every statement with the same recorded row.
//!
//! For what a real one is too heavy for (ten thousand backends), or too lively (counting instructions). It answers with
//! the bytes of PostgreSQL 15 to `SELECT abalance FROM pgbench_accounts WHERE aid = 1`.

use std::io;
use std::net::{Ipv4Addr, TcpListener as Listener};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::spawn_local;

use crate::wire::frame;

/// Starts one on a thread of its own, which lives as long as this process; its port.
pub fn start() -> io::Result<u16> {
    let listener = Listener::bind((Ipv4Addr::LOCALHOST, 0))?;
    listener.set_nonblocking(true)?;
    let port = listener.local_addr()?.port();
    on_a_thread(async move {
        let listener = TcpListener::from_std(listener)?;
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            spawn_local(serve(stream));
        }
    })?;
    Ok(port)
}

fn on_a_thread(serving: impl Future<Output = io::Result<()>> + Send + 'static) -> io::Result<()> {
    let work = move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .build_local(tokio::runtime::LocalOptions::default());
        let ended = runtime.and_then(|runtime| runtime.block_on(serving));
        if let Err(error) = ended {
            eprintln!("bench: the stand-in for PostgreSQL ended: {error}");
        }
    };
    let thread = std::thread::Builder::new().name("fake".into());
    thread.spawn(work).map(|_| ())
}

async fn serve(stream: impl AsyncRead + AsyncWrite + Unpin) {
    // Whoever goes away, goes away.
    let _ = converse(stream).await;
}

async fn converse(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> io::Result<()> {
    loop {
        let length = stream.read_u32().await? as usize;
        let mut packet = vec![0; length.saturating_sub(4)];
        stream.read_exact(&mut packet).await?;
        // 3.0 and on; everything else is a request for encryption.
        if packet.first_chunk() == Some(&[0, 3]) {
            break;
        }
        stream.write_all(b"N").await?;
    }
    stream.write_all(&welcome()).await?;
    let mut input = Vec::new();
    let mut output = Vec::new();
    loop {
        if stream.read_buf(&mut input).await? == 0 {
            return Ok(());
        }
        let mut rest = &input[..];
        while let Some((tag, body, after)) = split(rest) {
            if tag == b'X' {
                return Ok(());
            }
            answer(tag, body, &mut output);
            rest = after;
        }
        let passed = input.len() - rest.len();
        input.drain(..passed);
        if !output.is_empty() {
            stream.write_all(&output).await?;
            output.clear();
        }
    }
}

/// The first whole frame, and what comes behind it.
fn split(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (header, _) = bytes.split_first_chunk::<5>()?;
    let length = u32::from_be_bytes([header[1], header[2], header[3], header[4]]) as usize;
    let (frame, after) = bytes.split_at_checked(length + 1)?;
    Some((header[0], &frame[5..], after))
}

fn welcome() -> Vec<u8> {
    let reports = [
        ("application_name", "bench"),
        ("client_encoding", "UTF8"),
        ("DateStyle", "ISO, MDY"),
        ("default_transaction_read_only", "off"),
        ("in_hot_standby", "off"),
        ("integer_datetimes", "on"),
        ("IntervalStyle", "postgres"),
        ("is_superuser", "on"),
        ("server_encoding", "UTF8"),
        ("server_version", "15.0"),
        ("session_authorization", "postgres"),
        ("standard_conforming_strings", "on"),
        ("TimeZone", "UTC"),
    ];
    let mut out = frame(b'R', &[0; 4]);
    for (name, value) in reports {
        out.extend(frame(b'S', format!("{name}\0{value}\0").as_bytes()));
    }
    out.extend(frame(b'K', &[0, 0, 1, 0, 1, 2, 3, 4]));
    out.extend(ready());
    out
}

fn answer(tag: u8, body: &[u8], out: &mut Vec<u8>) {
    match tag {
        b'Q' if body.starts_with(b"SELECT") => {
            out.extend(row_description());
            out.extend(row());
            out.extend(ready());
        }
        b'Q' => {
            let end = body
                .iter()
                .position(|&byte| byte == b' ' || byte == 0)
                .unwrap_or(body.len());
            out.extend(frame(b'C', &[&body[..end], &[0]].concat()));
            out.extend(ready());
        }
        b'P' => out.extend(frame(b'1', &[])),
        b'B' => out.extend(frame(b'2', &[])),
        b'C' => out.extend(frame(b'3', &[])),
        b'D' => {
            if body.starts_with(b"S") {
                out.extend(frame(b't', &[0, 1, 0, 0, 0, 23]));
            }
            out.extend(row_description());
        }
        b'E' => out.extend(row()),
        b'S' => out.extend(ready()),
        _ => {}
    }
}

/// One column `abalance` of type integer, in text.
fn row_description() -> Vec<u8> {
    let type_of = [
        0, 0, 64, 6, 0, 3, 0, 0, 0, 23, 0, 4, 255, 255, 255, 255, 0, 0,
    ];
    frame(b'T', &[&[0, 1], &b"abalance\0"[..], &type_of].concat())
}

/// The row, and the end of its statement.
fn row() -> Vec<u8> {
    [
        frame(b'D', &[0, 1, 0, 0, 0, 1, b'0']),
        frame(b'C', b"SELECT 1\0"),
    ]
    .concat()
}

fn ready() -> Vec<u8> {
    frame(b'Z', b"I")
}
