//! The account of unanswered requests against PostgreSQL's side of the protocol, with messages and replies in any order that a network can
//! bring about: a backend that isn't quiet is never taken for one, and one that is mostly is.

use std::collections::BTreeSet;
use std::rc::Rc;

use pgvalet::lease::Status;
use pgvalet::wire::extended::Statement;
use pgvalet::wire::tracker::{Origin, Seen, Tracker};

use super::input::Input;
use super::postgres::{From, Message, Postgres};

pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let mut session = Session::default();
    while !input.is_empty() && !session.postgres.gone && !session.tracker.is_ambiguous() {
        match input.below(8) {
            0..=3 => session.client(&mut input),
            4 | 5 => drop(session.postgres.step(&mut input)),
            _ => session.hear(),
        }
        session.check();
    }
    session.end();
}

struct Session {
    tracker: Tracker,
    postgres: Postgres,
    /// The statements that the account has heard of.
    statements: BTreeSet<Vec<u8>>,
    /// The replies that the client saw, and those that it should have seen.
    forwarded: Vec<u8>,
    owed: Vec<u8>,
}

impl Default for Session {
    fn default() -> Self {
        Self {
            tracker: Tracker::default(),
            postgres: Postgres::new(),
            statements: BTreeSet::new(),
            forwarded: Vec::new(),
            owed: Vec::new(),
        }
    }
}

fn parse(name: &[u8]) -> Rc<Statement> {
    let body = [name, b"\0SELECT 1\0\0\0"].concat();
    Rc::new(Statement::read(&body).expect("it is whole"))
}

impl Session {
    /// The client sends something; it is told to the account as the relay does it.
    fn client(&mut self, input: &mut Input<'_>) {
        let name = vec![b'a' + input.below(3)];

        let message = match input.below(16) {
            0 | 1 => {
                // What a lease begins with, now and then.
                if self.tracker.is_settled() && input.once_in(3) {
                    self.tracker.sent_own(None);
                    self.postgres.send(Message::Query, From::Proxy);
                }
                self.tracker.sent_query();
                Message::Query
            }
            2 => {
                self.tracker.sent_function();
                Message::Function
            }
            3 => {
                self.tracker.sent_parse(parse(&name), Origin::Client);
                Message::Parse(name)
            }
            4 => {
                self.tracker.sent_unnamed_parse();
                Message::Parse(Vec::new())
            }
            5 => {
                // A statement that the client made elsewhere is made here first.
                self.tracker.sent_parse(parse(&name), Origin::Proxy);
                self.postgres.send(Message::Parse(name), From::Proxy);
                self.tracker.sent_extended();
                Message::Bind
            }
            6 => {
                self.tracker.sent_extended();
                Message::Bind
            }
            7 => {
                self.tracker.sent_extended();
                Message::Describe
            }
            8 | 9 => {
                self.tracker.sent_extended();
                Message::Execute
            }
            10 => {
                self.tracker.sent_extended();
                Message::Flush
            }
            11 => {
                let name = Some(name).filter(|_| input.once_in(2));
                self.tracker
                    .sent_close(name.as_deref().map(Rc::from), Origin::Client);
                Message::Close(name)
            }
            12 | 13 => {
                self.tracker.sent_sync();
                Message::Sync
            }
            // PostgreSQL would only drop them.
            _ if !self.tracker.expects_copy_data() => return,
            14 => Message::CopyData,
            _ => {
                self.tracker.sent_copy_end();
                if input.once_in(3) {
                    Message::CopyFail
                } else {
                    Message::CopyDone
                }
            }
        };
        self.postgres.send(message, From::Client);
    }

    /// A reply arrives.
    fn hear(&mut self) {
        let Some((kind, body, from)) = self.postgres.replies.pop_front() else {
            return;
        };
        // Errors are the client's whoever's message they answer, but for a whole request of ours.
        let own = self.tracker.hears_own();
        let passing = matches!(kind, b'N' | b'S');
        if from == From::Client || passing || kind == b'E' && !own {
            self.owed.push(kind);
        }
        let seen = self.tracker.seen(kind, &body);
        if !matches!(seen, Seen::Ours | Seen::Remade(_)) {
            self.forwarded.push(kind);
        }
        match seen {
            Seen::Prepared(statement) | Seen::Adopted(statement) => {
                self.statements.insert(statement.name.to_vec());
            }
            Seen::Closed(name) => drop(self.statements.remove(&*name)),
            Seen::Ready(status) => assert_eq!(status.letter(), body[0]),
            Seen::Plain
            | Seen::Shaped(..)
            | Seen::Ours
            | Seen::Remade(_)
            | Seen::UnnamedPrepared
            | Seen::Failed(_) => {}
        }
    }

    fn check(&self) {
        if self.tracker.is_ambiguous() || self.postgres.gone {
            return;
        }
        if self.tracker.is_settled() {
            assert!(
                self.postgres.is_quiet(),
                "PostgreSQL isn't done: {:?}",
                self.tracker
            );
            assert_eq!(self.tracker.status().letter(), self.postgres.status());
        }
        if self.tracker.answers_alone() {
            assert!(!self.tracker.is_answered());
        }
    }

    /// Everything is read and heard: the account is as PostgreSQL's is.
    fn end(mut self) {
        loop {
            let moved =
                self.postgres.step(&mut Input::new(&[])) || !self.postgres.replies.is_empty();
            self.hear();
            self.check();
            if !moved || self.postgres.gone || self.tracker.is_ambiguous() {
                break;
            }
        }
        if self.postgres.gone || self.tracker.is_ambiguous() {
            return;
        }
        assert_eq!(
            self.forwarded, self.owed,
            "the client sees the answers to its own messages"
        );
        let known = self.postgres.statements();
        assert!(
            self.statements.is_subset(known),
            "it knows of more than there is"
        );
        // Only what depends on PostgreSQL's timing leaves a doubt.
        if !self.postgres.ignored && self.postgres.is_quiet() {
            assert!(
                self.tracker.is_answered(),
                "it waits for nothing: {:?}",
                self.tracker
            );
        }
    }
}

trait Letter {
    fn letter(self) -> u8;
}

impl Letter for Status {
    fn letter(self) -> u8 {
        match self {
            Self::Idle => b'I',
            Self::InTransaction => b'T',
            Self::Failed => b'E',
        }
    }
}
