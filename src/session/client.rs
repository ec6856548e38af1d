//! Owns the client's bytes on their way to the backend: what each frame means, and the few that we add or drop.

use std::rc::Rc;
use std::task::Context;

use crate::backend::pool::add;
use crate::backend::prepared::Shape;
use crate::config::Mode;
use crate::lease::{Event, LastStatement, Pin};
use crate::session::relay::{End, Flow};
use crate::session::statements::MAX_KEPT;
use crate::session::virtual_settings::Own;
use crate::session::{Phase, Session, Tame};
use crate::wire::cut::{Cursor, Judge, Verdict, cut, whole_frames};
use crate::wire::extended::{self, Statement, Target, Value};
use crate::wire::frame::{BadLength, HEADER, Header};
use crate::wire::reply::{ClientError, Fault};
use crate::wire::sql::{self, Class, Naming, Words, hazards};
use crate::wire::tracker::Origin;

/// How much of a frame whose names or text we read is awaited before it is judged, in bytes.
const HOLD: usize = 16 << 10;

/// How many names of custom settings of one session are kept, and how long each may be, in bytes.
const MOST_SETTINGS: usize = 1000;
const LONGEST_NAME: usize = 256;

/// The client's side of a session, as its frames are cut.
struct FromClient<'a> {
    session: &'a mut Session,
    /// What the first frame's text mentions, if it was looked at already.
    known: Option<Words>,
}

impl Judge for FromClient<'_> {
    #[inline]
    fn cursor(&mut self) -> &mut Cursor {
        &mut self.session.inbound
    }

    /// CopyData messages that PostgreSQL awaits.
    #[inline]
    fn plain(&self, bytes: &[u8]) -> usize {
        if bytes[0] == b'd'
            && self.session.tracker.expects_copy_data()
            && !self.session.virtuals.is_in_use()
        {
            whole_frames(bytes, |kind| kind == b'd')
        } else {
            0
        }
    }

    #[inline]
    fn needed(&self, kind: u8) -> usize {
        match kind {
            b'E' if self.session.virtuals.is_in_use() => HOLD,
            kind => hold(kind),
        }
    }

    #[inline]
    fn judge(&mut self, header: Header, body: &[u8]) -> Verdict {
        let words = self
            .known
            .take()
            .unwrap_or_else(|| words(header.kind, body));
        match self.session.own(header, body, words) {
            Own::No => self.session.judge(header, body, words),
            Own::Done => Verdict::Drop,
            Own::Hold => Verdict::Hold,
            Own::After(extra) => behind(extra, self.session.judge(header, body, words)),
        }
    }
}

/// A verdict, with bytes ahead of what it lets pass.
fn behind(mut extra: Vec<u8>, verdict: Verdict) -> Verdict {
    match verdict {
        Verdict::Pass => Verdict::After(extra),
        Verdict::After(more) => {
            extra.extend_from_slice(&more);
            Verdict::After(extra)
        }
        Verdict::Drop => Verdict::Instead(extra),
        Verdict::Instead(other) => {
            extra.extend_from_slice(&other);
            Verdict::Instead(extra)
        }
        Verdict::Hold => Verdict::HoldBehind(extra),
        Verdict::HoldBehind(more) => {
            extra.extend_from_slice(&more);
            Verdict::HoldBehind(extra)
        }
        Verdict::Stop => Verdict::Stop,
    }
}

/// What the text of a frame mentions, where it has one.
pub(super) fn words(kind: u8, body: &[u8]) -> Words {
    match kind {
        b'Q' | b'P' => Words::of(body),
        _ => Words::default(),
    }
}

pub(super) fn violation(error: BadLength) -> Box<ClientError> {
    let told = ClientError::new(Fault::Client, "08P01", "invalid message length");
    Box::new(told.detail(error.to_string()))
}

