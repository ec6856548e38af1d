//! PostgreSQL with TLS, and the sslmode of the upstream URL.

use std::fs;
use std::path::PathBuf;

use crate::certificates::{Authority, KeyKind, Pair};
use crate::fakes::{Manners, Pretender};
use crate::secured::secure;
use crate::support::messages::{self};
use crate::support::{Postgres, Raw, Valet, eventually, no_valet};

/// Lets everybody in, encrypted or not.
const ANYHOW: &str = "host all all 127.0.0.1/32 trust";

/// A PostgreSQL that shows `pair`, with these rules for TCP. `authority` signs clients' certificates.
fn secured(rules: &str, pair: &Pair, authority: &Authority) -> Postgres {
    let postgres = Postgres::start();
    secure(&postgres, rules, pair, authority);
    postgres
}

/// A pgvalet with this upstream URL, that trusts its clients.
fn before(url: &str, flags: &[&str]) -> Valet {
    let flags = [&["--upstream", url, "--auth", "trust"], flags].concat();
    Valet::serve(&flags).unwrap_or_else(|exit| panic!("{}", exit.log))
}

/// A pgvalet whose upstream URL names `host` and ends in `parameters`; what it says of its backend, or the error.
fn encrypted(
    postgres: &Postgres,
    login: &str,
    host: &str,
    parameters: &str,
) -> Result<String, String> {
    let url = format!(
        "postgres://{login}@{host}:{}/postgres?{parameters}",
        postgres.port()
    );
    let valet = before(&url, &[]);
    let sql = "SELECT COALESCE(version, 'plain') FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
    crate::encrypted::ask(valet.port(), "sslmode=disable", sql)
}

fn stage() -> (Authority, Postgres) {
    let authority = Authority::new("root");
    let pair = authority.issue("server", "localhost", KeyKind::Ec);
    let postgres = secured(ANYHOW, &pair, &authority);
    (authority, postgres)
}

#[test]
fn each_sslmode_encrypts_as_libpq_does() {
    if no_valet() {
        return;
    }
    let (authority, postgres) = stage();
    let root = format!("sslrootcert={}", authority.root());
    for (parameters, expected) in [
        ("sslmode=disable", "plain"),
        ("sslmode=allow", "plain"),
        ("", "TLSv1.3"),
        ("sslmode=prefer", "TLSv1.3"),
        ("sslmode=require", "TLSv1.3"),
        (&format!("sslmode=require&{root}"), "TLSv1.3"),
        (&format!("sslmode=verify-ca&{root}"), "TLSv1.3"),
        (&format!("sslmode=verify-full&{root}"), "TLSv1.3"),
    ] {
        let answer = encrypted(&postgres, "postgres", "localhost", parameters);
        assert_eq!(answer.as_deref(), Ok(expected), "{parameters}");
    }
}

#[test]
fn a_postgresql_without_tls_is_spoken_with_only_where_sslmode_lets_it_be() {
    if no_valet() {
        return;
    }
    let (authority, postgres) = (Authority::new("root"), Postgres::start());
    for mode in ["disable", "allow", "prefer"] {
        let answer = encrypted(
            &postgres,
            "postgres",
            "localhost",
            &format!("sslmode={mode}"),
        );
        assert_eq!(answer.as_deref(), Ok("plain"), "{mode}");
    }
    for mode in ["require", "verify-ca", "verify-full"] {
        let parameters = format!("sslmode={mode}&sslrootcert={}", authority.root());
        let refused = encrypted(&postgres, "postgres", "localhost", &parameters).expect_err(mode);
        assert!(refused.contains("it doesn't offer TLS"), "{refused}");
    }
}

#[test]
fn a_certificate_of_another_authority_or_another_name_is_refused() {
    if no_valet() {
        return;
    }
    let (authority, postgres) = stage();
    let other = Authority::new("other");
    for mode in ["require", "verify-ca", "verify-full"] {
        let parameters = format!("sslmode={mode}&sslrootcert={}", other.root());
        let refused = encrypted(&postgres, "postgres", "localhost", &parameters).expect_err(mode);
        assert!(refused.contains("UnknownIssuer"), "{mode}: {refused}");
    }
    let named = Authority::new("named");
    let pair = named.issue_version_1("server", "elsewhere.example");
    let elsewhere = secured(ANYHOW, &pair, &named);
    let at = |postgres, authority: &Authority, mode, host| {
        let parameters = format!("sslmode={mode}&sslrootcert={}", authority.root());
        encrypted(postgres, "postgres", host, &parameters)
    };
    assert_eq!(
        at(&elsewhere, &named, "verify-ca", "localhost").as_deref(),
        Ok("TLSv1.3")
    );
    let refused = at(&elsewhere, &named, "verify-full", "localhost").expect_err("the wrong name");
    assert!(refused.contains("not valid for name"), "{refused}");
    assert_eq!(
        at(&postgres, &authority, "verify-full", "127.0.0.1").as_deref(),
        Ok("TLSv1.3")
    );
}

