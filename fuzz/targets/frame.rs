//! The cutting of frames: it comes to the same wherever reads begin and end, and keeps no more than was asked for.

use pgvalet::wire::cut::{Cursor, Judge, Verdict, cut, whole_frames};
use pgvalet::wire::frame::{HEADER, Header};

use super::input::Input;

/// Decides by a frame's type alone, and notes what it was shown.
#[derive(Default)]
struct ByType {
    cursor: Cursor,
    seen: Vec<(u8, usize, Vec<u8>)>,
    /// The last frame was held back once.
    held: bool,
}

const fn needed(kind: u8) -> usize {
    match kind % 3 {
        0 => HEADER,
        1 => 12,
        _ => 70,
    }
}

/// What becomes of a frame. Types from 0xE0 on pass without being shown to anybody.
fn verdict(kind: u8) -> Verdict {
    match kind / 32 {
        0 => Verdict::After(vec![kind; 3]),
        1 => Verdict::Drop,
        2 => Verdict::Instead(vec![kind; 2]),
        3 if kind == 0x7F => Verdict::Stop,
        _ => Verdict::Pass,
    }
}

const fn is_held(kind: u8) -> bool {
    kind / 32 == 4
}

const fn is_plain(kind: u8) -> bool {
    kind >= 0xE0
}

impl Judge for ByType {
    fn cursor(&mut self) -> &mut Cursor {
        &mut self.cursor
    }

    fn plain(&self, bytes: &[u8]) -> usize {
        whole_frames(bytes, is_plain)
    }

    fn needed(&self, kind: u8) -> usize {
        needed(kind)
    }

    fn judge(&mut self, header: Header, body: &[u8]) -> Verdict {
        assert!(body.len() == header.body || HEADER + body.len() >= needed(header.kind));
        if is_held(header.kind) && !self.held {
            self.held = true;
            return Verdict::Hold;
        }
        self.held = false;
        if !is_plain(header.kind) {
            let shown = (needed(header.kind) - HEADER).min(header.body);
            self.seen
                .push((header.kind, header.body, body[..shown].to_vec()));
        }
        verdict(header.kind)
    }
}

/// What came out of a stream.
#[derive(Debug, Default, PartialEq, Eq)]
struct Outcome {
    forward: Vec<u8>,
    seen: Vec<(u8, usize, Vec<u8>)>,
    end: End,
}

#[derive(Debug, Default, PartialEq, Eq)]
enum End {
    #[default]
    Open,
    Stopped,
    Broken,
}

pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let cuts = usize::from(input.byte());
    let cuts: Vec<usize> = input
        .take(cuts)
        .iter()
        .map(|size| usize::from(*size))
        .collect();
    let stream = stream(&mut input);
    let whole = fed(&stream, &[]);
    let parted = fed(&stream, &cuts);
    let expected = naively(&stream);
    assert_eq!(whole, expected, "read at once");
    assert_eq!(parted, expected, "read in parts of {cuts:?}");
}

/// Frames of chosen types and lengths, now and then with a length that is chosen byte by byte.
fn stream(input: &mut Input<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    while !input.is_empty() && out.len() < 4096 {
        out.push(input.byte());
        match input.byte() {
            0xFF => out.extend_from_slice(input.take(4)),
            length => {
                out.extend_from_slice(&[0, 0, 0, length.max(4)]);
                let count = usize::from(length.max(4)) - 4;
                let body = input.take(count / 4);
                out.extend_from_slice(body);
                out.resize(out.len() + count - body.len(), b'.');
            }
        }
    }
    let cut = usize::from(input.byte());
    out.truncate(out.len().saturating_sub(cut));
    out
}

/// Reads the stream in parts of these sizes, and the rest at once, as a session does.
fn fed(mut stream: &[u8], sizes: &[usize]) -> Outcome {
    let (mut judge, mut out) = (ByType::default(), Outcome::default());
    let mut sizes = sizes.iter();
    while !stream.is_empty() && out.end == End::Open {
        let size = *sizes.next().unwrap_or(&stream.len());
        let (part, rest) = stream.split_at(size.min(stream.len()));
        stream = rest;
        let mut bytes = std::mem::take(&mut judge.cursor.carry).into_vec();
        bytes.extend_from_slice(part);
        loop {
            match cut(&mut judge, &bytes) {
                Ok(cut) => {
                    out.forward.extend_from_slice(&cut.forward);
                    if cut.stopped {
                        out.end = End::Stopped;
                    }
                }
                Err(_) => out.end = End::Broken,
            }
            if !std::mem::take(&mut judge.cursor.held) {
                break;
            }
            bytes = std::mem::take(&mut judge.cursor.carry).into_vec();
        }
        if let [kind, ..] = *judge.cursor.carry {
            assert!(judge.cursor.carry.len() < needed(kind).max(HEADER));
        }
    }
    // How much of what stands before a broken frame went on depends on what came with it.
    if out.end == End::Broken {
        out.forward.clear();
        out.seen.clear();
    } else {
        out.seen = judge.seen;
    }
    out
}

/// The same, by looking at the whole stream, frame by frame.
fn naively(stream: &[u8]) -> Outcome {
    let (mut out, mut at) = (Outcome::default(), 0);
    while let Some(header) = stream.get(at..at + HEADER) {
        let (kind, length) = (header[0], [header[1], header[2], header[3], header[4]]);
        let length = u32::from_be_bytes(length);
        if !(4..=0x3FFF_FFFE).contains(&length) {
            out.end = End::Broken;
            out.forward.clear();
            out.seen.clear();
            return out;
        }
        let total = 1 + length as usize;
        let rest = &stream[at..];
        let there = total.min(rest.len());
        if there < total.min(needed(kind)) {
            break;
        }
        if !is_plain(kind) {
            let shown = (needed(kind) - HEADER).min(total - HEADER);
            let shown = rest[HEADER..HEADER + shown].to_vec();
            out.seen.push((kind, total - HEADER, shown));
        }
        match verdict(kind) {
            Verdict::Pass => out.forward.extend_from_slice(&rest[..there]),
            Verdict::After(extra) => {
                out.forward.extend_from_slice(&extra);
                out.forward.extend_from_slice(&rest[..there]);
            }
            Verdict::Drop => {}
            Verdict::Instead(other) => out.forward.extend_from_slice(&other),
            Verdict::Stop => {
                out.end = End::Stopped;
                return out;
            }
            Verdict::Hold | Verdict::HoldBehind(_) => unreachable!("no type has it for good"),
        }
        at += there;
        if there < total {
            break;
        }
    }
    out
}
