//! Who gets in, and how: login rules, methods, users' secrets and their rotation, keys passed through to PostgreSQL.

#[path = "../tls/certificates.rs"]
#[allow(dead_code, reason = "the certificates of other tests, too")]
mod certificates;
#[path = "../clients/programs.rs"]
#[allow(dead_code, reason = "the programs of other tests, too")]
mod programs;
#[path = "../support/mod.rs"]
mod support;

mod drivers;
mod lookup;
mod malformed;
mod methods;
mod passthrough;
mod passwords;
mod secrets;
mod stage;
