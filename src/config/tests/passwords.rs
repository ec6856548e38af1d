use super::*;

#[test]
fn passwords_come_from_the_url_then_users_then_the_password_file() {
    let (home, _) = File::new(
        ".pgpass",
        "*:*:*:app:never\n*:*:*:b:never\n*:5433:shop:c:from file\n",
        0o600,
    );
    let (_file, mut sources) =
        with_file("[users.b]\npassword = \"from users\"\n[users.app]\npassword = \"never\"\n");
    sources.home = Some(home.directory.path().to_owned());
    let config = loaded(&sources).config;
    assert_eq!(password(&config, "any", "app").as_deref(), Some("hush"));
    assert_eq!(password(&config, "any", "b").as_deref(), Some("from users"));
    assert_eq!(password(&config, "shop", "c").as_deref(), Some("from file"));
    assert_eq!(password(&config, "other", "c"), None);
}

#[test]
fn pgpassword_is_the_url_users_and_users_may_come_from_a_variable() {
    let mut sources = Sources {
        flags: vec![("upstream".into(), "postgres://u@h/d".into())],
        ..Sources::default()
    };
    sources.vars.insert("PGPASSWORD".into(), "pp".into());
    sources.vars.insert(
        "PGVALET_USERS".into(),
        "{ v = { password = \"vp\" } }".into(),
    );
    let config = loaded(&sources).config;
    assert_eq!(password(&config, "d", "u").as_deref(), Some("pp"));
    assert_eq!(password(&config, "d", "v").as_deref(), Some("vp"));
    sources.vars.insert("PGVALET_USERS".into(), "v:hush".into());
    let refused = refused(&sources);
    assert!(
        refused.contains("variable PGVALET_USERS: users: not an inline table")
            && !refused.contains("hush"),
        "{refused}"
    );
}

#[test]
fn a_users_table_is_checked_field_by_field() {
    let (_file, sources) = with_file("[users.b]\npasword = \"hush\"\n[users.c]\npassword = 5\n");
    let refused = refused(&sources);
    assert!(
        refused.contains("pgvalet.toml:2: unknown key `users.b.pasword`; did you mean `password`?"),
        "{refused}"
    );
    assert!(
        refused.contains("pgvalet.toml:4: users.c.password: a number isn't taken here"),
        "{refused}"
    );
    assert!(!refused.contains("hush"), "{refused}");
}

#[test]
fn a_users_secret_may_stand_in_a_file_of_its_own_or_in_postgresqls_notation() {
    let (_secret, path) = File::new("secret", "from file\n", 0o644);
    let hash = "md50123456789abcdef0123456789abcdef";
    let text = format!(
        "[users.b]\npassword_file = {path:?}\n[users.c]\npassword = \"{hash}\"\n[users.app]\npassword = \"{hash}\"\n"
    );
    let (_file, sources) = with_file(&text);
    let loaded = loaded(&sources);
    let config = &loaded.config;
    assert_eq!(password(config, "d", "b").as_deref(), Some("from file"));
    assert!(config.reads_a_file("b") && !config.reads_a_file("c"));
    assert!(matches!(config.secret_for("d", "c"), Some(Secret::Md5(_))));
    assert_eq!(password(config, "d", "app").as_deref(), Some("hush"));
    let shown = loaded.effective_toml();
    assert!(
        shown.contains(&format!("password_file = {path:?}")),
        "{shown}"
    );
    assert!(
        !shown.contains("from file") && !shown.contains(hash),
        "{shown}"
    );
}

#[test]
fn a_secret_file_has_to_be_there_and_to_be_the_only_secret() {
    let (_secret, path) = File::new("secret", "x", 0o600);
    let text = format!(
        "[users.b]\npassword_file = \"/nowhere/secret\"\n[users.c]\npassword_file = \"secret\"\n[users.d]\npassword = \"hush\"\npassword_file = {path:?}\n"
    );
    let (_file, sources) = with_file(&text);
    let refused = refused(&sources);
    for part in [
        "pgvalet.toml:2: users.b.password_file: /nowhere/secret can't be read: No such file",
        "pgvalet.toml:4: users.c.password_file: `secret` isn't an absolute path",
        "users.d.password: `password_file` is given, too",
    ] {
        assert!(refused.contains(part), "{refused}");
    }
    assert!(!refused.contains("hush"), "{refused}");
}

#[test]
fn a_password_file_that_others_can_read_is_ignored_with_a_warning() {
    let (_file, path) = File::new("pw", "*:*:*:*:x\n", 0o640);
    let mut sources = with_variable("PGPASSFILE", path.to_str().expect("UTF-8"));
    sources.flags[0].1 = "postgres://u@h/d".into();
    let loaded = loaded(&sources);
    assert_eq!(password(&loaded.config, "d", "u"), None);
    assert!(
        loaded.warnings[0]
            .to_string()
            .contains("is ignored: others can read it (mode 0640)")
    );
}

