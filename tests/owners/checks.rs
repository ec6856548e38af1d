//! Reaping what dead processes left, and verifying backends that nobody leases.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::stage::{idle, shown, stage};
use crate::support::{Raw, Valet, eventually};

/// A client that logs in, asks something, and has a child that inherits the socket. Its lines: the session's id, the
/// child's pid. It ends when its stdin does; the child stays.
const FORKER: &str = r#"
import os, socket, struct, sys
where = sys.argv[1]
if where.startswith("/"):
    s = socket.socket(socket.AF_UNIX); s.connect(where)
else:
    s = socket.create_connection(("127.0.0.1", int(where)))
body = struct.pack("!i", 196608) + b"user\0postgres\0database\0postgres\0application_name\0forker\0\0"
s.sendall(struct.pack("!i", len(body) + 4) + body)
def exactly(n):
    data = b""
    while len(data) < n:
        more = s.recv(n - len(data)); assert more; data += more
    return data
def ready():
    while True:
        tag, length = struct.unpack("!ci", exactly(5)); body = exactly(length - 4)
        if tag == b"K": print(struct.unpack("!i", body[:4])[0], flush=True)
        if tag == b"Z": return
ready()
for sql in sys.argv[2:]:
    query = sql.encode() + b"\0"
    s.sendall(b"Q" + struct.pack("!i", len(query) + 4) + query); ready()
child = os.fork()
if child == 0:
    os.close(0); os.close(1)
    sql = os.environ.get("CHILD_SQL")
    if sql:
        query = sql.encode() + b"\0"
        s.sendall(b"Q" + struct.pack("!i", len(query) + 4) + query)
    import time
    while True: time.sleep(60)
print(child, flush=True)
sys.stdin.read()
"#;

/// The forker, and what it said.
struct Forker {
    parent: Child,
    session: u64,
    heir: i32,
}

impl Forker {
    fn start(place: &str, statements: &[&str], of_child: &str) -> Self {
        let mut command = Command::new("python3");
        command.args(["-c", FORKER, place]).args(statements);
        command.env("CHILD_SQL", of_child);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut parent = command.spawn().expect("python3 can be run");
        let mut lines = BufReader::new(parent.stdout.take().expect("piped")).lines();
        let mut number = || {
            let line = lines.next().expect("a line").expect("text");
            line.parse::<u64>().expect("a number")
        };
        let session = number();
        let heir = i32::try_from(number()).expect("a pid");
        Self {
            parent,
            session,
            heir,
        }
    }

    /// Somebody has looked at the session while the parent was there.
    #[track_caller]
    fn is_known(&self, valet: &Valet) {
        let pid = self.parent.id();
        eventually("the parent is found behind its session", || {
            let page = valet.get("/v1/sessions");
            let mut all = page["sessions"].as_array().expect("sessions").iter();
            let own = all.find(|one| one["session"] == self.session);
            own.expect("it is listed")["process"]["pid"] == pid
        });
    }

    /// The parent goes; the child holds the socket.
    fn orphan(&mut self) {
        let mut stdin = self.parent.stdin.take().expect("piped");
        stdin.flush().expect("it is there");
        drop(stdin);
        self.parent.wait().expect("it ends");
    }
}

impl Drop for Forker {
    fn drop(&mut self) {
        let _ = self.parent.kill();
        let _ = self.parent.wait();
        let heir = Pid::from_raw(self.heir).expect("a pid");
        let _ = kill_process(heir, Signal::KILL);
    }
}

#[track_caller]
fn reap(valet: &Valet, body: &Value) -> Value {
    let (status, answer) = valet.admin("POST", "/v1/reap", body);
    assert_eq!(status, 200, "{answer}");
    answer
}

#[test]
fn a_session_whose_socket_a_child_inherited_is_ended() {
    let directory = tempfile::tempdir().expect("a directory");
    let unix = format!("unix:{}", directory.path().display());
    let Some((postgres, valet)) = stage(&["--listen", "127.0.0.1:0", "--listen", &unix]) else {
        return;
    };
    let socket = directory.path().join(".s.PGSQL.6432");
    let places = [valet.port().to_string(), socket.display().to_string()];
    let bystander = idle(&valet, "bystander");
    for place in places {
        let mut forker = Forker::start(&place, &["BEGIN", "CREATE TABLE half ()"], "");
        forker.is_known(&valet);
        assert_eq!(reap(&valet, &Value::Null)["orphans"], json!([]));
        forker.orphan();
        let rehearsed = reap(&valet, &json!({"dry_run": true}));
        assert_eq!(
            rehearsed["orphans"][0]["outcome"], "would_be_ended",
            "{rehearsed}"
        );
        let answer = reap(&valet, &Value::Null);
        let orphan = &answer["orphans"][0];
        assert_eq!(
            [&orphan["session"], &orphan["outcome"], &orphan["owner"]],
            [&json!(forker.session), &json!("ended"), &json!("forker")]
        );
        let reason = orphan["reason"].as_str().expect("a reason");
        assert!(reason.contains("is gone"), "{reason}");
        if !place.starts_with('/') {
            assert!(reason.contains(&forker.heir.to_string()), "{reason}");
        }
        let gone = || {
            !valet
                .get("/v1/sessions")
                .to_string()
                .contains(&forker.session.to_string())
        };
        eventually("it has left", gone);
        assert_eq!(postgres.sql("SELECT to_regclass('half')"), "");
    }
    assert_eq!(shown(&valet, &bystander)["state"], "idle");
}

