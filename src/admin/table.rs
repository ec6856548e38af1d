//! Owns the table of routes: what is where, who may, what it takes and answers.
//!
//! The router, the roles and the OpenAPI document are all made of it: a route that isn't here isn't served.

use axum::routing::{MethodFilter, MethodRouter, on};

use super::access::Role;
use super::bodies::{ClaimsBody, ReapBody, ReloadBody, ReturnBody, VerifyBody};
use super::openapi::{self, Shape, shape};
use super::routes as handlers;
use super::views::{
    Leaks, Leases, OwnerReturn, Owners, ReloadRecord, Reloads, Returned, Sessions, TakenClaims,
};
use super::{Desk, checks, events, fleet, reloads};

/// One route with one method.
pub(super) struct Route {
    pub method: Verb,
    /// As axum and OpenAPI write it: parameters in braces.
    pub path: &'static str,
    /// Who may.
    pub role: Role,
    pub listeners: Listeners,
    /// What it does, in a few words.
    pub about: &'static str,
    /// Headers of its own.
    pub headers: &'static [&'static str],
    /// What may stand behind the path, each with the words that it takes; none for any text.
    pub query: &'static [(&'static str, &'static [&'static str])],
    pub takes: Takes,
    pub answers: Answers,
    /// Statuses besides those that come with parameters, bodies and roles.
    pub fails: &'static [u16],
    pub serve: fn(MethodFilter) -> MethodRouter<Desk>,
}

/// A method that some route has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verb {
    Get,
    Post,
    Put,
}

impl Verb {
    /// As in a request line.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Post => "POST",
            Self::Put => "PUT",
        }
    }

    pub const fn filter(self) -> MethodFilter {
        match self {
            Self::Get => MethodFilter::GET,
            Self::Post => MethodFilter::POST,
            Self::Put => MethodFilter::PUT,
        }
    }
}

/// Which listeners serve a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Listeners {
    /// The admin listener.
    Admin,
    /// The one for scrapes and probes, too.
    Both,
}

/// What a request carries.
#[derive(Clone, Copy)]
pub(super) enum Takes {
    Nothing,
    /// A body that may be left out.
    Optional(Shape),
    Body(Shape),
}

