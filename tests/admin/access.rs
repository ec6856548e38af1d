//! Who may do what: every route against every role, by token and by certificate.

use std::collections::BTreeSet;
use std::process::Output;

use pgvalet::admin::{Role, routes};

use crate::certificates::{Authority, KeyKind, Pair};
use crate::support::http::{self, Response};
use crate::support::{Postgres, Valet, no_valet};

const OPERATOR: &str = "the-token-of-operators";
const READER: &str = "the-token-of-readers";

/// Every route with its method, and who may. A route that is added without a row here fails the test.
const TABLE: &[(&str, &str, Role)] = &[
    ("GET", "/v1/leases", Role::Reader),
    ("GET", "/v1/sessions", Role::Reader),
    ("GET", "/v1/owners", Role::Reader),
    ("GET", "/v1/leaks", Role::Reader),
    ("PUT", "/v1/claims", Role::Operator),
    ("POST", "/v1/reloads", Role::Operator),
    ("GET", "/v1/reloads", Role::Reader),
    ("GET", "/v1/reloads/{id}", Role::Reader),
    ("POST", "/v1/leases/{id}/return", Role::Operator),
    ("POST", "/v1/owners/{owner}/return", Role::Operator),
    ("POST", "/v1/reap", Role::Operator),
    ("POST", "/v1/verify", Role::Operator),
    ("GET", "/v1/events", Role::Reader),
    ("GET", "/v1/fleet", Role::Reader),
    ("GET", "/openapi.json", Role::Reader),
    ("GET", "/healthz", Role::Anyone),
    ("GET", "/readyz", Role::Anyone),
    ("GET", "/metrics", Role::Reader),
];

/// Tokens for both roles in files, as secrets are mounted.
struct Tokens {
    directory: tempfile::TempDir,
}

impl Tokens {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let tokens = Self { directory };
        tokens.write("operator", OPERATOR);
        tokens.write("reader", READER);
        tokens
    }

    fn write(&self, name: &str, token: &str) {
        std::fs::write(self.directory.path().join(name), token).expect("written");
    }

    fn path(&self, name: &str) -> String {
        let path = self.directory.path().join(name);
        path.to_str().expect("UTF-8").to_owned()
    }

    fn stage(&self) -> (Postgres, Valet) {
        let postgres = Postgres::start();
        let (operator, reader) = (self.path("operator"), self.path("reader"));
        let flags = [
            "--admin-token-file",
            &operator,
            "--admin-readonly-token-file",
            &reader,
        ];
        let valet = Valet::front_with(&postgres, &flags);
        (postgres, valet)
    }
}

/// A request with this Authorization header; the body suits every route that takes one.
fn ask(port: u16, method: &str, path: &str, authorization: Option<&str>) -> Response {
    let path = path.replace("{id}", "7").replace("{owner}", "nobody");
    // A stream of events never ends: a refusal of one does.
    let path = path.replace("/v1/events", "/v1/events?kinds=none");
    let mut headers = vec![("Content-Type", "application/json")];
    headers.extend(authorization.map(|value| ("Authorization", value)));
    let body = match method {
        "PUT" => r#"{"claims": []}"#,
        "POST" => "{}",
        _ => "",
    };
    http::request(port, method, &path, &headers, body)
}

#[test]
fn every_route_has_a_row_in_the_table_of_roles() {
    let known: BTreeSet<_> = TABLE.iter().map(|(m, p, r)| (*m, *p, r.word())).collect();
    let served: BTreeSet<_> = routes()
        .iter()
        .map(|(m, p, r)| (*m, *p, r.word()))
        .collect();
    assert_eq!(known, served);
}

