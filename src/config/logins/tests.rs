use super::*;

fn rule(method: Method) -> LoginRule {
    LoginRule {
        listener: None,
        listen: None,
        databases: Vec::new(),
        users: Vec::new(),
        sources: Vec::new(),
        tls: None,
        method,
        map: BTreeMap::new(),
    }
}

fn knock(address: Option<&str>) -> Knock<'static> {
    Knock {
        listener: 0,
        database: "shop",
        user: "app",
        address: address.map(|text| text.parse().unwrap()),
        encrypted: false,
        replication: false,
    }
}

fn network(text: &str) -> Source {
    Source::Network(Network::read(text).unwrap())
}

#[test]
fn networks_hold_the_addresses_that_begin_alike() {
    let holds = |network: &str, address: &str| {
        let address: IpAddr = address.parse().unwrap();
        Network::read(network).unwrap().holds(address)
    };
    assert!(holds("10.0.0.0/8", "10.255.0.1") && !holds("10.0.0.0/8", "11.0.0.1"));
    assert!(holds("0.0.0.0/0", "8.8.8.8") && !holds("0.0.0.0/0", "::1"));
    assert!(holds("::/0", "2001:db8::1") && !holds("::/0", "127.0.0.1"));
    assert!(
        holds("2001:db8::/33", "2001:db8:7fff::1") && !holds("2001:db8::/33", "2001:db8:8000::1")
    );
    assert!(holds("192.0.2.7", "192.0.2.7") && !holds("192.0.2.7", "192.0.2.6"));
    for wrong in [
        "",
        "10.0.0.0/33",
        "::/129",
        "10.0.0/8",
        "a/8",
        "10.0.0.0/",
        "10.0.0.0/-1",
    ] {
        assert_eq!(Network::read(wrong), None, "{wrong}");
    }
}

#[test]
fn an_address_mapped_into_ipv6_is_the_address() {
    let mut rule = rule(Method::Scram);
    rule.sources = vec![network("10.0.0.0/8")];
    assert!(rule.covers(&knock(Some("::ffff:10.1.1.1"))));
    assert!(!rule.covers(&knock(Some("::ffff:11.1.1.1"))));
    assert!(!rule.covers(&knock(None)));
}

#[test]
fn a_rule_without_words_covers_everybody_but_replication() {
    let rule = rule(Method::Scram);
    assert!(rule.covers(&knock(None)) && rule.covers(&knock(Some("8.8.8.8"))));
    let replication = Knock {
        replication: true,
        ..knock(None)
    };
    assert!(!rule.covers(&replication));
    let mut rule = rule;
    rule.databases = vec![DatabaseName::Replication];
    assert!(rule.covers(&replication) && !rule.covers(&knock(None)));
}

#[test]
fn databases_users_and_listeners_are_matched_by_name() {
    let mut rule = rule(Method::Scram);
    rule.databases = vec![
        DatabaseName::SameUser,
        DatabaseName::Named(Pattern("shop_*".into())),
    ];
    rule.users = vec![Pattern("app".into()), Pattern("job*".into())];
    rule.listener = Some(0);
    let with = |database: &'static str, user: &'static str, listener: usize| {
        let knock = Knock {
            database,
            user,
            listener,
            ..knock(None)
        };
        rule.covers(&knock)
    };
    assert!(with("app", "app", 0) && with("shop_eu", "app", 0) && with("shop_eu", "jobs", 0));
    assert!(!with("shop", "app", 0) && !with("shop_eu", "other", 0) && !with("app", "app", 1));
}

#[test]
fn a_rule_about_encryption_is_about_tcp() {
    let plain = knock(Some("8.8.8.8"));
    let encrypted = Knock {
        encrypted: true,
        ..plain
    };
    let mut rule = rule(Method::Reject);
    rule.tls = Some(Encrypted::No);
    assert!(rule.covers(&plain) && !rule.covers(&encrypted) && !rule.covers(&knock(None)));
    rule.tls = Some(Encrypted::Yes);
    assert!(!rule.covers(&plain) && rule.covers(&encrypted) && !rule.covers(&knock(None)));
}

#[test]
fn certificates_are_for_tls_and_peers_for_unix_sockets() {
    let tcp = knock(Some("8.8.8.8"));
    let cert = rule(Method::Cert);
    assert!(cert.covers(&Knock {
        encrypted: true,
        ..tcp
    }));
    assert!(!cert.covers(&tcp) && !cert.covers(&knock(None)));
    let peer = rule(Method::Peer);
    assert!(peer.covers(&knock(None)) && !peer.covers(&tcp));
}

#[test]
fn a_map_says_whom_a_name_may_be() {
    let mut rule = rule(Method::Cert);
    assert!(rule.lets("app", "app") && !rule.lets("app", "postgres"));
    rule.map = [(
        "svc".to_owned(),
        vec![Pattern("app".into()), Pattern("job*".into())],
    )]
    .into();
    assert!(rule.lets("svc", "app") && rule.lets("svc", "jobs"));
    assert!(!rule.lets("svc", "postgres") && !rule.lets("app", "app"));
}
