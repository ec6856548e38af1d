//! Owners in the comments that frameworks put around their statements.

use crate::stage::{owner, session, shown, stage};

const RAILS: &str = "/*action='index',application='Shop',controller='users',source_location='app/models/user.rb%3A12'*/";

#[test]
fn a_tag_is_stronger_than_application_name_and_weaker_than_a_word() {
    let Some((_postgres, valet)) = stage(&[]) else {
        return;
    };
    let mut client = session(&valet);
    client.value(&format!("SELECT 1 {RAILS}"));
    assert_eq!(
        owner(&valet, &client),
        ["users#index", "comment", "unknown"]
    );
    assert_eq!(shown(&valet, &client)["where"], "app/models/user.rb:12");
    client.query("SET pgvalet.owner = 'x'");
    assert_eq!(owner(&valet, &client)[..2], ["x", "sql"]);
    assert_eq!(shown(&valet, &client)["where"], "app/models/user.rb:12");
}

#[test]
fn a_tag_behind_a_long_statement_is_found_and_never_shown_as_sql() {
    let Some((_postgres, valet)) = stage(&[]) else {
        return;
    };
    let mut client = session(&valet);
    client.value(&format!("SELECT {} 1 /*job:MailJob*/", "'x',".repeat(400)));
    assert_eq!(owner(&valet, &client)[..2], ["MailJob", "comment"]);
    let statement = shown(&valet, &client)["last_statement"].to_string();
    assert!(!statement.contains("MailJob"), "{statement}");
}

#[test]
fn leases_are_selected_by_such_an_owner() {
    let Some((_postgres, valet)) = stage(&[]) else {
        return;
    };
    let mut client = session(&valet);
    client.value(&format!("{RAILS} SELECT 1"));
    let path = "/v1/owners/users%23index/return";
    let (status, answer) = valet.admin("POST", path, &serde_json::Value::Null);
    assert_eq!(
        (status, &answer["leases"][0]["outcome"]),
        (200, &"returned".into()),
        "{answer}"
    );
}
