//! Owns the account of one session's requests and replies: when is every request answered?
//!
//! It counts requests, not messages: a simple query, a function call and a Sync each end in one ReadyForQuery.
//! After an error in the extended protocol everything up to the next Sync is skipped; during COPY FROM STDIN a Sync
//! is ignored (protocol chapters 55.2.3 and 55.2.6). Where the account can't be certain, it says so for good.

use std::collections::VecDeque;
use std::rc::Rc;

use crate::lease::Status;
use crate::wire::extended::Statement;

#[cfg(test)]
mod tests;

/// Who sent a message towards PostgreSQL: the reply to one of ours never reaches the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    Client,
    Proxy,
    /// Ours, for a statement that the client knows already, and PostgreSQL shall know from now on.
    Adopted,
}

/// Something that PostgreSQL has not answered yet.
#[derive(Debug)]
enum Pending {
    Query,
    Function,
    Sync,
    /// One or more extended-protocol messages whose replies need no decision.
    Extended,
    /// A Describe of this statement, or its Bind and a Describe of the portal: the reply tells what its rows look like.
    Shape(Rc<Statement>, Origin),
    Parse(Rc<Statement>, Origin),
    UnnamedParse,
    /// Close of the named statement; `None` for a portal.
    Close(Option<Rc<[u8]>>, Origin),
    /// CopyDone or CopyFail.
    CopyEnd,
    /// A whole request of ours: all its answers are ours, up to its ReadyForQuery. It may be there to make a statement.
    Own(Option<Rc<Statement>>),
}

impl Pending {
    /// What is answered by a ReadyForQuery.
    fn ends_a_request(&self) -> bool {
        match self {
            Self::Query | Self::Function | Self::Sync | Self::Own(_) => true,
            Self::Extended
            | Self::Shape(..)
            | Self::Parse(..)
            | Self::UnnamedParse
            | Self::Close(..)
            | Self::CopyEnd => false,
        }
    }

    /// Another reply comes ahead of any ReadyForQuery. A Flush has none.
    fn answers_first(&self) -> bool {
        match self {
            Self::Query
            | Self::Function
            | Self::Shape(..)
            | Self::Parse(..)
            | Self::UnnamedParse
            | Self::Close(..)
            | Self::Own(_) => true,
            Self::Sync | Self::Extended | Self::CopyEnd => false,
        }
    }

    /// An Execute may be among what it stands for.
    fn may_begin_copy(&self) -> bool {
        matches!(self, Self::Extended | Self::Shape(..))
    }

    const fn closes(&self) -> bool {
        matches!(self, Self::Close(..))
    }

    /// A Parse of the client's unnamed statement.
    fn makes_unnamed(&self) -> bool {
        match self {
            Self::UnnamedParse => true,
            Self::Parse(statement, Origin::Adopted) => statement.name.is_empty(),
            Self::Parse(_, Origin::Client | Origin::Proxy)
            | Self::Query
            | Self::Function
            | Self::Sync
            | Self::Extended
            | Self::Shape(..)
            | Self::Close(..)
            | Self::CopyEnd
            | Self::Own(_) => false,
        }
    }

    /// A Parse or Close of the client's unnamed statement.
    fn is_about_unnamed(&self) -> bool {
        let closes = matches!(self, Self::Close(Some(name), Origin::Client) if name.is_empty());
        closes || self.makes_unnamed()
    }
}

/// What a reply means for the session.
#[derive(Debug)]
pub enum Seen {
    /// Forward it, nothing else.
    Plain,
    /// It answers one of our own messages: the client never sees it.
    Ours,
    /// So does this: a statement is there that was made anew.
    Remade(Rc<Statement>),
    /// A request is answered.
    Ready(Status),
    /// This statement exists now.
    Prepared(Rc<Statement>),
    /// So does this one; the client never sees the reply.
    Adopted(Rc<Statement>),
    /// The unnamed statement exists now.
    UnnamedPrepared,
    /// The message says what this statement's rows look like. It answers our own question where that says so.
    Shaped(Rc<Statement>, Origin),
    /// This statement is gone.
    Closed(Rc<[u8]>),
    /// A request failed.
    Failed(Aftermath),
}

