//! How long others wait while pgvalet deals with very many leases: views, metrics, park detection, a reload.

use std::time::{Duration, Instant};

use crate::accounting::{allow_files, files_at_most, thread};
use crate::crowd::{CHEAP, Crowd, Watch};
use crate::fleet::{self, Guests, Mode, PGVALET, Setup, Target};
use crate::pgbench::percentile;
use crate::report::{Figure, Goal};
use crate::stage::Stage;
use crate::wire::Login;
use crate::{Failure, fake, http};

/// Who serves sessions, in a pgvalet with one such thread.
const DATA_THREAD: &str = "pgvalet-data-0";

/// What may hold up a query.
#[derive(Clone, Copy, Debug)]
enum Burden {
    Scrape,
    Leases,
    ParkDetection,
}

const BURDENS: [Burden; 3] = [Burden::Scrape, Burden::Leases, Burden::ParkDetection];

impl Burden {
    fn name(self) -> &'static str {
        match self {
            Self::Scrape => "one scrape of /metrics",
            Self::Leases => "one GET /v1/leases",
            Self::ParkDetection => "one pass of park detection",
        }
    }

    /// How often a round has it.
    fn tries(self) -> usize {
        match self {
            Self::Scrape | Self::Leases => 5,
            Self::ParkDetection => 1,
        }
    }

    fn bear(self, target: &Target) -> Result<(), Failure> {
        match self {
            Self::Scrape => drop(http::call(target.metrics, "GET", "/metrics", "")?),
            Self::Leases => drop(http::call(target.admin, "GET", "/v1/leases", "")?),
            // It passes once a second.
            Self::ParkDetection => std::thread::sleep(Duration::from_millis(1100)),
        }
        Ok(())
    }
}

fn pgvalet(stage: &Stage, setup: &Setup) -> Result<Target, Failure> {
    let targets = fleet::start(stage, setup, Guests::Poolers)?;
    let ours = targets.into_iter().find(|target| target.name == PGVALET);
    ours.ok_or_else(|| "no pgvalet".into())
}

pub fn delays(stage: &mut Stage) -> Result<(), Failure> {
    let count = stage.either(2000, 10_000);
    // Where fewer files may be open, fewer leases: each takes two, here and in pgvalet.
    let count = match allow_files(2 * count as u64 + 1000) {
        Ok(()) => count,
        Err(error) => {
            let most = files_at_most();
            allow_files(most)?;
            stage.say(&error.to_string());
            usize::try_from(most)?.saturating_sub(1000) / 2
        }
    };
    let setup = Setup {
        upstream: Some(fake::start()?),
        flags: vec!["--park-after".into(), "1s".into()],
        ..Setup::new(Mode::Session, count + 100)
    };
    let (target, empty) = (pgvalet(stage, &setup)?, pgvalet(stage, &setup)?);
    let mut crowd = Crowd::gather(&target, &target.login, count)?;
    crowd.ask()?;
    let goal = Goal::AtMost {
        must: 1.0,
        aim: 1.0,
    };
    for burden in BURDENS {
        let about = format!("{count} leases: {}", burden.name());
        let figure =
            |what: &str, goal| Figure::new("leases", &format!("{what}, {about}"), "ms", goal);
        let mut added = figure(
            "longest delay of a query beyond that without leases",
            Some(goal),
        );
        let mut longest = figure("longest delay of a query", None);
        let mut floor = figure("longest delay of a query without leases, instead of", None);
        let mut time = figure("time of the data thread", None);
        for round in 0..stage.rounds() {
            let (mut without, mut with) = (Vec::new(), Vec::new());
            // One after the other, and several times: what else the machine does meets both, and seldom each time.
            for _ in 0..burden.tries() {
                without.push(delay(&empty, burden)?);
                with.push(delay(&target, burden)?);
            }
            without.sort_by(f64::total_cmp);
            with.sort_by(f64::total_cmp);
            let (without, with) = (percentile(&without, 0.5), percentile(&with, 0.5));
            added.note(PGVALET, round, (with - without).max(0.0));
            longest.note(PGVALET, round, with);
            floor.note(PGVALET, round, without);
            time.note(PGVALET, round, taken(&target, burden)?);
        }
        for figure in [added, longest, floor, time] {
            stage.report.add(figure);
        }
    }
    Ok(())
}

