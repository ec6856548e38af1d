//! Proves that every panel of the dashboard, and every alert, works on what a running pgvalet exports: a real Prometheus
//! scrapes it, and answers each query.

mod support;

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};
use support::{Postgres, Raw, Valet, eventually, http};
use tempfile::TempDir;

#[test]
fn every_panel_shows_what_a_running_pgvalet_does() {
    let postgres = Postgres::start();
    let valet = Valet::front_with(&postgres, &["--park-after", "50ms"]);
    let prometheus = Prometheus::scrape(valet.metrics_port());
    let mut activity = Activity::begin(&postgres, &valet);

    let queries = panel_queries();
    assert!(queries.len() > 15, "the dashboard lost its panels");
    for (panel, query) in queries {
        eventually(&format!("{panel:?} has data: {query}"), || {
            activity.round();
            prometheus.query(&query).iter().any(|value| value != "NaN")
        });
    }
}

#[test]
fn the_variables_offer_what_there_is() {
    let postgres = Postgres::start();
    let valet = Valet::front(&postgres);
    let prometheus = Prometheus::scrape(valet.metrics_port());
    let _session = Raw::connect(valet.port());
    for variable in ["database", "user"] {
        let query = format!("label_values(pgvalet_sessions, {variable})");
        let dashboard = dashboard();
        let variables = dashboard["templating"]["list"].as_array().expect("a list");
        assert!(
            variables
                .iter()
                .any(|found| found["query"]["query"] == query)
        );
        let path = format!("/api/v1/label/{variable}/values?match[]=pgvalet_sessions");
        eventually(&format!("Prometheus knows a {variable}"), || {
            prometheus.get(&path) == json!(["postgres"])
        });
    }
}

#[test]
fn alerts_are_what_prometheus_accepts() {
    promtool(&["check", "rules"], "grafana/alerts.yml");
}

#[test]
fn alerts_fire_when_they_should() {
    promtool(&["test", "rules"], "tests/tools/alerts.test.yml");
}

// --- the dashboard

fn dashboard() -> Value {
    let text = fs::read_to_string(project("grafana/pgvalet.json")).expect("the dashboard");
    serde_json::from_str(&text).expect("the dashboard is JSON")
}

/// Each panel's queries, with its title; annotations too. Grafana's variables have values as it would fill them in.
fn panel_queries() -> Vec<(String, String)> {
    let dashboard = dashboard();
    let panels = dashboard["panels"].as_array().expect("panels").iter();
    let targets = panels.flat_map(|panel| {
        let targets = panel["targets"].as_array().cloned().unwrap_or_default();
        targets
            .into_iter()
            .map(|target| (panel["title"].clone(), target))
    });
    let annotations = dashboard["annotations"]["list"].as_array().expect("a list");
    let annotations = annotations
        .iter()
        .map(|found| (found["name"].clone(), found.clone()));
    let queries = targets.chain(annotations).map(|(title, target)| {
        assert_eq!(target["datasource"]["uid"], "${datasource}", "{title}");
        (
            title.to_string(),
            filled_in(target["expr"].as_str().expect("a query")),
        )
    });
    queries.collect()
}

fn filled_in(query: &str) -> String {
    let filled = query
        .replace("$__rate_interval", "10s")
        .replace("$__interval", "10s")
        .replace("$database", ".*")
        .replace("$user", ".*");
    assert!(!filled.contains('$'), "an unknown variable: {query}");
    filled
}

// --- something to see

/// What makes every metric move: parked, pinned, returned, restored, lost and ordinary sessions.
struct Activity<'a> {
    postgres: &'a Postgres,
    valet: &'a Valet,
    /// Parked all the time: no reload selects its owner.
    sleeper: Raw,
    /// Returned by each reload, and restored by its next query.
    dispatcher: Raw,
    /// Selected by each reload, and pinned by a temporary table.
    pinned: Raw,
}

impl<'a> Activity<'a> {
    fn begin(postgres: &'a Postgres, valet: &'a Valet) -> Self {
        let mut activity = Self {
            postgres,
            valet,
            sleeper: Raw::connect(valet.port()),
            dispatcher: Raw::connect(valet.port()),
            pinned: Raw::connect(valet.port()),
        };
        activity.sleeper.value("SELECT 1");
        activity.pinned.value("CREATE TEMP TABLE kept (a int)");
        let claim = |session: &Raw, owner| json!({"id": session.session(), "owner": owner});
        let claims = json!({"claims": [
            claim(&activity.sleeper, "sleeper"),
            claim(&activity.dispatcher, "dispatcher"),
            claim(&activity.pinned, "dispatcher"),
        ]});
        let (status, answer) = valet.admin("PUT", "/v1/claims", &claims);
        assert_eq!((status, &answer["unknown"]), (200, &json!([])));
        activity
    }

