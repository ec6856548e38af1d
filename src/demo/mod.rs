//! Owns `pgvalet demo`: a throwaway PostgreSQL, a pgvalet in front of it, a small app, and their story.
//!
//! Refuses to leave anything behind: neither a process nor a directory, however it ends.

use std::io;
use std::process::ExitCode;

use crate::cli::client::ClientError;
use crate::cli::{Exit, Signals};

mod app;
mod narrator;
pub mod postgres;
mod proxy;
pub mod scratch;
mod story;
mod watchdog;

use narrator::Narrator;
use postgres::PostgresError;
use story::Story;

/// Whether the demo goes on after its story.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    /// Clean up and end.
    End,
    /// Leave all running until Ctrl-C, and say how to connect.
    Keep,
}

/// What stops the story.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// There is no PostgreSQL.
    #[error(transparent)]
    Postgres(#[from] PostgresError),
    /// pgvalet didn't start; the end of its log.
    #[error("pgvalet didn't start: {0}")]
    Proxy(String),
    /// A client of the small app got an error.
    #[error("the demo's app failed: {0}")]
    App(#[from] tokio_postgres::Error),
    /// The admin API gave an error.
    #[error(transparent)]
    Admin(#[from] ClientError),
    /// Something that the story waits for didn't happen.
    #[error("the story waited in vain for {0}")]
    Waited(&'static str),
    /// A command of the story failed.
    #[error("`{0}` failed")]
    Command(String),
    /// The system.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Tells the story. Ctrl-C, SIGTERM and SIGHUP end it early, cleanly.
pub fn run(after: After) -> ExitCode {
    let narrator = Narrator::to_stdout();
    let ending = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        // The runtime is dropped here: it waits for what runs beside it, and so for a PostgreSQL that is just being made.
        Ok(runtime) => runtime.block_on(until_signal(&narrator, after)),
        Err(error) => Err(error.into()),
    };
    let cleaned = |ending| {
        narrator
            .line(CLEANED)
            .map(|()| ending)
            .map_err(DemoError::from)
    };
    match ending.and_then(cleaned) {
        Ok(Ending::Told) => Exit::Success.into(),
        Ok(Ending::Interrupted) => ExitCode::from(130),
        Err(DemoError::Io(error)) if error.kind() == io::ErrorKind::BrokenPipe => {
            Exit::Success.into()
        }
        Err(error) => {
            eprintln!("pgvalet: {error}");
            Exit::Failed.into()
        }
    }
}

/// What is true once all has been dropped.
const CLEANED: &str = "Cleaned up: no process and no file is left.";

enum Ending {
    Told,
    Interrupted,
}

async fn until_signal(narrator: &Narrator, after: After) -> Result<Ending, DemoError> {
    let mut signals = Signals::install()?;
    let mut story = Box::pin(tell(narrator, after));
    tokio::select! {
        // Ctrl-C also ends the commands that the story runs: what counts is that somebody pressed it.
        biased;
        _ = signals.next() => {}
        told = &mut story => return told.map(|()| Ending::Told),
    }
    narrator.line("\nInterrupted: cleaning up.")?;
    Ok(Ending::Interrupted)
}

async fn tell(narrator: &Narrator, after: After) -> Result<(), DemoError> {
    let mut story = Story::begin(narrator).await?;
    story.tell().await?;
    if after == After::Keep {
        story.keep().await?;
    }
    story.end().await
}
