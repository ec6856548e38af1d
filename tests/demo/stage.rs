//! Runs the demo with a temporary directory of its own, in which all that it starts works: what is left can be found there.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tempfile::TempDir;

/// A running demo. Killed when dropped; its own watchdogs clean up then.
pub struct Demo {
    child: Child,
    /// stdout and stderr, line by line; disconnects when both are closed.
    lines: Option<Receiver<String>>,
    text: String,
    directory: TempDir,
}

impl Demo {
    pub fn start(arguments: &[&str]) -> Self {
        let directory = tempfile::Builder::new()
            .prefix("pgvalet-test-demo-")
            .tempdir()
            .expect("a directory");
        // PostgreSQL's own user has to get in.
        std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755))
            .expect("permissions");
        let (reader, writer) = std::io::pipe().expect("a pipe");
        let child = Command::new(env!("CARGO_BIN_EXE_pgvalet"))
            .args(arguments)
            .env("TMPDIR", directory.path())
            .stdin(Stdio::null())
            .stdout(writer.try_clone().expect("a pipe's end"))
            .stderr(writer)
            // As in a terminal: Ctrl-C goes to the whole group.
            .process_group(0)
            .spawn()
            .expect("the program runs");
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(reader).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        Self {
            child,
            lines: Some(lines),
            text: String::new(),
            directory,
        }
    }

    /// Reads up to the line that holds `part`, and returns all lines so far.
    pub fn read_until(&mut self, part: &str, within: Duration) -> String {
        while !self.text.contains(part) {
            match self
                .lines
                .as_ref()
                .expect("we still read")
                .recv_timeout(within)
            {
                Ok(line) => self.text.extend([&line, "\n"]),
                Err(error) => panic!("{error} before {part} in:\n{}", self.text),
            }
        }
        self.text.clone()
    }

    pub fn stop_reading(&mut self) {
        self.lines = None;
    }

    /// What Ctrl-C does: the signal goes to the process group.
    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id())
            .ok()
            .and_then(Pid::from_raw)
            .expect("a pid");
        kill_process_group(pid, signal).expect("it runs");
    }

    /// Reads to the end, and returns how it ended, and all that it said.
    pub fn wait(&mut self, within: Duration) -> (ExitStatus, String) {
        while let Some(lines) = &self.lines {
            match lines.recv_timeout(within) {
                Ok(line) => self.text.extend([&line, "\n"]),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => panic!("it hangs after:\n{}", self.text),
            }
        }
        (self.child.wait().expect("it ends"), self.text.clone())
    }

    pub fn assert_nothing_is_left(&self) {
        let left = self.left();
        assert!(
            left.is_empty(),
            "left behind: {left:?} after:\n{}",
            self.text
        );
    }

    /// Where the demo could not clean up itself.
    pub fn eventually_nothing_is_left(&self, within: Duration) {
        let interval = Duration::from_millis(50);
        let (_never, timer) = mpsc::channel::<()>();
        let mut waited = Duration::ZERO;
        while !self.left().is_empty() {
            assert!(waited < within, "left behind: {:?}", self.left());
            let _ = timer.recv_timeout(interval);
            waited += interval;
        }
    }

    /// Files in the directory, and processes whose command lines name it.
    fn left(&self) -> Vec<String> {
        let path = self.directory.path();
        let files = std::fs::read_dir(path)
            .expect("the directory")
            .flatten()
            .map(|entry| entry.path().display().to_string());
        files.chain(processes_naming(path)).collect()
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        // It has ended already unless the test failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn processes_naming(path: &Path) -> Vec<String> {
    let path = path.to_str().expect("UTF-8");
    let processes = std::fs::read_dir("/proc").expect("/proc").flatten();
    let command = |entry: std::fs::DirEntry| std::fs::read(entry.path().join("cmdline")).ok();
    let commands = processes
        .filter_map(command)
        .map(|bytes| String::from_utf8_lossy(&bytes).replace('\0', " "));
    commands.filter(|command| command.contains(path)).collect()
}

/// The first column of the first row of `sql` at `url`.
pub fn query(url: &str, sql: &str) -> String {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let (client, connection) = tokio_postgres::connect(url, tokio_postgres::NoTls)
            .await
            .expect("a connection");
        let connection = tokio::spawn(connection);
        let row = client.query_one(sql, &[]).await.expect("a row");
        drop(client);
        let _ = connection.await;
        row.get(0)
    })
}
