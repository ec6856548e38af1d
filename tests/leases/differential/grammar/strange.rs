//! What few clients do: portals that last, statements of one protocol under the other, halting pipelines, new connections.

use crate::support::messages::{
    bind, close_portal, copy_data, copy_done, copy_fail, describe_portal, describe_statement,
    execute, extended, flush, function_call, parse, query, sync, terminate,
};

use super::{Dice, HOLDING, Kind, ROAMING};

/// A statement's name, a text, and the value of its parameter.
type Words<'a> = (&'a str, &'a str, &'a str);

/// A request, or the end of a session, which is followed by another one.
pub fn request(dice: &mut Dice, kind: Kind, words: Words<'_>) -> Vec<u8> {
    match dice.roll(4) {
        0 => spoken(dice, kind),
        1 => portal(dice, kind, words),
        2 => halting(dice, kind, words),
        _ => other(dice, kind),
    }
}

/// What is otherwise a simple query, by the other protocol.
fn spoken(dice: &mut Dice, kind: Kind) -> Vec<u8> {
    let text = match (kind, dice.roll(4)) {
        (_, 0 | 1) => {
            let made = [parse("u", wordless(dice)), sync(), query("SELECT 1")].concat();
            return [made, bind("", "u", &[]), execute("", 0), sync()].concat();
        }
        (Kind::Roaming, _) => wordless(dice),
        (Kind::Any, 2) => dice.pick(&HOLDING),
        (Kind::Any, _) => dice.pick(&ROAMING),
    };
    [extended(text, &[]), sync()].concat()
}

/// A text without a literal: it reads the same whatever is set.
fn wordless(dice: &mut Dice) -> &'static str {
    let texts = ROAMING.iter().filter(|text| !text.contains(['\'', '$']));
    let texts: Vec<&str> = texts.copied().collect();
    texts[dice.roll(texts.len())]
}

fn begun((name, text, value): Words<'_>) -> Vec<u8> {
    [parse(name, text), bind("p", name, &[value])].concat()
}

/// A portal lasts as long as its transaction.
fn portal(dice: &mut Dice, kind: Kind, words: Words<'_>) -> Vec<u8> {
    let run = |limit| [execute("p", limit), sync()].concat();
    let begun = || begun(words);
    match dice.roll(7) {
        0 if kind == Kind::Any => [query("BEGIN"), begun(), run(1)].concat(),
        0 | 1 => [
            [query("BEGIN"), begun(), run(1), describe_portal("p")].concat(),
            [run(2), run(0), query("COMMIT")].concat(),
        ]
        .concat(),
        2 => run(2),
        3 => [describe_portal("p"), run(0)].concat(),
        4 => [close_portal("p"), sync()].concat(),
        _ => [begun(), run(1), run(0)].concat(),
    }
}

/// The client awaits what it has asked for so far; COPY by the extended protocol.
fn halting(dice: &mut Dice, kind: Kind, words: Words<'_>) -> Vec<u8> {
    let (_, text, value) = words;
    let copy = || extended("COPY t FROM stdin", &[]);
    // A COPY that has begun skips a Sync, as libpq sends one. Where that COPY fails, nobody can tell whether it had begun,
    // before the next request's answer.
    let end = match kind {
        Kind::Roaming => copy_done(),
        Kind::Any => copy_fail("enough"),
    };
    let set = || extended("SET LOCAL work_mem = '2MB'", &[]);
    let run = |limit| [execute("p", limit), flush()].concat();
    match dice.roll(7) {
        0 => [
            extended(text, &[value]),
            flush(),
            extended("SELECT 1/0", &[]),
            sync(),
        ]
        .concat(),
        1 => [
            [extended("BEGIN", &[]), set(), flush(), begun(words)].concat(),
            [run(0), extended("COMMIT", &[]), sync()].concat(),
        ]
        .concat(),
        2 => [begun(words), run(1), run(0), sync()].concat(),
        3 => [copy(), copy_data("7\n"), copy_done(), sync()].concat(),
        4 => [copy(), sync(), copy_data("7\n"), end, sync()].concat(),
        _ => [
            extended("COPY t TO stdout", &[]),
            extended(text, &[value]),
            sync(),
        ]
        .concat(),
    }
}

fn other(dice: &mut Dice, kind: Kind) -> Vec<u8> {
    match dice.roll(7) {
        0 | 1 => terminate(),
        // What SQL has prepared.
        2 => {
            let run = [bind("", "q", &[]), execute("", 0)].concat();
            [describe_statement("q"), run, sync()].concat()
        }
        // int4pl, set_config and upper.
        3 => function_call(177, &[&[0, 0, 0, 2], &[0, 0, 0, 3]]),
        4 if kind == Kind::Any => function_call(2078, &[b"app.called", b"so", &[0]]),
        4 => function_call(871, &[b"upper case"]),
        5 => query("SELECT coalesce(current_setting('app.called', true), '')"),
        // It belongs to both databases' cluster: it is gone before the other one makes it.
        _ => [
            query("BEGIN; INSERT INTO t VALUES (4)"),
            query("PREPARE TRANSACTION 'two phases'"),
            query("COMMIT PREPARED 'two phases'"),
        ]
        .concat(),
    }
}
