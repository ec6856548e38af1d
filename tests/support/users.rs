//! Whom PostgreSQL runs as: it refuses root, so a test run by root steps down.

use std::fs;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

/// The unprivileged user to step down to; `None` where we are unprivileged ourselves.
#[derive(Clone, Copy)]
pub struct Unprivileged {
    uid: u32,
    gid: u32,
}

impl Unprivileged {
    pub fn find() -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            return None;
        }
        let passwd = fs::read_to_string("/etc/passwd").expect("root can read /etc/passwd");
        let entry = |name: &str| {
            let line = passwd
                .lines()
                .find(|line| line.split(':').next() == Some(name))?;
            let mut ids = line.split(':').skip(2).map_while(|id| id.parse().ok());
            Some(Self {
                uid: ids.next()?,
                gid: ids.next()?,
            })
        };
        Some(
            entry("postgres")
                .or_else(|| entry("nobody"))
                .expect("a user postgres or nobody exists"),
        )
    }

    pub fn run(user: Option<Self>, command: &mut Command) -> &mut Command {
        match user {
            Some(Self { uid, gid }) => command.uid(uid).gid(gid),
            None => command,
        }
    }

    pub fn own(user: Option<Self>, path: &Path) {
        if let Some(Self { uid, gid }) = user {
            chown(path, Some(uid), Some(gid)).expect("root can give a file away");
        }
    }
}

/// Copies the tree `from` to `to`, and gives the copy to `user`.
pub fn copy_tree(from: &Path, to: &Path, user: Option<Unprivileged>) -> std::io::Result<()> {
    fs::create_dir_all(to)?;
    fs::set_permissions(to, fs::metadata(from)?.permissions())?;
    Unprivileged::own(user, to);
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_tree(&entry.path(), &target, user)?;
        } else {
            fs::copy(entry.path(), &target)?;
            Unprivileged::own(user, &target);
        }
    }
    Ok(())
}
