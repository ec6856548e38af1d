//! Owns the survey of a database: what its functions, views, triggers, defaults, checks and policies may leave in a session
//! behind a plain statement. It is made at a pool's first login, and again when the catalogs have changed.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use crate::backend::capture::write_statement;
use crate::backend::{Backend, Lost};
use crate::clock::timers;
use crate::lease::Moment;
use crate::wire::extended::write_frame;
use crate::wire::sql::hazards::{self, Definition, Hazards};

/// How long a survey may take.
const PATIENCE: Duration = Duration::from_secs(10);

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

/// Functions in SQL and PL/pgSQL with their bodies; extensions' C functions are taken for harmless, other languages not.
const FUNCTIONS: &str = "\
SELECT p.proname::pg_catalog.text, CASE WHEN l.lanname OPERATOR(pg_catalog.=) ANY (ARRAY['sql', 'plpgsql']::pg_catalog.name[]) \
 THEN pg_catalog.concat(p.prosrc, ' ', BODY) ELSE '?' END \
 FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_language l ON l.oid OPERATOR(pg_catalog.=) p.prolang \
 WHERE p.oid OPERATOR(pg_catalog.>=) 16384 AND p.prokind OPERATOR(pg_catalog.<>) 'a' \
 AND NOT (l.lanname OPERATOR(pg_catalog.=) 'c' AND EXISTS (SELECT FROM pg_catalog.pg_depend d \
 WHERE d.classid OPERATOR(pg_catalog.=) 1255 AND d.objid OPERATOR(pg_catalog.=) p.oid AND d.deptype OPERATOR(pg_catalog.=) 'e'))";

