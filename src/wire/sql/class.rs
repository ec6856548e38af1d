//! Owns the conservative reading of a text: might it leave anything in the session?
//!
//! It decides only whether PostgreSQL has to be asked afterwards. A statement or function ([`super::harmless`]) that isn't on
//! a list counts as one that leaves something; triggers and views are beyond any reader of texts, and documented as such.

use super::harmless::is_harmless;
use super::hazards::LONGEST;
use super::plain::is_plain_select;
use super::virtual_setting::scan::Scan;
use super::watch::sets_for_its_transaction;

/// What a text may leave in its session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// Nothing at all.
    #[default]
    Read,
    /// Rows, and no more: the database's definitions tell that no sequence moves.
    Rows,
    /// What sequences remember (`currval`, `lastval`), and nothing else.
    Write,
    /// What ends with its transaction: settings, of which custom ones read as empty from then on, and cursors. The same for
    /// sequences.
    Local,
    /// What PostgreSQL tells of when it is asked: settings that the text names, statements, channels.
    Visible,
    /// Anything: PostgreSQL has to be asked, and may not tell all of it.
    Unknown,
}

/// First words of statements that leave nothing by themselves.
const READS: [&[u8]; 17] = [
    b"select",
    b"values",
    b"table",
    b"with",
    b"begin",
    b"start",
    b"commit",
    b"end",
    b"rollback",
    b"abort",
    b"savepoint",
    b"release",
    b"show",
    b"fetch",
    b"move",
    b"notify",
    b"lock",
];

/// First words of statements that may move sequences.
const WRITES: [&[u8]; 6] = [
    b"insert",
    b"update",
    b"delete",
    b"merge",
    b"copy",
    b"truncate",
];

/// First words of statements that change only what PostgreSQL tells of.
const VISIBLE: [&[u8]; 7] = [
    b"set",
    b"reset",
    b"prepare",
    b"deallocate",
    b"discard",
    b"listen",
    b"unlisten",
];

/// Words of PL/pgSQL that call nothing with the parenthesis behind them.
const OF_BODIES: [&[u8]; 7] = [
    b"if", b"elsif", b"elseif", b"while", b"return", b"perform", b"assert",
];

/// Reads the tag of a CommandComplete, which comes for what a text didn't say, too.
#[must_use]
pub fn class_of_tag(tag: &[u8]) -> Class {
    if super::leaves_nothing(tag) {
        return Class::Read;
    }
    let end = tag.iter().position(|byte| !byte.is_ascii_alphabetic());
    let word = &tag[..end.unwrap_or(tag.len())];
    if VISIBLE.iter().any(|known| word.eq_ignore_ascii_case(known)) {
        Class::Visible
    } else {
        Class::Unknown
    }
}

/// Reads a text.
#[must_use]
pub fn class(sql: &[u8]) -> Class {
    class_knowing(sql, &|_| false)
}

/// Reads a text for a database of which it is known which functions of its own leave nothing; sequences they may move.
#[must_use]
pub fn class_knowing(sql: &[u8], knows: &dyn Fn(&[u8]) -> bool) -> Class {
    if is_plain_select(sql) {
        return Class::Read;
    }
    by_words(sql, knows)
}

/// Reads a text word by word.
pub(super) fn by_words(sql: &[u8], knows: &dyn Fn(&[u8]) -> bool) -> Class {
    Reader::of(sql, knows).read()
}

/// Whether all that a function's body in SQL or PL/pgSQL calls is known to leave nothing. Which statements it has is for
/// others to judge.
pub(super) fn calls_what_is_known(body: &[u8], knows: &dyn Fn(&[u8]) -> bool) -> bool {
    let reader = Reader {
        first: false,
        kind: Kind::Body,
        ..Reader::of(body, knows)
    };
    reader.read() != Class::Unknown
}

/// What a byte may begin.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sort {
    /// A word: letters, underscores, and whatever isn't ASCII.
    Letter,
    Digit,
    Space,
    /// Anything else.
    Sign,
}

