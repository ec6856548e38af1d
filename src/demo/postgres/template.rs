//! Owns data directories that are made once and copied: initdb takes seconds, a copy takes milliseconds.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::PostgresError;
use super::binaries::RunAs;

/// Fills `data` with a copy of `template`. Where that isn't there yet, has `initdb` fill `data`, and keeps a copy of it.
/// Others who want the same template wait meanwhile, also in other processes.
pub(super) fn fill(
    data: &Path,
    template: &Path,
    run_as: RunAs,
    initdb: impl FnOnce() -> Result<(), PostgresError>,
) -> Result<(), PostgresError> {
    if let Some(parent) = template.parent() {
        fs::create_dir_all(parent)?;
    }
    let lock = File::create(beside(template, "lock"))?;
    lock.lock()?;
    if template.exists() {
        return Ok(copy(template, data, run_as)?);
    }
    initdb()?;
    let fresh = beside(template, "fresh");
    if fresh.exists() {
        fs::remove_dir_all(&fresh)?;
    }
    copy(data, &fresh, RunAs::Ourselves)?;
    Ok(fs::rename(fresh, template)?)
}

/// `template` with a further suffix: its name ends in a version, which is no extension.
fn beside(template: &Path, suffix: &str) -> PathBuf {
    let mut name = template.as_os_str().to_owned();
    name.push(".");
    name.push(suffix);
    PathBuf::from(name)
}

/// Copies a tree, with its permissions, for `owner`.
fn copy(from: &Path, to: &Path, owner: RunAs) -> io::Result<()> {
    fs::create_dir(to)?;
    fs::set_permissions(to, fs::metadata(from)?.permissions())?;
    owner.own(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &target, owner)?;
        } else {
            fs::copy(entry.path(), &target)?;
            owner.own(&target)?;
        }
    }
    Ok(())
}
