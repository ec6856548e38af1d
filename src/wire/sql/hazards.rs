//! Owns what a database's own code may do behind a plain statement: which names in a text mean that PostgreSQL has to be
//! asked afterwards.
//!
//! Bodies of functions, and definitions of views, triggers, defaults, checks and policies, are read as heaps of words. What
//! holds a word that makes session state is hazardous, and so is all that names something hazardous. It errs on that side.

use std::collections::{BTreeSet, HashMap, HashSet};

use super::class::calls_what_is_known;
use super::{Watch, watch};
use crate::lease::Pin;

/// The longest name that PostgreSQL keeps, in bytes.
pub(super) const LONGEST: usize = 63;

/// What stands for the text of a function that PostgreSQL has been told changes nothing (`IMMUTABLE` or `STABLE`, under each
/// of its signatures), of one whose bodies can all be read, and of any other.
pub const STEADY: &str = "=";
pub const LEGIBLE: &str = "-";
pub const VOLATILE: &str = "~";

/// What stands for a default of a relation that moves a sequence: the text of one whose rows are filled by it.
pub const FILLED: &str = "+";

/// How many names of settings that code sets are of use at most.
const MOST_NAMES: usize = 1000;

/// The name of what every statement may come upon, such as operators.
pub const EVERYWHERE: &str = "*";

/// What a text begins with that can't be read.
pub const UNREADABLE: &str = "?";

/// The same, of what may leave what only another session would notice.
pub const STAINING: &str = "?!";

/// Names that each word of a text is looked up in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Names {
    all: HashSet<Box<[u8]>>,
    /// A bit for what any of them has of its length and first letter: most words need no closer look.
    hints: [u64; 4],
}

impl Names {
    fn new(all: HashSet<Box<[u8]>>) -> Self {
        let mut hints = [0; 4];
        for name in &all {
            let (place, bit) = Self::hint(name);
            hints[place] |= bit;
        }
        Self { all, hints }
    }

    /// Where the hints have this word, in any case.
    fn hint(word: &[u8]) -> (usize, u64) {
        let letter = word.first().map_or(0, |letter| letter & 0x1F);
        let length = word.len().min(LONGEST) % 8;
        (length / 2, 1 << (32 * (length % 2) + usize::from(letter)))
    }

    fn has(&self, word: &[u8]) -> bool {
        let (place, bit) = Self::hint(word);
        self.hints[place] & bit != 0 && {
            let mut folded = [0; LONGEST];
            let length = word.len().min(LONGEST);
            folded[..length].copy_from_slice(&word[..length]);
            folded[..length].make_ascii_lowercase();
            self.all.contains(&folded[..length])
        }
    }

    fn are_none(&self) -> bool {
        self.all.is_empty()
    }

    /// Whether one of the words is among them.
    fn are_in(&self, sql: &[u8]) -> bool {
        !self.are_none() && words(sql).any(|word| self.has(word))
    }
}

/// The names behind which sequences may move.
#[derive(Debug, Default, PartialEq, Eq)]
struct Movers {
    /// Whatever a statement does with them.
    always: Names,
    /// Where rows are made: defaults take the next number.
    rows: Names,
}

/// The names in a database that session state may hide behind.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Hazards {
    /// Any statement may come upon something hazardous.
    everywhere: bool,
    /// After a text with one of these names PostgreSQL has to be asked.
    ask: Names,
    /// After a text with one of these names it can't tell.
    untold: Names,
    /// A text with one of these names may leave what only another session would notice.
    stains: Names,
    /// Functions that leave nothing, but for what sequences remember.
    steady: HashSet<Box<[u8]>>,
    /// Behind what sequences may move, where that is known.
    movers: Option<Movers>,
    /// The names of custom settings that code sets.
    pub settings: BTreeSet<String>,
}

impl Hazards {
    /// What is to be thought of a database that can't be asked.
    #[must_use]
    pub fn anywhere() -> Self {
        Self {
            everywhere: true,
            ..Self::default()
        }
    }

    /// Whether nothing is known.
    #[must_use]
    pub const fn are_anywhere(&self) -> bool {
        self.everywhere
    }

