//! Settings stay with their session, and reach nobody else.

use crate::moves::{evict, survives, two_backends};
use crate::pins::is_pinned;
use crate::stage::{backend, detach, give_back, idle_after, session, stage};
use crate::support::messages::{
    bind, execute, extended, frame, function_call, parse, query, sync, tags,
};
use crate::support::{Postgres, Raw, Valet, eventually};

const TENANT: &str = "SELECT coalesce(current_setting('app.tenant', true), '')";

/// One backend for all, in transaction mode, and a function that sets `app.tenant` without its caller naming it.
fn one_backend() -> Option<(Postgres, Valet)> {
    let flags = ["--max-backends", "1", "--mode", "transaction"];
    let (postgres, valet) = stage(&[&flags[..], &["--preserve-settings", "app.other"]].concat())?;
    postgres.sql(
        "CREATE FUNCTION log_in(tenant text) RETURNS void LANGUAGE plpgsql AS
         $$ BEGIN PERFORM set_config('app' || '.tenant', tenant, false); END $$",
    );
    Some((postgres, valet))
}

#[test]
fn a_setting_that_only_a_function_named_reaches_no_other_session() {
    let Some((_postgres, valet)) = one_backend() else {
        return;
    };
    let (mut one, mut other) = (session(&valet, "one"), session(&valet, "other"));
    for _ in 0..3 {
        one.value("SELECT log_in('acme')");
        assert_eq!(other.value(TENANT), "");
        other.value("SELECT log_in('globex')");
        assert_ne!(one.value(TENANT), "globex");
    }
}

#[test]
fn nobody_is_warned_of_a_library_s_setting_that_another_session_made_up() {
    let Some((_postgres, valet)) = one_backend() else {
        return;
    };
    let made = [
        query("SET plpgsql.extra_foo_warnings = 1"),
        query("BEGIN; SET LOCAL \"plpgsql\".made_up = 1; ROLLBACK"),
        query("SELECT set_config('plpgsql.made_up', '1', true)"),
        [
            extended("SELECT set_config($1, '1', true)", &["plpgsql.made_up"]),
            sync(),
        ]
        .concat(),
    ];
    for (number, (made, lives)) in made
        .iter()
        .flat_map(|made| [(made, false), (made, true)])
        .enumerate()
    {
        // Startup parameters of their own give both a backend that nobody had before.
        let options = format!("-c work_mem={}MB", number + 1);
        let who = [
            ("user", "postgres"),
            ("database", "postgres"),
            ("options", &options),
        ];
        let mut one = Raw::connect_with(valet.port(), &who);
        one.send(made);
        one.until_ready();
        let _one = if lives {
            Some(one)
        } else {
            one.goodbye();
            None
        };
        let mut other = Raw::connect_with(valet.port(), &who);
        // The first call of PL/pgSQL in a backend loads it.
        other.send(&query("DO $$BEGIN END$$"));
        loop {
            let message = other.next();
            let made = made.escape_ascii();
            assert!(message.tag != b'N', "{made}, lives: {lives}: {message:?}");
            if message.tag == b'Z' {
                break;
            }
        }
    }
}

#[test]
fn a_setting_whose_name_is_bound_survives_a_move() {
    let Some((_postgres, valet)) = two_backends() else {
        return;
    };
    let mut client = session(&valet, "app");
    let text = "SELECT set_config($1, $2, false)";
    client.send(&[extended(text, &["app.Tenant", "acme"]), sync()].concat());
    client.until_ready();
    client.send(
        &[
            parse("named", text),
            bind("", "named", &["app.other", "globex"]),
            execute("", 0),
            bind("", "named", &["work_mem", "3MB"]),
            execute("", 0),
            sync(),
        ]
        .concat(),
    );
    client.until_ready();
    let _other = evict(&valet, &mut client);
    let all = "SELECT concat_ws(' ', current_setting('app.tenant'), current_setting('app.other'), current_setting('work_mem'))";
    assert_eq!(client.value(all), "acme globex 3MB");
}

