//! Owns what the tasks of one turn have to send, until all of them had their say.
//!
//! A send over loopback runs the receiver's side of the kernel, too. All receives of a turn together, then all its sends,
//! leave to each what it needs in the processor's caches, and wake the other side once there is nothing more to do here.

use std::rc::Rc;

use super::reactor::Source;

/// The longest message that is put off, in bytes: a longer one costs more to copy than it saves.
const SHORT: usize = 4 << 10;

/// How much is put off at most, in bytes.
const MOST: usize = 64 << 10;

pub(super) struct Outbox {
    bytes: Vec<u8>,
    parts: Vec<Part>,
}

/// A message, which begins where the one before it ends.
struct Part {
    source: Rc<Source>,
    end: usize,
}

impl Outbox {
    pub fn new() -> Self {
        Self {
            bytes: Vec::with_capacity(MOST),
            parts: Vec::new(),
        }
    }

    /// Takes a message in, if it is short.
    #[inline]
    pub fn post(&mut self, source: &Rc<Source>, bytes: &[u8]) -> bool {
        if bytes.len() > SHORT {
            return false;
        }
        if self.bytes.len() + bytes.len() > MOST {
            self.flush();
        }
        self.bytes.extend_from_slice(bytes);
        self.parts.push(Part {
            source: source.clone(),
            end: self.bytes.len(),
        });
        true
    }

    #[inline]
    pub fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// Sends all of it, in the order in which it came.
    pub fn flush(&mut self) {
        let mut start = 0;
        for Part { source, end } in self.parts.drain(..) {
            source.send_posted(&self.bytes[start..end]);
            start = end;
        }
        self.bytes.clear();
    }
}
