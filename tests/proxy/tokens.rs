//! Passwords that a command prints, as clouds want it: fetched ahead of their end, and never told to anybody.

use std::path::Path;

use crate::support::{Auth, Postgres, Raw, Valet, eventually, no_valet};

/// A PostgreSQL that asks for a password, and pgvalet that gets it from a command which counts its runs in `home`.
fn stage(home: &Path, lifetime: &str) -> (Postgres, Valet) {
    let postgres = Postgres::start_with(Auth::Scram, &[]);
    let home = home.display();
    // Flags are public: the command names a file, no secret.
    let command = format!("echo x >> {home}/runs; test \"$PGUSER\" = postgres && cat {home}/token");
    let url = postgres.url("postgres", "postgres");
    let flags = ["--upstream", &url, "--auth", "trust", "--max-backends", "1"];
    let more = [
        "--password-command",
        &command,
        "--password-command-lifetime",
        lifetime,
    ];
    let valet = Valet::serve(&[&flags[..], &more].concat());
    (
        postgres,
        valet.unwrap_or_else(|exit| panic!("{}", exit.log)),
    )
}

fn runs(home: &Path) -> usize {
    std::fs::read_to_string(home.join("runs")).map_or(0, |text| text.lines().count())
}

fn put(home: &Path, token: &str) {
    std::fs::write(home.join("token.new"), format!("{token}\n")).expect("a file can be written");
    std::fs::rename(home.join("token.new"), home.join("token")).expect("it can be renamed");
}

/// Logs in with startup parameters that nobody else has: that takes a backend of its own. The SQLSTATE where it fails.
fn login(valet: &Valet, number: usize) -> Result<(), String> {
    let zone = format!("UTC+{}:{:02}", number % 12, number / 12 % 60);
    let mut client = Raw::dial(valet.port());
    let login = [
        ("user", "postgres"),
        ("database", "postgres"),
        ("TimeZone", &zone),
    ];
    client.send(&crate::support::messages::startup(0x0003_0000, &login));
    loop {
        let message = client.next();
        match message.tag {
            b'E' => return Err(message.sqlstate()),
            b'Z' => return Ok(()),
            _ => {}
        }
    }
}

#[test]
fn the_command_s_output_is_the_password_and_serves_until_it_is_due() {
    if no_valet() {
        return;
    }
    let home = tempfile::tempdir().expect("a directory");
    put(home.path(), "postgres");
    let (_postgres, valet) = stage(home.path(), "1h");
    for number in 0..5 {
        assert_eq!(login(&valet, number), Ok(()));
    }
    assert_eq!(runs(home.path()), 1, "once is enough for an hour");
}

#[test]
fn a_new_password_is_fetched_before_the_old_one_ends() {
    if no_valet() {
        return;
    }
    let home = tempfile::tempdir().expect("a directory");
    put(home.path(), "postgres");
    let (postgres, valet) = stage(home.path(), "1s");
    assert_eq!(login(&valet, 0), Ok(()));
    put(home.path(), "rotated-token");
    postgres.sql("ALTER ROLE postgres PASSWORD 'rotated-token'");
    let mut number = 0;
    eventually("the new password is used", || {
        number += 1;
        login(&valet, number) == Ok(())
    });
    let log = valet.log();
    assert!(
        !log.contains("rotated-token") && !log.contains("password_command"),
        "{log}"
    );
}

#[test]
fn a_password_that_postgresql_refuses_is_fetched_again_ahead_of_time() {
    if no_valet() {
        return;
    }
    let home = tempfile::tempdir().expect("a directory");
    put(home.path(), "revoked");
    let (_postgres, valet) = stage(home.path(), "1h");
    assert_eq!(login(&valet, 0), Err("28P01".to_owned()));
    put(home.path(), "postgres");
    let mut number = 0;
    eventually("the right password is used", || {
        number += 1;
        login(&valet, number) == Ok(())
    });
    assert_eq!(runs(home.path()), 2);
}

#[test]
fn a_command_that_fails_is_told_clearly_logged_once_and_tried_again() {
    if no_valet() {
        return;
    }
    let home = tempfile::tempdir().expect("a directory");
    let (_postgres, valet) = stage(home.path(), "1h");
    assert_eq!(login(&valet, 0), Err("28000".to_owned()));
    eventually("it is tried again", || runs(home.path()) > 2);
    let complaints = valet.log().matches("password_command failed").count();
    assert_eq!(complaints, 1, "{}", valet.log());
    put(home.path(), "postgres");
    let mut number = 0;
    eventually("it works", || {
        number += 1;
        login(&valet, number) == Ok(())
    });
}

#[test]
fn an_old_password_serves_to_its_end_while_the_command_fails() {
    if no_valet() {
        return;
    }
    let home = tempfile::tempdir().expect("a directory");
    put(home.path(), "postgres");
    let (_postgres, valet) = stage(home.path(), "12s");
    assert_eq!(login(&valet, 0), Ok(()));
    std::fs::remove_file(home.path().join("token")).expect("it was there");
    eventually("the command has failed", || {
        valet.log().contains("password_command failed")
    });
    // Three seconds are left, less the time that the machine took: then there is none.
    let mut number = 0;
    eventually("the old password has ended", || {
        number += 1;
        login(&valet, number) == Err("28000".to_owned())
    });
    assert!(number > 1, "it served for a while");
}