/// What a failed request did to the unnamed statement.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Aftermath {
    /// Its own making failed: there is none.
    pub unmade: bool,
    /// It can't be told whether its own making failed, or something right before that.
    pub doubtful: bool,
    /// How many of the client's Parse and Close of it were not carried out.
    pub dropped: usize,
}

/// Whether a stray ReadyForQuery may still come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Doubt {
    #[default]
    None,
    /// One may come instead of the one that the client's next Sync asks for.
    Open,
    /// The same, and then PostgreSQL carries out what was sent since, which isn't accounted for.
    Unheard,
    /// One may come, though everything is answered.
    Lingering,
    /// One may come before the first reply to the request that was sent since.
    Armed,
}

/// Where PostgreSQL is between two ReadyForQuery.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Sequence {
    /// It answered nothing of the extended protocol since the last one.
    #[default]
    Synced,
    /// It did: a transaction is open until a Sync.
    Open,
    /// It skips everything until a Sync that the client hasn't sent yet.
    Skipping,
}

/// The account of one session on one backend.
#[derive(Debug)]
pub struct Tracker {
    pending: VecDeque<Pending>,
    status: Status,
    sequence: Sequence,
    /// PostgreSQL reads COPY data.
    copy_in: bool,
    doubt: Doubt,
    ambiguous: bool,
    /// A reply that tells what a statement's rows look like may be on its way.
    shaping: bool,
    /// How many were ever put into the account, and how many there were when the client's last Parse of a name was: so that
    /// a deep pipeline isn't looked through for one that isn't there.
    sent: u64,
    last_parse: u64,
}

impl Default for Tracker {
    fn default() -> Self {
        Self {
            pending: VecDeque::new(),
            status: Status::Idle,
            sequence: Sequence::Synced,
            copy_in: false,
            doubt: Doubt::None,
            ambiguous: false,
            shaping: false,
            sent: 0,
            last_parse: 0,
        }
    }
}

impl Tracker {
    /// Above this capacity, the memory of a deep pipeline is given back once it is answered.
    const KEPT: usize = 16;

    /// A simple query was sent.
    pub fn sent_query(&mut self) {
        self.push(Pending::Query);
    }

    /// A fastpath function call was sent.
    pub fn sent_function(&mut self) {
        self.push(Pending::Function);
    }

    /// A Sync was sent.
    pub fn sent_sync(&mut self) {
        if self.is_skipping() {
            self.sequence = Sequence::Synced;
        }
        self.push(Pending::Sync);
    }

    /// A Bind, Describe, Execute or Flush was sent. Whether it is told from those before it.
    pub fn sent_extended(&mut self) -> bool {
        if matches!(self.pending.back(), Some(Pending::Extended)) {
            return false;
        }
        self.push(Pending::Extended);
        !self.is_skipping()
    }

    /// What was just sent, and is told from what came before it, makes PostgreSQL say what this statement's rows look like.
    pub fn sent_shape(&mut self, statement: Rc<Statement>, origin: Origin) {
        if let Some(last @ Pending::Extended) = self.pending.back_mut() {
            *last = Pending::Shape(statement, origin);
            self.shaping = true;
        }
    }

    /// How many messages were ever put into the account: the number of the last.
    #[must_use]
    pub const fn sent_count(&self) -> u64 {
        self.sent
    }

    /// The number up to which they are answered, or skipped.
    #[must_use]
    pub fn answered_count(&self) -> u64 {
        self.sent.saturating_sub(self.pending.len() as u64)
    }

    /// The statement of this name that was sent last, if it isn't answered.
    #[must_use]
    pub fn sent_statement(&self, name: &[u8]) -> Option<&Rc<Statement>> {
        if self.last_parse <= self.answered_count() {
            return None;
        }
        self.pending.iter().rev().find_map(|pending| match pending {
            Pending::Parse(statement, Origin::Client) if *statement.name == *name => {
                Some(statement)
            }
            _ => None,
        })
    }

