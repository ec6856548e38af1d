//! Clients with TLS, without, and with the wrong certificates.

use std::io::Write;
use std::process::Stdio;

use rustix::process::Signal;

use crate::certificates::{Authority, KeyKind, Pair, SSLMODES};
use crate::encrypted::{Encrypted, ask, encryption};
use crate::programs::psql;
use crate::support::messages::{self, SSL_REQUEST, startup};
use crate::support::{Postgres, Raw, Valet, eventually, no_valet};

/// A pgvalet whose certificate is `pair`, in front of a PostgreSQL without TLS.
pub fn stage(demand: &str, pair: &Pair, flags: &[&str]) -> (Postgres, Valet) {
    let postgres = Postgres::start();
    let tls = pair.flags(demand);
    let valet = Valet::front_with(&postgres, &[&tls, flags].concat());
    (postgres, valet)
}

#[test]
fn each_sslmode_of_libpq_works_where_tls_is_offered() {
    if no_valet() {
        return;
    }
    let authority = Authority::new("root");
    let (_postgres, valet) = stage(
        "allow",
        &authority.issue("a", "localhost", KeyKind::Ec),
        &[],
    );
    for mode in SSLMODES {
        let parameters = format!("sslmode={mode} sslrootcert={}", authority.root());
        let expected = match mode {
            "disable" | "allow" => "plain",
            _ => "TLSv1.3",
        };
        assert_eq!(
            encryption(valet.port(), &parameters).as_deref(),
            Ok(expected),
            "{mode}"
        );
    }
}

#[test]
fn where_tls_is_demanded_plain_clients_hear_it_in_the_words_of_postgresql() {
    if no_valet() {
        return;
    }
    let authority = Authority::new("root");
    let pair = authority.issue("a", "localhost", KeyKind::Rsa);
    let (_postgres, valet) = stage("require", &pair, &[]);
    let refused = encryption(valet.port(), "sslmode=disable").expect_err("refused");
    let text = "no pg_hba.conf entry for host \"127.0.0.1\", user \"postgres\", database \"postgres\", no encryption";
    assert!(refused.contains(text), "{refused}");
    let mut raw = Raw::dial(valet.port());
    raw.send(&startup(0x0003_0000, &[("user", "postgres")]));
    assert_eq!(raw.next().sqlstate(), "28000");
    // libpq tries again with TLS by itself.
    for mode in ["allow", "prefer", "require"] {
        let mode = format!("sslmode={mode}");
        assert_eq!(encryption(valet.port(), &mode).as_deref(), Ok("TLSv1.3"));
    }
}

#[test]
fn tls_1_2_works_too() {
    if no_valet() {
        return;
    }
    let authority = Authority::new("root");
    for kind in [KeyKind::Ec, KeyKind::Rsa] {
        let (_postgres, valet) = stage("require", &authority.issue("a", "localhost", kind), &[]);
        let parameters = "sslmode=require ssl_max_protocol_version=TLSv1.2";
        assert_eq!(
            encryption(valet.port(), parameters).as_deref(),
            Ok("TLSv1.2")
        );
    }
}

#[test]
fn a_client_that_trusts_another_authority_stays_away() {
    if no_valet() {
        return;
    }
    let (authority, other) = (Authority::new("root"), Authority::new("other"));
    let (_postgres, valet) = stage(
        "allow",
        &authority.issue("a", "localhost", KeyKind::Ec),
        &[],
    );
    let parameters = format!("sslmode=verify-ca sslrootcert={}", other.root());
    let refused = encryption(valet.port(), &parameters).expect_err("refused");
    assert!(refused.contains("certificate verify failed"), "{refused}");
}

#[test]
fn where_client_certificates_are_demanded_only_those_of_the_authority_get_in() {
    if no_valet() {
        return;
    }
    let (authority, other) = (Authority::new("root"), Authority::new("other"));
    let pair = authority.issue("a", "localhost", KeyKind::Ec);
    let (_postgres, valet) = stage("verify", &pair, &["--tls-client-ca", &authority.root()]);
    let with = |pair: &Pair| {
        let files = format!(
            "sslmode=require sslcert={} sslkey={}",
            pair.cert(),
            pair.key()
        );
        encryption(valet.port(), &files)
    };
    assert_eq!(
        with(&authority.issue("b", "postgres", KeyKind::Rsa)).as_deref(),
        Ok("TLSv1.3")
    );
    assert_eq!(
        with(&authority.issue_version_1("c", "postgres")).as_deref(),
        Ok("TLSv1.3")
    );
    let refused = encryption(valet.port(), "sslmode=require").expect_err("no certificate");
    assert!(
        refused.contains("connection requires a valid client certificate"),
        "{refused}"
    );
    let refused = with(&other.issue("d", "postgres", KeyKind::Ec)).expect_err("a stranger's");
    assert!(refused.contains("unknown ca"), "{refused}");
    let refused = with(&other.issue_version_1("e", "postgres")).expect_err("a stranger's");
    assert!(refused.contains("unknown ca"), "{refused}");
    let refused = encryption(valet.port(), "sslmode=disable").expect_err("plain");
    assert!(refused.contains("no encryption"), "{refused}");
}

