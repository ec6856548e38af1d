use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use proptest::prelude::*;
use secrecy::ExposeSecret;

use super::*;

mod logins;
mod passwords;
mod refusals;
mod upstream;

const UPSTREAM: &str = "postgres://app:hush@db.example:5433/shop";

/// Sources with `UPSTREAM` as a flag.
fn sources() -> Sources {
    Sources {
        flags: vec![("upstream".into(), UPSTREAM.into())],
        os_user: Some("me".into()),
        ..Sources::default()
    }
}

fn with_flag(name: &str, value: &str) -> Sources {
    let mut sources = sources();
    sources.flags.push((name.into(), value.into()));
    sources
}

fn with_variable(name: &str, value: &str) -> Sources {
    let mut sources = sources();
    sources.vars.insert(name.into(), value.into());
    sources
}

/// A file that goes when its directory does.
struct File {
    directory: tempfile::TempDir,
}

impl File {
    fn new(name: &str, text: &str, mode: u32) -> (Self, PathBuf) {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join(name);
        fs::write(&path, text).expect("write");
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("permissions");
        (Self { directory }, path)
    }
}

fn with_file(text: &str) -> (File, Sources) {
    let (file, path) = File::new("pgvalet.toml", text, 0o600);
    (
        file,
        Sources {
            file: Some(path),
            ..sources()
        },
    )
}

fn loaded(sources: &Sources) -> Loaded {
    load(sources).unwrap_or_else(|errors| panic!("not loaded: {errors}"))
}

fn refused(sources: &Sources) -> String {
    match load(sources) {
        Ok(loaded) => panic!("loaded: {:?}", loaded.config),
        Err(errors) => errors.to_string(),
    }
}

fn url(text: &str) -> Config {
    let flags = vec![("upstream".to_owned(), text.to_owned())];
    loaded(&Sources { flags, ..sources() }).config
}

fn url_refused(text: &str) -> String {
    refused(&Sources {
        flags: vec![("upstream".to_owned(), text.to_owned())],
        ..sources()
    })
}

fn password(config: &Config, database: &str, user: &str) -> Option<String> {
    match config.secret_for(database, user)? {
        Secret::Password(password) => Some(password.expose_secret().to_owned()),
        secret => panic!("not a password: {secret:?}"),
    }
}

#[test]
fn defaults_are_those_of_the_contract() {
    let effective = loaded(&sources()).config.effective_toml();
    let expected = r#"upstream = "postgres://app:***@db.example:5433/shop"
password_command_lifetime = "15m"
listen = "127.0.0.1:6432"
admin = "127.0.0.1:6433"
admin_tls_operators = []
admin_users = []
stats_users = []
metrics = "127.0.0.1:9127"
auth = "scram"
auth_query_cache = "10s"
tls = "disable"
mode = "session"
max_backends = 20
max_replication = 10
max_sessions = 10000
acquire_timeout = "30s"
connect_timeout = "5s"
park_after = "5s"
return_after = "0s"
return_method = "detach"
backend_lifetime = "1h"
backend_idle_timeout = "10m"
login_timeout = "1m"
drain_timeout = "30s"
tcp_user_timeout = "30s"
tcp_keepalive_idle = "1m"
tcp_keepalive_interval = "10s"
tcp_keepalive_count = 0
unix_socket_mode = "0777"
proxy_protocol = "disable"
proxy_protocol_from = []
threads = 1
fleet = "off"
preserve_settings = []
listening = "pin"
log = "info"
log_format = "text"
"#;
    assert_eq!(effective, expected);
}

#[test]
fn an_instance_has_a_name_that_people_can_read() {
    let (_file, sources) = with_file("instance = \"web-1\"\n");
    assert_eq!(loaded(&sources).config.instance(), "web-1");
    let unnamed = loaded(&self::sources()).config.instance();
    assert!(!unnamed.is_empty(), "the host has a name");
    for wrong in [String::new(), "x".repeat(64), "a\\u0007b".to_owned()] {
        let (_file, sources) = with_file(&format!("instance = \"{wrong}\"\n"));
        assert!(load(&sources).is_err(), "{wrong}");
    }
}

