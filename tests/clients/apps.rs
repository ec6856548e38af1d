//! The pools of other stacks, with the snippets of docs/apps.md, against the real libraries: how an owner is declared, what
//! a leak report shows, and what a reload and `method = close` do to them; in session and in transaction mode.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::programs::{app_python, client, node_modules, run, scripts};
use crate::support::{Postgres, Valet, no_valet, skip};

/// What the apps need to know besides where PostgreSQL is. Python's programs are found by `parts`.
fn app(script: &str, parts: &Path, valet: &Valet, mode: &str) -> Command {
    let program = if is_python(script) { "python" } else { "node" };
    let mut command = client(program, valet.port());
    let path = std::env::var("PATH").unwrap_or_default();
    let programs = parts.parent().unwrap_or(parts).display();
    command.env("PATH", format!("{programs}:{path}"));
    let admin = format!("http://127.0.0.1:{}", valet.admin_port());
    command.env("PGVALET_ADMIN_URL", admin).env("MODE", mode);
    command.env("PGVALET", env!("CARGO_BIN_EXE_pgvalet"));
    command.env("PYTHONDONTWRITEBYTECODE", "1");
    command
}

/// PostgreSQL with the app's table, and a pgvalet in which things park soon.
fn stage(mode: &str) -> (Postgres, Valet) {
    let postgres = Postgres::start();
    postgres.sql("CREATE TABLE jobs (id serial, name text)");
    let flags = [
        "--mode",
        mode,
        "--park-after",
        "200ms",
        "--max-backends",
        "5",
    ];
    let valet = Valet::front_with(&postgres, &flags);
    (postgres, valet)
}

/// Runs a case of an app in both modes, each in a directory of its own with the snippets; what it printed in session mode.
fn printed(script: &str, case: &str) -> Option<String> {
    if no_valet() {
        return None;
    }
    let python = script.ends_with(".py");
    let parts = if python { app_python() } else { node_modules() };
    let parts = match parts {
        Err(why) => {
            skip(&format!("no libraries for {script}: {why}"));
            return None;
        }
        Ok(parts) => parts,
    };
    // Modules are looked up beside the script, so Node's runs below where they are installed.
    let below = (!is_python(script)).then_some(&*parts);
    let home = snippets(below, &format!("{script}-{case}"));
    let told = ["session", "transaction"].map(|mode| {
        let (_postgres, valet) = stage(mode);
        let mut app = app(script, &parts, &valet, mode);
        run(app.current_dir(&home).args([script, case]))
    });
    std::fs::remove_dir_all(&home).expect("ours to remove");
    told.into_iter().next()
}

fn is_python(script: &str) -> bool {
    Path::new(script).extension().is_some_and(|end| end == "py")
}

/// A directory with the apps, and with the snippets just as docs/apps.md has them.
fn snippets(below: Option<&Path>, name: &str) -> PathBuf {
    let below = below.unwrap_or(Path::new(env!("CARGO_TARGET_TMPDIR")));
    let home = below.join(format!("apps-{}-{name}", std::process::id()));
    std::fs::create_dir_all(&home).expect("a directory can be made");
    for entry in std::fs::read_dir(scripts().join("apps")).expect("there are apps") {
        let entry = entry.expect("it can be listed");
        std::fs::copy(entry.path(), home.join(entry.file_name())).expect("it can be copied");
    }
    for (name, text) in blocks("snippet") {
        std::fs::write(home.join(name), text).expect("it can be written");
    }
    home
}

/// The blocks of docs/apps.md behind a comment `<!-- kind: name -->`.
fn blocks(kind: &str) -> Vec<(String, String)> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/apps.md");
    let page = std::fs::read_to_string(page).expect("docs/apps.md can be read");
    let mark = format!("<!-- {kind}: ");
    let marked = page.split(&mark).skip(1);
    let blocks: Vec<_> = marked
        .map(|rest| {
            let (name, rest) = rest.split_once(" -->\n```").expect("a block follows");
            let (_, rest) = rest.split_once('\n').expect("the block's first line");
            let (text, _) = rest.split_once("```\n").expect("the block's end");
            (name.to_owned(), text.to_owned())
        })
        .collect();
    assert!(!blocks.is_empty(), "no {kind} in docs/apps.md");
    blocks
}

fn case(script: &str, case: &str) {
    printed(script, case);
}

/// The report in the docs is what `pgvalet leaks` printed, but for times, numbers and where the app lies.
fn report(script: &str) {
    let Some(printed) = printed(script, "leaks") else {
        return;
    };
    let shape = |report: &str| -> Vec<String> {
        let word = |word: &str| {
            let word = word.rsplit('/').next().unwrap_or_default();
            word.split(|c: char| c.is_ascii_digit())
                .collect::<Vec<_>>()
                .concat()
        };
        let units = ["s", "ms", "us", "m", "m,", "s,", "ms,", "us,"];
        let words = report.split_whitespace().map(word);
        words
            .filter(|word| !word.is_empty() && !units.contains(&&**word))
            .collect()
    };
    let documented = blocks("leaks").into_iter().find(|(name, _)| name == script);
    let (_, documented) = documented.unwrap_or_else(|| panic!("no report of {script}:\n{printed}"));
    assert_eq!(shape(&documented), shape(&printed), "{printed}");
}

macro_rules! apps {
    ($($module:ident, $script:literal: $($case:ident)*;)*) => {
        $(mod $module {
            #[test] fn leaks() { super::report($script); }
            $(#[test] fn $case() { super::case($script, stringify!($case)); })*
        })*
    };
}

apps! {
    node, "node_pool.mjs": reload close;
    sqlalchemy, "sqlalchemy_app.py": reload close asyncpg;
    psycopg_pool, "psycopg_pool_app.py": reload close;
    django, "django_app.py": reload close close_health_checks cursors pool comments;
}
