//! The fast readers of SQL against a plain one: what they overlook would leak from one session into another.

use pgvalet::lease::comment::tags;
use pgvalet::lease::{LastStatement, Pin};
use pgvalet::wire::sql::hazards::{Definition, LEGIBLE, find};
use pgvalet::wire::sql::{
    Class, Naming, Watch, Words, class, fingerprint, is_bracket, is_one_prepare, names_statements,
    reads_always_alike, virtual_setting, watch,
};

use super::lexer::{Backslash, Kind, Token, tokens};

/// Functions that leave something behind.
const LEAVING: [&str; 6] = [
    "set_config",
    "pg_advisory_lock",
    "setseed",
    "dblink_connect",
    "f",
    "f$1",
];

pub fn run(sql: &[u8]) {
    // On the wire a text ends with its first NUL.
    let sql = sql.split(|byte| *byte == 0).next().unwrap_or_default();
    first_look(sql);
    for backslash in [Backslash::Plain, Backslash::Escapes] {
        // PostgreSQL carries nothing of a text out that it can't read to its end.
        if let Some(tokens) = tokens(sql, backslash) {
            what_it_leaves(sql, &tokens);
            what_a_body_leaves(sql, &tokens);
            what_is_one_prepare(sql, &tokens);
            what_is_named(sql, &tokens);
        }
    }
    what_people_see(sql);
    own_settings(sql);
    comments(sql);
    definitions(sql);
}

fn first_look(sql: &[u8]) {
    let has = |word: &str| {
        let mut windows = sql.windows(word.len());
        windows.any(|window| window.eq_ignore_ascii_case(word.as_bytes()))
    };
    let words = Words::of(sql);
    let state = ["set", "load", "pg_"];
    assert_eq!(words.state, state.into_iter().any(has));
    assert_eq!(words.own, has("pgv"));
    let named = ["execute", "deallocate", "prepare", "discard"];
    assert_eq!(names_statements(sql), named.into_iter().any(has));
}

/// The statements of a text, empty ones left out.
fn statements<'a, 'b>(tokens: &'b [Token<'a>]) -> Vec<&'b [Token<'a>]> {
    let split = tokens.split(|token| token.is_sign(b';'));
    split.filter(|statement| !statement.is_empty()).collect()
}