impl Session {
    /// Takes in bytes from the client.
    pub(super) fn on_client(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Result<Flow, End> {
        add(&self.pool.counters.bytes_in, bytes.len());
        if self.inbound.carry.is_empty() {
            return self.take_client(cx, bytes);
        }
        let mut all = std::mem::take(&mut self.inbound.carry).into_vec();
        all.extend_from_slice(bytes);
        self.take_client(cx, &all)
    }

    /// Takes in what was kept while there was no backend.
    pub(super) fn resume(&mut self, cx: &mut Context<'_>) -> Result<Flow, End> {
        let kept = std::mem::take(&mut self.inbound.carry);
        self.take_client(cx, &kept)
    }

    fn take_client(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Result<Flow, End> {
        let (bytes, known) = if self.lent.is_none() || self.rare.refusing.is_some() {
            match self.without_backend(bytes)? {
                Some(rest) => rest,
                None => return Ok(Flow::Moved),
            }
        } else {
            (bytes, None)
        };
        if self.lent.is_none() && !self.attach_at_once() {
            self.inbound.keep(bytes);
            return Ok(Flow::NeedBackend);
        }
        let mut judge = FromClient {
            session: self,
            known,
        };
        let cut = cut(&mut judge, bytes).map_err(|error| End::Broken(violation(error)))?;
        if let Some(lent) = &mut self.lent {
            // A backend that is gone has mostly said why: its last words are read before the session ends.
            let _ = self
                .to_backend
                .poll_write(&mut lent.backend.stream, cx, &cut.forward);
        }
        if cut.stopped {
            self.client_ended()
        } else {
            Ok(Flow::Moved)
        }
    }

    fn judge(&mut self, header: Header, body: &[u8], words: Words) -> Verdict {
        if self.rare.unnamed
            && let Some(name) = self.name_again(header.kind)
        {
            return behind(name, self.judge(header, body, words));
        }
        match header.kind {
            b'E' | b'H' => {
                self.begin();
                self.tracker.sent_extended();
                Verdict::Pass
            }
            b'S' => {
                self.begin_request();
                self.rare.bound = None;
                self.tracker.sent_sync();
                Verdict::Pass
            }
            b'B' => self.judge_bind(body),
            b'D' => self.judge_describe(body),
            b'P' => self.judge_parse(header, body, words),
            b'Q' => self.judge_query(header, body, words),
            kind => self.judge_rare(kind, body),
        }
    }

    /// Each of these judges is a call of its own, so that the plainest messages don't set up what others need of the stack.
    #[inline(never)]
    fn judge_rare(&mut self, kind: u8, body: &[u8]) -> Verdict {
        match kind {
            b'C' => {
                self.begin();
                let statement = match extended::target(body) {
                    Some(Target::Statement(name)) => {
                        self.close_statement(name);
                        Some(Rc::from(name))
                    }
                    Some(Target::Portal(_)) | None => None,
                };
                self.tracker.sent_close(statement, Origin::Client);
            }
            b'F' => {
                self.begin_request();
                self.note_function(body);
                let extra = self.keep_readings(self.rare.class);
                self.tracker.sent_function();
                return extra.map_or(Verdict::Pass, Verdict::After);
            }
            b'd' if !self.tracker.expects_copy_data() => return Verdict::Drop,
            b'c' | b'f' if !self.tracker.expects_copy_data() => return Verdict::Drop,
            b'c' | b'f' => self.tracker.sent_copy_end(),
            b'X' => return Verdict::Stop,
            _ => {}
        }
        Verdict::Pass
    }

    #[inline(never)]
    fn judge_query(&mut self, header: Header, body: &[u8], words: Words) -> Verdict {
        self.begin_request();
        if !self.tracker.is_skipping() {
            let answered = self.tracker.is_answered();
            self.statements.unnamed.sent_query(answered);
        }
        let text = body.strip_suffix(b"\0").unwrap_or(body);
        let whole = body.len() == header.body;
        let naming = self.note_text(text, words);
        let reads = whole && !self.rare.at_home;
        let deallocated = reads.then(|| sql::virtual_setting::deallocated(text));
        let extra = match deallocated.flatten() {
            Some(name) => self.before_deallocate(&name),
            None => self.before_naming(text, whole),
        };
        self.note_class(text, whole);
        let extra = extra.or_else(|| self.keep_readings(self.rare.class));
        self.note_prepare(text, whole, &naming);
        self.note_name(text);
        self.tracker.sent_query();
        extra.map_or(Verdict::Pass, Verdict::After)
    }

    /// The client sends what ends in a ReadyForQuery.
    #[inline]
    fn begin_request(&mut self) {
        add(&self.pool.counters.requests, 1);
        self.begin();
    }

    /// The client asks something: the lease is active.
    #[inline]
    fn begin(&mut self) {
        if self.phase == Phase::Resting {
            self.phase = Phase::Active;
            self.step(Event::Requested);
        }
    }

    #[inline(never)]
    fn judge_parse(&mut self, header: Header, body: &[u8], words: Words) -> Verdict {
        self.begin();
        let whole = body.len() == header.body;
        let text = extended::parse_text(body).unwrap_or_default();
        let naming = self.note_text(text, words);
        let name = extended::parse_name(body).unwrap_or_default();
        // One whose name is taken is refused, and never runs.
        let taken = self.statements.get(name).is_some();
        let mut extra = (!taken).then(|| self.before_naming(text, whole)).flatten();
        // A named one counts whenever it runs.
        if name.is_empty() {
            self.note_class(text, whole);
            self.rare.trail.unnamed_is_read = true;
            extra = extra.or_else(|| self.keep_readings(self.rare.class));
        }
        if !self.statements.sent_naming(name, naming) {
            self.rare.sticky.add(Pin::UnreadableSetting);
        }
        let kept = whole && !name.is_empty();
        let read = || {
            let share = |text: &[u8]| self.pool.share_text(text);
            Statement::read_with(body, share, |text| self.pool.surveyed.class(text))
        };
        let statement = kept.then(read).flatten();
        if !name.is_empty() {
            // It may run within the same request, when nothing can be made any more.
            if extra.is_none() && self.tracker.is_between_requests() {
                let read = statement.as_ref();
                let class = read.map_or(Class::Unknown, |statement| statement.class);
                extra = self.keep_readings(class);
            }
            self.occupy(name, &mut extra);
        }
        match statement {
            Some(statement) => self.tracker.sent_parse(Rc::new(statement), Origin::Client),
            None => {
                if !(whole && name.is_empty()) {
                    self.statements.sent_large();
                }
                if !self.tracker.is_skipping() {
                    let kept = if whole { body } else { b"" };
                    self.statements.unnamed.sent_parse(kept);
                }
                self.tracker.sent_unnamed_parse();
            }
        }
        extra.map_or(Verdict::Pass, Verdict::After)
    }

    #[inline(never)]
    fn judge_bind(&mut self, body: &[u8]) -> Verdict {
        self.begin();
        let name = extended::bind_statement(body).unwrap_or_default();
        let mut extra;
        self.note_named_settings(name, body);
        self.rare.bound = None;
        if name.is_empty() {
            extra = self.recall_unnamed();
            if !self.rare.trail.unnamed_is_read {
                // Its text came before the last probe: what it does now isn't known.
                self.note_unknown();
            }
        } else {
            let unshaped = self.note_bind(name);
            extra = self.before_running(name);
            extra = extra.or_else(|| self.keep_readings(self.rare.class));
            if let Some(verdict) = self.before_use(b'B', name, &mut extra) {
                return verdict;
            }
            if self.tracker.sent_extended() {
                let sent = self.tracker.sent_statement(name);
                let portal = extended::bind_portal(body).unwrap_or_default();
                let bound = sent.cloned().or(unshaped);
                self.rare.bound = bound.map(|statement| (portal.into(), statement));
            }
            return extra.map_or(Verdict::Pass, Verdict::After);
        }
        self.tracker.sent_extended();
        extra.map_or(Verdict::Pass, Verdict::After)
    }

    #[inline(never)]
    fn judge_describe(&mut self, body: &[u8]) -> Verdict {
        self.begin();
        let mut extra = None;
        let bound = self.rare.bound.take();
        let (alone, described) = match extended::target(body) {
            Some(Target::Statement([])) => {
                extra = self.recall_unnamed();
                (self.tracker.sent_extended(), None)
            }
            Some(Target::Statement(name)) => {
                if let Some(verdict) = self.before_use(b'D', name, &mut extra) {
                    return verdict;
                }
                (self.tracker.sent_extended(), self.unshaped(name))
            }
            Some(Target::Portal(name)) => {
                let bound = bound.filter(|(portal, _)| **portal == *name);
                // Its Bind was told from what came before.
                let apart = self.tracker.sent_extended();
                let bound = bound.map(|(_, statement)| statement);
                (true, bound.filter(|_| !apart))
            }
            None => (self.tracker.sent_extended(), None),
        };
        if let Some(statement) = described.filter(|_| alone) {
            self.tracker.sent_shape(statement, Origin::Client);
        }
        extra.map_or(Verdict::Pass, Verdict::After)
    }

    /// A named statement runs: that is what people see, and what it may leave. Gives it if it isn't known what its rows look
    /// like.
    fn note_bind(&mut self, name: &[u8]) -> Option<Rc<Statement>> {
        let Some(made) = self.statements.get(name) else {
            self.note_unknown();
            return None;
        };
        let (statement, shape) = (made.statement.clone(), made.shape);
        self.rare.trail.ran |= !statement.bracket;
        if self.rare.class != Class::Unknown {
            let known = self.pool.surveyed.knows_no_hazards() || self.may_read();
            let class = if known {
                self.settled(statement.class, &statement.text)
            } else {
                Class::Unknown
            };
            self.rare.class = self.rare.class.max(class);
        }
        if !statement.bracket {
            let mut book = self.shared.ledger.book_mut();
            book.entry_mut(self.slot).statement = LastStatement::Prepared(statement.text.clone());
        }
        self.note_hazards(&statement.text);
        (shape == Shape::UNKNOWN).then_some(statement)
    }

    /// Keeps a statement's text for people, and looks for what the probe can't see afterwards. Gives its parameters that name
    /// settings.
    fn note_text(&mut self, text: &[u8], words: Words) -> Vec<Naming> {
        let mut book = self.shared.ledger.book_mut();
        let statement = &mut book.entry_mut(self.slot).statement;
        // Whoever looks for a culprit wants to see its work, not the COMMIT behind it.
        if statement.text().is_none() || !sql::is_bracket(text) {
            statement.set(text);
        }
        drop(book);
        let mut naming = Vec::new();
        if words.state
            && let Some(mut found) = sql::watch(text)
        {
            if found
                .settings
                .extract_if(.., |name| name.starts_with("pgvalet."))
                .count()
                > 0
            {
                self.learn_within(text);
            }
            self.note_settings(found.settings);
            self.rare.sticky = self.rare.sticky.union(found.pins);
            naming = found.naming;
        }
        if self.statements.are_naming_in(text) {
            // The values of its parameters may name settings.
            self.rare.sticky.add(Pin::UnreadableSetting);
        }
        if sql::changes_databases(text) {
            self.shared.pools.make_way(text);
        }
        naming
    }

    /// What has to be sent first, where a text needs the session's statements to be just where they would be.
    fn before_naming(&mut self, text: &[u8], whole: bool) -> Option<Vec<u8>> {
        let names = !self.rare.at_home && (!whole || sql::names_statements(text));
        names.then(|| self.come_home()).flatten()
    }

    /// The same for a named statement that runs.
    fn before_running(&mut self, name: &[u8]) -> Option<Vec<u8>> {
        if self.rare.at_home || self.rare.class < Class::Visible {
            return None;
        }
        let made = self.statements.get(name)?;
        let statement = made.statement.clone();
        self.before_naming(&statement.text, true)
    }
}

impl Session {
    /// What a text that runs may leave.
    fn note_class(&mut self, text: &[u8], whole: bool) {
        if self.rare.class != Class::Unknown && !sql::is_mere_bracket(text) {
            let class = if whole && self.may_read() {
                self.settled(self.pool.surveyed.class(text), text)
            } else {
                Class::Unknown
            };
            self.rare.class = self.rare.class.max(class);
        }
        let trail = &mut self.rare.trail;
        trail.ran = trail.ran || !sql::is_mere_bracket(text);
        if !whole {
            trail.tame = Tame::No;
        }
        self.note_hazards(text);
    }

    /// What writes moves no sequence, if the database's definitions say so. What ends with its transaction leaves nothing; but
    /// for a custom setting that isn't known yet, which reads as empty from then on. And of a session that is pinned a CLOSE may end the pin.
    fn settled(&self, class: Class, text: &[u8]) -> Class {
        if class == Class::Write && self.shared.config.mode == Mode::Transaction {
            return self.pool.surveyed.class_of_writing(text);
        }
        if class != Class::Local {
            return class;
        }
        let closes = |word: &[u8]| word.eq_ignore_ascii_case(b"close");
        if self.rare.pinned && text.windows(5).any(closes) {
            return Class::Visible;
        }
        let found = sql::watch(text).unwrap_or_default();
        let saved = &self.rare.saved.custom;
        let known = |name: &String| saved.iter().any(|(known, _)| known == name);
        if found.pins.is_empty() && found.naming.is_empty() && found.settings.iter().all(known) {
            Class::Local
        } else {
            Class::Visible
        }
    }

    /// Something runs of which nothing is known.
    fn note_unknown(&mut self) {
        self.rare.class = Class::Unknown;
        self.rare.trail.ran = true;
        self.rare.trail.tame = Tame::No;
    }

    /// A FunctionCall is sent: no text names what it calls.
    fn note_function(&mut self, body: &[u8]) {
        const SET_CONFIG: u32 = 2078;
        const SETSEED: u32 = 1599;
        // pg_backup_start, what makes or copies a slot, and pg_replication_origin_session_setup.
        const REPLICATING: [u32; 9] = [2172, 3779, 3786, 4220, 4221, 4222, 4223, 4224, 6006];
        // The first object id that isn't PostgreSQL's own.
        const OWN: u32 = 16384;
        self.note_unknown();
        let called = body.first_chunk().copied().map(u32::from_be_bytes);
        let told = !self.shared.config.preserve_settings.is_empty();
        let hazards = self.pool.surveyed.hazards();
        let own = called.is_none_or(|oid| oid >= OWN);
        if called == Some(SET_CONFIG) || own && !told && hazards.have_untold() {
            self.rare.sticky.add(Pin::UnreadableSetting);
        } else if called == Some(SETSEED) {
            self.rare.sticky.add(Pin::Setseed);
        } else if called.is_some_and(|oid| REPLICATING.contains(&oid)) {
            self.rare.sticky.add(Pin::Replication);
        }
        if own && hazards.have_stains() {
            self.stain();
        }
    }

    /// Whether one more text may be read. In mode `session` only the first few of a lease are: it lasts, and what its
    /// texts have left matters once, if ever.
    fn may_read(&mut self) -> bool {
        match (self.shared.config.mode, self.rare.trail.unread) {
            (Mode::Transaction, _) => true,
            (Mode::Session, 0) => false,
            (Mode::Session, left) => {
                self.rare.trail.unread = left - 1;
                true
            }
        }
    }

    /// The database's own code may do something behind a text.
    fn note_hazards(&mut self, text: &[u8]) {
        if self.rare.class != Class::Unknown && self.pool.surveyed.knows_nothing() {
            return;
        }
        let hazards = self.pool.surveyed.hazards();
        let tame = self.rare.trail.tame != Tame::No;
        if (tame || self.rare.class != Class::Unknown) && hazards.are_named_in(text) {
            self.rare.class = Class::Unknown;
            self.rare.trail.tame = Tame::No;
        }
        // Nothing below that class defines anything.
        if self.rare.class == Class::Unknown && self.rare.trail.tame != Tame::No {
            let told = if !self.may_read() || hazards::calls_what_makes_state(text) {
                Tame::No
            } else if hazards::tells_bodies(text) && !hazards.may_change_with(text) {
                Tame::Bodies
            } else {
                Tame::Expressions
            };
            self.rare.trail.tame = self.rare.trail.tame.min(told);
        }
        if hazards.leave_stains_in(text) {
            self.stain();
        }
        // Whoever lists the settings to preserve has said which ones there are.
        if self.shared.config.preserve_settings.is_empty() && hazards.are_untold_in(text) {
            self.rare.sticky.add(Pin::UnreadableSetting);
        }
    }

    /// The backend may have something of the session's that only another one would notice: nobody else gets it.
    fn stain(&mut self) {
        if let Some(lent) = &mut self.lent {
            lent.backend.stained = true;
        }
    }

    /// What a simple query leaves that its text alone tells.
    fn note_prepare(&mut self, text: &[u8], whole: bool, naming: &[Naming]) {
        if naming.iter().any(|naming| naming.lasts) {
            // The parameters are those of a PREPARE: nobody sees their values.
            self.rare.sticky.add(Pin::UnreadableSetting);
        }
        // Of a PREPARE PostgreSQL has to be asked.
        if whole && self.rare.class >= Class::Visible && sql::is_one_prepare(text) {
            // What is reported now is what it will be read under, unless something before it is unanswered.
            let answered = self.tracker.is_answered();
            let lent = self.lent.as_ref().filter(|_| answered);
            let under = lent.map(|lent| &lent.backend.parameters);
            self.statements.sent_prepare(text, under);
        }
    }

    /// The session's SQL names these custom settings.
    pub(super) fn note_settings(&mut self, names: impl IntoIterator<Item = String>) {
        let mut names = names.into_iter().peekable();
        if names.peek().is_none() {
            return;
        }
        let stains = &mut self.rare.stains;
        let names = names.inspect(|name| *stains |= sql::is_reserved(name));
        let custom = Rc::make_mut(&mut self.rare.custom);
        custom.extend(names);
        while custom.len() > MOST_SETTINGS {
            custom.pop_last();
            self.rare.sticky.add(Pin::UnreadableSetting);
        }
    }

    /// A Bind may carry names of settings. What is set for a transaction only leaves nothing but the seed, and names that
    /// libraries reserve.
    fn note_named_settings(&mut self, statement: &[u8], body: &[u8]) {
        if !self.statements.may_name_settings() {
            return;
        }
        let mut found = Vec::new();
        for Naming { parameter, lasts } in self.statements.naming(statement) {
            match extended::bind_value(body, parameter) {
                Value::Null => {}
                Value::Bytes(name) if name.eq_ignore_ascii_case(sql::SEED) => {
                    self.rare.sticky.add(Pin::Setseed);
                }
                Value::Bytes(name) if name.is_ascii() && name.len() <= LONGEST_NAME => {
                    let name = String::from_utf8_lossy(name).to_ascii_lowercase();
                    if lasts || sql::is_reserved(&name) {
                        found.push(name);
                    }
                }
                Value::Bytes(_) | Value::Missing if !lasts => {}
                Value::Bytes(_) | Value::Missing => {
                    self.rare.sticky.add(Pin::UnreadableSetting);
                    return;
                }
            }
        }
        self.note_settings(found.into_iter().filter(|name| name.contains('.')));
    }
}

const fn hold(kind: u8) -> usize {
    match kind {
        b'P' => MAX_KEPT,
        b'Q' | b'B' | b'D' | b'C' => HOLD,
        b'F' => HEADER + size_of::<u32>(),
        _ => HEADER,
    }
}
