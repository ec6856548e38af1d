//! Keeps the documentation true: routes, metrics, commands, configuration and links are those that exist.

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use support::{Postgres, Valet, no_valet};

#[test]
fn every_documented_route_is_served_with_its_method() {
    if no_valet() {
        return;
    }
    let postgres = Postgres::start();
    let valet = Valet::front(&postgres);
    for [route, method] in rows("docs/api.md").filter(|[route, _]| route.starts_with('/')) {
        let path = route.replace("{id}", "1").replace("{owner}", "nobody");
        // A stream of events never ends: a refusal of one does.
        let path = path.replace("/v1/events", "/v1/events?kinds=none");
        let answer = valet.request(&method, &path, "");
        let missing = answer.status == 405 || answer.body.contains("nothing is at");
        assert!(!missing, "{method} {route}: {}", answer.body);
    }
}

#[test]
fn the_documents_speak_of_all_routes_and_no_others() {
    let routes = quoted("src/admin/table.rs", "/");
    let documented = rows("docs/api.md").map(|[route, _]| route);
    let documented: BTreeSet<_> = documented.filter(|route| route.starts_with('/')).collect();
    assert_eq!(documented, routes);
    for (document, text) in documents() {
        for (at, _) in text.match_indices("/v1/") {
            let end = |c: char| !(c.is_ascii_alphanumeric() || "/{}_".contains(c));
            let path = text[at..].split(end).next().unwrap_or_default();
            let digits = |part: &&str| part.parse::<u64>().is_ok();
            let id = path.split('/').find(digits).unwrap_or("{id}");
            let path = path.replace(id, "{id}");
            assert!(routes.contains(&path), "{document:?}: {path} isn't a route");
        }
    }
}

#[test]
fn the_table_of_metrics_is_that_of_the_code() {
    let documented = rows("docs/operations.md").map(|[name, _]| name);
    let documented: BTreeSet<_> = documented
        .filter(|name| name.starts_with("pgvalet_"))
        .collect();
    assert_eq!(documented, quoted("src/metrics.rs", "pgvalet_"));
}

#[test]
fn every_documented_command_is_one() {
    for [command, _] in rows("README.md").filter(|[cell, _]| cell.starts_with("pgvalet ")) {
        let name = command.split(' ').nth(1).unwrap_or_default();
        let status = Valet::command(&[name, "--help"]).status();
        assert!(status.expect("it runs").success(), "{command}");
    }
}

#[test]
fn every_documented_configuration_passes_check() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("pgvalet.toml");
    let mut checked = 0;
    for (document, text) in documents() {
        for block in text.split("```toml\n").skip(1) {
            let block = block.split("```").next().unwrap_or_default();
            // Mounted secrets have to be there.
            let secrets = directory.path().display().to_string();
            let block = block.replace("/run/secrets", &secrets);
            for line in block
                .lines()
                .filter(|line| line.starts_with("password_file"))
            {
                let path = line.split('"').nth(1).unwrap_or_default();
                fs::write(path, "secret").expect("written");
            }
            fs::write(&file, &block).expect("written");
            let path = file.to_str().expect("UTF-8");
            let mut check = Valet::command(&["check", "--config", path]);
            let output = check.output().expect("it runs");
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{document:?}: {block}{said}");
            checked += 1;
        }
    }
    assert!(checked > 1, "the documents lost their examples");
}

#[test]
fn every_relative_link_resolves() {
    for (document, text) in documents() {
        let links = text
            .split("](")
            .skip(1)
            .filter_map(|rest| rest.split(')').next());
        for link in links.filter(|link| !link.contains("://")) {
            let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = document.with_file_name("").join(path);
            let target = if path.is_empty() { &document } else { &target };
            assert!(target.exists(), "{document:?}: {link}");
            let text = fs::read_to_string(target).unwrap_or_default();
            let mut headings = text.lines().filter(|line| line.starts_with('#'));
            let headed = anchor.is_empty() || headings.any(|line| slug(line) == anchor);
            assert!(headed, "{document:?}: {link}");
        }
    }
}

/// A heading as its anchor: small letters, hyphens for spaces, no punctuation.
fn slug(heading: &str) -> String {
    let text = heading.trim_start_matches('#').trim().to_lowercase();
    text.replace(' ', "-")
        .replace(|c: char| !(c.is_alphanumeric() || c == '-'), "")
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

#[track_caller]
fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The Markdown files of the root and of docs/, with their texts.
fn documents() -> Vec<(PathBuf, String)> {
    let directories = [root().to_owned(), root().join("docs")];
    let list = |directory| fs::read_dir(directory).expect("a directory");
    let entries = directories.into_iter().flat_map(list);
    let paths = entries.map(|entry| entry.expect("an entry").path());
    let documents = paths.filter(|path| path.extension().is_some_and(|kind| kind == "md"));
    let text = |path: &Path| fs::read_to_string(path).expect("a text");
    documents.map(|path| (path.clone(), text(&path))).collect()
}

/// The first two cells of every table row of a document, without backticks.
fn rows(document: &str) -> impl Iterator<Item = [String; 2]> + use<> {
    let cells = |line: &str| {
        let mut cells = line.split('|').skip(1).map(|cell| cell.trim().to_owned());
        std::array::from_fn(|_| cells.next().unwrap_or_default())
    };
    let text = read(document).replace('`', "");
    let rows = text.lines().filter(|line| line.starts_with('|')).map(cells);
    rows.collect::<Vec<_>>().into_iter()
}

/// What stands in quotes in a source, and begins with `prefix`.
fn quoted(source: &str, prefix: &str) -> BTreeSet<String> {
    let text = read(source);
    let quoted = text.split('"').skip(1).step_by(2).map(str::to_owned);
    quoted.filter(|text| text.starts_with(prefix)).collect()
}
