//! The command line against an admin API that answers from a script: what is printed, what is asked, how it exits.

use std::process::{Command, Output};

use serde_json::{Value, json};

mod configuration;
mod fake_admin;

use fake_admin::FakeAdmin;

/// Runs the program with a clean environment but for `vars`.
fn pgvalet(arguments: &[&str], vars: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pgvalet"));
    command
        .env_clear()
        .envs(vars.iter().copied())
        .args(arguments);
    command.output().expect("the program runs")
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("UTF-8")
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("UTF-8")
}

fn code(output: &Output) -> i32 {
    output.status.code().expect("it ended by itself")
}

/// The words of the line of `text` that begins with `first`.
fn row(text: &str, first: &str) -> Vec<String> {
    let line = text
        .lines()
        .find(|line| line.starts_with(first))
        .unwrap_or_else(|| panic!("no {first} in {text}"));
    line.split("  ")
        .map(str::trim)
        .filter(|cell| !cell.is_empty())
        .map(str::to_owned)
        .collect()
}

fn lease() -> Value {
    json!({
        "id": 10_000_001, "session": 10_000_001, "database": "shop", "user": "app", "application": "dispatcher",
        "client": "127.0.0.1:51234", "owner": "dispatcher", "evidence": "claim",
        "process": {"pid": 1234, "command": "ruby app.rb"}, "state": "idle", "verdict": "parked", "basis": "inferred",
        "claim": "unknown", "held_for": null, "where": "app/x.rb:12", "since": "2026-01-01T00:00:00.000Z",
        "idle": "12s 345ms", "idle_seconds": 12.345, "last_statement": "INSERT INTO jobs (name) VALUES (?)",
        "pins": ["temp"], "backend": 4711, "generation": 0,
    })
}

fn outcome(word: &str, reason: Option<&str>) -> Value {
    json!({
        "id": 10_000_001, "session": 10_000_001, "owner": "dispatcher", "evidence": "claim", "process": null,
        "state": "idle", "idle": "12s", "idle_seconds": 12.0, "last_statement": "INSERT INTO jobs (name) VALUES (?)",
        "where": null, "outcome": word, "reason": reason,
    })
}

fn reload() -> Value {
    json!({
        "id": "7", "generation": 3, "state": "done", "dry_run": false, "started": "2026-01-01T00:00:00.000Z",
        "took": "2ms 10us",
        "counts": {"returned": 1, "resting": 0, "spared": 0, "busy": 0, "pinned": 0, "gone": 0, "unknown": 0},
        "leases": [outcome("returned", None)],
    })
}

#[test]
fn leases_are_a_table_for_people() {
    let admin = FakeAdmin::answering(json!({"generation": 0, "leases": [lease()]}));

    let output = admin.run(&["leases"]);

    assert_eq!(code(&output), 0, "{}", stderr(&output));
    assert_eq!(
        row(&stdout(&output), "10000001"),
        [
            "10000001",
            "dispatcher (claim)",
            "parked (inferred)",
            "12s 345ms",
            "shop",
            "app",
            "4711",
            "temp",
            "INSERT INTO jobs (name) VALUES (?)"
        ]
    );
    assert!(
        !stdout(&output).contains('\u{1b}'),
        "no colours where there is no terminal"
    );
    assert_eq!(admin.asked(), ["GET /v1/leases"]);
}

#[test]
fn sessions_without_a_lease_show_on_demand() {
    let admin = FakeAdmin::answering(json!({"generation": 0, "sessions": [
        {"session": 5, "owner": "web", "evidence": "none", "state": "none", "verdict": "none", "pins": [],
         "database": "d", "user": "u", "backend": null, "idle": null, "last_statement": null},
    ]}));
    let output = admin.run(&["leases", "--all"]);
    assert_eq!(
        row(&stdout(&output), "5"),
        ["5", "web", "none", "-", "d", "u", "-", "-", "-"]
    );
    assert_eq!(admin.asked(), ["GET /v1/sessions"]);
}

