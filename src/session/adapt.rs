//! Owns the bringing of prepared statements to a backend that another session used: each when it is named, and no sooner.
//!
//! A statement that is made anew is closed first: closing what isn't there does no harm, and what another session left
//! under the same name must not answer for it. Two sessions with the same text share what is there.

use std::collections::BTreeSet;
use std::rc::Rc;

use memchr::memmem;

use crate::backend::prepared::{Made, Shape, There};
use crate::lease::Status;
use crate::session::Session;
use crate::session::unnamed::Ahead;
use crate::wire::cut::Verdict;
use crate::wire::extended::{Statement, write_frame};
use crate::wire::frame::Header;
use crate::wire::reply::{self, Fields};
use crate::wire::sql::Class;
use crate::wire::tracker::Origin;

/// Up to this many statements are brought along at once: more are made when they are named.
const FEW: usize = 64;

/// What a name needs before it may be used.
enum Need {
    Nothing,
    /// Another session left it here.
    Closed,
    /// It was made anew here, and nobody asked yet what its rows look like now.
    Asked,
    /// The backend hasn't got it, or another one.
    Made(Rc<Statement>),
}

/// What is under way with statements. Without memory at most moments.
#[derive(Debug, Default)]
pub(super) struct Moving(Option<Box<AtWork>>);

#[derive(Debug, Default)]
pub(super) struct AtWork {
    /// Names whose statements were closed or made anew, and by which message: a failure leaves in doubt what the backend has,
    /// unless it is one of an earlier request.
    adapted: Vec<(Box<[u8]>, u64)>,
    /// Statements that the client closes, as long as it isn't answered.
    closing: Vec<Closing>,
    /// What is about to be run or described has rows that would look otherwise by now.
    changed: bool,
    /// PostgreSQL was made to refuse such a statement, by a frame of this kind.
    refuses: Option<u8>,
    /// The types of its parameters, as PostgreSQL described them.
    parameters: Vec<u8>,
    /// Statements that couldn't be made, and PostgreSQL's word on each: the client may name them in the same breath.
    unmade: Vec<(Rc<Statement>, Vec<u8>)>,
}

/// A statement that the client closes.
#[derive(Debug)]
struct Closing {
    mine: Made,
    /// What the backend has under its name, where that is known.
    there: Option<Made>,
    /// The number of the message.
    number: u64,
}

impl Moving {
    fn at_work(&mut self) -> &mut AtWork {
        self.0.get_or_insert_default()
    }

    /// Everything is answered: what was made anew is there.
    pub fn answered(&mut self) {
        if let Some(work) = &mut self.0 {
            work.adapted.clear();
            work.changed = false;
            work.refuses = None;
            work.parameters = Vec::new();
            work.unmade = Vec::new();
            if work.closing.is_empty() {
                self.0 = None;
            }
        }
    }

    /// Those that were adapted by the messages up to this one.
    fn take_adapted(&mut self, until: u64) -> Vec<Box<[u8]>> {
        let adapted = self.0.iter_mut().flat_map(|work| {
            let until = move |(_, number): &mut (Box<[u8]>, u64)| *number <= until;
            work.adapted.extract_if(.., until)
        });
        adapted.map(|(name, _)| name).collect()
    }

    /// The messages up to this one were answered; of failures it was heard.
    pub fn answered_until(&mut self, until: u64) {
        if let Some(work) = &mut self.0 {
            work.adapted.retain(|(_, number)| *number > until);
        }
    }

    fn take_closing(&mut self, until: u64) -> Vec<Closing> {
        let closing = self.0.iter_mut().flat_map(|work| {
            let until = move |closing: &mut Closing| closing.number <= until;
            work.closing.extract_if(.., until)
        });
        closing.collect()
    }

    /// This one is there, whatever fails later.
    pub fn remade(&mut self, name: &[u8]) {
        if let Some(work) = &mut self.0
            && let Some(at) = (work.adapted.iter()).position(|(known, _)| **known == *name)
        {
            work.adapted.swap_remove(at);
        }
    }