#[test]
fn every_route_takes_the_roles_of_its_row_and_no_others() {
    if no_valet() {
        return;
    }
    let tokens = Tokens::new();
    let (_postgres, valet) = tokens.stage();
    let (operator, reader) = (format!("Bearer {OPERATOR}"), format!("Bearer {READER}"));
    let callers = [
        (None, Some(Role::Anyone)),
        (Some(reader.as_str()), Some(Role::Reader)),
        (Some(operator.as_str()), Some(Role::Operator)),
        (Some("Bearer the-token-of-strangers"), None),
        (Some("Basic dXNlcjpwYXNzd29yZA=="), None),
        (Some("Bearer"), None),
    ];
    for (method, path, wanted) in TABLE {
        for (authorization, role) in callers {
            let answer = ask(valet.admin_port(), method, path, authorization);
            let expected = match role {
                Some(role) if role >= *wanted => None,
                Some(Role::Reader) => Some(403),
                Some(Role::Anyone | Role::Operator) | None => Some(401),
            };
            let who = format!("{method} {path} with {authorization:?}: {}", answer.body);
            match expected {
                None => assert!(![401, 403].contains(&answer.status), "{who}"),
                Some(status) => {
                    assert_eq!(answer.status, status, "{who}");
                    assert_eq!(answer.content_type, "application/problem+json", "{who}");
                    let challenged = answer.header("www-authenticate");
                    assert_eq!(challenged.is_some(), status == 401, "{who}");
                    assert_eq!(answer.json()["status"], status, "{who}");
                }
            }
        }
    }
}

#[test]
fn what_is_not_there_is_told_to_those_only_who_may_look() {
    if no_valet() {
        return;
    }
    let tokens = Tokens::new();
    let (_postgres, valet) = tokens.stage();
    let reader = format!("Bearer {READER}");
    for (method, path, status) in [("GET", "/v2", 404), ("DELETE", "/v1/leases", 405)] {
        let port = valet.admin_port();
        assert_eq!(ask(port, method, path, None).status, 401);
        assert_eq!(ask(port, method, path, Some(&reader)).status, status);
    }
}

#[test]
fn the_metrics_listener_asks_nobody_and_serves_nothing_else() {
    if no_valet() {
        return;
    }
    let tokens = Tokens::new();
    let (_postgres, valet) = tokens.stage();
    for (method, path, _) in TABLE {
        let open = ["/healthz", "/readyz", "/metrics"].contains(path);
        let answer = ask(valet.metrics_port(), method, path, None);
        assert_eq!(answer.status, if open { 200 } else { 404 }, "{path}");
    }
}

#[test]
fn a_token_that_is_mounted_anew_counts_without_a_restart() {
    if no_valet() {
        return;
    }
    let tokens = Tokens::new();
    let (_postgres, valet) = tokens.stage();
    let old = format!("Bearer {OPERATOR}");
    let ask = |token: &str| ask(valet.admin_port(), "POST", "/v1/reloads", Some(token)).status;
    assert_eq!(ask(&old), 200);
    tokens.write("operator", "another-token-for-operators\n");
    assert_eq!(ask(&old), 401);
    assert_eq!(ask("Bearer another-token-for-operators"), 200);
    assert!(!valet.log().contains("token-for-operators"));
}

#[test]
fn a_caller_with_a_token_may_use_any_host_name() {
    if no_valet() {
        return;
    }
    let tokens = Tokens::new();
    let (_postgres, valet) = tokens.stage();
    let bearer = format!("Bearer {READER}");
    let headers = [
        ("Authorization", bearer.as_str()),
        ("Host", "pgvalet.db.svc"),
    ];
    let answer = http::request(valet.admin_port(), "GET", "/v1/leases", &headers, "");
    assert_eq!(answer.status, 200, "{}", answer.body);
}