#[test]
fn flags_win_over_variables_and_variables_over_the_file() {
    let (_file, mut sources) = with_file("park_after = \"1s\"\nthreads = 2\nmax_backends = 7\n");
    sources
        .vars
        .insert("PGVALET_PARK_AFTER".into(), "2s".into());
    sources.vars.insert("PGVALET_THREADS".into(), "3".into());
    sources.flags.push(("park_after".into(), "3s".into()));

    let loaded = loaded(&sources);

    assert_eq!(loaded.config.park_after, Duration::from_secs(3));
    assert_eq!(loaded.config.threads, 3);
    assert_eq!(loaded.config.max_backends, 7);
    assert_eq!(
        loaded.origins["park_after"],
        Origin::Flag("park-after".into())
    );
    assert!(
        loaded
            .effective_toml()
            .contains("threads = 3  # variable PGVALET_THREADS\n")
    );
    assert!(
        loaded.effective_toml().contains("pgvalet.toml:3\n"),
        "{}",
        loaded.effective_toml()
    );
}

#[test]
fn the_file_may_come_from_its_variable_and_an_empty_variable_counts_as_unset() {
    let (_file, path) = File::new("a.toml", "threads = 4\n", 0o600);
    let mut sources = with_variable("PGVALET_CONFIG", path.to_str().expect("UTF-8"));
    sources.vars.insert("PGVALET_THREADS".into(), String::new());
    assert_eq!(loaded(&sources).config.threads, 4);
}

#[test]
fn durations_are_read_in_all_their_forms() {
    let read = |text: &str| {
        loaded(&with_flag("acquire_timeout", text))
            .config
            .acquire_timeout
    };
    assert_eq!(read("500ms"), Duration::from_millis(500));
    assert_eq!(read("1h 30m"), Duration::from_secs(5400));
    assert_eq!(read("0s"), Duration::ZERO);
    assert_eq!(read("0"), Duration::ZERO);
    let (_file, sources) = with_file("acquire_timeout = 0\n");
    assert_eq!(loaded(&sources).config.acquire_timeout, Duration::ZERO);
    assert!(refused(&with_flag("acquire_timeout", "10y")).contains("too long"));
    assert!(refused(&with_flag("park_after", "0s")).contains("zero isn't taken here"));
}

#[test]
fn listeners_are_read_as_a_string_an_array_and_repeated_flags() {
    let texts = |config: &Config| {
        config
            .listen
            .iter()
            .map(Address::to_string)
            .collect::<Vec<_>>()
    };
    let (_file, from_file) = with_file("listen = [\"127.0.0.1:7000\", \"unix:/run/pgvalet\"]\n");
    assert_eq!(
        texts(&loaded(&from_file).config),
        ["127.0.0.1:7000", "unix:/run/pgvalet"]
    );
    let mut from_flags = with_flag("listen", "*:7001");
    from_flags
        .flags
        .push(("listen".into(), "[::1]:7001".into()));
    assert_eq!(
        texts(&loaded(&from_flags).config),
        ["0.0.0.0:7001", "[::1]:7001"]
    );
    let from_variable = with_variable("PGVALET_LISTEN", "localhost:7002, unix:/tmp/x");
    assert_eq!(
        texts(&loaded(&from_variable).config),
        ["127.0.0.1:7002", "unix:/tmp/x"]
    );
}

#[test]
fn the_hidden_key_is_taken_and_shown_only_when_set() {
    let loaded = loaded(&with_flag("chaos_return", "always"));
    assert_eq!(loaded.config.chaos_return, ChaosReturn::Always);
    assert!(
        loaded
            .effective_toml()
            .contains("chaos_return = \"always\"")
    );
}