    /// Whether every name after which PostgreSQL can't tell is among those of `known`.
    #[must_use]
    pub fn are_untold_as_in(&self, known: &Self) -> bool {
        self.untold.all.is_subset(&known.untold.all)
    }

    /// Keeps what was known of code that nobody can ask about, where nothing is found out now.
    pub fn keep_untold_of(&mut self, known: &Self) {
        self.untold.clone_from(&known.untold);
        self.stains.clone_from(&known.stains);
    }

    /// Remembers the names of settings that were known, as many as are of use.
    pub fn remember_names_of(&mut self, known: &Self) {
        let room = MOST_NAMES.saturating_sub(self.settings.len());
        self.settings
            .extend(known.settings.iter().take(room).cloned());
    }

    /// Whether PostgreSQL has to be asked after no text at all.
    #[must_use]
    pub fn are_none(&self) -> bool {
        !self.everywhere && self.ask.are_none()
    }

    /// Whether a parenthesis behind this word calls a function of the database's own that leaves nothing.
    #[must_use]
    pub fn leave_out(&self, word: &[u8]) -> bool {
        let mut folded = [0; LONGEST];
        let Some(folded) = folded.get_mut(..word.len()) else {
            return false;
        };
        folded.copy_from_slice(word);
        folded.make_ascii_lowercase();
        !self.everywhere && self.steady.contains(&*folded)
    }

    /// Whether sequences may move with a text that does no more than that ([`Class::Write`](super::Class::Write)).
    #[must_use]
    pub fn may_move_sequences(&self, sql: &[u8]) -> bool {
        let Some(movers) = self.movers.as_ref().filter(|_| !self.everywhere) else {
            return true;
        };
        let is =
            |word: &[u8], known: &[&[u8]]| known.iter().any(|one| word.eq_ignore_ascii_case(one));
        let (mut makes, mut filled) = (false, false);
        for word in words(sql) {
            if movers.always.has(word) || is(word, &MOVES) {
                return true;
            }
            makes = makes || is(word, &MAKES_ROWS);
            filled = filled || movers.rows.has(word);
        }
        makes && filled
    }

    /// Whether a text may make one of those functions anew.
    #[must_use]
    pub fn may_change_with(&self, sql: &[u8]) -> bool {
        !self.steady.is_empty() && creates(sql) && words(sql).any(|word| self.leave_out(word))
    }

    /// Whether no text means anything.
    #[must_use]
    pub fn name_nothing(&self) -> bool {
        self.are_none() && !self.have_untold() && !self.have_stains()
    }

    /// Whether PostgreSQL has to be asked after this text.
    #[must_use]
    pub fn are_named_in(&self, sql: &[u8]) -> bool {
        self.everywhere || self.ask.are_in(sql)
    }

    /// Whether there is code that makes settings which nobody can ask for.
    #[must_use]
    pub fn have_untold(&self) -> bool {
        !self.untold.are_none()
    }

    /// Whether there is code that leaves what only another session would notice.
    #[must_use]
    pub fn have_stains(&self) -> bool {
        !self.stains.are_none()
    }

    /// Whether this text may leave what only another session would notice: a language's globals, a connection of dblink's.
    #[must_use]
    pub fn leave_stains_in(&self, sql: &[u8]) -> bool {
        self.stains.are_in(sql)
    }

    /// Whether this text may make settings that nobody can ask for.
    #[must_use]
    pub fn are_untold_in(&self, sql: &[u8]) -> bool {
        self.untold.are_in(sql)
    }
}

/// Whether an expression of this text may name something of PostgreSQL's own, or of an extension's, that makes state.
#[must_use]
pub fn calls_what_makes_state(sql: &[u8]) -> bool {
    const CALLS: [&[u8]; 3] = [b"set_config", b"setseed", b"set_limit"];
    let escaped = sql.windows(2).any(|pair| pair.eq_ignore_ascii_case(b"u&"));
    escaped
        || words(sql).any(|word| {
            CALLS.iter().any(|call| word.eq_ignore_ascii_case(call))
                || word.len() >= 6 && word[..6].eq_ignore_ascii_case(b"dblink")
                || contains(word, b"advisory")
        })
}

