//! Owns the list of figures, in groups that can be asked for one by one.

mod cpu;

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
}

const ALL: [Group; 3] = [Group::Cpu, Group::Unix, Group::Tls];

impl Group {
    fn measure(self, stage: &mut Stage) -> Result<(), Failure> {
        match self {
            Self::Cpu => cpu::tcp(stage),
            Self::Unix => cpu::unix(stage),
            Self::Tls => cpu::tls(stage),
        }
    }
}

/// Measures what was asked for. A group that fails is left out, and said.
pub fn measure(stage: &mut Stage) {
    let wanted = stage.options.only.clone();
    for group in ALL {
        if !wanted.is_empty() && !wanted.contains(&group) {
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
