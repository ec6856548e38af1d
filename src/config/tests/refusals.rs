use super::*;

#[test]
fn an_unknown_key_is_refused_with_its_line_and_the_nearest_key() {
    let (_file, sources) = with_file("threads = 1\n\npark_afer = \"1s\"\n");
    let refused = refused(&sources);
    assert!(
        refused.ends_with("pgvalet.toml:3: unknown key `park_afer`; did you mean `park_after`?"),
        "{refused}"
    );
}

#[test]
fn an_unknown_key_that_resembles_none_is_refused_with_all_public_keys() {
    let (_file, sources) = with_file("zzz = 1\n");
    let refused = refused(&sources);
    assert!(
        refused.contains("unknown key `zzz`; known are: upstream, password_command, "),
        "{refused}"
    );
    assert!(!refused.contains("chaos"), "{refused}");
}

#[test]
fn an_unknown_variable_is_refused_with_the_nearest_one() {
    let refused = refused(&with_variable("PGVALET_MAX_BACKEND", "3"));
    assert_eq!(
        refused,
        "variable PGVALET_MAX_BACKEND: unknown variable `PGVALET_MAX_BACKEND`; did you mean `PGVALET_MAX_BACKENDS`?"
    );
}

#[test]
fn variables_of_client_commands_and_of_kubernetes_services_are_left_alone() {
    let mut sources = sources();
    for (name, value) in [
        ("PGVALET_ADMIN_URL", "http://127.0.0.1:6433"),
        ("PGVALET_ADMIN_CA", "/etc/pgvalet/ca.pem"),
        ("PGVALET_PG_BIN", "/opt/bin"),
        ("PGVALET_SERVICE_HOST", "10.0.0.1"),
        ("PGVALET_SERVICE_PORT_METRICS", "9127"),
        ("PGVALET_PORT", "tcp://10.0.0.1:6432"),
        ("PGVALET_PORT_6432_TCP_ADDR", "10.0.0.1"),
        ("PGVALET_METRICS_PORT_9127_TCP", "tcp://10.0.0.1:9127"),
    ] {
        sources.vars.insert(name.into(), value.into());
    }
    assert!(loaded(&sources).origins.keys().eq(["upstream"].iter()));
}

#[test]
fn every_error_is_told_at_once_with_place_key_and_what_is_allowed() {
    let (_file, mut sources) = with_file("park_after = 5\nauth = \"scam\"\nmode = true\n");
    sources.vars.insert("PGVALET_THREADS".into(), "0".into());
    sources.flags.push(("drain_timeout".into(), "soon".into()));

    let refused = refused(&sources);

    let has = |part: &str| assert!(refused.contains(part), "{part} isn't in: {refused}");
    has(
        "pgvalet.toml:1: park_after: `5` has no unit; did you mean \"5s\"?; allowed: a duration such as \"500ms\"",
    );
    has(
        "pgvalet.toml:2: auth: `scam` isn't one of them (did you mean \"scram\"?); allowed: \"scram\" or \"trust\"",
    );
    has("pgvalet.toml:3: mode: a boolean isn't taken here");
    has(
        "variable PGVALET_THREADS: threads: 0 is out of range; allowed: a whole number from 1 to 256",
    );
    has("flag --drain-timeout: drain_timeout: `soon` isn't a duration; allowed:");
    assert_eq!(refused.lines().count(), 5, "{refused}");
}

#[test]
fn addresses_that_are_none_are_refused_with_the_reason() {
    for (text, why) in [
        ("db.example:6432", "the host is no IP address"),
        ("127.0.0.1", "the port is missing"),
        ("127.0.0.1:65536", "the port isn't a number"),
        ("::1:6432", "in brackets"),
        ("/run/pgvalet", "unix:/path"),
        ("unix:run", "isn't absolute"),
        (
            "postgres://u:hush@h/d",
            "`postgres://...` isn't an address: write it without a scheme",
        ),
    ] {
        let refused = refused(&with_flag("listen", text));
        assert!(refused.contains(why), "{text}: {refused}");
        assert!(!refused.contains("hush"), "{refused}");
    }
}