    /// Whether a request of ours that makes the statement of this name is unanswered.
    #[must_use]
    pub fn is_making(&self, name: &[u8]) -> bool {
        let makes = |pending: &Pending| match pending {
            Pending::Own(Some(statement)) => *statement.name == *name,
            _ => false,
        };
        self.pending.iter().any(makes)
    }

    /// Whether a question of ours is unanswered that a message of the client waits for.
    #[must_use]
    pub fn asks(&self) -> bool {
        let ours = |pending: &Pending| matches!(pending, Pending::Shape(_, Origin::Proxy));
        self.shaping && self.pending.iter().any(ours)
    }

    /// Whether a reply may tell what a statement's rows look like.
    #[must_use]
    pub const fn is_shaping(&self) -> bool {
        self.shaping
    }

    /// A Parse of a named statement was sent.
    pub fn sent_parse(&mut self, statement: Rc<Statement>, origin: Origin) {
        self.push(Pending::Parse(statement, origin));
    }

    /// A Parse of the unnamed statement, or of one that isn't kept, was sent.
    pub fn sent_unnamed_parse(&mut self) {
        self.push(Pending::UnnamedParse);
    }

    /// A Close was sent, of a statement or (`None`) of a portal.
    pub fn sent_close(&mut self, statement: Option<Rc<[u8]>>, origin: Origin) {
        self.push(Pending::Close(statement, origin));
    }

    /// A whole request of ours was sent: one that ends in one ReadyForQuery. It may be there to make a statement.
    pub fn sent_own(&mut self, making: Option<Rc<Statement>>) {
        self.push(Pending::Own(making));
    }

    /// The statement that the request of ours makes which is answered now.
    #[must_use]
    pub fn making(&self) -> Option<&Rc<Statement>> {
        match self.pending.front() {
            Some(Pending::Own(making)) => making.as_ref(),
            _ => None,
        }
    }

    /// A CopyDone or CopyFail was sent. Outside COPY, PostgreSQL ignores it.
    pub fn sent_copy_end(&mut self) {
        if !self.pending.is_empty() {
            self.push(Pending::CopyEnd);
        }
    }

    /// Whether a CopyData message has anybody to read it: otherwise PostgreSQL would only drop it.
    #[must_use]
    pub fn expects_copy_data(&self) -> bool {
        self.copy_in || !self.pending.is_empty()
    }

    fn push(&mut self, pending: Pending) {
        if self.is_skipping() {
            if !matches!(pending, Pending::CopyEnd) {
                self.leave_unheard();
            }
            return;
        }
        if self.doubt == Doubt::Lingering && self.pending.is_empty() {
            self.doubt = Doubt::Armed;
        }
        self.sent += 1;
        if matches!(pending, Pending::Parse(_, Origin::Client)) {
            self.last_parse = self.sent;
        }
        self.pending.push_back(pending);
    }

    /// Something is dropped from the account that PostgreSQL skips, unless it has read the Sync before that.
    fn leave_unheard(&mut self) {
        if self.doubt == Doubt::Open {
            self.doubt = Doubt::Unheard;
        }
    }

    /// A message of type `kind` came from PostgreSQL. `body` may be cut short for all but ReadyForQuery.
    pub fn seen(&mut self, kind: u8, body: &[u8]) -> Seen {
        if self.hears_own() && !matches!(kind, b'S' | b'N' | b'A') {
            return self.seen_own(kind, body);
        }
        match kind {
            b'Z' => self.seen_ready(body),
            b'E' => {
                // A stray ReadyForQuery is of a Sync that has nothing to commit: no error belongs to it.
                self.settle_doubt();
                self.seen_error()
            }
            b'1' | b'3' => {
                self.settle_doubt();
                self.seen_complete(kind)
            }
            b'C' => {
                self.settle_doubt();
                self.seen_command_complete()
            }
            b'G' | b'W' => {
                self.settle_doubt();
                self.copy_begins();
                Seen::Plain
            }
            b'T' | b'n' | b't' if self.shaping => {
                self.settle_doubt();
                self.seen_shape(kind)
            }
            b'T' | b'D' | b'2' | b'n' | b't' | b'I' | b's' | b'H' | b'V' => {
                self.settle_doubt();
                Seen::Plain
            }
            _ => Seen::Plain,
        }
    }

