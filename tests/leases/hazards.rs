//! Transaction mode, and state that a database's own code makes behind a plain statement.

use pgvalet::wire::sql::harmless;
use serde_json::json;

use crate::stage::{lease, session};
use crate::support::messages::{bind, execute, parse, query, sync, tags};
use crate::support::{Postgres, Raw, Valet, eventually};

const TENANT: &str = "SELECT coalesce(current_setting('app.tenant', true), '')";

/// Transaction mode, and a database in which `sql` was run before.
fn transaction_mode(backends: &str, sql: &str, more: &[&str]) -> Option<(Postgres, Valet)> {
    if crate::support::no_valet() {
        return None;
    }
    let postgres = Postgres::start();
    postgres.sql(
        "CREATE FUNCTION log_in() RETURNS trigger LANGUAGE plpgsql AS
         $$ BEGIN PERFORM set_config('app.tenant', NEW.tenant, false); RETURN NEW; END $$;
         CREATE FUNCTION lock_it() RETURNS trigger LANGUAGE plpgsql AS
         $$ BEGIN PERFORM pg_advisory_lock(7); RETURN NEW; END $$;
         CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS
         $$ BEGIN NEW.tenant := lower(NEW.tenant); RETURN NEW; END $$;
         CREATE TABLE logins (tenant text); CREATE TABLE plain (tenant text)",
    );
    postgres.sql(sql);
    let flags = [&["--max-backends", backends, "--mode", "transaction"], more].concat();
    let valet = Valet::front_with(&postgres, &flags);
    Some((postgres, valet))
}

#[track_caller]
fn is_held_with(valet: &Valet, client: &Raw, pin: &str) {
    eventually("the probe has said so", || {
        lease(valet, client).is_some_and(|lease| lease["pins"] == json!([pin]))
    });
}

#[track_caller]
fn is_returned(valet: &Valet, client: &Raw) {
    eventually("the lease has ended", || lease(valet, client).is_none());
}

#[test]
fn what_a_trigger_sets_stays_with_its_session() {
    let Some((_postgres, valet)) = transaction_mode(
        "1",
        "CREATE TRIGGER t BEFORE INSERT ON logins FOR EACH ROW EXECUTE FUNCTION log_in()",
        &[],
    ) else {
        return;
    };
    let (mut one, mut other) = (session(&valet, "one"), session(&valet, "other"));
    for round in 0..3 {
        one.value(&format!("INSERT INTO logins VALUES ('acme {round}')"));
        assert_eq!(other.value(TENANT), "");
        assert_eq!(one.value(TENANT), format!("acme {round}"));
    }
    one.send(
        &[
            parse("s", "INSERT INTO logins VALUES ($1)"),
            bind("", "s", &["bound"]),
            execute("", 0),
            sync(),
        ]
        .concat(),
    );
    one.until_ready();
    assert_eq!(other.value(TENANT), "");
    assert_eq!(one.value(TENANT), "bound");
}

#[test]
fn what_a_trigger_locks_pins() {
    let Some((_postgres, valet)) = transaction_mode(
        "2",
        "CREATE TRIGGER t BEFORE INSERT ON logins FOR EACH ROW EXECUTE FUNCTION lock_it();
         CREATE VIEW door AS SELECT tenant FROM logins;
         CREATE TABLE parent (tenant text PRIMARY KEY);
         CREATE TABLE child (LIKE logins, FOREIGN KEY (tenant) REFERENCES parent ON UPDATE CASCADE);
         INSERT INTO parent VALUES ('a'); INSERT INTO child VALUES ('a');
         CREATE TRIGGER t BEFORE UPDATE ON child FOR EACH ROW EXECUTE FUNCTION lock_it()",
        &[],
    ) else {
        return;
    };
    for sql in [
        "INSERT INTO logins VALUES ('acme')",
        "INSERT INTO door VALUES ('acme')",
        "UPDATE parent SET tenant = 'b' WHERE tenant = 'a'",
    ] {
        let mut client = session(&valet, "app");
        client.value(sql);
        is_held_with(&valet, &client, "advisory_lock");
        client.value("SELECT pg_advisory_unlock_all()");
        is_returned(&valet, &client);
        client.goodbye();
    }
    let mut client = session(&valet, "app");
    client.value("INSERT INTO plain VALUES ('acme')");
    is_returned(&valet, &client);
}

