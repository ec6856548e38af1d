//! Owns the questions to PostgreSQL's catalogs: whether a definition has changed, and all definitions.

use std::time::Duration;

use crate::backend::capture::{self, write_statement};
use crate::backend::{Backend, Lost};
use crate::wire::extended::write_frame;
use crate::wire::sql::hazards::{self, Definition, Hazards};

/// How long PostgreSQL may take to answer before its backend counts as lost. It gives up by itself long before.
const PATIENCE: Duration = Duration::from_secs(10);

/// It must not hold up its session: definitions of tables that others have locked are read another time.
const HURRIED: [&str; 3] = [
    "SET LOCAL statement_timeout = '5s'",
    "SET LOCAL lock_timeout = '100ms'",
    // Compiling the question takes far longer than answering it.
    "SET LOCAL jit = off",
];

/// How many definitions are read at most: a database with more is one of which nothing is known.
const MOST: usize = 20_000;

/// What tells whether a definition was made, changed or dropped: counts and row versions of the catalogs that have them.
const VERSION: &str = "\
SELECT pg_catalog.concat_ws(' ', \
 (SELECT pg_catalog.concat(pg_catalog.count(*), '/', pg_catalog.sum(xmin::pg_catalog.text::pg_catalog.int8)) FROM pg_catalog.pg_proc \
  WHERE oid OPERATOR(pg_catalog.>=) 16384), \
 (SELECT pg_catalog.concat(pg_catalog.count(*), '/', pg_catalog.sum(xmin::pg_catalog.text::pg_catalog.int8)) FROM pg_catalog.pg_rewrite \
  WHERE oid OPERATOR(pg_catalog.>=) 16384), \
 (SELECT pg_catalog.concat(pg_catalog.count(*), '/', pg_catalog.sum(xmin::pg_catalog.text::pg_catalog.int8)) FROM pg_catalog.pg_trigger), \
 (SELECT pg_catalog.concat(pg_catalog.count(*), '/', pg_catalog.sum(xmin::pg_catalog.text::pg_catalog.int8)) FROM pg_catalog.pg_attrdef), \
 (SELECT pg_catalog.concat(pg_catalog.count(*), '/', pg_catalog.sum(xmin::pg_catalog.text::pg_catalog.int8)) FROM pg_catalog.pg_constraint), \
 (SELECT pg_catalog.concat(pg_catalog.count(*), '/', pg_catalog.sum(xmin::pg_catalog.text::pg_catalog.int8)) FROM pg_catalog.pg_policy), \
 (SELECT pg_catalog.concat(pg_catalog.count(*), '/', pg_catalog.sum(xmin::pg_catalog.text::pg_catalog.int8)) FROM pg_catalog.pg_inherits), \
 (SELECT pg_catalog.concat(pg_catalog.count(*), '/', pg_catalog.sum(xmin::pg_catalog.text::pg_catalog.int8)) FROM pg_catalog.pg_operator \
  WHERE oid OPERATOR(pg_catalog.>=) 16384), \
 (SELECT pg_catalog.concat(pg_catalog.count(*), '/', pg_catalog.sum(xmin::pg_catalog.text::pg_catalog.int8)) FROM pg_catalog.pg_cast \
  WHERE oid OPERATOR(pg_catalog.>=) 16384), \
 (SELECT pg_catalog.concat(pg_catalog.count(*), '/', pg_catalog.sum(xmin::pg_catalog.text::pg_catalog.int8)) FROM pg_catalog.pg_class \
  WHERE oid OPERATOR(pg_catalog.>=) 16384))";

/// Functions in SQL and PL/pgSQL with their bodies; extensions' C functions, and PostgreSQL's own by another name, are taken for harmless, other languages not: of their
/// bodies it is only told whether they name globals.
const FUNCTIONS: &str = "\
SELECT p.proname::pg_catalog.text, CASE WHEN l.lanname OPERATOR(pg_catalog.=) ANY (ARRAY['sql', 'plpgsql']::pg_catalog.name[]) \
 THEN p.prosrc WHEN p.prosrc OPERATOR(pg_catalog.~) '(^|[^a-zA-Z0-9_])(_SHARED|GD|global)($|[^a-zA-Z0-9_])' THEN '?!' ELSE '?' END \
 FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_language l ON l.oid OPERATOR(pg_catalog.=) p.prolang \
 WHERE p.oid OPERATOR(pg_catalog.>=) 16384 AND p.prokind OPERATOR(pg_catalog.<>) 'a' \
 AND NOT (l.lanname OPERATOR(pg_catalog.=) ANY (ARRAY['c', 'internal']::pg_catalog.name[]) AND EXISTS (SELECT FROM pg_catalog.pg_depend d \
 WHERE d.classid OPERATOR(pg_catalog.=) 1255 AND d.objid OPERATOR(pg_catalog.=) p.oid AND d.deptype OPERATOR(pg_catalog.=) 'e'))";

