//! How the cost grows, with clients that are busy and with clients that idle.

use crate::Failure;
use crate::accounting::{allow_files, resident};
use crate::crowd::Crowd;
use crate::fleet::{self, Guests, Mode, Setup};
use crate::pgbench::{self, Load, Protocol};
use crate::report::Figure;
use crate::stage::Stage;

pub const BUSY: [usize; 4] = [1, 8, 64, 512];
pub const IDLE: [usize; 3] = [10, 1000, 10_000];

/// The names of the figures, which the picture looks for.
pub fn busy_name(clients: usize) -> String {
    format!("growth: CPU a transaction, {clients} busy clients")
}

pub fn idle_name(clients: usize) -> String {
    format!("growth: CPU a transaction of 8 busy clients, {clients} idle ones")
}

pub fn memory_name(clients: usize) -> String {
    format!("growth: resident memory, {clients} idle clients")
}

pub fn measure(stage: &mut Stage) -> Result<(), Failure> {
    let setup = Setup::new(Mode::Transaction, stage.options.pool);
    allow_files(10_000 + 1000)?;
    let targets = fleet::start(stage, &setup, Guests::Poolers)?;
    let load = |clients| Load {
        protocol: Protocol::Simple,
        clients,
        seconds: stage.turn(),
    };
    let mut figures = Vec::new();
    for clients in BUSY {
        let mut figure = Figure::new("growth", &busy_name(clients), "µs", None);
        for round in 0..stage.rounds() {
            for target in &targets {
                let outcome = pgbench::run(target, load(clients))?;
                figure.note(&target.name, round, outcome.cpu);
            }
        }
        figures.push(figure);
    }
    for idle in IDLE {
        let mut cpu = Figure::new("growth", &idle_name(idle), "µs", None);
        let mut memory = Figure::new("growth", &memory_name(idle), "MB", None);
        for round in 0..stage.rounds() {
            for target in &targets {
                let mut crowd = Crowd::gather(target, &target.login, idle)?;
                crowd.ask()?;
                let outcome = pgbench::run(target, load(8))?;
                cpu.note(&target.name, round, outcome.cpu);
                let pid = target.pid.ok_or("no process")?;
                memory.note(&target.name, round, resident(pid)? / 1e6);
            }
        }
        figures.push(cpu);
        figures.push(memory);
    }
    for figure in figures {
        stage.report.add(figure);
    }
    Ok(())
}