#[test]
fn the_effective_configuration_loads_as_itself() {
    let (_file, sources) = with_file(
        "listen = [\"127.0.0.1:1\", \"unix:/x\"]\nchaos_return = \"always\"\n[users.\"o'neil b\"]\npassword = \"p\"\n",
    );
    let effective = loaded(&sources).config.effective_toml();
    let (_file, path) = File::new("again.toml", &effective, 0o600);
    let again = loaded(&Sources {
        file: Some(path),
        ..Sources::default()
    });
    assert_eq!(again.config.effective_toml(), effective);
}

#[test]
fn an_upstream_is_required_and_its_absence_says_how_to_give_it() {
    let refused = refused(&Sources::default());
    assert!(
        refused.contains("--upstream, PGVALET_UPSTREAM or `upstream` in the file"),
        "{refused}"
    );
}

#[test]
fn the_reference_documents_every_key() {
    let documented = include_str!("../../docs/configuration.md");
    for row in reference().lines() {
        assert!(
            documented.contains(row),
            "docs/configuration.md lacks: {row}"
        );
    }
    for key in KEYS
        .iter()
        .filter(|key| key.visibility == Visibility::Hidden)
    {
        assert!(!documented.contains(key.name));
        assert!(
            include_str!("../../docs/testing.md").contains(key.name),
            "docs/testing.md lacks {}",
            key.name
        );
    }
}

proptest! {
    #[test]
    fn any_duration_survives_being_shown(millis in 1u64..30_000_000_000) {
        let shown = humantime::format_duration(Duration::from_millis(millis)).to_string();
        prop_assert_eq!(loaded(&with_flag("park_after", &shown)).config.park_after, Duration::from_millis(millis));
    }
}

#[test]
fn rules_are_read_and_shown() {
    let text = "[[rules]]\nname = \"few\"\nowner = \"import*\"\npark_after = \"1s\"\nmax_leases = 3\nforbid_implicit = true\n\
                [[rules]]\nuser = \"app\"\nreturn_method = \"close\"\nidle_in_transaction = \"close\"\n";
    let (_file, sources) = with_file(text);
    let config = load(&sources).expect("good rules").config;
    assert_eq!(config.rules.len(), 2);
    assert_eq!(
        (&*config.rules[0].name, config.rules[0].max_leases),
        ("few", Some(3))
    );
    assert_eq!(&*config.rules[1].name, "rule 2");
    let shown = config.effective_toml();
    let (_file, again) = with_file(&shown[shown.find("[[rules]]").expect("rules")..]);
    assert_eq!(
        load(&again).expect("its own output").config.rules,
        config.rules
    );
}

#[test]
fn rules_come_from_a_variable_too() {
    let sources = with_variable("PGVALET_RULES", "[{ owner = \"a\", max_leases = 0 }]");
    assert_eq!(
        load(&sources).expect("good rules").config.rules[0].max_leases,
        Some(0)
    );
    assert!(load(&with_variable("PGVALET_RULES", "7")).is_err());
}

#[test]
fn what_is_wrong_in_a_rule_is_told_with_its_line() {
    for (rule, told) in [
        ("max_lease = 1", "did you mean `max_leases`?"),
        ("max_leases = -1", "rules.max_leases: -1 is out of range"),
        (
            "park_after = \"0s\"",
            "rules.park_after: zero isn't taken here",
        ),
        (
            "forbid_implicit = \"yes\"",
            "rules.forbid_implicit: a string isn't taken here",
        ),
        ("owner = 7", "rules.owner: a number isn't taken here"),
    ] {
        let (_file, sources) = with_file(&format!("[[rules]]\n{rule}\n"));
        let errors = load(&sources).expect_err(rule).to_string();
        assert!(
            errors.contains(told) && errors.contains("toml:2"),
            "{errors}"
        );
    }
}
