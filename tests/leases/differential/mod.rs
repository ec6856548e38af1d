//! The same random programs of several sessions, straight on PostgreSQL and through pgvalet that returns their leases again
//! and again: the same answers, message by message.
//!
//! `PGVALET_TEST_SEED=7` runs one seed only, `PGVALET_TEST_ROUNDS=500` runs more of them,
//! `PGVALET_TEST_FIRST=7000` others. A failing program is shrunk, and
//! kept in `cases/`, where it is run again by every test run.

mod grammar;
pub mod program;

use std::panic::{AssertUnwindSafe, catch_unwind};

use serde_json::Value;

use crate::stage::session;
use crate::support::messages::{query, terminate};
use crate::support::{Message, Postgres, Raw, Valet, direct};

use grammar::{AS_AT_FIRST, SCHEMA};
use program::{Shape, Step};

/// What a client sees of a message; table oids in a RowDescription differ by database.
pub fn seen(message: &Message) -> String {
    match message.tag {
        b'D' => format!("D{:?}", message.columns()),
        tag @ (b'E' | b'N') => {
            let text = message.field(b'M');
            format!("{}{}{text:?}", char::from(tag), message.sqlstate())
        }
        b'T' => format!("T{:?}", columns(&message.body)),
        _ => format!("{message:?}"),
    }
}

/// The columns of a RowDescription: each one's name, and what follows the oid of its table.
fn columns(body: &[u8]) -> Vec<String> {
    let mut rest = &body[2..];
    let mut columns = Vec::new();
    while let Some(end) = rest.iter().position(|&byte| byte == 0) {
        let (name, fixed) = rest.split_at(end);
        let (fixed, next) = fixed[1..].split_at(18);
        columns.push(format!("{} {:?}", name.escape_ascii(), &fixed[4..]));
        rest = next;
    }
    columns
}

/// Everything that a client sees of one request, and of its session afterwards. What precedes a Flush is awaited there.
fn answer(client: &mut Raw, request: &[u8]) -> Vec<String> {
    let mut answer = Vec::new();
    let mut due = requests(request);
    let mut rest = request;
    let mut failed = false;
    while due > 0 {
        let part = if failed { rest } else { up_to_flush(rest) };
        client.send(part);
        rest = &rest[part.len()..];
        let mut runs = count(part, b"E");
        while if rest.is_empty() {
            due > 0
        } else {
            runs > 0 && !failed
        } {
            let message = client.next();
            match message.tag {
                // Those may come at any time.
                b'S' | b'A' => continue,
                b'Z' => due -= 1,
                b'C' | b's' | b'I' => runs = runs.saturating_sub(1),
                b'E' => failed = true,
                // It skips a Sync that comes ahead of its data.
                b'G' => due -= skipped(request),
                _ => {}
            }
            answer.push(seen(&message));
        }
    }
    leave_out_parameters_of_failures(&mut answer);
    let reported = client
        .parameters
        .iter()
        .filter(|(name, _)| *name != "pgvalet.session");
    answer.extend(reported.map(|(name, value)| format!("{name}={value}")));
    answer
}

/// PostgreSQL says which parameters a statement has, and then that it can't be run any more. Where it can't even be prepared
/// again elsewhere, nobody knows which ones it had. One whose columns have changed can be: there they are known.
fn leave_out_parameters_of_failures(answer: &mut Vec<String>) {
    let fails = |message: &str| message.starts_with('E') && !message.starts_with("E0A000");
    for at in (1..answer.len()).rev() {
        if answer[at - 1].starts_with("t[") && fails(&answer[at]) {
            answer.remove(at - 1);
        }
    }
}

/// The kinds of these messages, and where each ends.
fn kinds(messages: &[u8]) -> impl Iterator<Item = (u8, usize)> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let [kind, a, b, c, d, ..] = messages[at..] else {
            return None;
        };
        at += 1 + u32::from_be_bytes([a, b, c, d]) as usize;
        Some((kind, at))
    })
}

