//! A running `pgvalet serve` in front of a throwaway PostgreSQL, on ports of its own choosing.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, mpsc};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::http::{self, Response};
use super::stream::Stream;
use super::watchdog::Watchdog;
use super::{DEADLINE, Postgres, direct, eventually_some};

/// Where it listens, and its process; no process where tests run straight against PostgreSQL.
pub struct Valet {
    process: Option<Process>,
    clients: u16,
    admin: u16,
    metrics: u16,
}

struct Process {
    child: Child,
    log: Arc<Mutex<Vec<String>>>,
    _watchdog: Watchdog,
}

/// What was left of a pgvalet that ended.
pub struct Exit {
    pub status: ExitStatus,
    pub log: String,
}

impl Valet {
    /// In front of `postgres`, clients trusted, everything else at its default.
    #[track_caller]
    pub fn front(postgres: &Postgres) -> Self {
        Self::front_with(postgres, &[])
    }

    /// In front of `postgres`, clients trusted, with further `flags`, and those of `PGVALET_TEST_FLAGS`: all the tests
    /// that speak of no mode can so be run in another one (`--chaos-return always`).
    #[track_caller]
    pub fn front_with(postgres: &Postgres, flags: &[&str]) -> Self {
        let url = postgres.url("postgres", "postgres");
        let more = std::env::var("PGVALET_TEST_FLAGS").unwrap_or_default();
        let more: Vec<&str> = more.split_whitespace().collect();
        let more = more
            .chunks(2)
            .filter(|flag| !flags.contains(&flag[0]))
            .collect::<Vec<_>>()
            .concat();
        let flags = [&["--upstream", &url, "--auth", "trust"], flags, &more].concat();
        Self::serve(&flags)
            .unwrap_or_else(|exit| panic!("pgvalet ended with {}: {}", exit.status, exit.log))
            .or_direct(postgres)
    }

    /// `pgvalet serve` with `flags`, on ports of its own; what it left where it ended before it listened.
    pub fn serve(flags: &[&str]) -> Result<Self, Exit> {
        Self::serve_among(&[], flags)
    }

    /// The same with these variables in its environment.
    pub fn serve_among(variables: &[(&str, &str)], flags: &[&str]) -> Result<Self, Exit> {
        if direct() {
            return Ok(Self {
                process: None,
                clients: 0,
                admin: 0,
                metrics: 0,
            });
        }
        let mut command = Self::command(&[
            "serve",
            "--admin",
            "127.0.0.1:0",
            "--metrics",
            "127.0.0.1:0",
        ]);
        if !flags.contains(&"--listen") {
            command.args(["--listen", "127.0.0.1:0"]);
        }
        let mut child = command
            .args(flags)
            .envs(variables.iter().copied())
            .stderr(Stdio::piped())
            .spawn()
            .expect("pgvalet can be run");
        let watchdog = Watchdog::watch(child.id());
        let log = Arc::new(Mutex::new(Vec::new()));
        let lines = follow(&mut child, Arc::clone(&log));
        let mut ports = [None; 3];
        while ports.contains(&None) {
            let Ok(line) = lines.recv_timeout(DEADLINE) else {
                let status = end(&mut child, Signal::KILL);
                return Err(Exit {
                    status,
                    log: log.lock().expect("not poisoned").join("\n"),
                });
            };
            for (kind, port) in ["clients", "admin", "metrics"].into_iter().zip(&mut ports) {
                *port = port.or_else(|| bound(&line, kind));
            }
        }
        let [clients, admin, metrics] = ports.map(Option::unwrap_or_default);
        Ok(Self {
            process: Some(Process {
                child,
                log,
                _watchdog: watchdog,
            }),
            clients,
            admin,
            metrics,
        })
    }