/// A command with a token in the environment.
fn pgvalet(arguments: &[&str], vars: &[(&str, &str)]) -> Output {
    let mut command = Valet::command(arguments);
    command
        .envs(vars.iter().copied())
        .output()
        .expect("it runs")
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn commands_show_a_token_from_the_environment_or_a_file() {
    if no_valet() {
        return;
    }
    let tokens = Tokens::new();
    let (_postgres, valet) = tokens.stage();
    let admin = format!("127.0.0.1:{}", valet.admin_port());
    let reload = ["reload", "--admin", &admin];

    let nothing = pgvalet(&reload, &[]);
    assert_eq!(nothing.status.code(), Some(1), "{}", said(&nothing));
    assert!(
        said(&nothing).contains("show a token"),
        "{}",
        said(&nothing)
    );
    let reader = pgvalet(&reload, &[("PGVALET_ADMIN_TOKEN", READER)]);
    assert!(said(&reader).contains("for operators"), "{}", said(&reader));
    let operator = pgvalet(&reload, &[("PGVALET_ADMIN_TOKEN", OPERATOR)]);
    assert!(operator.status.success(), "{}", said(&operator));
    let file = tokens.path("operator");
    let operator = pgvalet(&[&reload[..], &["--admin-token-file", &file]].concat(), &[]);
    assert!(operator.status.success(), "{}", said(&operator));
}

#[test]
fn beyond_loopback_the_admin_listener_wants_a_proof() {
    if no_valet() {
        return;
    }
    let check = |more: &[&str]| {
        let upstream = ["--upstream", "postgres://a@127.0.0.1/b"];
        let flags = [&["check", "--admin", "0.0.0.0:6433"], &upstream[..], more].concat();
        pgvalet(&flags, &[])
    };
    let refused = check(&[]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(
        said(&refused).contains("admin_token_file"),
        "{}",
        said(&refused)
    );
    let tokens = Tokens::new();
    let taken = check(&["--admin-token-file", &tokens.path("operator")]);
    assert!(taken.status.success(), "{}", said(&taken));
    assert!(said(&taken).contains("in clear"), "{}", said(&taken));
    let missing = check(&["--admin-token-file", &tokens.path("nothing")]);
    assert_eq!(missing.status.code(), Some(2));
}

/// pgvalet with TLS on the admin listener, for whose certificates `authority` stands.
fn encrypted(authority: &Authority, postgres: &Postgres, operators: &str) -> Valet {
    let server = authority.issue("server", "localhost", KeyKind::Ec);
    let flags = [
        "--admin-tls-cert",
        server.cert(),
        "--admin-tls-key",
        server.key(),
        "--admin-tls-client-ca",
        &authority.root(),
        "--admin-tls-operators",
        operators,
    ];
    Valet::front_with(postgres, &flags)
}

#[test]
fn a_certificate_gives_the_role_of_its_name() {
    if no_valet() {
        return;
    }
    let (authority, stranger) = (Authority::new("ours"), Authority::new("theirs"));
    let postgres = Postgres::start();
    let valet = encrypted(&authority, &postgres, "release-bot,other.example");
    let admin = format!("https://localhost:{}", valet.admin_port());
    let root = authority.root();
    let ask = |command: &str, pair: Option<&Pair>| {
        let mut arguments = vec![command, "--admin", &admin, "--admin-ca", &root];
        if let Some(pair) = pair {
            arguments.extend(["--admin-cert", pair.cert(), "--admin-key", pair.key()]);
        }
        let output = pgvalet(&arguments, &[]);
        (output.status.code(), said(&output))
    };
    let reader = authority.issue("reader", "dashboard", KeyKind::Ec);
    let operator = authority.issue("operator", "release-bot", KeyKind::Ec);
    let foreign = stranger.issue("operator", "release-bot", KeyKind::Ec);

    assert_eq!(ask("leases", Some(&reader)).0, Some(0));
    let (code, said) = ask("reload", Some(&reader));
    assert!(code == Some(1) && said.contains("for operators"), "{said}");
    assert_eq!(ask("reload", Some(&operator)).0, Some(0));
    let (code, said) = ask("leases", None);
    assert!(code == Some(1) && said.contains("show a token"), "{said}");
    // TLS refuses whom no root stands for: no answer comes.
    assert_eq!(ask("leases", Some(&foreign)).0, Some(3));
}

#[test]
fn a_page_of_another_origin_is_refused_whatever_it_shows() {
    if no_valet() {
        return;
    }
    let tokens = Tokens::new();
    let (_postgres, valet) = tokens.stage();
    let bearer = format!("Bearer {OPERATOR}");
    let headers = [
        ("Authorization", bearer.as_str()),
        ("Origin", "https://evil.example"),
    ];
    let answer = http::request(valet.admin_port(), "POST", "/v1/reloads", &headers, "");
    assert_eq!(answer.status, 403);
}