    fn seen_shape(&mut self, kind: u8) -> Seen {
        match self.pending.front() {
            Some(Pending::Shape(_, Origin::Proxy)) if kind == b't' => Seen::Ours,
            Some(Pending::Shape(statement, origin)) if kind != b't' => {
                let shaped = Seen::Shaped(statement.clone(), *origin);
                self.sequence = Sequence::Open;
                self.pending.pop_front();
                shaped
            }
            _ => Seen::Plain,
        }
    }

    fn seen_own(&mut self, kind: u8, body: &[u8]) -> Seen {
        if kind == b'Z' {
            self.pending.pop_front();
            match body.first().copied().and_then(Status::from_byte) {
                Some(status) => self.status = status,
                None => self.ambiguous = true,
            }
        }
        Seen::Ours
    }

    fn settle_doubt(&mut self) {
        if self.doubt == Doubt::Armed {
            self.doubt = Doubt::None;
        }
    }

    fn seen_ready(&mut self, body: &[u8]) -> Seen {
        let Some(status) = body.first().copied().and_then(Status::from_byte) else {
            self.ambiguous = true;
            return Seen::Plain;
        };
        self.status = status;
        self.copy_in = false;
        if self.sequence == Sequence::Open {
            self.sequence = Sequence::Synced;
        }
        if self.doubt == Doubt::Armed {
            self.doubt = Doubt::None;
            if self.pending.front().is_some_and(Pending::answers_first) {
                return Seen::Plain;
            }
            // It may as well be the first reply to what was sent since, and is, almost surely.
            self.ambiguous = true;
        }
        self.pop_answered();
        Seen::Ready(status)
    }

    fn pop_answered(&mut self) {
        loop {
            match self.pending.pop_front() {
                Some(Pending::Query | Pending::Function | Pending::Sync | Pending::Own(_)) => {
                    match self.doubt {
                        Doubt::Open => self.doubt = Doubt::Lingering,
                        Doubt::Unheard => self.ambiguous = true,
                        Doubt::None | Doubt::Lingering | Doubt::Armed => {}
                    }
                    break;
                }
                Some(Pending::Extended | Pending::Shape(..) | Pending::CopyEnd) => {}
                Some(Pending::Parse(..) | Pending::UnnamedParse | Pending::Close(..)) => {
                    self.ambiguous = true
                }
                None => {
                    self.ambiguous |= self.doubt == Doubt::Unheard;
                    self.doubt = Doubt::None;
                    self.sequence = Sequence::Synced;
                    break;
                }
            }
        }
        self.pass_copy_ends();
        if self.doubt == Doubt::Lingering && !self.pending.is_empty() {
            // Whether the next one is the stray one, or answers what is pending, can't be told.
            self.ambiguous = true;
        }
        if self.pending.is_empty() {
            self.shaping = false;
            if self.pending.capacity() > Self::KEPT {
                self.pending = VecDeque::new();
            }
        }
    }

