//! Owns the cutting of one direction's bytes into frames, however they come: where the scan stands between two reads, which
//! frames are shown to whom, and what is added and dropped on the way.
//!
//! Refuses to know what a frame means: a [`Judge`] does.

use std::borrow::Cow;

use crate::wire::frame::{BadLength, HEADER, Header};

/// What to do with one frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Pass,
    /// These bytes go first.
    After(Vec<u8>),
    /// It is left out, to its last byte.
    Drop,
    /// These bytes go in its place.
    Instead(Vec<u8>),
    /// It waits, and all behind it.
    Hold,
    /// The same, and these bytes go meanwhile.
    HoldBehind(Vec<u8>),
    /// Neither it nor anything behind it goes on.
    Stop,
}

/// Who decides about frames.
pub trait Judge {
    /// Where the scan stands.
    fn cursor(&mut self) -> &mut Cursor;

    /// How many bytes at the front are whole frames that nobody needs to look at. There is at least one byte.
    fn plain(&self, bytes: &[u8]) -> usize;

    /// How much of a frame is needed to judge it, header included.
    fn needed(&self, kind: u8) -> usize;

    /// Decides on a frame. `body` is whole, or at least as long as was needed.
    fn judge(&mut self, header: Header, body: &[u8]) -> Verdict;
}

/// What came of a read.
#[derive(Debug)]
pub struct Cut<'a> {
    /// What goes on.
    pub forward: Cow<'a, [u8]>,
    /// The judge said [`Verdict::Stop`].
    pub stopped: bool,
}

/// Cuts the bytes of one read, and of what was kept before it, into frames, and has each judged. What can't be judged yet
/// is kept.
///
/// # Errors
/// A frame's length is out of bounds: the stream can't be followed.
#[inline]
pub fn cut<'a, J: Judge>(judge: &mut J, bytes: &'a [u8]) -> Result<Cut<'a>, BadLength> {
    let mut edits = Edits::new(bytes);
    let mut at = judge.cursor().pass(bytes.len());
    if at > 0 && judge.cursor().dropping {
        edits.cut(0, at);
    }
    while at < bytes.len() {
        at += judge.plain(&bytes[at..]);
        let rest = &bytes[at..];
        if rest.is_empty() {
            break;
        }
        let header = Header::read(rest)?;
        let Some(header) =
            header.filter(|header| rest.len() >= header.total().min(judge.needed(header.kind)))
        else {
            judge.cursor().keep(rest);
            break;
        };
        let end = header.total().min(rest.len());
        let dropping = match judge.judge(header, &rest[HEADER..end]) {
            Verdict::Pass => false,
            Verdict::After(extra) => {
                edits.insert(at, &extra);
                false
            }
            Verdict::Drop => {
                edits.cut(at, at + end);
                true
            }
            Verdict::Instead(other) => {
                edits.insert(at, &other);
                edits.cut(at, at + end);
                true
            }
            Verdict::Hold => {
                judge.cursor().hold(rest);
                break;
            }
            Verdict::HoldBehind(meanwhile) => {
                edits.insert(at, &meanwhile);
                judge.cursor().hold(rest);
                break;
            }
            Verdict::Stop => {
                return Ok(Cut {
                    forward: edits.finish(at),
                    stopped: true,
                });
            }
        };
        judge.cursor().expect(header.total() - end, dropping);
        at += end;
    }
    Ok(Cut {
        forward: edits.finish(at),
        stopped: false,
    })
}

/// How many bytes at the front are whole frames of these kinds.
#[inline]
#[must_use]
pub fn whole_frames(bytes: &[u8], is: impl Fn(u8) -> bool) -> usize {
    let mut at = 0;
    while let [kind, a, b, c, d, ..] = &bytes[at..]
        && is(*kind)
    {
        let length = u32::from_be_bytes([*a, *b, *c, *d]) as usize;
        if length < 4 || length >= bytes.len() - at {
            break;
        }
        at += 1 + length;
    }
    at
}

/// Where the scan of one direction stands.
#[derive(Debug, Default)]
pub struct Cursor {
    /// Bytes of the current frame's body that are still to come, and pass unread.
    skip: u32,
    /// Those bytes are dropped, not forwarded.
    dropping: bool,
    /// `carry` begins with a frame that waits until everything before it is answered: nothing more is read meanwhile.
    pub held: bool,
    /// The beginning of a frame that can't be judged yet. Empty, and without memory, at most moments.
    pub carry: Box<[u8]>,
}