#[test]
fn a_bound_name_that_can_t_be_read_pins() {
    let Some((_postgres, valet)) = two_backends() else {
        return;
    };
    for text in [
        "SELECT set_config($1 || '.x', $2, false)",
        "SELECT set_config($1, $2, false)",
    ] {
        let mut client = session(&valet, "app");
        client.send(&parse("", text));
        // Latin letters in an encoding that nobody told us of.
        let name: &[u8] = if text.contains("||") {
            b"app"
        } else {
            b"app.\xc3\xa9"
        };
        let length = u32::try_from(name.len()).expect("short").to_be_bytes();
        let body = [b"\0\0\0\0\0\x02", &length[..], name, b"\0\0\0\x01v\0\0"].concat();
        client.send(&[frame(b'B', &body), execute("", 0), sync()].concat());
        client.until_ready();
        assert_eq!(
            give_back(&valet, &client).1["reason"],
            "unreadable_setting",
            "{text}"
        );
    }
}

#[test]
fn a_name_that_only_execute_tells_pins() {
    let Some((_postgres, valet)) = two_backends() else {
        return;
    };
    let mut client = session(&valet, "app");
    client.send(
        &[
            parse("named", "SELECT set_config($1, 'acme', false)"),
            sync(),
        ]
        .concat(),
    );
    client.until_ready();
    client.value("EXECUTE named ('app.told')");
    assert_eq!(give_back(&valet, &client).1["reason"], "unreadable_setting");
}

#[test]
fn a_function_call_that_makes_what_nobody_can_ask_for_pins() {
    let Some((_postgres, valet)) = two_backends() else {
        return;
    };
    // set_config, setseed, pg_create_physical_replication_slot.
    let seed = 0.5_f64.to_be_bytes();
    let calls: [(u32, &[&[u8]], &str); 3] = [
        (2078, &[b"app.called", b"acme", &[0]], "unreadable_setting"),
        (1599, &[&seed], "setseed"),
        (3779, &[b"mine", &[1], &[1]], "replication"),
    ];
    for (oid, arguments, pin) in calls {
        let mut client = session(&valet, "app");
        client.send(&function_call(oid, arguments));
        let answers = client.until_ready();
        assert_eq!(tags(&answers), "VZ", "{oid}: {answers:?}");
        assert_eq!(give_back(&valet, &client).1["reason"], pin);
    }
}

#[test]
fn a_statement_of_sql_prepare_that_names_settings_by_parameter_pins() {
    is_pinned(
        "PREPARE p AS SELECT set_config($1, $2, false)",
        "unreadable_setting",
    );
}

#[test]
fn what_holds_for_one_transaction_pins_nothing() {
    let Some((_postgres, valet)) = two_backends() else {
        return;
    };
    let client = idle_after(&valet, "app", "SELECT set_config('app.' || 'x', 'y', true)");
    detach(&valet, &client);
}

#[test]
fn session_characteristics_and_other_defaults_survive_a_move() {
    survives(
        "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL REPEATABLE READ",
        "SHOW transaction_isolation",
        "repeatable read",
    );
    survives(
        "SET session_replication_role = replica",
        "SHOW session_replication_role",
        "replica",
    );
    survives("SET row_security = off", "SHOW row_security", "off");
    survives(
        "SET idle_in_transaction_session_timeout = '9s'",
        "SHOW idle_in_transaction_session_timeout",
        "9s",
    );
    survives(
        "SET ROLE alice; SET ROLE none",
        "SELECT current_user",
        "postgres",
    );
    survives(
        "SET plpgsql.extra_warnings = 'all'",
        "SHOW plpgsql.extra_warnings",
        "all",
    );
}

#[test]
fn a_setting_made_between_savepoints_is_what_was_left_of_it() {
    survives(
        "BEGIN; SET work_mem = '3MB'; SAVEPOINT s; SET work_mem = '5MB'; SET LOCAL work_mem = '7MB'; ROLLBACK TO s; COMMIT",
        "SHOW work_mem",
        "3MB",
    );
    survives(
        "BEGIN; SAVEPOINT s; SET app.tenant = 'acme'; RELEASE s; SET LOCAL app.tenant = 'local'; COMMIT",
        TENANT,
        "acme",
    );
}