const SORTS: [Sort; 256] = {
    let mut sorts = [Sort::Sign; 256];
    let mut byte = 0;
    while byte < sorts.len() {
        let ascii = byte as u8;
        if ascii.is_ascii_alphabetic() || ascii == b'_' || !ascii.is_ascii() {
            sorts[byte] = Sort::Letter;
        } else if ascii.is_ascii_digit() {
            sorts[byte] = Sort::Digit;
        } else if ascii.is_ascii_whitespace() {
            sorts[byte] = Sort::Space;
        }
        byte += 1;
    }
    sorts
};

#[derive(Clone, Copy, PartialEq, Eq)]
enum Word {
    /// The last token was no word.
    None,
    /// A parenthesis behind it calls nothing: the name of a table that is written, or a word of the grammar.
    Harmless,
    /// INSERT or MERGE: INTO may follow, and makes no table.
    Insert,
    /// The word from here to there, which nobody has looked at yet.
    At(usize, usize),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A text of statements.
    Text,
    /// The body of a function: INTO names its variables, and no first word tells what a statement is.
    Body,
}

struct Reader<'a> {
    sql: &'a [u8],
    /// Whether a function of the database's own leaves nothing.
    knows: &'a dyn Fn(&[u8]) -> bool,
    at: usize,
    class: Class,
    last: Word,
    /// The next word is the first one of a statement.
    first: bool,
    /// The last word was the INTO of an INSERT, or COPY.
    into: bool,
    /// The text names what others look for in it: settings, statements, channels.
    names: bool,
    kind: Kind,
}

impl<'a> Reader<'a> {
    fn of(sql: &'a [u8], knows: &'a dyn Fn(&[u8]) -> bool) -> Self {
        Self {
            sql,
            knows,
            at: 0,
            class: Class::Read,
            last: Word::None,
            first: true,
            into: false,
            names: false,
            kind: Kind::Text,
        }
    }

    fn read(mut self) -> Class {
        while self.class != Class::Unknown && self.at < self.sql.len() {
            self.step();
        }
        self.class
    }

    fn peek(&self, ahead: usize) -> u8 {
        self.sql.get(self.at + ahead).copied().unwrap_or(0)
    }

    fn step(&mut self) {
        match SORTS[self.peek(0) as usize] {
            Sort::Letter => self.word(),
            Sort::Space => self.at += 1,
            Sort::Digit => self.numbers(),
            Sort::Sign => self.sign(),
        }
    }

    fn sign(&mut self) {
        match (self.peek(0), self.peek(1)) {
            // A comment may stand between SET and the name.
            (b'-', b'-') | (b'/', b'*') if self.names => self.class = Class::Unknown,
            (b'-', b'-') => {
                let end = memchr::memchr2(b'\n', b'\r', &self.sql[self.at..]);
                self.at += end.unwrap_or(self.sql.len());
            }
            (b'/', b'*') => self.comment(),
            (b'\'', _) => self.quoted(),
            (b'"', _) => self.name(),
            // A $$ literal is read by others better.
            (b'$', next) if !next.is_ascii_digit() => self.class = Class::Unknown,
            (b'$', _) if self.is_in_word() => self.rest_of_name(),
            (b'\\', _) => self.class = Class::Unknown,
            // A vertical tab: a blank from PostgreSQL 16 on.
            (0x0b, _) => self.class = Class::Unknown,
            (b'(', _) => {
                if let Word::At(from, to) = self.last {
                    self.call(&self.sql[from..to]);
                }
                self.other();
            }
            (b';', _) => {
                self.first = self.kind == Kind::Text;
                self.other();
            }
            _ => self.other(),
        }
    }

    fn call(&mut self, name: &[u8]) {
        let is = |word: &&[u8]| name.eq_ignore_ascii_case(word);
        if is_harmless(name) || self.kind == Kind::Body && OF_BODIES.iter().any(is) {
            return;
        }
        let sets = self.kind == Kind::Text && name.eq_ignore_ascii_case(b"set_config");
        self.names |= sets;
        self.class = self.class.max(if (self.knows)(name) {
            Class::Write
        } else if sets && sets_for_its_transaction(&self.sql[self.at..]) {
            Class::Local
        } else {
            Class::Unknown
        });
    }