    /// The pgvalet program with `arguments`, in an environment without any of our settings.
    pub fn command(arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pgvalet"));
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy().into_owned();
            if name.starts_with("PGVALET_") || name.starts_with("PG") {
                command.env_remove(name);
            }
        }
        command
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        command
    }

    /// The port for clients.
    pub fn port(&self) -> u16 {
        self.clients
    }

    pub fn admin_port(&self) -> u16 {
        self.admin
    }

    pub fn metrics_port(&self) -> u16 {
        self.metrics
    }

    pub fn pid(&self) -> u32 {
        self.process.as_ref().expect("pgvalet runs").child.id()
    }

    /// A URL for clients; a password may be part of `user` (`name:secret`).
    pub fn url(&self, user: &str, database: &str) -> String {
        format!("postgres://{user}@127.0.0.1:{}/{database}", self.clients)
    }

    /// A call of the admin API without a body.
    #[track_caller]
    pub fn get(&self, path: &str) -> Value {
        let response = http::request(self.admin, "GET", path, &[], "");
        assert_eq!(response.status, 200, "GET {path}: {}", response.body);
        response.json()
    }

    /// A call of the admin API with a JSON body; `Value::Null` is an empty one.
    #[track_caller]
    pub fn admin(&self, method: &str, path: &str, body: &Value) -> (u16, Value) {
        let body = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        let response = self.request(method, path, &body);
        (response.status, response.json())
    }

    /// A call of the admin API with any body, said to be JSON.
    #[track_caller]
    pub fn request(&self, method: &str, path: &str, body: &str) -> Response {
        http::request(
            self.admin,
            method,
            path,
            &[("Content-Type", "application/json")],
            body,
        )
    }

    /// Follows events, from the moment that this returns.
    #[track_caller]
    pub fn events(&self, query: &str, headers: &[(&str, &str)]) -> Stream {
        let path = format!("/v1/events{query}");
        Stream::open(self.admin, "GET", &path, headers, "")
    }

    /// Begins a reload whose outcomes stream.
    #[track_caller]
    pub fn stream_reload(&self, body: &Value) -> Stream {
        let body = body.to_string();
        Stream::open(self.admin, "POST", "/v1/reloads", &[], &body)
    }

    /// Runs one of our client commands against it.
    #[track_caller]
    pub fn run(&self, arguments: &[&str]) -> std::process::Output {
        let admin = format!("127.0.0.1:{}", self.admin);
        let mut command =
            Self::command(&[&arguments[..1], &["--admin", &admin], &arguments[1..]].concat());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command.output().expect("pgvalet can be run")
    }

    /// The metrics page.
    #[track_caller]
    pub fn metrics(&self) -> String {
        http::request(self.metrics, "GET", "/metrics", &[], "").body
    }

    /// The value of one series, such as `pgvalet_returns_total{method="detach",reason="reload"}`; 0 where there is none.
    #[track_caller]
    pub fn metric(&self, series: &str) -> f64 {
        let page = self.metrics();
        let line = page.lines().find_map(|line| {
            line.strip_prefix(series)?
                .strip_prefix(' ')?
                .trim()
                .parse()
                .ok()
        });
        line.unwrap_or_default()
    }

    /// What it logged until now.
    pub fn log(&self) -> String {
        self.process
            .as_ref()
            .map(|process| process.log.lock().expect("not poisoned").join("\n"))
            .unwrap_or_default()
    }

    pub fn signal(&self, signal: Signal) {
        let child = &self.process.as_ref().expect("pgvalet runs").child;
        kill_process(Pid::from_child(child), signal).expect("pgvalet can be signalled");
    }

    /// Waits until it has ended by itself.
    #[track_caller]
    pub fn wait(mut self) -> Exit {
        let mut process = self.process.take().expect("pgvalet runs");
        let status = eventually_some("pgvalet ends", || {
            process.child.try_wait().expect("it is our child")
        });
        Exit {
            status,
            log: process.log.lock().expect("not poisoned").join("\n"),
        }
    }

    /// Where there is no pgvalet, its port is PostgreSQL's.
    pub fn or_direct(mut self, postgres: &Postgres) -> Self {
        if self.process.is_none() {
            self.clients = postgres.port();
        }
        self
    }
}

impl Drop for Valet {
    fn drop(&mut self) {
        if let Some(process) = &mut self.process {
            end(&mut process.child, Signal::KILL);
        }
        if std::thread::panicking() {
            eprintln!("--- the log of pgvalet\n{}\n---", self.log());
        }
    }
}

fn end(child: &mut Child, signal: Signal) -> ExitStatus {
    let _ = kill_process(Pid::from_child(child), signal);
    child.wait().expect("it is our child")
}

/// Keeps the log, and passes each line on until nobody listens any more.
fn follow(child: &mut Child, log: Arc<Mutex<Vec<String>>>) -> mpsc::Receiver<String> {
    let stderr = BufReader::new(child.stderr.take().expect("stderr is piped"));
    let (sender, lines) = mpsc::channel();
    std::thread::spawn(move || {
        for line in stderr.lines().map_while(Result::ok) {
            log.lock().expect("not poisoned").push(line.clone());
            let _ = sender.send(line);
        }
    });
    lines
}

/// The port in `listening kind=clients address=127.0.0.1:41234`, 0 for an address without one (a unix socket).
fn bound(line: &str, kind: &str) -> Option<u16> {
    if !line.contains("listening") || !line.contains(&format!("kind={kind}")) {
        return None;
    }
    let address = line
        .split_once("address=")?
        .1
        .split_whitespace()
        .next()?
        .trim_matches('"');
    Some(
        address
            .rsplit_once(':')
            .and_then(|(_, port)| port.parse().ok())
            .unwrap_or_default(),
    )
}
