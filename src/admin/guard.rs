//! Owns the door of the admin API: a caller's role, and the refusal of requests that a web page makes in a browser.
//!
//! A page of another origin must not order reloads (it would send `Origin` or `Sec-Fetch-Site`), nor read leases by
//! rebinding its own name to this address (its `Host` would be a name that isn't this machine's).

use std::net::IpAddr;

use axum::extract::{MatchedPath, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::access::{Access, Link, judge};
use super::problem::Problem;
use super::table;
use crate::config::Config;

/// What the door goes by.
#[derive(Clone, Debug)]
pub(super) struct Guard {
    access: Access,
}

impl Guard {
    /// By this configuration.
    pub fn new(config: &Config) -> Self {
        Self {
            access: Access::new(config.admin_access.clone()),
        }
    }

    async fn judge(&self, head: &Parts) -> Result<(), Problem> {
        let headers = &head.headers;
        // Without a word on how it came, it counts as coming from anywhere.
        let link = head.extensions.get().cloned();
        let link = link.unwrap_or(Link::Tcp(None));
        let host = if self.access.asks(&link) {
            // No page that has rebound its name can show a token, and none gets through TLS.
            Host::Any
        } else {
            Host::Own
        };
        check(headers, host)?;
        let path = head.extensions.get::<MatchedPath>();
        let wanted = table::role(path.map(MatchedPath::as_str), head.method.as_str());
        judge(self.access.role(&link, headers).await?, wanted)
    }
}

/// Lets those through whose role suffices.
pub(super) async fn admit(State(guard): State<Guard>, request: Request, next: Next) -> Response {
    let (head, body) = request.into_parts();
    match guard.judge(&head).await {
        Ok(()) => next.run(Request::from_parts(head, body)).await,
        Err(problem) => problem.into_response(),
    }
}

/// Which Host headers are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Host {
    /// Those that name this machine in a way that no web page can forge.
    Own,
    /// Any: callers prove who they are.
    Any,
}

fn check(headers: &HeaderMap, taken: Host) -> Result<(), Problem> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let host = text(header::HOST.as_str());
    let forbidden = |detail: &str| Err(Problem::new(StatusCode::FORBIDDEN, detail));
    if taken == Host::Own && host.is_some_and(|host| !is_own(host)) {
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
            assert!(check(&headers, Host::Own).is_ok(), "{host}");
        }
        assert!(check(&HeaderMap::new(), Host::Own).is_ok());
    }

    #[test]
    fn pages_of_other_origins_are_refused() {
        let rebound = HeaderMap::from_iter([(header::HOST, "evil.example:6433".parse().unwrap())]);
        let foreign = HeaderMap::from_iter([
            (header::HOST, "127.0.0.1:6433".parse().unwrap()),
            (header::ORIGIN, "https://evil.example".parse().unwrap()),
        ]);
        assert!(check(&rebound, Host::Own).is_err());
        assert!(check(&rebound, Host::Any).is_ok());
        assert!(check(&foreign, Host::Own).is_err());
        assert!(check(&foreign, Host::Any).is_err());
    }
}
