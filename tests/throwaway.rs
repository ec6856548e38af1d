//! The throwaway PostgreSQL: it runs, stops, starts again, and leaves nothing behind.

use std::path::{Path, PathBuf};

use pgvalet::demo::postgres::{Fetch, LoginMethod, Stop, ThrowawayPostgres, Wanted};
use tokio_postgres::NoTls;

fn start(login: LoginMethod) -> ThrowawayPostgres {
    let wanted = Wanted {
        login,
        max_connections: 10,
        fetch: Fetch::IfMissing,
        ..Wanted::default()
    };
    ThrowawayPostgres::start(wanted).expect("PostgreSQL starts")
}

/// The first column of the first row, or the error's text.
fn query(url: &str, sql: &str) -> Result<String, String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let text = |error: tokio_postgres::Error| format!("{error:?}");
        let (client, connection) = tokio_postgres::connect(url, NoTls).await.map_err(text)?;
        let connection = tokio::spawn(connection);
        let row = client.query_one(sql, &[]).await.map_err(text)?;
        drop(client);
        connection.await.expect("no panic").map_err(text)?;
        Ok(row.get(0))
    })
}

fn server_pid(directory: &Path) -> PathBuf {
    let pid = std::fs::read_to_string(directory.join("data/postmaster.pid")).expect("it runs");
    Path::new("/proc").join(pid.lines().next().expect("a pid"))
}

#[test]
fn it_answers_on_tcp_and_leaves_nothing_behind() {
    let postgres = start(LoginMethod::Trust);
    let directory = postgres.socket_dir().to_owned();
    let server = server_pid(&directory);

    assert_eq!(
        query(&postgres.url(), "SHOW max_connections").as_deref(),
        Ok("10")
    );
    assert!(server.exists());
    let owner = std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(&server).expect("it runs"));
    assert_ne!(owner, 0, "never as root");

    drop(postgres);
    assert!(!server.exists() && !directory.exists());
}

#[test]
fn it_answers_on_its_unix_socket() {
    let postgres = start(LoginMethod::Trust);
    let url = format!(
        "host={} port={} user=postgres",
        postgres.socket_dir().display(),
        postgres.port()
    );
    assert_eq!(query(&url, "SELECT 'here'").as_deref(), Ok("here"));
}

#[test]
fn it_keeps_its_data_and_port_over_a_restart() {
    let mut postgres = start(LoginMethod::Trust);
    let port = postgres.port();
    query(&postgres.url(), "SELECT txid_current()::text").expect("answers");
    postgres.stop(Stop::Immediate).expect("stops");
    assert!(query(&postgres.url(), "SELECT ''").is_err());
    postgres.start_again().expect("starts");
    postgres.restart(Stop::Fast).expect("restarts");
    assert_eq!(postgres.port(), port);
    assert_eq!(
        query(&postgres.url(), "SELECT 'still there'").as_deref(),
        Ok("still there")
    );
}

#[test]
fn it_asks_for_a_password_where_that_is_wanted() {
    let postgres = start(LoginMethod::Scram("s:e/c@r et".into()));
    let refused = query(&postgres.url(), "SELECT ''").expect_err("no password");
    assert!(refused.contains("password"), "{refused}");
    let url = format!(
        "host=127.0.0.1 port={} user=postgres password='s:e/c@r et'",
        postgres.port()
    );
    assert_eq!(query(&url, "SELECT 'in'").as_deref(), Ok("in"));
}
