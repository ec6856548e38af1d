//! What the HTTP side says to wrong requests, and to probes.

use serde_json::{Value, json};

use crate::stage::stage;
use crate::support::Valet;
use crate::support::http::{self, Response};

/// An error in the shape of RFC 9457.
#[track_caller]
fn is_a_problem(response: &Response, statuses: &[u16]) {
    assert!(
        statuses.contains(&response.status),
        "{}: {}",
        response.status,
        response.body
    );
    assert_eq!(
        response.content_type, "application/problem+json",
        "{}",
        response.body
    );
    let problem = response.json();
    assert_eq!(problem["status"], response.status, "{problem}");
    for member in ["type", "title", "detail"] {
        assert!(
            problem[member]
                .as_str()
                .is_some_and(|text| !text.is_empty()),
            "{member} of {problem}"
        );
    }
}

#[test]
fn a_body_that_is_wrong_is_a_problem_that_names_the_member() {
    let Some((_postgres, valet)) = stage(&[]) else {
        return;
    };
    let wrong = [
        (json!({"min_idle": "soon"}), "min_idle"),
        (json!({"min_idle": 5}), "min_idle"),
        (json!({"deadline": "-1s"}), "deadline"),
        (json!({"busy": "perhaps"}), "busy"),
        (json!({"method": "ask"}), "method"),
        (json!({"sessions": [{"owner": "x"}]}), "id"),
        (json!({"sessions": [{"id": "x"}]}), "id"),
        (json!({"sessions": {"id": 1}}), "sessions"),
        (json!({"min_idel": "1s"}), "min_idel"),
    ];
    for (body, member) in wrong {
        let response = valet.request("POST", "/v1/reloads", &body.to_string());
        is_a_problem(&response, &[400, 422]);
        assert!(response.body.contains(member), "{body}: {}", response.body);
    }
    assert_eq!(valet.metric("pgvalet_generation"), 0.0);
}

#[test]
fn a_body_that_isn_t_json_is_a_problem() {
    let Some((_postgres, valet)) = stage(&[]) else {
        return;
    };
    for body in [
        "{",
        "nonsense",
        "[]",
        "\"text\"",
        "{\"min_idle\": \"1s\"} more",
    ] {
        is_a_problem(&valet.request("POST", "/v1/reloads", body), &[400, 422]);
        is_a_problem(&valet.request("PUT", "/v1/claims", body), &[400, 422]);
    }
    is_a_problem(&valet.request("PUT", "/v1/claims", ""), &[400, 422]);
}

#[test]
fn a_body_of_another_type_is_a_problem() {
    let Some((_postgres, valet)) = stage(&[]) else {
        return;
    };
    let form = [("Content-Type", "application/x-www-form-urlencoded")];
    is_a_problem(
        &http::request(
            valet.admin_port(),
            "POST",
            "/v1/reloads",
            &form,
            "min_idle=1s",
        ),
        &[415],
    );
}

#[test]
fn an_unknown_path_or_method_is_a_problem() {
    let Some((_postgres, valet)) = stage(&[]) else {
        return;
    };
    is_a_problem(&valet.request("GET", "/v1/nothing", ""), &[404]);
    is_a_problem(&valet.request("GET", "/", ""), &[404]);
    is_a_problem(&valet.request("DELETE", "/v1/leases", ""), &[405]);
    is_a_problem(&valet.request("POST", "/v1/claims", "{}"), &[405]);
    is_a_problem(&valet.request("POST", "/v1/leases/7/return", ""), &[404]);
    is_a_problem(
        &valet.request("POST", "/v1/leases/x/return", ""),
        &[400, 404, 422],
    );
    is_a_problem(&valet.request("GET", "/v1/reloads/7", ""), &[404]);
}

#[test]
fn a_body_without_end_is_refused() {
    let Some((_postgres, valet)) = stage(&[]) else {
        return;
    };
    let body = format!("{{\"claims\": [{}]}}", " ".repeat(20_000_000));
    let port = valet.admin_port();
    let refused = std::thread::spawn(move || {
        http::request(
            port,
            "PUT",
            "/v1/claims",
            &[("Content-Type", "application/json")],
            &body,
        )
    });
    if let Ok(response) = refused.join() {
        is_a_problem(&response, &[413]);
    }
    assert_eq!(valet.get("/v1/leases")["leases"], json!([]));
}

#[test]
fn an_empty_body_is_an_empty_reload_whatever_its_type() {
    let Some((_postgres, valet)) = stage(&[]) else {
        return;
    };
    for headers in [&[][..], &[("Content-Type", "application/json")]] {
        assert_eq!(
            http::request(valet.admin_port(), "POST", "/v1/reloads", headers, "").status,
            200
        );
    }
}

#[test]
fn probes_and_metrics_answer_on_both_listeners() {
    let Some((_postgres, valet)) = stage(&[]) else {
        return;
    };
    for port in [valet.admin_port(), valet.metrics_port()] {
        for path in ["/healthz", "/readyz", "/metrics"] {
            assert_eq!(
                http::request(port, "GET", path, &[], "").status,
                200,
                "{path}"
            );
        }
    }
    assert_eq!(
        http::request(valet.metrics_port(), "GET", "/v1/leases", &[], "").status,
        404
    );
}

#[test]
fn the_views_of_nothing_are_empty_lists() {
    let Some((_postgres, valet)) = stage(&[]) else {
        return;
    };
    for (path, list) in [
        ("leases", "leases"),
        ("sessions", "sessions"),
        ("owners", "owners"),
        ("leaks", "leaks"),
    ] {
        assert_eq!(valet.get(&format!("/v1/{path}"))[list], json!([]));
    }
    assert_eq!(valet.get("/v1/leases")["generation"], 0);
}

#[test]
fn a_web_page_elsewhere_can_t_make_a_browser_reload() {
    let Some((_postgres, valet)) = stage(&[]) else {
        return;
    };
    let simple = [
        ("Content-Type", "text/plain"),
        ("Origin", "http://evil.example"),
    ];
    let response = http::request(
        valet.admin_port(),
        "POST",
        "/v1/reloads",
        &simple,
        "{\"method\": \"close\"}",
    );
    assert!(response.status >= 400, "{}", response.body);
    assert_eq!(generation(&valet), json!(0));
}

fn generation(valet: &Valet) -> Value {
    valet.get("/v1/leases")["generation"].clone()
}