fn what_it_leaves(sql: &[u8], tokens: &[Token<'_>]) {
    let class = class(sql);
    // A control character that stands for itself is refused.
    let odd = |byte: u8| byte.is_ascii_control() && !byte.is_ascii_whitespace();
    if class == Class::Unknown || sql.iter().any(|byte| odd(*byte)) {
        return;
    }
    for statement in statements(tokens) {
        let first = &statement[0];
        let reads = [
            "select",
            "values",
            "table",
            "with",
            "begin",
            "start",
            "commit",
            "end",
            "rollback",
            "abort",
            "savepoint",
            "release",
            "show",
            "fetch",
            "move",
            "notify",
            "lock",
            "close",
            "insert",
            "update",
            "delete",
            "merge",
            "copy",
            "truncate",
        ];
        let visible = [
            "set",
            "reset",
            "prepare",
            "deallocate",
            "discard",
            "listen",
            "unlisten",
        ];
        // No statement begins with a word that goes on behind a `$`: it is refused, whatever it is taken for.
        let word = first.text.split(|byte| *byte == b'$').next();
        let word = word.unwrap_or_default();
        let is = |words: &[&str]| {
            words
                .iter()
                .any(|known| word.eq_ignore_ascii_case(known.as_bytes()))
        };
        // What begins with a parenthesis or a sign is a SELECT, or refused.
        if first.kind == Kind::Word {
            let ends = ["local", "transaction", "constraints"];
            let ends =
                |next: &Token<'_>| next.kind == Kind::Word && ends.iter().any(|word| next.is(word));
            let local = first.is("set") && statement.get(1).is_some_and(ends)
                || first.is("declare") && !holds(statement);
            assert!(
                is(&reads)
                    || class == Class::Visible && is(&visible)
                    || class == Class::Local && local,
                "{class:?}"
            );
        }
        calls(statement, class);
        makes_table(statement, class);
    }
}

/// A function that counts as one that leaves nothing calls nothing that does.
fn what_a_body_leaves(sql: &[u8], tokens: &[Token<'_>]) {
    let Ok(body) = std::str::from_utf8(sql) else {
        return;
    };
    let definition = |text: &str| Definition {
        name: "one".to_owned(),
        text: text.to_owned(),
    };
    let odd = |byte: u8| byte.is_ascii_control() && !byte.is_ascii_whitespace();
    let found = find(&[definition(body), definition(LEGIBLE)]);
    if !found.leave_out(b"one") || sql.iter().any(|byte| odd(*byte)) {
        return;
    }
    for statement in statements(tokens) {
        calls_in(statement, Class::Write, true);
    }
}

/// Whether a cursor outlives its transaction: WITH HOLD before its query.
fn holds(statement: &[Token<'_>]) -> bool {
    let is = |token: &Token<'_>, word| token.kind == Kind::Word && token.is(word);
    let query = statement.iter().skip(2).position(|token| is(token, "for"));
    let head = &statement[..query.map_or(statement.len(), |at| at + 2)];
    let mut pairs = head.windows(2).skip(1);
    pairs.any(|pair| is(&pair[0], "with") && is(&pair[1], "hold"))
}

fn calls(statement: &[Token<'_>], class: Class) {
    calls_in(statement, class, false);
}

fn calls_in(statement: &[Token<'_>], class: Class, body: bool) {
    // INTO is no name: with a dot behind it, PostgreSQL reads no further.
    let mut pairs = statement.windows(2);
    if pairs.any(|pair| pair[0].kind == Kind::Word && pair[0].is("into") && pair[1].is_sign(b'.')) {
        return;
    }
    for (at, pair) in statement.windows(2).enumerate() {
        let [name, open] = pair else { continue };
        let leaves = LEAVING.iter().any(|known| name.is(known));
        let local = class >= Class::Local
            && name.is("set_config")
            && open.is_sign(b'(')
            && is_local(&statement[at + 2..]);
        // What follows these names columns, a type or a statement.
        let names = ["as", "with", "recursive"];
        let named = at > 0
            && statement[at - 1].kind == Kind::Word
            && names.iter().any(|word| statement[at - 1].is(word));
        if leaves && !local && open.is_sign(b'(') && !named && !is_written(&statement[..at], body) {
            panic!(
                "{class:?}, and yet it calls {}",
                String::from_utf8_lossy(name.text)
            );
        }
    }
}

/// Whether what follows is the name of a table that is written: `INSERT INTO schema.`, `COPY schema.`
///
/// In a body INTO may name variables, too.
fn is_written(before: &[Token<'_>], body: bool) -> bool {
    let mut before = before;
    while let [rest @ .., schema, dot] = before
        && dot.is_sign(b'.')
        && matches!(schema.kind, Kind::Word | Kind::Quoted)
    {
        before = rest;
    }
    matches!(before, [copy] if copy.is("copy"))
        || matches!(before, [.., into] if into.is("into") && body)
        || matches!(before, [.., insert, into] if into.is("into") && (insert.is("insert") || insert.is("merge")))
}

/// SELECT INTO may make a temporary table.
fn makes_table(statement: &[Token<'_>], class: Class) {
    for pair in statement.windows(2) {
        let [before, into] = pair else { continue };
        let made = into.kind == Kind::Word && into.is("into") && !before.is_sign(b'.');
        let inserts = before.is("insert") || before.is("merge");
        assert!(
            !made || inserts || class >= Class::Local,
            "it makes a table"
        );
    }
}

fn what_is_one_prepare(sql: &[u8], tokens: &[Token<'_>]) {
    if is_one_prepare(sql) {
        let statements = statements(tokens);
        assert_eq!(statements.len(), 1, "several statements");
        assert!(statements[0][0].is("prepare"));
    }
    if reads_always_alike(sql) {
        for literal in tokens.iter().filter(|token| token.kind == Kind::Literal) {
            let text = sql[literal.inner.0..literal.inner.1].to_ascii_lowercase();
            let text = String::from_utf8_lossy(&text);
            let moments = ["now", "today", "tomorrow", "yesterday"];
            let tells = text.contains(|letter: char| letter.is_ascii_digit())
                || moments.iter().any(|word| text.contains(word));
            assert!(!tells, "{text} may be a date or a time");
        }
    }
    let work = statements(tokens).iter().any(|statement| {
        let first = &statement[0];
        first.is("select") || first.is("insert") || first.is("set") || first.is("call")
    });
    assert!(
        !(work && statements(tokens).len() == 1 && is_bracket(sql)),
        "it is work"
    );
}

/// What `watch` must find, wherever it stands.
fn what_is_named(sql: &[u8], tokens: &[Token<'_>]) {
    let found = watch(sql).unwrap_or_default();
    // It keeps the session where it is, as any pin does.
    let unread = found.pins.contains(Pin::UnreadableSetting);
    for statement in statements(tokens) {
        let mut rest = statement;
        if rest
            .first()
            .is_some_and(|first| first.kind == Kind::Word && first.is("set"))
        {
            rest = &rest[1..];
            if rest
                .first()
                .is_some_and(|next| next.kind == Kind::Word && next.is("session"))
            {
                rest = &rest[1..];
            }
            if let Some(name) = custom(rest) {
                assert!(
                    found.settings.contains(&name) || unread,
                    "{name} isn't among {:?}",
                    found.settings
                );
            }
        }
        // Strings of bits and NCHAR's are no names of files.
        if let [load, library, ..] = statement
            && (load.kind, library.kind) == (Kind::Word, Kind::Literal)
            && load.is("load")
            && matches!(library.text[0], b'\'' | b'e' | b'E' | b'$')
        {
            assert!(unread || found.pins.contains(Pin::Load));
        }
        for (at, window) in statement.windows(3).enumerate() {
            let [call, open, name] = window else { continue };
            // `0setseed(1)`: nothing calls a function right behind a number or a parameter, and PostgreSQL 15 and later
            // don't even read it.
            if at > 0 && is_behind_digits(&statement[at - 1], call) {
                continue;
            }
            if call.kind == Kind::Word && call.is("setseed") && open.is_sign(b'(') {
                assert!(unread || found.pins.contains(Pin::Setseed));
            }
            if call.kind == Kind::Word && call.is("set_config") && open.is_sign(b'(') {
                let noted = unread || is_noted(sql, name, &found);
                assert!(
                    noted || is_local(&statement[at + 2..]),
                    "a setting that nobody notes"
                );
            }
        }
    }
}

/// Whether the setting that a call names, and that may last, is known: by name, or by the parameter that names it.
fn is_noted(sql: &[u8], name: &Token<'_>, found: &Watch) -> bool {
    let inner = &sql[name.inner.0..name.inner.1];
    match name.kind {
        Kind::Literal if name.text[0] == b'\'' && !inner.contains(&b'\\') => {
            let known = String::from_utf8_lossy(inner).to_ascii_lowercase();
            !known.contains('.') || found.settings.contains(&known)
        }
        Kind::Parameter => {
            let number = String::from_utf8_lossy(&name.text[1..]).parse::<u16>();
            let parameter = number.ok().and_then(|number| number.checked_sub(1));
            parameter.is_some_and(|parameter| {
                let lasts = true;
                found.naming.contains(&Naming { parameter, lasts })
            })
        }
        Kind::Word | Kind::Quoted | Kind::Literal | Kind::Number | Kind::Sign => false,
    }
}

/// Whether the last argument of a call is `true`, or PostgreSQL refuses it for want of an end.
fn is_local(arguments: &[Token<'_>]) -> bool {
    let mut depth = 0_usize;
    let ends = |token: &Token<'_>| {
        let ended = token.is_sign(b')') && depth == 0;
        if token.is_sign(b'(') {
            depth += 1;
        } else if token.is_sign(b')') && !ended {
            depth -= 1;
        }
        ended
    };
    let Some(end) = arguments.iter().position(ends) else {
        return true;
    };
    matches!(&arguments[..end], [.., comma, last] if comma.is_sign(b',') && last.is("true"))
}

/// Whether a name stands right behind a number or a parameter.
fn is_behind_digits(before: &Token<'_>, name: &Token<'_>) -> bool {
    matches!(before.kind, Kind::Number | Kind::Parameter)
        && before.at + before.text.len() == name.at
}

/// `a.b`, or of more parts, behind SET. Quotes are around names that would be names without them.
fn custom(rest: &[Token<'_>]) -> Option<String> {
    let to = |token: &Token<'_>| token.kind == Kind::Word && token.is("to");
    let ends = |token: &Token<'_>| token.is_sign(b'=') || to(token);
    let name = &rest[..rest.iter().position(ends)?];
    let part = |token: &Token<'_>| {
        let text = token.text;
        let text = text.strip_prefix(b"\"").unwrap_or(text);
        let text = text.strip_suffix(b"\"").unwrap_or(text);
        let inner = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'$');
        let plain = matches!(token.kind, Kind::Word | Kind::Quoted) && text.iter().all(inner);
        let begins = text
            .first()
            .is_some_and(|first| !(first.is_ascii_digit() || *first == b'$'));
        (plain && begins).then(|| String::from_utf8_lossy(text).to_ascii_lowercase())
    };
    let parts = name.split(|token| token.is_sign(b'.'));
    let parts: Option<Vec<String>> = parts
        .map(|between| match between {
            [one] => part(one),
            [..] => None,
        })
        .collect();
    Some(parts?.join(".")).filter(|name| name.contains('.'))
}

/// What stands in literals makes no difference to what people see, also where the text is cut off.
fn what_people_see(sql: &[u8]) {
    let shown = fingerprint(sql);
    assert!(shown.chars().count() <= 241);
    let Some(read) = tokens(sql, Backslash::Plain) else {
        return;
    };
    let mut other = sql.to_vec();
    for token in read.iter().filter(|token| token.kind == Kind::Literal) {
        for byte in &mut other[token.inner.0..token.inner.1] {
            if byte.is_ascii_lowercase() {
                *byte = if *byte == b'q' { b'z' } else { b'q' };
            }
        }
    }
    // A tag in a literal may have become the one that ends it.
    let kinds = |tokens: &[Token<'_>]| {
        tokens
            .iter()
            .map(|token| (token.kind, token.at))
            .collect::<Vec<_>>()
    };
    if tokens(&other, Backslash::Plain).is_some_and(|other| kinds(&other) == kinds(&read)) {
        for end in [sql.len(), sql.len() / 2, sql.len() / 3] {
            assert_eq!(
                fingerprint(&other[..end]),
                fingerprint(&sql[..end]),
                "a literal shows"
            );
        }
    }
}

fn own_settings(sql: &[u8]) {
    let read = virtual_setting::read(sql);
    if read.is_some() {
        assert!(Words::of(sql).own, "the first look passes it over");
        let around = [&b"/* a */ "[..], sql, b"\n; "].concat();
        assert!(around.len() > virtual_setting::LONGEST || virtual_setting::read(&around) == read);
        assert!(
            virtual_setting::within(sql).is_empty(),
            "it is one statement"
        );
    }
    for _ in virtual_setting::within(sql) {
        assert!(Words::of(sql).own, "the first look passes it over");
    }
    if virtual_setting::deallocated(sql).is_some() {
        assert!(names_statements(sql));
    }
}

fn comments(sql: &[u8]) {
    let mut statement = LastStatement::None;
    statement.set(sql);
    let tags = tags(&statement);
    let all = [
        &tags.application,
        &tags.controller,
        &tags.action,
        &tags.job,
        &tags.route,
        &tags.source_location,
        &tags.traceparent,
    ];
    for tag in all.into_iter().flatten() {
        assert!((1..=200).contains(&tag.chars().count()));
    }
}

/// A function that sets something is hazardous, and so is what names it.
fn definitions(sql: &[u8]) {
    let text = String::from_utf8_lossy(sql).into_owned();
    let definition = |name: &str, text: &str| Definition {
        name: name.to_owned(),
        text: text.to_owned(),
    };
    let body = format!("{text}\nSELECT pg_advisory_lock(1)");
    let found = find(&[
        definition("one", &body),
        definition("two", &format!("one {text}")),
    ]);
    assert!(found.are_named_in(b"SELECT two()"));
    if let Some(watched) = watch(text.as_bytes()) {
        let found = find(&[definition("one", &text)]);
        assert!(
            watched
                .settings
                .iter()
                .all(|name| found.settings.contains(name))
        );
    }
}