    fn closed(&mut self, name: &[u8]) {
        if let Some(work) = &mut self.0
            && let Some(at) = work
                .closing
                .iter()
                .position(|closing| *closing.mine.statement.name == *name)
        {
            work.closing.remove(at);
        }
    }
}

impl Session {
    /// Adds what the backend must be told before the session names a statement.
    pub(super) fn adapt(&mut self, name: &[u8], extra: &mut Option<Vec<u8>>) {
        if self.rare.at_home || self.tracker.is_skipping() {
            return;
        }
        let statement = match self.need(name) {
            Need::Nothing | Need::Asked => return,
            Need::Closed => None,
            Need::Made(statement) => Some(statement),
        };
        let out = extra.get_or_insert_default();
        write_close(out, name);
        self.tracker.sent_close(Some(name.into()), Origin::Proxy);
        self.note_adapted(name, statement.is_some());
        if let Some(statement) = statement {
            statement.write_parse(out);
            self.tracker.sent_parse(statement, Origin::Proxy);
        }
    }

    /// The client makes a statement. Where it has one of this name already, PostgreSQL shall say so, whatever stands there:
    /// what the session has may not be made just now, under another search_path.
    pub(super) fn occupy(&mut self, name: &[u8], extra: &mut Option<Vec<u8>>) {
        let making = self.tracker.is_making(name);
        if making && let Some(lent) = &mut self.lent {
            // That may fail: then nothing stands there.
            lent.backend.prepared.doubt(name);
            self.rare.at_home = false;
        }
        if self.stand_in(name, extra)
            && let Some(lent) = &mut self.lent
        {
            lent.backend.prepared.doubt(name);
        }
    }

    /// SQL of the client's does away with a statement by its name. One that isn't here need not be made for that: it may be
    /// one that can't be any more.
    pub(super) fn before_deallocate(&mut self, name: &[u8]) -> Option<Vec<u8>> {
        if self.tracker.status() == Status::Failed {
            return None;
        }
        let mut extra = None;
        if self.stand_in(name, &mut extra) {
            // Nobody uses what stands for it: it is gone next, or a failure leaves in doubt what is there.
            self.note_adapted(name, true);
        }
        extra
    }

    /// An empty statement stands for one of the session's that isn't here: `true`. What another session left there goes.
    fn stand_in(&mut self, name: &[u8], extra: &mut Option<Vec<u8>>) -> bool {
        let is_missing = || matches!(self.need(name), Need::Made(_));
        if self.rare.at_home || self.tracker.is_skipping() || !is_missing() {
            self.adapt(name, extra);
            return false;
        }
        let nothing = Statement::read(&[name, b"\0\0\0\0"].concat());
        let nothing = Rc::new(nothing.expect("a Parse of nothing is whole"));
        let out = extra.get_or_insert_default();
        write_close(out, name);
        self.tracker.sent_close(Some(name.into()), Origin::Proxy);
        nothing.write_parse(out);
        self.tracker.sent_parse(nothing, Origin::Proxy);
        true
    }

    /// The client is about to run or describe a statement: as [`Session::adapt`]. Where the statement is made anew, and what its
    /// rows looked like is known, PostgreSQL is asked first what they look like now; where that has changed, it refuses, as it
    /// would have without a move.
    pub(super) fn before_use(
        &mut self,
        kind: u8,
        name: &[u8],
        extra: &mut Option<Vec<u8>>,
    ) -> Option<Verdict> {
        if self.rare.at_home || self.tracker.is_skipping() {
            return None;
        }
        if self.would_misread(name) {
            return Some(self.refuse_to_run(kind));
        }
        let mine = self.statements.get(name);
        let known = mine.filter(|mine| mine.shape != Shape::UNKNOWN);
        let known = known.filter(|_| self.tracker.status() != Status::Failed);
        let Some(Made { statement, .. }) = known else {
            self.adapt(name, extra);
            return None;
        };
        let statement = statement.clone();
        if let Some(work) = &mut self.rare.moving.0
            && std::mem::take(&mut work.changed)
        {
            return Some(self.refuse_to_run(kind));
        }
        if let Need::Nothing = self.need(name) {
            return None;
        }
        let mut out = extra.take();
        self.adapt(name, &mut out);
        let mut out = out.unwrap_or_default();
        write_frame(&mut out, b'D', &[b"S", name, b"\0"].concat());
        write_frame(&mut out, b'H', b"");
        self.tracker.sent_extended();
        self.tracker.sent_shape(statement, Origin::Proxy);
        Some(Verdict::HoldBehind(out))
    }