/// What runs functions without a statement naming them.
const REST: &str = "\
UNION ALL SELECT p.proname, \
 pg_catalog.concat_ws(' ', a.aggtransfn, a.aggfinalfn, a.aggcombinefn, a.aggmtransfn, a.aggminvtransfn, a.aggmfinalfn) \
 FROM pg_catalog.pg_aggregate a JOIN pg_catalog.pg_proc p ON p.oid OPERATOR(pg_catalog.=) a.aggfnoid \
 WHERE p.oid OPERATOR(pg_catalog.>=) 16384 \
UNION ALL SELECT c.relname, pg_catalog.concat(pg_catalog.pg_get_ruledef(r.oid), \
 CASE WHEN pg_catalog.pg_get_ruledef(r.oid) OPERATOR(pg_catalog.~*) '(nextval|setval)' THEN ' set_config' END) \
 FROM pg_catalog.pg_rewrite r JOIN pg_catalog.pg_class c ON c.oid OPERATOR(pg_catalog.=) r.ev_class \
 WHERE r.oid OPERATOR(pg_catalog.>=) 16384 \
UNION ALL SELECT c.relname, pg_catalog.concat(p.proname, ' ', pg_catalog.regexp_replace(pg_catalog.pg_get_triggerdef(t.oid), 'EXECUTE ', '')) \
 FROM pg_catalog.pg_trigger t JOIN pg_catalog.pg_class c ON c.oid OPERATOR(pg_catalog.=) t.tgrelid \
 JOIN pg_catalog.pg_proc p ON p.oid OPERATOR(pg_catalog.=) t.tgfoid WHERE NOT t.tgisinternal \
UNION ALL SELECT c.relname, d.text FROM (SELECT adrelid, pg_catalog.pg_get_expr(adbin, adrelid) AS text FROM pg_catalog.pg_attrdef) d \
 JOIN pg_catalog.pg_class c ON c.oid OPERATOR(pg_catalog.=) d.adrelid \
 WHERE d.text OPERATOR(pg_catalog.~~) '%(%' AND d.text OPERATOR(pg_catalog.!~~) 'nextval(%' \
UNION ALL SELECT CASE WHEN n.conrelid OPERATOR(pg_catalog.=) 0 THEN '*' ELSE c.relname::pg_catalog.text END, pg_catalog.pg_get_constraintdef(n.oid) \
 FROM pg_catalog.pg_constraint n LEFT JOIN pg_catalog.pg_class c ON c.oid OPERATOR(pg_catalog.=) n.conrelid \
 WHERE n.contype OPERATOR(pg_catalog.=) 'c' AND n.oid OPERATOR(pg_catalog.>=) 16384 \
UNION ALL SELECT f.relname, c.relname FROM pg_catalog.pg_constraint n JOIN pg_catalog.pg_class c ON c.oid OPERATOR(pg_catalog.=) n.conrelid \
 JOIN pg_catalog.pg_class f ON f.oid OPERATOR(pg_catalog.=) n.confrelid \
 WHERE n.contype OPERATOR(pg_catalog.=) 'f' AND (n.confdeltype OPERATOR(pg_catalog.=) ANY ('{c,n,d}'::\"char\"[]) \
 OR n.confupdtype OPERATOR(pg_catalog.=) ANY ('{c,n,d}'::\"char\"[])) \
UNION ALL SELECT f.relname, c.relname FROM pg_catalog.pg_inherits i JOIN pg_catalog.pg_class c ON c.oid OPERATOR(pg_catalog.=) i.inhrelid \
 JOIN pg_catalog.pg_class f ON f.oid OPERATOR(pg_catalog.=) i.inhparent \
UNION ALL SELECT c.relname, pg_catalog.concat_ws(' ', pg_catalog.pg_get_expr(p.polqual, p.polrelid), \
 pg_catalog.pg_get_expr(p.polwithcheck, p.polrelid)) FROM pg_catalog.pg_policy p \
 JOIN pg_catalog.pg_class c ON c.oid OPERATOR(pg_catalog.=) p.polrelid \
UNION ALL SELECT c.relname, pg_catalog.pg_get_indexdef(i.indexrelid) FROM pg_catalog.pg_index i \
 JOIN pg_catalog.pg_class c ON c.oid OPERATOR(pg_catalog.=) i.indrelid \
 WHERE (i.indexprs IS NOT NULL OR i.indpred IS NOT NULL) AND i.indexrelid OPERATOR(pg_catalog.>=) 16384 \
UNION ALL SELECT '*', o.oprcode::pg_catalog.text FROM pg_catalog.pg_operator o WHERE o.oprcode::pg_catalog.oid OPERATOR(pg_catalog.>=) 16384 \
UNION ALL SELECT '*', s.castfunc::pg_catalog.regproc::pg_catalog.text FROM pg_catalog.pg_cast s WHERE s.castfunc OPERATOR(pg_catalog.>=) 16384 \
UNION ALL SELECT '*', m.amproc::pg_catalog.text FROM pg_catalog.pg_amproc m WHERE m.amproc::pg_catalog.oid OPERATOR(pg_catalog.>=) 16384 \
UNION ALL SELECT '*', y.typdefault FROM pg_catalog.pg_type y WHERE y.typdefault OPERATOR(pg_catalog.~~) '%(%' \
 AND y.oid OPERATOR(pg_catalog.>=) 16384";

/// How long the catalogs may have changed, by others than this pool's sessions, before it is noticed.
const EVERY: Duration = Duration::from_secs(10);

/// What a pool knows of its database.
#[derive(Debug, Default)]
pub struct Surveyed {
    hazards: RefCell<Rc<Hazards>>,
    /// The catalogs' version that it is of, and when it was last compared.
    of: RefCell<Option<(String, Moment)>>,
    /// A session defined something since.
    stale: Cell<bool>,
}

impl Surveyed {
    /// What is known now.
    #[must_use]
    pub fn hazards(&self) -> Rc<Hazards> {
        self.hazards.borrow().clone()
    }

    /// A session of this pool defined something.
    pub fn outdate(&self) {
        self.stale.set(true);
    }

