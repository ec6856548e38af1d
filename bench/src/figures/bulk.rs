//! What much data costs: a large SELECT of 1 kB rows, COPY out and in.

use std::time::Instant;

use crate::Failure;
use crate::fleet::{self, Guests, Mode, Setup, Target};
use crate::report::{Figure, Goal};
use crate::stage::Stage;
use crate::wire::{Client, frame, query};

#[derive(Clone, Copy, Debug)]
enum Kind {
    Select,
    CopyOut,
    CopyIn,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Select => "SELECT of 1 kB rows",
            Self::CopyOut => "COPY out of 1 kB rows",
            Self::CopyIn => "COPY in of 1 kB rows",
        }
    }

    /// What processor time should come to, and throughput.
    fn goals(self) -> (Goal, Option<Goal>) {
        let at_most = |must, aim| Goal::RatioAtMost { must, aim };
        let at_least = |must, aim| Goal::RatioAtLeast { must, aim };
        match self {
            Self::Select => (at_most(0.7, 0.45), Some(at_least(1.3, 1.7))),
            Self::CopyOut => (at_most(1.05, 0.8), None),
            Self::CopyIn => (at_most(0.8, 0.65), None),
        }
    }

    /// Moves `rows`; how many bytes passed.
    fn run(self, client: &mut Client, rows: u64, buffer: &mut [u8]) -> Result<u64, Failure> {
        let select = format!("SELECT repeat('x', 1000) FROM generate_series(1, {rows})");
        match self {
            Self::Select => {
                client.send(&query(&select))?;
                client.until_ready(buffer)
            }
            Self::CopyOut => {
                client.send(&query(&format!("COPY ({select}) TO STDOUT")))?;
                client.until_ready(buffer)
            }
            Self::CopyIn => {
                // Read and parsed, but not written.
                client.send(&query("COPY sink FROM STDIN WHERE false"))?;
                let (tag, _) = client.message()?;
                if tag != b'G' {
                    return Err("COPY didn't begin".into());
                }
                // As libpq sends it: CopyData of 8 kB, several in one write.
                let line = [&[b'x'; 1000][..], b"\n"].concat().repeat(8);
                let piece = frame(b'd', &line).repeat(8);
                for _ in 0..rows / 64 {
                    client.send(&piece)?;
                }
                client.send(&frame(b'c', &[]))?;
                client.until_ready(buffer)?;
                Ok(rows / 64 * piece.len() as u64)
            }
        }
    }
}

pub fn streams(stage: &mut Stage) -> Result<(), Failure> {
    let rows = stage.either(100_000, 400_000);
    let mut targets = vec![fleet::direct(stage)];
    let setup = Setup::new(Mode::Session, 4);
    targets.extend(fleet::start(stage, &setup, Guests::All)?);
    for kind in [Kind::Select, Kind::CopyOut, Kind::CopyIn] {
        let (cpu_goal, rate_goal) = kind.goals();
        let name = |what: &str| format!("{what}: {}", kind.name());
        let mut cpu = Figure::new("bulk", &name("CPU a GB"), "ms", Some(cpu_goal));
        let mut rate = Figure::new("bulk", &name("throughput"), "MB/s", rate_goal);
        for round in 0..stage.rounds() {
            for target in &targets {
                let (each, throughput) = turn(target, kind, rows)?;
                if target.pid.is_some() {
                    cpu.note(&target.name, round, each);
                }
                rate.note(&target.name, round, throughput);
            }
        }
        stage.report.add(cpu);
        stage.report.add(rate);
    }
    Ok(())
}

/// Milliseconds of processor time a GB, and MB a second.
#[expect(clippy::cast_precision_loss, reason = "a count of bytes below 2^52")]
fn turn(target: &Target, kind: Kind, rows: u64) -> Result<(f64, f64), Failure> {
    let mut client = target.connect()?;
    let mut buffer = vec![0; 256 << 10];
    client.round_trip(&query(crate::crowd::CHEAP), &mut buffer)?;
    let (before, began) = (target.cpu()?, Instant::now());
    let bytes = kind.run(&mut client, rows, &mut buffer)? as f64;
    let took = began.elapsed().as_secs_f64();
    let spent = target.cpu()?.saturating_sub(before).as_secs_f64();
    client.goodbye()?;
    Ok((spent * 1e3 / (bytes / 1e9), bytes / 1e6 / took))
}
