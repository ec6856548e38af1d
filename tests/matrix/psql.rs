//! psql on the libpq that the machine has, and on libpq 18: what it says through pgvalet is what it says to PostgreSQL, for
//! each way to encrypt, to log in, and to begin a session.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::MODES;
use crate::certificates::{Authority, KeyKind, SSLMODES};
use crate::programs::{client, everything, python, run};
use crate::secured::secure;
use crate::support::{Auth, Postgres, Valet, no_valet, skip};

/// Whom PostgreSQL asks for what, by TCP; pgvalet has the same rules.
const RULES: [(&str, &str, &str); 8] = [
    ("hostssl", "by_cert", "cert"),
    ("hostssl", "by_tls", "scram-sha-256"),
    ("hostnossl", "by_plain", "scram-sha-256"),
    ("host", "by_scram,late,nologin,mallory", "scram-sha-256"),
    ("host", "by_md5", "md5"),
    ("host", "by_password", "password"),
    ("host", "by_trust,postgres", "trust"),
    ("host", "by_reject", "reject"),
];

/// PostgreSQL and pgvalets that ask for the same; certificates for clients.
struct Stage {
    postgres: Postgres,
    /// In session mode, in transaction mode, and moving at every quiet point.
    valets: Vec<Valet>,
    authority: Authority,
    home: tempfile::TempDir,
    /// Where psql finds its libpq; the machine's own without it.
    libraries: Option<OsString>,
}

impl Stage {
    #[expect(
        clippy::too_many_lines,
        reason = "what both sides are told, side by side"
    )]
    fn new(postgres: Postgres, libraries: Option<OsString>) -> Self {
        let authority = Authority::new("root");
        let pair = authority.issue("server", "localhost", KeyKind::Ec);
        let home = tempfile::tempdir().expect("a directory");
        let me = run(Command::new("id").arg("-un"));
        let mut hba = format!("local all {me},by_peer peer\n");
        let mut config = format!(
            "auth_query = \"default\"\n[[logins]]\naddress = \"unix\"\nuser = [\"{me}\", \"by_peer\"]\nmethod = \"peer\"\n"
        );
        for (kind, users, method) in RULES {
            let _ = writeln!(hba, "{kind} all {users} 127.0.0.1/32 {method}");
            let users = users.replace(',', "\", \"");
            let tls = match kind {
                "hostssl" => "yes",
                "hostnossl" => "no",
                _ => "any",
            };
            let method = method.trim_end_matches("-sha-256");
            let _ = writeln!(
                config,
                "[[logins]]\nuser = [\"{users}\"]\ntls = \"{tls}\"\naddress = \"127.0.0.1\"\nmethod = \"{method}\""
            );
        }
        secure(&postgres, &hba, &pair, &authority);
        for user in [
            "scram", "tls", "plain", "password", "trust", "cert", "reject", "none", "peer",
        ] {
            postgres.sql(&format!("CREATE ROLE by_{user} LOGIN PASSWORD 'pencil'"));
        }
        postgres.sql(
            "CREATE ROLE late LOGIN PASSWORD 'pencil' VALID UNTIL '2020-01-01'; CREATE ROLE nologin PASSWORD 'pencil';
             SET password_encryption = 'md5'; CREATE ROLE by_md5 LOGIN PASSWORD 'pencil'; CREATE SCHEMA side",
        );
        if me != "postgres" {
            postgres.sql(&format!("CREATE ROLE \"{me}\" LOGIN"));
        }
        let file = home.path().join("pgvalet.toml");
        std::fs::write(&file, config).expect("a file can be written");
        let socket = postgres.socket_directory().display();
        let url = format!(
            "postgres://postgres@127.0.0.1:{}/postgres?host={socket}",
            postgres.port()
        );
        let root = authority.root();
        let mut flags = vec![
            "--config",
            file.to_str().expect("UTF-8"),
            "--upstream",
            &url,
            "--tls",
            "allow",
        ];
        flags.extend([
            "--tls-cert",
            pair.cert(),
            "--tls-key",
            pair.key(),
            "--tls-client-ca",
            &root,
        ]);
        let serve = |(number, mode): (usize, &&[&str])| {
            let unix = home.path().join(number.to_string());
            std::fs::create_dir(&unix).expect("a directory can be made");
            let unix = format!("unix:{}", unix.display());
            let listen = ["--listen", "127.0.0.1:0", "--listen", &unix];
            let valet = Valet::serve(&[&flags[..], &listen, *mode].concat());
            valet.unwrap_or_else(|exit| panic!("{}", exit.log))
        };
        let valets = MODES.iter().enumerate().map(serve).collect();
        Self {
            postgres,
            valets,
            authority,
            home,
            libraries,
        }
    }

    /// What psql says and how it ends, with the port left out.
    fn psql(&self, port: u16, parameters: &str, password: &str, script: &str) -> Said {
        let mut command = client("psql", port);
        if let Some(libraries) = &self.libraries {
            command.env("LD_LIBRARY_PATH", libraries);
        }
        if !password.is_empty() {
            command.env("PGPASSWORD", password);
        }
        let parameters = format!("host=localhost hostaddr=127.0.0.1 {parameters}");
        command.env("HOME", "/nonexistent");
        command.args([
            "-X",
            "-w",
            "-v",
            "VERBOSITY=verbose",
            "-c",
            "\\conninfo",
            "-c",
            script,
            &parameters,
        ]);
        let (status, out, err) = everything(&mut command);
        let text = format!("{out}{err}").replace(&port.to_string(), "PORT");
        // Where pgvalet itself refuses somebody, it says so besides.
        let lines = (text.lines()).filter(|line| !line.starts_with("HINT:  pgvalet says so"));
        let text = lines.collect::<Vec<_>>().join(
            "
",
        );
        (status, text)
    }

    /// psql says the same through each of `valets` with these parameters and passwords; how often it gets in.
    #[track_caller]
    fn same(&self, valets: &[Valet], ways: &[(String, &str)], script: &str) -> usize {
        let mut differences = String::new();
        let mut inside = 0;
        for (parameters, password) in ways {
            let straight = self.psql(self.postgres.port(), parameters, password, script);
            inside += usize::from(straight.0 == Some(0));
            for valet in valets {
                let through = self.psql(valet.port(), parameters, password, script);
                if through != straight {
                    let _ = writeln!(
                        differences,
                        "{parameters} {password}:\n{straight:?}\n{through:?}"
                    );
                }
            }
        }
        assert!(differences.is_empty(), "{differences}");
        inside
    }
}

