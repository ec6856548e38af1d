//! What a transaction costs the proxy, and how many there are in a second: pgbench, select-only.

use crate::Failure;
use crate::fleet::{self, Guests, HAPROXY, Mode, PGBOUNCER, PGVALET, Setup, Target, Transport};
use crate::pgbench::{self, Load, Outcome, Protocol};
use crate::report::{Figure, Goal};
use crate::stage::Stage;

/// One pair of rows: processor time, and transactions a second.
#[derive(Clone, Copy, Debug)]
pub struct Cell {
    pub mode: Mode,
    pub transport: Transport,
    pub protocol: Protocol,
    pub clients: usize,
}

const PROTOCOLS: [Protocol; 3] = [Protocol::Simple, Protocol::Extended, Protocol::Prepared];

pub fn tcp(stage: &mut Stage) -> Result<(), Failure> {
    let session = Setup::new(Mode::Session, 0);
    for clients in stage.either(vec![8, 64], vec![1, 8, 64, 512]) {
        let protocols = stage.either(&PROTOCOLS[1..], &PROTOCOLS[..]).to_vec();
        cells(stage, "cpu", &session, clients, &protocols)?;
    }
    let transaction = Setup::new(Mode::Transaction, stage.options.pool);
    for clients in stage.either(vec![8], vec![1, 8, 64, 512]) {
        let protocols = stage.either(&PROTOCOLS[..1], &PROTOCOLS[..]).to_vec();
        cells(stage, "cpu", &transaction, clients, &protocols)?;
    }
    Ok(())
}

pub fn unix(stage: &mut Stage) -> Result<(), Failure> {
    let setup = Setup {
        transport: Transport::Unix,
        ..Setup::new(Mode::Session, 0)
    };
    for clients in stage.either(vec![8], vec![8, 64]) {
        let protocols = stage.either(&PROTOCOLS[2..], &PROTOCOLS[..]).to_vec();
        cells(stage, "unix", &setup, clients, &protocols)?;
    }
    Ok(())
}

pub fn tls(stage: &mut Stage) -> Result<(), Failure> {
    let setup = Setup {
        transport: Transport::Tls,
        ..Setup::new(Mode::Session, 0)
    };
    for clients in stage.either(vec![8], vec![8, 64]) {
        cells(stage, "tls", &setup, clients, &PROTOCOLS[2..])?;
    }
    Ok(())
}

/// Measures some protocols on one fleet; in session mode its pool has a backend for each client.
pub fn cells(
    stage: &mut Stage,
    group: &str,
    setup: &Setup,
    clients: usize,
    protocols: &[Protocol],
) -> Result<(), Failure> {
    let mut setup = setup.clone();
    if setup.mode == Mode::Session {
        setup.pool = clients + 2;
    }
    let everybody = setup.transport == Transport::Tcp && setup.mode == Mode::Session;
    let guests = if everybody {
        Guests::All
    } else {
        Guests::Poolers
    };
    crate::accounting::allow_files(4 * clients as u64 + 200)?;
    let targets = fleet::start(stage, &setup, guests)?;
    for &protocol in protocols {
        let cell = Cell {
            mode: setup.mode,
            transport: setup.transport,
            protocol,
            clients,
        };
        let (mut cpu, mut tps) = cell.figures(group);
        for round in 0..stage.rounds() {
            for target in &targets {
                if cell.is_for(stage, target)? {
                    let outcome = cell.run(stage, target)?;
                    cpu.note(&target.name, round, outcome.cpu);
                    tps.note(&target.name, round, outcome.tps);
                }
            }
        }
        stage.report.add(cpu);
        stage.report.add(tps);
    }
    Ok(())
}

impl Cell {
    pub fn run(&self, stage: &Stage, target: &Target) -> Result<Outcome, Failure> {
        let load = Load {
            protocol: self.protocol,
            clients: self.clients,
            seconds: stage.turn(),
        };
        pgbench::run(target, load)
    }

    /// Whether a target can do it: PgBouncer before 1.21 prepares nothing in transaction mode.
    fn is_for(&self, stage: &Stage, target: &Target) -> Result<bool, Failure> {
        let prepares = self.mode == Mode::Session || self.protocol != Protocol::Prepared;
        match &*target.name {
            PGVALET => Ok(true),
            PGBOUNCER => Ok(prepares || fleet::prepares(stage)?),
            HAPROXY => Ok(self.protocol == Protocol::Simple),
            _ => Ok(true),
        }
    }

    fn figures(&self, group: &str) -> (Figure, Figure) {
        let place = match self.transport {
            Transport::Tcp => String::new(),
            Transport::Unix => "unix sockets, ".to_owned(),
            Transport::Tls => "TLS from the client, ".to_owned(),
        };
        let plural = if self.clients == 1 { "" } else { "s" };
        let (mode, protocol, clients) = (self.mode, self.protocol, self.clients);
        let what = format!("{place}{protocol}, {clients} client{plural}, {mode} mode");
        let cpu = Figure::new(
            group,
            &format!("CPU a transaction: {what}"),
            "µs",
            self.cpu_goal(),
        );
        let goal = (clients == 64).then_some(Goal::RatioAtLeast {
            must: 1.0,
            aim: 1.1,
        });
        let tps = Figure::new(group, &format!("transactions a second: {what}"), "", goal);
        (cpu, tps)
    }

    fn cpu_goal(&self) -> Option<Goal> {
        let (must, aim) = match (self.transport, self.protocol, self.clients) {
            (Transport::Unix, ..) => (0.95, 0.80),
            (Transport::Tls, ..) => (1.00, 0.85),
            (Transport::Tcp, Protocol::Simple | Protocol::Extended, 8) => (1.00, 0.92),
            (Transport::Tcp, _, 8 | 64) => (0.90, 0.78),
            (Transport::Tcp, ..) => return None,
        };
        Some(Goal::RatioAtMost { must, aim })
    }
}
