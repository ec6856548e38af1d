//! The OpenAPI document, and what schemathesis finds with it.

use std::path::PathBuf;
use std::process::Command;

use pgvalet::admin::routes;

use crate::programs;
use crate::support::{Postgres, Raw, Valet, no_valet, skip};

/// schemathesis in an environment of its own; or why there is none.
fn schemathesis() -> Result<PathBuf, String> {
    let home = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("python-tools/bin/schemathesis");
    if home.exists() {
        return Ok(home);
    }
    Err("scripts/bootstrap test installs it".to_owned())
}

/// What is checked of each answer. That good data is taken isn't among it: a schema says less of durations than the code.
const CHECKS: &str = "not_a_server_error,status_code_conformance,content_type_conformance,\
                      response_headers_conformance,response_schema_conformance,unsupported_method,\
                      missing_required_header,negative_data_rejection";

#[test]
fn schemathesis_finds_nothing() {
    if no_valet() {
        return;
    }
    let program = match schemathesis() {
        Ok(program) => program,
        Err(why) => return skip(&format!("no schemathesis: {why}")),
    };
    let postgres = Postgres::start();
    let valet = Valet::front(&postgres);
    // Something to look at: the schemas of leases are checked on answers that hold some.
    let mut session = Raw::connect(valet.port());
    session.query("SELECT 1");
    let mut command = Command::new(program);
    let url = format!("http://127.0.0.1:{}/openapi.json", valet.admin_port());
    let home = tempfile::tempdir().expect("a directory");
    command.current_dir(home.path()).args([
        "run",
        &url,
        "--checks",
        CHECKS,
        "--phases",
        "examples,coverage,fuzzing",
        // A stream of events never ends.
        "--exclude-path",
        "/v1/events",
        "--max-examples",
        "25",
        "--seed",
        "1",
        "--no-color",
        "--suppress-health-check",
        "all",
    ]);
    let said = programs::run(&mut command);
    // All but the document itself, which it doesn't ask for again, and the events.
    let tested = format!("Tested: {}\n", routes().len() - 2);
    assert!(said.contains(&tested), "{said}");
}
