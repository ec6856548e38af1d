use proptest::prelude::*;

use super::*;

fn owner(name: &str) -> Option<Meaning> {
    let name = Some(name).filter(|name| !name.is_empty()).map(Into::into);
    Some(Meaning::Change(Change::Owner(name)))
}

fn meaning(sql: &str) -> Option<Meaning> {
    read(sql.as_bytes()).map(|found| found.meaning)
}

#[test]
fn an_owner_is_read_however_it_is_written() {
    for sql in [
        "SET pgvalet.owner = 'dispatcher'",
        "set session pgvalet.owner to 'dispatcher' ; ",
        "SET pgvalet.owner TO dispatcher",
        "SET pgvalet.owner = \"dispatcher\"",
        "SET pgvalet.owner TO DISPATCHER;;",
        "/* a /* nested */ one */ SET \"pgvalet\".\"owner\"='dispatcher' -- why",
        "SET\tPGVALET . Owner\n=\r'dispatcher'",
        "SELECT set_config('pgvalet.owner', 'dispatcher', false)",
        "select pg_catalog.set_config ( 'PgValet.Owner','dispatcher',FALSE ) ;",
    ] {
        assert_eq!(meaning(sql), owner("dispatcher"), "{sql}");
    }
    assert_eq!(
        meaning("SET pgvalet.owner = 'it''s; --'"),
        owner("it's; --")
    );
    assert_eq!(meaning("SET pgvalet.owner = 42"), owner("42"));
}

#[test]
fn an_empty_owner_and_reset_say_that_the_session_rests() {
    for sql in [
        "SET pgvalet.owner = ''",
        "SET pgvalet.owner TO ' '",
        "SET pgvalet.owner = DEFAULT",
        "RESET pgvalet.owner",
        "reset \"pgvalet\".owner;",
        "SELECT set_config('pgvalet.owner', '', false)",
    ] {
        assert_eq!(meaning(sql), owner(""), "{sql}");
    }
}

#[test]
fn other_virtual_settings_are_read() {
    let pin = |switch| Some(Meaning::Change(Change::Pin(switch)));
    assert_eq!(meaning("SET pgvalet.pin = on"), pin(Switch::On));
    assert_eq!(meaning("SET pgvalet.pin TO 'false'"), pin(Switch::Off));
    assert_eq!(meaning("RESET pgvalet.pin"), pin(Switch::Off));
    assert_eq!(meaning("SET pgvalet.pin = perhaps"), None);
    let scope = Change::Scope(Some("import".into()));
    assert_eq!(
        meaning("SET pgvalet.scope = 'import'"),
        Some(Meaning::Change(scope))
    );
    assert_eq!(
        meaning("SHOW pgvalet.session;"),
        Some(Meaning::Show(Shown::Session))
    );
    assert_eq!(
        meaning("show PGVALET.OWNER"),
        Some(Meaning::Show(Shown::Owner))
    );
}

#[test]
fn anything_more_or_other_is_left_to_postgresql() {
    for sql in [
        "",
        ";",
        "SET pgvalet.owner",
        "SET pgvalet.owner = 'a', 'b'",
        "SET pgvalet.owner = 'a' 'b'",
        "SET pgvalet.owner = 'a",
        "SET pgvalet.owner = E'a'",
        "SET pgvalet.owner = 'a\\b'",
        "SET pgvalet.owner = 'a' /* open",
        "SET LOCAL pgvalet.owner = 'a'",
        "SET pgvalet.owner = 'a'; SELECT 1",
        "SELECT 1; SET pgvalet.owner = 'a'",
        "SET pgvalet.session = 'a'",
        "SET pgvalet.other = 'a'",
        "SET xpgvalet.owner = 'a'",
        "SETpgvalet.owner = 'a'",
        "SHOW pgvalet.owner.x",
        "SHOW pgvalet.nothing",
        "SELECT set_config('pgvalet.owner', 'a', true)",
        "SELECT set_config('pgvalet.owner', $1, false)",
        "SELECT set_config('pgvalet.owner', 'a', false) FROM t",
        "SELECT set_config('pgvalet.owner', 'a', false), 1",
        "EXPLAIN SET pgvalet.owner = 'a'",
    ] {
        assert_eq!(meaning(sql), None, "{sql}");
    }
}

#[test]
fn what_a_text_of_several_statements_says_is_found() {
    let names = |sql: &str| within(sql.as_bytes()).len();
    assert_eq!(names("BEGIN; SET pgvalet.owner = 'a'; SELECT 1"), 1);
    assert_eq!(names("SET pgvalet.owner = 'a';RESET pgvalet.owner;"), 2);
    assert_eq!(
        names("SET pgvalet.owner = 'a';"),
        0,
        "that is one statement"
    );
    assert_eq!(names("SELECT '; SET pgvalet.owner = ''a''; '; SELECT 1"), 0);
    assert_eq!(
        names("SELECT E'\\'; SET pgvalet.owner = 1; --'; SELECT 1"),
        0
    );
    assert_eq!(
        names("SELECT $a$; SET pgvalet.owner = 'a'; $a$; SELECT 1"),
        0
    );
    assert_eq!(
        names("SELECT 1 -- ; SET pgvalet.owner = 'a'\n; SELECT 2"),
        0
    );
}

#[test]
fn the_deallocation_of_one_statement_is_read() {
    assert_eq!(deallocated(b"DEALLOCATE a1;").as_deref(), Some(&b"a1"[..]));
    assert_eq!(
        deallocated(b"deallocate prepare \"A1\"").as_deref(),
        Some(&b"A1"[..])
    );
    assert_eq!(deallocated(b"DEALLOCATE ALL"), None);
    assert_eq!(deallocated(b"DEALLOCATE a; SELECT 1"), None);
}

proptest! {
    #[test]
    fn any_bytes_are_read_without_a_panic(sql in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = (read(&sql), within(&sql), deallocated(&sql));
    }

    #[test]
    fn any_sql_like_text_is_read_without_a_panic(
        words in prop::collection::vec(prop::sample::select(vec![
            "SET", "RESET", "SHOW", "SELECT", "pgvalet", ".", "owner", "=", "TO", "'", "''", "\"", "$a$", "$", "/*", "*/",
            "--", "\n", ";", "(", ",", "set_config", "false", "E'", "\\", " ", "é",
        ]), 0..30)
    ) {
        let sql = words.concat();
        let _ = (read(sql.as_bytes()), within(sql.as_bytes()), deallocated(sql.as_bytes()));
    }

    #[test]
    fn nothing_may_follow_but_space_comments_and_semicolons(more in "[^'\\s;/-][^']{0,20}") {
        let sql = format!("SET pgvalet.owner = 'a'{more}");
        prop_assert_eq!(read(sql.as_bytes()), None);
    }

    #[test]
    fn nothing_may_precede_but_space_and_comments(more in "[^\\s/-]{1,20}") {
        let sql = format!("{more} SET pgvalet.owner = 'a'");
        prop_assert_eq!(read(sql.as_bytes()), None);
    }

    #[test]
    fn any_name_comes_back_as_it_was_quoted(name in "[^\\\\\\x00]{0,100}[^\\\\\\s\\x00]") {
        let sql = format!("SET pgvalet.owner = '{}'", name.replace('\'', "''"));
        prop_assert_eq!(meaning(&sql), owner(&name));
    }
}
