//! Owns the backend's bytes on their way to the client: what they say of the session, and the few that are ours.

use std::rc::Rc;
use std::task::Context;

use crate::backend::parameters;
use crate::backend::pool::add;
use crate::backend::prepared::Made;
use crate::lease::{Event, SessionId, Status};
use crate::ledger::CancelTarget;
use crate::session::client::Edits;
use crate::session::relay::End;
use crate::session::{Name, Phase, Session, returning};
use crate::wire::extended::{Statement, write_frame};
use crate::wire::frame::{HEADER, Header};
use crate::wire::reply::{self, Fault, Fields};
use crate::wire::sql::{self, Class};
use crate::wire::tracker::{Aftermath, Seen};

/// Messages that we read whole are awaited up to this length; longer ones pass unread.
const HOLD: usize = 16 << 10;

/// What becomes of one message.
enum Heard {
    /// It is the client's.
    Pass,
    /// It answers one of ours: the client never sees it.
    Ours,
    /// The client gets this in its place.
    Instead(Vec<u8>),
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
        let mut edits = Edits::new(bytes);
        let mut at = self.outbound.pass(bytes.len());
        loop {
            at += self.pass_plain(&bytes[at..]);
            let rest = &bytes[at..];
            if rest.is_empty() {
                break;
            }
            let header = Header::read(rest).map_err(|_| End::Backend(Some(returning::lost())))?;
            let Some(header) =
                header.filter(|header| rest.len() >= header.total().min(hold(header.kind)))
            else {
                self.outbound.keep(rest);
                break;
            };
            let end = header.total().min(rest.len());
            match self.hear(header.kind, &rest[HEADER..end]) {
                Heard::Pass => {}
                Heard::Ours => edits.cut(at, at + end),
                Heard::Instead(other) => {
                    edits.cut(at, at + end);
                    edits.insert(at + end, &other);
                }
            }
            self.outbound.expect(header.total() - end);
            at += end;
        }
        let forward = edits.finish(at);
        add(&self.pool.counters.bytes_out, forward.len());
        let written = self.to_client.poll_write(&mut self.client, cx, &forward);
        written.map_err(|_| End::ClientBroken)
    }

    /// How many bytes at the front are whole messages that say nothing about the session, such as rows: the bulk of what
    /// passes.
    fn pass_plain(&self, bytes: &[u8]) -> usize {
        let mut at = 0;
        if self.tracker.hears_plainly() {
            while let [
                b'D' | b'd' | b'T' | b'2' | b'n' | b't' | b's' | b'I',
                a,
                b,
                c,
                d,
                ..,
            ] = &bytes[at..]
            {
                let length = u32::from_be_bytes([*a, *b, *c, *d]) as usize;
                if length < 4 || length >= bytes.len() - at {
                    break;
                }
                at += 1 + length;
            }
        }
        at
    }

    /// Takes in one message.
    fn hear(&mut self, kind: u8, body: &[u8]) -> Heard {
        let own = self.tracker.hears_own();
        match kind {
            b'E' if own => self.stay_abroad(),
            _ if own && !matches!(kind, b'S' | b'A') => {}
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
            Seen::Ours => return Heard::Ours,
            Seen::Ready(status) => self.hear_ready(status),
            Seen::Prepared(statement) => self.hear_prepared(statement),
            Seen::Adopted(statement) => {
                self.virtuals.adopted(&statement.name);
                if statement.name.is_empty()
                    && let Some(lent) = &self.lent
                {
                    self.statements.unnamed.parsed(&lent.backend.parameters);
                }
                if !statement.name.is_empty() {
                    self.hear_prepared(statement);
                }
                return Heard::Ours;
            }
            Seen::Closed(name) if name.is_empty() => self.statements.unnamed.closed(),
            Seen::Closed(name) => self.note_closed(&name),
            Seen::Failed(aftermath) => self.hear_failure(aftermath),
        }
        Heard::Pass
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
            };
            if self.statements.made(made.clone()) {
                lent.backend.prepared.insert(made);
            }
        }
    }

    fn hear_failure(&mut self, aftermath: Aftermath) {
        self.statements.unnamed.failed(aftermath);
        self.forget_adapted();
        self.reopen_skipped();
    }

    fn hear_ready(&mut self, status: Status) {
        if self.tracker.is_answered() {
            self.rare.moving.answered();
            self.statements.unnamed.answered();
        }
        if status == Status::Idle {
            add(&self.pool.counters.transactions, 1);
        }
        if self.tracker.is_answered() {
            if self.rare.name == Name::Asked {
                self.rare.name = Name::Own;
            }
            self.phase = Phase::Resting;
            self.rare.answered = true;
            self.step(Event::Ready(status));
            self.learn();
        }
    }

    fn hear_notification(&self, body: &[u8]) -> Heard {
        let Some(lent) = &self.lent else {
            return Heard::Pass;
        };
        let mut frame = Vec::new();
        write_frame(&mut frame, b'A', body);
        self.sign(&mut frame, &lent.backend.key);
        Heard::Instead(frame)
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

    fn hear_parameter(&mut self, body: &[u8]) -> Heard {
        self.rare.class = self.rare.class.max(Class::Visible);
        let Some(lent) = &mut self.lent else {
            return Heard::Pass;
        };
        let Some(("application_name", value)) = parameters::read_status(body) else {
            lent.backend.note_parameter(body);
            return Heard::Pass;
        };
        let own = self.rare.name != Name::Own && *value == *lent.backend.application;
        if own {
            self.rare.name = Name::Foreign;
        }
        let value = if own { &*self.rare.application } else { value };
        let known = lent.backend.parameters.get("application_name") == Some(value);
        let mut report = Vec::new();
        reply::parameter_status(&mut report, "application_name", value);
        lent.backend.note_parameter(&report[HEADER..]);
        self.shared
            .ledger
            .book_mut()
            .entry_mut(self.slot)
            .profile
            .application = value.into();
        match (own, known) {
            (false, _) => Heard::Pass,
            (true, true) => Heard::Ours,
            (true, false) => Heard::Instead(report),
        }
    }

    /// Some commands change what the proxy believes: DISCARD ALL and DEALLOCATE ALL do away with statements, RESET and
    /// DISCARD ALL go back to the application_name of whoever opened the backend.
    fn hear_complete(&mut self, body: &[u8]) {
        self.rare.class = self.rare.class.max(sql::class_of_tag(body));
        self.rare.defined |= matches!(body.first(), Some(b'C' | b'A')) && sql::defines(body);
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
            || body.starts_with(b"SET") && self.says_default())
            && let Some(lent) = &self.lent
            && *lent.backend.application != *self.rare.application
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

/// How much of a frame is needed to read it, header included.
const fn hold(kind: u8) -> usize {
    match kind {
        b'S' | b'C' | b'E' | b'Z' | b'A' => HOLD,
        _ => HEADER,
    }
}
