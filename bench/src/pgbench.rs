//! Owns runs of pgbench, the load of every figure of transactions, and what they say.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use crate::Failure;
use crate::fleet::Target;
use crate::stage::{client, succeed};

/// How pgbench sends its query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Simple,
    Extended,
    Prepared,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Simple => "simple",
            Self::Extended => "extended",
            Self::Prepared => "prepared",
        })
    }
}

/// A load of select-only transactions.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    pub protocol: Protocol,
    pub clients: usize,
    pub seconds: u64,
}

/// What a load came to.
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    /// The proxy's processor time of one transaction, in microseconds.
    pub cpu: f64,
    /// Transactions a second.
    pub tps: f64,
}

/// Runs it, without what logins cost: a run of one transaction for each client is taken off.
pub fn run(target: &Target, load: Load) -> Result<Outcome, Failure> {
    let seconds = load.seconds.to_string();
    let few = piece(target, load, &["-t", "1"])?;
    let many = piece(target, load, &["-T", &seconds])?;
    let cpu = many.cpu.saturating_sub(few.cpu);
    let transactions = many.transactions - few.transactions;
    Ok(Outcome {
        cpu: cpu.as_secs_f64() * 1e6 / transactions,
        tps: many.tps,
    })
}

struct Piece {
    cpu: Duration,
    transactions: f64,
    tps: f64,
}

fn piece(target: &Target, load: Load, length: &[&str]) -> Result<Piece, Failure> {
    let before = target.cpu()?;
    let report = pgbench(target, load, length, Path::new("/"))?;
    let cpu = target.cpu()?.saturating_sub(before);
    let number = |name: &str| -> Result<f64, Failure> {
        let found = report.lines().find_map(|line| line.strip_prefix(name));
        let word = found.and_then(|rest| rest.split([' ', '/']).next());
        Ok(word.ok_or("pgbench reports otherwise")?.parse()?)
    };
    Ok(Piece {
        cpu,
        transactions: number("number of transactions actually processed: ")?,
        tps: number("tps = ")?,
    })
}

fn pgbench(
    target: &Target,
    load: Load,
    more: &[&str],
    directory: &Path,
) -> Result<String, Failure> {
    let (clients, protocol) = (load.clients.to_string(), load.protocol.to_string());
    let mut command = client("pgbench", &target.address);
    if target.login.tls.is_some() {
        command.env("PGSSLMODE", "require");
    }
    command
        .args(["-n", "-S", "-c", &clients, "-M", &protocol])
        .args(more)
        .current_dir(directory);
    succeed(&mut command).map_err(|error| format!("{}, {protocol}: {error}", target.name).into())
}

/// Runs `load`, at most `rate` transactions a second where one is given; each transaction's time in microseconds, but
/// for the first of each client, for which PostgreSQL may have had to open a catalog.
pub fn latencies(
    target: &Target,
    load: Load,
    rate: Option<u32>,
    directory: &Path,
) -> Result<Vec<f64>, Failure> {
    let logs = directory.join("latencies");
    std::fs::create_dir_all(&logs)?;
    let (seconds, rate) = (load.seconds.to_string(), rate.map(|rate| rate.to_string()));
    let mut words = vec!["-T", &seconds, "--log"];
    words.extend(rate.iter().flat_map(|rate| ["-R", rate]));
    pgbench(target, load, &words, &logs)?;
    let mut times = Vec::new();
    for entry in std::fs::read_dir(&logs)? {
        let text = std::fs::read_to_string(entry?.path())?;
        times.extend(text.lines().filter_map(time));
    }
    std::fs::remove_dir_all(&logs)?;
    Ok(times)
}

/// The third column, without the last one where it is there: the wait for the transaction's turn. The second one counts.
fn time(line: &str) -> Option<f64> {
    let columns: Vec<&str> = line.split(' ').collect();
    if columns.get(1) == Some(&"1") {
        return None;
    }
    let time: f64 = columns.get(2)?.parse().ok()?;
    let lag: f64 = columns.get(6).map_or(Some(0.0), |lag| lag.parse().ok())?;
    Some(time - lag)
}

/// The value that `share` of sorted values stay below.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "an index into a list that fits into memory"
)]
pub fn percentile(sorted: &[f64], share: f64) -> f64 {
    let last = sorted.len().saturating_sub(1);
    let place = (last as f64 * share).round() as usize;
    sorted.get(place).copied().unwrap_or(f64::NAN)
}
