//! A round trip in the steady state takes six system calls: a wait, a receive and a send for each direction. No clock is
//! read, no lock is waited for, no timer is armed. Counted by strace, on the data thread.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use crate::exchange::{PROTOCOLS, Warm};
use crate::support::{Postgres, Valet, no_valet, skip};

/// How many round trips are counted together.
const ROUND_TRIPS: usize = 200;
/// What the data thread may do besides: every second, and what was under way as strace came.
const BESIDES: usize = 20;

/// How clients and pgvalet, and pgvalet and PostgreSQL, are connected.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sockets {
    Tcp,
    Unix,
}

/// strace on one thread.
struct Strace {
    child: Child,
    output: tempfile::NamedTempFile,
}

impl Strace {
    /// Attaches to a thread; why not, where that isn't permitted.
    fn attach(thread: u32) -> Result<Self, String> {
        let output = tempfile::NamedTempFile::new().expect("a temporary file");
        let mut child = Command::new("strace")
            .args(["-p", &thread.to_string(), "-o"])
            .arg(output.path())
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| format!("strace: {error}"))?;
        let mut said = String::new();
        let stderr = child.stderr.as_mut().expect("stderr is piped");
        BufReader::new(stderr)
            .read_line(&mut said)
            .expect("stderr can be read");
        if said.contains("attached") {
            return Ok(Self { child, output });
        }
        child.wait().expect("it is our child");
        Err(said.trim().to_owned())
    }

    /// How often each system call was made.
    fn counts(mut self) -> BTreeMap<String, usize> {
        kill_process(Pid::from_child(&self.child), Signal::INT).expect("it runs");
        self.child.wait().expect("it is our child");
        let text = fs::read_to_string(self.output.path()).expect("strace's output");
        let mut counts = BTreeMap::new();
        for (name, _) in text.lines().filter_map(|line| line.split_once('(')) {
            *counts.entry(kind(name).to_owned()).or_default() += 1;
        }
        counts
    }
}

/// One name for what is the same.
fn kind(call: &str) -> &str {
    match call {
        "epoll_wait" | "epoll_pwait" | "epoll_pwait2" => "wait",
        "read" | "readv" | "recvfrom" | "recvmsg" => "receive",
        "write" | "writev" | "sendto" | "sendmsg" => "send",
        other => other,
    }
}

fn data_thread(pid: u32) -> u32 {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("its threads");
    let mut paths = tasks.map(|task| task.expect("a thread").path());
    let named = |path: &Path| {
        fs::read_to_string(path.join("comm")).is_ok_and(|name| name.trim() == "pgvalet-data-0")
    };
    let path = paths.find(|path| named(path)).expect("a data thread");
    let tid = path.file_name().and_then(|name| name.to_str());
    tid.and_then(|tid| tid.parse().ok()).expect("a thread's id")
}

#[track_caller]
fn takes_six_calls(mode: &str, sockets: Sockets) {
    if no_valet() {
        return;
    }
    let postgres = Postgres::start();
    let directory = tempfile::tempdir().expect("a temporary directory");
    let (upstream, listen) = match sockets {
        Sockets::Tcp => (postgres.url("postgres", "postgres"), "127.0.0.1:0".into()),
        Sockets::Unix => (
            format!(
                "postgres://postgres@:{}/postgres?host={}",
                postgres.port(),
                postgres.socket_directory().display()
            ),
            format!("unix:{}", directory.path().display()),
        ),
    };
    let flags = ["--auth", "trust", "--mode", mode, "--upstream", &upstream];
    let valet = Valet::serve(&[&flags[..], &["--listen", &listen]].concat())
        .unwrap_or_else(|exit| panic!("{}", exit.log));
    for protocol in PROTOCOLS {
        let mut client = match sockets {
            Sockets::Tcp => Warm::over_tcp(valet.port(), protocol),
            Sockets::Unix => Warm::over_unix(directory.path(), protocol),
        };
        let strace = match Strace::attach(data_thread(valet.pid())) {
            Ok(strace) => strace,
            Err(why) => return skip(&why),
        };
        client.round_trips(ROUND_TRIPS);
        let mut counts = strace.counts();
        let what = format!("{protocol:?}, mode {mode}, {ROUND_TRIPS} round trips: {counts:?}");
        let mut take = |call| counts.remove(call).unwrap_or_default();
        let (waits, receives, sends) = (take("wait"), take("receive"), take("send"));
        let moves = 2 * ROUND_TRIPS..2 * ROUND_TRIPS + BESIDES;
        assert!(moves.contains(&receives), "{what}");
        assert!(moves.contains(&sends), "{what}");
        assert!(waits < 2 * ROUND_TRIPS + BESIDES, "{what}");
        // A futex there is only where a timer's lock is met, every second: the sum below has a bound for those.
        let needless = |call: &String| call.starts_with("clock");
        assert!(!counts.keys().any(needless), "{what}");
        assert!(counts.values().sum::<usize>() < BESIDES, "{what}");
    }
}

#[test]
fn a_round_trip_over_tcp_in_session_mode_takes_six_calls() {
    takes_six_calls("session", Sockets::Tcp);
}

#[test]
fn a_round_trip_over_tcp_in_transaction_mode_takes_six_calls() {
    takes_six_calls("transaction", Sockets::Tcp);
}

#[test]
fn a_round_trip_over_unix_sockets_in_session_mode_takes_six_calls() {
    takes_six_calls("session", Sockets::Unix);
}

#[test]
fn a_round_trip_over_unix_sockets_in_transaction_mode_takes_six_calls() {
    takes_six_calls("transaction", Sockets::Unix);
}
