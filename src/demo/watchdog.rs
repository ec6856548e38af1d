//! Owns the promise that nothing outlives us: not even SIGKILL leaves a process or a directory behind.
//!
//! A shell of its own waits for our end of its stdin to close. (The kernel's parent-death signal would need an unsafe hook
//! between fork and exec, and would fire when a mere thread ends.)

use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// Ends, at our death: each process whose pid is in a `*.pid` file of the directory, then removes the directory.
const SCRIPT: &str = r#"
trap '' INT TERM HUP
cat >/dev/null
for file in "$1"/*.pid; do
    [ -e "$file" ] || continue
    pid=$(cat "$file")
    kill -QUIT "$pid" 2>/dev/null || continue
    rounds=0
    while kill -0 "$pid" 2>/dev/null && [ "$rounds" -lt 50 ]; do sleep 0.1; rounds=$((rounds + 1)); done
    kill -KILL "$pid" 2>/dev/null
done
rm -rf "$1"
"#;

/// Watches until it is dropped.
#[derive(Debug)]
pub struct Watchdog {
    shell: Child,
}

impl Watchdog {
    /// Watches over `directory`.
    ///
    /// # Errors
    ///
    /// Where there is no `sh`.
    pub fn over(directory: &Path) -> io::Result<Self> {
        let shell = Command::new("sh")
            .args(["-c", SCRIPT, "watchdog"])
            .arg(directory)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // Out of the reach of the terminal's Ctrl-C.
            .process_group(0)
            .spawn()?;
        Ok(Self { shell })
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        // Killed before its stdin closes. It is gone already where this fails.
        let _ = self.shell.kill();
        let _ = self.shell.wait();
    }
}
