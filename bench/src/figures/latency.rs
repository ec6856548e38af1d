//! How much later an answer comes than without a proxy: pgbench's own time of each transaction.

use crate::Failure;
use crate::fleet::{self, DIRECT, Guests, Mode, Setup};
use crate::pgbench::{self, Load, Protocol, percentile};
use crate::report::{Figure, Goal};
use crate::stage::Stage;

/// Clients, and how many transactions a second they try at most: so few that nobody waits for a processor.
const LOADS: [(usize, Option<u32>); 2] = [(1, None), (8, Some(2000))];

pub fn added(stage: &mut Stage) -> Result<(), Failure> {
    let mut targets = vec![fleet::direct(stage)];
    let setup = Setup::new(Mode::Session, 10);
    targets.extend(fleet::start(stage, &setup, Guests::All)?);
    for (clients, rate) in LOADS {
        let mut figures = [("p50", 0.5), ("p99", 0.99)].map(|(name, share)| {
            let what = match rate {
                None => format!("{clients} client"),
                Some(rate) => format!("{clients} clients, {rate} transactions a second"),
            };
            let goal = Goal::RatioAtMost {
                must: 1.0,
                aim: 0.9,
            };
            let name = format!("latency added over direct, {name}: simple, {what}");
            (Figure::new("latency", &name, "µs", Some(goal)), share)
        });
        let load = Load {
            protocol: Protocol::Simple,
            clients,
            seconds: stage.turn(),
        };
        for round in 0..stage.rounds() {
            let mut without = [0.0; 2];
            for target in &targets {
                let directory = stage.scratch().path();
                let times = pgbench::latencies(target, load, rate, directory)?;
                for ((figure, share), without) in figures.iter_mut().zip(&mut without) {
                    let time = percentile(&times, *share);
                    if target.name == DIRECT {
                        *without = time;
                    } else {
                        figure.note(&target.name, round, time - *without);
                    }
                }
            }
        }
        for (figure, _) in figures {
            stage.report.add(figure);
        }
    }
    Ok(())
}