#[test]
fn what_views_defaults_policies_and_operators_do_is_found() {
    let Some((_postgres, valet)) = transaction_mode(
        "2",
        "CREATE FUNCTION lock_one(a text) RETURNS text LANGUAGE sql AS $$ SELECT pg_advisory_lock(1); SELECT a $$;
         CREATE VIEW locking AS SELECT lock_one('x') AS x;
         CREATE TABLE defaulting (a int, b text DEFAULT lock_one('x'));
         CREATE TABLE checking (a int, b text CHECK (lock_one(b) = b));
         CREATE TABLE guarded (a text); INSERT INTO guarded VALUES ('x');
         CREATE FUNCTION sneaky(guarded) RETURNS text LANGUAGE sql AS $$ SELECT pg_advisory_lock(2); SELECT 'x' $$;
         CREATE FUNCTION lower(a guarded) RETURNS text LANGUAGE sql AS $$ SELECT lock_one('x') $$;
         CREATE TABLE ruled (a int); CREATE RULE r AS ON DELETE TO ruled DO ALSO SELECT pg_advisory_lock(3)",
        &[],
    ) else {
        return;
    };
    for sql in [
        "SELECT x FROM locking",
        "INSERT INTO defaulting (a) VALUES (1)",
        "INSERT INTO checking VALUES (1, 'x')",
        "SELECT guarded.sneaky FROM guarded",
        "SELECT lower(guarded) FROM guarded",
        "DELETE FROM ruled",
    ] {
        let mut client = session(&valet, "app");
        client.value(sql);
        is_held_with(&valet, &client, "advisory_lock");
        client.goodbye();
    }
}

#[test]
fn a_definition_that_comes_later_is_noticed() {
    let Some((postgres, valet)) = transaction_mode("2", "SELECT 1", &[]) else {
        return;
    };
    let mut client = session(&valet, "app");
    client.value("INSERT INTO logins VALUES ('acme')");
    is_returned(&valet, &client);
    let mut owner = session(&valet, "owner");
    owner.value("BEGIN; CREATE TRIGGER t BEFORE INSERT ON logins FOR EACH ROW EXECUTE FUNCTION lock_it(); COMMIT");
    is_returned(&valet, &owner);
    client.value("INSERT INTO logins VALUES ('acme')");
    is_held_with(&valet, &client, "advisory_lock");
    client.value("SELECT pg_advisory_unlock_all()");
    // Somebody who doesn't go through pgvalet is noticed at the next look.
    postgres.sql("CREATE TRIGGER t BEFORE INSERT ON plain FOR EACH ROW EXECUTE FUNCTION lock_it()");
    eventually("the next look has been", || {
        client.value("SELECT pg_advisory_unlock_all()");
        is_returned(&valet, &client);
        client.value("INSERT INTO plain VALUES ('acme')");
        let mut pinned = false;
        eventually("it is returned or pinned", || {
            let lease = lease(&valet, &client);
            pinned = lease
                .as_ref()
                .is_some_and(|lease| lease["pins"] != json!([]));
            pinned || lease.is_none()
        });
        pinned
    });
}

/// A function that makes settings of names that nobody can read, called from a trigger.
const SETS_ANY: &str = "CREATE FUNCTION set_any() RETURNS trigger LANGUAGE plpgsql AS
     $$ BEGIN PERFORM set_config('app.' || NEW.tenant, 'set', false); RETURN NEW; END $$;
     CREATE TRIGGER t BEFORE INSERT ON logins FOR EACH ROW EXECUTE FUNCTION set_any()";

#[test]
fn what_is_found_out_while_a_transaction_runs_counts_for_it() {
    let Some((postgres, valet)) = transaction_mode("2", "SELECT 1", &[]) else {
        return;
    };
    let (mut client, mut owner) = (session(&valet, "app"), session(&valet, "owner"));
    client.value("BEGIN");
    postgres.sql(SETS_ANY);
    client.value("INSERT INTO logins VALUES ('tenant')");
    owner.value("CREATE VIEW other AS SELECT 1");
    // Its own texts were read by what was known before, too.
    is_held_with(&valet, &owner, "unreadable_setting");
    client.value("COMMIT");
    is_held_with(&valet, &client, "unreadable_setting");
    assert_eq!(owner.value(TENANT), "");
    assert_eq!(client.value(TENANT), "set");
}