impl Cursor {
    /// Passes over what is left of the current frame's body, in the next `available` bytes. Gives how many those are.
    pub fn pass(&mut self, available: usize) -> usize {
        let count = self.skip.min(u32::try_from(available).unwrap_or(u32::MAX));
        self.skip -= count;
        count as usize
    }

    /// So many bytes of the current frame are still to come, and are dropped or pass.
    pub fn expect(&mut self, rest: usize, dropping: bool) {
        self.skip = u32::try_from(rest).expect("no frame is longer than MAX_LENGTH");
        self.dropping = dropping;
    }

    /// Whether the scan stands between two frames.
    #[must_use]
    pub fn is_between_frames(&self) -> bool {
        self.skip == 0 && self.carry.is_empty()
    }

    /// Whether the other side has the beginning of a frame, and waits for its rest.
    #[must_use]
    pub fn is_within_forwarded(&self) -> bool {
        self.skip > 0 && !self.dropping
    }

    /// Keeps a frame, and what is there behind it, until everything before it is answered.
    fn hold(&mut self, bytes: &[u8]) {
        self.keep(bytes);
        self.held = true;
    }

    /// Keeps the beginning of a frame.
    pub fn keep(&mut self, bytes: &[u8]) {
        if self.carry.is_empty() {
            self.carry = bytes.into();
        } else {
            self.carry = [&self.carry, bytes].concat().into();
        }
    }
}

/// A buffer of frames, with what is added and dropped.
struct Edits<'a> {
    bytes: &'a [u8],
    /// The edited bytes, up to `done`. Stays empty, and free, where nothing is edited.
    out: Option<Vec<u8>>,
    done: usize,
}

impl<'a> Edits<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Self {
            bytes,
            out: None,
            done: 0,
        }
    }

    /// Puts `extra` in front of the byte at `at`.
    fn insert(&mut self, at: usize, extra: &[u8]) {
        let out = self.out.get_or_insert_default();
        out.extend_from_slice(&self.bytes[self.done..at]);
        out.extend_from_slice(extra);
        self.done = at;
    }

    /// Leaves out the bytes from `from` to `to`.
    fn cut(&mut self, from: usize, to: usize) {
        self.insert(from, &[]);
        self.done = to;
    }

    /// The bytes to forward, up to `end`.
    #[inline]
    fn finish(self, end: usize) -> Cow<'a, [u8]> {
        match self.out {
            None => Cow::Borrowed(&self.bytes[self.done..end]),
            Some(mut out) => {
                out.extend_from_slice(&self.bytes[self.done..end.max(self.done)]);
                Cow::Owned(out)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Replaces frames of kind `i`, drops those of kind `d`, and reads no body.
    #[derive(Default)]
    struct Plain(Cursor);

    impl Judge for Plain {
        fn cursor(&mut self) -> &mut Cursor {
            &mut self.0
        }

        fn plain(&self, bytes: &[u8]) -> usize {
            whole_frames(bytes, |kind| kind == b'p')
        }

        fn needed(&self, _: u8) -> usize {
            HEADER
        }

        fn judge(&mut self, header: Header, _: &[u8]) -> Verdict {
            match header.kind {
                b'i' => Verdict::Instead(b"!".to_vec()),
                b'd' => Verdict::Drop,
                b'x' => Verdict::Stop,
                _ => Verdict::Pass,
            }
        }
    }

    #[test]
    fn what_is_left_out_is_left_out_to_its_last_byte() {
        let stream = b"d\0\0\0\x08lostp\0\0\0\x06hii\0\0\0\x08losta\0\0\0\x05zx\0\0\0\x04";
        for cut_at in 0..stream.len() {
            let mut judge = Plain::default();
            let mut out = Vec::new();
            for part in [&stream[..cut_at], &stream[cut_at..]] {
                let kept = std::mem::take(&mut judge.0.carry);
                let part = [&kept, part].concat();
                let cut = cut(&mut judge, &part).unwrap();
                out.extend_from_slice(&cut.forward);
            }
            assert_eq!(out, b"p\0\0\0\x06hi!a\0\0\0\x05z", "{cut_at}");
        }
    }

    #[test]
    fn a_bad_length_is_refused_also_behind_plain_frames() {
        let error = cut(&mut Plain::default(), b"p\0\0\0\x04p\0\0\0\x03").unwrap_err();
        assert_eq!((error.kind, error.length), (b'p', 3));
    }
}
