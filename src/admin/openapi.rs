//! Owns the OpenAPI document: made of the table of routes, and of the types that are read and written.

use std::sync::LazyLock;

use axum::Json;
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use super::access::Role;
use super::table::{Answers, ROUTES, Route, Takes};

/// Adds a type and what it is made of to the schemas, and gives the reference to it.
pub(super) type Shape = fn(&mut Map<String, Value>) -> Value;

/// The shape of `T`.
pub(super) fn shape<T: ToSchema>(schemas: &mut Map<String, Value>) -> Value {
    let mut found = Vec::new();
    T::schemas(&mut found);
    found.push((T::name().into_owned(), T::schema()));
    for (name, schema) in found {
        // A schema is plain data: there is nothing in it that JSON doesn't know.
        schemas.insert(name, serde_json::to_value(schema).unwrap_or_default());
    }
    json!({ "$ref": format!("#/components/schemas/{}", T::name()) })
}

/// The shape of an object that isn't described further.
pub(super) fn anything(_: &mut Map<String, Value>) -> Value {
    json!({ "type": "object" })
}

static DOCUMENT: LazyLock<Value> = LazyLock::new(make);

/// `GET /openapi.json`.
pub(super) async fn document() -> Json<&'static Value> {
    Json(&DOCUMENT)
}

fn make() -> Value {
    let mut schemas = Map::new();
    let mut paths = Map::new();
    for route in ROUTES {
        let operation = operation(route, &mut schemas);
        let item = paths.entry(route.path).or_insert_with(|| json!({}));
        item[route.method.word().to_ascii_lowercase()] = operation;
    }
    schemas.insert("Problem".to_owned(), problem());
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "pgvalet",
            "description": "The admin API of pgvalet: who holds which session, and the returning of leases.",
            "version": env!("CARGO_PKG_VERSION"),
            "license": { "name": "MIT", "identifier": "MIT" },
        },
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "token": { "type": "http", "scheme": "bearer", "description": "Where tokens are configured." },
            },
        },
    })
}

/// RFC 9457, with members of its own where they help.
fn problem() -> Value {
    json!({
        "type": "object",
        "required": ["type", "title", "status", "detail"],
        "properties": {
            "type": { "type": "string" },
            "title": { "type": "string" },
            "status": { "type": "integer" },
            "detail": { "type": "string" },
        },
    })
}

fn operation(route: &Route, schemas: &mut Map<String, Value>) -> Value {
    let mut operation = json!({
        "summary": route.about,
        "operationId": identifier(route),
        "x-role": route.role.word(),
        "parameters": parameters(route),
        "responses": responses(route, schemas),
    });
    if route.role > Role::Anyone {
        // Or nothing, where nobody has to show anything.
        operation["security"] = json!([{ "token": [] }, {}]);
    }
    let body = match route.takes {
        Takes::Nothing => None,
        Takes::Optional(shape) => Some((shape, false)),
        Takes::Body(shape) => Some((shape, true)),
    };
    if let Some((shape, required)) = body {
        let content = json!({ "application/json": { "schema": shape(schemas) } });
        operation["requestBody"] = json!({ "required": required, "content": content });
    }
    operation
}

/// `post_v1_reloads`: a name for whoever makes a client of the document.
fn identifier(route: &Route) -> String {
    let words = route.path.split(|c: char| !c.is_ascii_alphanumeric());
    let words = words.filter(|word| !word.is_empty());
    let method = route.method.word().to_ascii_lowercase();
    std::iter::once(method.as_str())
        .chain(words)
        .collect::<Vec<_>>()
        .join("_")
}

fn parameters(route: &Route) -> Vec<Value> {
    let in_path = named(route.path).map(
        |name| json!({ "name": name, "in": "path", "required": true, "schema": { "type": "string" } }),
    );
    let in_header = route.headers.iter().map(|name| {
        let schema =
            json!({ "type": "string", "minLength": 1, "maxLength": 200, "pattern": "^[!-~]+$" });
        json!({ "name": name, "in": "header", "schema": schema })
    });
    let in_query = route.query.iter().map(|(name, words)| {
        let schema = match words {
            [] => json!({ "type": "string" }),
            words => json!({ "type": "string", "enum": words }),
        };
        json!({ "name": name, "in": "query", "schema": schema })
    });
    in_path.chain(in_header).chain(in_query).collect()
}

/// The names in the braces of a path.
fn named(path: &str) -> impl Iterator<Item = &str> {
    path.split('{')
        .skip(1)
        .filter_map(|rest| rest.split('}').next())
}

fn responses(route: &Route, schemas: &mut Map<String, Value>) -> Value {
    let (kind, schema) = match route.answers {
        Answers::Json(shape) => ("application/json", shape(schemas)),
        Answers::Text(kind) => (kind, json!({ "type": "string" })),
    };
    let mut responses = Map::new();
    responses.insert(
        "200".to_owned(),
        json!({ "description": route.about, "content": { kind: { "schema": schema } } }),
    );
    for (status, about) in failures(route) {
        let schema = json!({ "$ref": "#/components/schemas/Problem" });
        let content = json!({ "application/problem+json": { "schema": schema } });
        let response = json!({ "description": about, "content": content });
        responses.insert(status.to_string(), response);
    }
    Value::Object(responses)
}

/// The errors of a route: what comes with its parameters, its body and its role, and its own.
fn failures(route: &Route) -> Vec<(u16, &'static str)> {
    const ALL: &[(u16, &str)] = &[
        (400, "the request can't be read"),
        (401, "no token or certificate that is known was shown"),
        (
            403,
            "a web page asks, or a caller whose role doesn't suffice",
        ),
        (404, "there is no such thing"),
        (405, "the path takes another method"),
        (408, "the body took too long to come"),
        (409, "it was refused: the detail says why"),
        (413, "the body is too long"),
        (415, "the body is said to be something else than JSON"),
        (422, "a key or value isn't taken; `path` says which"),
        (503, "pgvalet is ending, or can't do it now"),
    ];
    let takes_body = !matches!(route.takes, Takes::Nothing);
    let has_parameter = named(route.path).next().is_some();
    let applies = |status: u16| match status {
        // Every request is read, whole, before it is looked at.
        400 | 408 | 413 => true,
        401 => route.role > Role::Anyone,
        403 | 405 => true,
        404 => has_parameter,
        415 => takes_body,
        422 => takes_body || route.fails.contains(&422),
        status => route.fails.contains(&status),
    };
    let all = ALL.iter().copied();
    all.filter(|(status, _)| applies(*status)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_holds_every_route_and_every_reference_resolves() {
        let document = make();
        for route in ROUTES {
            let method = route.method.word().to_ascii_lowercase();
            assert!(document["paths"][route.path][&method].is_object());
        }
        let text = document.to_string();
        for reference in text.split("\"#").skip(1) {
            let pointer = reference.split('"').next().unwrap();
            assert!(document.pointer(pointer).is_some(), "{pointer}");
        }
    }
}
