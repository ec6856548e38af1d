//! Random programs as data: made by seed, kept in a file, and made smaller as long as they still fail.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use super::grammar::{Dice, Kind, request};

/// One step of a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Which session makes it.
    pub session: usize,
    /// What it sends; nothing: its lease is taken back, and somebody else is given its backend.
    pub request: Vec<u8>,
}

/// How sessions are told apart that may keep a backend.
#[derive(Clone, Copy)]
pub struct Shape {
    pub sessions: usize,
    /// How many of them, the first ones, may do what pins them.
    pub holding: usize,
    pub steps: usize,
    /// One step of so many takes a lease back.
    pub returns: usize,
}

/// The program of a seed.
pub fn generate(seed: u64, shape: Shape) -> Vec<Step> {
    let mut dice = Dice::new(seed);
    let step = |_| {
        let session = dice.roll(shape.sessions);
        let kind = if session < shape.holding {
            Kind::Any
        } else {
            Kind::Roaming
        };
        let request = if dice.roll(shape.returns) == 0 {
            Vec::new()
        } else {
            request(&mut dice, kind)
        };
        Step { session, request }
    };
    let mut program: Vec<Step> = (0..shape.steps).map(step).collect();
    part_dates_from_temporary(&mut program, seed);
    program
}

/// Where a session makes its first temporary table, PostgreSQL reads its prepared statements once more; but not in a backend
/// where another session has had one before. So no program has both that and literals that read differently by then.
fn part_dates_from_temporary(program: &mut Vec<Step>, seed: u64) {
    const READS_DIFFERENTLY: &[u8] = b"01/02/2024";
    const READS_ALIKE: &[u8] = b"2024-02-01";
    const TEMPORARY: &[u8] = b"CREATE TEMP";
    let found = |step: &Step, text| memchr::memmem::find(&step.request, text);
    let has = |text| program.iter().any(|step| found(step, text).is_some());
    if !has(READS_DIFFERENTLY) || !has(TEMPORARY) {
        return;
    }
    if seed.is_multiple_of(2) {
        return program.retain(|step| found(step, TEMPORARY).is_none());
    }
    for step in program {
        while let Some(at) = memchr::memmem::find(&step.request, READS_DIFFERENTLY) {
            step.request[at..at + READS_ALIKE.len()].copy_from_slice(READS_ALIKE);
        }
    }
}

/// How often a program is run at most while it is made smaller.
const ATTEMPTS: usize = 200;

/// Takes steps out as long as what is left still fails; the smallest that was found.
pub fn shrink(program: Vec<Step>, mut fails: impl FnMut(&[Step]) -> bool) -> Vec<Step> {
    let mut program = program;
    let mut chunk = program.len().div_ceil(2);
    let mut attempts = 0;
    while chunk > 0 {
        let mut at = 0;
        while at < program.len() && attempts < ATTEMPTS {
            attempts += 1;
            let mut fewer = program.clone();
            fewer.drain(at..(at + chunk).min(program.len()));
            if fails(&fewer) {
                program = fewer;
            } else {
                at += chunk;
            }
        }
        chunk /= 2;
    }
    program
}

/// One line a step: the session, and its bytes, escaped.
pub fn write(program: &[Step]) -> String {
    program.iter().fold(String::new(), |mut text, step| {
        let escaped = step.request.escape_ascii().to_string();
        writeln!(text, "{} {escaped}", step.session).expect("a string takes everything");
        text
    })
}

/// Reads what [`write`] wrote. Lines that begin with `#` are for people.
pub fn read(text: &str) -> Vec<Step> {
    let lines = text
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| {
            let (session, escaped) = line.split_once(' ').unwrap_or((line, ""));
            Step {
                session: session.parse().expect("a session's number"),
                request: unescape(escaped.as_bytes()),
            }
        })
        .collect()
}

fn unescape(mut text: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    while let Some((&byte, rest)) = text.split_first() {
        if byte != b'\\' {
            bytes.push(byte);
            text = rest;
            continue;
        }
        let (byte, length) = match rest[0] {
            b'x' => {
                let digits = std::str::from_utf8(&rest[1..3]).expect("two digits");
                (u8::from_str_radix(digits, 16).expect("a byte"), 3)
            }
            b'n' => (b'\n', 1),
            b't' => (b'\t', 1),
            b'r' => (b'\r', 1),
            other => (other, 1),
        };
        bytes.push(byte);
        text = &rest[length..];
    }
    bytes
}

/// Where failing programs are kept.
pub fn cases() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/leases/differential/cases")
}

#[test]
fn a_program_is_read_as_it_was_written() {
    let shape = Shape {
        sessions: 8,
        holding: 2,
        steps: 500,
        returns: 6,
    };
    let program = generate(7, shape);
    assert_eq!(read(&write(&program)), program);
}

#[test]
fn a_failing_program_is_shrunk_to_what_fails() {
    let shape = Shape {
        sessions: 3,
        holding: 3,
        steps: 200,
        returns: 6,
    };
    let program = generate(1, shape);
    let needed = [program[17].clone(), program[150].clone()];
    let fails = |steps: &[Step]| {
        let mut left = steps.iter();
        needed.iter().all(|step| left.any(|other| other == step))
    };
    assert_eq!(shrink(program.clone(), fails), needed);
}