#[test]
fn json_is_the_answer_as_it_came() {
    let answer = json!({"generation": 0, "leases": [lease()], "new_in_a_later_version": true});
    let admin = FakeAdmin::answering(answer.clone());
    let output = admin.run(&["leases", "--json"]);
    assert_eq!(
        serde_json::from_str::<Value>(&stdout(&output)).expect("JSON"),
        answer
    );
}

#[test]
fn owners_show_their_counts() {
    let admin = FakeAdmin::answering(json!({"owners": [
        {"owner": "dispatcher", "evidence": "sql", "sessions": 3, "leases": 2, "active": 0, "in_transaction": 0,
         "idle": 1, "resting": 0, "parked": 1, "longest_idle": "3s"},
    ]}));
    let output = admin.run(&["owners"]);
    assert_eq!(
        row(&stdout(&output), "dispatcher"),
        ["dispatcher", "sql", "3", "2", "0", "0", "1", "0", "1", "3s"]
    );
}

#[test]
fn leaks_show_who_parked_where_and_what_to_do() {
    let mut leak = lease();
    leak["parked_since"] = json!("2026-01-01T00:00:05.000Z");
    leak["parked_for"] = json!("7s");
    leak["count_last_hour"] = json!(2);
    leak["total_last_hour"] = json!("14s");
    leak["remedy"] = json!("use with_connection");
    let admin = FakeAdmin::answering(json!({"park_after": "5s", "leaks": [leak]}));

    let output = admin.run(&["leaks"]);

    assert_eq!(
        row(&stdout(&output), "10000001"),
        [
            "10000001",
            "dispatcher (claim)",
            "7s",
            "2026-01-01T00:00:05.000Z",
            "2 times, 14s",
            "inferred",
            "1234 ruby app.rb",
            "app/x.rb:12",
            "INSERT INTO jobs (name) VALUES (?)"
        ]
    );
    assert!(
        stdout(&output).ends_with("\n10000001 dispatcher: use with_connection\n"),
        "{}",
        stdout(&output)
    );
}

#[test]
fn no_leak_says_so() {
    let admin = FakeAdmin::answering(json!({"park_after": "5s", "leaks": []}));
    assert_eq!(
        stdout(&admin.run(&["leaks"])),
        "Nobody has parked for 5s or longer.\n"
    );
}

#[test]
fn a_reload_asks_for_exactly_what_was_said() {
    let admin = FakeAdmin::answering(reload());
    let output = admin.run(&[
        "reload",
        "--min-idle",
        "500ms",
        "--deadline",
        "2s",
        "--owner",
        "dispatcher",
        "--database",
        "shop",
        "--user",
        "app",
        "--application",
        "x",
        "--busy",
        "spare",
        "--method",
        "close",
        "--dry-run",
    ]);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let asked = admin.asked();
    let body = asked[0]
        .strip_prefix("POST /v1/reloads ")
        .expect("a reload");
    assert_eq!(
        serde_json::from_str::<Value>(body).expect("JSON"),
        json!({
            "min_idle": "500ms", "deadline": "2s", "owner": "dispatcher", "database": "shop", "user": "app",
            "application": "x", "busy": "spare", "method": "close", "dry_run": true,
        })
    );
}

#[test]
fn a_reload_shows_how_long_it_took_and_what_became_of_each_lease() {
    let admin = FakeAdmin::answering(reload());
    let output = admin.run(&["reload"]);
    let text = stdout(&output);
    assert!(
        text.starts_with("reload 7, generation 3: done in 2ms 10us; 1 returned\n"),
        "{text}"
    );
    assert_eq!(
        row(&text, "10000001"),
        [
            "10000001",
            "dispatcher (claim)",
            "returned",
            "-",
            "12s",
            "INSERT INTO jobs (name) VALUES (?)"
        ]
    );
    assert_eq!(admin.asked(), ["POST /v1/reloads {}"]);
}