#[test]
fn certificates_that_openssl_makes_by_default_are_taken_as_libpq_takes_them() {
    if no_valet() {
        return;
    }
    let authority = Authority::new("root");
    let with = |pair: &Pair, root: &str| {
        let postgres = secured(ANYHOW, pair, &authority);
        let parameters = format!("sslmode=verify-full&sslrootcert={root}");
        let verified = encrypted(&postgres, "postgres", "localhost", &parameters);
        assert_eq!(verified.as_deref(), Ok("TLSv1.3"));
        postgres.sql("ALTER SYSTEM SET ssl_max_protocol_version = 'TLSv1.2'");
        postgres.sql("SELECT pg_reload_conf()");
        let older = encrypted(&postgres, "postgres", "localhost", "sslmode=require");
        assert_eq!(older.as_deref(), Ok("TLSv1.2"));
    };
    // An authority's own, which signs itself and has no alternative name; and one of version 1.
    let own = authority.self_signed("own", "localhost", KeyKind::Rsa);
    with(&own, own.cert());
    with(
        &authority.issue_version_1("old", "localhost"),
        &authority.root(),
    );
}

#[test]
fn rules_of_postgresql_that_want_it_the_other_way_are_met_where_sslmode_does_not_care() {
    if no_valet() {
        return;
    }
    let authority = Authority::new("root");
    let pair = authority.issue("server", "localhost", KeyKind::Ec);
    let with = |rules: &str, mode: &str| {
        let postgres = secured(rules, &pair, &authority);
        encrypted(
            &postgres,
            "postgres",
            "localhost",
            &format!("sslmode={mode}"),
        )
    };
    let encrypted = "hostssl all all 127.0.0.1/32 trust";
    let clear = "hostnossl all all 127.0.0.1/32 trust";
    assert_eq!(with(encrypted, "allow").as_deref(), Ok("TLSv1.3"));
    assert_eq!(with(clear, "prefer").as_deref(), Ok("plain"));
    let refused = with(encrypted, "disable").expect_err("PostgreSQL refuses");
    assert!(
        refused.contains("no pg_hba.conf entry") && refused.contains("no encryption"),
        "{refused}"
    );
    let refused = with(clear, "require").expect_err("PostgreSQL refuses");
    assert!(refused.contains("no pg_hba.conf entry"), "{refused}");
}

#[test]
fn a_client_certificate_is_shown() {
    if no_valet() {
        return;
    }
    let authority = Authority::new("root");
    let pair = authority.issue("server", "localhost", KeyKind::Ec);
    let postgres = secured("hostssl all all 127.0.0.1/32 cert", &pair, &authority);
    let own = authority.issue("client", "postgres", KeyKind::Ec);
    let parameters = format!(
        "sslmode=require&sslcert={}&sslkey={}",
        own.cert(),
        own.key()
    );
    let answer = encrypted(&postgres, "postgres", "localhost", &parameters);
    assert_eq!(answer.as_deref(), Ok("TLSv1.3"));
    let refused =
        encrypted(&postgres, "postgres", "localhost", "sslmode=require").expect_err("none");
    assert!(
        refused.contains("connection requires a valid client certificate"),
        "{refused}"
    );
}

#[test]
fn passwords_pass_by_every_method_once_it_is_encrypted() {
    if no_valet() {
        return;
    }
    let authority = Authority::new("root");
    for kind in [KeyKind::Ec, KeyKind::Rsa] {
        let pair = authority.issue("server", "localhost", kind);
        for method in ["scram-sha-256", "md5", "password"] {
            let rules = format!("hostssl all all 127.0.0.1/32 {method}");
            let postgres = secured(&rules, &pair, &authority);
            postgres.sql("ALTER ROLE postgres PASSWORD 'secret'");
            let answer = encrypted(&postgres, "postgres:secret", "localhost", "sslmode=require");
            assert_eq!(answer.as_deref(), Ok("TLSv1.3"), "{method}");
            let refused = encrypted(&postgres, "postgres:wrong", "localhost", "sslmode=require");
            assert!(
                refused
                    .expect_err(method)
                    .contains("password authentication failed")
            );
        }
    }
}

#[test]
fn the_login_is_bound_to_the_tls_connection() {
    if no_valet() {
        return;
    }
    let authority = Authority::new("root");
    let pair = authority.issue("server", "localhost", KeyKind::Ec);
    let pretender = Pretender::start(&pair, Manners::OffersBinding);
    let first = pretender.first_message_of(|url| {
        let _ = Valet::serve(&["--upstream", url, "--auth", "trust"]).map(|valet| {
            Raw::refused(valet.port(), &[("user", "postgres")]);
        });
    });
    assert!(first.starts_with("SCRAM-SHA-256-PLUS\0"), "{first}");
    assert!(first.contains("p=tls-server-end-point,,"), "{first}");
    let pretender = Pretender::start(&pair, Manners::HidesBinding);
    let first = pretender.first_message_of(|url| {
        let _ = Valet::serve(&["--upstream", url, "--auth", "trust"]).map(|valet| {
            Raw::refused(valet.port(), &[("user", "postgres")]);
        });
    });
    assert!(
        first.starts_with("SCRAM-SHA-256\0") && first.contains("y,,"),
        "{first}"
    );
}

