use super::*;

const FILES: &str =
    "tls = \"allow\"\ntls_cert = \"/c\"\ntls_key = \"/k\"\ntls_client_ca = \"/a\"\n";

fn with_rules(text: &str) -> String {
    let (_file, sources) = with_file(text);
    refused(&sources)
}

#[test]
fn login_rules_are_read_in_their_order_and_shown_as_they_are() {
    let rules = r#"
[[logins]]
listener = "unix:/run/pgvalet"
database = ["all", "replication"]
user = ["app", "job*"]
method = "peer"
map = { deploy = ["app"] }

[[logins]]
database = ["sameuser"]
address = ["127.0.0.0/8", "::1/128", "10.0.0.7/32"]
tls = "any"
method = "trust"
"#;
    let listen = "listen = [\"0.0.0.0:6432\", \"unix:/run/pgvalet\"]\n";
    let (_file, sources) = with_file(&format!("{listen}{rules}"));
    let loaded = loaded(&sources);
    let methods: Vec<_> = loaded
        .config
        .logins
        .iter()
        .map(|rule| rule.method)
        .collect();
    assert_eq!(methods, [LoginMethod::Peer, LoginMethod::Trust]);
    assert_eq!(loaded.config.logins[0].listener, Some(1));
    let shown = loaded.effective_toml();
    let expected = rules.replace("\"all\"", "\"*\"");
    assert!(shown.ends_with(&expected), "{shown}");
}

#[test]
fn login_rules_may_come_from_a_variable() {
    let rules = "[{ user = \"app\", method = \"scram\" }, { method = \"reject\" }]";
    let config = loaded(&with_variable("PGVALET_LOGINS", rules)).config;
    assert_eq!(config.logins.len(), 2);
    let refused = refused(&with_variable("PGVALET_LOGINS", "scram"));
    assert!(
        refused.contains("variable PGVALET_LOGINS: logins:"),
        "{refused}"
    );
}

#[test]
fn a_login_rule_is_checked_field_by_field() {
    let text = "[[logins]]\nmetod = \"scram\"\n[[logins]]\nmethod = \"gss\"\naddress = \"10.0.0/8\"\ntls = \"on\"\nuser = []\n";
    let refused = with_rules(text);
    for part in [
        "pgvalet.toml:2: unknown key `logins.metod`; did you mean `method`?",
        "pgvalet.toml:1: logins.method: it isn't given; allowed: \"scram\", \"md5\"",
        "pgvalet.toml:4: logins.method: `gss` isn't one of them",
        "pgvalet.toml:5: logins.address: `10.0.0/8` isn't an address or a network",
        "pgvalet.toml:6: logins.tls: `on` isn't one of them",
        "pgvalet.toml:7: logins.user: 0 values were given",
    ] {
        assert!(refused.contains(part), "{part}: {refused}");
    }
}

#[test]
fn rules_that_let_in_whom_they_shouldn_t_are_refused() {
    let open = "listen = \"0.0.0.0:6432\"\n";
    let cases = [
        (
            "method = \"trust\"",
            "rule 1 (\"trust\"): it would let anyone in",
        ),
        (
            "method = \"password\"",
            "rule 1 (\"password\"): passwords would cross the network in clear",
        ),
        (
            "method = \"password\"\naddress = \"10.0.0.0/8\"",
            "passwords would cross the network in clear",
        ),
        (
            "method = \"cert\"",
            "rule 1 (\"cert\"): it needs TLS with `tls_client_ca`",
        ),
        (
            "method = \"peer\"",
            "rule 1 (\"peer\"): the system knows the user behind a unix socket only",
        ),
        (
            "method = \"scram\"\ntls = \"yes\"",
            "it never matches, as `tls` is \"disable\"",
        ),
        (
            "method = \"scram\"\naddress = \"unix\"",
            "it never matches, as no such listener",
        ),
        (
            "method = \"scram\"\nlistener = \"127.0.0.1:1\"",
            "its `listener` isn't one of `listen`",
        ),
        (
            "method = \"scram\"\nmap = { a = \"b\" }",
            "`map` is for \"cert\" and \"peer\" only",
        ),
    ];
    for (rule, part) in cases {
        let refused = with_rules(&format!("{open}[[logins]]\n{rule}\n"));
        assert!(refused.contains(part), "{rule}: {refused}");
    }
}

#[test]
fn rules_about_encryption_that_contradict_themselves_are_refused() {
    let encrypted = [
        (
            "method = \"cert\"\ntls = \"any\"",
            "there is no certificate without TLS",
        ),
        (
            "method = \"cert\"\naddress = \"unix\"",
            "unix sockets know no certificates",
        ),
        (
            "method = \"scram\"\ntls = \"yes\"\naddress = \"unix\"",
            "unix sockets are never encrypted",
        ),
    ];
    for (rule, part) in encrypted {
        let refused = with_rules(&format!("{FILES}[[logins]]\n{rule}\n"));
        assert!(refused.contains(part), "{rule}: {refused}");
    }
}

#[test]
fn what_a_rule_says_in_so_many_words_is_taken() {
    let open = "listen = [\"0.0.0.0:6432\", \"unix:/run/pgvalet\"]\n";
    for rule in [
        "method = \"trust\"\naddress = \"10.0.0.0/8\"",
        "method = \"trust\"\naddress = [\"unix\", \"localhost\"]",
        "method = \"trust\"\nlistener = \"unix:/run/pgvalet\"",
        "method = \"password\"\ntls = \"any\"",
        "method = \"password\"\ntls = \"yes\"",
        "method = \"password\"\naddress = \"localhost\"",
        "method = \"cert\"",
        "method = \"peer\"",
        "method = \"md5\"",
    ] {
        let (_file, sources) = with_file(&format!("{open}{FILES}[[logins]]\n{rule}\n"));
        assert_eq!(loaded(&sources).config.logins.len(), 1, "{rule}");
    }
}

#[test]
fn auth_beside_rules_says_nothing() {
    let refused = with_rules("auth = \"trust\"\n[[logins]]\nmethod = \"scram\"\n");
    assert!(
        refused.contains("auth: it says nothing where there are `[[logins]]`"),
        "{refused}"
    );
}

#[test]
fn a_query_for_secrets_names_the_user() {
    let refused = refused(&with_flag("auth_query", "SELECT 1"));
    assert!(
        refused.contains("auth_query: the query has no $1"),
        "{refused}"
    );
    let config = loaded(&with_flag("auth_query", "default")).config;
    assert!(config.asks_postgresql() && config.auth_user.is_none());
    assert!(
        loaded(&with_flag("auth_user", "asker"))
            .config
            .asks_postgresql()
    );
    assert!(!loaded(&sources()).config.asks_postgresql());
}