#[test]
fn trust_is_allowed_on_loopback_and_unix_listeners_only() {
    let trust = |listen: &str| {
        let mut sources = with_flag("listen", listen);
        sources.flags.push(("auth".into(), "trust".into()));
        load(&sources).map_err(|errors| errors.to_string())
    };
    assert!(trust("127.0.0.1:6432,[::1]:6432,unix:/tmp,[::ffff:127.0.0.1]:7").is_ok());
    let refused = trust("127.0.0.1:6432,0.0.0.0:6432").expect_err("refused");
    assert!(
        refused
            .starts_with("flag --auth: auth: \"trust\" would let anyone who reaches 0.0.0.0:6432"),
        "{refused}"
    );
}

#[test]
fn the_admin_listener_must_not_be_reachable_from_elsewhere() {
    let open = with_variable("PGVALET_ADMIN", "0.0.0.0:6433");
    assert!(refused(&open).contains("asks nobody for a proof"));
    let (_file, mut guarded) = with_file("admin = \"0.0.0.0:6433\"\n");
    let token = "a-token-of-some-length";
    guarded
        .vars
        .insert("PGVALET_ADMIN_READONLY_TOKEN".into(), token.into());
    let loaded = loaded(&guarded);
    assert!(!loaded.effective_toml().contains(token));
    assert!(
        loaded
            .effective_toml()
            .contains("admin_readonly_token = \"***\"")
    );
    assert_eq!(loaded.warnings.len(), 1, "{:?}", loaded.warnings);
    assert!(load(&with_flag("admin", "unix:/run/pgvalet/admin.sock")).is_ok());
    assert!(load(&with_flag("metrics", "0.0.0.0:9127")).is_ok());
}

#[test]
fn a_token_that_is_none_is_refused_and_not_quoted() {
    for token in [
        "short",
        "with blanks in its midst",
        "\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}",
    ] {
        let refused = refused(&with_variable("PGVALET_ADMIN_TOKEN", token));
        assert!(refused.contains("that is no token"), "{refused}");
        assert!(!refused.contains(token), "{refused}");
    }
    assert!(refused(&with_flag("admin_tls_cert", "/a.pem")).contains("`admin_tls_key`"));
    assert!(refused(&with_flag("admin_tls_client_ca", "/a.pem")).contains("`admin_tls_cert`"));
    assert!(refused(&with_flag("admin_tls_operators", "me")).contains("admin_tls_client_ca"));
}

#[test]
fn listeners_that_collide_and_an_upstream_that_is_ourselves_are_refused() {
    assert!(refused(&with_flag("metrics", "127.0.0.1:6433")).contains("taken already by `admin`"));
    assert!(load(&with_flag("listen", "127.0.0.1:0,127.0.0.1:0")).is_ok());
    assert!(url_refused("postgres://u@localhost:6432/d").contains("own `listen` address"));
    assert!(url_refused("postgres://u@127.0.0.1:6432/d").contains("own `listen` address"));
    assert!(url_refused("postgres://u@db,127.0.0.1:6432/d").contains("own `listen` address"));
    assert_eq!(
        url("postgres://u@127.0.0.2:6432/d").upstream.places[0].port,
        6432
    );
}

#[test]
fn sockets_are_described_in_the_system_s_own_words() {
    let config = loaded(&with_flag("unix_socket_mode", "0770")).config;
    assert_eq!(config.unix_socket_mode, 0o770);
    for bad in ["rwx", "0778", "7", "1777", "00770"] {
        let text = refused(&with_flag("unix_socket_mode", bad));
        assert!(text.contains("octal digits such as \"0770\""), "{text}");
    }
    let group = |text: &str| {
        loaded(&with_flag("unix_socket_group", text))
            .config
            .unix_socket_group
    };
    assert_eq!(group("root").map(|group| group.id), Some(0));
    assert_eq!(group("4711").map(|group| group.id), Some(4711));
    assert!(refused(&with_flag("unix_socket_group", "no such group")).contains("isn't a group"));
}

