//! The same random session, straight on PostgreSQL and through pgvalet that returns its lease again and again: the same
//! answers, message by message. `PGVALET_TEST_SEED=7` runs one seed only, `PGVALET_TEST_ROUNDS=500` runs more of them.

use serde_json::Value;

use crate::stage::session;
use crate::support::messages::{
    bind, close_statement, copy_data, copy_done, describe_statement, execute, extended, parse,
    query, sync,
};
use crate::support::{Message, Postgres, Raw, Valet, direct};

/// How many requests a session makes.
const STEPS: usize = 200;

/// A small generator (xorshift64*): the tests are the same everywhere, by seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let number = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33;
        usize::try_from(number).expect("31 bits") % sides
    }

    fn pick<'a>(&mut self, choices: &[&'a str]) -> &'a str {
        choices[self.roll(choices.len())]
    }
}

const SIMPLE: [&str; 56] = [
    "SELECT 1",
    "SELECT 1; SELECT 2; SELECT 3",
    "",
    ";",
    "SELECT 1/0",
    "SELECT nothing",
    "SELECT 1; SELECT 1/0; SELECT 2",
    "BEGIN",
    "BEGIN ISOLATION LEVEL SERIALIZABLE",
    "COMMIT",
    "COMMIT AND CHAIN",
    "ROLLBACK",
    "ROLLBACK",
    "SAVEPOINT s",
    "ROLLBACK TO s",
    "RELEASE s",
    "BEGIN; INSERT INTO t VALUES (2); COMMIT",
    "INSERT INTO t VALUES (1)",
    "SELECT count(*) FROM t",
    "SET TimeZone = 'Asia/Tokyo'",
    "SET TimeZone = 'Europe/Paris'",
    "SET LOCAL TimeZone = 'America/Lima'",
    "RESET TimeZone",
    "SHOW TimeZone",
    "SHOW search_path",
    "SHOW work_mem",
    "SET search_path = public, pg_catalog",
    "SET search_path = \"odd one\", \"$user\", public",
    "RESET search_path",
    "SET work_mem = '3MB'",
    "SET statement_timeout = '50s'",
    "SHOW statement_timeout",
    "SET application_name = 'renamed'",
    "SHOW application_name",
    "SET ROLE alice",
    "RESET ROLE",
    "SELECT current_user, session_user",
    "SET app.tenant = 'acme'",
    "SET LOCAL app.tenant = 'local'",
    "SELECT set_config('app.tenant', 'configured', false)",
    "SELECT coalesce(current_setting('app.tenant', true), '')",
    "RESET ALL",
    "DISCARD ALL",
    "DEALLOCATE ALL",
    "DEALLOCATE s1",
    "PREPARE q AS SELECT 'sql'",
    "EXECUTE q",
    "DEALLOCATE q",
    "DECLARE c CURSOR FOR SELECT generate_series(1, 5)",
    "FETCH 2 FROM c",
    "COPY (SELECT generate_series(1, 3)) TO stdout",
    "COPY nothing TO stdout",
    "SELECT pg_advisory_lock(1)",
    "SELECT pg_advisory_unlock_all()",
    "CREATE TEMP TABLE IF NOT EXISTS mine (a int)",
    "DROP TABLE IF EXISTS mine",
];

const TEXTS: [&str; 6] = [
    "SELECT $1::text || 'x'",
    "SELECT count(*), $1::text FROM t",
    "INSERT INTO t VALUES (length($1::text))",
    "SELECT nothing, $1::text",
    "SELECT generate_series(1, 4), $1::text",
    "SELECT current_user, $1::text",
];

/// A request that is answered by one ReadyForQuery.
fn request(dice: &mut Dice) -> Vec<u8> {
    let name = dice.pick(&["", "s1", "s2", "s3"]);
    let text = dice.pick(&TEXTS);
    let run = |limit| [bind("", name, &["v"]), execute("", limit)].concat();
    match dice.roll(16) {
        0 | 1 => [parse(name, text), sync()].concat(),
        2 | 3 => [run(0), sync()].concat(),
        4 => [run(2), execute("", 0), sync()].concat(),
        5 => [close_statement(name), parse(name, text), run(0), sync()].concat(),
        6 => [
            parse(name, text),
            describe_statement(name),
            run(0),
            run(0),
            sync(),
        ]
        .concat(),
        7 => [
            extended(text, &["v"]),
            extended("SELECT 1/0", &[]),
            extended(text, &["w"]),
            sync(),
        ]
        .concat(),
        8 => [describe_statement(name), close_statement(name), sync()].concat(),
        9 => sync(),
        10 => [
            extended("BEGIN", &[]),
            extended(text, &["v"]),
            extended("COMMIT", &[]),
            sync(),
        ]
        .concat(),
        11 => [query("COPY t FROM stdin"), copy_data("7\n"), copy_done()].concat(),
        _ => query(dice.pick(&SIMPLE)),
    }
}