/// Whether a text that makes functions tells all that they do, and that is nothing that makes state: what a look at their
/// definitions would find. In doubt it doesn't. A text that makes nothing tells all.
#[must_use]
pub fn tells_bodies(sql: &[u8]) -> bool {
    if !creates(sql) {
        return true;
    }
    // An escape, or a literal that goes on in the next line, may hide a word from us, but not from PostgreSQL.
    let hidden = memchr::memchr(b'\\', sql).is_some()
        || memchr::memchr_iter(b'\'', sql).any(|at| may_go_on(&sql[at + 1..]));
    let watched = watch(sql).unwrap_or_default();
    !hidden && watched == Watch::default() && !makes_state(sql) && is_in_known_languages(sql)
}

fn creates(sql: &[u8]) -> bool {
    words(sql).any(|word| word.eq_ignore_ascii_case(b"create"))
}

/// Whether what stands behind a literal may be the rest of it, in another line.
fn may_go_on(behind: &[u8]) -> bool {
    let next = behind.trim_ascii_start();
    let blanks = &behind[..behind.len() - next.len()];
    next.starts_with(b"--")
        || next.starts_with(b"'") && blanks.iter().any(|blank| matches!(blank, b'\n' | b'\r'))
}

/// Whether each language that a text names is one whose bodies are read.
fn is_in_known_languages(sql: &[u8]) -> bool {
    words(sql)
        .filter(|word| word.eq_ignore_ascii_case(b"language"))
        .all(|word| {
            let end = word.as_ptr().addr() - sql.as_ptr().addr() + word.len();
            let behind = sql[end..].trim_ascii_start();
            let name = words(behind).next().unwrap_or_default();
            let at = name.as_ptr().addr().saturating_sub(behind.as_ptr().addr());
            let known: [&[u8]; 2] = [b"sql", b"plpgsql"];
            matches!(behind[..at.min(behind.len())], [] | [b'\'' | b'"'])
                && known.iter().any(|known| name.eq_ignore_ascii_case(known))
        })
}

/// One definition.
#[derive(Debug)]
pub struct Definition {
    /// What it belongs to: a function or a relation, without its schema.
    pub name: String,
    /// Its text.
    pub text: String,
}

/// Finds what is hazardous among `definitions`.
#[must_use]
pub fn find(definitions: &[Definition]) -> Hazards {
    let names: HashSet<Vec<u8>> = definitions
        .iter()
        .flat_map(|definition| keys(&definition.name))
        .collect();
    let mut found = Hazards {
        steady: steady(definitions),
        ..Hazards::default()
    };
    let (mut ask, mut untold, mut stains) = (HashSet::new(), HashSet::new(), HashSet::new());
    // Who names what.
    let mut namers: HashMap<Vec<u8>, Vec<Vec<u8>>> = HashMap::new();
    for Definition { name, text } in definitions {
        let own = keys(name);
        if makes_state(text.as_bytes()) {
            ask.extend(own.iter().cloned());
        }
        if let Some(watched) = watch(text.as_bytes()) {
            found.settings.extend(watched.settings);
            let unread = !watched.naming.is_empty()
                || watched.pins.iter().any(|pin| pin == Pin::UnreadableSetting);
            if unread {
                untold.extend(own.iter().cloned());
            }
        }
        if text.starts_with(STAINING) {
            stains.extend(own.iter().cloned());
        }
        for word in words(text.as_bytes()).map(fold) {
            if !own.contains(&word) && names.contains(&word) {
                namers.entry(word).or_default().extend(own.iter().cloned());
            }
        }
    }
    found.movers = movers(definitions, &namers);
    let mut ask = close(ask, &namers);
    found.everywhere = ask.remove(EVERYWHERE.as_bytes());
    found.ask = Names::new(ask);
    found.untold = Names::new(close(untold, &namers));
    found.stains = Names::new(close(stains, &namers));
    let Hazards {
        steady,
        ask,
        untold,
        stains,
        ..
    } = &mut found;
    steady.retain(|name| ![&*ask, untold, stains].iter().any(|names| names.has(name)));
    found
}

