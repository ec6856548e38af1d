//! Owns a running pgvalet, as its users run it: the program, with flags.

use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use crate::Failure;

/// How to start one.
#[derive(Clone, Debug)]
pub struct Program {
    pub path: PathBuf,
    /// What it runs under, such as valgrind; empty for nothing.
    pub under: Vec<OsString>,
}

/// A running one. Killed when it is dropped.
#[derive(Debug)]
pub struct Pgvalet {
    child: Child,
    /// 0 where it listens on a unix socket only.
    pub port: u16,
    pub admin: u16,
    pub metrics: u16,
}

impl Program {
    pub fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            under: Vec::new(),
        }
    }

    /// Starts it, and waits until it listens.
    pub fn serve(&self, flags: &[String]) -> Result<Pgvalet, Failure> {
        let words: Vec<OsString> = self
            .under
            .iter()
            .cloned()
            .chain([self.path.clone().into_os_string()])
            .collect();
        let mut command = Command::new(&words[0]);
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("PGVALET_") {
                command.env_remove(name);
            }
        }
        let mut child = command
            .args(&words[1..])
            .args([
                "serve",
                "--admin",
                "127.0.0.1:0",
                "--metrics",
                "127.0.0.1:0",
            ])
            .args(flags)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| format!("{}: {error}", words[0].display()))?;
        let stderr = child.stderr.take().ok_or("no stderr")?;
        match listening(stderr) {
            Ok([port, admin, metrics]) => Ok(Pgvalet {
                child,
                port,
                admin,
                metrics,
            }),
            Err(log) => {
                let _ = child.kill();
                let _ = child.wait();
                Err(format!("pgvalet didn't start: {log}").into())
            }
        }
    }
}

impl Pgvalet {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ends it in order, and waits.
    pub fn end(mut self) -> Result<(), Failure> {
        kill_process(Pid::from_child(&self.child), Signal::TERM)?;
        let status = self.child.wait()?;
        if status.success() {
            return Ok(());
        }
        Err(format!("pgvalet ended with {status}").into())
    }
}

impl Drop for Pgvalet {
    fn drop(&mut self) {
        // Gone already where this fails.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits for the lines that say where it listens; else what it said instead. The log is read on, and warnings shown.
fn listening(stderr: ChildStderr) -> Result<[u16; 3], String> {
    let mut lines = BufReader::new(stderr).lines().map_while(Result::ok);
    let mut ports = [None; 3];
    let mut log = String::new();
    while ports.contains(&None) {
        let Some(line) = lines.next() else {
            return Err(log);
        };
        for (kind, port) in ["clients", "admin", "metrics"].into_iter().zip(&mut ports) {
            *port = port.or_else(|| bound(&line, kind));
        }
        log.push_str(&line);
        log.push('\n');
    }
    std::thread::spawn(move || {
        for line in lines {
            if line.contains("WARN") || line.contains("ERROR") || line.contains("panicked") {
                eprintln!("pgvalet: {line}");
            }
        }
    });
    Ok(ports.map(Option::unwrap_or_default))
}

/// The port in `listening kind=clients address=127.0.0.1:41234`, 0 for an address without one (a unix socket).
fn bound(line: &str, kind: &str) -> Option<u16> {
    if !line.contains("listening") || !line.contains(&format!("kind={kind}")) {
        return None;
    }
    let (_, address) = line.split_once("address=")?;
    let address = address.split_whitespace().next()?;
    let port = address.rsplit_once(':')?.1.parse();
    Some(port.unwrap_or_default())
}