type Said = (Option<i32>, String);

/// A test of each case with each libpq.
macro_rules! libraries {
    ($($case:ident)*) => {
        mod libpq_of_this_machine { $(#[test] fn $case() { super::with(|| Ok(None), super::$case); })* }
        mod libpq_18 { $(#[test] fn $case() { super::with(|| super::libpq_18().map(Some), super::$case); })* }
    };
}

libraries!(encryption methods startup_options unix_sockets);

fn with(libraries: impl FnOnce() -> Result<Option<OsString>, String>, case: fn(&Stage)) {
    if no_valet() {
        return;
    }
    match libraries() {
        Ok(libraries) => case(&Stage::new(Postgres::start(), libraries)),
        Err(why) => skip(&format!("no libpq 18: {why}")),
    }
}

/// A directory with the libpq 18 that comes with psycopg, and one with the libraries that it needs: for LD_LIBRARY_PATH.
fn libpq_18() -> Result<OsString, String> {
    let python = python()?;
    let packages = run(Command::new(python).args([
        "-c",
        "import psycopg, psycopg_binary; print(psycopg_binary.__path__[0] + '.libs')",
    ]));
    let libraries = std::fs::read_dir(&packages).map_err(|error| format!("{packages}: {error}"))?;
    let library = libraries
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.to_string_lossy().contains("/libpq-"))
        .ok_or("psycopg brings no libpq")?;
    let home = Path::new(env!("CARGO_TARGET_TMPDIR")).join("libpq-18");
    std::fs::create_dir_all(&home).map_err(|error| error.to_string())?;
    let fresh = home.join(format!("fresh.{:?}", std::thread::current().id()));
    let _ = std::fs::remove_file(&fresh);
    std::os::unix::fs::symlink(library, &fresh).map_err(|error| error.to_string())?;
    std::fs::rename(&fresh, home.join("libpq.so.5")).map_err(|error| error.to_string())?;
    std::env::join_paths([home, PathBuf::from(packages)]).map_err(|error| error.to_string())
}

/// What PostgreSQL learnt since 15, with the libpq that knows it: TLS without asking first, and protocol 3.2.
#[test]
fn libpq_18_before_postgresql_18() {
    if no_valet() {
        return;
    }
    let libraries = match libpq_18() {
        Ok(libraries) => libraries,
        Err(why) => return skip(&format!("no libpq 18: {why}")),
    };
    let postgres = match Postgres::start_version(18, Auth::Trust, &[]) {
        Ok(postgres) => postgres,
        Err(why) => return skip(&format!("no PostgreSQL 18: {why}")),
    };
    let stage = Stage::new(postgres, Some(libraries));
    let (root, other) = (stage.authority.root(), Authority::new("other"));
    let pair = stage.authority.issue("good", "by_cert", KeyKind::Ec);
    let mut ways = Vec::new();
    for user in ["by_scram", "by_tls", "by_plain", "by_md5", "by_trust"] {
        for mode in SSLMODES {
            let way = format!("user={user} sslmode={mode} sslrootcert={root}");
            ways.push((format!("{way} sslnegotiation=direct"), "pencil"));
            ways.push((
                format!("{way} min_protocol_version=3.2 max_protocol_version=3.2"),
                "pencil",
            ));
        }
    }
    let direct = "sslnegotiation=direct";
    let newest = "min_protocol_version=3.2 max_protocol_version=latest";
    for more in [
        format!(
            "user=by_scram sslmode=verify-full sslrootcert={} {direct}",
            other.root()
        ),
        format!("user=by_scram sslmode=verify-full sslrootcert={root} host=elsewhere {direct}"),
        format!("user=by_scram sslmode=require {direct} channel_binding=require {newest}"),
        format!("user=by_md5 sslmode=require {direct} channel_binding=require"),
        format!("user=by_scram sslmode=require {direct} ssl_max_protocol_version=TLSv1.2"),
        format!(
            "user=by_cert sslmode=require {direct} {newest} sslcert={} sslkey={}",
            pair.cert(),
            pair.key()
        ),
        format!("user=by_cert sslmode=require {direct}"),
        format!("user=nobody sslmode=require {direct}"),
    ] {
        ways.push((more, "pencil"));
    }
    ways.push((
        format!("user=by_scram sslmode=require {direct} channel_binding=require"),
        "eraser",
    ));
    assert!(stage.same(&stage.valets[..1], &ways, WHO) > 30);
}

const WHO: &str = "SELECT session_user, current_database()";

/// Each sslmode, with the right roots and with others, for users whom rules let in encrypted, in clear, or anyhow.
fn encryption(stage: &Stage) {
    let other = Authority::new("other");
    let mut ways = Vec::new();
    for user in ["by_scram", "by_tls", "by_plain"] {
        for mode in SSLMODES {
            ways.push((
                format!(
                    "user={user} sslmode={mode} sslrootcert={}",
                    stage.authority.root()
                ),
                "pencil",
            ));
        }
    }
    ways.push((
        format!(
            "user=by_scram sslmode=verify-full sslrootcert={}",
            other.root()
        ),
        "pencil",
    ));
    ways.push((
        format!(
            "user=by_scram sslmode=verify-ca sslrootcert={}",
            other.root()
        ),
        "pencil",
    ));
    ways.push(("user=by_scram sslmode=verify-full".to_owned(), "pencil"));
    ways.push((
        format!(
            "user=by_scram host=elsewhere sslmode=verify-full sslrootcert={}",
            stage.authority.root()
        ),
        "pencil",
    ));
    ways.push((
        "user=by_scram sslmode=require ssl_max_protocol_version=TLSv1.2".to_owned(),
        "pencil",
    ));
    if stage.libraries.is_some() {
        // PostgreSQL 15 has it not; what does is asked below.
        let newer = "user=by_scram sslmode=require max_protocol_version=3.2";
        ways.push((newer.to_owned(), "pencil"));
    }
    assert!(stage.same(&stage.valets[..1], &ways, WHO) > 12);
}

/// Each method, with the right password, a wrong one, and none; and what clients may demand of it.
#[expect(clippy::too_many_lines, reason = "a list")]
fn methods(stage: &Stage) {
    let mut ways = Vec::new();
    let users = [
        "by_scram",
        "by_md5",
        "by_password",
        "by_trust",
        "by_reject",
        "by_none",
        "late",
        "nologin",
        "mallory",
        "nobody",
    ];
    for user in users {
        for password in ["pencil", "eraser", ""] {
            ways.push((format!("user={user} sslmode=disable"), password));
        }
        ways.push((format!("user={user} sslmode=require"), "pencil"));
        ways.push((
            format!("user={user} sslmode=require channel_binding=require"),
            "pencil",
        ));
        ways.push((
            format!("user={user} sslmode=require channel_binding=require"),
            "eraser",
        ));
        ways.push((
            format!("user={user} sslmode=disable channel_binding=require"),
            "pencil",
        ));
        ways.push((
            format!("user={user} sslmode=require channel_binding=disable"),
            "pencil",
        ));
    }
    let (good, bad) = (
        stage.authority.issue("good", "by_cert", KeyKind::Ec),
        stage.authority.issue("bad", "by_trust", KeyKind::Rsa),
    );
    for pair in [good, bad] {
        ways.push((
            format!(
                "user=by_cert sslmode=require sslcert={} sslkey={}",
                pair.cert(),
                pair.key()
            ),
            "",
        ));
    }
    ways.push(("user=by_cert sslmode=require".to_owned(), ""));
    ways.push(("user=by_cert sslmode=disable".to_owned(), "pencil"));
    ways.push(("user=by_scram dbname=nowhere".to_owned(), "pencil"));
    ways.push(("user=by_scram dbname=nowhere".to_owned(), "eraser"));
    ways.push(("user=by_trust dbname=nowhere".to_owned(), ""));
    if stage.libraries.is_some() {
        for method in [
            "scram-sha-256",
            "md5",
            "password",
            "none",
            "!scram-sha-256",
            "!none",
        ] {
            for user in ["by_scram", "by_md5", "by_password", "by_trust"] {
                ways.push((
                    format!("user={user} sslmode=disable require_auth={method}"),
                    "pencil",
                ));
            }
        }
    }
    assert!(stage.same(&stage.valets[..1], &ways, WHO) > 15);
}

/// What a client may ask for at login, and where RESET goes back to.
fn startup_options(stage: &Stage) {
    let script = "SHOW search_path; SET search_path = pg_catalog; SET work_mem = '9MB'; SET TimeZone = 'Asia/Tokyo';
        RESET search_path; SHOW search_path; SET search_path = side; RESET ALL; SHOW search_path; SHOW work_mem;
        SHOW TimeZone; SHOW DateStyle; SHOW client_encoding; SELECT 1/0";
    let ways = [
        "options='-c search_path=side,public'",
        "options='-c search_path=side\\\\,public -c work_mem=7MB'",
        "options='--work-mem=8MB -cTimeZone=Asia/Seoul -c DateStyle=German'",
        "options='-c work_mem=nonsense'",
        "options='-c nonsense=1'",
        "options='-c app.tenant=acme -c search_path=side'",
        "options='-c shared_buffers=1GB'",
        "options='-x'",
        "options='-c role=by_scram'",
        "options='-c role=nobody'",
        "options='-c client_min_messages=error'",
        "options='-c default_transaction_read_only=on'",
        "client_encoding=LATIN1",
        "client_encoding=nonsense",
        "application_name='an app'",
        "fallback_application_name=other",
    ];
    let ways: Vec<_> = ways
        .iter()
        .map(|way| (format!("user=by_trust {way}"), ""))
        .collect();
    stage.same(&stage.valets, &ways, script);
    let work =
        "SELECT current_setting('work_mem'), current_setting('app.tenant', true), current_user,
            current_setting('application_name');
        SET work_mem = '9MB'; SET work_mem TO DEFAULT; SHOW work_mem";
    assert!(stage.same(&stage.valets, &ways, work) > 6);
}

/// The rules of unix sockets, and peers.
fn unix_sockets(stage: &Stage) {
    let me = run(Command::new("id").arg("-un"));
    for user in [me.as_str(), "by_peer", "nobody_at_all"] {
        let ask = |directory: &Path, port: u16| {
            let mut command = client("psql", port);
            if let Some(libraries) = &stage.libraries {
                command.env("LD_LIBRARY_PATH", libraries);
            }
            command.env("PGHOST", directory).env("PGUSER", user);
            let (status, out, err) = everything(command.args(["-X", "-w", "-At", "-c", WHO]));
            let directory = directory.display().to_string();
            let err = err
                .replace(&port.to_string(), "PORT")
                .replace(&directory, "DIRECTORY");
            (status, out, err)
        };
        let straight = ask(stage.postgres.socket_directory(), stage.postgres.port());
        let through = ask(&stage.home.path().join("0"), 6432);
        if user == "nobody_at_all" {
            // PostgreSQL trusts whom no rule names, here; pgvalet has no such rule.
            assert!(
                through
                    .2
                    .contains("no pg_hba.conf entry for host \"[local]\""),
                "{through:?}"
            );
        } else {
            assert_eq!(through, straight, "{user}");
        }
    }
}
