//! PostgreSQL's side of the protocol, as postgres.c, copyfromparse.c and copyto.c carry it out: messages in, replies out, in the order of
//! chapter 55.2. What a statement comes to is somebody else's choice.

use std::collections::{BTreeSet, VecDeque};

use super::input::Input;

/// A message of a client's, or of the proxy's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    Query,
    Function,
    Parse(Vec<u8>),
    /// Bind, Describe or Execute.
    Bind,
    Describe,
    Execute,
    Flush,
    /// Close of a statement, or of a portal.
    Close(Option<Vec<u8>>),
    Sync,
    CopyData,
    CopyDone,
    CopyFail,
}

impl Message {
    /// What belongs to COPY: outside of it PostgreSQL drops it without a word.
    const fn is_of_copy(&self) -> bool {
        matches!(self, Self::CopyData | Self::CopyDone | Self::CopyFail)
    }
}

/// Whose message it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    Client,
    Proxy,
}

/// A message of PostgreSQL's: its type, its body, and whose message it answers.
pub type Reply = (u8, Vec<u8>, From);

/// What it is in the middle of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Doing {
    /// It waits for a message.
    Nothing,
    /// It carries out the statements of a simple query, so many more of them.
    Query(u8),
    /// It reads COPY data, within a query or an Execute.
    Copy(Within),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Within {
    Query(u8),
    Execute,
}

pub struct Postgres {
    unread: VecDeque<(Message, From)>,
    doing: Doing,
    /// Whose message it is about.
    whose: From,
    skipping: bool,
    /// Something of the extended protocol came since the last ReadyForQuery: a transaction of its own may be open.
    unsynced: bool,
    status: u8,
    statements: BTreeSet<Vec<u8>>,
    pub replies: VecDeque<Reply>,
    /// It gave up: the connection is closed.
    pub gone: bool,
    /// A Sync or Flush was ignored while COPY data was read: the account errs on the safe side until the next request.
    pub ignored: bool,
}

impl Postgres {
    pub fn new() -> Self {
        Self {
            unread: VecDeque::new(),
            doing: Doing::Nothing,
            whose: From::Client,
            skipping: false,
            unsynced: false,
            status: b'I',
            statements: BTreeSet::new(),
            replies: VecDeque::new(),
            gone: false,
            ignored: false,
        }
    }

    pub fn send(&mut self, message: Message, from: From) {
        self.unread.push_back((message, from));
    }

    /// Whether it has nothing to do or to say until it is asked something, and asks for nothing itself.
    pub fn is_quiet(&self) -> bool {
        self.unread.iter().all(|(message, _)| message.is_of_copy())
            && self.replies.is_empty()
            && self.doing == Doing::Nothing
            && !self.skipping
            && !self.unsynced
    }

    pub fn status(&self) -> u8 {
        self.status
    }

    pub fn statements(&self) -> &BTreeSet<Vec<u8>> {
        &self.statements
    }

    /// Does the next thing, if there is any. Gives whether there was.
    pub fn step(&mut self, choice: &mut Input<'_>) -> bool {
        match self.doing {
            Doing::Query(0) => {
                self.doing = Doing::Nothing;
                self.ready();
            }
            Doing::Query(left) => self.statement(left - 1, choice),
            Doing::Copy(within) => return self.copy(within, choice),
            Doing::Nothing => {
                let Some((message, from)) = self.unread.pop_front() else {
                    return false;
                };
                self.whose = from;
                self.message(message, from, choice);
            }
        }
        true
    }

    fn say(&mut self, kind: u8, body: &[u8]) {
        self.replies.push_back((kind, body.to_vec(), self.whose));
    }

    fn ready(&mut self) {
        self.unsynced = false;
        self.say(b'Z', &[self.status]);
    }

    fn fail(&mut self) {
        if self.status == b'T' {
            self.status = b'E';
        }
        self.say(b'E', b"SERROR\0\0");
    }