#[test]
fn one_lease_is_returned_by_its_id() {
    let admin =
        FakeAdmin::answering(json!({"session": 10_000_001, "outcome": "returned", "reason": null}));
    let output = admin.run(&["return", "10000001", "--method", "detach"]);
    assert_eq!(
        (code(&output), stdout(&output).as_str()),
        (0, "session 10000001: returned\n")
    );
    assert_eq!(
        admin.asked(),
        [r#"POST /v1/leases/10000001/return {"method":"detach"}"#]
    );
}

#[test]
fn a_return_that_is_refused_exits_with_1_and_the_problem_as_text() {
    let admin = FakeAdmin::refusing(
        409,
        json!({"type": "about:blank", "title": "Conflict", "status": 409, "detail": "the lease is pinned",
               "outcome": "pinned", "reason": "temp"}),
    );
    let output = admin.run(&["return", "10000001"]);
    assert_eq!(code(&output), 1);
    assert_eq!(
        stderr(&output),
        "pgvalet: Conflict: the lease is pinned (pinned: temp)\n"
    );
}

#[test]
fn an_owners_leases_are_returned_together() {
    let admin = FakeAdmin::answering(
        json!({"leases": [outcome("returned", None), outcome("pinned", Some("temp"))]}),
    );
    let output = admin.run(&["return", "--owner", "a/b c"]);
    assert_eq!(code(&output), 1, "one of them was refused");
    assert!(stdout(&output).contains("pinned"), "{}", stdout(&output));
    assert_eq!(admin.asked(), ["POST /v1/owners/a%2Fb%20c/return {}"]);
}

#[test]
fn nobody_at_the_address_is_said_clearly_and_exits_with_3() {
    let free = std::net::TcpListener::bind("127.0.0.1:0")
        .expect("a port")
        .local_addr()
        .expect("an address");
    let output = pgvalet(&["leases", "--admin", &free.to_string()], &[]);
    assert_eq!(code(&output), 3);
    let said = stderr(&output);
    assert!(
        said.starts_with(&format!(
            "pgvalet: no pgvalet answers at {free} (Connection refused"
        )),
        "{said}"
    );
    assert!(
        said.contains("is it running?") && said.contains("--admin or PGVALET_ADMIN_URL"),
        "{said}"
    );
}

#[test]
fn somebody_else_at_the_address_is_said_clearly_and_exits_with_3() {
    let web = FakeAdmin::start(404, "text/html", "<h1>no</h1>".into(), "127.0.0.1:0");
    let output = web.run(&["owners"]);
    assert_eq!(code(&output), 3);
    assert!(
        stderr(&output).contains("isn't the admin API of a pgvalet: it says 404"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn a_peer_that_speaks_no_http_is_said_clearly_and_exits_with_3() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address").to_string();
    let peer = std::thread::spawn(move || {
        use std::io::Write;
        let (mut stream, _) = listener.accept().expect("a client");
        stream.write_all(b"SSH-2.0-something\r\n").expect("written");
    });
    let output = pgvalet(&["leases", "--admin", &address], &[]);
    peer.join().expect("the peer ends");
    assert_eq!(code(&output), 3);
    assert!(
        stderr(&output).contains("isn't the admin API"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn the_admin_api_is_found_on_a_unix_socket() {
    let directory = tempfile::tempdir().expect("a directory");
    let address = format!("unix:{}", directory.path().join("admin.sock").display());
    let answer = json!({"owners": []}).to_string();
    let admin = FakeAdmin::start(200, "application/json", answer, &address);
    let output = pgvalet(&["owners", "--admin", &address], &[]);
    assert_eq!(
        (code(&output), stdout(&output).as_str()),
        (0, "No sessions.\n")
    );
    drop(admin);
}

#[test]
fn wrong_usage_exits_with_2() {
    for arguments in [
        &["return"][..],
        &["reload", "--min-idle", "soon"],
        &["leases", "--admin", "nonsense"],
        &["serve", "--park-afer", "1s"],
        &[],
    ] {
        assert_eq!(code(&pgvalet(arguments, &[])), 2, "{arguments:?}");
    }
    let output = pgvalet(&["serve", "--park-afer", "1s"], &[]);
    assert!(
        stderr(&output).contains("'--park-after'"),
        "{}",
        stderr(&output)
    );
}
