//! An owner in the startup packet.

use crate::stage::{owner, session, session_with, shown, stage};

#[test]
fn a_startup_option_names_the_owner() {
    let Some((_postgres, valet)) = stage(&[]) else {
        return;
    };
    let own = session_with(&valet, &[("pgvalet.owner", "importer")]);
    assert_eq!(owner(&valet, &own), ["importer", "startup", "unknown"]);
    let options = session_with(
        &valet,
        &[("options", "-c pgvalet.owner=night\\ job -c geqo=off")],
    );
    assert_eq!(owner(&valet, &options), ["night job", "startup", "unknown"]);
}

#[test]
fn postgresql_never_sees_it_and_backends_are_shared() {
    let Some((_postgres, valet)) = stage(&["--max-backends", "1"]) else {
        return;
    };
    let mut first = session_with(&valet, &[("options", "-c pgvalet.owner=a")]);
    assert_eq!(
        first.value("SELECT current_setting('pgvalet.owner', true)"),
        "NULL"
    );
    let backend = first.value("SELECT pg_backend_pid()");
    first.goodbye();
    let mut second = session(&valet);
    assert_eq!(second.value("SELECT pg_backend_pid()"), backend);
}

#[test]
fn sql_is_stronger_and_the_rest_of_the_options_reaches_postgresql() {
    let Some((_postgres, valet)) = stage(&[]) else {
        return;
    };
    let mut client = session_with(&valet, &[("options", "--pgvalet.owner=a -c geqo=off")]);
    assert_eq!(client.value("SHOW geqo"), "off");
    assert_eq!(client.value("SHOW pgvalet.owner"), "a");
    client.query("SET pgvalet.owner = 'b'");
    assert_eq!(owner(&valet, &client)[..2], ["b", "sql"]);
    client.query("RESET pgvalet.owner");
    assert_eq!(owner(&valet, &client), ["a", "startup", "resting"]);
    assert_eq!(shown(&valet, &client)["state"], "idle");
}
