//! Who may come in, and how pgvalet itself logs in upstream.

use std::io::Write;

use tokio_postgres::{Config, NoTls};

use crate::support::messages::{frame, startup};
use crate::support::{Auth, Postgres, Raw, Valet, direct, eventually, no_valet};

/// Logs in with tokio-postgres, and runs a query; else the SQLSTATE and the message.
fn login(port: u16, user: &str, password: &str) -> Result<String, (String, String)> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let mut config = Config::new();
    config
        .host("127.0.0.1")
        .port(port)
        .user(user)
        .password(password)
        .dbname("postgres");
    runtime.block_on(async {
        let failed = |error: tokio_postgres::Error| match error.as_db_error() {
            Some(error) => (error.code().code().to_owned(), error.message().to_owned()),
            None => (String::new(), error.to_string()),
        };
        let (client, connection) = config.connect(NoTls).await.map_err(failed)?;
        tokio::spawn(connection);
        client
            .query_one("SELECT session_user::text", &[])
            .await
            .map(|row| row.get(0))
            .map_err(failed)
    })
}

/// PostgreSQL and pgvalet, both asking for passwords; pgvalet knows `password` of user postgres.
fn stage(password: &str, flags: &[&str]) -> (Postgres, Valet) {
    let postgres = Postgres::start_with(Auth::Scram, &[]);
    let upstream = postgres.url(&format!("postgres:{password}"), "postgres");
    let flags = [&["--upstream", &upstream], flags].concat();
    let valet = Valet::serve(&flags)
        .unwrap_or_else(|exit| panic!("{}", exit.log))
        .or_direct(&postgres);
    (postgres, valet)
}

#[test]
fn the_right_password_opens_the_door() {
    let (_postgres, valet) = stage("postgres", &[]);
    assert_eq!(
        login(valet.port(), "postgres", "postgres").as_deref(),
        Ok("postgres")
    );
}

#[test]
fn a_wrong_password_is_refused_in_postgresql_s_words() {
    let (_postgres, valet) = stage("postgres", &[]);
    let refused = Err((
        "28P01".to_owned(),
        "password authentication failed for user \"postgres\"".to_owned(),
    ));
    assert_eq!(login(valet.port(), "postgres", "wrong"), refused);
    assert_eq!(
        login(valet.port(), "postgres", "postgres").as_deref(),
        Ok("postgres")
    );
}

#[test]
fn an_unknown_user_is_refused_like_a_wrong_password() {
    let (_postgres, valet) = stage("postgres", &[]);
    let refused = Err((
        "28P01".to_owned(),
        "password authentication failed for user \"mallory\"".to_owned(),
    ));
    assert_eq!(login(valet.port(), "mallory", "postgres"), refused);
}

/// A login sent as far as PostgreSQL's offer of SCRAM-SHA-256.
fn asked_for_scram(port: u16, user: &str) -> Raw {
    let mut client = Raw::dial(port);
    client.send(&startup(
        0x0003_0000,
        &[("user", user), ("database", "postgres")],
    ));
    let offer = client.until(b'R');
    assert_eq!(offer.body, b"\0\0\0\x0aSCRAM-SHA-256\0\0");
    client
}

fn sasl_initial(mechanism: &str, response: &[u8]) -> Vec<u8> {
    let length = u32::try_from(response.len()).expect("short").to_be_bytes();
    frame(
        b'p',
        &[mechanism.as_bytes(), &[0], &length, response].concat(),
    )
}

#[test]
fn an_unknown_user_meets_the_same_challenge_as_a_known_one() {
    let (_postgres, valet) = stage("postgres", &[]);
    let challenge = |user: &str| {
        let mut client = asked_for_scram(valet.port(), user);
        client.send(&sasl_initial(
            "SCRAM-SHA-256",
            b"n,,n=,r=abcdefghijklmnopqrstuvwx",
        ));
        let body = String::from_utf8(client.until(b'R').body.split_off(4)).expect("text");
        let field = |name: &str| {
            body.split(',')
                .find_map(|part| part.strip_prefix(name))
                .expect("a field")
                .to_owned()
        };
        (field("r=").len(), field("s="), field("i="))
    };
    let (known, unknown) = (challenge("postgres"), challenge("mallory"));
    assert_eq!(
        (known.0, known.1.len(), known.2),
        (unknown.0, unknown.1.len(), unknown.2.clone())
    );
    assert_eq!(
        challenge("mallory").1,
        unknown.1,
        "a salt that changes gives an unknown user away"
    );
}