/// What runs functions without a statement naming them, but for what expressions do. A view or rule that calls `nextval` or
/// `setval` (1574, 1576, 1765) leaves what `lastval` says behind what looks like a mere question. A block in another language
/// may leave that language's globals, dblink a connection.
const REST: &str = "\
UNION ALL SELECT p.proname, \
 pg_catalog.concat_ws(' ', a.aggtransfn, a.aggfinalfn, a.aggcombinefn, a.aggmtransfn, a.aggminvtransfn, a.aggmfinalfn) \
 FROM pg_catalog.pg_aggregate a JOIN pg_catalog.pg_proc p ON p.oid OPERATOR(pg_catalog.=) a.aggfnoid \
 WHERE p.oid OPERATOR(pg_catalog.>=) 16384 \
UNION ALL SELECT c.relname, p.proname FROM pg_catalog.pg_trigger t JOIN pg_catalog.pg_class c ON c.oid OPERATOR(pg_catalog.=) t.tgrelid \
 JOIN pg_catalog.pg_proc p ON p.oid OPERATOR(pg_catalog.=) t.tgfoid WHERE NOT t.tgisinternal \
UNION ALL SELECT c.relname, 'set_config' FROM pg_catalog.pg_rewrite r \
 JOIN pg_catalog.pg_class c ON c.oid OPERATOR(pg_catalog.=) r.ev_class \
 WHERE r.oid OPERATOR(pg_catalog.>=) 16384 AND r.ev_action::pg_catalog.text OPERATOR(pg_catalog.~) ':funcid (1574|1576|1765) ' \
UNION ALL SELECT f.relname, c.relname FROM pg_catalog.pg_constraint n JOIN pg_catalog.pg_class c ON c.oid OPERATOR(pg_catalog.=) n.conrelid \
 JOIN pg_catalog.pg_class f ON f.oid OPERATOR(pg_catalog.=) n.confrelid \
 WHERE n.contype OPERATOR(pg_catalog.=) 'f' AND (n.confdeltype OPERATOR(pg_catalog.=) ANY ('{c,n,d}'::\"char\"[]) \
 OR n.confupdtype OPERATOR(pg_catalog.=) ANY ('{c,n,d}'::\"char\"[])) \
UNION ALL SELECT f.relname, c.relname FROM pg_catalog.pg_inherits i JOIN pg_catalog.pg_class c ON c.oid OPERATOR(pg_catalog.=) i.inhrelid \
 JOIN pg_catalog.pg_class f ON f.oid OPERATOR(pg_catalog.=) i.inhparent \
UNION ALL SELECT p.proname, CASE WHEN pg_catalog.bool_or(pg_catalog.array_to_string(p.proconfig, ' ') OPERATOR(pg_catalog.~) \
 '(^| )[^= ]+[.]') THEN '~' WHEN pg_catalog.bool_and(p.provolatile OPERATOR(pg_catalog.<>) 'v') THEN '=' \
 WHEN pg_catalog.bool_and(l.lanname OPERATOR(pg_catalog.=) ANY (ARRAY['sql', 'plpgsql']::pg_catalog.name[]) \
 AND p.prosrc OPERATOR(pg_catalog.<>) '') THEN '-' ELSE '~' END \
 FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_language l ON l.oid OPERATOR(pg_catalog.=) p.prolang \
 WHERE p.oid OPERATOR(pg_catalog.>=) 16384 AND p.prokind OPERATOR(pg_catalog.<>) 'p' GROUP BY p.proname \
UNION ALL SELECT c.relname, '+' FROM pg_catalog.pg_attrdef d JOIN pg_catalog.pg_class c ON c.oid OPERATOR(pg_catalog.=) d.adrelid \
 WHERE d.adbin::pg_catalog.text OPERATOR(pg_catalog.~) ':funcid (1574|1576|1765) ' \
UNION ALL SELECT c.relname, '+' FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_class c ON c.oid OPERATOR(pg_catalog.=) a.attrelid \
 WHERE a.attidentity OPERATOR(pg_catalog.<>) '' AND c.oid OPERATOR(pg_catalog.>=) 16384 \
UNION ALL SELECT l.lanname, '?!' FROM pg_catalog.pg_language l WHERE l.lanname OPERATOR(pg_catalog.<>) \
 ALL (ARRAY['internal', 'c', 'sql', 'plpgsql']::pg_catalog.name[]) \
UNION ALL SELECT p.proname, '?!' FROM pg_catalog.pg_proc p WHERE p.proname OPERATOR(pg_catalog.~) '^dblink_connect' \
UNION ALL SELECT '*', o.oprcode::pg_catalog.text FROM pg_catalog.pg_operator o WHERE o.oprcode::pg_catalog.oid OPERATOR(pg_catalog.>=) 16384 \
UNION ALL SELECT '*', s.castfunc::pg_catalog.regproc::pg_catalog.text FROM pg_catalog.pg_cast s WHERE s.castfunc OPERATOR(pg_catalog.>=) 16384 \
UNION ALL SELECT '*', m.amproc::pg_catalog.text FROM pg_catalog.pg_amproc m WHERE m.amproc::pg_catalog.oid OPERATOR(pg_catalog.>=) 16384 \
UNION ALL SELECT '*', y.typdefault FROM pg_catalog.pg_type y WHERE y.typdefault OPERATOR(pg_catalog.~~) '%(%' \
 AND y.oid OPERATOR(pg_catalog.>=) 16384";

