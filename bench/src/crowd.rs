//! Owns many clients at once: those that idle, those that come and go, and those that watch how long a query takes.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, ScopedJoinHandle};
use std::time::{Duration, Instant};

use crate::Failure;
use crate::fleet::Target;
use crate::wire::{Client, Login, query};

/// How many clients log in at the same time.
const DOORS: usize = 8;

/// A statement that is cheap for everybody.
pub const CHEAP: &str = "SELECT 1";

/// Clients that are connected, and do nothing.
#[derive(Debug)]
pub struct Crowd(Vec<Client>);

impl Crowd {
    /// Connects `count` clients.
    pub fn gather(target: &Target, login: &Login, count: usize) -> Result<Self, Failure> {
        let some = |door: usize| -> Result<Vec<Client>, Failure> {
            let share = count / DOORS + usize::from(door < count % DOORS);
            let client = |place| {
                Client::connect(&target.address, login).map_err(|error| {
                    format!("{}: client {place} of {share}: {error}", target.name).into()
                })
            };
            (0..share).map(client).collect()
        };
        let clients = thread::scope(|scope| {
            let doors: Vec<_> = (0..DOORS)
                .map(|door| scope.spawn(move || some(door)))
                .collect();
            all(doors)
        })?;
        Ok(Self(clients.into_iter().flatten().collect()))
    }

    /// Has each run a query.
    pub fn ask(&mut self) -> Result<(), Failure> {
        self.say(CHEAP)
    }

    /// Has each run this statement.
    pub fn say(&mut self, sql: &str) -> Result<(), Failure> {
        let request = query(sql);
        let share = self.0.len().div_ceil(DOORS).max(1);
        thread::scope(|scope| {
            let some = |clients: &mut [Client]| {
                let mut buffer = [0; 1024];
                clients
                    .iter_mut()
                    .try_for_each(|client| client.round_trip(&request, &mut buffer))
            };
            let shares = self.0.chunks_mut(share);
            let doors: Vec<_> = shares
                .map(|clients| scope.spawn(move || some(clients)))
                .collect();
            all(doors).map(|_| ())
        })
    }
}

/// Has `count` clients log in and leave, some at the same time.
pub fn storm(target: &Target, count: usize) -> Result<(), Failure> {
    thread::scope(|scope| {
        let some = || -> Result<(), Failure> {
            for _ in 0..count / DOORS {
                target.connect()?.goodbye()?;
            }
            Ok(())
        };
        let doors: Vec<_> = (0..DOORS).map(|_| scope.spawn(some)).collect();
        all(doors).map(|_| ())
    })
}

fn all<T>(threads: Vec<ScopedJoinHandle<'_, Result<T, Failure>>>) -> Result<Vec<T>, Failure> {
    threads
        .into_iter()
        .map(|thread| thread.join().map_err(|_| "a thread panicked")?)
        .collect()
}

/// Query after query, each with when it was sent and how long it took.
#[derive(Debug, Default)]
pub struct Watch(Vec<(Instant, Duration)>);

impl Watch {
    /// Watches with `count` clients while `work` is done.
    pub fn during<T>(
        target: &Target,
        count: usize,
        work: impl FnOnce() -> Result<T, Failure>,
    ) -> Result<(T, Self), Failure> {
        let over = AtomicBool::new(false);
        let watch = || -> Result<Vec<(Instant, Duration)>, Failure> {
            let mut client = target.connect()?;
            let request = query(CHEAP);
            let mut buffer = [0; 1024];
            let mut seen = Vec::new();
            while !over.load(Ordering::Relaxed) {
                let sent = Instant::now();
                client.round_trip(&request, &mut buffer)?;
                seen.push((sent, sent.elapsed()));
            }
            Ok(seen)
        };
        thread::scope(|scope| {
            let watching: Vec<_> = (0..count).map(|_| scope.spawn(watch)).collect();
            let done = work();
            over.store(true, Ordering::Relaxed);
            let seen = all(watching)?.into_iter().flatten().collect();
            Ok((done?, Self(seen)))
        })
    }

    /// How long the queries took that were under way between two moments, in microseconds, sorted.
    pub fn between(&self, from: Instant, to: Instant) -> Vec<f64> {
        let inside = self
            .0
            .iter()
            .filter(|(sent, took)| *sent < to && *sent + *took > from);
        let mut times: Vec<f64> = inside.map(|(_, took)| took.as_secs_f64() * 1e6).collect();
        times.sort_by(f64::total_cmp);
        times
    }
}