#[test]
fn malformed_scram_is_refused_and_the_door_stays_open() {
    let (_postgres, valet) = stage("postgres", &[]);
    let long = format!("n,,n=,r={}", "x".repeat(5000));
    let messages = [
        sasl_initial("SCRAM-SHA-512", b"n,,n=,r=abcdefghijklmnopqrstuvwx"),
        sasl_initial("SCRAM-SHA-256", b""),
        sasl_initial("SCRAM-SHA-256", b"y"),
        sasl_initial(
            "SCRAM-SHA-256",
            b"p=tls-unique,,n=,r=abcdefghijklmnopqrstuvwx",
        ),
        sasl_initial("SCRAM-SHA-256", b"n,,n=,r=\xff\xfe"),
        sasl_initial(
            "SCRAM-SHA-256",
            &long.as_bytes()[..long.len() - 3000]
                .iter()
                .map(|_| b',')
                .collect::<Vec<u8>>(),
        ),
        frame(b'p', b"SCRAM-SHA-256"),
        frame(b'p', b""),
        frame(b'Q', b"SELECT 1\0"),
        vec![b'p', 0xff, 0xff, 0xff, 0xff],
        vec![b'p', 0, 0, 0, 0],
    ];
    for message in messages {
        let mut client = asked_for_scram(valet.port(), "postgres");
        client.send(&message);
        while let Some(answer) = client.try_next() {
            assert_eq!(answer.tag, b'E', "to {message:?}: {answer:?}");
        }
    }
    assert_eq!(
        login(valet.port(), "postgres", "postgres").as_deref(),
        Ok("postgres")
    );
}

#[test]
fn a_proof_of_nothing_is_refused() {
    let (_postgres, valet) = stage("postgres", &[]);
    let mut client = asked_for_scram(valet.port(), "postgres");
    client.send(&sasl_initial(
        "SCRAM-SHA-256",
        b"n,,n=,r=abcdefghijklmnopqrstuvwx",
    ));
    let challenge = String::from_utf8(client.until(b'R').body.split_off(4)).expect("text");
    let nonce = challenge.split(',').next().expect("a nonce");
    client.send(&frame(
        b'p',
        format!("c=biws,{nonce},p={}=", "A".repeat(43)).as_bytes(),
    ));
    assert_eq!(client.until(b'E').sqlstate(), "28P01");
    client.assert_closed();
}

#[test]
fn a_login_that_postgresql_refuses_is_told_to_the_client_and_heals() {
    if no_valet() {
        return;
    }
    let (postgres, valet) = stage("outdated", &[]);
    let (sqlstate, message) =
        login(valet.port(), "postgres", "outdated").expect_err("PostgreSQL refuses");
    assert_eq!(sqlstate, "28P01", "{message}");
    postgres.sql("ALTER ROLE postgres PASSWORD 'outdated'");
    let heals = || login(valet.port(), "postgres", "outdated").is_ok();
    eventually("the next attempt finds the password right", heals);
}

#[test]
fn further_users_log_in_with_the_passwords_of_the_configuration() {
    if no_valet() {
        return;
    }
    let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
    writeln!(file, "[users.alice]\npassword = \"wonderland\"").expect("it can be written");
    let path = file.path().display().to_string();
    let (postgres, valet) = stage("postgres", &["--config", &path]);
    postgres.sql("CREATE ROLE alice LOGIN PASSWORD 'wonderland'");
    assert_eq!(
        login(valet.port(), "alice", "wonderland").as_deref(),
        Ok("alice")
    );
    assert_eq!(
        login(valet.port(), "alice", "postgres")
            .expect_err("refused")
            .0,
        "28P01"
    );
}

#[test]
fn an_upstream_that_asks_for_md5_gets_it() {
    if direct() {
        return;
    }
    let postgres = Postgres::start_with(Auth::Md5, &["password_encryption=md5"]);
    postgres.sql("ALTER ROLE postgres PASSWORD 'postgres'");
    let valet = Valet::serve(&[
        "--upstream",
        &postgres.url("postgres:postgres", "postgres"),
        "--auth",
        "trust",
    ]);
    let valet = valet.unwrap_or_else(|exit| panic!("{}", exit.log));
    assert_eq!(Raw::connect(valet.port()).value("SELECT 1"), "1");
}

#[test]
fn an_upstream_password_that_isn_t_known_is_asked_for_clearly() {
    if direct() {
        return;
    }
    let postgres = Postgres::start_with(Auth::Scram, &[]);
    let valet = Valet::front(&postgres);
    let error = Raw::refused(
        valet.port(),
        &[("user", "postgres"), ("database", "postgres")],
    );
    assert!(error.sqlstate().starts_with("28"), "{error:?}");
}

#[test]
fn trust_is_refused_on_an_address_that_others_can_reach() {
    if no_valet() {
        return;
    }
    let flags = [
        "--upstream",
        "postgres://postgres@127.0.0.1/postgres",
        "--auth",
        "trust",
        "--listen",
        "0.0.0.0:0",
    ];
    let exit = Valet::serve(&flags).err().expect("it refuses to start");
    assert!(!exit.status.success());
    assert!(
        exit.log.contains("trust") && exit.log.contains("0.0.0.0"),
        "{}",
        exit.log
    );
}

#[test]
fn no_password_is_ever_logged() {
    if no_valet() {
        return;
    }
    let (_postgres, valet) = stage("s3cret-upstream", &["--log", "trace"]);
    let _ = login(valet.port(), "postgres", "s3cret-upstream");
    let _ = login(valet.port(), "postgres", "s3cret-client");
    assert!(!valet.log().contains("s3cret"), "{}", valet.log());
}