    fn message(&mut self, message: Message, from: From, choice: &mut Input<'_>) {
        if self.skipping && message != Message::Sync {
            return;
        }
        if message.is_of_copy() {
            return;
        }
        if choice.once_in(5) {
            self.say(b'N', b"\0");
        }
        let fails = choice.once_in(4);
        self.unsynced |= matches!(
            message,
            Message::Parse(_)
                | Message::Bind
                | Message::Describe
                | Message::Execute
                | Message::Close(_)
                | Message::Flush
        );
        match message {
            Message::Query if from == From::Proxy => {
                self.say(b'C', b"DISCARD SEQUENCES\0");
                self.ready();
            }
            Message::Query => self.doing = Doing::Query(choice.below(3) + 1),
            Message::Function => {
                if fails {
                    self.fail();
                } else {
                    self.say(b'V', b"");
                }
                self.ready();
            }
            Message::Sync => {
                // What it commits may fail; behind an error, and in a block, it commits nothing.
                let commits = self.unsynced && !self.skipping && self.status == b'I';
                self.skipping = false;
                if fails && commits {
                    self.status = b'I';
                    self.say(b'E', b"SERROR\0\0");
                }
                self.ready();
            }
            Message::CopyData | Message::CopyDone | Message::CopyFail | Message::Flush => {}
            Message::Parse(_)
            | Message::Bind
            | Message::Describe
            | Message::Execute
            | Message::Close(_)
                if fails =>
            {
                self.fail();
                self.skipping = true;
            }
            Message::Parse(name) => {
                self.statements.insert(name);
                self.say(b'1', b"");
            }
            Message::Bind => self.say(b'2', b""),
            Message::Describe => {
                self.say(b't', b"\0\0");
                self.say(if choice.once_in(2) { b'n' } else { b'T' }, b"");
            }
            Message::Close(name) => {
                if let Some(name) = name {
                    self.statements.remove(&name);
                }
                self.say(b'3', b"");
            }
            Message::Execute => self.execute(choice),
        }
    }

    fn execute(&mut self, choice: &mut Input<'_>) {
        match choice.below(5) {
            0 => {
                self.say(b'G', b"");
                self.doing = Doing::Copy(Within::Execute);
            }
            1 => self.say(b'I', b""),
            2 => self.say(b's', b""),
            3 => {
                self.say(b'H', b"");
                self.say(b'd', b"row");
                self.say(b'c', b"");
                self.say(b'C', b"COPY 1\0");
            }
            _ => {
                self.say(b'D', b"");
                self.say(b'C', b"SELECT 1\0");
            }
        }
    }

    /// One statement of a simple query, with so many behind it.
    fn statement(&mut self, left: u8, choice: &mut Input<'_>) {
        self.doing = Doing::Query(left);
        match choice.below(7) {
            0 => {
                self.fail();
                self.doing = Doing::Query(0);
            }
            1 => {
                self.say(b'G', b"");
                self.doing = Doing::Copy(Within::Query(left));
            }
            2 => {
                self.status = b'T';
                self.say(b'C', b"BEGIN\0");
            }
            3 => {
                self.status = b'I';
                self.say(b'C', b"COMMIT\0");
            }
            4 => self.say(b'I', b""),
            5 => {
                self.say(b'S', b"a\0b\0");
                self.say(b'C', b"SET\0");
            }
            _ => {
                self.say(b'T', b"");
                self.say(b'D', b"");
                self.say(b'C', b"SELECT 1\0");
            }
        }
    }

    fn copy(&mut self, within: Within, choice: &mut Input<'_>) -> bool {
        // A trigger may fail before anything is read.
        if choice.once_in(9) {
            self.fail();
            self.broken_off(within);
            return true;
        }
        let Some((message, _)) = self.unread.pop_front() else {
            return false;
        };
        let (ends, fails) = match message {
            Message::CopyData => (false, choice.once_in(4)),
            Message::CopyDone => (true, choice.once_in(4)),
            Message::CopyFail => (true, true),
            Message::Sync | Message::Flush => {
                self.ignored = true;
                (false, false)
            }
            Message::Query
            | Message::Function
            | Message::Parse(_)
            | Message::Bind
            | Message::Describe
            | Message::Execute
            | Message::Close(_) => {
                self.say(b'E', b"SFATAL\0\0");
                self.gone = true;
                return true;
            }
        };
        if fails {
            self.fail();
            self.broken_off(within);
        } else if ends {
            self.say(b'C', b"COPY 1\0");
            self.doing = match within {
                Within::Query(left) => Doing::Query(left),
                Within::Execute => Doing::Nothing,
            };
        }
        true
    }

    fn broken_off(&mut self, within: Within) {
        self.doing = match within {
            Within::Query(_) => Doing::Query(0),
            Within::Execute => Doing::Nothing,
        };
        self.skipping = within == Within::Execute;
    }
}
