//! Owns the backend's bytes on their way to the client: what they say of the session, and the few that are ours.

use std::task::Context;

use crate::backend::pool::add;
use crate::lease::{Event, Status};
use crate::session::client::Edits;
use crate::session::relay::End;
use crate::session::{Phase, Session, returning};
use crate::wire::frame::{HEADER, Header};
use crate::wire::reply::Fields;
use crate::wire::tracker::Seen;

/// Messages that we read whole are awaited up to this length; longer ones pass unread.
const HOLD: usize = 16 << 10;

impl Session {
    /// Takes in bytes from the backend.
    pub(super) fn on_backend(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Result<(), End> {
        if self.outbound.carry.is_empty() {
            return self.take_backend(cx, bytes);
        }
        let mut all = std::mem::take(&mut self.outbound.carry);
        all.extend_from_slice(bytes);
        self.take_backend(cx, &all)
    }

    fn take_backend(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Result<(), End> {
        let mut edits = Edits::new(bytes);
        let mut at = self.outbound.skip.min(bytes.len());
        self.outbound.skip -= at;
        while at < bytes.len() {
            let rest = &bytes[at..];
            let header = Header::read(rest).map_err(|_| End::Backend(Some(returning::lost())))?;
            let Some(header) =
                header.filter(|header| rest.len() >= header.total().min(hold(header.kind)))
            else {
                self.outbound.keep(rest);
                break;
            };
            let end = header.total().min(rest.len());
            if self.hear(header.kind, &rest[HEADER..end]) {
                edits.cut(at, at + end);
            }
            self.outbound.skip = header.total() - end;
            at += end;
        }
        let forward = edits.finish(at);
        add(&self.pool.counters.bytes_out, forward.len());
        let written = self.to_client.poll_write(&mut self.client, cx, &forward);
        written.map_err(|_| End::ClientBroken)
    }

    /// Takes in one message; `true` when it answers one of ours, and isn't the client's.
    fn hear(&mut self, kind: u8, body: &[u8]) -> bool {
        match kind {
            b'S' => self.hear_parameter(body),
            b'C' => self.hear_complete(body),
            b'E' => {
                self.rare.told_fatal |=
                    matches!(Fields::read(body).severity.as_str(), "FATAL" | "PANIC")
            }
            _ => {}
        }
        match self.tracker.seen(kind, body) {
            Seen::Plain => {}
            Seen::UnnamedPrepared => {
                if let Some(lent) = &self.lent {
                    self.statements.made_unnamed(&lent.backend.parameters);
                }
            }
            Seen::Ours => return true,
            Seen::Ready(status) => self.hear_ready(status),
            Seen::Prepared(statement) => {
                if let Some(lent) = &self.lent {
                    self.statements.made(statement, &lent.backend.parameters);
                }
            }
            Seen::Closed(name) => self.statements.closed(&name),
            Seen::Failed { unnamed: true } => self.statements.drop_unnamed(),
            Seen::Failed { unnamed: false } => {}
        }
        false
    }

    fn hear_ready(&mut self, status: Status) {
        if status == Status::Idle {
            add(&self.pool.counters.transactions, 1);
        }
        if self.tracker.is_answered() {
            self.phase = Phase::Resting;
            self.rare.answered = true;
            self.step(Event::Ready(status));
        }
    }

    fn hear_parameter(&mut self, body: &[u8]) {
        let Some(lent) = &mut self.lent else { return };
        lent.backend.note_parameter(body);
        if let Some(("application_name", value)) = crate::backend::parameters::read_status(body) {
            self.shared
                .ledger
                .book_mut()
                .entry_mut(self.slot)
                .profile
                .application = value.into();
        }
    }

    /// Some commands change what the proxy believes: DISCARD ALL and DEALLOCATE ALL do away with statements, RESET and
    /// DISCARD ALL go back to the application_name of whoever opened the backend.
    fn hear_complete(&mut self, body: &[u8]) {
        if !matches!(body.first(), Some(b'D' | b'R')) {
            return;
        }
        let discard = body.starts_with(b"DISCARD ALL");
        if discard || body.starts_with(b"DEALLOCATE ALL") {
            self.statements.clear();
        }
        if (discard || body.starts_with(b"RESET"))
            && let Some(lent) = &self.lent
        {
            self.rare.rename |= *lent.backend.application != *self.rare.application;
        }
    }

    /// The backend's connection ended. PostgreSQL's own last words are the client's; without any, it hears ours.
    pub(super) fn backend_ended(&mut self) -> End {
        End::Backend((!self.rare.told_fatal).then(returning::lost))
    }
}

/// How much of a frame is needed to read it, header included.
const fn hold(kind: u8) -> usize {
    match kind {
        b'S' | b'C' | b'E' | b'Z' => HOLD,
        _ => HEADER,
    }
}
