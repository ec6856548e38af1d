//! Certificates, made with openssl as people make them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Every sslmode of libpq, the weakest first.
pub const SSLMODES: [&str; 6] = [
    "disable",
    "allow",
    "prefer",
    "require",
    "verify-ca",
    "verify-full",
];

/// An authority, and a directory for what it signs.
pub struct Authority {
    directory: tempfile::TempDir,
    name: String,
}

/// The files of a certificate and its key.
pub struct Pair {
    pub cert: PathBuf,
    pub key: PathBuf,
}

/// What kind of key a certificate has.
#[derive(Clone, Copy)]
pub enum KeyKind {
    Ec,
    Rsa,
    Ed25519,
}

impl Pair {
    pub fn cert(&self) -> &str {
        self.cert.to_str().expect("UTF-8")
    }

    pub fn key(&self) -> &str {
        self.key.to_str().expect("UTF-8")
    }

    /// The flags of a pgvalet that shows this certificate.
    pub fn flags<'a>(&'a self, demand: &'a str) -> [&'a str; 6] {
        let (cert, key) = (self.cert(), self.key());
        ["--tls", demand, "--tls-cert", cert, "--tls-key", key]
    }

    /// Overwrites these files with another pair's.
    pub fn replace_with(&self, other: &Pair) {
        fs::copy(&other.key, &self.key).expect("the key can be copied");
        fs::copy(&other.cert, &self.cert).expect("the certificate can be copied");
    }
}

impl Authority {
    pub fn new(name: &str) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let authority = Self {
            directory,
            name: name.to_owned(),
        };
        authority.self_signed("ca", name, KeyKind::Ec);
        authority
    }

    /// Its own certificate.
    pub fn root(&self) -> String {
        self.file("ca.crt").to_str().expect("UTF-8").to_owned()
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A certificate that signs itself: `openssl req -x509` makes it an authority's.
    pub fn self_signed(&self, file: &str, name: &str, kind: KeyKind) -> Pair {
        let pair = self.pair(file);
        openssl(
            Command::new("openssl")
                .args(["req", "-x509", "-nodes", "-days", "30", "-newkey"])
                .args(key_arguments(kind))
                .args(["-subj", &format!("/CN={name}"), "-keyout", pair.key()])
                .args(["-out", pair.cert()]),
        );
        pair
    }

    /// A certificate of version 3 for `name`, which is among its alternative names, as is 127.0.0.1.
    pub fn issue(&self, file: &str, name: &str, kind: KeyKind) -> Pair {
        let extensions = self.file("extensions");
        let text = format!("subjectAltName=DNS:{name},IP:127.0.0.1\nbasicConstraints=CA:FALSE\n");
        fs::write(&extensions, text).expect("a file can be written");
        self.sign(file, name, kind, &["-extfile", path(&extensions)])
    }

    /// A certificate of version 1, as the example in PostgreSQL's documentation makes it: its only name is the subject.
    pub fn issue_version_1(&self, file: &str, name: &str) -> Pair {
        let pair = self.sign(file, name, KeyKind::Rsa, &[]);
        let mut show = Command::new("openssl");
        show.args(["x509", "-noout", "-text", "-in", pair.cert()]);
        let text = programs_output(&mut show);
        assert!(text.contains("Version: 1"), "{text}");
        pair
    }

    fn sign(&self, file: &str, name: &str, kind: KeyKind, more: &[&str]) -> Pair {
        let pair = self.pair(file);
        let request = self.file("request");
        openssl(
            Command::new("openssl")
                .args(["req", "-nodes", "-newkey"])
                .args(key_arguments(kind))
                .args(["-subj", &format!("/CN={name}"), "-keyout", pair.key()])
                .args(["-out", path(&request)]),
        );
        openssl(
            Command::new("openssl")
                .args(["x509", "-req", "-days", "30", "-CAcreateserial", "-in"])
                .args([path(&request), "-CA", path(&self.file("ca.crt"))])
                .args(["-CAkey", path(&self.file("ca.key")), "-out", pair.cert()])
                .args(more),
        );
        pair
    }

    fn pair(&self, file: &str) -> Pair {
        Pair {
            cert: self.file(&format!("{file}.crt")),
            key: self.file(&format!("{file}.key")),
        }
    }
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Authority({})", self.name)
    }
}

fn key_arguments(kind: KeyKind) -> &'static [&'static str] {
    match kind {
        KeyKind::Ec => &["ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"],
        KeyKind::Rsa => &["rsa:2048"],
        KeyKind::Ed25519 => &["ed25519"],
    }
}

fn path(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

#[track_caller]
fn openssl(command: &mut Command) {
    programs_output(command);
}

#[track_caller]
fn programs_output(command: &mut Command) -> String {
    crate::programs::run(command)
}
