//! Owns the statements about our own settings (`pgvalet.owner` and the like): they are answered here, in their order.
//!
//! One that comes while every request before it is answered never reaches PostgreSQL: no lease is taken, nothing counts
//! as activity, and a failed transaction doesn't matter. One that comes behind unanswered requests waits for them. One
//! inside a pipeline that PostgreSQL is in the middle of is forwarded (to PostgreSQL it is a custom setting), and what it
//! says is learned once PostgreSQL has answered without an error.

mod answers;
mod prepared;

use crate::events::{Happening, Kind};
use crate::lease::Pin;
use crate::lease::reload::{Method, Pinned};
use crate::ledger::{Cause, Order, Patience, ReturnOrder};
use crate::session::Session;
use crate::wire::frame::Header;
use crate::wire::reply;
use crate::wire::rows;
use crate::wire::sql::virtual_setting::{
    self, Change, LONGEST, Meaning, Switch, Verb, Virtual, deallocated,
};
use crate::wire::sql::{Class, Words};

use prepared::Prepared;

/// The longest frame that is looked at: a text, and names around it, in bytes.
pub(super) const LONGEST_FRAME: usize = 2 * LONGEST;

/// What a session keeps of statements about virtual settings. Without memory in most sessions.
#[derive(Debug, Default)]
pub(super) struct Virtuals(Option<Box<Known>>);

#[derive(Debug, Default)]
struct Known {
    prepared: Prepared,
    /// The present request was answered here so far: its Sync is ours, too.
    open: bool,
    /// What was forwarded, to be learned when PostgreSQL has answered.
    learning: Vec<Change>,
    /// PostgreSQL reported an error since.
    failed: bool,
}

/// What becomes of a frame.
pub(super) enum Own {
    /// It has nothing to do with us.
    No,
    /// It was answered here.
    Done,
    /// It waits until everything before it is answered.
    Hold,
    /// It is forwarded behind these bytes.
    After(Vec<u8>),
}

/// Who may answer now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    /// We: everything before is answered.
    Ours,
    /// Nobody yet: PostgreSQL is about to answer what came before.
    Later,
    /// PostgreSQL: it awaits more of the client before it answers.
    Theirs,
}

impl Virtuals {
    fn known(&mut self) -> &mut Known {
        self.0.get_or_insert_default()
    }

    /// Whether names in messages must be read, since one may be that of a statement of ours.
    pub fn is_in_use(&self) -> bool {
        self.0.is_some()
    }

    /// PostgreSQL reported an error.
    pub fn failed(&mut self) {
        if let Some(known) = &mut self.0 {
            known.failed = true;
        }
    }

    /// DISCARD ALL or DEALLOCATE ALL: every statement is gone.
    pub fn clear(&mut self) {
        if let Some(known) = &mut self.0 {
            known.prepared.clear();
        }
    }

    /// PostgreSQL knows this statement now.
    pub fn adopted(&mut self, name: &[u8]) {
        if let Some(known) = &mut self.0 {
            known.prepared.adopted(name);
        }
    }

    /// Gives the memory back when nothing is left to remember.
    fn tidy(&mut self) {
        let idle =
            |known: &Known| known.prepared.is_empty() && !known.open && known.learning.is_empty();
        if self.0.as_deref().is_some_and(idle) {
            self.0 = None;
        }
    }
}

impl Session {
    /// Looks at a frame before anybody else does: `body` is whole for all that could be ours.
    #[inline]
    pub(super) fn own(&mut self, header: Header, body: &[u8], words: Words) -> Own {
        if words.own || self.virtuals.is_in_use() {
            self.own_frame(header, body)
        } else {
            Own::No
        }
    }

    fn own_frame(&mut self, header: Header, body: &[u8]) -> Own {
        if header.body > LONGEST_FRAME || body.len() < header.body {
            self.pass_on();
            return Own::No;
        }
        let own = match header.kind {
            b'Q' => self.own_query(body.strip_suffix(b"\0").unwrap_or(body)),
            b'P' => self.own_parse(body),
            b'B' | b'D' | b'E' | b'C' | b'S' | b'H' if self.virtuals.is_in_use() => {
                self.own_extended(header.kind, body)
            }
            _ => Own::No,
        };
        match own {
            Own::No | Own::After(_) => self.pass_on(),
            Own::Done | Own::Hold => {}
        }
        own
    }

    /// A frame goes to PostgreSQL: the Sync behind it does, too.
    fn pass_on(&mut self) {
        if let Some(known) = &mut self.virtuals.0 {
            known.open = false;
        }
    }

    fn turn(&self) -> Turn {
        if self.tracker.is_answered() {
            if self.outbound.is_between_frames() {
                Turn::Ours
            } else {
                Turn::Later
            }
        } else if self.tracker.answers_alone() {
            Turn::Later
        } else {
            Turn::Theirs
        }
    }

    /// Whether a frame that was held back may go on.
    pub(super) fn may_go_on(&self) -> bool {
        self.inbound.held && !self.tracker.asks() && self.turn() != Turn::Later
    }

