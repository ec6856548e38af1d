//! The columns of the console against those of the real PgBouncer, as the distribution packages it.

use std::process::{Child, Command, Stdio};

use crate::console::columns;
use crate::support::{Message, Postgres, Raw, Valet, eventually, no_valet, skip};

/// What both show. The console adds to it what later versions have: `id`.
const SHOWS: [&str; 15] = [
    "CLIENTS",
    "SERVERS",
    "POOLS",
    "STATS",
    "STATS_TOTALS",
    "STATS_AVERAGES",
    "TOTALS",
    "LISTS",
    "DATABASES",
    "USERS",
    "CONFIG",
    "VERSION",
    "MEM",
    "DNS_HOSTS",
    "DNS_ZONES",
];

/// A running PgBouncer.
struct PgBouncer {
    child: Child,
    port: u16,
    _directory: tempfile::TempDir,
}

impl PgBouncer {
    /// One of version 1.18; none where there is none.
    fn start() -> Option<Self> {
        let version = Command::new("/usr/sbin/pgbouncer")
            .arg("--version")
            .output();
        let version = String::from_utf8_lossy(&version.ok()?.stdout).into_owned();
        if !version.starts_with("PgBouncer 1.18.") {
            return None;
        }
        let directory = tempfile::tempdir().expect("a directory");
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("it is bound").port();
        drop(listener);
        let file = directory.path().join("pgbouncer.ini");
        let text = format!(
            "[databases]\n* = host=127.0.0.1 port=1\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n\
             auth_type = any\nunix_socket_dir =\nadmin_users = postgres\n"
        );
        std::fs::write(&file, text).expect("written");
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(directory.path(), open).expect("its own");
        // It never runs as root.
        let root = rustix::process::geteuid().is_root();
        let mut command = if root {
            let mut command = Command::new("runuser");
            command.args(["-u", "postgres", "--", "/usr/sbin/pgbouncer"]);
            command
        } else {
            Command::new("/usr/sbin/pgbouncer")
        };
        command.arg("-q").arg(&file);
        let child = command.stderr(Stdio::null()).spawn().expect("it runs");
        let up = || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok();
        eventually("PgBouncer listens", up);
        Some(Self {
            child,
            port,
            _directory: directory,
        })
    }
}

impl Drop for PgBouncer {
    fn drop(&mut self) {
        if let Some(mut guest) = Some(Raw::connect_with(self.port, &GUEST)) {
            guest.send(&crate::support::messages::query("SHUTDOWN"));
        }
        let _ = self.child.wait();
    }
}

const GUEST: [(&str, &str); 2] = [("user", "postgres"), ("database", "pgbouncer")];

/// The columns with their types.
fn described(messages: &[Message]) -> Vec<(String, u32)> {
    let found = messages.iter().find(|message| message.tag == b'T');
    let body = &found.unwrap_or_else(|| panic!("{messages:?}")).body;
    let (mut rest, mut all) = (&body[2..], Vec::new());
    for name in columns(body) {
        let types = &rest[name.len() + 7..name.len() + 11];
        let oid = u32::from_be_bytes(types.try_into().expect("four bytes"));
        rest = &rest[name.len() + 19..];
        all.push((name, oid));
    }
    all
}

#[test]
fn the_columns_are_those_of_pgbouncer() {
    if no_valet() {
        return;
    }
    let Some(pgbouncer) = PgBouncer::start() else {
        return skip("no PgBouncer 1.18 (Debian's package)");
    };
    let postgres = Postgres::start();
    let valet = Valet::front(&postgres);
    let mut theirs = Raw::connect_with(pgbouncer.port, &GUEST);
    let mut ours = Raw::connect_with(valet.port(), &GUEST);
    for show in SHOWS {
        let sql = format!("SHOW {show}");
        let theirs = described(&theirs.query(&sql));
        let mut ours = described(&ours.query(&sql));
        if ours.len() > theirs.len() {
            assert_eq!(ours.pop(), Some(("id".to_owned(), 23)), "{sql}");
        }
        assert_eq!(ours, theirs, "{sql}");
    }
    let lists = |guest: &mut Raw| -> Vec<String> {
        let messages = guest.query("SHOW LISTS");
        let rows = messages.iter().filter(|message| message.tag == b'D');
        rows.map(|row| row.columns()[0].clone()).collect()
    };
    assert_eq!(lists(&mut ours), lists(&mut theirs));
}
