//! pg_dump and pg_restore: what is dumped through pgvalet and restored through it is the same database.

use std::process::{Command, Stdio};

use crate::programs::{client, run, stage};
use crate::support::{Postgres, Valet};

const SCHEMA: &str = "
    CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy');
    CREATE TABLE people (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text NOT NULL, mood mood, photo bytea);
    CREATE TABLE notes (id bigserial, person int REFERENCES people, body text, at timestamptz DEFAULT '2020-01-01Z');
    CREATE INDEX ON notes (person);
    CREATE VIEW happy AS SELECT * FROM people WHERE mood = 'happy';
    CREATE FUNCTION twice(int) RETURNS int LANGUAGE sql AS 'SELECT $1 * 2';
    INSERT INTO people (name, mood, photo) SELECT 'Ünï ' || i, 'happy', decode(md5(i::text), 'hex') FROM generate_series(1, 2000) i;
    INSERT INTO notes (person, body) SELECT 1 + i % 2000, E'tab\\t newline\\n \\\\ ' || i FROM generate_series(1, 5000) i;
    SELECT lo_from_bytea(4242, 'a large object')";

/// The dump as text, without the lines that name the moment.
fn plain(postgres: &Postgres, database: &str) -> String {
    let text = run(client("pg_dump", postgres.port()).arg(database));
    text.lines()
        .filter(|line| !line.starts_with("\\restrict") && !line.starts_with("\\unrestrict"))
        .collect()
}

fn restored(postgres: &Postgres, valet: &Valet, restore: impl FnOnce(&Valet)) {
    postgres.sql("CREATE DATABASE restored");
    restore(valet);
    assert_eq!(plain(postgres, "postgres"), plain(postgres, "restored"));
    assert_eq!(postgres.sql("SELECT count(*) FROM notes"), "5000");
}

#[test]
fn a_dump_piped_into_a_restore() {
    let (postgres, valet) = stage();
    postgres.sql(SCHEMA);
    restored(&postgres, &valet, |valet| {
        let mut dump = client("pg_dump", valet.port())
            .arg("-Fc")
            .stdout(Stdio::piped())
            .spawn()
            .expect("pg_dump runs");
        let archive = dump.stdout.take().expect("stdout is piped");
        run(client("pg_restore", valet.port())
            .args(["-d", "restored", "--exit-on-error"])
            .stdin(archive));
        assert!(dump.wait().expect("it is our child").success());
    });
}

#[test]
fn a_parallel_dump_and_a_parallel_restore() {
    let (postgres, valet) = stage();
    postgres.sql(SCHEMA);
    let directory = postgres.socket_directory().join("dump");
    run(client("pg_dump", valet.port())
        .args(["-Fd", "-j", "3", "-f"])
        .arg(&directory));
    restored(&postgres, &valet, |valet| {
        let mut restore: Command = client("pg_restore", valet.port());
        run(restore
            .args(["-d", "restored", "-j", "3", "--exit-on-error"])
            .arg(&directory));
    });
}

#[test]
fn a_plain_dump_read_by_psql() {
    let (postgres, valet) = stage();
    postgres.sql(SCHEMA);
    let file = postgres.socket_directory().join("dump.sql");
    run(client("pg_dump", valet.port()).arg("-f").arg(&file));
    restored(&postgres, &valet, |valet| {
        run(client("psql", valet.port())
            .args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", "restored", "-f"])
            .arg(&file));
    });
}