    /// Whether a statement has to be made anew, and its literals would be read otherwise: by settings that weren't there when
    /// it was made. What is unanswered may have changed them, too; that isn't known.
    fn would_misread(&self, name: &[u8]) -> bool {
        let Need::Made(_) = self.need(name) else {
            return false;
        };
        let mine = self.statements.get(name);
        let lent = self.lent.as_ref().filter(|_| self.tracker.is_answered());
        mine.zip(lent)
            .is_some_and(|(mine, lent)| !mine.reads_alike(&lent.backend.parameters))
    }

    /// What stands for a use of a statement: PostgreSQL refuses it.
    fn refuse_to_run(&mut self, kind: u8) -> Verdict {
        self.rare.moving.at_work().refuses = Some(kind);
        self.tracker.sent_extended();
        Verdict::Instead(refused(kind))
    }

    /// What is sent next, of this class, may change how literals are read: statements that have any are made before, as they were. Gives what
    /// has to be sent first.
    pub(super) fn keep_readings(&mut self, class: Class) -> Option<Vec<u8>> {
        let settled = self.rare.at_home || self.rare.trail.readings_are_kept;
        if settled || class < Class::Local {
            return None;
        }
        // From here on it is too late, whether they were made or not.
        self.rare.trail.readings_are_kept = true;
        let status = self.tracker.status();
        if status == Status::Failed || !self.tracker.is_between_requests() {
            return None;
        }
        let lent = self.lent.as_mut()?;
        let there = &mut lent.backend.prepared;
        let missing = |mine: &&Made| {
            let there = there.get(&mine.statement.name);
            !mine.statement.plain && !there.is_some_and(|there| mine.is_like(there))
        };
        let missing: Vec<Made> = self.statements.all().filter(missing).map(unasked).collect();
        let mut out = Requests::default();
        for made in missing {
            out.make(&made.statement);
            there.insert(made);
        }
        self.send_by_themselves(out)
    }

    /// The statement of this name, if it isn't known what its rows look like.
    pub(super) fn unshaped(&self, name: &[u8]) -> Option<Rc<Statement>> {
        if let Some(statement) = self.tracker.sent_statement(name) {
            return Some(statement.clone());
        }
        let mine = self.statements.get(name);
        let unknown = mine.filter(|mine| mine.shape == Shape::UNKNOWN);
        unknown.map(|mine| mine.statement.clone())
    }

    /// PostgreSQL said what a statement's rows look like, to whoever asked.
    pub(super) fn note_shape(&mut self, statement: &Rc<Statement>, shape: Shape, origin: Origin) {
        let name = &statement.name;
        let mine = self.statements.get(name);
        let Some(mine) = mine.filter(|mine| Rc::ptr_eq(&mine.statement, statement)) else {
            return;
        };
        let before = mine.shape;
        if let Some(lent) = &mut self.lent {
            lent.backend.prepared.shape(name, shape);
        }
        match origin {
            Origin::Client | Origin::Adopted if shape == Shape::OTHER => {}
            Origin::Client | Origin::Adopted => self.statements.shape(name, shape),
            Origin::Proxy => self.rare.moving.at_work().changed = shape != before,
        }
    }

    /// What the client hears in place of an error that only a move explains.
    pub(super) fn instead_of(&self, body: &[u8]) -> Option<Vec<u8>> {
        if self.is_refusal(body) {
            return Some(self.refusal());
        }
        self.word_on_unmade(body)
    }

    /// Whether an error is PostgreSQL's answer to what stands for a statement whose rows would look otherwise by now.
    fn is_refusal(&self, body: &[u8]) -> bool {
        let work = self.rare.moving.0.as_ref();
        work.is_some_and(|work| work.refuses.is_some())
            && body.windows(REFUSED.len()).any(|part| part == REFUSED)
    }

