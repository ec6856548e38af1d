//! Owns the account of a session's unnamed statement: which one it has, and whether the backend has it (chapter 55.2.3).

use std::collections::VecDeque;
use std::rc::Rc;

use crate::backend::Parameters;
use crate::backend::prepared::reads_alike;
use crate::wire::extended::{Statement, parse_text};
use crate::wire::sql::reads_always_alike;
use crate::wire::tracker::Aftermath;

/// What a body's memory may be that is kept though it is no longer needed, in bytes.
const SPARE: usize = 512;

/// The unnamed statement of one session.
#[derive(Debug, Default)]
pub(super) struct Unnamed {
    /// Whether there is one.
    exists: Exists,
    /// The body of its Parse.
    body: Vec<u8>,
    /// The reported settings that it was read under.
    under: Option<Rc<Parameters>>,
    place: Place,
    /// A buffer for the next one's.
    spare: Vec<u8>,
    /// What was sent, and isn't answered.
    sent: VecDeque<Sent>,
    /// The backend was sent it anew, or sent to close another's: a failure may have skipped that.
    adapted: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Exists {
    #[default]
    No,
    Yes,
    /// A failure did away with it, or it didn't.
    Perhaps,
}

/// What the backend that is held has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Place {
    /// Just what the session has.
    #[default]
    Here,
    /// Perhaps another session's.
    Elsewhere,
}

#[derive(Debug)]
enum Sent {
    /// A Parse of this body.
    Parse(Vec<u8>),
    Close,
    /// A simple query.
    Query,
}

/// What must go ahead of a message that uses the unnamed statement.
pub(super) enum Ahead {
    Nothing,
    /// It has to be made.
    Parse(Rc<Statement>),
    /// Another session's has to be closed.
    Close,
}

impl Unnamed {
    /// A Parse was sent.
    pub fn sent_parse(&mut self, body: &[u8]) {
        let mut kept = std::mem::take(&mut self.spare);
        kept.clear();
        kept.extend_from_slice(body);
        self.sent.push_back(Sent::Parse(kept));
    }

    /// A Close was sent.
    pub fn sent_close(&mut self) {
        self.sent.push_back(Sent::Close);
    }

    /// A simple query was sent: it does away with the unnamed statement. `answered`: so is everything before it.
    pub fn sent_query(&mut self, answered: bool) {
        if !answered {
            if !matches!(self.sent.back(), Some(Sent::Query)) {
                self.sent.push_back(Sent::Query);
            }
            return;
        }
        self.sent.clear();
        self.drop();
        self.place = Place::Here;
    }

    fn drop(&mut self) {
        self.exists = Exists::No;
        if self.body.capacity() > SPARE {
            self.body = Vec::new();
        }
    }

    /// A Parse was carried out, with these settings reported.
    pub fn parsed(&mut self, under: &Rc<Parameters>) {
        while let Some(sent) = self.sent.pop_front() {
            if let Sent::Parse(body) = sent {
                let before = std::mem::replace(&mut self.body, body);
                if before.capacity() <= SPARE {
                    self.spare = before;
                }
                self.exists = Exists::Yes;
                self.under = Some(under.clone());
                self.place = Place::Here;
                return;
            }
        }
    }

    /// A Close was carried out.
    pub fn closed(&mut self) {
        while let Some(sent) = self.sent.pop_front() {
            if let Sent::Close = sent {
                self.drop();
                self.place = Place::Here;
                return;
            }
        }
    }

    /// A request failed.
    pub fn failed(&mut self, aftermath: Aftermath) {
        let mut dropped = aftermath.dropped;
        let mut queried = false;
        while dropped > 0
            && let Some(sent) = self.sent.pop_front()
        {
            let query = matches!(sent, Sent::Query);
            queried |= query;
            dropped -= usize::from(!query);
        }
        if queried {
            self.sent.push_front(Sent::Query);
        }
        if aftermath.unmade {
            self.drop();
            self.place = Place::Here;
        } else if aftermath.doubtful && self.exists == Exists::Yes {
            self.exists = Exists::Perhaps;
        }
        if std::mem::take(&mut self.adapted) {
            self.place = Place::Elsewhere;
        }
    }

    /// Everything is answered.
    pub fn answered(&mut self) {
        self.adapted = false;
        if self.sent.is_empty() {
            return;
        }
        if self.sent.iter().any(|sent| matches!(sent, Sent::Query)) {
            // Whatever came behind it was heard of by itself.
            self.drop();
            self.place = Place::Here;
        }
        self.sent.clear();
    }

