//! Ends a child when the test process itself dies without running its destructors.

use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

/// A shell in a process group of its own that waits for our end of its stdin to close.
pub struct Watchdog(Child);

impl Watchdog {
    /// Watches process `pid`.
    pub fn watch(pid: u32) -> Self {
        let child = Command::new("sh")
            .args(["-c", "cat >/dev/null; kill -KILL \"$1\"", "watchdog"])
            .arg(pid.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .expect("a shell can be started");
        Self(child)
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
