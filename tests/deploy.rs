//! Proves that what `deploy/` offers is valid where it is meant to run, holds no privilege that it doesn't need, and
//! that pgvalet accepts the settings in it. The schemas and parsers are those of `scripts/bootstrap test`.

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};
use support::{Valet, skip};

/// Native sidecars are on by default since 1.29; the newest that the schemas know.
const KUBERNETES: [&str; 2] = ["1.29", "1.37"];

/// What `systemd-analyze security` may find, in tenths: 0 is a sealed box, 100 is everything open.
const MOST_EXPOSURE: &str = "20";

#[test]
fn kubernetes_accepts_every_manifest() {
    for version in KUBERNETES {
        assert_eq!(manifests(version).len(), 4, "one manifest a file");
    }
}

#[test]
fn a_misspelt_field_would_be_noticed() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let file = directory.path().join("deployment.yaml");
    let deployment = read("deploy/kubernetes/deployment.yaml");
    fs::write(&file, deployment.replace("startupProbe", "startUpProbe")).expect("a copy");
    let output = check_manifests(KUBERNETES[0], &[file]);
    assert!(!output.status.success());
    assert!(text(&output.stderr).contains("startUpProbe"), "{output:?}");
}

#[test]
fn the_sidecar_starts_first_and_gates_the_app() {
    for (file, pod) in pods() {
        let sidecar = &pod["initContainers"][0];
        assert_eq!(sidecar["restartPolicy"], "Always", "{file}: not a sidecar");
        assert_eq!(sidecar["startupProbe"]["httpGet"]["path"], "/readyz");
        assert_eq!(sidecar["livenessProbe"]["httpGet"]["path"], "/healthz");
        let reached = environment(sidecar)
            .into_iter()
            .any(|(name, value)| name == "PGVALET_METRICS" && value.starts_with("0.0.0.0:"));
        assert!(reached, "{file}: the kubelet can't reach the probes");
    }
}

#[test]
fn the_sidecar_holds_least_privilege() {
    for (file, pod) in pods() {
        assert_eq!(pod["automountServiceAccountToken"], false, "{file}");
        assert_eq!(pod["securityContext"]["runAsNonRoot"], true, "{file}");
        let seccomp = &pod["securityContext"]["seccompProfile"]["type"];
        assert_eq!(seccomp, "RuntimeDefault", "{file}");
        let expected = json!({
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "capabilities": {"drop": ["ALL"]},
        });
        assert_eq!(pod["initContainers"][0]["securityContext"], expected);
        let limits = &pod["initContainers"][0]["resources"]["limits"];
        assert!(limits["memory"].is_string(), "{file}: no memory limit");
    }
}

#[test]
fn no_pod_carries_a_password() {
    for (file, pod) in pods() {
        let containers = ["initContainers", "containers"].map(|kind| pod[kind].clone());
        for container in containers
            .iter()
            .flat_map(|list| list.as_array().expect("a list"))
        {
            for (name, value) in environment(container) {
                let secret = ["PASSWORD", "UPSTREAM", "DATABASE_URL"];
                let secret = secret.iter().any(|part| name.contains(part));
                assert!(!secret || value.is_empty(), "{file}: {name} is in the open");
            }
        }
    }
}

#[test]
fn pgvalet_accepts_the_settings_of_every_pod() {
    let manifests = manifests(KUBERNETES[0]);
    let secret = manifests
        .iter()
        .find(|(_, manifest)| manifest["kind"] == "Secret");
    let (_, secret) = secret.expect("an example of the Secret");
    for (file, pod) in pods() {
        let sidecar = &pod["initContainers"][0];
        assert_eq!(sidecar["args"], json!(["serve"]));
        let settings = sidecar["env"]
            .as_array()
            .expect("a list")
            .iter()
            .map(|variable| {
                let key = &variable["valueFrom"]["secretKeyRef"]["key"];
                let value = key
                    .as_str()
                    .map_or(&variable["value"], |key| &secret["stringData"][key]);
                (string(&variable["name"]), string(value))
            });
        check_settings(&file, settings);
    }
}

#[test]
fn pgvalet_accepts_the_settings_of_the_service() {
    let file = "deploy/systemd/pgvalet.env.example";
    let example = read(file);
    let settings = example
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|line| line.split_once('=').expect("NAME=value"))
        .map(|(name, value)| (name.to_owned(), value.to_owned()));
    check_settings(file, settings);
}