/// What an answer is made of.
#[derive(Clone, Copy)]
pub(super) enum Answers {
    Json(Shape),
    /// Something else, of this type.
    Text(&'static str),
}

/// A row that needs no more than this; the rest is added to it.
const fn look(
    path: &'static str,
    about: &'static str,
    answers: Answers,
    serve: fn(MethodFilter) -> MethodRouter<Desk>,
) -> Route {
    Route {
        method: Verb::Get,
        path,
        role: Role::Reader,
        listeners: Listeners::Admin,
        about,
        headers: &[],
        query: &[],
        takes: Takes::Nothing,
        answers,
        fails: &[503],
        serve,
    }
}

/// The same for what changes things.
const fn change(
    method: Verb,
    path: &'static str,
    about: &'static str,
    (takes, answers): (Takes, Answers),
    serve: fn(MethodFilter) -> MethodRouter<Desk>,
) -> Route {
    Route {
        method,
        role: Role::Operator,
        takes,
        ..look(path, about, answers, serve)
    }
}

/// All routes.
pub(super) static ROUTES: &[Route] = &[
    look(
        "/v1/leases",
        "every lease",
        Answers::Json(shape::<Leases>),
        |method| on(method, handlers::leases),
    ),
    look(
        "/v1/sessions",
        "every session, with or without a lease",
        Answers::Json(shape::<Sessions>),
        |method| on(method, handlers::sessions),
    ),
    look(
        "/v1/owners",
        "sessions and leases counted by owner",
        Answers::Json(shape::<Owners>),
        |method| on(method, handlers::owners),
    ),
    look(
        "/v1/leaks",
        "the parked leases, the longest first",
        Answers::Json(shape::<Leaks>),
        |method| on(method, handlers::leaks),
    ),
    change(
        Verb::Put,
        "/v1/claims",
        "the app's word on who holds which session",
        (
            Takes::Body(shape::<ClaimsBody>),
            Answers::Json(shape::<TakenClaims>),
        ),
        |method| on(method, handlers::claims),
    ),
    Route {
        headers: &["Idempotency-Key"],
        query: &[("scope", &["local", "fleet"])],
        ..change(
            Verb::Post,
            "/v1/reloads",
            "a reload",
            (
                Takes::Optional(shape::<ReloadBody>),
                Answers::Json(shape::<ReloadRecord>),
            ),
            |method| on(method, reloads::reload),
        )
    },
    look(
        "/v1/reloads",
        "the last 100 reloads, the newest first",
        Answers::Json(shape::<Reloads>),
        |method| on(method, reloads::list),
    ),
    look(
        "/v1/reloads/{id}",
        "one of them",
        Answers::Json(shape::<ReloadRecord>),
        |method| on(method, reloads::by_id),
    ),
    Route {
        fails: &[409, 503],
        ..change(
            Verb::Post,
            "/v1/leases/{id}/return",
            "returns one lease",
            (
                Takes::Optional(shape::<ReturnBody>),
                Answers::Json(shape::<Returned>),
            ),
            |method| on(method, handlers::return_lease),
        )
    },
    change(
        Verb::Post,
        "/v1/owners/{owner}/return",
        "returns what an owner holds",
        (
            Takes::Optional(shape::<ReturnBody>),
            Answers::Json(shape::<OwnerReturn>),
        ),
        |method| on(method, handlers::return_owner),
    ),
    change(
        Verb::Post,
        "/v1/reap",
        "ends sessions whose process is gone",
        (
            Takes::Optional(shape::<ReapBody>),
            Answers::Json(shape::<checks::Reaped>),
        ),
        |method| on(method, checks::reap),
    ),
    change(
        Verb::Post,
        "/v1/verify",
        "asks backends that nobody leases whether they are alive, and replaces the dead",
        (
            Takes::Optional(shape::<VerifyBody>),
            Answers::Json(shape::<checks::Verification>),
        ),
        |method| on(method, checks::verify),
    ),
    Route {
        headers: &["Last-Event-ID"],
        query: &[("kinds", &[])],
        fails: &[422, 503],
        ..look(
            "/v1/events",
            "what happens, as it happens",
            Answers::Text("text/event-stream"),
            |method| on(method, events::follow),
        )
    },
    Route {
        fails: &[422, 503],
        ..look(
            "/v1/fleet",
            "every pgvalet of this database's fleet",
            Answers::Json(shape::<fleet::FleetView>),
            |method| on(method, fleet::roll),
        )
    },
    Route {
        fails: &[],
        ..look(
            "/openapi.json",
            "this API as an OpenAPI document",
            Answers::Json(openapi::anything),
            |method| on(method, openapi::document),
        )
    },
    Route {
        role: Role::Anyone,
        listeners: Listeners::Both,
        fails: &[],
        ..look(
            "/healthz",
            "200 while the process answers",
            Answers::Text("text/plain; charset=utf-8"),
            |method| on(method, handlers::healthz),
        )
    },
    Route {
        role: Role::Anyone,
        listeners: Listeners::Both,
        ..look(
            "/readyz",
            "200 while clients may connect, 503 while it drains",
            Answers::Text("text/plain; charset=utf-8"),
            |method| on(method, handlers::readyz),
        )
    },
    Route {
        listeners: Listeners::Both,
        ..look(
            "/metrics",
            "Prometheus' text format",
            Answers::Text("text/plain; version=0.0.4; charset=utf-8"),
            |method| on(method, handlers::metrics),
        )
    },
];

/// Who may do this. What isn't in the table, those who may look may ask for.
pub(super) fn role(path: Option<&str>, method: &str) -> Role {
    let method = if method == "HEAD" { "GET" } else { method };
    let known = ROUTES
        .iter()
        .find(|route| Some(route.path) == path && route.method.word() == method);
    known.map_or(Role::Reader, |route| route.role)
}

/// Every route with its method and role, for whoever wants to hold callers to it.
#[must_use]
pub fn routes() -> Vec<(&'static str, &'static str, Role)> {
    let row = |route: &'static Route| (route.method.word(), route.path, route.role);
    ROUTES.iter().map(row).collect()
}