    /// What the client hears then: a Describe gives the parameters before it fails (chapter 55.2.3), where they are known.
    fn refusal(&self) -> Vec<u8> {
        let mut out = Vec::new();
        if let Some(work) = &self.rare.moving.0
            && work.refuses == Some(b'D')
            && !work.parameters.is_empty()
        {
            write_frame(&mut out, b't', &work.parameters);
        }
        out.extend(reply::changed_plan());
        out
    }

    /// A statement couldn't be made ahead of a request that may name it.
    pub(super) fn note_unmade(&mut self, header: Header, body: &[u8]) {
        let whole = body.len() == header.body;
        if let Some(statement) = self.tracker.making().filter(|_| whole).cloned() {
            let unmade = &mut self.rare.moving.at_work().unmade;
            if unmade.len() < FEW {
                unmade.push((statement, body.to_vec()));
            }
        }
    }

    /// Where a request fails since it names such a statement: what PostgreSQL would have said of it without a move.
    fn word_on_unmade(&self, body: &[u8]) -> Option<Vec<u8>> {
        let unmade = &self.rare.moving.0.as_ref()?.unmade;
        if unmade.is_empty() {
            return None;
        }
        let fields = Fields::read(body);
        let named = |statement: &Statement| {
            let quoted = [b"\"", &statement.name[..], b"\""].concat();
            fields.code == UNKNOWN && memmem::find(body, &quoted).is_some()
        };
        let (_, word) = unmade.iter().find(|(statement, _)| named(statement))?;
        let mut out = Vec::new();
        write_frame(&mut out, b'E', word);
        Some(out)
    }

    /// An answer to what was added; the parameters of a statement that was made anew may be wanted later.
    pub(super) fn drop_own(&mut self, header: Header, body: &[u8]) -> Verdict {
        if header.kind == b't' && body.len() == header.body {
            self.rare.moving.at_work().parameters = body.to_vec();
        }
        Verdict::Drop
    }

    fn need(&self, name: &[u8]) -> Need {
        let Some(lent) = &self.lent else {
            return Need::Nothing;
        };
        match (self.statements.get(name), lent.backend.prepared.there(name)) {
            (None, There::Nothing) => Need::Nothing,
            (None, There::Made(_) | There::Doubtful) => Need::Closed,
            (Some(mine), There::Made(there)) if mine.is_served_by(there) => Need::Nothing,
            (Some(mine), There::Made(there))
                if Rc::ptr_eq(&mine.statement, &there.statement)
                    && there.shape == Shape::UNKNOWN
                    && mine.is_like(there) =>
            {
                Need::Asked
            }
            (Some(mine), _) => Need::Made(mine.statement.clone()),
        }
    }

    /// The backend has, or hasn't, the session's own statement of this name from here on.
    fn note_adapted(&mut self, name: &[u8], made: bool) {
        let Some(lent) = &mut self.lent else { return };
        match self.statements.get(name).filter(|_| made) {
            Some(mine) => lent.backend.prepared.insert(unasked(mine)),
            None => drop(lent.backend.prepared.remove(name)),
        }
        self.note_doubtful(name, self.tracker.sent_count());
    }

    /// The message of this number does something about a statement.
    fn note_doubtful(&mut self, name: &[u8], number: u64) {
        let adapted = &mut self.rare.moving.at_work().adapted;
        adapted.push((name.into(), number));
    }

    /// After a failure it can't be told which statements were closed or made anew: they will be again. Those of requests that
    /// come later are not concerned.
    pub(super) fn forget_adapted(&mut self) {
        let until = self.tracker.answered_count();
        if let Some(lent) = &mut self.lent {
            for name in self.rare.moving.take_adapted(until) {
                lent.backend.prepared.doubt(&name);
            }
        }
    }