    fn own_query(&mut self, text: &[u8]) -> Own {
        let Some(found) = virtual_setting::read(text) else {
            return self.own_deallocate(text);
        };
        match self.turn() {
            Turn::Ours => {
                let mut out = Vec::new();
                self.describe(&mut out, &found);
                self.execute(&mut out, &found);
                self.answer(out, reply::ready(self.tracker.status()).to_vec());
                Own::Done
            }
            Turn::Later => Own::Hold,
            Turn::Theirs => {
                self.learn_later(found.meaning);
                Own::No
            }
        }
    }

    /// A simple query does away with the unnamed statement; DEALLOCATE of a statement that only we know is ours.
    fn own_deallocate(&mut self, text: &[u8]) -> Own {
        let turn = self.turn();
        let Some(known) = &mut self.virtuals.0 else {
            return Own::No;
        };
        let ours = deallocated(text).is_some_and(|name| known.prepared.is_only_here(&name));
        match (ours, turn) {
            (true, Turn::Later) => return Own::Hold,
            (true, Turn::Ours) => {
                let name = deallocated(text).unwrap_or_default();
                known.prepared.forget(&name);
                let mut out = Vec::new();
                rows::command_complete(&mut out, "DEALLOCATE");
                self.answer(out, reply::ready(self.tracker.status()).to_vec());
                self.virtuals.tidy();
                return Own::Done;
            }
            (true, Turn::Theirs) | (false, _) => {}
        }
        known.prepared.forget(b"");
        known.open = false;
        self.virtuals.tidy();
        Own::No
    }

    /// Sends an answer of ours.
    fn answer(&mut self, mut out: Vec<u8>, ready: Vec<u8>) {
        out.extend_from_slice(&ready);
        self.to_client.push(&out);
    }

    /// Remembers what a forwarded statement says, until PostgreSQL has answered it.
    fn learn_later(&mut self, meaning: Meaning) {
        if let Meaning::Change(change) = meaning
            && !self.tracker.is_skipping()
        {
            let known = self.virtuals.known();
            if known.learning.is_empty() {
                known.failed = false;
            }
            known.learning.push(change);
        }
    }

    /// Remembers what a text of several statements says, likewise.
    pub(super) fn learn_within(&mut self, text: &[u8]) {
        for change in virtual_setting::within(text) {
            self.learn_later(Meaning::Change(change));
        }
    }

    /// Every request is answered: what was forwarded took effect, unless there was an error.
    pub(super) fn learn(&mut self) {
        let Some(known) = &mut self.virtuals.0 else {
            return;
        };
        known.prepared.answered();
        let learned = std::mem::take(&mut known.learning);
        if !std::mem::take(&mut known.failed) {
            for change in &learned {
                self.apply(change);
            }
        }
        self.virtuals.tidy();
    }

    /// Takes in what the app says of its session.
    fn apply(&mut self, change: &Change) {
        let now = self.shared.ledger.now();
        let mut book = self.shared.ledger.book_mut();
        let entry = book.entry_mut(self.slot);
        match change {
            Change::Owner(owner) => {
                entry.declare_owner(owner.as_deref(), now);
                if self.shared.events.are_followed(Kind::OwnerDeclared) {
                    self.shared.events.tell(Happening::Declared {
                        session: self.id.get(),
                        owner: owner.as_deref().map(str::to_owned),
                        state: if owner.is_some() { "held" } else { "resting" },
                    });
                }
            }
            Change::Pin(Switch::On) => {
                self.rare.sticky.add(Pin::Explicit);
                entry.pins.add(Pin::Explicit);
            }
            Change::Pin(Switch::Off) => {
                self.rare.sticky.remove(Pin::Explicit);
                entry.pins.remove(Pin::Explicit);
                if self.rare.pinned {
                    // Whether anything else does is asked for now.
                    self.rare.class = Class::Unknown;
                    self.rare.answered = true;
                }
            }
            Change::Scope(scope) => {
                let ends = scope.is_none() && entry.scope().is_some();
                entry.declare_scope(scope.as_deref());
                drop(book);
                if ends {
                    self.end_scope();
                }
            }
        }
    }

    /// The scope was explicit: its lease ends with it, at the next quiet point.
    fn end_scope(&self) {
        let order = ReturnOrder {
            method: Method::Detach,
            pinned: Pinned::Spare,
            cause: Cause::Voluntary,
            patience: Patience::Wait,
            reply: None,
        };
        if self.lent.is_some() {
            self.shared.ledger.order(self.id, Order::Return(order));
        }
    }

    /// Appends what a statement answers, up to its CommandComplete.
    fn execute(&mut self, out: &mut Vec<u8>, found: &Virtual) {
        match &found.meaning {
            Meaning::Change(change) => {
                self.apply(change);
                if found.verb == Verb::Call {
                    rows::data_row(out, &[Some(answers::value(change))]);
                }
            }
            Meaning::Show(shown) => {
                for row in self.shown(*shown) {
                    rows::data_row(out, &row);
                }
            }
        }
        rows::command_complete(out, answers::tag(found.verb));
    }
}
