//! Real drivers with newer TLS habits: libpq 17 and later by psycopg, and asyncpg.

use crate::certificates::{Authority, KeyKind};
use crate::programs::{client, python, run, scripts};
use crate::support::{Postgres, Valet, no_valet, skip};

#[test]
fn python_drivers_speak_tls_in_each_of_their_ways() {
    if no_valet() {
        return;
    }
    let python = match python() {
        Ok(python) => python,
        Err(why) => return skip(&why),
    };
    let authority = Authority::new("root");
    let pair = authority.issue("a", "localhost", KeyKind::Ec);
    let postgres = Postgres::start();
    let url = postgres.url("postgres:secret", "postgres");
    let tls = pair.flags("require");
    let flags = [&["--upstream", &url, "--auth", "scram"], &tls[..]].concat();
    let valet = Valet::serve(&flags).unwrap_or_else(|exit| panic!("{}", exit.log));
    let mut command = client(python, valet.port());
    command
        .env("PGPASSWORD", "secret")
        .env("HOME", "/nonexistent");
    let script = scripts().with_file_name("tls").join("drivers.py");
    let said = run(command.arg(script).arg(authority.root()));
    assert!(said.ends_with("all well"), "{said}");
    eprintln!("{said}");
}