#[test]
fn systemd_accepts_the_service_and_finds_it_sealed() {
    let has_systemd = Command::new("systemd-analyze").arg("--version").output();
    if has_systemd.is_err() {
        return skip("systemd-analyze is not installed: the service unit was not checked");
    }
    let root = tempfile::tempdir().expect("a temporary directory");
    let units = root.path().join("etc/systemd/system");
    let programs = root.path().join("usr/local/bin");
    fs::create_dir_all(&units).expect("a directory");
    fs::create_dir_all(&programs).expect("a directory");
    let unit = project("deploy/systemd/pgvalet.service");
    fs::copy(unit, units.join("pgvalet.service")).expect("a copy");
    fs::copy(env!("CARGO_BIN_EXE_pgvalet"), programs.join("pgvalet")).expect("a copy");
    let root = format!("--root={}", root.path().display());

    let verify = [
        "verify",
        "--man=no",
        "--recursive-errors=no",
        &root,
        "pgvalet.service",
    ];
    succeeds(Command::new("systemd-analyze").args(verify));
    let threshold = format!("--threshold={MOST_EXPOSURE}");
    let security = [
        "security",
        "--no-pager",
        "--offline=yes",
        &threshold,
        &root,
        "pgvalet.service",
    ];
    succeeds(Command::new("systemd-analyze").args(security));
}

#[test]
fn the_image_holds_one_binary_and_runs_as_nobody() {
    let mut command = Command::new("node");
    command.arg(project("tests/tools/dockerfile.js"));
    command.arg(project("deploy/docker/Dockerfile"));
    command.env("NODE_PATH", tools("node-tools/node_modules"));
    let output = succeeds(&mut command);
    let instructions: Vec<(String, String)> =
        serde_json::from_slice(&output.stdout).expect("a list of instructions");
    let last_stage = instructions
        .iter()
        .rposition(|(keyword, _)| keyword == "FROM")
        .expect("a stage");
    let stage: Vec<_> = instructions[last_stage..]
        .iter()
        .map(|(keyword, arguments)| (keyword.as_str(), arguments.as_str()))
        .collect();
    assert_eq!(
        stage,
        [
            ("FROM", "scratch"),
            ("COPY", "--from=build /pgvalet /pgvalet"),
            ("USER", "65532:65532"),
            ("EXPOSE", "6432 9127"),
            ("ENTRYPOINT", r#"["/pgvalet"]"#),
            ("CMD", r#"["serve"]"#),
        ]
    );
}

// --- helpers

/// The pod templates, each with its file.
fn pods() -> Vec<(String, Value)> {
    let pods: Vec<_> = manifests(KUBERNETES[0])
        .into_iter()
        .map(|(file, manifest)| (file, manifest["spec"]["template"]["spec"].clone()))
        .filter(|(_, pod)| pod.is_object())
        .collect();
    assert_eq!(pods.len(), 2, "a Deployment and a Job");
    pods
}

/// Every manifest, each with its file, after the check against the schemas of `version`.
fn manifests(version: &str) -> Vec<(String, Value)> {
    let mut files: Vec<PathBuf> = fs::read_dir(project("deploy/kubernetes"))
        .expect("deploy/kubernetes")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "yaml")
        })
        .collect();
    files.sort();
    let output = check_manifests(version, &files);
    assert!(output.status.success(), "{}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("a list of manifests")
}

fn check_manifests(version: &str, files: &[PathBuf]) -> Output {
    Command::new(tools("python-tools/bin/python"))
        .arg(project("tests/tools/kubernetes.py"))
        .arg(version)
        .args(files)
        .output()
        .expect("python can be run")
}

/// A container's variables; an empty value for what comes from a Secret.
fn environment(container: &Value) -> Vec<(String, String)> {
    let variables = container["env"].as_array().expect("a list");
    variables
        .iter()
        .map(|variable| {
            let value = variable["value"].as_str().unwrap_or_default();
            (string(&variable["name"]), value.to_owned())
        })
        .collect()
}

/// `pgvalet check` with these variables and nothing else.
#[track_caller]
fn check_settings(file: &str, settings: impl Iterator<Item = (String, String)>) {
    let output = Valet::command(&["check"]).envs(settings).output();
    let output = output.expect("pgvalet can be run");
    assert!(output.status.success(), "{file}: {}", text(&output.stderr));
}

#[track_caller]
fn succeeds(command: &mut Command) -> Output {
    let output = command.output().expect("the command can be run");
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{command:?}\n{stdout}\n{stderr}");
    output
}

#[track_caller]
fn string(value: &Value) -> String {
    value.as_str().expect("a string").to_owned()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn read(path: &str) -> String {
    fs::read_to_string(project(path)).expect("the project's file")
}

fn project(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// What `scripts/bootstrap test` put there.
fn tools(path: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(path);
    assert!(
        path.exists(),
        "{} is missing: run scripts/bootstrap test",
        path.display()
    );
    path
}