    /// Whether it is time to look again.
    #[must_use]
    pub fn is_due(&self, now: Moment) -> bool {
        self.stale.get()
            || (self.of.borrow().as_ref()).is_none_or(|(_, since)| now.since(*since) >= EVERY)
    }

    /// Looks again, if it is time.
    ///
    /// Not cancel safe: a survey that is broken off loses the backend.
    ///
    /// # Errors
    /// The backend is lost; from then on anything is taken for hazardous.
    pub async fn refresh(&self, backend: &mut Backend, now: Moment) -> Result<(), Lost> {
        if !self.is_due(now) {
            return Ok(());
        }
        self.stale.set(false);
        let known = self
            .of
            .borrow()
            .as_ref()
            .map(|(version, _)| version.clone());
        // Others needn't ask the same meanwhile.
        *self.of.borrow_mut() = Some((known.clone().unwrap_or_default(), now));
        let found = survey(backend, known.as_deref()).await;
        let Survey { version, hazards } = match found {
            Ok(None) => return Ok(()),
            Ok(Some(found)) => found,
            Err(error) => {
                *self.hazards.borrow_mut() = Rc::new(Hazards::anywhere());
                return Err(error);
            }
        };
        *self.of.borrow_mut() = Some((version, now));
        *self.hazards.borrow_mut() = Rc::new(hazards);
        Ok(())
    }
}

/// What a survey found.
#[derive(Debug)]
struct Survey {
    /// The catalogs' version that it is of.
    version: String,
    hazards: Hazards,
}

/// Asks a clean or quiet backend for the catalogs' version, and for all definitions where it isn't `known`.
///
/// Not cancel safe: a survey that is broken off loses the backend.
///
/// # Errors
/// The backend is lost.
async fn survey(backend: &mut Backend, known: Option<&str>) -> Result<Option<Survey>, Lost> {
    let Some(rows) = ask(backend, VERSION).await? else {
        return Ok(Some(Survey::of_nothing_known()));
    };
    let version = rows.into_iter().flatten().flatten().next();
    let version = version.ok_or(Lost::Protocol)?;
    if known == Some(version.as_str()) {
        return Ok(None);
    }
    let body = if backend.version() >= 14 {
        "pg_catalog.pg_get_function_sqlbody(p.oid)"
    } else {
        "''"
    };
    let text = format!(
        "SELECT name, CASE WHEN pg_catalog.octet_length(text) OPERATOR(pg_catalog.>) 65536 THEN '?' ELSE text END \
         FROM ({} {REST}) AS definitions(name, text) WHERE text IS NOT NULL LIMIT {}",
        FUNCTIONS.replace("BODY", body),
        MOST + 1
    );
    let Some(rows) = ask(backend, &text).await? else {
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

/// Asks one question in a transaction of its own; `None` where PostgreSQL refuses it.
async fn ask(backend: &mut Backend, text: &str) -> Result<Option<Vec<Vec<Option<String>>>>, Lost> {
    let mut request = Vec::new();
    for text in [
        "BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY NOT DEFERRABLE",
        "SET LOCAL statement_timeout = 0",
        "SET LOCAL client_encoding = 'UTF8'",
        "SET LOCAL ROLE NONE",
        text,
        "COMMIT",
    ] {
        write_statement(&mut request, text, None);
    }
    write_frame(&mut request, b'S', b"");
    let exchange = backend.exchange(&request, 1);
    let answers = timers::timeout(PATIENCE, exchange)
        .await
        .map_err(|_| Lost::Closed)??;
    if let Some(error) = answers.error {
        tracing::warn!(
            "the database's functions can't be looked at, so any statement may leave state: {}",
            error.message
        );
        let mut request = Vec::new();
        write_statement(&mut request, "ROLLBACK", None);
        write_frame(&mut request, b'S', b"");
        backend.exchange(&request, 1).await?;
        return Ok(None);
    }
    Ok(Some(answers.rows))
}