#[test]
fn an_orphan_whose_request_is_unanswered_is_spared() {
    let Some((postgres, valet)) = stage(&[]) else {
        return;
    };
    let mut blocker = Raw::connect(postgres.port());
    blocker.query("SELECT pg_advisory_lock(1)");
    let lock = "SELECT pg_advisory_xact_lock(1)";
    let mut forker = Forker::start(&valet.port().to_string(), &["SELECT 1"], lock);
    forker.is_known(&valet);
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'advisory'";
    eventually("the child has asked", || postgres.sql(waiting) == "1");
    forker.orphan();
    let answer = reap(&valet, &Value::Null);
    assert_eq!(answer["orphans"][0]["outcome"], "spared", "{answer}");
    assert_eq!(postgres.sql(waiting), "1");
    blocker.goodbye();
    eventually("it is answered", || {
        reap(&valet, &Value::Null)["orphans"][0]["outcome"] != "spared"
    });
    let command = valet.run(&["reap"]);
    let text = String::from_utf8_lossy(&command.stdout).into_owned();
    assert!(
        command.status.success() && text.contains("each of them is there"),
        "{text}"
    );
}

#[test]
fn a_process_that_calls_exec_is_shown_with_its_new_command() {
    let Some((_postgres, valet)) = stage(&[]) else {
        return;
    };
    let shell = format!(
        "exec 3<>/dev/tcp/127.0.0.1/{}; printf '\\x00\\x00\\x00\\x17\\x00\\x03\\x00\\x00user\\x00postgres\\x00\\x00' >&3; \
         read line; exec cat",
        valet.port()
    );
    let mut child = Command::new("bash")
        .args(["-c", &shell])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .expect("bash can be run");
    let command = || {
        let page = valet.get("/v1/sessions");
        page["sessions"][0]["process"]["command"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    };
    eventually("it is seen", || command().contains("bash"));
    let mut stdin = child.stdin.take().expect("piped");
    stdin.write_all(b"\n").expect("it reads");
    eventually("it is seen anew", || command() == "cat");
    drop(stdin);
    child.wait().expect("it ends");
}

#[test]
fn verify_replaces_dead_backends_and_leaves_the_others_as_they_are() {
    let Some((postgres, valet)) = stage(&[]) else {
        return;
    };
    let (mut kept, mut killed) = (idle(&valet, "kept"), idle(&valet, "killed"));
    kept.query("SET statement_timeout = '7s'");
    let pid = "SELECT pg_backend_pid()";
    let before = kept.value(pid);
    let return_ = |client: &Raw| {
        let path = format!("/v1/leases/{}/return", client.session());
        assert_eq!(valet.admin("POST", &path, &Value::Null).0, 200);
    };
    return_(&kept);
    // The thread's own sweep may find a dead one first: then there is another to kill.
    eventually("verify finds the dead one", || {
        let dead = killed.value(pid);
        return_(&killed);
        postgres.sql(&format!("SELECT pg_terminate_backend({dead})"));
        let (status, answer) = valet.admin("POST", "/v1/verify", &Value::Null);
        assert_eq!(status, 200, "{answer}");
        assert_eq!(answer["counts"]["dead"], 0, "{answer}");
        answer["counts"]["replaced"] == 1 && answer["counts"]["alive"].as_u64() >= Some(1)
    });
    assert_eq!(
        (kept.value(pid), kept.value("SHOW statement_timeout")),
        (before, "7s".into())
    );
    assert_eq!(killed.value("SELECT 1"), "1");
    return_(&kept);
    let command = valet.run(&["verify"]);
    let text = String::from_utf8_lossy(&command.stdout).into_owned();
    assert!(command.status.success() && text.contains("alive"), "{text}");
}