#[test]
fn what_has_just_been_defined_is_not_lost_where_somebody_waits_for_the_backend() {
    let Some((_postgres, valet)) = transaction_mode("2", "SELECT 1", &[]) else {
        return;
    };
    let (mut client, mut owner) = (session(&valet, "app"), session(&valet, "owner"));
    for round in 0..5 {
        owner.value(&format!("CREATE VIEW other{round} AS SELECT 1"));
    }
    owner.query(SETS_ANY);
    client.value("INSERT INTO logins VALUES ('tenant')");
    owner.goodbye();
    let (mut other, mut third) = (session(&valet, "other"), session(&valet, "third"));
    other.value("BEGIN");
    third.send(&query(TENANT));
    is_held_with(&valet, &client, "unreadable_setting");
    // Nothing ran in it that could have called what was defined: it keeps no backend.
    other.value("COMMIT");
    assert_eq!(tags(&third.until_ready()), "TDCZ");
    assert_eq!(other.value(TENANT), "");
    assert_eq!(client.value(TENANT), "set");
}

/// Each look at the definitions is followed by a rest of twenty times as long.
#[test]
fn whoever_defines_in_a_loop_is_not_asked_each_time() {
    let Some((postgres, valet)) = transaction_mode("1", "SELECT 1", &[]) else {
        return;
    };
    let mut owner = session(&valet, "owner");
    for round in 0..200 {
        owner.value(&format!("CREATE VIEW made{round} AS SELECT 1"));
    }
    is_returned(&valet, &owner);
    let probes = valet.metric("pgvalet_probes_total");
    assert!(probes < 100.0, "{probes}");
    owner.value("CREATE TRIGGER t BEFORE INSERT ON plain FOR EACH ROW EXECUTE FUNCTION lock_it()");
    assert_eq!(postgres.sql("SELECT count(*) FROM pg_trigger"), "1");
    owner.value("INSERT INTO plain VALUES ('acme')");
    is_held_with(&valet, &owner, "advisory_lock");
}

#[test]
fn a_function_whose_text_tells_what_it_does_needs_no_look() {
    let Some((postgres, valet)) = transaction_mode("2", "SELECT 1", &[]) else {
        return;
    };
    let (mut client, mut owner) = (session(&valet, "app"), session(&valet, "owner"));
    client.value("SELECT count(*) FROM plain");
    is_returned(&valet, &client);
    // A look that finds a catalog locked finds nothing out, and then each statement is asked after.
    let mut other = Raw::connect(postgres.port());
    other.query("BEGIN; LOCK TABLE pg_policy");
    let mut is_asked_after = |body: &str| {
        owner.value(&format!(
            "CREATE OR REPLACE FUNCTION made() RETURNS int LANGUAGE plpgsql AS $$ BEGIN {body}; RETURN 1; END $$"
        ));
        is_returned(&valet, &owner);
        let before = valet.metric("pgvalet_probes_total");
        client.value("SELECT count(*) FROM plain");
        is_returned(&valet, &client);
        valet.metric("pgvalet_probes_total") > before
    };
    assert!(!is_asked_after("PERFORM lower('A')"));
    assert!(is_asked_after(
        "PERFORM set_config('app.made', 'up', false)"
    ));
}

#[test]
fn tables_that_call_what_makes_state_are_noticed() {
    let Some((_postgres, valet)) = transaction_mode("2", "SELECT 1", &[]) else {
        return;
    };
    let (mut client, mut owner) = (session(&valet, "app"), session(&valet, "owner"));
    client.value("SELECT 1");
    owner.value(
        "CREATE FUNCTION lock_late() RETURNS int LANGUAGE sql AS 'SELECT pg_advisory_lock(9); SELECT 1'",
    );
    owner.value("CREATE TABLE late (a int DEFAULT lock_late())");
    owner.value("CREATE TABLE early (b int)");
    owner.value("ALTER TABLE early ADD a int CHECK (pg_try_advisory_lock(a))");
    for table in ["late DEFAULT VALUES", "early VALUES (1, 1)"] {
        client.value(&format!("INSERT INTO {table}"));
        is_held_with(&valet, &client, "advisory_lock");
        client.value("SELECT pg_advisory_unlock_all()");
        is_returned(&valet, &client);
    }
}