    fn seen_error(&mut self) -> Seen {
        // A Sync that was sent before the COPY began was read, and ignored, as the COPY's first message: almost surely.
        let mut ignores_sync = std::mem::take(&mut self.copy_in);
        if matches!(
            self.pending.front(),
            None | Some(Pending::Query | Pending::Function)
        ) {
            let ends = |pending: &&Pending| !matches!(pending, Pending::CopyEnd);
            let mut within = self.pending.iter().take_while(ends);
            // Whether PostgreSQL has read, and ignored, a Sync that came among the data can't be told.
            self.ambiguous |= ignores_sync && within.any(|one| matches!(one, Pending::Sync));
            return Seen::Failed(Aftermath::default());
        }
        let makes = |at: usize| self.pending.get(at).is_some_and(Pending::makes_unnamed);
        let mut aftermath = Aftermath {
            unmade: makes(0),
            // Replies to Bind, Describe and Execute aren't counted.
            doubtful: self.is_before_decisions() && makes(1),
            dropped: 0,
        };
        // Whether something was passed that may have begun the COPY.
        let mut begun = false;
        while let Some(front) = self.pending.front() {
            match front {
                Pending::Sync if ignores_sync => {
                    ignores_sync = false;
                    self.doubt = Doubt::Open;
                }
                Pending::Sync => return Seen::Failed(aftermath),
                Pending::Query | Pending::Function | Pending::Own(_) => {
                    self.ambiguous = true;
                    return Seen::Failed(aftermath);
                }
                // It came before the COPY, and ended nothing.
                Pending::CopyEnd if !begun => {}
                Pending::CopyEnd => {
                    // Unless that has only begun after it.
                    let ends = |pending: &&Pending| !pending.ends_a_request();
                    let mut between = self.pending.iter().skip(1).take_while(ends);
                    self.ambiguous |= ignores_sync && between.any(Pending::may_begin_copy);
                    ignores_sync = false;
                }
                front if front.is_about_unnamed() => aftermath.dropped += 1,
                Pending::UnnamedParse
                | Pending::Extended
                | Pending::Shape(..)
                | Pending::Parse(..)
                | Pending::Close(..) => {}
            }
            begun |= front.may_begin_copy();
            if !matches!(front, Pending::Sync | Pending::CopyEnd) && self.doubt == Doubt::Open {
                self.doubt = Doubt::Unheard;
            }
            self.pending.pop_front();
        }
        self.sequence = Sequence::Skipping;
        Seen::Failed(aftermath)
    }

    /// Whether the first that is unanswered has replies that aren't counted.
    fn is_before_decisions(&self) -> bool {
        matches!(
            self.pending.front(),
            Some(Pending::Extended | Pending::Shape(..))
        )
    }

    fn seen_complete(&mut self, kind: u8) -> Seen {
        self.sequence = Sequence::Open;
        while self.is_before_decisions() {
            self.pending.pop_front();
        }
        match (kind, self.pending.pop_front()) {
            (b'1', Some(Pending::Parse(statement, Origin::Proxy))) => Seen::Remade(statement),
            (b'1', Some(Pending::Parse(statement, Origin::Client))) => Seen::Prepared(statement),
            (b'1', Some(Pending::Parse(statement, Origin::Adopted))) => Seen::Adopted(statement),
            (b'1', Some(Pending::UnnamedParse)) => Seen::UnnamedPrepared,
            (b'3', Some(Pending::Close(Some(name), Origin::Client))) => Seen::Closed(name),
            (b'3', Some(Pending::Close(Some(_), Origin::Proxy))) => Seen::Ours,
            (b'3', Some(Pending::Close(None, _))) => Seen::Plain,
            (_, other) => {
                self.pending.extend(other);
                self.ambiguous = true;
                Seen::Plain
            }
        }
    }

    /// PostgreSQL reads COPY data from here on: for what is pending first, or for what follows that without an answer that
    /// would be told from its own.
    fn copy_begins(&mut self) {
        self.copy_in = true;
        self.pass_copy_ends();
        let ours =
            |pending: &&Pending| pending.may_begin_copy() || matches!(pending, Pending::CopyEnd);
        let run = self.pending.iter().take_while(ours).count();
        let query = matches!(self.pending.get(run), Some(Pending::Query));
        let end = self
            .pending
            .iter()
            .position(|pending| matches!(pending, Pending::CopyEnd));
        // Whether an end that was sent between two that may have begun it is its own can't be told.
        let between = end.is_some_and(|end| {
            end < run && (query || self.pending.range(end..run).any(Pending::may_begin_copy))
        });
        self.ambiguous |= between || run == 0 && !query;
    }

    /// What ended no COPY, since none had begun, is read by now.
    fn pass_copy_ends(&mut self) {
        while matches!(self.pending.front(), Some(Pending::CopyEnd)) {
            self.pending.pop_front();
        }
    }

