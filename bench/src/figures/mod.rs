//! Owns the list of figures, in groups that can be asked for one by one.

mod bulk;
mod connect;
mod cpu;
pub mod growth;
mod idle;
mod latency;
mod leases;

use crate::Failure;
use crate::stage::Stage;

/// Figures that are measured together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Group {
    /// Processor time a transaction, and transactions a second, over TCP
    Cpu,
    /// The same over unix sockets on both sides
    Unix,
    /// The same with TLS from the client
    Tls,
    /// How much later an answer comes than without a proxy
    Latency,
    /// Memory of clients that idle
    Memory,
    /// Processor time while clients idle
    Idle,
    /// New connections
    Connect,
    /// A large SELECT, COPY out and in
    Bulk,
    /// Delays of queries by views, metrics and park detection, with very many leases
    Leases,
    /// Delays of queries by a reload
    Reload,
    /// How the cost grows with clients; not part of --quick
    Growth,
}

const ALL: [Group; 11] = [
    Group::Cpu,
    Group::Unix,
    Group::Tls,
    Group::Latency,
    Group::Memory,
    Group::Idle,
    Group::Connect,
    Group::Bulk,
    Group::Leases,
    Group::Reload,
    Group::Growth,
];

impl Group {
    fn measure(self, stage: &mut Stage) -> Result<(), Failure> {
        match self {
            Self::Cpu => cpu::tcp(stage),
            Self::Unix => cpu::unix(stage),
            Self::Tls => cpu::tls(stage),
            Self::Latency => latency::added(stage),
            Self::Memory => idle::memory(stage),
            Self::Idle => idle::processor(stage),
            Self::Connect => connect::storms(stage),
            Self::Bulk => bulk::streams(stage),
            Self::Leases => leases::delays(stage),
            Self::Reload => leases::reload(stage),
            Self::Growth => growth::measure(stage),
        }
    }
}

/// Measures what was asked for. A group that fails is left out, and said.
pub fn measure(stage: &mut Stage) {
    let wanted = stage.options.only.clone();
    for group in ALL {
        let by_itself = !stage.options.quick || group != Group::Growth;
        let unasked = wanted.is_empty() && by_itself;
        if !unasked && !wanted.contains(&group) {
            continue;
        }
        let began = std::time::Instant::now();
        stage.say(&format!("{group:?} …"));
        if let Err(error) = group.measure(stage) {
            let text = format!("{group:?} was left out: {error}");
            stage.say(&text);
            stage.report.conditions.push(text);
        }
        let took = began.elapsed().as_secs();
        stage.say(&format!("{group:?} took {took} s"));
    }
}