    /// Whether what follows SET is said to end with its transaction. There may be a setting of such a name, too: it would have
    /// a dot.
    fn ends_with_its_transaction(&self) -> bool {
        const WORDS: [&[u8]; 3] = [b"local", b"transaction", b"constraints"];
        let rest = self.sql[self.at..].trim_ascii_start();
        let letter = |byte: &u8| SORTS[*byte as usize] == Sort::Letter;
        let (word, behind) = rest.split_at(rest.iter().take_while(|byte| letter(byte)).count());
        let next = behind.trim_ascii_start();
        WORDS.iter().any(|known| word.eq_ignore_ascii_case(known))
            && next.len() < behind.len()
            && next
                .first()
                .is_some_and(|byte| letter(byte) || *byte == b'"')
    }

    /// Whether what follows DECLARE is a cursor that ends with its transaction: without HOLD.
    fn declares_for_its_transaction(&self) -> bool {
        const OPTIONS: [&[u8]; 5] = [b"binary", b"asensitive", b"insensitive", b"no", b"scroll"];
        let mut scan = Scan::new(&self.sql[self.at..]);
        let named = scan.identifier().is_some();
        while OPTIONS.iter().any(|option| scan.keyword(option)) {}
        let is_cursor = scan.keyword(b"cursor");
        let _ = scan.keyword(b"without") && scan.keyword(b"hold");
        named && is_cursor && scan.keyword(b"for")
    }

    /// Whether a name or a number ends right here.
    fn is_in_word(&self) -> bool {
        let before = self
            .at
            .checked_sub(1)
            .map(|at| SORTS[self.sql[at] as usize]);
        matches!(before, Some(Sort::Letter | Sort::Digit))
    }

    /// `$1` of `a$1(`: no name that is known to be harmless has one.
    fn rest_of_name(&mut self) {
        let from = self.at;
        let rest = &self.sql[from + 1..];
        let end = rest
            .iter()
            .position(|byte| !matches!(SORTS[*byte as usize], Sort::Letter | Sort::Digit));
        self.at += 1 + end.unwrap_or(rest.len());
        self.last = Word::At(from, self.at);
        self.into = false;
    }

    fn other(&mut self) {
        self.last = Word::None;
        self.into = false;
        self.at += 1;
    }

    /// Numbers, and what stands between those of a list, mean nothing.
    fn numbers(&mut self) {
        self.other();
        let rest = &self.sql[self.at..];
        let end = rest
            .iter()
            .position(|byte| !matches!(byte, b'0'..=b'9' | b',' | b' '));
        self.at += end.unwrap_or(rest.len());
    }

    fn comment(&mut self) {
        match memchr::memmem::find(&self.sql[self.at + 2..], b"*/") {
            // A comment within a comment: rare enough not to be followed.
            Some(end)
                if memchr::memmem::find(&self.sql[self.at + 2..=self.at + 2 + end], b"/*")
                    .is_none() =>
            {
                self.at += end + 4;
            }
            _ => self.class = Class::Unknown,
        }
    }

    fn quoted(&mut self) {
        match memchr::memchr(b'\'', &self.sql[self.at + 1..]) {
            // Under `standard_conforming_strings = off` the literal goes on.
            Some(end) if self.sql[self.at + end] == b'\\' => self.class = Class::Unknown,
            Some(end) => self.at += end + 2,
            None => self.class = Class::Unknown,
        }
        self.last = Word::None;
        self.into = false;
    }

