//! The fuzzer: libFuzzer around one of the targets in `../targets`, the one that FUZZ_TARGET names.
//!
//! It doesn't link pgvalet but takes the modules that read what peers send straight from `../src`: so only they, and not
//! some two hundred crates, are compiled with coverage, and nothing has to be public for it.
#![no_main]
#![allow(dead_code, unused_imports, reason = "the modules serve more than this")]

// The targets speak of `pgvalet::…`, as they do where tests/fuzzed.rs runs them.
extern crate self as pgvalet;

#[path = "../../src/config/mod.rs"]
pub mod config;
#[path = "../../src/lease/mod.rs"]
pub mod lease;
#[path = "../../src/pacer.rs"]
pub mod pacer;
#[path = "../../src/process.rs"]
pub mod process;
#[path = "../../src/wire/mod.rs"]
pub mod wire;

#[path = "../../src/session/auth.rs"]
pub mod auth;

pub mod session {
    pub use crate::auth;
}

#[path = "../targets/mod.rs"]
mod targets;

use std::sync::OnceLock;

fn target() -> fn(&[u8]) {
    static TARGET: OnceLock<fn(&[u8])> = OnceLock::new();
    *TARGET.get_or_init(|| {
        let name = std::env::var("FUZZ_TARGET").unwrap_or_default();
        let found = targets::ALL.iter().find(|(known, _)| *known == name);
        let Some((_, run)) = found else {
            let known: Vec<&str> = targets::ALL.iter().map(|(known, _)| *known).collect();
            eprintln!("FUZZ_TARGET must be one of {}", known.join(", "));
            std::process::exit(2);
        };
        *run
    })
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| target()(data));

/// The order of a hash map is the same in each run, so that the same seed leads the fuzzer to the same inputs.
///
/// # Safety
///
/// As in getrandom(2): `buffer` has room for `length` bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn getrandom(buffer: *mut u8, length: usize, _flags: u32) -> isize {
    // SAFETY: so the caller promises.
    unsafe { buffer.write_bytes(7, length) };
    length.cast_signed()
}