/// Where expressions are kept: whose they are, what shows them as SQL, the expression as it is kept, and where it is found.
const EXPRESSIONS: [[&str; 4]; 8] = [
    [
        "c.relname",
        "pg_catalog.pg_get_ruledef(r.oid)",
        "pg_catalog.concat(r.ev_action, r.ev_qual)",
        "pg_catalog.pg_rewrite r JOIN pg_catalog.pg_class c ON c.oid OPERATOR(pg_catalog.=) r.ev_class \
         WHERE r.oid OPERATOR(pg_catalog.>=) 16384",
    ],
    [
        "c.relname",
        "pg_catalog.pg_get_triggerdef(t.oid)",
        "t.tgqual::pg_catalog.text",
        "pg_catalog.pg_trigger t JOIN pg_catalog.pg_class c ON c.oid OPERATOR(pg_catalog.=) t.tgrelid \
         WHERE NOT t.tgisinternal",
    ],
    [
        "c.relname",
        "pg_catalog.pg_get_expr(d.adbin, d.adrelid)",
        "d.adbin::pg_catalog.text",
        "pg_catalog.pg_attrdef d JOIN pg_catalog.pg_class c ON c.oid OPERATOR(pg_catalog.=) d.adrelid",
    ],
    [
        "CASE WHEN n.conrelid OPERATOR(pg_catalog.=) 0 THEN '*' ELSE c.relname::pg_catalog.text END",
        "pg_catalog.pg_get_constraintdef(n.oid)",
        "n.conbin::pg_catalog.text",
        "pg_catalog.pg_constraint n LEFT JOIN pg_catalog.pg_class c ON c.oid OPERATOR(pg_catalog.=) n.conrelid \
         WHERE n.contype OPERATOR(pg_catalog.=) 'c' AND n.oid OPERATOR(pg_catalog.>=) 16384",
    ],
    [
        "c.relname",
        "pg_catalog.pg_get_expr(p.polqual, p.polrelid)",
        "p.polqual::pg_catalog.text",
        "pg_catalog.pg_policy p JOIN pg_catalog.pg_class c ON c.oid OPERATOR(pg_catalog.=) p.polrelid",
    ],
    [
        "c.relname",
        "pg_catalog.pg_get_expr(p.polwithcheck, p.polrelid)",
        "p.polwithcheck::pg_catalog.text",
        "pg_catalog.pg_policy p JOIN pg_catalog.pg_class c ON c.oid OPERATOR(pg_catalog.=) p.polrelid",
    ],
    [
        "c.relname",
        "pg_catalog.pg_get_indexdef(i.indexrelid)",
        "pg_catalog.concat(i.indexprs, i.indpred)",
        "pg_catalog.pg_index i JOIN pg_catalog.pg_class c ON c.oid OPERATOR(pg_catalog.=) i.indrelid \
         WHERE (i.indexprs IS NOT NULL OR i.indpred IS NOT NULL) AND i.indexrelid OPERATOR(pg_catalog.>=) 16384",
    ],
    // From version 14 on.
    [
        "p.proname",
        "pg_catalog.pg_get_function_sqlbody(p.oid)",
        "p.prosqlbody::pg_catalog.text",
        "pg_catalog.pg_proc p WHERE p.prosqlbody IS NOT NULL AND p.oid OPERATOR(pg_catalog.>=) 16384",
    ],
];