    fn round(&mut self) {
        self.dispatcher.value("BEGIN; SELECT 1; COMMIT");
        let mut passer_by = Raw::connect(self.valet.port());
        passer_by.value("SELECT 1");
        passer_by.goodbye();
        let mut victim = Raw::connect(self.valet.port());
        let backend = victim.value("SELECT pg_backend_pid()");
        self.postgres
            .sql(&format!("SELECT pg_terminate_backend({backend})"));
        while victim.try_next().is_some() {}
        let reload = json!({"owner": "dispatcher"});
        let (status, answer) = self.valet.admin("POST", "/v1/reloads", &reload);
        assert_eq!(status, 200, "{answer}");
    }
}

// --- Prometheus

/// A Prometheus that scrapes one port five times a second. Owns its process and its data.
struct Prometheus {
    /// A shell that ends Prometheus when its own input ends: also when the test dies.
    shell: Child,
    port: u16,
    _directory: TempDir,
}

const UNTIL_INPUT_ENDS: &str = r#""$@" </dev/null & cat; kill "$!"; wait"#;

impl Prometheus {
    fn scrape(target: u16) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let config = directory.path().join("prometheus.yml");
        let text = json!({
            "global": {"scrape_interval": "200ms", "scrape_timeout": "200ms"},
            "scrape_configs": [{
                "job_name": "pgvalet",
                "static_configs": [{"targets": [format!("127.0.0.1:{target}")]}],
            }],
        });
        fs::write(&config, text.to_string()).expect("the configuration can be written");
        let data = directory.path().join("data");
        let mut shell = Command::new("sh")
            .args(["-c", UNTIL_INPUT_ENDS, "sh", "prometheus"])
            .arg(format!("--config.file={}", config.display()))
            .arg(format!("--storage.tsdb.path={}", data.display()))
            .arg("--web.listen-address=127.0.0.1:0")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("a shell can be started");
        let port = listening_port(&mut shell);
        let prometheus = Self {
            shell,
            port,
            _directory: directory,
        };
        eventually("Prometheus is ready", || {
            http::request(port, "GET", "/-/ready", &[], "").status == 200
        });
        prometheus
    }

    /// The values of an instant query's series, as Prometheus writes them.
    #[track_caller]
    fn query(&self, query: &str) -> Vec<String> {
        let query = utf8_percent_encode(query, NON_ALPHANUMERIC);
        let data = self.get(&format!("/api/v1/query?query={query}"));
        let series = data["result"].as_array().expect("a vector");
        let value = |series: &Value| series["value"][1].as_str().expect("a number").to_owned();
        series.iter().map(value).collect()
    }

    #[track_caller]
    fn get(&self, path: &str) -> Value {
        let response = http::request(self.port, "GET", path, &[], "");
        let answer = response.json();
        assert_eq!(answer["status"], "success", "GET {path}: {answer}");
        answer["data"].clone()
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        drop(self.shell.stdin.take());
        let _ = self.shell.wait();
    }
}

/// The port that it says it listens on; the rest of its log is read and dropped.
fn listening_port(shell: &mut Child) -> u16 {
    let log = BufReader::new(shell.stderr.take().expect("stderr is piped"));
    let mut lines = log.lines().map_while(Result::ok);
    let port = lines.find_map(|line| {
        let address = line
            .split_once("Listening on")?
            .1
            .split_once("127.0.0.1:")?
            .1;
        let digits = address.split(|c: char| !c.is_ascii_digit()).next()?;
        digits.parse().ok()
    });
    std::thread::spawn(move || lines.for_each(drop));
    port.expect("Prometheus is installed, and listens: run scripts/bootstrap test")
}

#[track_caller]
fn promtool(arguments: &[&str], file: &str) {
    let output = Command::new("promtool")
        .args(arguments)
        .arg(project(file))
        .output();
    let output = output.expect("Prometheus is installed: run scripts/bootstrap test");
    let text =
        [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    assert!(output.status.success(), "{}", text.concat());
}

fn project(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}
