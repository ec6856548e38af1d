//! What the fuzzer starts from, and what it once found: each runs here, without the fuzzer.

#[allow(
    clippy::too_many_lines,
    clippy::struct_excessive_bools,
    reason = "a model of PostgreSQL reads best in one piece"
)]
#[path = "../fuzz/targets/mod.rs"]
mod targets;

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

fn kept(kind: &str, target: &str) -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fuzz")
        .join(kind)
        .join(target);
    let Ok(entries) = fs::read_dir(directory) else {
        return Vec::new();
    };
    let mut files: Vec<PathBuf> = entries
        .map(|entry| entry.expect("an entry").path())
        .collect();
    files.sort();
    files
}

/// Runs a target on each file; gives how many there were.
fn replay(target: &str, run: fn(&[u8]), files: &[PathBuf]) -> usize {
    for file in files {
        let input = fs::read(file).expect("a file of ours");
        let held = catch_unwind(AssertUnwindSafe(|| run(&input)));
        assert!(held.is_ok(), "{target}: {}", file.display());
    }
    files.len()
}

#[test]
fn every_seed_holds() {
    for (target, run) in targets::ALL {
        let count = replay(target, run, &kept("seeds", target));
        assert!(count > 0, "{target} has no seed");
    }
}

#[test]
fn what_the_fuzzer_found_stays_found() {
    let counts = targets::ALL.map(|(target, run)| replay(target, run, &kept("cases", target)));
    assert!(counts.iter().sum::<usize>() > 0, "no case is kept");
}

#[test]
fn every_directory_belongs_to_a_target() {
    for kind in ["seeds", "cases"] {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("fuzz")
            .join(kind);
        for entry in fs::read_dir(directory).unwrap() {
            let name = entry.expect("an entry").file_name().into_string().unwrap();
            let known = targets::ALL.iter().any(|(target, _)| *target == name);
            assert!(known, "no target runs fuzz/{kind}/{name}");
        }
    }
}

#[test]
fn beginnings_of_seeds_hold_too() {
    for (target, run) in targets::ALL
        .iter()
        .filter(|(target, _)| *target != "config")
    {
        for file in kept("seeds", target) {
            let input = fs::read(file).expect("a file of ours");
            for end in 0..input.len() {
                run(&input[..end]);
            }
        }
    }
}
