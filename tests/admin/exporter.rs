//! PgBouncer's Prometheus exporter from PyPI against the console.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::support::http;
use crate::support::{Postgres, Raw, Valet, eventually, no_valet, skip};

/// Ends the exporter with the test.
struct Exporter(Child);

impl Drop for Exporter {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Exporter {
    /// Runs it on a port of its own, against the console on `console`.
    fn start(program: &Path, directory: &Path, console: u16) -> (Self, u16) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("it is bound").port();
        drop(listener);
        let config = directory.join("config.yml");
        let text = format!(
            "exporter_host: 127.0.0.1\nexporter_port: {port}\npgbouncers:\n  - dsn: \
             postgresql://postgres:none@127.0.0.1:{console}/pgbouncer\n    connect_timeout: 20\n"
        );
        std::fs::write(&config, text).expect("written");
        let mut command = Command::new(program);
        command.arg("--config").arg(&config).stdout(Stdio::null());
        let exporter = Self(command.spawn().expect("it runs"));
        let up = || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok();
        eventually("the exporter listens", up);
        (exporter, port)
    }
}

#[test]
fn pgbouncers_exporter_reads_every_metric_that_it_knows() {
    if no_valet() {
        return;
    }
    let tools = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let program = tools.join("python-exporter/bin/pgbouncer-exporter");
    if !program.exists() {
        return skip("no exporter for PgBouncer: scripts/bootstrap test installs it");
    }
    let postgres = Postgres::start();
    let valet = Valet::front(&postgres);
    let directory = tempfile::tempdir().expect("a directory");
    let (_exporter, port) = Exporter::start(&program, directory.path(), valet.port());
    let scrape = || http::request(port, "GET", "/metrics", &[], "").body;
    assert!(scrape().contains("\npgbouncer_up 1.0\n"), "{}", scrape());

    let mut session = Raw::connect(valet.port());
    session.query("SELECT 1");
    let page = scrape();
    let of = "{database=\"postgres\",user=\"postgres\"}";
    let expected = [
        format!("pgbouncer_pools_client_active_connections{of} 1.0"),
        format!("pgbouncer_pools_server_active_connections{of} 1.0"),
        format!("pgbouncer_pools_client_maxwait_seconds{of} 0.0"),
        "pgbouncer_stats_queries_total{database=\"postgres\"} 1.0".to_owned(),
        "pgbouncer_stats_transactions_total{database=\"postgres\"} 1.0".to_owned(),
        "pgbouncer_databases_database_pool_size{backend_database=\"postgres\",database=\"postgres\"} 20.0".to_owned(),
        "pgbouncer_config_max_client_conn 10000.0".to_owned(),
        "pgbouncer_config_max_user_connections 0.0".to_owned(),
        "pgbouncer_up 1.0".to_owned(),
    ];
    for line in expected {
        assert!(
            page.lines().any(|found| found == line),
            "no {line} in {page}"
        );
    }
}
