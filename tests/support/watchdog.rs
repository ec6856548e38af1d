//! Ends a child and removes its directory when the test process itself dies without running its destructors.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// A shell in a process group of its own that waits for our end of its stdin to close.
pub struct Watchdog(Child);

impl Watchdog {
    /// Watches process `pid`; `directory`, where given, is removed afterwards.
    pub fn watch(pid: u32, directory: Option<&Path>) -> Self {
        let script = r#"cat >/dev/null; kill -QUIT "$1"; if [ -n "$2" ]; then while kill -0 "$1"; do sleep 0.1; done; rm -rf "$2"; fi"#;
        let child = Command::new("sh")
            .args(["-c", script, "watchdog", &pid.to_string()])
            .arg(directory.unwrap_or(Path::new("")))
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