#[test]
fn unix_sockets_need_no_encryption() {
    if no_valet() {
        return;
    }
    let authority = Authority::new("root");
    let pair = authority.issue("a", "localhost", KeyKind::Ec);
    let directory = tempfile::tempdir().expect("a temporary directory");
    let listen = format!("unix:{}", directory.path().display());
    let (_postgres, _valet) = stage("require", &pair, &["--listen", &listen]);
    let mut command = psql(6432);
    command.env("PGHOST", directory.path());
    assert_eq!(crate::programs::run(command.args(["-c", "SELECT 1"])), "1");
}

#[test]
fn bytes_sent_in_clear_behind_a_request_for_tls_are_refused() {
    if no_valet() {
        return;
    }
    let authority = Authority::new("root");
    let (_postgres, valet) = stage(
        "allow",
        &authority.issue("a", "localhost", KeyKind::Ec),
        &[],
    );
    let mut client = Raw::dial(valet.port());
    let login = startup(0x0003_0000, &[("user", "postgres")]);
    client.send(&[messages::request(SSL_REQUEST), login].concat());
    assert_eq!(client.byte(), Some(b'N'));
    assert_eq!(client.next().sqlstate(), "08P01");
    client.assert_closed();
}

#[test]
fn a_session_may_begin_with_tls_where_it_names_the_protocol() {
    if no_valet() {
        return;
    }
    let authority = Authority::new("root");
    let pair = authority.issue("a", "localhost", KeyKind::Ec);
    let (_postgres, valet) = stage("require", &pair, &[]);
    let mut client = Encrypted::direct(valet.port(), &authority.root(), &[b"postgresql"]).unwrap();
    client.log_in();
    assert_eq!(client.value("SELECT 'direct'"), "direct");

    let mut silent = Encrypted::direct(valet.port(), &authority.root(), &[]).unwrap();
    silent.send(&startup(0x0003_0000, &[("user", "postgres")]));
    let error = silent.next().expect("an error");
    assert_eq!(error.sqlstate(), "08P01", "{error:?}");
    assert!(Encrypted::direct(valet.port(), &authority.root(), &[b"http/1.1"]).is_err());
}

#[test]
fn a_second_request_for_encryption_within_tls_is_refused() {
    if no_valet() {
        return;
    }
    let authority = Authority::new("root");
    let pair = authority.issue("a", "localhost", KeyKind::Ec);
    let (_postgres, valet) = stage("require", &pair, &[]);
    let mut client = Encrypted::dial(valet.port(), &authority.root());
    client.send(&messages::request(SSL_REQUEST));
    assert_eq!(client.next().expect("an error").sqlstate(), "0A000");
}

#[test]
fn a_hundred_megabytes_pass_each_way() {
    if no_valet() {
        return;
    }
    let authority = Authority::new("root");
    let pair = authority.issue("a", "localhost", KeyKind::Ec);
    let (postgres, valet) = stage("require", &pair, &[]);
    let rows = "SELECT repeat(chr(97 + n % 26), 1000) FROM generate_series(1, 100000) n";
    let out = ask(
        valet.port(),
        "sslmode=require",
        &format!("COPY ({rows}) TO STDOUT"),
    );
    let out = out.expect("it is copied");
    assert_eq!(out.len(), 100_000 * 1001 - 1);

    postgres.sql("CREATE TABLE t (a text)");
    let mut command = psql(valet.port());
    command.args(["sslmode=require host=127.0.0.1", "-c", "COPY t FROM STDIN"]);
    let mut child = command
        .stdin(Stdio::piped())
        .spawn()
        .expect("psql can be run");
    let mut stdin = child.stdin.take().expect("it is piped");
    stdin.write_all(out.as_bytes()).expect("psql reads");
    drop(stdin);
    assert!(child.wait().expect("it is our child").success());
    let same = format!(
        "SELECT count(*) FROM (SELECT a FROM t EXCEPT ALL {rows}) s, (SELECT count(*) n FROM t) c WHERE n = 100000"
    );
    assert_eq!(postgres.sql(&same), "0");
    assert_eq!(postgres.sql("SELECT count(*) FROM t"), "100000");
}

