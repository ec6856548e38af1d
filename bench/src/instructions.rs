//! Owns the count of instructions that a round trip costs pgvalet, by callgrind: the same on a noisy machine as on a
//! quiet one.
//!
//! pgvalet runs twice for each figure, with a recorded exchange in front of it and behind it: once for few round trips,
//! once for many. The difference is what the round trips cost, without the start, the login and the end.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::{Deserialize, Serialize};

use crate::pgvalet::Program;
use crate::wire::{Address, Client, Login, parse, query, run, sync};
use crate::{Failure, fake};

const FEW: u64 = 1_000;
const MANY: u64 = 11_000;

const SQL: &str = "SELECT abalance FROM pgbench_accounts WHERE aid = 12345;";
const SQL_WITH_PARAMETER: &str = "SELECT abalance FROM pgbench_accounts WHERE aid = $1;";

/// What `bench/instructions` takes.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// The program, built with the profile `profiling`
    #[arg(long)]
    pgvalet: PathBuf,
    /// Where the committed figures are
    #[arg(long, default_value = "bench/instructions.toml")]
    figures: PathBuf,
    /// Commit to what is measured now
    #[arg(long)]
    update: bool,
    /// Only figures whose name contains this
    #[arg(long, default_value = "")]
    only: String,
    /// Keep callgrind's output here, for callgrind_annotate
    #[arg(long)]
    keep: Option<PathBuf>,
}

/// The file of committed figures.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Committed {
    /// How many percent more a change may cost.
    tolerance_percent: f64,
    /// The compiler that they were measured with: another one gives other figures.
    rustc: String,
    /// User instructions a round trip, by name.
    figures: BTreeMap<String, u64>,
}

struct Figure {
    name: &'static str,
    mode: &'static str,
    /// Sent once.
    before: Vec<u8>,
    /// Sent, and answered, for each round trip.
    request: Vec<u8>,
}

fn figures() -> Vec<Figure> {
    let simple = query(SQL);
    let extended = [parse("", SQL_WITH_PARAMETER), run("", "12345")].concat();
    let prepare = [parse("P0_0", SQL_WITH_PARAMETER), sync()].concat();
    let prepared = run("P0_0", "12345");
    let figure = |name, mode, before: &[u8], request: &[u8]| Figure {
        name,
        mode,
        before: before.to_vec(),
        request: request.to_vec(),
    };
    vec![
        figure("session-simple", "session", &simple, &simple),
        figure("session-extended", "session", &extended, &extended),
        figure("session-prepared", "session", &prepare, &prepared),
        figure("transaction-simple", "transaction", &simple, &simple),
        figure("transaction-extended", "transaction", &extended, &extended),
        figure("transaction-prepared", "transaction", &prepare, &prepared),
    ]
}

/// Measures, prints, and compares with what is committed.
pub fn main(options: &Options) -> Result<(), Failure> {
    let mut committed = match std::fs::read_to_string(&options.figures) {
        Ok(text) => toml::from_str(&text)?,
        Err(_) => Committed {
            tolerance_percent: 3.0,
            ..Committed::default()
        },
    };
    let rustc = rustc()?;
    if committed.rustc != rustc && !options.update {
        println!(
            "note: measured with {rustc}, committed with {}",
            committed.rustc
        );
    }
    let port = fake::start()?;
    println!("user instructions a round trip        now   committed");
    let mut above = Vec::new();
    let wanted = figures()
        .into_iter()
        .filter(|figure| figure.name.contains(&options.only));
    for figure in wanted {
        let few = measure(options, &figure, port, FEW)?;
        let many = measure(options, &figure, port, MANY)?;
        let now = many.saturating_sub(few) / (MANY - FEW);
        let before = committed.figures.get(figure.name).copied();
        let (text, percent) = compare(now, before);
        println!("{:<32} {now:>8} {text}", figure.name);
        if percent > committed.tolerance_percent {
            above.push(figure.name);
        }
        if options.update {
            committed.figures.insert(figure.name.to_owned(), now);
        }
    }
    if options.update {
        committed.rustc = rustc;
        return write(&options.figures, &committed);
    }
    if above.is_empty() {
        return Ok(());
    }
    let names = above.join(", ");
    let bound = committed.tolerance_percent;
    Err(format!("more than {bound} % above what is committed: {names}; if that is meant, run it with --update").into())
}

#[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
fn compare(now: u64, before: Option<u64>) -> (String, f64) {
    match before {
        Some(before) if before > 0 => {
            let percent = (now as f64 / before as f64 - 1.0) * 100.0;
            (format!("{before:>11}  {percent:+.1} %"), percent)
        }
        Some(_) | None => ("       none".to_owned(), 0.0),
    }
}

fn write(path: &Path, committed: &Committed) -> Result<(), Failure> {
    let head = "# User instructions that one round trip costs pgvalet, by callgrind: bench/instructions compares with them,\n\
                # and `bench/instructions --update` writes them.\n\n";
    std::fs::write(path, format!("{head}{}", toml::to_string(committed)?))?;
    println!("written to {}", path.display());
    Ok(())
}

fn rustc() -> Result<String, Failure> {
    let output = Command::new("rustc").arg("--version").output()?;
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

/// The instructions of a pgvalet that serves `count` round trips.
fn measure(options: &Options, figure: &Figure, upstream: u16, count: u64) -> Result<u64, Failure> {
    let directory = options.keep.clone().unwrap_or_else(std::env::temp_dir);
    let out = directory.join(format!(
        "callgrind.{}.{count}.{}",
        figure.name,
        std::process::id()
    ));
    let program = Program {
        path: options.pgvalet.clone(),
        under: valgrind(&out),
    };
    let flags = [
        "--upstream",
        &format!("postgres://postgres@127.0.0.1:{upstream}/postgres?sslmode=disable"),
        "--listen",
        "127.0.0.1:0",
        "--auth",
        "trust",
        "--mode",
        figure.mode,
    ]
    .map(str::to_owned);
    let pgvalet = program.serve(&flags)?;
    let mut client = Client::connect(&Address::Tcp(pgvalet.port), &Login::default())?;
    let mut buffer = vec![0; 8192];
    client.round_trip(&figure.before, &mut buffer)?;
    for _ in 0..count {
        client.round_trip(&figure.request, &mut buffer)?;
    }
    client.goodbye()?;
    pgvalet.end()?;
    let text = std::fs::read_to_string(&out)?;
    if options.keep.is_none() {
        std::fs::remove_file(&out)?;
    }
    let totals = text.lines().find_map(|line| line.strip_prefix("totals: "));
    Ok(totals.ok_or("callgrind wrote no totals")?.trim().parse()?)
}

fn valgrind(out: &Path) -> Vec<OsString> {
    let mut file = OsString::from("--callgrind-out-file=");
    file.push(out);
    let words = ["valgrind", "--tool=callgrind", "--quiet"];
    words.iter().map(OsString::from).chain([file]).collect()
}