    fn seen_command_complete(&mut self) -> Seen {
        if std::mem::take(&mut self.copy_in) {
            let mut waiting = self.pending.iter();
            let end = waiting.position(|pending| matches!(pending, Pending::CopyEnd));
            let ahead = end.unwrap_or(self.pending.len());
            // PostgreSQL takes no query while it reads COPY data: one that was sent before its end is the COPY itself.
            let mut waiting = self.pending.range(..ahead);
            let query = waiting.rposition(|pending| matches!(pending, Pending::Query));
            if query.is_none() {
                self.sequence = Sequence::Open;
            }
            if let Some(end) = end {
                let first = query.map_or(0, |query| query + 1);
                self.pending.drain(first..=end);
            }
        }
        Seen::Plain
    }

    /// The transaction status of the last ReadyForQuery.
    #[must_use]
    pub const fn status(&self) -> Status {
        self.status
    }

    /// Whether PostgreSQL skips what is sent now.
    #[must_use]
    pub fn is_skipping(&self) -> bool {
        self.sequence == Sequence::Skipping
    }

    /// Whether what comes now answers a request of ours.
    #[must_use]
    pub fn hears_own(&self) -> bool {
        matches!(self.pending.front(), Some(Pending::Own(_)))
    }

    /// Whether what comes now answers something of ours, for certain.
    #[must_use]
    pub fn hears_ours(&self) -> bool {
        match self.pending.front() {
            Some(
                Pending::Own(_)
                | Pending::Parse(_, Origin::Proxy)
                | Pending::Close(_, Origin::Proxy)
                | Pending::Shape(_, Origin::Proxy),
            ) => true,
            Some(
                Pending::Query
                | Pending::Function
                | Pending::Sync
                | Pending::Extended
                | Pending::Shape(..)
                | Pending::Parse(..)
                | Pending::UnnamedParse
                | Pending::Close(..)
                | Pending::CopyEnd,
            )
            | None => false,
        }
    }

    /// Whether messages that only carry data can pass without being told here.
    #[must_use]
    pub fn hears_plainly(&self) -> bool {
        self.doubt != Doubt::Armed && !self.shaping && !self.hears_own()
    }

    /// Whether what the client sends next begins a request: everything of the extended protocol before it has its Sync.
    #[must_use]
    pub fn is_between_requests(&self) -> bool {
        // A Close begins no transaction, and never fails.
        let mut last = self.pending.iter().rev();
        match last.find(|pending| !pending.closes()) {
            Some(last) => last.ends_a_request(),
            None => self.sequence == Sequence::Synced && !self.copy_in,
        }
    }

    /// Whether what is sent next meets no transaction of the client's: none is open, and nothing unanswered can open one.
    #[must_use]
    pub fn is_surely_idle(&self) -> bool {
        let opens_none = |pending: &Pending| matches!(pending, Pending::Own(_)) || pending.closes();
        let synced = self.sequence == Sequence::Synced && !self.copy_in;
        self.status == Status::Idle && synced && self.pending.iter().all(opens_none)
    }

    /// Whether nothing is unanswered, and no answer waits for its Sync, as far as the account knows.
    #[must_use]
    pub fn is_answered(&self) -> bool {
        self.pending.is_empty() && self.sequence == Sequence::Synced && !self.copy_in
    }

    /// Whether every request is answered for certain: nothing more will come unless the client asks, or PostgreSQL notifies.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.is_answered() && self.doubt == Doubt::None && !self.ambiguous
    }

    /// Whether the account was lost: the session must keep its backend to the end.
    #[must_use]
    pub const fn is_ambiguous(&self) -> bool {
        self.ambiguous
    }

    /// Whether PostgreSQL will answer what was sent without a further word of the client.
    #[must_use]
    pub fn answers_alone(&self) -> bool {
        !self.copy_in
            && self
                .pending
                .iter()
                .rev()
                .find(|pending| !matches!(pending, Pending::CopyEnd))
                .is_some_and(Pending::ends_a_request)
    }
}