    /// The backend changed.
    pub fn moved(&mut self) {
        self.place = Place::Elsewhere;
    }

    /// Whether it can't be told if it exists: PostgreSQL can be asked.
    pub fn is_in_doubt(&self) -> bool {
        self.exists == Exists::Perhaps
    }

    /// PostgreSQL was asked.
    pub fn settle(&mut self, exists: bool) {
        if exists {
            self.exists = Exists::Yes;
        } else {
            self.drop();
        }
    }

    /// Whether it would mean the same if its text were read again under these reported settings.
    pub fn would_mean_the_same(&self, under: &Rc<Parameters>) -> bool {
        self.exists == Exists::No
            || (self.under.as_ref()).is_some_and(|read| reads_alike(read, under))
            || reads_always_alike(parse_text(&self.body).unwrap_or_default())
    }

    /// It is about to be used.
    pub fn ahead(&mut self) -> Ahead {
        if self.place == Place::Here || !self.sent.is_empty() {
            return Ahead::Nothing;
        }
        self.place = Place::Here;
        self.adapted = true;
        match self.exists {
            Exists::No => Ahead::Close,
            // A session in doubt isn't moved.
            Exists::Yes | Exists::Perhaps => match Statement::read(&self.body) {
                Some(statement) => Ahead::Parse(Rc::new(statement)),
                None => Ahead::Close,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTHING: Aftermath = Aftermath {
        unmade: false,
        doubtful: false,
        dropped: 0,
    };

    fn parsed(text: &str) -> Unnamed {
        let mut unnamed = Unnamed::default();
        unnamed.sent_parse(format!("\0{text}\0\0\0").as_bytes());
        unnamed.parsed(&Rc::default());
        unnamed.answered();
        unnamed
    }

    /// What another backend would be told before the statement is used.
    fn recalled(unnamed: &mut Unnamed) -> String {
        unnamed.moved();
        match unnamed.ahead() {
            Ahead::Nothing => "nothing".to_owned(),
            Ahead::Parse(statement) => String::from_utf8_lossy(&statement.text).into_owned(),
            Ahead::Close => "close".to_owned(),
        }
    }

    #[test]
    fn the_last_one_that_was_made_is_the_session_s() {
        let mut unnamed = parsed("one");
        unnamed.sent_parse(b"\0two\0\0\0");
        unnamed.sent_parse(b"\0three\0\0\0");
        unnamed.parsed(&Rc::default());
        // The third was skipped.
        unnamed.failed(Aftermath {
            dropped: 1,
            ..NOTHING
        });
        unnamed.answered();
        assert_eq!(recalled(&mut unnamed), "two");
    }

    #[test]
    fn one_that_failed_does_away_with_the_one_before() {
        let mut unnamed = parsed("one");
        unnamed.sent_parse(b"\0two\0\0\0");
        unnamed.failed(Aftermath {
            unmade: true,
            dropped: 1,
            ..NOTHING
        });
        assert_eq!(recalled(&mut unnamed), "close");
    }

    #[test]
    fn a_simple_query_and_a_close_do_away_with_it() {
        let mut unnamed = parsed("one");
        unnamed.sent_query(true);
        assert_eq!(recalled(&mut unnamed), "close");
        let mut unnamed = parsed("one");
        unnamed.sent_query(false);
        unnamed.answered();
        assert_eq!(recalled(&mut unnamed), "close");
        let mut unnamed = parsed("one");
        unnamed.sent_close();
        unnamed.closed();
        assert_eq!(recalled(&mut unnamed), "close");
    }

    #[test]
    fn what_can_t_be_told_is_asked() {
        let mut unnamed = parsed("one");
        unnamed.sent_parse(b"\0two\0\0\0");
        unnamed.failed(Aftermath {
            doubtful: true,
            dropped: 1,
            ..NOTHING
        });
        assert!(unnamed.is_in_doubt());
        unnamed.settle(true);
        assert_eq!(recalled(&mut unnamed), "one");
        unnamed.settle(false);
        assert_eq!(recalled(&mut unnamed), "close");
    }

    #[test]
    fn it_is_brought_once_and_again_after_a_failure_that_may_have_skipped_it() {
        let mut unnamed = parsed("one");
        assert_eq!(recalled(&mut unnamed), "one");
        assert!(matches!(unnamed.ahead(), Ahead::Nothing));
        unnamed.failed(NOTHING);
        assert!(matches!(unnamed.ahead(), Ahead::Parse(_)));
    }
}