#[test]
fn a_configuration_file_with_passwords_that_others_can_read_is_warned_about() {
    let (_file, path) = File::new("open.toml", &format!("upstream = \"{UPSTREAM}\"\n"), 0o644);
    let warnings = loaded(&Sources {
        file: Some(path),
        ..Sources::default()
    })
    .warnings;
    assert!(warnings[0].to_string().contains("it holds passwords"));
}

#[test]
fn password_files_are_read_by_the_rules_of_libpq() {
    let text = "# comment\nbad line\nh\\:1:*:d\\\\b:*:a\\:b\\\\c:ignored\n\\*:*:*:*:star\nlocalhost:*:*:*:local\n";
    let pgpass = Pgpass::parse(text);
    let at = |host: UpstreamHost, database: &str| {
        let upstream = Upstream {
            places: vec![Place { host, port: 1 }],
            target: Target::Any,
            balance: Balance::Disable,
            database: String::new(),
            user: String::new(),
            password: None,
            tls: UpstreamTls::default(),
        };
        pgpass
            .password(&upstream, database, "u")
            .map(|password| password.expose_secret().to_owned())
    };
    assert_eq!(
        at(UpstreamHost::Tcp("h:1".into()), "d\\b").as_deref(),
        Some("a:b\\c")
    );
    assert_eq!(
        at(UpstreamHost::Tcp("*".into()), "x").as_deref(),
        Some("star")
    );
    assert_eq!(at(UpstreamHost::Tcp("other".into()), "x"), None);
    assert_eq!(
        at(UpstreamHost::Unix("/var/run/postgresql".into()), "x").as_deref(),
        Some("local")
    );
}

#[test]
fn secrets_never_show_in_debug() {
    let (_file, sources) = with_file("[users.b]\npassword = \"hush\"\n");
    let shown = format!("{:?}", loaded(&sources));
    assert!(!shown.contains("hush"), "{shown}");
}

proptest! {
    #[test]
    fn any_password_survives_a_password_file(secret in "[^\0\r\n]{1,16}", user in "[^\0\r\n]{1,8}") {
        let escape = |text: &str| text.replace('\\', "\\\\").replace(':', "\\:");
        let user_field = if user == "*" { "\\*".to_owned() } else { escape(&user) };
        let pgpass = Pgpass::parse(&format!("h:1:d:{user_field}:{}\n", escape(&secret)));
        let upstream = Upstream {
            places: vec![Place { host: UpstreamHost::Tcp("h".into()), port: 1 }],
            target: Target::Any, balance: Balance::Disable, database: "d".into(), user: user.clone(), password: None,
            tls: UpstreamTls::default(),
        };
        let found = pgpass.password(&upstream, "d", &user).map(|password| password.expose_secret().to_owned());
        prop_assert_eq!(found, Some(secret));
    }
}

#[test]
fn users_have_commands_of_their_own_with_lifetimes() {
    let (_file, mut sources) = with_file(
        "password_command_lifetime = \"9m\"\n\
         [users.b]\npassword_command = \"b's\"\npassword = \"hush\"\n\
         [users.c]\npassword_command = \"c's\"\npassword_command_lifetime = \"1m 30s\"\n",
    );
    let loaded_so = loaded(&sources);
    let minutes = |number: u64| Duration::from_secs(60 * number);
    let commands: Vec<_> = loaded_so.config.password_commands().collect();
    assert_eq!(
        commands,
        [
            ("b", "b's", minutes(9)),
            ("c", "c's", minutes(1) + minutes(1) / 2)
        ]
    );
    let shown = loaded_so.effective_toml();
    let of_c = "[users.c]\npassword_command = \"c's\"\npassword_command_lifetime = \"1m 30s\"";
    assert!(shown.contains(of_c) && !shown.contains("hush"), "{shown}");

    // The URL's user is one like the others, unless a password for it is there already.
    sources.vars.insert(
        "PGVALET_USERS".into(),
        "{ app = { password_command = \"x\" } }".into(),
    );
    let twice = refused(&sources);
    assert!(
        twice.contains("users: a `password_command` for the user of `upstream`"),
        "{twice}"
    );
    sources.flags = vec![("upstream".into(), "postgres://app@h/d".into())];
    sources.vars.insert("PGPASSWORD".into(), "not this".into());
    let config = loaded(&sources).config;
    assert_eq!(
        config.password_commands().next(),
        Some(("app", "x", minutes(9)))
    );
    assert!(config.upstream.password.is_none());
}

#[test]
fn a_command_of_a_user_s_is_checked_like_the_general_one() {
    let (_file, sources) = with_file(
        "[users.b]\npassword_command = 5\n[users.c]\npassword_command_lifetime = \"0s\"\n",
    );
    let refused = refused(&sources);
    for place in [
        ":2: users.b.password_command: ",
        ":4: users.c.password_command_lifetime: ",
    ] {
        assert!(refused.contains(place), "{refused}");
    }
}