    /// The client closes a statement: whatever it names in the same breath, the statement isn't there any more.
    pub(super) fn close_statement(&mut self, name: &[u8]) {
        if self.tracker.is_skipping() {
            return;
        }
        if name.is_empty() {
            return self.statements.unnamed.sent_close();
        }
        if self.rare.saved.has_prepared(name) {
            // SQL made it: PostgreSQL has to be asked what is left.
            self.rare.class = self.rare.class.max(Class::Visible);
        }
        let mine = self.statements.close(name);
        let mut there = None;
        // It is put into the account next.
        let number = self.tracker.sent_count() + 1;
        if let Some(lent) = &mut self.lent {
            let foreign = !matches!(lent.backend.prepared.there(name), There::Nothing);
            there = lent.backend.prepared.remove(name);
            if mine.is_none() && foreign {
                self.note_doubtful(name, number);
            }
        }
        if let Some(mine) = mine {
            let closing = &mut self.rare.moving.at_work().closing;
            closing.push(Closing {
                mine,
                there,
                number,
            });
        }
    }

    /// A Close was skipped: the session has the statement still, and the backend what it had.
    pub(super) fn reopen_skipped(&mut self) {
        let closing = self.rare.moving.take_closing(self.tracker.answered_count());
        if !closing.is_empty() {
            self.rare.at_home = false;
        }
        for Closing { mine, there, .. } in closing {
            if let Some(lent) = &mut self.lent {
                match there {
                    Some(there) => lent.backend.prepared.insert(there),
                    None => lent.backend.prepared.doubt(&mine.statement.name),
                }
            }
            // It was kept before.
            let _ = self.statements.made(mine);
        }
    }

    /// A Close was carried out.
    pub(super) fn note_closed(&mut self, name: &[u8]) {
        self.rare.moving.closed(name);
    }

    /// Not all could be made: each will be made, or refused, when it is named. What others left was closed first.
    pub(super) fn stay_abroad(&mut self) {
        self.rare.at_home = false;
        if let Some(lent) = &mut self.lent {
            for mine in self.statements.all() {
                lent.backend.prepared.doubt(&mine.statement.name);
            }
        }
    }

    /// What must go before the unnamed statement is used: its Parse, when the backend hasn't got it; where the session has
    /// none, the closing of the one that another session may have left.
    pub(super) fn recall_unnamed(&mut self) -> Option<Vec<u8>> {
        if self.tracker.is_skipping() {
            return None;
        }
        let mut out = Vec::new();
        match self.statements.unnamed.ahead() {
            Ahead::Nothing => return None,
            Ahead::Parse(statement) => {
                statement.write_parse(&mut out);
                self.tracker.sent_parse(statement, Origin::Proxy);
            }
            Ahead::Close => {
                write_close(&mut out, b"");
                let name = Some(Rc::from(&b""[..]));
                self.tracker.sent_close(name, Origin::Proxy);
            }
        }
        Some(out)
    }

    /// Brings the session home to a backend that it takes over, where that is little work: it will find there just what
    /// it would have found on its own.
    pub(super) fn settle_in(&mut self) {
        if !self.rare.at_home && self.statements.len() <= FEW && self.may_come_unasked() {
            let out = self.come_home().unwrap_or_default();
            self.to_backend.push(&out);
        }
    }

    /// Whether no statement has to be made of which it is known what its rows looked like: PostgreSQL is asked about such a
    /// one before it runs.
    fn may_come_unasked(&self) -> bool {
        let there = self.lent.iter().map(|lent| &lent.backend.prepared);
        let serves = |mine: &Made| {
            let mut there = there.clone();
            there.any(|there| {
                (there.get(&mine.statement.name)).is_some_and(|there| mine.is_served_by(there))
            })
        };
        self.statements
            .all()
            .all(|mine| mine.shape == Shape::UNKNOWN || serves(mine))
    }

