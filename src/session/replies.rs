//! Owns the backend's bytes on their way to the client: what they say of the session, and the few that are ours.

use std::rc::Rc;
use std::task::Context;

use crate::backend::parameters::{self, APPLICATION_NAME};
use crate::backend::pool::add;
use crate::backend::prepared::{Made, Shape};
use crate::config::{ChaosReturn, Mode};
use crate::lease::{Event, LastStatement, SessionId, Status};
use crate::ledger::CancelTarget;
use crate::session::relay::End;
use crate::session::{Defined, Name, Phase, Session, Tame, returning};
use crate::wire::cut::{Cursor, Judge, Verdict, cut, whole_frames};
use crate::wire::extended::{Statement, write_frame};
use crate::wire::frame::{HEADER, Header};
use crate::wire::reply::{self, Fault, Fields};
use crate::wire::sql::{self, Class};
use crate::wire::tracker::{Aftermath, Origin, Seen};

/// Messages that we read whole are awaited up to this length; longer ones pass unread.
const HOLD: usize = 16 << 10;

/// What a RowDescription is awaited up to: above the longest (1664 columns, names of 63 bytes: 136,455 bytes), so that what is
/// known of a statement's rows doesn't depend on how the bytes arrive.
const DESCRIPTION: usize = 160 << 10;

/// The backend's side of a session, as its frames are cut.
struct FromBackend<'a>(&'a mut Session);

impl Judge for FromBackend<'_> {
    #[inline]
    fn cursor(&mut self) -> &mut Cursor {
        &mut self.0.outbound
    }

    /// Messages that say nothing about the session, such as rows: the bulk of what passes.
    #[inline]
    fn plain(&self, bytes: &[u8]) -> usize {
        let is = |kind| matches!(kind, b'D' | b'd' | b'T' | b'2' | b'n' | b't' | b's' | b'I');
        if is(bytes[0]) && self.0.tracker.hears_plainly() {
            whole_frames(bytes, is)
        } else {
            0
        }
    }

    #[inline]
    fn needed(&self, kind: u8) -> usize {
        match kind {
            b'T' if self.0.tracker.is_shaping() => DESCRIPTION,
            b't' if self.0.tracker.is_shaping() => HOLD,
            b'N' if self.0.tracker.hears_ours() => HOLD,
            kind => hold(kind),
        }
    }

    #[inline]
    fn judge(&mut self, header: Header, body: &[u8]) -> Verdict {
        self.0.hear(header, body)
    }
}

