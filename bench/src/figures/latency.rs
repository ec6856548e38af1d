//! How much later an answer comes than without a proxy: pgbench's own time of each transaction.

use crate::Failure;
use crate::fleet::{self, DIRECT, Guests, Mode, Setup, Target};
use crate::pgbench::{self, Load, Protocol, percentile};
use crate::report::{Figure, Goal};
use crate::stage::Stage;

/// Clients, and how many transactions a second they try at most: so few that nobody waits for a processor.
const LOADS: [(usize, Option<u32>); 2] = [(1, None), (8, Some(2000))];

/// The times of each target, sorted: it is asked for a second at a time, and the others in between, so that all see the same of
/// what else the machine does.
fn times(
    stage: &Stage,
    targets: &[Target],
    load: Load,
    rate: Option<u32>,
    round: usize,
) -> Result<Vec<Vec<f64>>, Failure> {
    let mut times = vec![Vec::new(); targets.len()];
    let turns = stage.either(1, 2) * stage.turn();
    for (_, first) in (0..turns).zip(round..) {
        for next in 0..targets.len() {
            let at = (first + next) % targets.len();
            let more = pgbench::latencies(&targets[at], load, rate, stage.scratch().path())?;
            times[at].extend(more);
        }
    }
    for times in &mut times {
        times.sort_by(f64::total_cmp);
    }
    Ok(times)
}

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
            seconds: 1,
        };
        for round in 0..stage.rounds() {
            let times = times(stage, &targets, load, rate, round)?;
            for (figure, share) in &mut figures {
                let time = |times: &[f64]| percentile(times, *share);
                let of = |target: &Target| target.name == DIRECT;
                let direct = targets.iter().position(of).map(|at| time(&times[at]));
                let without = direct.unwrap_or(f64::NAN);
                let proxies = targets.iter().zip(&times).filter(|(target, _)| !of(target));
                for (target, times) in proxies {
                    figure.note(&target.name, round, time(times) - without);
                }
            }
        }
        for (figure, _) in figures {
            stage.report.add(figure);
        }
    }
    Ok(())
}
