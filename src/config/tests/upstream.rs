use super::*;

#[test]
fn urls_are_read_by_the_rules_of_libpq() {
    let short = url("postgresql://db").upstream;
    assert_eq!(
        (short.places[0].host.clone(), short.places[0].port),
        (UpstreamHost::Tcp("db".into()), 5432)
    );
    assert_eq!((short.user.as_str(), short.database.as_str()), ("me", "me"));
    let encoded =
        url("postgres://a%40b:p%2Fw%3A%25@[::1]:6000/d%20b?sslmode=prefer&application_name=x");
    assert_eq!(
        encoded.upstream.places[0].host,
        UpstreamHost::Tcp("::1".into())
    );
    assert_eq!(
        (
            encoded.upstream.user.as_str(),
            encoded.upstream.database.as_str()
        ),
        ("a@b", "d b")
    );
    assert_eq!(password(&encoded, "d b", "a@b").as_deref(), Some("p/w:%"));
    let unix = UpstreamHost::Unix("/var/run/postgresql".into());
    assert_eq!(
        url("postgres://u@%2Fvar%2Frun%2Fpostgresql/d")
            .upstream
            .places[0]
            .host,
        unix
    );
    let parameters =
        url("postgres:///d?host=/var/run/postgresql&port=5434&user=v&password=w").upstream;
    assert_eq!(
        (
            parameters.places[0].host.clone(),
            parameters.places[0].port,
            parameters.user.as_str()
        ),
        (unix, 5434, "v")
    );
    assert_eq!(url("postgres://u@h").upstream.database, "u");
}

#[test]
fn tls_is_read_by_the_rules_of_libpq_and_shown_again() {
    let tls = |query: &str| url(&format!("postgres://u@h:5432/d{query}")).upstream;
    assert_eq!(tls("").tls.mode, SslMode::Prefer);
    assert_eq!(
        tls("?sslrootcert=system").tls,
        UpstreamTls {
            mode: SslMode::VerifyFull,
            root: Some(RootSource::System),
            ..UpstreamTls::default()
        }
    );
    for query in [
        "",
        "?sslmode=disable",
        "?sslmode=require",
        "?sslmode=verify-ca&sslrootcert=%2Fa%20b.crt&sslcert=%2Fc.crt&sslkey=%2Fk.key",
    ] {
        let shown = tls(query);
        assert!(shown.to_string().ends_with(query), "{shown}");
        assert_eq!(url(&shown.to_string()).upstream.tls, shown.tls);
    }
}

#[test]
fn several_hosts_are_read_by_the_rules_of_libpq_and_shown_again() {
    let places = |text: &str| {
        let upstream = url(text).upstream;
        assert_eq!(url(&upstream.to_string()).upstream.places, upstream.places);
        let shown = upstream.places.iter().map(Place::to_string);
        shown.collect::<Vec<_>>().join(" ")
    };
    assert_eq!(
        places("postgres://u:p,q@a:1,b,[::1]:2/d"),
        "a:1 b:5432 ::1:2"
    );
    assert_eq!(places("postgres:///d?host=a,b&port=7"), "a:7 b:7");
    assert_eq!(
        places("postgres:///d?host=a,b,/run&port=7,,8"),
        "a:7 b:5432 /run/.s.PGSQL.8"
    );
    assert_eq!(places("postgres://u@a,b/d?port=7,8"), "a:7 b:8");
    for (word, target) in [
        ("read-write", Target::ReadWrite),
        ("prefer-standby", Target::PreferStandby),
    ] {
        let text =
            format!("postgres://u@a,b/d?target_session_attrs={word}&load_balance_hosts=random");
        let upstream = url(&text).upstream;
        assert_eq!(
            (upstream.target, upstream.balance),
            (target, Balance::Random)
        );
        let again = url(&upstream.to_string()).upstream;
        assert_eq!((again.target, again.balance), (target, Balance::Random));
    }
    assert_eq!(url("postgres://u@a/d").upstream.target, Target::Any);
}

#[test]
fn urls_that_are_wrong_say_why_and_never_show_the_password() {
    for (text, why) in [
        ("mysql://u:hush@h/d", "begin with postgres://"),
        ("postgres://u:hush@h:99999/d", "port"),
        ("postgres://u:hu/sh@h/d", "percent-encoded"),
        ("postgres://u:12/hush@h/d", "the database holds a bare"),
        ("postgres://u:12?hush@h/d", "the query holds a bare"),
        ("postgres://u:hush%@h/d", "write a `%` itself as %25"),
        ("postgres://u:hush%00@h/d", "NUL"),
        ("postgres://u:hush@/d", "names no host"),
        ("postgres://u:hush@a,/d", "names no host"),
        ("postgres://u:hush@a,b/d?port=1,2,3", "3 ports for 2 hosts"),
        (
            "postgres://u:hush@a/d?target_session_attrs=readwrite",
            "target_session_attrs is none of any, read-write",
        ),
        (
            "postgres://u:hush@a/d?load_balance_hosts=yes",
            "load_balance_hosts is none of disable, random",
        ),
        (
            "postgres://u:hush@h/d?sslmode=verify-full",
            "sslmode=verify-full needs sslrootcert",
        ),
        (
            "postgres://u:hush@h/d?sslmode=require&sslrootcert=system",
            "sslrootcert=system needs sslmode=verify-full",
        ),
        (
            "postgres://u:hush@h/d?sslmode=verify_full",
            "sslmode is none of disable",
        ),
        ("postgres://u:hush@h/d?sslcert=/c", "go together"),
        (
            "postgres://u:hush@h/d?sslrootcert=r.crt",
            "sslrootcert isn't an absolute path",
        ),
        (
            "postgres://u:hush@h/d?aplication_name=x",
            "unknown parameter `aplication_name`; did you mean `application_name`?",
        ),
        (
            "postgres://u:hush@h/d?connect_timeout=3",
            "use the key connect_timeout",
        ),
    ] {
        let refused = url_refused(text);
        assert!(
            refused.starts_with("flag --upstream: upstream: "),
            "{refused}"
        );
        assert!(refused.contains(why), "{text}: {refused}");
        assert!(!refused.contains("hush"), "{refused}");
    }
}

proptest! {
    #[test]
    fn any_login_survives_a_url_and_never_shows(
        user in "[^\0]{1,12}", secret in "[A-Z]{8}[^\0]{0,8}", database in "[^\0]{1,12}", port in 1u16..,
    ) {
        let encode = |text: &str| percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string();
        let text = format!("postgres://{}:{}@h:{port}/{}", encode(&user), encode(&secret), encode(&database));
        let config = url(&text);
        prop_assert_eq!(&config.upstream.user, &user);
        prop_assert_eq!(&config.upstream.database, &database);
        prop_assert_eq!(config.upstream.places[0].port, port);
        prop_assert_eq!(password(&config, &database, &user), Some(secret.clone()));
        let again = url(&config.upstream.to_string());
        prop_assert_eq!(again.upstream.user, user);
    }
}

proptest! {
    #[test]
    fn no_url_makes_the_reader_panic_or_tell_a_password(text in "postgres://[a-z]{0,3}:QQQ[ -~]{0,20}") {
        let flags = vec![("upstream".to_owned(), text)];
        if let Err(errors) = load(&Sources { flags, ..Sources::default() }) {
            prop_assert!(!errors.to_string().contains("QQQ"), "{}", errors);
        }
    }
}
