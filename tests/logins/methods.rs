//! The rules: which one decides, and what each method asks for, with psql's own libpq.

use crate::certificates::{Authority, KeyKind, Pair};
use crate::stage::{Stage, WRONG, os_user};
use crate::support::{Auth, Postgres, Raw, Valet, no_valet};

#[test]
fn the_first_rule_that_matches_decides() {
    if no_valet() {
        return;
    }
    let postgres = Postgres::start();
    postgres.sql("CREATE ROLE alice LOGIN; CREATE ROLE bob LOGIN; CREATE ROLE carol LOGIN");
    let config = "[users.alice]\npassword = \"pencil\"\n
        [[logins]]\nuser = \"bob\"\nmethod = \"reject\"\n
        [[logins]]\nuser = [\"alice\", \"bob\"]\naddress = \"127.0.0.0/8\"\nmethod = \"scram\"\n
        [[logins]]\ndatabase = \"sameuser\"\naddress = \"localhost\"\nmethod = \"trust\"\n";
    let stage = Stage::new(&postgres, "postgres", config);
    assert_eq!(stage.login("alice", "pencil").as_deref(), Ok("alice"));
    assert!(
        stage
            .login("alice", "eraser")
            .expect_err("wrong")
            .contains(WRONG)
    );
    let rejected = stage.login("bob", "").expect_err("rejected");
    let text = "pg_hba.conf rejects connection for host \"127.0.0.1\", user \"bob\", database \"postgres\", no encryption";
    assert!(rejected.contains(text), "{rejected}");
    assert_eq!(
        stage.login("postgres", "").as_deref(),
        Ok("postgres"),
        "sameuser"
    );
    let outside = stage.login("carol", "").expect_err("no rule");
    let text = "no pg_hba.conf entry for host \"127.0.0.1\", user \"carol\", database \"postgres\", no encryption";
    assert!(outside.contains(text), "{outside}");
    let parameters = [("user", "carol"), ("database", "postgres")];
    assert_eq!(
        Raw::refused(stage.valet.port(), &parameters).sqlstate(),
        "28000"
    );
}

#[test]
fn passwords_are_asked_for_in_each_way() {
    if no_valet() {
        return;
    }
    let postgres = Postgres::start_with(Auth::Scram, &[]);
    let password = "pass wörd ﬁ";
    postgres.sql(&format!("CREATE ROLE alice LOGIN PASSWORD '{password}'"));
    for method in ["scram", "md5", "password"] {
        let config = format!(
            "[users.alice]\npassword = \"{password}\"\n[[logins]]\nmethod = \"{method}\"\n"
        );
        let stage = Stage::new(&postgres, "postgres", &config);
        assert_eq!(
            stage.login("alice", password).as_deref(),
            Ok("alice"),
            "{method}"
        );
        for (user, wrong) in [("alice", "pass"), ("mallory", password)] {
            let refused = stage.login(user, wrong).expect_err("wrong");
            assert!(
                refused.contains(&format!("{WRONG} \"{user}\"")),
                "{method}: {refused}"
            );
        }
        assert!(
            !stage.valet.log().contains("pass w"),
            "{}",
            stage.valet.log()
        );
    }
}

#[test]
fn the_user_of_a_process_behind_a_unix_socket_is_believed() {
    if no_valet() {
        return;
    }
    let me = os_user();
    let postgres = Postgres::start();
    postgres.sql(&format!(
        "CREATE ROLE alice LOGIN; CREATE ROLE jobs LOGIN; CREATE ROLE \"{me}-2\" LOGIN"
    ));
    if me != "postgres" {
        postgres.sql(&format!("CREATE ROLE \"{me}\" LOGIN"));
    }
    let stage = Stage::new(&postgres, "postgres", "[[logins]]\nmethod = \"peer\"\n");
    assert_eq!(stage.login_by_unix(&me, "").as_deref(), Ok(me.as_str()));
    let refused = stage.login_by_unix("alice", "").expect_err("another user");
    assert!(
        refused.contains("Peer authentication failed for user \"alice\""),
        "{refused}"
    );
    let outside = stage.login(&me, "").expect_err("not by TCP");
    assert!(
        outside.contains("no pg_hba.conf entry for host"),
        "{outside}"
    );

    let map =
        format!("[[logins]]\nmethod = \"peer\"\nmap = {{ {me:?} = [\"alice\", \"job*\"] }}\n");
    let stage = Stage::new(&postgres, "postgres", &map);
    assert_eq!(stage.login_by_unix("alice", "").as_deref(), Ok("alice"));
    assert_eq!(stage.login_by_unix("jobs", "").as_deref(), Ok("jobs"));
    assert!(
        stage.login_by_unix(&me, "").is_err(),
        "only whom the map names"
    );
}

#[test]
fn a_certificate_lets_in_the_user_that_it_names() {
    if no_valet() {
        return;
    }
    let (authority, other) = (Authority::new("root"), Authority::new("other"));
    let pair = authority.issue("valet", "localhost", KeyKind::Ec);
    let postgres = Postgres::start();
    postgres.sql("CREATE ROLE alice LOGIN; CREATE ROLE bob LOGIN");
    let config = format!(
        "tls = \"allow\"\ntls_cert = {:?}\ntls_key = {:?}\ntls_client_ca = {:?}\n\
         [[logins]]\nuser = \"alice\"\nmethod = \"cert\"\n\
         [[logins]]\nuser = \"bob\"\nmethod = \"cert\"\nmap = {{ service = \"bob\" }}\n",
        pair.cert(),
        pair.key(),
        authority.root()
    );
    let stage = Stage::new(&postgres, "postgres", &config);
    let login = |user: &str, pair: Option<&Pair>| {
        let files = pair.map(|pair| format!("sslcert={} sslkey={}", pair.cert(), pair.key()));
        let parameters = format!(
            "host=127.0.0.1 sslmode=require {}",
            files.unwrap_or_default()
        );
        stage.login_with(user, "", &parameters)
    };
    let alice = authority.issue("alice", "alice", KeyKind::Rsa);
    let service = authority.issue("service", "service", KeyKind::Ec);
    assert_eq!(login("alice", Some(&alice)).as_deref(), Ok("alice"));
    assert_eq!(login("bob", Some(&service)).as_deref(), Ok("bob"));
    let another = login("alice", Some(&service)).expect_err("another's");
    assert!(
        another.contains("certificate authentication failed for user \"alice\""),
        "{another}"
    );
    assert!(login("bob", Some(&alice)).is_err());
    let none = login("alice", None).expect_err("none");
    assert!(
        none.contains("connection requires a valid client certificate"),
        "{none}"
    );
    let stranger = other.issue("alice", "alice", KeyKind::Ec);
    assert!(
        login("alice", Some(&stranger))
            .expect_err("a stranger's")
            .contains("unknown ca")
    );
    let plain = stage.login("alice", "").expect_err("plain");
    assert!(
        plain.contains("no pg_hba.conf entry") && plain.contains("no encryption"),
        "{plain}"
    );
}

#[test]
fn rules_that_endanger_are_refused_before_anything_listens() {
    if no_valet() {
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("pgvalet.toml");
    std::fs::write(
        &file,
        "listen = \"0.0.0.0:0\"\n[[logins]]\nmethod = \"trust\"\n",
    )
    .expect("written");
    let path = file.to_str().expect("UTF-8");
    let flags = [
        "--config",
        path,
        "--listen",
        "0.0.0.0:0",
        "--upstream",
        "postgres://u@127.0.0.1/d",
    ];
    let exit = Valet::serve(&flags).err().expect("it refuses to start");
    let said =
        format!("{path}:2: logins: rule 1 (\"trust\"): it would let anyone in from anywhere");
    assert!(exit.log.contains(&said), "{}", exit.log);
}
