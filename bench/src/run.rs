//! Owns a run from its options to its reports.

use std::path::Path;

use clap::Parser;

use crate::stage::{Options, Stage, succeed};
use crate::{Failure, figures, svg};

/// What a document's report stands between.
const BEGIN: &str = "<!-- bench: begin -->";
const END: &str = "<!-- bench: end -->";

/// Measures, and writes the reports.
pub fn main(options: Options) -> Result<(), Failure> {
    let mut stage = Stage::set(options)?;
    stage.report.conditions = conditions(&stage)?;
    figures::measure(&mut stage);
    let markdown = stage.report.markdown();
    println!("{markdown}");
    write(&stage.options.markdown, &markdown)?;
    if let Some(picture) = svg::picture(&stage.report) {
        write(&stage.options.svg, &picture)?;
    }
    if let Some(document) = &stage.options.into {
        let text = std::fs::read_to_string(document)?;
        write(document, &put(&text, &markdown)?)?;
    }
    if let Some(document) = &stage.options.table {
        let text = std::fs::read_to_string(document)?;
        write(document, &put(&text, &stage.report.headlines())?)?;
    }
    let json = serde_json::to_string_pretty(&stage.report)?;
    write(&stage.options.json, &json)
}

/// `document` with the report between its two marks.
fn put(document: &str, report: &str) -> Result<String, Failure> {
    let (before, rest) = document
        .split_once(BEGIN)
        .ok_or("the document has no mark where the report begins")?;
    let (_, after) = rest
        .split_once(END)
        .ok_or("the document has no mark where the report ends")?;
    Ok(format!("{before}{BEGIN}\n\n{report}\n{END}{after}"))
}

/// Starts PostgreSQL alone, and waits until somebody ends us.
pub fn postgres() -> Result<(), Failure> {
    #[derive(Parser)]
    struct Defaults {
        #[command(flatten)]
        options: Options,
    }
    let stage = Stage::set(Defaults::parse_from(["bench"]).options)?;
    println!(
        "PostgreSQL listens on 127.0.0.1, port {}. Ctrl-C ends it.",
        stage.postgres
    );
    loop {
        std::thread::park();
    }
}

fn write(path: &Path, text: &str) -> Result<(), Failure> {
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory)?;
    }
    std::fs::write(path, text)?;
    eprintln!("bench: written to {}", path.display());
    Ok(())
}

fn conditions(stage: &Stage) -> Result<Vec<String>, Failure> {
    let version = |program: &Path, flag: &str| -> Result<String, Failure> {
        let text = succeed(std::process::Command::new(program).arg(flag))?;
        Ok(text.lines().next().unwrap_or_default().to_owned())
    };
    let options = &stage.options;
    let mut server = crate::stage::client("psql", &stage.direct());
    let server = succeed(server.args(["-X", "-A", "-t", "-c", "SHOW server_version"]))?;
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cpu = cpu
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .map_or("processor unknown", |rest| {
            rest.trim_matches([' ', '\t', ':'])
        });
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let cores = std::thread::available_parallelism()?;
    let tls = if options.upstream_tls {
        "with"
    } else {
        "without"
    };
    Ok(vec![
        format!("Machine: {cores} cores, {cpu}, Linux {}", kernel.trim()),
        format!(
            "{}, {}, {}",
            version(&options.pgvalet, "--version")?,
            version(&options.pgbouncer, "--version")?,
            version(&options.haproxy, "-v")?
        ),
        format!("PostgreSQL {}, {tls} TLS towards it", server.trim()),
        format!(
            "{} rounds, turns of {} s, the targets one after the other in each round; values are medians, ratios those within a round, with their least and most",
            stage.rounds(),
            stage.turn()
        ),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_takes_the_place_of_the_last_one() {
        let document = format!("above\n{BEGIN}\nold\n{END}\nbelow\n");
        let once = put(&document, "| new |\n").unwrap();
        assert_eq!(once, format!("above\n{BEGIN}\n\n| new |\n\n{END}\nbelow\n"));
        assert_eq!(put(&once, "| new |\n").unwrap(), once);
        assert!(put("no marks", "").is_err());
    }
}
