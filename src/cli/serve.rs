//! Owns `pgvalet serve`: configuration, log, listeners, signals; the work is `run`'s.

use std::io::IsTerminal;

use tracing::{error, info, warn};
use tracing_subscriber::EnvFilter;

use super::signals::{ProcessSignal, Signals};
use super::{Exit, complain, loaded};
use crate::config::{self, Config, LogFormat, Sources};
use crate::drain::{self, Trigger, Wish};
use crate::{Certificates, Listeners, RunError};

/// How much less than others a thread is that can wait.
#[cfg(target_os = "linux")]
const LOWER: i32 = 10;

/// Serves until a signal ends it. Without huge pages, which would make megabytes of memory of what sessions need only
/// kilobytes of.
pub(super) fn serve(sources: Sources) -> Exit {
    let loaded = match loaded(&sources) {
        Ok(loaded) => loaded,
        Err(exit) => return exit,
    };
    log_to_stderr(&loaded.config);
    for warning in &loaded.warnings {
        warn!("{warning}");
    }
    if let Err(error) = rustix::thread::disable_transparent_huge_pages(true) {
        // Only memory is at stake.
        warn!("huge pages stay on: {error}");
    }
    match start(loaded.config, sources) {
        Ok(()) => Exit::Success,
        Err(failure) => {
            error!("{failure}");
            Exit::Failed
        }
    }
}

/// Threads of this runtime read `/proc` and write long answers of the admin API: data threads go first.
fn stand_back() {
    #[cfg(target_os = "linux")]
    {
        // Linux counts priorities by thread. Where none may be lowered, all are alike.
        let _ = rustix::process::setpriority_process(None, LOWER);
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

/// Binds the listeners, and runs until the signals have brought the end.
fn start(config: Config, sources: Sources) -> Result<(), RunError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .on_thread_start(stand_back)
        .build();
    runtime.map_err(RunError::Start)?.block_on(async {
        let signals = Signals::install().map_err(RunError::Start)?;
        let listeners = Listeners::bind(&config)?;
        let (trigger, shutdown) = drain::channel();
        let certificates = listeners.certificates.clone();
        tokio::spawn(heed(signals, trigger, sources, certificates));
        crate::run(config, listeners, shutdown).await
    })
}

/// Does what signals ask for, until the process ends.
async fn heed(
    mut signals: Signals,
    mut trigger: Trigger,
    sources: Sources,
    certificates: Certificates,
) {
    loop {
        let asked = tokio::select! {
            signal = signals.next() => signal,
            wish = trigger.wish() => match wish {
                Wish::Reload => ProcessSignal::Reload,
                Wish::Drain => ProcessSignal::Drain,
                Wish::End => ProcessSignal::End,
            },
        };
        match asked {
            ProcessSignal::Drain => {
                info!(
                    "draining: sessions end at their next quiet point; a second signal ends at once"
                );
                trigger.advance();
            }
            ProcessSignal::End => {
                info!("ending at once");
                trigger.end();
            }
            ProcessSignal::Reload => {
                certificates.refresh();
                match config::load(&sources) {
                    Ok(_) => warn!("the configuration is valid; it takes effect at the next start"),
                    Err(errors) => error!("the configuration stays as it was: {errors}"),
                }
            }
        }
    }
}