/// Whoever defines something is one user, whoever runs into it another one, often on another data thread.
#[test]
fn a_definition_of_another_user_is_noticed_at_once() {
    let roles = "CREATE ROLE app LOGIN; GRANT ALL ON plain TO app";
    let flags = ["--threads", "2"];
    let Some((_postgres, valet)) = transaction_mode("4", roles, &flags) else {
        return;
    };
    let app = || Raw::connect_with(valet.port(), &[("user", "app"), ("database", "postgres")]);
    let mut apps: Vec<Raw> = (0..8).map(|_| app()).collect();
    for client in &mut apps {
        client.value("INSERT INTO plain VALUES ('acme')");
        is_returned(&valet, client);
    }
    let mut owner = session(&valet, "owner");
    owner.value("CREATE TRIGGER t BEFORE INSERT ON plain FOR EACH ROW EXECUTE FUNCTION lock_it()");
    is_returned(&valet, &owner);
    for client in &mut apps {
        client.value("INSERT INTO plain VALUES ('acme')");
        is_held_with(&valet, client, "advisory_lock");
        client.value("SELECT pg_advisory_unlock_all()");
        is_returned(&valet, client);
    }
}

#[test]
fn a_table_that_is_locked_for_long_ends_no_session() {
    let view = "CREATE VIEW v AS SELECT set_config('app.seen', tenant, false) FROM plain; \
                CREATE TRIGGER t BEFORE INSERT ON logins FOR EACH ROW EXECUTE FUNCTION lock_it()";
    let Some((postgres, valet)) = transaction_mode("1", view, &[]) else {
        return;
    };
    let mut client = session(&valet, "app");
    client.value("SELECT 1");
    // The name of a setting in a view can't be read while a table of it is locked.
    let mut holder = Raw::connect(postgres.port());
    holder.value("BEGIN; LOCK TABLE plain");
    client.value("CREATE VIEW other AS SELECT 1");
    is_returned(&valet, &client);
    // Nothing is known of any definition meanwhile: so everything is asked after.
    client.value("INSERT INTO logins VALUES ('acme')");
    is_held_with(&valet, &client, "advisory_lock");
    holder.value("ROLLBACK");
    client.value("SELECT pg_advisory_unlock_all()");
    is_returned(&valet, &client);
}

#[test]
fn a_look_at_the_definitions_waits_for_no_lock() {
    let all = "CREATE FUNCTION same(a text) RETURNS text LANGUAGE sql IMMUTABLE AS 'SELECT a';
         CREATE VIEW v AS SELECT same(tenant) FROM plain;
         CREATE RULE r AS ON UPDATE TO v DO INSTEAD DELETE FROM plain;
         CREATE INDEX ON plain (same(tenant)) WHERE same(tenant) > 'a';
         ALTER TABLE plain ADD CHECK (same(tenant) = tenant), ALTER tenant SET DEFAULT same('x');
         CREATE POLICY p ON plain USING (same(tenant) = 'x') WITH CHECK (same(tenant) = 'y');
         CREATE TRIGGER t BEFORE INSERT ON plain FOR EACH ROW WHEN (same(NEW.tenant) = 'a') EXECUTE FUNCTION touch();
         CREATE TRIGGER t BEFORE INSERT ON logins FOR EACH ROW EXECUTE FUNCTION lock_it()";
    let Some((postgres, valet)) = transaction_mode("1", all, &[]) else {
        return;
    };
    let mut holder = Raw::connect(postgres.port());
    holder.value("BEGIN; LOCK TABLE plain");
    let mut client = session(&valet, "app");
    client.value("CREATE VIEW other AS SELECT 1");
    is_returned(&valet, &client);
    client.value("INSERT INTO logins VALUES ('acme')");
    is_held_with(&valet, &client, "advisory_lock");
    assert!(
        !valet.log().contains("can't be looked at"),
        "{}",
        valet.log()
    );
}