    /// A literal of E'': a backslash hides what follows it. Where the literal goes on behind a line's end, it's read as a plain
    /// one, and so only without a backslash before a quote.
    fn escaped(&mut self) {
        self.other();
        while let Some(end) = memchr::memchr2(b'\'', b'\\', &self.sql[self.at..]) {
            let at = self.at + end;
            let hides = self.sql[at] == b'\\';
            self.at = at + 1;
            if !hides && self.peek(0) != b'\'' {
                return;
            }
            // In some encodings of clients the second byte of a letter looks like a backslash.
            if hides && !self.sql[at - 1].is_ascii() {
                break;
            }
            self.at = self.sql.len().min(at + 2);
        }
        self.class = Class::Unknown;
    }

    /// A quoted name: what it would be without quotes, but no word of the grammar. What the words in it may mean to the
    /// database is looked for elsewhere ([`super::hazards`]), and so no longer a name may be than PostgreSQL's are.
    fn name(&mut self) {
        let from = self.at;
        let rest = &self.sql[from + 1..];
        let short = &rest[..rest.len().min(LONGEST + 1)];
        let end = short.iter().position(|byte| *byte == b'"').unwrap_or(0);
        self.at += end + 2;
        // Behind `U&` it has escapes, and two quotes in a row are one of the name's.
        let escapes = from > 0 && self.sql[from - 1] == b'&' || self.peek(0) == b'"';
        if self.first || end == 0 || escapes {
            self.class = Class::Unknown;
            return;
        }
        self.last = if self.into {
            Word::Harmless
        } else {
            Word::At(from, self.at)
        };
        self.go_on();
    }

    /// `INSERT INTO schema.table (`: the name goes on behind a dot.
    fn go_on(&mut self) {
        self.into = self.into && self.peek(0) == b'.';
        if self.into {
            self.at += 1;
        }
    }

    /// SELECT … INTO makes a table, perhaps a temporary one; INSERT INTO names one.
    fn note_into(&mut self) {
        self.into = self.last == Word::Insert || self.kind == Kind::Body;
        if !self.into {
            self.class = Class::Unknown;
        }
        self.last = Word::Harmless;
    }

    fn write(&mut self) {
        self.class = self.class.max(Class::Write);
        self.last = Word::Harmless;
    }

    /// Whether the word before is AS, WITH or RECURSIVE: what follows names columns, a type or a statement, and calls nothing.
    fn is_behind_as(&self) -> bool {
        let Word::At(from, to) = self.last else {
            return false;
        };
        let is = |word: &[u8]| self.sql[from..to].eq_ignore_ascii_case(word);
        is(b"as") || is(b"with") || is(b"recursive")
    }

