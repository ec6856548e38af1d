//! The grammar of the random programs: what a client may send, one request at a time.

use crate::support::messages::{
    bind, close_portal, close_statement, copy_data, copy_done, copy_fail, describe_statement,
    execute, extended, flush, parse, query, sync,
};

mod strange;

/// A small generator (xorshift64*): the tests are the same everywhere, by seed.
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn roll(&mut self, sides: usize) -> usize {
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

/// What both databases have.
pub const SCHEMA: &str = "
    CREATE ROLE alice LOGIN; CREATE TABLE t (a int); GRANT ALL ON t TO alice; CREATE SCHEMA side;
    CREATE TABLE side.t (a int); GRANT USAGE ON SCHEMA side TO alice; GRANT ALL ON side.t TO alice;
    CREATE TABLE shifting (a int); INSERT INTO shifting VALUES (1); GRANT ALL ON shifting TO alice;
    CREATE TABLE logins (tenant text); GRANT ALL ON logins TO alice;
    CREATE FUNCTION log_in(tenant text) RETURNS text LANGUAGE plpgsql AS
      $$ BEGIN RETURN set_config('app.tenant', tenant, false); END $$;
    CREATE FUNCTION on_login() RETURNS trigger LANGUAGE plpgsql AS
      $$ BEGIN PERFORM log_in(NEW.tenant); RETURN NEW; END $$;
    CREATE TRIGGER t AFTER INSERT ON logins FOR EACH ROW EXECUTE FUNCTION on_login();
    CREATE FUNCTION in_zone(zone text) RETURNS text LANGUAGE plpgsql AS
      $$ BEGIN PERFORM set_config('TimeZone', zone, false); RETURN current_setting('TimeZone'); END $$;
    CREATE FUNCTION fails_after(zone text) RETURNS text LANGUAGE plpgsql AS
      $$ BEGIN PERFORM set_config('TimeZone', zone, false); RETURN 1 / 0; END $$;
    CREATE FUNCTION prepares() RETURNS void LANGUAGE plpgsql AS
      $$ BEGIN EXECUTE 'PREPARE inside (int) AS SELECT $1 * 2'; END $$;
    CREATE VIEW zoned AS SELECT in_zone('Asia/Kabul') AS zone; GRANT SELECT ON zoned TO alice;
    CREATE FUNCTION takes_back(tenant text) RETURNS text LANGUAGE plpgsql AS
      $$ BEGIN PERFORM log_in(tenant); PERFORM 1 / 0; EXCEPTION WHEN OTHERS THEN RETURN 'back'; END $$;
    CREATE FUNCTION scoped() RETURNS text LANGUAGE sql SET work_mem = '2MB' AS
      $$ SELECT set_config('IntervalStyle', 'sql_standard', false) $$;
    CREATE PROCEDURE commits() LANGUAGE plpgsql AS
      $$ BEGIN PERFORM log_in('kept'); COMMIT; PERFORM log_in('lost'); ROLLBACK; END $$;
    CREATE FUNCTION changing() RETURNS text LANGUAGE plpgsql AS $$ BEGIN RETURN 'as it was'; END $$;
    CREATE SEQUENCE counter; GRANT ALL ON counter TO alice;
    CREATE FUNCTION counts() RETURNS text LANGUAGE plpgsql AS
      $$ BEGIN PERFORM nextval('counter'); RETURN currval('counter') = lastval(); END $$;
    CREATE FUNCTION changes() RETURNS text LANGUAGE sql AS $$ SELECT changing() $$;
    CREATE TABLE parents (id int PRIMARY KEY);
    CREATE TABLE children (parent int REFERENCES parents DEFERRABLE); GRANT ALL ON children TO alice";

/// Undoes what a program has changed of that.
pub const AS_AT_FIRST: &str = "DO $$ BEGIN IF EXISTS (SELECT FROM pg_attribute WHERE attrelid = 'shifting'::regclass AND attname = 'b')
    THEN ALTER TABLE shifting DROP COLUMN b; END IF; END $$; SELECT setval('counter', 1);
    SELECT lo_unlink(oid) FROM pg_largeobject_metadata;
    CREATE OR REPLACE FUNCTION changing() RETURNS text LANGUAGE plpgsql AS $$ BEGIN RETURN 'as it was'; END $$";

/// What leaves nothing that pins, so that eight sessions do with few backends.
const ROAMING: [&str; 112] = [
    "SELECT 1",
    "SELECT 1; SELECT 2; SELECT 3",
    "",
    ";",
    "SELECT 1/0",
    "SELECT nothing",
    "SELECT 1; SELECT 1/0; SELECT 2",
    "COMMIT",
    "ROLLBACK",
    "BEGIN; INSERT INTO t VALUES (2); COMMIT",
    "BEGIN; SET work_mem = '9MB'; SAVEPOINT s; SET work_mem = '8MB'; ROLLBACK TO s; COMMIT",
    "BEGIN; SET LOCAL TimeZone = 'America/Lima'; SELECT 1/0; COMMIT; SELECT 1",
    "ROLLBACK; SET work_mem = '6MB'; SHOW work_mem",
    "INSERT INTO t VALUES (1)",
    "SELECT count(*) FROM t",
    "INSERT INTO logins VALUES ('triggered')",
    "SELECT zone FROM zoned",
    "SELECT log_in('acme')",
    "SELECT log_in('globex')",
    "SELECT in_zone('Asia/Tbilisi')",
    "SELECT fails_after('Asia/Tbilisi')",
    "SELECT prepares()",
    "EXECUTE inside (21)",
    "DEALLOCATE inside",
    "SET TimeZone = 'Asia/Tokyo'",
    "SET TimeZone = 'Europe/Paris'",
    "RESET TimeZone",
    "SHOW TimeZone",
    "SHOW search_path",
    "SHOW work_mem",
    "SET search_path = public, pg_catalog",
    "SET search_path = side, public",
    "SET search_path = \"odd one\", \"$user\", public",
    "RESET search_path",
    "SET work_mem = '3MB'",
    "SET statement_timeout = '50s'",
    "SHOW statement_timeout",
    "SET DateStyle = 'SQL, DMY'",
    "SELECT date '2024-02-01', timestamptz '2024-02-01 12:00+00', interval '1 day 2 hours'",
    "SET IntervalStyle = 'iso_8601'",
    "SET bytea_output = 'escape'",
    "SELECT '\\x41ff'::bytea",
    "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL SERIALIZABLE",
    "SHOW transaction_isolation",
    "SET default_transaction_read_only = on",
    "RESET default_transaction_read_only",
    "SET application_name = 'renamed'",
    "RESET application_name",
    "SHOW application_name",
    "SET ROLE alice",
    "SET LOCAL ROLE alice",
    "RESET ROLE",
    "SELECT current_user, session_user",
    "SET app.tenant = 'acme'",
    "SET LOCAL app.tenant = 'local'",
    "SELECT set_config('app.tenant', 'configured', false)",
    "SELECT coalesce(current_setting('app.tenant', true), '')",
    "RESET app.tenant",
    "RESET ALL",
    "DISCARD ALL",
    "DISCARD PLANS",
    "DEALLOCATE ALL",
    "DEALLOCATE s1",
    "COPY (SELECT generate_series(1, 3)) TO stdout",
    "BEGIN; DECLARE c NO SCROLL CURSOR WITHOUT HOLD FOR SELECT log_in('fetched'); FETCH c; CLOSE c; COMMIT",
    "BEGIN; DECLARE c CURSOR FOR SELECT zone FROM zoned; FETCH c; COMMIT",
    "COPY nothing TO stdout",
    "DO $$ BEGIN PERFORM log_in('done'); END $$",
    "BEGIN; LOCK TABLE shifting NOWAIT; ALTER TABLE shifting ADD COLUMN IF NOT EXISTS b int; COMMIT",
    "BEGIN; LOCK TABLE shifting NOWAIT; ALTER TABLE shifting DROP COLUMN IF EXISTS b; COMMIT",
    "BEGIN; CREATE OR REPLACE FUNCTION changing() RETURNS text LANGUAGE plpgsql AS $$ BEGIN RETURN 'harmless'; END $$; COMMIT",
    "BEGIN; CREATE OR REPLACE FUNCTION changing() RETURNS text LANGUAGE plpgsql AS
      $$ BEGIN RETURN set_config('app.changed', 'by itself', false); END $$; COMMIT",
    "SELECT changing()",
    "SELECT changes()",
    "SELECT counts(), lastval() > 0",
    "SELECT coalesce(current_setting('app.changed', true), '')",
    "SELECT takes_back('gone')",
    "SELECT scoped()",
    "CALL commits()",
    "DO $$ BEGIN PERFORM log_in('committed'); COMMIT; PERFORM 1 / 0; END $$",
    "SELECT set_config('app.tenant', 'transient', true), set_config('TimeZone', 'Asia/Dili', true)",
    "BEGIN; SET app.tenant = 'a'; SAVEPOINT s; SET LOCAL app.tenant = 'b'; ROLLBACK TO s; SET app.other = 'c'; COMMIT",
    "BEGIN; SET app.tenant = 'a'; SAVEPOINT s; SET ROLE alice; RELEASE s; ROLLBACK",
    "SELECT coalesce(current_setting('app.other', true), '')",
    "SELECT nextval('counter'); SELECT currval('counter'), lastval()",
    "SELECT nextval('counter'); DISCARD SEQUENCES; SELECT currval('counter')",
    "DISCARD SEQUENCES",
    "DISCARD TEMP",
    "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY, DEFERRABLE",
    "SET SESSION CHARACTERISTICS AS TRANSACTION READ WRITE, ISOLATION LEVEL REPEATABLE READ",
    "SHOW default_transaction_deferrable",
    "BEGIN READ ONLY; INSERT INTO t VALUES (3); COMMIT",
    "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE",
    "SET CONSTRAINTS ALL DEFERRED",
    "BEGIN; SET CONSTRAINTS ALL DEFERRED; INSERT INTO children VALUES (99); SELECT 1; COMMIT",
    "INSERT INTO children VALUES (99)",
    "SET SCHEMA 'side'",
    "SET TIME ZONE LOCAL",
    "SET client_encoding = 'LATIN1'",
    "SET NAMES 'UTF8'",
    "SELECT chr(233), chr(8364)",
    "SET client_min_messages = error",
    "RESET client_min_messages",
    "SET ROLE NONE",
    "SET ROLE nobody",
    "SHOW role",
    "SET plpgsql.extra_warnings = 'shadowed_variables'; SHOW plpgsql.extra_warnings",
    "DEALLOCATE PREPARE ALL",
    "COPY (SELECT 1 / (3 - g) FROM generate_series(1, 5) g) TO stdout",
    "BEGIN; SELECT lo_create(4711); COMMIT",
    "BEGIN; SELECT lo_put(4711, 0, 'large'); SELECT lo_get(4711); SELECT lo_open(4711, 131072); COMMIT",
    "BEGIN; SELECT lo_unlink(4711); COMMIT",
];

/// What may pin a session, or keep a transaction open.
const HOLDING: [&str; 51] = [
    "BEGIN",
    "BEGIN",
    "BEGIN ISOLATION LEVEL SERIALIZABLE",
    "COMMIT AND CHAIN",
    "COMMIT",
    "ROLLBACK",
    "SAVEPOINT s",
    "ROLLBACK TO s",
    "RELEASE s",
    "SET LOCAL TimeZone = 'America/Lima'",
    "PREPARE q AS SELECT 'sql'",
    "PREPARE w AS SELECT 1; SELECT 2",
    "EXECUTE w",
    "DEALLOCATE w",
    "DECLARE c CURSOR FOR SELECT generate_series(1, 5)",
    "DECLARE h CURSOR WITH HOLD FOR SELECT generate_series(1, 5)",
    "FETCH 2 FROM c",
    "FETCH 2 FROM h",
    "CLOSE h",
    "CLOSE ALL",
    "SELECT pg_try_advisory_lock(1)",
    "SELECT pg_advisory_lock_shared(2)",
    "SELECT pg_advisory_xact_lock_shared(3)",
    "SELECT pg_advisory_unlock_shared(2)",
    "SET SESSION AUTHORIZATION alice",
    "RESET SESSION AUTHORIZATION",
    "SELECT pg_advisory_unlock(1)",
    "SELECT pg_advisory_unlock_all()",
    "CREATE TEMP TABLE IF NOT EXISTS mine (a int)",
    "INSERT INTO mine VALUES (1)",
    "DROP TABLE IF EXISTS mine",
    "DISCARD TEMP",
    "LISTEN news",
    "LISTEN \"Other\"",
    "UNLISTEN *",
    "NOTIFY news, 'mine'",
    "SELECT string_agg(c, ' ' ORDER BY c) FROM pg_listening_channels() c",
    "SAVEPOINT t",
    "ROLLBACK TO t",
    "ROLLBACK AND CHAIN",
    "INSERT INTO children VALUES (7)",
    "SET CONSTRAINTS ALL IMMEDIATE",
    "CREATE TEMP TABLE passing ON COMMIT DROP AS SELECT 1",
    "CREATE TEMP SEQUENCE own; SELECT nextval('own')",
    "DROP SEQUENCE own",
    "SELECT count(*) FROM mine",
    "SELECT loread(lo_open(4711, 262144), 3)",
    "SELECT loread(0, 3)",
    "EXECUTE s1 ('v')",
    "SET DateStyle = 'ISO, DMY'",
    "BEGIN; SET LOCAL DateStyle = 'ISO, MDY'; COMMIT",
];

const SQL_PREPARED: [&str; 8] = [
    "PREPARE q AS SELECT 42",
    "PREPARE q (int) AS SELECT $1 + 1",
    "PREPARE \"Q\" AS SELECT count(*) FROM t",
    "EXECUTE q",
    "EXECUTE q (7)",
    "EXECUTE \"Q\"",
    "DEALLOCATE q",
    "DEALLOCATE \"Q\"",
];

/// Texts that read the same whatever is set, and some that don't.
const TEXTS: [&str; 9] = [
    "SELECT $1::text || $1",
    "SELECT count(*), $1::text FROM t",
    "INSERT INTO t VALUES (length($1::text))",
    "SELECT nothing, $1::text",
    "SELECT generate_series(1, 4), $1::text",
    "SELECT current_user, $1::text",
    "SELECT set_config($1, $1, false)",
    "SELECT $1::text || 'x'",
    "SELECT '01/02/2024'::date, $1::text",
];
const PLAIN: usize = 7;

/// Whether a session may do what keeps its backend.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Roaming,
    Any,
}

