//! Owns what is known of a user: a password, or what PostgreSQL itself keeps of one (`pg_authid.rolpassword`).
//!
//! A mounted secret is read at each use, so that a rotation needs no restart. Refuses to show any of it.

use std::fmt;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use secrecy::{ExposeSecret, SecretString};

use crate::wire::scram::Verifier;

/// The longest secret in a file, in bytes.
const LONGEST: u64 = 64 << 10;

/// What is known of a user, as its notation tells.
#[derive(Clone, Debug)]
pub enum Secret {
    /// The password itself: it logs in everywhere.
    Password(SecretString),
    /// `SCRAM-SHA-256$…`: it checks a client, whose proof then gives what logs in to PostgreSQL.
    Verifier(Arc<Verifier>),
    /// `md5…`: it checks a client, and logs in to PostgreSQL by md5.
    Md5(SecretString),
}

/// A secret in a file of its own, as Kubernetes and systemd mount them. Clones share what was read last.
#[derive(Clone)]
pub struct SecretFile {
    path: PathBuf,
    last: Arc<Mutex<Last>>,
}

/// The outcome of the last reading.
struct Last {
    text: SecretString,
    /// Why it failed since: logged once.
    failed: Option<String>,
}

impl Secret {
    /// Reads PostgreSQL's notations as what they are; anything else is a password, as behind `ALTER ROLE … PASSWORD`.
    #[must_use]
    pub fn read(text: &SecretString) -> Self {
        let exposed = text.expose_secret();
        if let Some(verifier) = Verifier::read(exposed) {
            return Self::Verifier(Arc::new(verifier));
        }
        let is_md5 = exposed.strip_prefix("md5").is_some_and(|hash| {
            let digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
            hash.len() == 32 && hash.bytes().all(digit)
        });
        if is_md5 {
            Self::Md5(text.clone())
        } else {
            Self::Password(text.clone())
        }
    }
}

impl SecretFile {
    /// Reads the file for the first time.
    ///
    /// # Errors
    /// It can't be read, or holds nothing.
    pub fn open(path: &Path) -> io::Result<Self> {
        let text = read(path)?;
        let last = Arc::new(Mutex::new(Last { text, failed: None }));
        let path = path.to_owned();
        Ok(Self { path, last })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the file holds now; what it held last, while it can't be read. It reads: call it off the data thread.
    #[must_use]
    pub fn current(&self) -> SecretString {
        let read = read(&self.path);
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        match read {
            Ok(text) => {
                if text.expose_secret() != last.text.expose_secret() {
                    tracing::info!(file = %self.path.display(), "a secret has changed");
                }
                *last = Last { text, failed: None };
            }
            Err(error) => {
                let error = error.to_string();
                if last.failed.as_ref() != Some(&error) {
                    tracing::error!(file = %self.path.display(), "a secret stays as it was: {error}");
                }
                last.failed = Some(error);
            }
        }
        last.text.clone()
    }
}

impl fmt::Debug for SecretFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretFile({})", self.path.display())
    }
}

/// The file's text, less the line feed at its end.
fn read(path: &Path) -> io::Result<SecretString> {
    let mut text = String::new();
    let mut file = std::fs::File::open(path)?.take(LONGEST + 1);
    file.read_to_string(&mut text)?;
    let length = text.trim_end_matches(['\r', '\n']).len();
    text.truncate(length);
    match text.len() as u64 {
        0 => Err(io::Error::other("it holds nothing")),
        length if length > LONGEST => Err(io::Error::other("it is longer than 64 KiB")),
        _ if text.contains('\0') => Err(io::Error::other("it holds a NUL byte")),
        _ => Ok(SecretString::from(text)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_what_its_notation_says() {
        let read = |text: &str| Secret::read(&SecretString::from(text.to_owned()));
        let verifier = "SCRAM-SHA-256$4096:jw47HFptfpARIjNEVWZ3jw==$\
                        AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
        assert!(matches!(read(verifier), Secret::Verifier(_)));
        assert!(matches!(
            read("md50123456789abcdef0123456789abcdef"),
            Secret::Md5(_)
        ));
        for plain in [
            "md5",
            "md50123456789ABCDEF0123456789abcdef",
            "SCRAM-SHA-256$",
            "pencil",
        ] {
            assert!(matches!(read(plain), Secret::Password(_)), "{plain}");
        }
    }

    #[test]
    fn a_file_is_read_again_at_each_use_and_kept_where_it_is_gone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("secret");
        assert!(SecretFile::open(&path).is_err());
        std::fs::write(&path, "\n").unwrap();
        assert!(SecretFile::open(&path).is_err());
        std::fs::write(&path, "one\r\n").unwrap();
        let file = SecretFile::open(&path).unwrap();
        assert_eq!(file.current().expose_secret(), "one");
        std::fs::write(&path, " two ").unwrap();
        assert_eq!(file.current().expose_secret(), " two ");
        std::fs::remove_file(&path).unwrap();
        assert_eq!(file.current().expose_secret(), " two ");
        assert!(!format!("{file:?}").contains("two"));
    }
}
