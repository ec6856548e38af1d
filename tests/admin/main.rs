//! The front of the admin side: who may do what over HTTP, what bounds a caller, the OpenAPI document, the SQL console.

#[path = "../tls/certificates.rs"]
#[allow(dead_code, reason = "TLS's own tests use the rest")]
mod certificates;
#[path = "../clients/programs.rs"]
#[allow(dead_code, reason = "the programs of other tests, too")]
mod programs;
#[path = "../support/mod.rs"]
mod support;

mod access;
mod console;
mod exporter;
mod limits;
mod openapi;
mod pgbouncer;