/// A request that is answered by one ReadyForQuery.
pub fn request(dice: &mut Dice, kind: Kind) -> Vec<u8> {
    let texts = match kind {
        Kind::Roaming => &TEXTS[..PLAIN],
        Kind::Any => &TEXTS[..],
    };
    let name = dice.pick(&["", "s1", "s2", "s3"]);
    let text = dice.pick(texts);
    let value = dice.pick(&["v", "app.tenant"]);
    let run = |limit| [bind("", name, &[value]), execute("", limit)].concat();
    match dice.roll(30) {
        0 | 1 => [parse(name, text), sync()].concat(),
        2 | 3 => [run(0), sync()].concat(),
        4 => [run(2), execute("", 0), sync()].concat(),
        5 => [close_statement(name), parse(name, text), run(0), sync()].concat(),
        6 => [
            parse(name, text),
            describe_statement(name),
            run(0),
            flush(),
            run(0),
            sync(),
        ]
        .concat(),
        7 => [
            extended(text, &[value]),
            extended("SELECT 1/0", &[]),
            extended(text, &[value]),
            close_statement(name),
            sync(),
        ]
        .concat(),
        8 => [describe_statement(name), close_statement(name), sync()].concat(),
        9 => sync(),
        10 => [
            extended("BEGIN", &[]),
            extended(text, &[value]),
            extended("COMMIT", &[]),
            sync(),
        ]
        .concat(),
        11 => [query("COPY t FROM stdin"), copy_data("7\n"), copy_done()].concat(),
        12 => {
            let begun = [query("COPY t FROM stdin"), copy_data("7\n")].concat();
            [begun, copy_fail("enough")].concat()
        }
        13 => [
            parse(name, text),
            bind("p", name, &[value]),
            execute("p", 1),
            close_portal("p"),
            sync(),
        ]
        .concat(),
        14 => query(dice.pick(&SQL_PREPARED)),
        which @ 16..=19 => longer(dice, (which, kind), (name, text, value)),
        20..=23 => strange::request(dice, kind, (name, text, value)),
        15 => [extended(dice.pick(&SQL_PREPARED), &[]), sync()].concat(),
        _ if kind == Kind::Any && dice.roll(2) == 0 => query(dice.pick(&HOLDING)),
        _ => query(dice.pick(&ROAMING)),
    }
}

/// Statements whose table changes, and several requests at once.
fn longer(
    dice: &mut Dice,
    (which, kind): (usize, Kind),
    (name, text, value): (&str, &str, &str),
) -> Vec<u8> {
    let run = |name| [bind("", name, &[value]), execute("", 0)].concat();
    match which {
        16 => {
            let name = dice.pick(&["s1", "s2", "s3"]);
            let text = match kind {
                Kind::Any if dice.roll(2) == 0 => "SELECT '01/02/2024'::date::text, $1::text",
                Kind::Any | Kind::Roaming => "SELECT *, $1::text FROM shifting",
            };
            let described = [parse(name, text), describe_statement(name)].concat();
            [close_statement(name), described, run(name), sync()].concat()
        }
        17 => [
            extended(text, &[value]),
            sync(),
            run(name),
            sync(),
            extended("SELECT 1/0", &[]),
            run(name),
            sync(),
            query(dice.pick(&ROAMING)),
        ]
        .concat(),
        18 => [query(dice.pick(&ROAMING)), query(dice.pick(&ROAMING))].concat(),
        _ => [describe_statement(name), run(name), sync()].concat(),
    }
}