/// How many messages are of one of these kinds.
fn count(messages: &[u8], wanted: &[u8]) -> usize {
    kinds(messages)
        .filter(|(kind, _)| wanted.contains(kind))
        .count()
}

/// How many ReadyForQuery answer these messages.
fn requests(messages: &[u8]) -> usize {
    count(messages, b"QSF")
}

/// The messages up to the first Flush.
fn up_to_flush(messages: &[u8]) -> &[u8] {
    let flush = kinds(messages).find(|(kind, _)| *kind == b'H');
    &messages[..flush.map_or(messages.len(), |(_, end)| end)]
}

/// How many Sync stand right before CopyData.
fn skipped(messages: &[u8]) -> usize {
    let kinds: Vec<u8> = kinds(messages).map(|(kind, _)| kind).collect();
    kinds.windows(2).filter(|pair| *pair == b"Sd").count()
}

/// The first seed, and those that follow.
pub fn seeds(first: u64, rounds: u64) -> std::ops::Range<u64> {
    let number = |name: &str| {
        std::env::var(name)
            .ok()
            .and_then(|value| value.parse::<u64>().ok())
    };
    match number("PGVALET_TEST_SEED") {
        Some(seed) => seed..seed + 1,
        None => {
            let first = first + number("PGVALET_TEST_FIRST").unwrap_or(0);
            first..first + number("PGVALET_TEST_ROUNDS").unwrap_or(rounds)
        }
    }
}

/// The startup parameters of a session: its own ones for every other one.
fn startup(database: &'static str, session: usize) -> Vec<(&'static str, &'static str)> {
    let mut parameters = vec![
        ("user", "postgres"),
        ("database", database),
        ("application_name", "app"),
    ];
    if session == 1 {
        parameters.push(("options", "-c work_mem=5MB -c TimeZone=Asia/Seoul"));
    }
    parameters
}

/// Two databases that are alike, and pgvalet in front of one of them.
struct Twins {
    postgres: Postgres,
    valet: Valet,
    shape: Shape,
}

impl Twins {
    fn new(postgres: Postgres, flags: &[&str], shape: Shape) -> Self {
        postgres.sql(SCHEMA);
        postgres.sql("CREATE DATABASE twin TEMPLATE postgres");
        let valet = Valet::front_with(&postgres, flags);
        Self {
            postgres,
            valet,
            shape,
        }
    }

    /// Runs a program; the difference, and what led to it.
    fn run(&self, program: &[Step]) -> Result<(), String> {
        let connect = |number| {
            (
                Raw::connect_with(self.postgres.port(), &startup("twin", number)),
                Raw::connect_with(self.valet.port(), &startup("postgres", number)),
            )
        };
        let mut pairs: Vec<(Raw, Raw)> = (0..self.shape.sessions).map(connect).collect();
        for (straight, through) in &mut pairs[..1] {
            for one in [straight, through] {
                one.value("TRUNCATE t, logins, side.t, children");
                one.value(AS_AT_FIRST);
            }
        }
        let compared = program.iter().enumerate().try_for_each(|(at, step)| {
            if step.request == terminate() {
                let fresh = connect(step.session);
                let (straight, through) = std::mem::replace(&mut pairs[step.session], fresh);
                straight.goodbye();
                through.goodbye();
                return Ok(());
            }
            let (straight, through) = &mut pairs[step.session];
            if step.request.is_empty() {
                self.take_back(through);
                return Ok(());
            }
            let mut request = step.request.clone();
            loop {
                let expected = answer(straight, &request);
                let got = answer(through, &request);
                if expected != got {
                    let leases = self.valet.get("/v1/leases");
                    return Err(format!(
                        "step {at}: expected {expected:#?}, got {got:#?}, leases {leases:#}"
                    ));
                }
                let last = expected.iter().rfind(|seen| seen.starts_with("Z["));
                let open = last.is_none_or(|seen| seen != "Z[1]\"I\"");
                if !open || step.session < self.shape.holding {
                    return Ok(());
                }
                // Whoever may not hold a backend leaves no transaction open.
                request = query("ROLLBACK");
            }
        });
        for (straight, through) in pairs {
            straight.goodbye();
            through.goodbye();
        }
        compared
    }