/// What a client sees of a message; table oids in a RowDescription differ by database.
fn seen(message: &Message) -> String {
    match message.tag {
        b'D' => format!("D{:?}", message.columns()),
        b'E' => format!("E{}{:?}", message.sqlstate(), message.field(b'M')),
        b'T' => "T".to_owned(),
        _ => format!("{message:?}"),
    }
}

/// Everything that a client sees of one request, and of its session afterwards.
fn answer(client: &mut Raw, request: &[u8]) -> Vec<String> {
    client.send(request);
    let mut answer: Vec<String> = client.until_ready().iter().map(seen).collect();
    let reported = client
        .parameters
        .iter()
        .filter(|(name, _)| *name != "pgvalet.session");
    answer.extend(reported.map(|(name, value)| format!("{name}={value}")));
    answer
}

/// Takes the lease back where that is possible, and lets somebody else have the backend now and then.
fn meddle(valet: &Valet, client: &Raw, other: &mut Raw, dice: &mut Dice) {
    if !direct() && dice.roll(3) == 0 {
        let (status, answer) = valet.admin(
            "POST",
            &format!("/v1/leases/{}/return", client.session()),
            &Value::Null,
        );
        assert!([200, 409].contains(&status), "{answer}");
    }
    if dice.roll(4) == 0 {
        assert_eq!(
            other.value("SET TimeZone = 'Asia/Kolkata'; SELECT current_setting('TimeZone')"),
            "Asia/Kolkata"
        );
    }
}

/// The first seed, and those that follow.
fn seeds(first: u64) -> std::ops::Range<u64> {
    let number = |name: &str| {
        std::env::var(name)
            .ok()
            .and_then(|value| value.parse::<u64>().ok())
    };
    match number("PGVALET_TEST_SEED") {
        Some(seed) => seed..seed + 1,
        None => first..first + number("PGVALET_TEST_ROUNDS").unwrap_or(8),
    }
}

/// The startup parameters of a seed's session: its own ones for every other seed.
fn startup(database: &'static str, seed: u64) -> Vec<(&'static str, &'static str)> {
    let mut parameters = vec![
        ("user", "postgres"),
        ("database", database),
        ("application_name", "app"),
    ];
    if seed % 2 == 1 {
        parameters.push(("options", "-c work_mem=5MB -c TimeZone=Asia/Seoul"));
    }
    parameters
}

#[track_caller]
fn no_difference(first: u64, flags: &[&str]) {
    let postgres = Postgres::start();
    postgres.sql("CREATE ROLE alice LOGIN; CREATE TABLE t (a int); GRANT ALL ON t TO alice");
    postgres.sql("CREATE DATABASE twin TEMPLATE postgres");
    let valet = Valet::front_with(&postgres, flags);
    for seed in seeds(first) {
        let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let mut straight = Raw::connect_with(postgres.port(), &startup("twin", seed));
        let mut through = Raw::connect_with(valet.port(), &startup("postgres", seed));
        let mut other = session(&valet, "other");
        let mut story = Vec::new();
        for step in 0..STEPS {
            let request = request(&mut dice);
            story.push(String::from_utf8_lossy(&request).replace(|c: char| c.is_control(), "·"));
            let expected = answer(&mut straight, &request);
            let got = answer(&mut through, &request);
            let before = &story[story.len().saturating_sub(25)..];
            assert_eq!(
                expected, got,
                "seed {seed}, step {step}, flags {flags:?}, after {before:#?}"
            );
            meddle(&valet, &through, &mut other, &mut dice);
        }
        [straight, through, other]
            .into_iter()
            .for_each(Raw::goodbye);
    }
}

#[test]
fn a_session_whose_lease_is_returned_at_random() {
    no_difference(0, &["--max-backends", "2"]);
}

#[test]
fn a_session_in_transaction_mode() {
    no_difference(1000, &["--max-backends", "2", "--mode", "transaction"]);
}

#[test]
fn a_session_that_is_moved_at_every_quiet_point() {
    no_difference(2000, &["--max-backends", "3", "--chaos-return", "always"]);
}