    /// Makes the backend have all of the session's statements, and no others: SQL is about to name some.
    pub(super) fn come_home(&mut self) -> Option<Vec<u8>> {
        // In a failed transaction nothing can be made; nor can anything be run that would need it.
        if self.tracker.status() == Status::Failed || self.tracker.is_skipping() {
            return None;
        }
        if !self.tracker.is_between_requests() {
            return self.come_home_within();
        }
        let lent = self.lent.as_mut()?;
        let mut out = Requests::default();
        let mut all = Vec::new();
        let left = lent
            .backend
            .prepared
            .names()
            .filter(|name| self.statements.get(name).is_none());
        let mut foreign = Vec::new();
        left.for_each(|name| write_close(&mut foreign, name));
        if !foreign.is_empty() {
            out.0.push((foreign, None));
        }
        for mine in self.statements.all() {
            let name = &mine.statement.name;
            let there = lent.backend.prepared.get(name);
            all.push(match there.filter(|there| mine.is_like(there)) {
                Some(there) => there.clone(),
                None => {
                    out.make(&mine.statement);
                    unasked(mine)
                }
            });
        }
        lent.backend.prepared.clear();
        for made in all {
            lent.backend.prepared.insert(made);
        }
        self.rare.at_home = self.may_come_unasked();
        self.send_by_themselves(out)
    }

    /// Requests of our own, between the client's. What fails there fails nothing of the client's.
    fn send_by_themselves(&mut self, out: Requests) -> Option<Vec<u8>> {
        let Requests(each) = out;
        if each.is_empty() {
            return None;
        }
        let free = self.tracker.is_surely_idle();
        let mut out = Vec::new();
        for (frames, making) in each {
            // A statement that can't be made any more must not fail a transaction of the client's; statements outlive a savepoint.
            // Outside a transaction, PostgreSQL refuses the savepoint, and that is all.
            if !free {
                write_frame(&mut out, b'Q', b"SAVEPOINT _pgvalet\0");
                self.tracker.sent_own(None);
            }
            out.extend_from_slice(&frames);
            write_frame(&mut out, b'S', b"");
            self.tracker.sent_own(making);
            if !free {
                let end = b"ROLLBACK TO SAVEPOINT _pgvalet; RELEASE SAVEPOINT _pgvalet\0";
                write_frame(&mut out, b'Q', end);
                self.tracker.sent_own(None);
            }
        }
        Some(out)
    }

    /// The same in the middle of a pipeline: a Sync would commit what came before.
    fn come_home_within(&mut self) -> Option<Vec<u8>> {
        let lent = self.lent.as_ref()?;
        let mut names: BTreeSet<Box<[u8]>> = lent.backend.prepared.names().map(Box::from).collect();
        let own = self.statements.all();
        names.extend(own.map(|mine| mine.statement.name.clone()));
        let mut out = None;
        for name in names {
            self.adapt(&name, &mut out);
        }
        out
    }
}

/// `invalid_sql_statement_name`: there is no such statement.
const UNKNOWN: &str = "26000";

/// The name of a statement that doesn't exist: running it fails just where a statement whose rows have changed would have.
const REFUSED: &[u8] = b"_pgvalet_changed";

/// A Bind or Describe that PostgreSQL refuses.
fn refused(kind: u8) -> Vec<u8> {
    let mut out = Vec::new();
    let body = match kind {
        b'B' => [b"\0", REFUSED, b"\0\0\0\0\0\0\0"].concat(),
        _ => [b"S", REFUSED, b"\0"].concat(),
    };
    write_frame(&mut out, kind, &body);
    out
}

/// Requests of our own that make statements anew. Each is by itself: one that can't be made any more keeps no other from it,
/// which the client may name right behind.
#[derive(Default)]
struct Requests(Vec<(Vec<u8>, Option<Rc<Statement>>)>);

impl Requests {
    fn make(&mut self, statement: &Rc<Statement>) {
        let mut frames = Vec::new();
        write_close(&mut frames, &statement.name);
        statement.write_parse(&mut frames);
        self.0.push((frames, Some(statement.clone())));
    }
}

/// The same statement, made anew.
fn unasked(made: &Made) -> Made {
    Made {
        shape: Shape::UNKNOWN,
        ..made.clone()
    }
}

fn write_close(out: &mut Vec<u8>, name: &[u8]) {
    write_frame(out, b'C', &[b"S", name, b"\0"].concat());
}