/// By which words of a text a name is found: by itself, or, where it needs quotes, by any of the words in it.
fn keys(name: &str) -> Vec<Vec<u8>> {
    let name = name.as_bytes();
    let mut keys: Vec<Vec<u8>> = words(name).map(fold).collect();
    if keys.is_empty() {
        keys.push(EVERYWHERE.into());
    }
    keys
}

/// Functions that can be called by their names without quotes, and that leave nothing: PostgreSQL has been told so, or their
/// bodies show that they call nothing else. The same holds for all that they name.
fn steady(definitions: &[Definition]) -> HashSet<Box<[u8]>> {
    let told = |mark| move |one: &&Definition| one.text == mark;
    let names = |mark| {
        definitions
            .iter()
            .filter(told(mark))
            .map(|one| one.name.as_bytes())
    };
    let plain = |name: &&[u8]| {
        let is = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || *byte == b'_';
        name.iter().all(is)
    };
    let legible: HashSet<&[u8]> = names(LEGIBLE).filter(plain).collect();
    let mut steady: HashSet<Box<[u8]>> = names(STEADY).filter(plain).map(Into::into).collect();
    steady.extend(legible.iter().copied().map(Into::into));
    let volatile = names(VOLATILE).flat_map(words);
    let mut open: Vec<Vec<u8>> = volatile.map(fold).collect();
    for Definition { name, text } in definitions {
        let (name, is_read) = (name.as_bytes(), text == LEGIBLE || text == STEADY);
        if legible.contains(name) && !is_read && !leaves_nothing(text.as_bytes(), &steady) {
            open.push(name.to_owned());
        }
    }
    for name in &open {
        steady.remove(name.as_slice());
    }
    let mut namers: HashMap<Vec<u8>, Vec<&[u8]>> = HashMap::new();
    for Definition { name, text } in definitions {
        if steady.contains(name.as_bytes()) {
            for word in words(text.as_bytes()).map(fold) {
                namers.entry(word).or_default().push(name.as_bytes());
            }
        }
    }
    while let Some(name) = open.pop() {
        for namer in namers.remove(&name).unwrap_or_default() {
            if steady.remove(namer) {
                open.push(namer.to_owned());
            }
        }
    }
    steady
}

/// Words that move a sequence by themselves, and words of statements that make rows.
const MOVES: [&[u8]; 3] = [b"nextval", b"setval", b"restart"];
const MAKES_ROWS: [&[u8]; 4] = [b"insert", b"merge", b"copy", b"default"];

/// Behind which names sequences may move; `None` where that may be behind any.
fn movers(definitions: &[Definition], namers: &HashMap<Vec<u8>, Vec<Vec<u8>>>) -> Option<Movers> {
    let is_mark = |text: &str| [STEADY, LEGIBLE, VOLATILE].contains(&text);
    let functions: HashSet<&str> = (definitions.iter())
        .filter(|one| is_mark(&one.text))
        .map(|one| one.name.as_str())
        .collect();
    // Relations that are filled, and those above them: parents of partitions, views.
    let filled = definitions.iter().filter(|one| one.text == FILLED);
    let filled: HashSet<Vec<u8>> = filled.flat_map(|one| keys(&one.name)).collect();
    let mut above: HashMap<Vec<u8>, Vec<Vec<u8>>> = HashMap::new();
    let relations = definitions
        .iter()
        .filter(|one| !functions.contains(&*one.name));
    for Definition { name, text } in relations {
        for word in words(text.as_bytes()) {
            above.entry(fold(word)).or_default().extend(keys(name));
        }
    }
    let rows = Names::new(close(filled, &above));
    let moves = |Definition { name, text }: &&Definition| {
        let has = |known: &[&[u8]]| {
            let is = |word: &[u8]| known.iter().any(|one| word.eq_ignore_ascii_case(one));
            words(text.as_bytes()).any(is)
        };
        let fills =
            || functions.contains(&**name) && has(&MAKES_ROWS) && rows.are_in(text.as_bytes());
        text == VOLATILE || text.starts_with(UNREADABLE) || has(&MOVES) || fills()
    };
    let always = definitions.iter().filter(moves);
    let mut always = close(always.flat_map(|one| keys(&one.name)).collect(), namers);
    let anywhere = always.remove(EVERYWHERE.as_bytes());
    let always = Names::new(always);
    (!anywhere).then_some(Movers { always, rows })
}