    /// Takes a session's lease back where that is possible, and has somebody else use a backend.
    fn take_back(&self, client: &Raw) {
        if direct() {
            return;
        }
        let path = format!("/v1/leases/{}/return", client.session());
        let (status, answer) = self.valet.admin("POST", &path, &Value::Null);
        assert!([200, 409].contains(&status), "{answer}");
        let mut other = session(&self.valet, "other");
        let zone = "SET TimeZone = 'Asia/Kolkata'; SELECT current_setting('TimeZone')";
        assert_eq!(other.value(zone), "Asia/Kolkata");
        other.goodbye();
    }

    fn fails(&self, program: &[Step]) -> Option<String> {
        let run = catch_unwind(AssertUnwindSafe(|| self.run(program)));
        match run {
            Ok(Ok(())) => None,
            Ok(Err(difference)) => Some(difference),
            Err(panic) => Some(
                panic
                    .downcast_ref::<String>()
                    .cloned()
                    .unwrap_or_else(|| "a panic".to_owned()),
            ),
        }
    }
}

/// Runs the programs of these seeds on `postgres`, which is new.
#[track_caller]
pub fn no_difference(
    postgres: Postgres,
    seeds: std::ops::Range<u64>,
    (flags, shape): (&[&str], Shape),
) {
    let twins = Twins::new(postgres, flags, shape);
    for seed in seeds {
        let program = program::generate(seed, shape);
        if let Some(difference) = twins.fails(&program) {
            let small = program::shrink(program, |steps| twins.fails(steps).is_some());
            let text = format!("# seed {seed}, flags {flags:?}\n{}", program::write(&small));
            let file = program::cases().join(format!("seed-{seed}.case"));
            std::fs::write(&file, &text).expect("the program can be kept");
            panic!(
                "seed {seed}, flags {flags:?}: {difference}\nshrunk, and kept in {}:\n{text}",
                file.display()
            );
        }
    }
}

const TWO: Shape = Shape {
    sessions: 2,
    holding: 2,
    steps: 24,
    returns: 6,
};

const EIGHT: Shape = Shape {
    sessions: 8,
    holding: 2,
    steps: 30,
    returns: 24,
};

/// Returns at random, at the end of each transaction, at every quiet point, the same with a shared listener, and at random
/// where PostgreSQL was asked ahead.
pub const MODES: [(&[&str], Shape); 5] = [
    (&["--max-backends", "3"], TWO),
    (
        &[
            "--max-backends",
            "3",
            "--acquire-timeout",
            "10s",
            "--mode",
            "transaction",
        ],
        EIGHT,
    ),
    (
        &[
            "--max-backends",
            "3",
            "--acquire-timeout",
            "10s",
            "--chaos-return",
            "always",
        ],
        EIGHT,
    ),
    // One backend of them listens.
    (
        &[
            "--max-backends",
            "4",
            "--acquire-timeout",
            "10s",
            "--chaos-return",
            "always",
            "--listening",
            "share",
        ],
        EIGHT,
    ),
    (&["--max-backends", "3", "--chaos-return", "ask"], TWO),
];

/// Runs the programs that once failed, in each mode that has as many sessions.
pub fn no_relapse() {
    let mut files: Vec<_> = std::fs::read_dir(program::cases())
        .expect("the directory of cases")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|kind| kind == "case"))
        .collect();
    files.sort();
    for (flags, shape) in MODES {
        let twins = Twins::new(Postgres::start(), flags, EIGHT);
        for file in &files {
            let text = std::fs::read_to_string(file).expect("a case");
            let program = program::read(&text);
            if program.iter().any(|step| step.session >= shape.sessions) {
                continue;
            }
            let difference = twins.fails(&program);
            assert_eq!(difference, None, "{} with {flags:?}", file.display());
        }
    }
}