#[test]
fn a_load_balancer_s_word_counts_only_where_it_is_trusted() {
    let mut sources = with_flag("proxy_protocol", "require");
    assert!(refused(&sources).contains("needs proxy_protocol_from"));
    let trusted = ("proxy_protocol_from".into(), "10.0.0.0/8, ::1".into());
    sources.flags.push(trusted);
    assert_eq!(loaded(&sources).config.proxy_protocol_from.len(), 2);
    assert!(
        refused(&with_flag("proxy_protocol_from", "10.0.0.0/33"))
            .contains("isn't an address or a network")
    );
}

#[test]
fn threads_must_not_outnumber_backends() {
    let mut sources = with_flag("threads", "5");
    sources.flags.push(("max_backends".into(), "4".into()));
    assert!(refused(&sources).contains("5 threads can't share 4 backends"));
}

#[test]
fn a_shared_listener_leaves_a_backend_to_each_thread() {
    let mut sources = with_flag("listening", "share");
    sources.flags.push(("max_backends".into(), "3".into()));
    assert!(load(&sources).is_ok());
    sources.flags.push(("threads".into(), "2".into()));
    assert!(refused(&sources).contains("at least two backends a thread"));
}

#[test]
fn patterns_and_log_filters_are_checked() {
    assert_eq!(
        loaded(&with_variable("PGVALET_PRESERVE_SETTINGS", "App.*, x.y"))
            .config
            .preserve_settings,
        ["app.*", "x.y"]
    );
    assert!(
        refused(&with_flag("preserve_settings", "search_path"))
            .contains("isn't the name of a custom setting")
    );
    assert!(load(&with_flag("log", "info,pgvalet::session=debug")).is_ok());
    assert!(refused(&with_flag("log", "inof")).contains("isn't a log filter"));
}

#[test]
fn a_file_that_is_missing_or_not_toml_is_named_without_quoting_it() {
    let missing = Sources {
        file: Some("/nonexistent/pgvalet.toml".into()),
        ..Sources::default()
    };
    let refused_missing = refused(&missing);
    assert!(
        refused_missing.starts_with("/nonexistent/pgvalet.toml: can't be read"),
        "{refused_missing}"
    );
    assert_eq!(
        refused_missing.lines().count(),
        1,
        "one error a cause: {refused_missing}"
    );
    let (_file, sources) = with_file("threads = 1\nupstream = \"postgres://u:hush@h/d\nlog = 1");
    let refused = refused(&sources);
    assert!(
        refused.contains("pgvalet.toml:2: not valid TOML"),
        "{refused}"
    );
    assert!(!refused.contains("hush"), "{refused}");
}

#[test]
fn tls_for_clients_needs_its_files() {
    let with = |flags: &[(&str, &str)]| {
        let mut sources = sources();
        let flags = flags.iter();
        sources
            .flags
            .extend(flags.map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        load(&sources).map_err(|errors| errors.to_string())
    };
    let refused = with(&[("tls", "require")]).expect_err("refused");
    assert!(
        refused.contains("\"require\" needs `tls_cert`"),
        "{refused}"
    );
    let files = [("tls_cert", "/c"), ("tls_key", "/k")];
    assert!(with(&[&[("tls", "allow")], &files[..]].concat()).is_ok());
    let refused = with(&[&[("tls", "verify")], &files[..]].concat()).expect_err("refused");
    assert!(refused.contains("needs `tls_client_ca`"), "{refused}");
    let refused = with(&[("tls_cert", "server.crt")]).expect_err("refused");
    assert!(refused.contains("isn't an absolute path"), "{refused}");
}
