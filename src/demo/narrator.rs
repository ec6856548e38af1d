//! Owns what the demo prints, and how commands are run before the reader's eyes.

use std::cell::Cell;
use std::io::{self, IsTerminal, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

use super::DemoError;
use crate::clock::timers;

/// How long a signal to the whole group may take to reach us, when a command has had it.
const SIGNALLED: Duration = Duration::from_secs(1);

/// Prints to stdout, in bold where that is a terminal that wants it.
#[derive(Debug)]
pub(super) struct Narrator {
    style: Style,
    chapter: Cell<usize>,
}

#[derive(Clone, Copy, Debug)]
enum Style {
    Plain,
    Bold,
}

/// How many chapters the story has.
const CHAPTERS: usize = 7;

impl Narrator {
    pub(super) fn to_stdout() -> Self {
        let wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        let style = if wanted && io::stdout().is_terminal() {
            Style::Bold
        } else {
            Style::Plain
        };
        Self {
            style,
            chapter: Cell::new(0),
        }
    }

    /// Begins the next chapter.
    pub(super) fn chapter(&self, title: &str) -> io::Result<()> {
        self.chapter.set(self.chapter.get() + 1);
        let heading = format!("[{}/{CHAPTERS}] {title}", self.chapter.get());
        match self.style {
            Style::Plain => self.line(&format!("\n{heading}")),
            Style::Bold => self.line(&format!("\n\u{1b}[1m{heading}\u{1b}[0m")),
        }
    }

    /// Says a line, or several.
    pub(super) fn line(&self, text: &str) -> io::Result<()> {
        let mut stdout = io::stdout().lock();
        writeln!(stdout, "{text}")?;
        stdout.flush()
    }

    /// Says lines, each set off from the margin.
    pub(super) fn say(&self, text: &str) -> io::Result<()> {
        for line in text.lines() {
            self.line(&format!("      {line}"))?;
        }
        Ok(())
    }

    /// Shows a pgvalet command line, and runs it; its output goes where ours goes.
    pub(super) async fn run(&self, arguments: &[&str]) -> Result<(), DemoError> {
        let shown = format!("pgvalet {}", arguments.join(" "));
        self.line(&format!("    $ {shown}"))?;
        let mut command = Command::new(std::env::current_exe()?);
        command
            .args(arguments)
            .stdin(Stdio::null())
            .kill_on_drop(true);
        let status = command.status().await?;
        if status.signal().is_some() {
            // Ctrl-C ends the command, too: what it means for the story is about to be heard.
            timers::sleep(SIGNALLED).await;
        }
        if status.success() {
            Ok(())
        } else {
            Err(DemoError::Command(shown))
        }
    }
}