/// What an expression names, read from how PostgreSQL keeps it: functions, aggregates and relations, by their object ids.
/// What shows it as SQL would lock each relation for a moment, and meet others' `LOCK … NOWAIT`; so it is only asked where
/// the names of settings are to be learnt (2078 is `set_config`). Most expressions name nothing but what comes with PostgreSQL,
/// and they are left out early: of that, only `setseed` (1599) and advisory locks (from 2880 and 3089 on) make state.
const NAMED: &str = "\
CASE WHEN tree OPERATOR(pg_catalog.~~) '%:funcid 2078 %' THEN shown \
 WHEN tree OPERATOR(pg_catalog.~) ':(funcid|aggfnoid|winfnoid|relid) ([0-9]{5,}|[23][0-9]{3}|1599) ' THEN \
 (SELECT pg_catalog.string_agg(name, ' ') FROM (\
 SELECT f.proname::pg_catalog.text FROM pg_catalog.pg_proc f WHERE f.oid OPERATOR(pg_catalog.=) ANY (ARRAY(SELECT m[1]::pg_catalog.oid \
 FROM pg_catalog.regexp_matches(tree, ':(?:funcid|aggfnoid|winfnoid) ([0-9]+)', 'g') AS found(m))) \
 UNION ALL SELECT f.relname::pg_catalog.text FROM pg_catalog.pg_class f WHERE f.oid OPERATOR(pg_catalog.=) ANY (ARRAY(SELECT m[1]::pg_catalog.oid \
 FROM pg_catalog.regexp_matches(tree, ':relid ([0-9]+)', 'g') AS found(m)))) AS names(name)) END";

/// All definitions: a name and a text of each.
fn definitions(version: u32) -> String {
    let body = usize::from(version < 14);
    let mut text = format!("{FUNCTIONS} {REST}");
    for [name, shown, tree, place] in &EXPRESSIONS[..EXPRESSIONS.len() - body] {
        let named = NAMED.replace("shown", shown).replace("tree", tree);
        for part in [" UNION ALL SELECT ", name, ", ", &named, " FROM ", place] {
            text.push_str(part);
        }
    }
    format!(
        "SELECT name, CASE WHEN pg_catalog.octet_length(text) OPERATOR(pg_catalog.>) 65536 THEN '?' ELSE text END \
         FROM ({text}) AS definitions(name, text) WHERE text IS NOT NULL LIMIT {}",
        MOST + 1
    )
}

/// What a survey found.
#[derive(Debug)]
pub(super) struct Survey {
    /// The catalogs' version that it is of.
    pub version: String,
    pub hazards: Hazards,
}

/// Asks a clean or quiet backend for the catalogs' version, and for all definitions where it isn't `known`.
///
/// Not cancel safe: a survey that is broken off loses the backend.
///
/// # Errors
/// The backend is lost.
pub(super) async fn survey(
    backend: &mut Backend,
    known: Option<&str>,
    heard: &mut Vec<u8>,
) -> Result<Option<Survey>, Lost> {
    let Some(rows) = ask(backend, VERSION, heard).await? else {
        return Ok(Some(Survey::of_nothing_known()));
    };
    let version = rows.into_iter().flatten().flatten().next();
    let version = version.ok_or(Lost::Protocol)?;
    if known == Some(version.as_str()) {
        return Ok(None);
    }
    let text = definitions(backend.version());
    let Some(rows) = ask(backend, &text, heard).await? else {
        return Ok(Some(Survey::of_nothing_known()));
    };
    if rows.len() > MOST {
        return Ok(Some(Survey {
            version,
            hazards: Hazards::anywhere(),
        }));
    }
    let definitions: Vec<Definition> = rows.into_iter().filter_map(definition).collect();
    let hazards = hazards::find(&definitions);
    Ok(Some(Survey { version, hazards }))
}

impl Survey {
    fn of_nothing_known() -> Self {
        Self {
            version: String::new(),
            hazards: Hazards::anywhere(),
        }
    }
}

fn definition(row: Vec<Option<String>>) -> Option<Definition> {
    let [Some(name), Some(text)] = <[Option<String>; 2]>::try_from(row).ok()? else {
        return None;
    };
    Some(Definition { name, text })
}

/// Asks one question in a transaction of its own; `None` where PostgreSQL refuses it. Notifications go to `heard`.
async fn ask(
    backend: &mut Backend,
    text: &str,
    heard: &mut Vec<u8>,
) -> Result<Option<Vec<Vec<Option<String>>>>, Lost> {
    let mut request = Vec::new();
    for text in [
        capture::BEGIN,
        HURRIED[0],
        HURRIED[1],
        HURRIED[2],
        capture::IN_UTF8,
        capture::AS_LOGIN,
        text,
        capture::COMMIT,
    ] {
        write_statement(&mut request, text, None);
    }
    write_frame(&mut request, b'S', b"");
    let answers = backend.exchange_within(PATIENCE, &request, 1).await?;
    heard.extend(answers.notifications);
    if let Some(error) = answers.error {
        tracing::warn!(
            "the database's functions can't be looked at, so any statement may leave state: {}",
            error.message
        );
        heard.extend(capture::abort(backend).await?);
        return Ok(None);
    }
    Ok(Some(answers.rows))
}