/// Whether a body defines nothing, and calls nothing but what is on a list or among `others`. What makes state by itself is
/// looked for in any text.
fn leaves_nothing(body: &[u8], others: &HashSet<Box<[u8]>>) -> bool {
    const DEFINES: [&[u8]; 4] = [b"create", b"drop", b"call", b"import"];
    let is = |word: &[u8], known: &[u8]| word.eq_ignore_ascii_case(known);
    let mut pairs = words(body).zip(words(body).skip(1).chain([&b""[..]]));
    let defines = pairs.any(|(word, next)| {
        let runs = is(word, b"do") && !is(next, b"nothing") && !is(next, b"update");
        runs || DEFINES.iter().any(|known| is(word, known))
    });
    let known = |name: &[u8]| others.contains(&*fold(name));
    !defines && calls_what_is_known(body, &known)
}

/// Adds whoever names something in the set, and whoever names those.
fn close(set: HashSet<Vec<u8>>, namers: &HashMap<Vec<u8>, Vec<Vec<u8>>>) -> HashSet<Box<[u8]>> {
    let mut closed = HashSet::new();
    let mut open: Vec<Vec<u8>> = set.into_iter().collect();
    while let Some(name) = open.pop() {
        let name = name.into_boxed_slice();
        if !closed.contains(&name) {
            open.extend(namers.get(&*name).into_iter().flatten().cloned());
            closed.insert(name);
        }
    }
    closed
}

/// Whether a body has a word that makes session state.
fn makes_state(text: &[u8]) -> bool {
    const WORDS: [&[u8]; 16] = [
        b"set_config",
        b"setseed",
        b"set_limit",
        b"temp",
        b"temporary",
        b"pg_temp",
        b"prepare",
        b"listen",
        b"unlisten",
        b"load",
        b"execute",
        b"discard",
        b"reset",
        b"hold",
        b"deallocate",
        b"alter",
    ];
    let mut before = [&b""[..]; 8];
    let mut words = words(text).peekable();
    while let Some(word) = words.next() {
        let is = |known: &[u8]| word.eq_ignore_ascii_case(known);
        let known = WORDS.iter().any(|known| is(known));
        let prefixed = word.len() >= 6 && word[..6].eq_ignore_ascii_case(b"dblink");
        if known || prefixed || contains(word, b"advisory") {
            return true;
        }
        if is(b"set") {
            let Some(next) = words.peek().copied() else {
                return true;
            };
            // Where the next word ends: a dot makes it a custom setting.
            let end = next.as_ptr().addr() - text.as_ptr().addr() + next.len();
            if text.get(end) == Some(&b'.') || !is_of_update(&before, next) {
                return true;
            }
        }
        before.rotate_left(1);
        before[7] = word;
    }
    text.starts_with(UNREADABLE.as_bytes())
}

/// Whether a SET is that of an UPDATE.
fn is_of_update(before: &[&[u8]], next: &[u8]) -> bool {
    const OTHERS: [&[u8]; 8] = [
        b"session",
        b"local",
        b"role",
        b"time",
        b"constraints",
        b"transaction",
        b"search_path",
        b"null",
    ];
    let is = |word: &[u8], known: &[u8]| word.eq_ignore_ascii_case(known);
    let update = before.iter().any(|word| is(word, b"update"));
    update && !OTHERS.iter().any(|other| is(next, other))
}

fn contains(word: &[u8], part: &[u8]) -> bool {
    word.windows(part.len())
        .any(|window| window.eq_ignore_ascii_case(part))
}

/// The words of a text: names, keywords, and what looks like them in literals and comments.
fn words(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(|byte| !(byte.is_ascii_alphanumeric() || *byte == b'_' || *byte >= 0x80))
        .filter(|word| !word.is_empty())
}

