//! Owns the refusal of requests that a web page makes in a browser: the admin API answers programs only.
//!
//! A page of another origin must not order reloads (it would send `Origin` or `Sec-Fetch-Site`), nor read leases by
//! rebinding its own name to this address (its `Host` would be a name that isn't this machine's).

use std::net::IpAddr;

use axum::extract::Request;
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::problem::Problem;

/// Lets programs through, and requests of the own page.
pub(super) async fn programs_only(request: Request, next: Next) -> Response {
    match check(request.headers()) {
        Ok(()) => next.run(request).await,
        Err(problem) => problem.into_response(),
    }
}

fn check(headers: &HeaderMap) -> Result<(), Problem> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let host = text(header::HOST.as_str());
    let forbidden = |detail: &str| Err(Problem::new(StatusCode::FORBIDDEN, detail));
    if host.is_some_and(|host| !is_own(host)) {
        return forbidden("the Host header names another machine: use an IP address or localhost");
    }
    let origin = text(header::ORIGIN.as_str());
    let same = |origin: &str| origin.split_once("://").map(|(_, rest)| rest) == host;
    if origin.is_some_and(|origin| !same(origin))
        || text("sec-fetch-site").is_some_and(|site| site == "cross-site")
    {
        return forbidden("the admin API doesn't answer pages of another origin");
    }
    Ok(())
}

/// Whether a Host header names this machine in a way that no web page can forge.
fn is_own(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let bare = name.trim_start_matches('[').trim_end_matches(']');
    bare.is_empty() || bare.eq_ignore_ascii_case("localhost") || bare.parse::<IpAddr>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_on_this_machine_are_let_through() {
        for host in ["127.0.0.1:6433", "localhost", "[::1]:6433", "LOCALHOST:80"] {
            let headers = HeaderMap::from_iter([(header::HOST, host.parse().unwrap())]);
            assert!(check(&headers).is_ok(), "{host}");
        }
        assert!(check(&HeaderMap::new()).is_ok());
    }

    #[test]
    fn pages_of_other_origins_are_refused() {
        let rebound = HeaderMap::from_iter([(header::HOST, "evil.example:6433".parse().unwrap())]);
        let foreign = HeaderMap::from_iter([
            (header::HOST, "127.0.0.1:6433".parse().unwrap()),
            (header::ORIGIN, "https://evil.example".parse().unwrap()),
        ]);
        assert!(check(&rebound).is_err());
        assert!(check(&foreign).is_err());
    }
}