/// How many milliseconds the data thread is busy with it, while nobody asks anything else: a query may wait so long.
fn taken(target: &Target, burden: Burden) -> Result<f64, Failure> {
    let pid = target.pid.ok_or("no process")?;
    let before = thread(pid, DATA_THREAD)?;
    burden.bear(target)?;
    let after = thread(pid, DATA_THREAD)?;
    Ok(after.saturating_sub(before).as_secs_f64() * 1e3)
}

/// By how many milliseconds the slowest query under way was slower than is usual.
fn delay(target: &Target, burden: Burden) -> Result<f64, Failure> {
    let ((from, to), watch) = Watch::during(target, 1, || {
        std::thread::sleep(Duration::from_millis(200));
        let from = Instant::now();
        burden.bear(target)?;
        let to = Instant::now();
        std::thread::sleep(Duration::from_millis(20));
        Ok((from, to))
    })?;
    let usual = percentile(&watch.between(from - Duration::from_millis(200), from), 0.5);
    let slowest = percentile(&watch.between(from, to), 1.0);
    Ok((slowest - usual) / 1e3)
}

/// What a session of the crowd says before it parks, and what is said of it.
const SAID: [(&str, &str); 2] = [
    ("", CHEAP),
    (" that made a setting", "SET work_mem = '5MB'"),
];

/// Sessions that a reload returns, while others go on.
pub fn reload(stage: &mut Stage) -> Result<(), Failure> {
    let count = stage.either(200, 1000);
    let setup = Setup {
        flags: vec!["--park-after".into(), "100ms".into()],
        ..Setup::new(Mode::Session, count + 20)
    };
    let target = pgvalet(stage, &setup)?;
    let parked = Login {
        application: Some("parked"),
        ..Login::default()
    };
    let mut crowd = Crowd::gather(&target, &parked, count)?;
    for (which, sql) in SAID {
        let about = format!("{count} parked leases{which}");
        let figure =
            |what: &str, unit, goal| Figure::new("reload", &format!("{what} {about}"), unit, goal);
        let goal = Goal::AtMost {
            must: 1.5,
            aim: 1.1,
        };
        let mut ratio = figure(
            "p99 of queries, to before, during a reload of",
            "×",
            Some(goal),
        );
        let mut afterwards = figure(
            "p99 of queries, to before, in the second after a reload of",
            "×",
            None,
        );
        let mut took = figure("duration of a reload of", "ms", None);
        for round in 0..stage.rounds() {
            crowd.say(sql)?;
            await_foresight(&target)?;
            let (times, watch) = Watch::during(&target, 4, || reload_once(&target, count))?;
            let [begin, from, to, end] = times;
            let before = percentile(&watch.between(begin, from), 0.99);
            let during = percentile(&watch.between(from, to), 0.99);
            let after = percentile(&watch.between(to, end), 0.99);
            ratio.note(PGVALET, round, during / before);
            afterwards.note(PGVALET, round, after / before);
            took.note(PGVALET, round, (to - from).as_secs_f64() * 1e3);
        }
        for figure in [ratio, afterwards, took] {
            stage.report.add(figure);
        }
    }
    Ok(())
}

/// Waits until all are parked, and nobody is left whom pgvalet asks ahead: it begins once a second.
fn await_foresight(target: &Target) -> Result<(), Failure> {
    const PROBES: &str = "\npgvalet_probes_total ";
    let mut before = None;
    loop {
        std::thread::sleep(Duration::from_millis(1500));
        let page = http::call(target.metrics, "GET", "/metrics", "")?;
        let (_, value) = page.split_once(PROBES).ok_or("no count of probes")?;
        let value: Option<String> = value.lines().next().map(str::to_owned);
        if value == before {
            return Ok(());
        }
        before = value;
    }
}

/// When the watch began, when the reload did, when it was over, and a second later.
fn reload_once(target: &Target, count: usize) -> Result<[Instant; 4], Failure> {
    let begin = Instant::now();
    std::thread::sleep(Duration::from_secs(1));
    let from = Instant::now();
    let body = r#"{"application": "parked", "deadline": "30s"}"#;
    let answer = http::call(target.admin, "POST", "/v1/reloads", body)?;
    let to = Instant::now();
    let answer: serde_json::Value = serde_json::from_str(&answer)?;
    let returned = answer["counts"]["returned"].as_u64();
    if returned != Some(count as u64) {
        return Err(format!("{count} leases were to be returned: {}", answer["counts"]).into());
    }
    std::thread::sleep(Duration::from_secs(1));
    Ok([begin, from, to, Instant::now()])
}