    fn word(&mut self) {
        let rest = &self.sql[self.at..];
        let end = rest
            .iter()
            .position(|byte| !matches!(SORTS[*byte as usize], Sort::Letter | Sort::Digit));
        let word = &rest[..end.unwrap_or(rest.len())];
        self.at += word.len();
        let is = |name: &[u8]| word.eq_ignore_ascii_case(name);
        if self.peek(0) == b'\'' && word.len() == 1 && !self.first {
            // B'', X'' and N'' end like those without a letter.
            if is(b"e") {
                self.escaped();
            } else {
                self.quoted();
            }
            return;
        }
        if self.first {
            self.first = false;
            self.last = if is(b"insert") || is(b"merge") {
                Word::Insert
            } else if is(b"with") {
                Word::At(self.at - word.len(), self.at)
            } else {
                Word::Harmless
            };
            // COPY names a table, and perhaps its columns.
            if is(b"copy") {
                self.class = self.class.max(Class::Write);
                self.into = true;
                return;
            }
            if WRITES.iter().any(|name| is(name)) {
                self.class = self.class.max(Class::Write);
            } else if is(b"set") && self.ends_with_its_transaction() {
                self.class = self.class.max(Class::Local);
                self.names = true;
            } else if is(b"close") || is(b"declare") && self.declares_for_its_transaction() {
                self.class = self.class.max(Class::Local);
            } else if VISIBLE.iter().any(|name| is(name)) {
                self.class = self.class.max(Class::Visible);
                self.names = true;
            } else if !READS.iter().any(|name| is(name)) {
                self.class = Class::Unknown;
            }
        } else {
            match word.len() {
                4 if is(b"into") => return self.note_into(),
                6 if is(b"insert") => {
                    self.write();
                    self.last = Word::Insert;
                }
                6 if is(b"update") || is(b"delete") => self.write(),
                6 if is(b"setval") => self.write(),
                7 if is(b"nextval") => self.write(),
                // WITH RECURSIVE: the name is yet to come.
                9 if is(b"recursive") => self.last = Word::At(self.at - word.len(), self.at),
                _ if self.into || self.is_behind_as() => self.last = Word::Harmless,
                length => self.last = Word::At(self.at - length, self.at),
            }
        }
        self.go_on();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TOLD: &[(Class, &str)] = &[
        (
            Class::Read,
            "SELECT abalance FROM pgbench_accounts WHERE aid = 1;",
        ),
        (
            Class::Read,
            "select count(*), max(x) from t where a in (1, 2) and b = 'it''s' -- (trailing f(x))",
        ),
        (Class::Read, "BEGIN"),
        (
            Class::Read,
            "SELECT a FROM unnest(b) AS t(a), jsonb_to_record(c) as r (d int)",
        ),
        (Class::Unknown, "SELECT as1(a)"),
        (Class::Unknown, "PREPARE p AS SELECT f(1)"),
        (Class::Read, "SELECT 0$0, a$1 FROM t$2 WHERE (b)"),
        (Class::Read, "SELECT a LIKE 'b\\_%'"),
        (Class::Read, "/* app:web */ SELECT $1::int"),
        (
            Class::Write,
            "INSERT INTO pgbench_history (tid, mtime) VALUES (1, CURRENT_TIMESTAMP)",
        ),
        (
            Class::Write,
            "INSERT INTO public.jobs(name) VALUES ($1) RETURNING id",
        ),
        (
            Class::Read,
            r#"SELECT "jobs".* FROM "jobs" WHERE "jobs"."id" = $1 LIMIT $2 /*app='x'*/"#,
        ),
        (
            Class::Write,
            r#"INSERT INTO "public"."jobs" ("name", "at") VALUES ($1, $2) RETURNING "id""#,
        ),
        (
            Class::Write,
            r#"UPDATE "jobs" SET "name" = 'x' WHERE "id" = 7"#,
        ),
        (
            Class::Read,
            r#"SELECT "a->b"."c" AS "A, b" FROM "my view" AS "a->b""#,
        ),
        (Class::Write, "UPDATE t SET a = a + 1 WHERE b = 2"),
        (Class::Write, "SELECT nextval('s')"),
        (
            Class::Write,
            "SELECT setval('s', (SELECT max(id) FROM t), false)",
        ),
        (Class::Write, "TRUNCATE a, b RESTART IDENTITY CASCADE"),
        (
            Class::Write,
            r#"INSERT INTO t VALUES (E'{"a": "it''s \'\\n\'"}', e'\\', 1)"#,
        ),
        (Class::Read, "SELECT X'1F', b'01', N'it', E'a' 'b'"),
        (Class::Write, "COPY public.t (a, b) FROM STDIN"),
        (Class::Write, r#"copy "t" ("a") to stdout"#),
        (
            Class::Read,
            "WITH RECURSIVE tree (id, up) AS (SELECT 1, 2 UNION ALL SELECT id, up FROM tree) SELECT max(id) FROM tree",
        ),
        (
            Class::Read,
            "with t(a) as (select 1) select lastval(), a from t",
        ),
        (Class::Write, "SELECT 1; DELETE FROM t"),
        (Class::Read, "NOTIFY news, 'it'"),
        (Class::Read, "BEGIN; LOCK TABLE t IN SHARE MODE; COMMIT"),
        (Class::Local, "SET LOCAL app.tenant = 7"),
        (Class::Local, "set\n local \"app\".tenant to 'x'"),
        (
            Class::Local,
            "BEGIN; SET TRANSACTION READ ONLY; SET CONSTRAINTS ALL DEFERRED",
        ),
        (Class::Local, "SELECT set_config('app.tenant', $1, true), 1"),
        (
            Class::Local,
            "INSERT INTO t VALUES (set_config('DateStyle', 'ISO', TRUE))",
        ),
        (Class::Visible, "SET app.tenant = 7"),
        (Class::Visible, "SET LOCAL a = 1; SET b = 2"),
        (Class::Visible, "SET local.tenant = 7"),
        (Class::Visible, "SET local . tenant = 7"),
        (
            Class::Visible,
            "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
        ),
        (Class::Visible, "SET TIME ZONE LOCAL"),
        (Class::Local, r#"CLOSE "c""#),
        (Class::Local, "CLOSE ALL /* app:web */"),
        (
            Class::Local,
            r#"DECLARE "a b" CURSOR WITHOUT HOLD FOR SELECT count(*) FROM t -- app:web"#,
        ),
        (
            Class::Local,
            "declare c insensitive no scroll cursor for with a as (select 1) table a for update",
        ),
        (
            Class::Local,
            "BEGIN; DECLARE hold BINARY CURSOR FOR VALUES (1)",
        ),
        (Class::Visible, "SELECT 1; LISTEN a"),
        (Class::Visible, "PREPARE p AS INSERT INTO t VALUES ($1)"),
    ];

    const NOT_TOLD: &[(Class, &str)] = &[
        (Class::Unknown, "SET app.tenant = 7; SELECT f(1)"),
        (Class::Unknown, "DECLARE c CURSOR WITH HOLD FOR SELECT 1"),
        (Class::Unknown, "DECLARE c CURSOR FOR SELECT f(1)"),
        (Class::Unknown, "DECLARE c"),
        (Class::Unknown, "DECLARE c SCROLL FOR SELECT 1"),
        (Class::Unknown, "CLOSE c; SET /* the */ app.tenant = 7"),
        (Class::Unknown, "SET /* the */ app.tenant = 7"),
        (Class::Unknown, "SET LOCAL /* the */ app.tenant = 7"),
        (Class::Unknown, "SELECT set_config($1, 'x', true)"),
        (Class::Unknown, "SELECT set_config('seed', '0.5', true)"),
        (Class::Unknown, "SELECT set_config('plpgsql.x', 'y', true)"),
        (Class::Unknown, "SELECT set_config('a.b', f(1), true)"),
        (Class::Unknown, "SELECT set_config('a.b', 'c', $1)"),
        (Class::Unknown, "SELECT set_config('a' || 'b', 'c', true)"),
        (Class::Unknown, "SELECT 1 -- comment\r, f(1)"),
        (Class::Unknown, "SELECT set_config('a.b', 'c', false)"),
        (Class::Unknown, "SELECT pg_advisory_lock(1)"),
        (Class::Unknown, "SELECT a.f (1)"),
        (
            Class::Unknown,
            "WITH t (a) AS (SELECT f(1)) SELECT a FROM t",
        ),
        (
            Class::Unknown,
            "WITH t AS (SELECT 1), u (a) AS (SELECT f(1)) TABLE u",
        ),
        (Class::Unknown, "COPY (SELECT f(1)) TO STDOUT"),
        (Class::Unknown, "COPY t FROM STDIN WHERE f(a)"),
        (Class::Unknown, "SELECT recursive(1)"),
        (Class::Unknown, "SELECT f$1(1)"),
        (Class::Unknown, "SELECT count$1a (1)"),
        (Class::Unknown, "INSERT INTO ! f(1)"),
        (Class::Unknown, "SELECT * INTO TEMP t FROM u"),
        (
            Class::Unknown,
            "INSERT INTO t VALUES (1); SELECT * INTO TEMP u FROM t",
        ),
        (Class::Unknown, "CREATE TEMP TABLE t ()"),
        (Class::Unknown, "SELECT \"set_config\"('a.b', 'c', false)"),
        (Class::Unknown, r#"SELECT "count"(*) FROM t"#),
        (Class::Unknown, r#"SELECT "a"."f" /**/ (1)"#),
        (Class::Unknown, r#"INSERT INTO "t" VALUES ("f"(1))"#),
        (Class::Unknown, r#"SELECT * FROM "a""b""#),
        (Class::Unknown, r#"SELECT * FROM U&"d\0061t""#),
        (Class::Unknown, r#"SELECT * FROM "open"#),
        (Class::Unknown, r#"SELECT "my f"(1)"#),
        (Class::Unknown, r#"SELECT "f()" (1)"#),
        (Class::Unknown, r#"SELECT """#),
        (Class::Unknown, "SELECT E'\\'', set_config('a', 'b', false)"),
        (
            Class::Unknown,
            "SELECT E'\\\\', set_config('a', 'b', false)",
        ),
        (Class::Unknown, "SELECT E'a''\\\\', f(1)"),
        (Class::Unknown, "SELECT E'a'\n'\\'', f(1), '"),
        (Class::Unknown, "SELECT E'é\\', f(1), 'é'"),
        (Class::Unknown, "SELECT E'a"),
        (Class::Unknown, "SELECT E'a\\"),
        (Class::Unknown, "SELECT N'\\', f('x')"),
        (Class::Unknown, "SELECT '\\', f('x')"),
        (Class::Unknown, "SELECT '\\'', f('x') --'"),
        (Class::Unknown, "SELECT f/**/('x')"),
        (Class::Unknown, "SELECT 1 /*/*/ ' */ */, f('x') --'"),
        (Class::Unknown, "EXECUTE p"),
        (Class::Unknown, "INSERT INTO t SELECT f(1)"),
        (Class::Unknown, "SELECT 'open"),
        (Class::Unknown, "SELECT f\x0b('x')"),
    ];

    #[test]
    fn what_leaves_nothing_is_told_from_the_rest() {
        for (expected, sql) in TOLD.iter().chain(NOT_TOLD) {
            assert_eq!(class(sql.as_bytes()), *expected, "{sql}");
        }
    }

    #[test]
    fn bodies_that_call_what_is_known_are_told_from_the_rest() {
        let known = |name: &[u8]| name == b"net";
        for body in [
            "SELECT net(1), $1 + count(*) FROM t",
            "DECLARE a numeric(10, 2) := (1 + 2); -- as in f(x)
             BEGIN IF (a > 1) THEN RETURN (net(a::int)); END IF;
             INSERT INTO public.t (a, b) VALUES (a, lower('f(x)')) RETURNING id INTO a;
             PERFORM (SELECT 1); WHILE (a < 2) LOOP a := a + 1; END LOOP; RETURN a; END",
        ] {
            assert!(calls_what_is_known(body.as_bytes(), &known), "{body}");
            assert!(!calls_what_is_known(body.as_bytes(), &|_| false), "{body}");
        }
        for body in [
            "BEGIN PERFORM f(1); END",
            "BEGIN a := f (1); END",
            "BEGIN SELECT 1 INTO a; a := public.f(1); END",
            "BEGIN RETURN \"net\"(1); END",
            "BEGIN OPEN c(1); END",
            "BEGIN a := $$ it $$; END",
        ] {
            assert!(!calls_what_is_known(body.as_bytes(), &known), "{body}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(sql in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = class(&sql);
        }

        #[test]
        fn an_unknown_call_is_found_wherever_it_stands(before in "[a-z0-9 ,.'()=;*/-]{0,40}", after in "[ -~]{0,20}") {
            let sql = format!("SELECT {before} ;SELECT set_config('a.b', 'c', false) {after}");
            // Where the text before opens a literal or a comment, the call is inside it, and PostgreSQL refuses the text
            // or doesn't call it: only a text that is closed counts.
            if before.matches('\'').count() % 2 == 0 && !before.contains("--") && !before.contains("/*") {
                prop_assert_eq!(class(sql.as_bytes()), Class::Unknown);
            }
        }
    }
}
