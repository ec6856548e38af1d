//! Owns the command line: subcommands, flags, what is printed, exit codes.
//!
//! Refuses to know leases or sockets: `serve` hands a configuration to `run`, the others ask the admin API.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::Certificates;
use crate::admin::check_tokens;
use crate::config::{Loaded, Sources, load};
use crate::demo::{self, After};

mod checks;
pub mod client;
mod commands;
mod follow;
mod gate;
mod options;
mod proof;
mod serve;
mod signals;
pub mod stream;
mod tables;
mod views;

pub use proof::Proof;
pub use signals::{ProcessSignal, Signals};
pub use views::{Leak, Leaks, Lease, Owner, Reload, ReloadLease};

use options::ConfigOptions;

/// How the program ends. Documented in `pgvalet --help`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// All went well.
    Success,
    /// It was understood, and didn't work out: a return was refused, say.
    Failed,
    /// The command line or the configuration is wrong.
    Usage,
    /// No pgvalet answers.
    Unreachable,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(match exit {
            Exit::Success => 0,
            Exit::Failed => 1,
            Exit::Usage => 2,
            Exit::Unreachable => 3,
        })
    }
}

const CONFIG_HELP: &str = "A TOML file with keys as in docs/configuration.md [PGVALET_CONFIG]";

const EXIT_CODES: &str = "Exit codes: 0 done; 1 it didn't work out, such as a return that was refused; \
                          2 wrong usage or configuration; 3 no pgvalet answers.";

/// A sidecar proxy for PostgreSQL that knows who holds each session, and gives parked ones back.
#[derive(Debug, Parser)]
#[command(name = "pgvalet", version, after_help = EXIT_CODES, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Stand between clients and PostgreSQL.
    Serve(Configured),
    /// Check the configuration, and print it as it would take effect, secrets hidden.
    Check(Configured),
    /// Show who holds a backend now.
    Leases(commands::LeasesArgs),
    /// Show owners, and what each of them holds.
    Owners(commands::Common),
    /// Show who has parked, since when, and after which statement.
    Leaks(commands::Common),
    /// Fail when more leases are parked than allowed: a step for CI.
    Gate(gate::GateArgs),
    /// Return every lease that is at a quiet point, as an app's reload does.
    Reload(commands::ReloadArgs),
    /// Return one lease, or all of an owner.
    Return(commands::ReturnArgs),
    /// Show what happens, as it happens.
    Events(follow::EventsArgs),
    /// End sessions whose process is gone.
    Reap(checks::ReapArgs),
    /// Ask backends that nobody leases whether they are alive, and replace the dead.
    Verify(commands::Common),
    /// Show every pgvalet of this database's fleet.
    Fleet(commands::Common),
    /// See it at work: a throwaway PostgreSQL, a pgvalet, a small app, and a reload.
    Demo(DemoArgs),
}

#[derive(Args, Debug)]
struct DemoArgs {
    /// Leave all running afterwards, until Ctrl-C, and say how to connect
    #[arg(long)]
    keep: bool,
}

#[derive(Args, Debug)]
struct Configured {
    /// A TOML file with keys as in docs/configuration.md.
    #[arg(long, short, value_name = "FILE", help = CONFIG_HELP)]
    config: Option<PathBuf>,
    #[command(flatten)]
    options: ConfigOptions,
}

impl Configured {
    fn sources(self) -> Sources {
        Sources::of_process(self.options.flags, self.config)
    }
}

/// Runs the command line of the process.
pub fn main() -> ExitCode {
    let exit = match Cli::parse().command {
        Command::Serve(configured) => serve::serve(configured.sources()),
        Command::Check(configured) => check(&configured.sources()),
        Command::Leases(args) => commands::leases(&args),
        Command::Owners(common) => commands::owners(&common),
        Command::Leaks(common) => commands::leaks(&common),
        Command::Gate(args) => gate::gate(&args),
        Command::Reload(args) => commands::reload(&args),
        Command::Return(args) => commands::give_back(&args),
        Command::Events(args) => follow::events(&args),
        Command::Reap(args) => checks::reap(&args),
        Command::Verify(common) => checks::verify(&common),
        Command::Fleet(common) => checks::fleet(&common),
        Command::Demo(args) => return demo::run(if args.keep { After::Keep } else { After::End }),
    };
    exit.into()
}

fn check(sources: &Sources) -> Exit {
    match loaded(sources) {
        Ok(loaded) => {
            for warning in &loaded.warnings {
                complain(&format!("warning: {warning}"));
            }
            let certificates = Certificates::load(&loaded.config).map(drop);
            let tokens = || Ok(check_tokens(&loaded.config.admin_access)?);
            if let Err(error) = certificates.and_then(|()| tokens()) {
                complain(&error.to_string());
                return Exit::Usage;
            }
            print(&loaded.effective_toml())
        }
        Err(exit) => exit,
    }
}

/// The configuration; what is wrong with it goes to stderr.
fn loaded(sources: &Sources) -> Result<Loaded, Exit> {
    load(sources).map_err(|errors| {
        for error in &errors.0 {
            complain(&error.to_string());
        }
        Exit::Usage
    })
}

/// Prints to stdout. A reader that has gone, such as `head`, is no failure.
fn print(text: &str) -> Exit {
    let mut stdout = std::io::stdout().lock();
    match stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
    {
        Ok(()) => Exit::Success,
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Exit::Success,
        Err(_) => Exit::Failed,
    }
}

/// Prints a line to stderr. Nothing can be done where even that fails.
fn complain(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "pgvalet: {text}");
}
