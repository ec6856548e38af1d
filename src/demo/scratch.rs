//! Owns a directory that is gone when we are, whatever happens.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use super::watchdog::Watchdog;

/// A directory of ours under the system's temporary one, for us alone.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
    _watchdog: Watchdog,
}

impl Scratch {
    /// Makes a new one, with `name` in its name.
    ///
    /// # Errors
    ///
    /// Where the system refuses.
    pub fn new(name: &str) -> io::Result<Self> {
        let mut random = [0_u8; 6];
        getrandom::fill(&mut random).map_err(io::Error::other)?;
        let suffix: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
        let path = std::env::temp_dir().join(format!("{name}-{suffix}"));
        DirBuilder::new().mode(0o700).create(&path)?;
        match Watchdog::over(&path) {
            Ok(watchdog) => Ok(Self {
                path,
                _watchdog: watchdog,
            }),
            Err(error) => {
                fs::remove_dir(&path)?;
                Err(error)
            }
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Notes a process that shall not outlive us.
    ///
    /// # Errors
    ///
    /// Where the file can't be written.
    pub fn note_pid(&self, name: &str, pid: u32) -> io::Result<()> {
        fs::write(self.pid_file(name), pid.to_string())
    }

    /// Forgets a process that has ended: its pid may be another's soon. Nothing to forget is fine.
    pub fn forget_pid(&self, name: &str) {
        let _ = fs::remove_file(self.pid_file(name));
    }

    fn pid_file(&self, name: &str) -> PathBuf {
        self.path.join(format!("{name}.pid"))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // The watchdog is dropped after this. What can't be removed now, nobody can remove.
        let _ = fs::remove_dir_all(&self.path);
    }
}
