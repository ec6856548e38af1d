//! Owns `pgvalet serve`: configuration, log, listeners, signals; the work is `run`'s.

use std::io::IsTerminal;

use tracing::{error, warn};
use tracing_subscriber::EnvFilter;

use super::{Exit, complain, loaded};
use crate::config::{Config, LogFormat, Sources};

/// Serves until a signal ends it.
pub(super) fn serve(sources: Sources) -> Exit {
    let loaded = match loaded(&sources) {
        Ok(loaded) => loaded,
        Err(exit) => return exit,
    };
    log_to_stderr(&loaded.config);
    for warning in &loaded.warnings {
        warn!("{warning}");
    }
    match start(loaded.config, sources) {
        Ok(()) => Exit::Success,
        Err(failure) => {
            error!("{failure}");
            Exit::Failed
        }
    }
}

/// Log lines go to stderr: stdout is for what a command answers.
fn log_to_stderr(config: &Config) {
    let filter = EnvFilter::try_new(&config.log).unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    let installed = match config.log_format {
        LogFormat::Json => log.json().flatten_event(true).try_init(),
        LogFormat::Text => log.with_ansi(std::io::stderr().is_terminal()).try_init(),
    };
    if let Err(error) = installed {
        complain(&format!("no log: {error}"));
    }
}

// WIRE HERE: bind the listeners of `config`, then `run(config, listeners, shutdown)` with `super::Signals`
// (Drain, End, Reload; for Reload, `crate::config::load(&sources)` again).
fn start(config: Config, sources: Sources) -> Result<(), &'static str> {
    let _ = (config, sources);
    Err("serve isn't wired yet")
}