#[test]
fn a_superuser_s_setting_survives_a_role_that_may_not_make_it() {
    survives(
        "SET log_min_duration_statement = 777; SET ROLE alice",
        "SELECT current_user || ' ' || setting FROM pg_settings WHERE name = 'log_min_duration_statement'",
        "alice 777",
    );
}

#[test]
fn a_setting_that_the_login_user_may_not_make_pins() {
    let Some((postgres, valet)) = stage(&[]) else {
        return;
    };
    postgres.sql("CREATE ROLE boss SUPERUSER; CREATE ROLE bob LOGIN NOINHERIT; GRANT boss TO bob");
    let who = [("user", "bob"), ("database", "postgres")];
    let mut client = Raw::connect_with(valet.port(), &who);
    client.value("SET ROLE boss; SET session_replication_role = replica; RESET ROLE");
    assert_eq!(give_back(&valet, &client).1["reason"], "superuser_setting");
    assert_eq!(client.value("SHOW session_replication_role"), "replica");
    client.value("SET ROLE boss; RESET session_replication_role; RESET ROLE");
    assert_eq!(
        client.failure("SET session_replication_role = replica"),
        "42501"
    );
    detach(&valet, &client);
}

#[test]
fn a_large_object_s_descriptor_ends_with_its_transaction() {
    let Some((_postgres, valet)) = two_backends() else {
        return;
    };
    let mut client = session(&valet, "app");
    client.value("BEGIN");
    let descriptor = client.value("SELECT lo_open(lo_create(0), 131072)");
    client.value(&format!("SELECT loread({descriptor}, 1)"));
    client.value("COMMIT");
    assert_eq!(
        client.failure(&format!("SELECT loread({descriptor}, 1)")),
        "42704"
    );
    detach(&valet, &client);
}

#[test]
fn a_placeholder_that_a_loaded_library_refuses_is_restored_on_a_backend_without_it() {
    let Some((_postgres, valet)) = two_backends() else {
        return;
    };
    let mut client = idle_after(&valet, "app", "SET plpgsql.unheard_of = 'kept'");
    let pid = backend(&mut client);
    detach(&valet, &client);
    // Whoever comes next loads PL/pgSQL into both backends, and leaves them.
    let others = ["one", "two"].map(|name| {
        idle_after(
            &valet,
            name,
            "BEGIN; DO $$ BEGIN PERFORM 1; END $$; SELECT 1",
        )
    });
    for mut other in others {
        assert_eq!(other.failure("SET plpgsql.unheard_of = 'x'"), "42602");
        other.query("ROLLBACK");
        other.goodbye();
    }
    eventually("both backends are free", || {
        valet.get("/v1/leases")["leases"] == serde_json::json!([])
    });
    assert_eq!(client.value("SHOW plpgsql.unheard_of"), "kept");
    assert_ne!(backend(&mut client), pid);
}

#[test]
fn a_loaded_library_s_setting_survives_a_move_to_a_backend_without_it() {
    survives(
        "DO $$ BEGIN PERFORM 1; END $$; SET plpgsql.variable_conflict = 'use_column'",
        "SELECT current_setting('plpgsql.variable_conflict', true)",
        "use_column",
    );
}

#[test]
fn a_library_s_setting_survives_many_moves_with_and_without_the_library() {
    let Some((_postgres, valet)) = stage(&["--max-backends", "2", "--chaos-return", "always"])
    else {
        return;
    };
    let mut client = session(&valet, "app");
    client.value("DO $$ BEGIN PERFORM 1; END $$; SET plpgsql.variable_conflict = 'use_column'");
    let mut other = session(&valet, "other");
    for _ in 0..10 {
        other.value("DO $$ BEGIN PERFORM 1; END $$; SELECT 1");
        let look = "SELECT current_setting('plpgsql.variable_conflict', true)";
        assert_eq!(client.value(look), "use_column");
    }
}
