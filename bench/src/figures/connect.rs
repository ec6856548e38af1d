//! What a new connection costs: a login and a goodbye, without a query.

use std::time::Instant;

use crate::Failure;
use crate::crowd::storm;
use crate::fleet::{self, Auth, Guests, Mode, Setup, Transport};
use crate::report::{Figure, Goal};
use crate::stage::Stage;

#[expect(clippy::cast_precision_loss, reason = "a count of clients")]
pub fn storms(stage: &mut Stage) -> Result<(), Failure> {
    let count = stage.either(400, 2000);
    let kinds = [
        ("trust", Auth::Trust, Transport::Tcp),
        ("SCRAM", Auth::Scram, Transport::Tcp),
        ("SCRAM, TLS", Auth::Scram, Transport::Tls),
    ];
    for (name, auth, transport) in kinds {
        let setup = Setup {
            auth,
            transport,
            ..Setup::new(Mode::Session, 20)
        };
        let targets = fleet::start(stage, &setup, Guests::Poolers)?;
        let goal = (transport == Transport::Tcp).then_some(Goal::RatioAtMost {
            must: 1.0,
            aim: 0.85,
        });
        let name = |what: &str| format!("{what}: {name}");
        let mut cpu = Figure::new("connect", &name("CPU a new connection"), "µs", goal);
        let mut rate = Figure::new("connect", &name("new connections a second"), "", None);
        for target in &targets {
            storm(target, 100)?;
        }
        for round in 0..stage.rounds() {
            for target in &targets {
                let (before, began) = (target.cpu()?, Instant::now());
                storm(target, count)?;
                let spent = target.cpu()?.saturating_sub(before);
                let took = began.elapsed();
                cpu.note(
                    &target.name,
                    round,
                    spent.as_secs_f64() * 1e6 / count as f64,
                );
                rate.note(&target.name, round, count as f64 / took.as_secs_f64());
            }
        }
        stage.report.add(cpu);
        stage.report.add(rate);
    }
    Ok(())
}