impl Session {
    /// Takes in bytes from the backend.
    pub(super) fn on_backend(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Result<(), End> {
        if self.outbound.carry.is_empty() {
            return self.take_backend(cx, bytes);
        }
        let mut all = std::mem::take(&mut self.outbound.carry).into_vec();
        all.extend_from_slice(bytes);
        self.take_backend(cx, &all)
    }

    fn take_backend(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Result<(), End> {
        let cut = cut(&mut FromBackend(self), bytes);
        let forward = cut
            .map_err(|_| End::Backend(Some(returning::lost())))?
            .forward;
        add(&self.pool.counters.bytes_out, forward.len());
        let written = self.to_client.poll_write(&mut self.client, cx, &forward);
        written.map_err(|_| End::ClientBroken)
    }

    /// Takes in one message.
    fn hear(&mut self, header: Header, body: &[u8]) -> Verdict {
        let kind = header.kind;
        let own = self.tracker.hears_own();
        match kind {
            // What PostgreSQL remarks on what we sent, the client has heard already, or never caused.
            b'N' if self.tracker.hears_ours() && !is_warning_of_the_end(body) => {
                return Verdict::Drop;
            }
            b'E' if own => self.hear_own_failure(header, body),
            _ if own && !matches!(kind, b'S' | b'A') => {}
            // One that is too long to be read whole can't be rewritten.
            b'S' | b'A' if body.len() < header.body => return Verdict::Pass,
            b'S' => return self.hear_parameter(body),
            b'C' => self.hear_complete(body),
            b'A' => return self.hear_notification(body),
            b'E' => {
                self.virtuals.failed();
                self.hear_fatal(body);
            }
            _ => {}
        }
        match self.tracker.seen(kind, body) {
            Seen::Plain => {}
            Seen::UnnamedPrepared => {
                if let Some(lent) = &self.lent {
                    self.statements.unnamed.parsed(&lent.backend.parameters);
                }
            }
            // The account of the backend's statements was kept when ours were sent.
            Seen::Ours => return self.drop_own(header, body),
            Seen::Remade(statement) => return self.hear_remade(&statement),
            Seen::Ready(status) => self.hear_ready(status),
            Seen::Prepared(statement) => self.hear_prepared(statement),
            Seen::Adopted(statement) => return self.hear_adopted(statement),
            Seen::Closed(name) if name.is_empty() => self.statements.unnamed.closed(),
            Seen::Closed(name) => self.note_closed(&name),
            Seen::Shaped(statement, origin) => {
                let whole = body.len() == header.body;
                let shape = match kind {
                    b'n' => Shape::of(None),
                    _ if whole => Shape::of(Some(body)),
                    // Too long to be known.
                    _ => Shape::OTHER,
                };
                self.note_shape(&statement, shape, origin);
                if origin == Origin::Proxy {
                    return Verdict::Drop;
                }
            }
            Seen::Failed(aftermath) => {
                let instead = self.instead_of(body);
                self.hear_failure(aftermath);
                if let Some(instead) = instead {
                    return Verdict::Instead(instead);
                }
            }
        }
        Verdict::Pass
    }

    /// What we said ahead of a request failed. A cancel that came too early may have hit anything of it.
    fn hear_own_failure(&mut self, header: Header, body: &[u8]) {
        let code = Fields::read(body).code;
        // There is no transaction, and so nothing that our savepoint would have to guard.
        if code == "25P01" {
            return;
        }
        self.stay_abroad();
        self.note_unmade(header, body);
        if code != "57014" {
            return;
        }
        if self.rare.told.application() == Some(&*self.rare.application) {
            self.rare.name = Name::Foreign;
        }
        if let Some(lent) = &mut self.lent {
            lent.backend.spent = true;
            lent.backend.opaque = true;
        }
    }

    /// A FATAL is PostgreSQL's last word on this connection.
    fn hear_fatal(&mut self, body: &[u8]) {
        // Nearly every error is an ERROR: its fields needn't be read.
        if !body.starts_with(b"SERROR\0") {
            let fields = Fields::read(body);
            if matches!(fields.severity.as_str(), "FATAL" | "PANIC") {
                self.rare.told_fatal = true;
                self.shared.metrics.fault(Fault::Backend, &fields.code);
            }
        }
    }

    fn hear_prepared(&mut self, statement: Rc<Statement>) {
        if let Some(lent) = &mut self.lent {
            let made = Made {
                statement,
                under: lent.backend.parameters.clone(),
                shape: Shape::UNKNOWN,
            };
            if self.statements.made(made.clone()) {
                lent.backend.prepared.insert(made);
            }
        }
    }

    /// One of the session's statements is there, unless it is what stands for one.
    fn hear_remade(&mut self, statement: &Rc<Statement>) -> Verdict {
        let mine = self.statements.get(&statement.name);
        if mine.is_some_and(|mine| Rc::ptr_eq(&mine.statement, statement)) {
            self.rare.moving.remade(&statement.name);
        }
        Verdict::Drop
    }

    /// A statement that only we knew is PostgreSQL's, too.
    fn hear_adopted(&mut self, statement: Rc<Statement>) -> Verdict {
        self.virtuals.adopted(&statement.name);
        if !statement.name.is_empty() {
            self.hear_prepared(statement);
        } else if let Some(lent) = &self.lent {
            self.statements.unnamed.parsed(&lent.backend.parameters);
        }
        Verdict::Drop
    }

    fn hear_failure(&mut self, aftermath: Aftermath) {
        self.statements.unnamed.failed(aftermath);
        self.forget_adapted();
        self.reopen_skipped();
    }

    fn hear_ready(&mut self, status: Status) {
        let until = self.tracker.answered_count();
        self.rare.moving.answered_until(until);
        if self.tracker.is_answered() {
            self.rare.moving.answered();
            self.statements.unnamed.answered();
        }
        if status == Status::Idle {
            add(&self.pool.counters.transactions, 1);
            if self.rare.defined != Defined::Nothing && self.shared.config.mode == Mode::Transaction
            {
                self.tell_defined();
            }
            if let Some(text) = self.rare.roles.take() {
                self.shared.pools.change_roles(&text);
            }
        }
        if self.tracker.is_answered() {
            if self.rare.name == Name::Asked {
                self.rare.name = Name::Own;
            }
            self.rare.resetting = false;
            self.phase = Phase::Resting;
            self.rare.answered = true;
            self.step(Event::Ready(status));
            self.note_unasked();
            self.learn();
        }
    }

    /// What pinned it may be over after this. In mode `session` the lease goes on, and PostgreSQL may be asked while it rests.
    fn note_unasked(&mut self) {
        if self.rare.class < Class::Visible {
            return;
        }
        if self.rare.pinned {
            let mut book = self.shared.ledger.book_mut();
            let entry = book.entry_mut(self.slot);
            entry.pins = entry.pins.lasting();
        }
        let config = &self.shared.config;
        if config.mode == Mode::Session && config.chaos_return == ChaosReturn::Off {
            let mut book = self.shared.ledger.book_mut();
            book.entry_mut(self.slot).unasked = true;
        }
    }

    /// A role was changed or dropped: others learn of it once that is committed.
    fn note_roles(&mut self) {
        let book = self.shared.ledger.book();
        let text = book.entry(self.slot).statement.text().unwrap_or_default();
        let known = self.rare.roles.as_deref();
        let whole = text.len() < LastStatement::KEPT && known.is_none_or(|known| known == text);
        let text = if whole { text.into() } else { Box::default() };
        drop(book);
        self.rare.roles = Some(text);
    }

    fn hear_notification(&self, body: &[u8]) -> Verdict {
        let Some(lent) = &self.lent else {
            return Verdict::Pass;
        };
        let mut frame = Vec::new();
        write_frame(&mut frame, b'A', body);
        self.sign(&mut frame, &lent.backend.key);
        Verdict::Instead(frame)
    }

    /// Hands on notifications that came during a conversation of our own with `backend`.
    pub(super) fn notify(&mut self, mut frames: Vec<u8>, backend: &CancelTarget) {
        self.sign(&mut frames, backend);
        self.to_client.push(&frames);
    }

    /// Has notifications that `backend` sent name sessions, where it is known who sent them.
    fn sign(&self, frames: &mut [u8], backend: &CancelTarget) {
        reply::sign(frames, |pid| {
            self.shared.ledger.sender(pid, backend).map(SessionId::get)
        });
    }

    fn hear_parameter(&mut self, body: &[u8]) -> Verdict {
        let name = parameters::read_status(body);
        let name = name.filter(|(name, _)| *name == APPLICATION_NAME);
        if let Some((_, value)) = name
            && self.tracker.hears_own()
        {
            return self.hear_own_name(value);
        }
        self.rare.class = self.rare.class.max(Class::Visible);
        if let Some((_, value)) = name {
            return self.hear_name(value);
        }
        if let Some(lent) = &mut self.lent {
            lent.backend.note_parameter(body);
        }
        Verdict::Pass
    }

    /// Some commands change what the proxy believes: DISCARD ALL and DEALLOCATE ALL do away with statements, RESET and
    /// DISCARD ALL go back to the application_name of whoever opened the backend.
    fn hear_complete(&mut self, body: &[u8]) {
        let told = sql::class_of_tag(body);
        // The tag doesn't tell a SET that ends with its transaction; the texts did, and told of no other.
        if !(self.rare.class == Class::Local && body.starts_with(b"SET")) {
            self.rare.class = self.rare.class.max(told);
        }
        if matches!(body.first(), Some(b'C' | b'A')) && sql::defines(body) {
            let told = match self.rare.trail.tame {
                Tame::No => false,
                Tame::Expressions => sql::defines_by_its_text(body),
                Tame::Bodies => sql::defines_by_its_text(body) || sql::defines_a_body(body),
            };
            let defined = if told { Defined::Told } else { Defined::Untold };
            self.rare.defined = self.rare.defined.max(defined);
        }
        if matches!(body.first(), Some(b'A' | b'D')) && sql::changes_roles(body) {
            self.note_roles();
        }
        if !matches!(body.first(), Some(b'D' | b'R' | b'S')) || body.starts_with(b"SELECT") {
            return;
        }
        let discard = body.starts_with(b"DISCARD ALL");
        if discard || body.starts_with(b"DEALLOCATE ALL") {
            self.statements.clear();
            self.virtuals.clear();
            if let Some(lent) = &mut self.lent {
                lent.backend.prepared.clear();
            }
            self.rare.at_home = true;
        }
        if (discard
            || body.starts_with(b"RESET")
            || body.starts_with(b"SET") && (self.rare.resetting || self.says_default()))
            && self.rare.guest
            && self.rare.name == Name::Own
        {
            self.rare.name = Name::Asked;
        }
    }

    /// Whether the last statement may be a `SET … TO DEFAULT`.
    fn says_default(&self) -> bool {
        let book = self.shared.ledger.book();
        let text = book.entry(self.slot).statement.text().unwrap_or_default();
        text.windows(7)
            .any(|word| word.eq_ignore_ascii_case(b"default"))
    }

    /// The backend's connection ended. PostgreSQL's own last words are the client's; without any, it hears ours.
    pub(super) fn backend_ended(&mut self) -> End {
        End::Backend((!self.rare.told_fatal).then(returning::lost))
    }
}

/// Whether a notice says that the connection ends (`admin_shutdown`, `crash_shutdown`), whatever was asked last.
fn is_warning_of_the_end(body: &[u8]) -> bool {
    Fields::read(body).code.starts_with("57P0")
}

/// How much of a frame is needed to read it, header included.
const fn hold(kind: u8) -> usize {
    match kind {
        b'S' | b'C' | b'E' | b'Z' | b'A' => HOLD,
        _ => HEADER,
    }
}
