//! What clients cost that do nothing: memory, and processor time.

use std::time::Duration;

use crate::accounting::{allow_files, resident};
use crate::crowd::Crowd;
use crate::fleet::{self, Guests, Mode, Setup, Target, Transport};
use crate::report::{Figure, Goal};
use crate::stage::Stage;
use crate::{Failure, fake};

/// How long the figure of processor time is about.
const SPAN: f64 = 30.0;

pub fn memory(stage: &mut Stage) -> Result<(), Failure> {
    let count = stage.either(1000, 5000);
    let goal = Some(Goal::AtMost {
        must: 1.5,
        aim: 1.0,
    });
    let plain = Setup::new(Mode::Transaction, stage.options.pool);
    let names = [
        format!("memory an idle client, {count} of them"),
        format!("memory an idle client that has run a query, {count} of them"),
    ];
    for figure in held(stage, &plain, count, &names, goal)? {
        stage.report.add(figure);
    }
    let count = stage.either(300, 2000);
    let goal = Some(Goal::AtMost {
        must: 15.0,
        aim: 12.0,
    });
    let encrypted = Setup {
        transport: Transport::Tls,
        ..plain
    };
    let names = [
        format!("memory an idle TLS client, {count} of them"),
        format!("memory an idle TLS client that has run a query, {count} of them"),
    ];
    for figure in held(stage, &encrypted, count, &names, goal)? {
        stage.report.add(figure);
    }
    Ok(())
}

/// What `count` clients hold, before and after each has run a query. Each round has fresh processes.
#[expect(clippy::cast_precision_loss, reason = "a count of clients")]
fn held(
    stage: &Stage,
    setup: &Setup,
    count: usize,
    names: &[String; 2],
    goal: Option<Goal>,
) -> Result<[Figure; 2], Failure> {
    allow_files(count as u64 + 500)?;
    let mut figures = names
        .each_ref()
        .map(|name| Figure::new("memory", name, "kB", goal));
    for round in 0..stage.either(1, 3) {
        for target in fleet::start(stage, setup, Guests::Poolers)? {
            let pid = target.pid.ok_or("no process")?;
            // The first few bring what all share: backends, and pages that are never given back.
            Crowd::gather(&target, &target.login, 30)?.ask()?;
            let empty = resident(pid)?;
            let each = |now: f64| (now - empty) / count as f64 / 1000.0;
            let mut crowd = Crowd::gather(&target, &target.login, count)?;
            figures[0].note(&target.name, round, each(resident(pid)?));
            crowd.ask()?;
            figures[1].note(&target.name, round, each(resident(pid)?));
        }
    }
    Ok(figures)
}

pub fn processor(stage: &mut Stage) -> Result<(), Failure> {
    let count = stage.either(1000, 5000);
    allow_files(2 * count as u64 + 500)?;
    let watched = ["--park-after", "1s", "--return-after", "1h"];
    let goal = (!stage.options.quick).then_some(Goal::AtMost {
        must: 20.0,
        aim: 5.0,
    });
    let transaction = Setup {
        flags: watched.map(str::to_owned).to_vec(),
        ..Setup::new(Mode::Transaction, stage.options.pool)
    };
    let what = format!("CPU while {count} clients idle for 30 s, park detection on");
    let mut figure = Figure::new("idle", &what, "ms", goal);
    let targets = fleet::start(stage, &transaction, Guests::Poolers)?;
    resting(stage, &targets, count, &mut figure)?;
    drop(targets);
    stage.report.add(figure);
    let leases = Setup {
        flags: watched.map(str::to_owned).to_vec(),
        upstream: Some(fake::start()?),
        ..Setup::new(Mode::Session, count + 100)
    };
    let what = format!("{what}, each with a lease");
    let mut figure = Figure::new("idle", &what, "ms", goal);
    // One after the other: each lease takes two files here as well.
    for target in fleet::start(stage, &leases, Guests::Poolers)? {
        resting(stage, &[target], count, &mut figure)?;
    }
    stage.report.add(figure);
    Ok(())
}

fn resting(
    stage: &Stage,
    targets: &[Target],
    count: usize,
    figure: &mut Figure,
) -> Result<(), Failure> {
    let mut crowds = Vec::new();
    for target in targets {
        let mut crowd = Crowd::gather(target, &target.login, count)?;
        crowd.ask()?;
        crowds.push(crowd);
    }
    // Until what the logins left behind is done.
    std::thread::sleep(Duration::from_secs(stage.either(1, 3)));
    let span = stage.either(5.0, SPAN);
    let before: Vec<Duration> = targets.iter().map(Target::cpu).collect::<Result<_, _>>()?;
    std::thread::sleep(Duration::from_secs_f64(span));
    for (target, before) in targets.iter().zip(before) {
        let spent = target.cpu()?.saturating_sub(before).as_secs_f64();
        figure.note(&target.name, 0, spent * 1e3 * SPAN / span);
    }
    Ok(())
}
