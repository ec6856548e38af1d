//! A PostgreSQL with TLS, and rules for whoever comes by TCP.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};

use crate::certificates::{Authority, Pair};
use crate::support::{Postgres, eventually};

/// Has `postgres` show `pair`, and follow these lines of pg_hba.conf; by its socket it trusts whom they don't name.
/// `authority` signs clients' certificates.
pub fn secure(postgres: &Postgres, rules: &str, pair: &Pair, authority: &Authority) {
    let data = postgres.socket_directory().join("data");
    let owner = fs::metadata(&data).expect("the data directory is there");
    let put = |from: &str, name: &str| {
        let to = data.join(name);
        fs::copy(from, &to).expect("a file can be copied");
        fs::set_permissions(&to, fs::Permissions::from_mode(0o600)).expect("it is ours");
        chown(&to, Some(owner.uid()), Some(owner.gid())).expect("it can be given away");
    };
    put(pair.cert(), "server.crt");
    put(pair.key(), "server.key");
    put(&authority.root(), "root.crt");
    let hba = format!("local all postgres trust\n{rules}\nlocal all all trust\n");
    fs::write(data.join("pg_hba.conf"), hba).expect("pg_hba.conf can be written");
    postgres.sql("ALTER SYSTEM SET ssl_ca_file = 'root.crt'");
    postgres.sql("ALTER SYSTEM SET ssl = on");
    postgres.sql("SELECT pg_reload_conf()");
    eventually("PostgreSQL has TLS", || postgres.sql("SHOW ssl") == "on");
}