#[test]
fn a_reader_that_pauses_gets_everything_in_the_end() {
    if no_valet() {
        return;
    }
    let authority = Authority::new("root");
    let pair = authority.issue("a", "localhost", KeyKind::Ec);
    let (postgres, valet) = stage("require", &pair, &[]);
    let mut client = Encrypted::dial(valet.port(), &authority.root());
    client.log_in();
    let rows = "SELECT repeat('x', 993) FROM generate_series(1, 30000)";
    client.send(&messages::query(rows));
    // It reads nothing until PostgreSQL itself can't write any more.
    eventually("the backend waits for its client", || {
        postgres.sql("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'ClientWrite'")
            == "1"
    });
    let (_, received) = client.until(b'Z');
    assert_eq!(received, 30_000 * (2 + 4 + 993));
    assert_eq!(client.value("SELECT 2"), "2");
}

#[test]
fn certificates_are_read_again_when_they_change_and_no_session_is_dropped() {
    if no_valet() {
        return;
    }
    let authority = Authority::new("root");
    let pair = authority.issue("a", "localhost", KeyKind::Ec);
    let next = authority.issue("b", "localhost", KeyKind::Rsa);
    let last = authority.issue("c", "localhost", KeyKind::Ec);
    let (_postgres, valet) = stage("require", &pair, &[]);
    let mut before = Encrypted::dial(valet.port(), &authority.root());
    before.log_in();

    pair.replace_with(&next);
    let replaced =
        |old: &Encrypted| Encrypted::dial(valet.port(), &authority.root()).shown() != old.shown();
    eventually("the new certificate is shown", || replaced(&before));

    pair.replace_with(&last);
    let between = Encrypted::dial(valet.port(), &authority.root());
    valet.signal(Signal::HUP);
    eventually("the last certificate is shown", || {
        replaced(&between) && replaced(&before)
    });
    assert_eq!(before.value("SELECT 'still here'"), "still here");
}

#[test]
fn certificates_that_are_broken_change_nothing() {
    if no_valet() {
        return;
    }
    let authority = Authority::new("root");
    let pair = authority.issue("a", "localhost", KeyKind::Ec);
    let (_postgres, valet) = stage("require", &pair, &[]);
    std::fs::write(&pair.cert, "no certificate").expect("a file can be written");
    eventually("it is said", || {
        valet.log().contains("the certificates stay as they were")
    });
    let mut client = Encrypted::dial(valet.port(), &authority.root());
    client.log_in();
    assert_eq!(client.value("SELECT 1"), "1");
}

#[test]
fn a_cancel_request_is_taken_in_clear_and_encrypted() {
    if no_valet() {
        return;
    }
    let authority = Authority::new("root");
    let pair = authority.issue("a", "localhost", KeyKind::Ec);
    let (postgres, valet) = stage("require", &pair, &[]);
    for encrypted in [false, true] {
        let mut client = Encrypted::dial(valet.port(), &authority.root());
        client.send(&startup(0x0003_0000, &[("user", "postgres")]));
        let (key, _) = client.until(b'K');
        client.until(b'Z');
        client.send(&messages::query("SELECT pg_sleep(60)"));
        eventually("it sleeps", || {
            postgres.sql("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'")
                == "1"
        });
        let pid = i32::from_be_bytes(key.body[..4].try_into().expect("four bytes"));
        let request = messages::cancel_request(pid, &key.body[4..]);
        if encrypted {
            Encrypted::dial(valet.port(), &authority.root()).send(&request);
        } else {
            Raw::dial(valet.port()).send(&request);
        }
        let error = std::iter::from_fn(|| client.next()).find(|message| message.tag == b'E');
        assert_eq!(error.expect("an error").sqlstate(), "57014");
    }
}

#[test]
fn files_that_are_no_certificate_are_named_at_the_start() {
    let authority = Authority::new("root");
    let (one, other) = (
        authority.issue("a", "localhost", KeyKind::Ec),
        authority.issue("b", "localhost", KeyKind::Ec),
    );
    let check = |cert: &str, key: &str| {
        let url = "postgres://u@127.0.0.1/d";
        let files = ["--tls", "require", "--tls-cert", cert, "--tls-key", key];
        let mut command = Valet::command(&[&["check", "--upstream", url], &files[..]].concat());
        command.stderr(Stdio::piped());
        crate::programs::everything(&mut command)
    };
    let (status, _, said) = check(one.cert(), other.key());
    assert_eq!(status, Some(2), "{said}");
    assert!(said.contains("not a certificate and its key"), "{said}");
    let (_, _, said) = check("/nonexistent.crt", one.key());
    assert!(said.contains("/nonexistent.crt: can't be read"), "{said}");
    let (_, _, said) = check(one.key(), one.key());
    assert!(said.contains("holds no certificate"), "{said}");
    assert_eq!(check(one.cert(), one.key()).0, Some(0));
}
