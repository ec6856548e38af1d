//! Owns values that are made of files, and made anew when the files change.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use super::TlsError;
use crate::clock::timers;
use crate::executor;

/// How often the files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(2);

type Make<T> = Box<dyn Fn() -> Result<T, TlsError> + Send + Sync>;

/// A value that is swapped as a whole: who has taken it keeps what it took.
pub(super) struct Reloaded<T> {
    paths: Vec<PathBuf>,
    make: Make<T>,
    value: RwLock<Arc<T>>,
    seen: Mutex<Seen>,
}

/// What is known of the files.
struct Seen {
    stamps: Vec<Option<Stamp>>,
    /// Why the last attempt failed: logged once, and tried again until it works.
    failed: Option<String>,
}

/// When, which and how large a file was.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Stamp {
    modified: (i64, i64),
    inode: u64,
    size: u64,
}

impl<T> Reloaded<T> {
    /// Makes the first value of the files at `paths`.
    ///
    /// # Errors
    /// What is wrong with them.
    pub(super) fn new(
        paths: Vec<PathBuf>,
        make: impl Fn() -> Result<T, TlsError> + Send + Sync + 'static,
    ) -> Result<Self, TlsError> {
        // Looked at before they are read: a change in between is then seen as one.
        let stamps = paths.iter().map(|path| stamp(path)).collect();
        let value = RwLock::new(Arc::new(make()?));
        let seen = Mutex::new(Seen {
            stamps,
            failed: None,
        });
        Ok(Self {
            paths,
            make: Box::new(make),
            value,
            seen,
        })
    }

    /// The value in effect.
    pub(super) fn current(&self) -> Arc<T> {
        let value = self.value.read();
        value.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Makes the value anew where a file has changed, or the last attempt failed. Files that are wrong change nothing.
    pub(super) fn refresh(&self) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let stamps: Vec<_> = self.paths.iter().map(|path| stamp(path)).collect();
        if seen.failed.is_none() && stamps == seen.stamps {
            return;
        }
        seen.stamps = stamps;
        match (self.make)() {
            Ok(value) => {
                *self.value.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(value);
                seen.failed = None;
                tracing::info!(files = %self.names(), "certificates were read again");
            }
            Err(error) => {
                let error = error.to_string();
                if seen.failed.as_ref() != Some(&error) {
                    tracing::error!("the certificates stay as they were: {error}");
                }
                seen.failed = Some(error);
            }
        }
    }

    /// Looks at the files from time to time, for as long as it runs. Cancel safe.
    pub(super) async fn watch(self: Arc<Self>)
    where
        T: Send + Sync + 'static,
    {
        if self.paths.is_empty() {
            return;
        }
        let mut ticks = timers::interval(LOOK_EVERY);
        loop {
            ticks.tick().await;
            let this = self.clone();
            // A file system that hangs holds up nobody's handshake.
            if let Err(error) = executor::aside(move || this.refresh()).await {
                tracing::error!("the look at the certificates failed: {error}");
            }
        }
    }

    fn names(&self) -> String {
        let names = self.paths.iter().map(|path| path.display().to_string());
        names.collect::<Vec<_>>().join(", ")
    }
}

fn stamp(path: &Path) -> Option<Stamp> {
    let meta = std::fs::metadata(path).ok()?;
    Some(Stamp {
        modified: (meta.mtime(), meta.mtime_nsec()),
        inode: meta.ino(),
        size: meta.size(),
    })
}

impl<T> std::fmt::Debug for Reloaded<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reloaded")
            .field("paths", &self.paths)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_file(path: &Path) -> Reloaded<String> {
        let from = path.to_owned();
        let make = move || {
            let source = |source| TlsError::Unreadable {
                path: from.clone(),
                source,
            };
            std::fs::read_to_string(&from).map_err(source)
        };
        Reloaded::new(vec![path.to_owned()], make).unwrap()
    }

    #[test]
    fn a_value_follows_its_file_and_outlives_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a");
        std::fs::write(&path, "one").unwrap();
        let reloaded = of_file(&path);
        let taken = reloaded.current();

        std::fs::write(&path, "other").unwrap();
        reloaded.refresh();
        assert_eq!(
            (taken.as_str(), reloaded.current().as_str()),
            ("one", "other")
        );

        std::fs::remove_file(&path).unwrap();
        reloaded.refresh();
        assert_eq!(*reloaded.current(), "other");

        std::fs::write(&path, "other").unwrap();
        reloaded.refresh();
        assert!(!Arc::ptr_eq(&taken, &reloaded.current()));
    }

    #[test]
    fn an_unchanged_file_is_not_read_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a");
        std::fs::write(&path, "one").unwrap();
        let reloaded = of_file(&path);
        let taken = reloaded.current();
        reloaded.refresh();
        assert!(Arc::ptr_eq(&taken, &reloaded.current()));
    }
}