fn fold(word: &[u8]) -> Vec<u8> {
    word.to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(definitions: &[(&str, &str)]) -> Hazards {
        let definitions: Vec<Definition> = definitions
            .iter()
            .map(|(name, text)| Definition {
                name: (*name).to_owned(),
                text: (*text).to_owned(),
            })
            .collect();
        find(&definitions)
    }

    #[test]
    fn a_text_tells_what_its_functions_do() {
        for told in [
            "SELECT f('\\')",
            "CREATE OR REPLACE FUNCTION f(a int) RETURNS int LANGUAGE plpgsql AS $$ BEGIN RETURN a || ' '; END $$",
            "create function f() returns int language 'sql' as 'UPDATE t SET a = ''x'''",
        ] {
            assert!(tells_bodies(told.as_bytes()), "{told}");
        }
        for untold in [
            "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT se'\n't_config(''a.b'', ''c'', false)'",
            "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT se' -- it\n't_config(''a.b'', ''c'', false)'",
            "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS E'SELECT \\x73et_config(1)'",
            "CREATE FUNCTION f() RETURNS int LANGUAGE plpython3u AS $$ return 1 $$",
            "CREATE FUNCTION f() RETURNS int LANGUAGE /* sql */ c AS 'x', 'f'",
            "CREATE FUNCTION f() RETURNS int LANGUAGE plpgsql AS $$ BEGIN SET work_mem = 1; END $$",
            "CREATE FUNCTION f() RETURNS int LANGUAGE plpgsql AS $$ BEGIN EXECUTE a; END $$",
            "CREATE FUNCTION f() RETURNS int LANGUAGE sql SET work_mem = '1MB' AS $$ SELECT 1 $$",
            "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT pg_advisory_lock(1)'",
        ] {
            assert!(!tells_bodies(untold.as_bytes()), "{untold}");
        }
    }

    #[test]
    fn expressions_that_make_state_are_seen_in_ddl() {
        for sql in [
            "CREATE TABLE t (a text DEFAULT Set_Config('app.a', 'x', false))",
            "ALTER TABLE t ADD CHECK (pg_try_advisory_lock(1))",
            r#"CREATE INDEX ON t (U&"set\005fconfig"('a.b', a, false))"#,
        ] {
            assert!(calls_what_makes_state(sql.as_bytes()), "{sql}");
        }
        let plain = b"ALTER TABLE t ALTER a SET DEFAULT now(), ADD b int REFERENCES u";
        assert!(!calls_what_makes_state(plain));
    }

    #[test]
    fn a_text_that_ends_where_a_setting_would_begin_makes_state() {
        assert!(makes_state(b"UPDATE t SET"));
    }

    #[test]
    fn what_names_something_hazardous_is_hazardous() {
        let hazards = found(&[
            (
                "log_in",
                "BEGIN PERFORM set_config('app.tenant', $1, false); END",
            ),
            (
                "on_insert",
                "BEGIN PERFORM Log_In(NEW.tenant); RETURN NEW; END",
            ),
            (
                "orders",
                "CREATE TRIGGER t BEFORE INSERT ON orders ON_INSERT()",
            ),
            ("order_view", "SELECT * FROM orders"),
            ("parent", "orders"),
            ("touch", "BEGIN NEW.updated_at = now(); RETURN NEW; END"),
            ("items", "CREATE TRIGGER t BEFORE UPDATE ON items touch()"),
        ]);
        for sql in [
            "INSERT INTO Orders VALUES (1)",
            "SELECT * FROM order_view",
            "DELETE FROM public.parent",
            "SELECT t.log_in FROM t",
        ] {
            assert!(hazards.are_named_in(sql.as_bytes()), "{sql}");
        }
        assert!(!hazards.are_named_in(b"INSERT INTO items SELECT 1 FROM reorders"));
        assert!(!hazards.are_untold_in(b"SELECT log_in('x')"));
        assert_eq!(hazards.settings.iter().collect::<Vec<_>>(), ["app.tenant"]);
    }

    #[test]
    fn bodies_that_make_state_are_told_from_the_rest() {
        for body in [
            "BEGIN SET search_path = a; END",
            "-- update the tenant\nSET app.tenant = 1",
            "UPDATE t SET a = 1; SET LOCAL work_mem = '1MB'",
            "PERFORM pg_try_advisory_lock(1)",
            "EXECUTE format('%I', x)",
            "CREATE TEMP TABLE t ()",
            "SELECT dblink_connect('x')",
            "? a language that nobody reads",
        ] {
            assert!(makes_state(body.as_bytes()), "{body}");
        }
        for body in [
            "UPDATE ONLY public.t AS x SET a = 1, b = 2 WHERE c",
            "INSERT INTO t VALUES (1) ON CONFLICT (a) DO UPDATE SET b = 2",
            "NEW.updated_at := now(); RETURN NEW",
            "RETURN settings.loaded FROM settings WHERE a = '?'",
        ] {
            assert!(!makes_state(body.as_bytes()), "{body}");
        }
    }

    #[test]
    fn a_name_that_can_t_be_read_is_untold() {
        let hazards = found(&[
            ("set_any", "PERFORM set_config('app.' || $1, $2, false)"),
            ("wrapper", "SELECT set_any('x', 'y')"),
            ("for_now", "PERFORM set_config('app.' || $1, $2, true)"),
        ]);
        assert!(hazards.are_untold_in(b"SELECT wrapper()"));
        assert!(!hazards.are_untold_in(b"SELECT for_now()"));
    }

    #[test]
    fn an_operator_s_function_is_everywhere() {
        let hazards = found(&[("odd", "SELECT setseed(1)"), (EVERYWHERE, "odd")]);
        assert!(hazards.are_named_in(b"SELECT a OPERATOR(public.+) b"));
        assert!(found(&[(EVERYWHERE, "plain"), ("plain", "SELECT 1")]).are_none());
    }

    #[test]
    fn what_names_each_other_is_found_too() {
        let hazards = found(&[
            ("a", "b"),
            ("b", "a c"),
            ("c", "SELECT pg_advisory_lock(1), a()"),
            ("d", "e"),
            ("e", "d"),
        ]);
        assert!(
            ["a", "b", "c"]
                .iter()
                .all(|name| hazards.are_named_in(name.as_bytes()))
        );
        assert!(!hazards.are_named_in(b"d e"));
    }

    #[test]
    fn names_that_need_quotes_are_found_by_their_words() {
        let hazards = found(&[
            ("Total (net)", "SELECT setseed(1)"),
            ("reads", r#"SELECT * FROM "Total (net)""#),
            ("odd$of", "SELECT setseed(1)"),
            ("plain", "SELECT 1"),
        ]);
        for sql in [
            r#"SELECT * FROM "Total (net)""#,
            r#"SELECT 1 FROM public."Total (net)" AS "a->b""#,
            "SELECT reads()",
            "SELECT odd$of()",
        ] {
            assert!(hazards.are_named_in(sql.as_bytes()), "{sql}");
        }
        for sql in ["SELECT plain()", r#"SELECT a AS "a->b" FROM t"#] {
            assert!(!hazards.are_named_in(sql.as_bytes()), "{sql}");
        }
        assert!(found(&[("->", "SELECT setseed(1)")]).are_anywhere());
    }

    #[test]
    fn what_changes_nothing_and_names_nothing_that_does_is_left_out() {
        let hazards = found(&[
            ("net", "SELECT 1"),
            ("net", STEADY),
            ("twice", "SELECT net()"),
            ("twice", STEADY),
            ("rolls", "SELECT roll()"),
            ("rolls", STEADY),
            ("rolls_twice", "SELECT rolls()"),
            ("rolls_twice", STEADY),
            ("roll", VOLATILE),
            ("sets", "SELECT set_config('a.b', '', false)"),
            ("sets", STEADY),
            ("calls", "SELECT sets()"),
            ("calls", STEADY),
            ("Cased", STEADY),
        ]);
        for (name, left_out) in [
            ("net", true),
            ("NET", true),
            ("twice", true),
            ("rolls", false),
            ("rolls_twice", false),
            ("roll", false),
            ("sets", false),
            ("calls", false),
            ("cased", false),
            ("\"net\"", false),
            ("other", false),
        ] {
            assert_eq!(hazards.leave_out(name.as_bytes()), left_out, "{name}");
        }
        assert!(!Hazards::anywhere().leave_out(b"net"));
    }

    #[test]
    fn what_may_move_sequences_is_known_by_its_names() {
        let hazards = found(&[
            ("serials", FILLED),
            ("seen", "serials"),
            ("counted", "count_it"),
            ("count_it", "PERFORM nextval('s')"),
            ("count_it", LEGIBLE),
            ("add", "INSERT INTO serials (a) VALUES (1)"),
            ("add", LEGIBLE),
            ("add_again", "SELECT add()"),
            ("add_again", LEGIBLE),
            ("touch", "UPDATE serials SET a = 1"),
            ("touch", LEGIBLE),
            ("logged", "in_c"),
            ("in_c", VOLATILE),
            ("sums", "in_c_too"),
            ("in_c_too", STEADY),
            ("plain", "touch"),
        ]);
        for sql in [
            "INSERT INTO Serials (a) VALUES (1)",
            "WITH a AS (INSERT INTO plain VALUES (1)) UPDATE seen SET a = 1",
            "COPY serials FROM stdin",
            "UPDATE serials SET id = DEFAULT",
            "UPDATE counted SET a = 1",
            "SELECT add_again()",
            "DELETE FROM logged",
            "SELECT nextval('s')",
            "TRUNCATE plain RESTART IDENTITY",
        ] {
            assert!(hazards.may_move_sequences(sql.as_bytes()), "{sql}");
        }
        for sql in [
            "UPDATE serials SET a = 1 WHERE id = 2",
            "DELETE FROM seen",
            "INSERT INTO plain VALUES (1)",
            "INSERT INTO sums SELECT touch()",
            "TRUNCATE serials",
        ] {
            assert!(!hazards.may_move_sequences(sql.as_bytes()), "{sql}");
        }
        for everywhere in [
            Hazards::anywhere(),
            Hazards::default(),
            found(&[(EVERYWHERE, "nextval('s')")]),
            found(&[(EVERYWHERE, "in_c"), ("in_c", VOLATILE)]),
        ] {
            assert!(everywhere.may_move_sequences(b"UPDATE plain SET a = 1"));
        }
    }

    #[test]
    fn bodies_that_leave_nothing_are_left_out() {
        let hazards = found(&[
            ("net", STEADY),
            ("roll", VOLATILE),
            (
                "adds",
                "INSERT INTO jobs (at) VALUES (now()) ON CONFLICT DO NOTHING",
            ),
            ("adds", LEGIBLE),
            ("adds_net", "BEGIN PERFORM adds(); RETURN NET(1); END"),
            ("adds_net", LEGIBLE),
            ("adds_roll", "BEGIN PERFORM adds(), roll(); END"),
            ("adds_roll", LEGIBLE),
            ("reads_file", "SELECT pg_read_file('x')"),
            ("reads_file", LEGIBLE),
            ("reads_files", "SELECT reads_file()"),
            ("reads_files", LEGIBLE),
            ("makes", "CREATE TABLE t ()"),
            ("makes", LEGIBLE),
            ("does", "DO 'BEGIN PERFORM roll(); END'"),
            ("does", LEGIBLE),
            ("holds", "DECLARE c CURSOR WITH HOLD FOR SELECT 1"),
            ("holds", LEGIBLE),
            ("two", "SELECT 1"),
            ("two", "SELECT lo_creat(1)"),
            ("two", LEGIBLE),
        ]);
        for (name, left_out) in [
            ("adds", true),
            ("adds_net", true),
            ("adds_roll", false),
            ("reads_file", false),
            ("reads_files", false),
            ("makes", false),
            ("does", false),
            ("holds", false),
            ("two", false),
        ] {
            assert_eq!(hazards.leave_out(name.as_bytes()), left_out, "{name}");
        }
    }
}
