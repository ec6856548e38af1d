//! What pgvalet costs: beside PgBouncer and HAProxy on the same machine in the same minute, and in instructions.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod accounting;
mod crowd;
mod fake;
mod figures;
mod fleet;
mod http;
mod instructions;
mod pgbench;
mod pgvalet;
mod report;
mod run;
mod scram;
mod stage;
mod svg;
mod tls;
mod wire;

/// What stops a benchmark: said once, at the end.
type Failure = Box<dyn std::error::Error + Send + Sync>;

#[derive(Debug, Parser)]
#[command(about, version)]
struct Cli {
    #[command(subcommand)]
    command: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Measure pgvalet beside PgBouncer and HAProxy
    Run(Box<stage::Options>),
    /// Start a throwaway PostgreSQL with pgbench's tables, for poolers that you start yourself, until Ctrl-C
    Postgres,
    /// Count the instructions of a round trip, and compare with what is committed
    Instructions(instructions::Options),
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Task::Run(options) => run::main(*options),
        Task::Postgres => run::postgres(),
        Task::Instructions(options) => instructions::main(&options),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}
