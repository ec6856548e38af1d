//! Holds the layers of ARCHITECTURE.md: a module imports lower layers only, and the pure core does no work of its own.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Each module of the crate with its layer. Modules of one layer may import each other, but for [`STRANGERS`].
const LAYERS: [(u8, &[&str]); 6] = [
    (0, &["lease"]),
    (
        1,
        &[
            "wire", "config", "metrics", "net", "clock", "drain", "process", "pacer", "executor",
        ],
    ),
    (2, &["ledger", "backend", "view", "events"]),
    (3, &["session", "reload"]),
    (4, &["shard", "admin"]),
    (5, &["lib", "serve", "cli", "main", "demo"]),
];

/// Modules of one layer that never import each other.
const STRANGERS: [(&str, &str); 2] = [("session", "reload"), ("reload", "session")];

/// What the pure core never names: it has neither IO, nor a clock, nor a runtime.
const IMPURE: [&str; 9] = [
    "tokio",
    "std::net",
    "std::io",
    "std::fs",
    "std::env",
    "std::thread",
    "Instant",
    "SystemTime",
    "tracing",
];

fn layer(module: &str) -> Option<u8> {
    LAYERS
        .iter()
        .find(|(_, modules)| modules.contains(&module))
        .map(|(layer, _)| *layer)
}

#[test]
fn no_module_imports_a_higher_layer() {
    for (module, path, text) in sources() {
        for import in imports(&text) {
            let (own, other) = (layer(&module).expect("checked below"), layer(&import));
            let other = other
                .unwrap_or_else(|| panic!("{}: `crate::{import}` has no layer", path.display()));
            assert!(
                other <= own,
                "{}: {module} (layer {own}) imports {import} (layer {other})",
                path.display()
            );
        }
    }
}

#[test]
fn session_and_reload_know_nothing_of_each_other() {
    for (module, path, text) in sources() {
        for import in imports(&text) {
            let strangers = STRANGERS.contains(&(module.as_str(), import.as_str()));
            assert!(!strangers, "{}: {module} imports {import}", path.display());
        }
    }
}

#[test]
fn the_pure_core_has_no_io_no_clock_and_no_runtime() {
    for (module, path, text) in sources() {
        for name in IMPURE {
            let named = layer(&module) == Some(0) && words(&text, name);
            assert!(!named, "{}: the pure core names `{name}`", path.display());
        }
    }
}

#[test]
fn every_module_has_a_layer() {
    let modules: BTreeSet<String> = sources().into_iter().map(|(module, _, _)| module).collect();
    let homeless: Vec<&String> = modules
        .iter()
        .filter(|module| layer(module).is_none())
        .collect();
    assert!(
        homeless.is_empty(),
        "give these modules a layer: {homeless:?}"
    );
}

#[test]
fn imports_are_found_however_they_are_written() {
    let text = code(
        "use crate::{wire::frame, net as n,\n  lease::{Pin, Pins}};\nlet x = crate::clock::now(); // crate::admin\n",
    );
    assert_eq!(
        imports(&text),
        ["wire", "net", "lease", "clock"].map(str::to_owned).into()
    );
    assert!(
        words("let at: Instant = now();", "Instant") && !words("InstantX, an_Instant", "Instant")
    );
}

/// Every source file: its module, its path, and its code without comments.
fn sources() -> Vec<(String, PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    collect(&root, &mut files);
    assert!(!files.is_empty(), "no sources under {}", root.display());
    let read = |path: PathBuf| {
        let inside = path.strip_prefix(&root).expect("it is under src");
        let module = inside
            .components()
            .next()
            .expect("a name")
            .as_os_str()
            .to_string_lossy()
            .into_owned();
        let text = code(&fs::read_to_string(&path).expect("a source file is text"));
        (module.trim_end_matches(".rs").to_owned(), path, text)
    };
    files.into_iter().map(read).collect()
}

fn collect(directory: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).expect("a source directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

/// Source text without its comments.
fn code(text: &str) -> String {
    text.lines()
        .map(|line| line.split_once("//").map_or(line, |(code, _)| code))
        .flat_map(|line| [line, "\n"])
        .collect()
}

/// The modules of this crate that some code names, behind `crate::`.
fn imports(text: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (at, _) in text.match_indices("crate::") {
        let rest = &text[at + "crate::".len()..];
        match rest.strip_prefix('{') {
            None => found.extend(name(rest)),
            Some(group) => found.extend(heads(group)),
        }
    }
    found
}

/// The first name of each item of a `{…}` group, of which `group` is everything behind the brace.
fn heads(group: &str) -> BTreeSet<String> {
    let (mut depth, mut expecting, mut found) = (1, true, BTreeSet::new());
    for (at, character) in group.char_indices() {
        match character {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 1 => expecting = true,
            _ if depth == 1 && expecting && !character.is_whitespace() => {
                expecting = false;
                found.extend(name(&group[at..]));
            }
            _ => {}
        }
        if depth == 0 {
            break;
        }
    }
    found
}

/// The module that `text` begins with; none where it is a type, a macro or a constant of the crate's root.
fn name(text: &str) -> Option<String> {
    let end = text
        .find(|character: char| !character.is_alphanumeric() && character != '_')
        .unwrap_or(text.len());
    let name = &text[..end];
    let module = name.starts_with(|first: char| first.is_lowercase())
        && !text[end..].starts_with(['!', '(']);
    module.then(|| name.to_owned())
}

/// Whether `text` has `name` as a word of its own.
fn words(text: &str, name: &str) -> bool {
    let inner =
        |character: Option<char>| character.is_some_and(|c| c.is_alphanumeric() || c == '_');
    text.match_indices(name).any(|(at, _)| {
        !inner(text[..at].chars().next_back()) && !inner(text[at + name.len()..].chars().next())
    })
}
