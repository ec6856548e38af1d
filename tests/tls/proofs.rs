//! Logins that are bound to their TLS connection (SCRAM-SHA-256-PLUS).

use crate::certificates::{Authority, KeyKind, Pair};
use crate::encrypted::{Encrypted, ask};
use crate::support::messages::{frame, startup};
use crate::support::{Message, Postgres, Valet, no_valet};

/// A pgvalet that asks clients for the password "secret".
fn stage(pair: &Pair) -> (Postgres, Valet) {
    let postgres = Postgres::start();
    let url = postgres.url("postgres:secret", "postgres");
    let tls = pair.flags("allow");
    let flags = [&["--upstream", &url, "--auth", "scram"], &tls[..]].concat();
    let valet = Valet::serve(&flags).unwrap_or_else(|exit| panic!("{}", exit.log));
    (postgres, valet)
}

#[test]
fn channel_binding_may_be_required() {
    if no_valet() {
        return;
    }
    let authority = Authority::new("root");
    for kind in [KeyKind::Ec, KeyKind::Rsa] {
        let (_postgres, valet) = stage(&authority.issue("a", "localhost", kind));
        for version in ["TLSv1.2", "TLSv1.3"] {
            let with = |password: &str, more: &str| {
                let parameters =
                    format!("password={password} ssl_max_protocol_version={version} {more}");
                ask(valet.port(), &parameters, "SELECT 'in'")
            };
            assert_eq!(
                with("secret", "sslmode=require channel_binding=require").as_deref(),
                Ok("in")
            );
            assert_eq!(
                with("secret", "sslmode=require channel_binding=disable").as_deref(),
                Ok("in")
            );
            let wrong =
                with("wrong", "sslmode=require channel_binding=require").expect_err("wrong");
            assert!(wrong.contains("password authentication failed"), "{wrong}");
            assert!(with("secret", "sslmode=disable channel_binding=require").is_err());
            assert_eq!(with("secret", "sslmode=disable").as_deref(), Ok("in"));
        }
    }
}

#[test]
fn a_certificate_that_names_no_hash_is_not_bound_to() {
    if no_valet() {
        return;
    }
    let authority = Authority::new("root");
    let (_postgres, valet) = stage(&authority.self_signed("a", "localhost", KeyKind::Ed25519));
    let parameters = "password=secret sslmode=require";
    assert_eq!(
        ask(valet.port(), parameters, "SELECT 'in'").as_deref(),
        Ok("in")
    );
}

/// Sends a first message with this mechanism and channel binding flag; what comes back.
fn begin(valet: &Valet, root: &str, mechanism: &str, flag: &str) -> Message {
    let mut client = Encrypted::dial(valet.port(), root);
    client.send(&startup(0x0003_0000, &[("user", "postgres")]));
    let (offer, _) = client.until(b'R');
    assert_eq!(&offer.body[4..], b"SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0");
    let message = format!("{flag},,n=,r=nonce");
    let length = u32::try_from(message.len()).expect("short").to_be_bytes();
    let body = [mechanism.as_bytes(), b"\0", &length, message.as_bytes()].concat();
    client.send(&frame(b'p', &body));
    client.next().expect("an answer")
}

#[test]
fn a_client_from_which_somebody_kept_the_binding_is_told() {
    if no_valet() {
        return;
    }
    let authority = Authority::new("root");
    let (_postgres, valet) = stage(&authority.issue("a", "localhost", KeyKind::Ec));
    let begin = |mechanism, flag| begin(&valet, &authority.root(), mechanism, flag);
    let error = begin("SCRAM-SHA-256", "y");
    assert_eq!(
        (error.tag, error.sqlstate().as_str()),
        (b'E', "28000"),
        "{error:?}"
    );
    for (mechanism, flag) in [
        ("SCRAM-SHA-256", "p=tls-server-end-point"),
        ("SCRAM-SHA-256-PLUS", "n"),
        ("SCRAM-SHA-256-PLUS", "p=tls-unique"),
        ("SCRAM-SHA-1", "n"),
    ] {
        let error = begin(mechanism, flag);
        assert_eq!(
            (error.tag, error.sqlstate().as_str()),
            (b'E', "08P01"),
            "{error:?}"
        );
    }
    assert_eq!(begin("SCRAM-SHA-256", "n").tag, b'R');
    assert_eq!(
        begin("SCRAM-SHA-256-PLUS", "p=tls-server-end-point").tag,
        b'R'
    );
}
