//! Owns how long work beside the data threads leaves the processors to others.
//!
//! Where there are few processors, work of many milliseconds in one piece keeps a data thread, PostgreSQL or a client waiting
//! for one. In stretches of some 200 µs it doesn't.

use std::cell::Cell;
use std::io;
use std::time::Duration;

/// How long the rest after a stretch is.
const REST: Duration = Duration::from_micros(500);

/// Parts long work into stretches.
#[derive(Debug)]
pub struct Pacer {
    stretch: usize,
    done: Cell<usize>,
}

impl Pacer {
    /// For work of which so much may be done without a rest.
    #[must_use]
    pub const fn new(stretch: usize) -> Self {
        let done = Cell::new(0);
        Self { stretch, done }
    }

    /// Takes note of work that was done, and blocks for a moment after each stretch: never on a data thread.
    #[expect(clippy::disallowed_methods, reason = "there is no event to wait for")]
    pub fn did(&self, work: usize) {
        self.done.set(self.done.get() + work);
        if self.done.get() >= self.stretch {
            self.done.set(0);
            std::thread::sleep(REST);
        }
    }
}

/// A text that is written in stretches.
#[derive(Debug)]
pub struct Paced {
    text: Vec<u8>,
    pacer: Pacer,
}

impl Paced {
    /// Nothing so far; so many bytes may be written without a rest.
    #[must_use]
    pub const fn new(stretch: usize) -> Self {
        Self {
            text: Vec::new(),
            pacer: Pacer::new(stretch),
        }
    }

    /// What was written.
    #[must_use]
    pub fn into_text(self) -> Vec<u8> {
        self.text
    }
}

impl io::Write for Paced {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.text.extend_from_slice(bytes);
        self.pacer.did(bytes.len());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_a_rest_after_each_stretch() {
        let pacer = Pacer::new(10);
        for (work, left) in [(4, 4), (5, 9), (1, 0), (30, 0), (9, 9)] {
            pacer.did(work);
            assert_eq!(pacer.done.get(), left);
        }
    }
}