#[test]
fn bytes_sent_in_clear_behind_the_answer_to_sslrequest_are_refused() {
    if no_valet() {
        return;
    }
    let authority = Authority::new("root");
    let pair = authority.issue("server", "localhost", KeyKind::Ec);
    let pretender = Pretender::start(&pair, Manners::TalksInClear);
    let valet = Valet::serve(&["--upstream", &pretender.url(), "--auth", "trust"]);
    let valet = valet.unwrap_or_else(|exit| panic!("{}", exit.log));
    let error = Raw::refused(valet.port(), &[("user", "postgres")]);
    assert_eq!(error.sqlstate(), "08001");
    assert!(
        error
            .field(b'M')
            .is_some_and(|text| text.contains("unencrypted bytes")),
        "{error:?}"
    );
}

#[test]
fn a_query_on_an_encrypted_backend_can_be_cancelled() {
    if no_valet() {
        return;
    }
    let (_authority, postgres) = stage();
    let url = format!("{}?sslmode=require", postgres.url("postgres", "postgres"));
    let valet = before(&url, &[]);
    let mut client = Raw::connect(valet.port());
    client.send(&messages::query("SELECT pg_sleep(60)"));
    eventually("it sleeps", || {
        postgres.sql("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'") == "1"
    });
    Raw::dial(valet.port()).send(&messages::cancel_request(client.pid, &client.key));
    let answer = client.until_ready();
    assert!(
        answer
            .iter()
            .any(|message| message.tag == b'E' && message.sqlstate() == "57014")
    );
    assert_eq!(client.value("SELECT 1"), "1");
}

#[test]
fn sessions_detach_and_move_between_encrypted_backends() {
    if no_valet() {
        return;
    }
    let (authority, postgres) = stage();
    let url = format!("{}?sslmode=require", postgres.url("postgres", "postgres"));
    let pair = authority.issue("valet", "localhost", KeyKind::Ec);
    let tls = pair.flags("require");
    let valet = before(&url, &[&["--chaos-return", "always"], &tls[..]].concat());
    let mut clients: Vec<_> = std::iter::repeat_with(|| {
        let mut client = crate::encrypted::Encrypted::dial(valet.port(), &authority.root());
        client.log_in();
        client
    })
    .take(4)
    .collect();
    for round in 0..10 {
        for (number, client) in clients.iter_mut().enumerate() {
            let name = format!("{number}-{round}");
            client.value(&format!("SELECT set_config('app.me', '{name}', false)"));
            assert_eq!(client.value("SELECT current_setting('app.me')"), name);
        }
    }
    postgres.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()");
    for client in &mut clients {
        assert_eq!(
            client.value("SELECT current_setting('app.me') LIKE '%-9'"),
            "t"
        );
    }
}

#[test]
fn a_backend_with_a_lot_to_say_is_heard_to_the_end() {
    if no_valet() {
        return;
    }
    let (_authority, postgres) = stage();
    let url = format!("{}?sslmode=require", postgres.url("postgres", "postgres"));
    let valet = before(&url, &[]);
    let rows = "COPY (SELECT repeat('x', 1000) FROM generate_series(1, 100000)) TO STDOUT";
    let out = crate::encrypted::ask(valet.port(), "sslmode=disable", rows).expect("it is copied");
    assert_eq!(out.len(), 100_000 * 1001 - 1);
    postgres.sql("CREATE TABLE t (a text)");
    let file: PathBuf = postgres.socket_directory().join("rows");
    fs::write(&file, &out).expect("a file can be written");
    let copy = format!("\\copy t from '{}'", file.display());
    crate::encrypted::ask(valet.port(), "sslmode=disable", &copy).expect("it is copied");
    assert_eq!(
        postgres.sql("SELECT count(*), sum(length(a)) FROM t"),
        "100000|100000000"
    );
}

#[test]
fn the_roots_of_the_upstream_are_read_again_when_they_change() {
    if no_valet() {
        return;
    }
    let (authority, postgres) = stage();
    let directory = tempfile::tempdir().expect("a temporary directory");
    let root = directory.path().join("root.crt");
    fs::copy(Authority::new("other").root(), &root).expect("a file can be copied");
    let parameters = format!("sslmode=verify-ca&sslrootcert={}", root.display());
    let url = format!("{}?{parameters}", postgres.url("postgres", "postgres"));
    let valet = before(&url, &[]);
    assert!(crate::encrypted::ask(valet.port(), "sslmode=disable", "SELECT 1").is_err());
    fs::copy(authority.root(), &root).expect("a file can be copied");
    eventually("the new root is trusted", || {
        crate::encrypted::ask(valet.port(), "sslmode=disable", "SELECT 1").is_ok()
    });
}