#[test]
fn a_function_that_sets_whatever_it_is_told_pins_unless_the_configuration_names_the_settings() {
    let set_any = "CREATE FUNCTION set_any(name text, value text) RETURNS text LANGUAGE sql AS
         $$ SELECT set_config('app.' || name, value, false) $$";
    let Some((_postgres, valet)) = transaction_mode("2", set_any, &[]) else {
        return;
    };
    let mut client = session(&valet, "app");
    client.value("SELECT set_any('tenant', 'acme')");
    is_held_with(&valet, &client, "unreadable_setting");
    let Some((_postgres, valet)) =
        transaction_mode("1", set_any, &["--preserve-settings", "app.tenant"])
    else {
        return;
    };
    let (mut one, mut other) = (session(&valet, "one"), session(&valet, "other"));
    one.value("SELECT set_any('tenant', 'acme')");
    assert_eq!(other.value(TENANT), "");
    assert_eq!(one.value(TENANT), "acme");
}

#[test]
fn what_is_taken_for_harmless_is_what_postgresql_declares_so() {
    let postgres = Postgres::start();
    let (volatile, others) = harmless::functions();
    let declared = |names: &[&str], volatile: bool| {
        let known =
            "SELECT DISTINCT proname FROM pg_proc WHERE pronamespace = 11 AND prokind <> 'p'";
        let kind = if volatile { "=" } else { "<>" };
        let among = format!(
            "{known} AND proname = ANY ('{{{}}}') AND provolatile {kind} 'v' ORDER BY 1",
            names.join(",")
        );
        postgres
            .sql(&among)
            .lines()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    assert_eq!(declared(&others, true), [""; 0]);
    // Volatile ones have been looked at one by one; their list must not hide others.
    assert_eq!(declared(&volatile, false), [""; 0]);
    for makes_state in [
        "set_config",
        "setseed",
        "pg_advisory_lock",
        "lo_open",
        "nextval",
    ] {
        assert!(!volatile.contains(&makes_state) && !others.contains(&makes_state));
    }
}

#[test]
fn whatever_sums_up_rows_is_taken_for_harmless() {
    let postgres = Postgres::start();
    let known = harmless::functions().1.join(",");
    let missing = format!(
        "SELECT DISTINCT proname FROM pg_proc WHERE pronamespace = 11 AND prokind IN ('a', 'w') \
         AND proname <> ALL ('{{{known}}}') ORDER BY 1"
    );
    assert_eq!(postgres.sql(&missing), "");
}

#[test]
fn functions_that_leave_nothing_need_no_question() {
    let Some((_postgres, valet)) = transaction_mode("1", "", &[]) else {
        return;
    };
    let mut client = session(&valet, "app");
    client.value("SELECT 1");
    for sql in [
        "SELECT to_char(now(), 'YYYY'), md5(random()::text), gen_random_uuid()",
        "SELECT pg_try_advisory_xact_lock(1), jsonb_array_elements('[1]')",
        "SELECT '1.5'::numeric(10, 2), relname FROM pg_class WHERE pg_table_is_visible(oid)",
        "SELECT a FROM unnest(ARRAY[1, 2]) WITH ORDINALITY AS t(a, n) GROUP BY ROLLUP (a)",
        "SELECT ARRAY(SELECT relname FROM ONLY (pg_class) LIMIT 2), current_timestamp(0), localtime(2)",
        "WITH w AS MATERIALIZED (SELECT current_setting('TimeZone')) SELECT * FROM w",
        r#"SELECT "u->p"."relname" AS "u.p.relname" FROM pg_class AS "u->p" WHERE "u->p".oid = 1259"#,
        "WITH RECURSIVE t (a) AS (SELECT 1 UNION ALL SELECT a + 1 FROM t WHERE a < 3) SELECT max(a) FROM t",
        "SELECT sum(a), bool_and(a > 0), bit_or(a), range_agg(int4range(a, 9)) FROM unnest(ARRAY[1, 2]) AS t(a)",
    ] {
        client.value(sql);
        is_returned(&valet, &client);
    }
    assert_eq!(valet.metric("pgvalet_probes_total"), 0.0);
}

/// Functions that leave nothing, since PostgreSQL has been told that they change nothing or since their bodies show it, and
/// some of which that isn't so.
const STEADY: &str = "
    CREATE FUNCTION net(gross int) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT gross * 100 / 119';
    CREATE FUNCTION doubled(a int) RETURNS int STABLE LANGUAGE plpgsql AS 'BEGIN RETURN 2 * net(a); END';
    CREATE FUNCTION enqueue(job text) RETURNS int LANGUAGE plpgsql AS $$
        DECLARE size int; -- as it is (then)
        BEGIN INSERT INTO plain (tenant) VALUES (job); size := (SELECT count(*) FROM plain);
        IF (size > 10) THEN RAISE EXCEPTION 'full (of jobs)'; END IF; RETURN net(size); END $$;
    CREATE FUNCTION enqueue_twice() RETURNS int LANGUAGE sql AS $$ SELECT enqueue('a') + enqueue('b') $$;
    CREATE FUNCTION roll() RETURNS int LANGUAGE sql AS $$ SELECT length(query_to_xml('TABLE plain', true, true, '')::text) $$;
    CREATE FUNCTION rolls() RETURNS int LANGUAGE plpgsql AS $$ BEGIN RETURN roll(); END $$;
    CREATE FUNCTION executes() RETURNS int LANGUAGE plpgsql AS $$ BEGIN EXECUTE 'SELECT 1'; RETURN 1; END $$;
    CREATE FUNCTION placed() RETURNS int LANGUAGE sql SET app.place TO 'here' AS 'SELECT 1';
    CREATE FUNCTION atomic() RETURNS int LANGUAGE sql BEGIN ATOMIC SELECT roll(); END;
    CREATE FUNCTION either(int) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT 1';
    CREATE FUNCTION either(text) RETURNS int LANGUAGE sql AS 'SELECT roll()';
    CREATE FUNCTION rolled() RETURNS int STABLE LANGUAGE sql AS 'SELECT roll()';
    CREATE FUNCTION rolled_again() RETURNS int STABLE LANGUAGE sql AS 'SELECT rolled()';
    CREATE FUNCTION \"Cased\"() RETURNS int STABLE LANGUAGE sql AS 'SELECT 1';
    CREATE FUNCTION cased() RETURNS int LANGUAGE sql AS 'SELECT roll()';
    CREATE FUNCTION lies() RETURNS text STABLE LANGUAGE sql
    AS $$ SELECT set_config('app.tenant', 'acme', false) $$";

#[test]
fn functions_of_the_database_s_own_that_change_nothing_need_no_question() {
    let Some((_postgres, valet)) = transaction_mode("1", STEADY, &[]) else {
        return;
    };
    let mut client = session(&valet, "app");
    client.value("SELECT 1");
    for (name, sql) in [
        ("one", "SELECT net(119)"),
        (
            "rows",
            "SELECT a, public.NET (a) FROM generate_series(1, 3) AS t(a) WHERE doubled(a) > 0",
        ),
        ("adds", "SELECT enqueue('a')"),
        ("adds_more", "SELECT enqueue_twice()"),
    ] {
        client.value(sql);
        is_returned(&valet, &client);
        client.send(&[parse(name, sql), sync()].concat());
        client.until_ready();
        client.send(&[bind("", name, &[]), execute("", 0), sync()].concat());
        client.until_ready();
        is_returned(&valet, &client);
    }
    let asked = || valet.metric("pgvalet_probes_total");
    let mut before = asked();
    assert_eq!(before, 0.0);
    for sql in [
        "SELECT roll()",
        "SELECT rolls()",
        "SELECT executes()",
        "SELECT placed()",
        "SELECT atomic()",
        "SELECT either(1)",
        "SELECT rolled()",
        "SELECT rolled_again()",
        "SELECT cased()",
        "SELECT lies()",
        "SELECT \"net\"(119)",
    ] {
        client.value(sql);
        eventually("PostgreSQL has been asked", || asked() > before);
        is_returned(&valet, &client);
        before = asked();
    }
}

#[test]
fn what_a_function_sets_that_was_said_to_change_nothing_stays_with_its_session() {
    let Some((_postgres, valet)) = transaction_mode("1", STEADY, &[]) else {
        return;
    };
    let (mut one, mut other) = (session(&valet, "one"), session(&valet, "other"));
    one.value("SELECT lies()");
    assert_eq!(other.value(TENANT), "");
    assert_eq!(one.value(TENANT), "acme");
    // What is known of it isn't true any more, for whoever has prepared it either.
    other.send(&[parse("s", "SELECT doubled(1)"), sync()].concat());
    other.until_ready();
    one.value(
        "CREATE OR REPLACE FUNCTION doubled(a int) RETURNS int LANGUAGE plpgsql AS \
         $$ BEGIN PERFORM set_config('app.tenant', a::text, false); RETURN 2; END $$",
    );
    other.send(&[bind("", "s", &[]), execute("", 0), sync()].concat());
    other.until_ready();
    assert_eq!(one.value(TENANT), "acme");
    assert_eq!(other.value(TENANT), "1");
}

#[test]
fn a_function_that_is_made_anew_is_looked_at_anew() {
    let Some((_postgres, valet)) = transaction_mode("1", STEADY, &[]) else {
        return;
    };
    let mut client = session(&valet, "app");
    client.value("SELECT net(119)");
    is_returned(&valet, &client);
    client.value(
        "CREATE OR REPLACE FUNCTION net(gross int) RETURNS int LANGUAGE sql AS 'SELECT roll()'",
    );
    is_returned(&valet, &client);
    let before = valet.metric("pgvalet_probes_total");
    client.value("SELECT net(119)");
    eventually("PostgreSQL has been asked", || {
        valet.metric("pgvalet_probes_total") > before
    });
}

#[test]
fn what_is_behind_a_name_that_needs_quotes_is_known() {
    let view = "
        CREATE FUNCTION enters() RETURNS text LANGUAGE sql
        AS $$ SELECT set_config('app.tenant', 'acme', false) $$;
        CREATE VIEW \"Log in (acme)\" AS SELECT enters();
        CREATE FUNCTION logs_in() RETURNS text STABLE LANGUAGE sql AS 'SELECT * FROM \"Log in (acme)\"'";
    let Some((_postgres, valet)) = transaction_mode("1", view, &[]) else {
        return;
    };
    for sql in [r#"SELECT * FROM "Log in (acme)""#, "SELECT logs_in()"] {
        let (mut one, mut other) = (session(&valet, "one"), session(&valet, "other"));
        one.value(sql);
        assert_eq!(other.value(TENANT), "");
        assert_eq!(one.value(TENANT), "acme");
    }
}

#[test]
fn what_ends_with_its_transaction_is_asked_after_once() {
    let Some((_postgres, valet)) = transaction_mode("1", "", &[]) else {
        return;
    };
    let asked = || valet.metric("pgvalet_probes_total");
    let mut client = session(&valet, "app");
    for sql in [
        "SET LOCAL statement_timeout = '5s'",
        "SET TRANSACTION READ ONLY",
        "SELECT set_config('app.tenant', 'acme', true)",
        "SET LOCAL work_mem = '1MB'",
    ] {
        client.value("BEGIN");
        client.send(&query(sql));
        client.until_ready();
        client.value("COMMIT");
        is_returned(&valet, &client);
    }
    assert_eq!(asked(), 0.0);
    let mut other = session(&valet, "other");
    for round in 0..3 {
        for client in [&mut client, &mut other] {
            client.value("BEGIN");
            client.value(&format!("SET LOCAL app.tenant = '{round}'"));
            assert_eq!(client.value(TENANT), round.to_string());
            client.value("COMMIT");
            is_returned(&valet, client);
            // As without a proxy: it is there from now on, and empty.
            assert_eq!(client.value("SELECT current_setting('app.tenant')"), "");
        }
    }
    // Of each session PostgreSQL was asked once, when it named the setting first.
    assert_eq!(asked(), 2.0);
    client.value("SET app.tenant = 'acme'");
    eventually("PostgreSQL has been asked", || asked() > 2.0);
    client.value("BEGIN");
    client.value("SET LOCAL app.tenant = 'other'");
    client.value("COMMIT");
    assert_eq!(other.value(TENANT), "");
    assert_eq!(client.value(TENANT), "acme");
    assert_eq!(client.value("SHOW statement_timeout"), "0");
    assert_eq!(client.value("SELECT current_user = session_user"), "t");
}

#[test]
fn a_cursor_that_ends_with_its_transaction_needs_no_question() {
    const CURSORS: &str = "SELECT count(*) FROM pg_cursors WHERE name = 'mine'";
    let Some((_postgres, valet)) = transaction_mode("1", "", &[]) else {
        return;
    };
    let asked = || valet.metric("pgvalet_probes_total");
    let mut client = session(&valet, "app");
    let mut other = session(&valet, "other");
    for close in ["CLOSE \"mine\"", "SAVEPOINT open"] {
        client.value("BEGIN");
        client.value(
            "DECLARE \"mine\" NO SCROLL CURSOR WITHOUT HOLD FOR SELECT generate_series(5, 9)",
        );
        assert_eq!(client.value("FETCH FORWARD 1 FROM \"mine\""), "5");
        client.value(close);
        client.value("COMMIT");
        is_returned(&valet, &client);
        assert_eq!(other.value(CURSORS), "0");
    }
    assert_eq!(asked(), 0.0);

    // One that outlives its transaction keeps the backend, until it is closed.
    client.value("BEGIN");
    client.value("DECLARE mine CURSOR WITH HOLD FOR SELECT generate_series(5, 9)");
    client.value("COMMIT");
    for row in ["5", "6"] {
        is_held_with(&valet, &client, "cursor");
        assert_eq!(client.value("FETCH mine"), row);
    }
    client.value("CLOSE mine");
    is_returned(&valet, &client);
    assert_eq!(other.value(CURSORS), "0");
}

/// Tables and functions that move sequences, and some that don't.
const COUNTED: &str = "
    CREATE TABLE serials (id serial, a int); CREATE TABLE identities (id int GENERATED ALWAYS AS IDENTITY, a int);
    CREATE VIEW seen AS SELECT * FROM serials;
    CREATE TABLE parts (id int DEFAULT nextval('serials_id_seq'), a int) PARTITION BY LIST (a);
    CREATE TABLE part PARTITION OF parts FOR VALUES IN (1);
    CREATE FUNCTION add() RETURNS int LANGUAGE sql AS 'INSERT INTO serials (a) VALUES (1) RETURNING 1';
    CREATE FUNCTION add_again() RETURNS int LANGUAGE plpgsql AS 'BEGIN RETURN add(); END';
    CREATE FUNCTION count_it() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN PERFORM nextval('serials_id_seq'); RETURN NEW; END $$;
    CREATE TABLE counted (a int); INSERT INTO counted VALUES (1);
    CREATE TRIGGER t BEFORE INSERT OR UPDATE ON counted FOR EACH ROW EXECUTE FUNCTION count_it()";

#[test]
fn what_sequences_remember_is_told_to_nobody_else() {
    let Some((_postgres, valet)) = transaction_mode("1", COUNTED, &[]) else {
        return;
    };
    let (mut one, mut other) = (session(&valet, "one"), session(&valet, "other"));
    one.value("SELECT 1");
    for sql in [
        "INSERT INTO serials (a) VALUES (1)",
        "INSERT INTO identities (a) VALUES (1)",
        "INSERT INTO seen (a) VALUES (1)",
        "INSERT INTO parts (a) VALUES (1)",
        "UPDATE serials SET id = DEFAULT",
        "UPDATE counted SET a = 2",
        "SELECT add()",
        "SELECT add_again()",
        "SELECT nextval('serials_id_seq')",
        "CREATE TABLE later (id serial, a int)",
        "INSERT INTO later (a) VALUES (1)",
        "UPDATE later SET id = DEFAULT",
    ] {
        for client in [&mut one, &mut other] {
            client.send(&query(sql));
            client.until_ready();
            is_returned(&valet, client);
        }
        for client in [&mut one, &mut other] {
            let answer = tags(&client.query("SELECT lastval()"));
            assert!(answer.contains('E'), "after {sql}: {answer}");
        }
    }
    assert_eq!(
        valet.metric("pgvalet_probes_total"),
        2.0,
        "only CREATE TABLE is asked after"
    );
}
