//! Owns backends: opening them, lending them, asking what state they hold, restoring and scrubbing them.
//!
//! Refuses to know clients: a backend that is lent belongs to a session until it comes back through the pool.

pub mod cancel;
pub mod capture;
pub mod connect;
pub mod counts;
pub mod dial;
pub mod ears;
mod exchange;
pub mod hosts;
pub mod listener;
pub mod login;
pub mod lookup;
pub mod open;
pub mod parameters;
pub mod pool;
pub mod pools;
pub mod prepared;
pub mod reset;
pub mod restore;
pub mod state;
pub mod survey;
pub mod tokens;

use std::rc::Rc;

pub use dial::Dialer;
pub use exchange::{Answers, Lost, Pace};
pub use login::Proof;
pub use parameters::{Baseline, Parameters};
pub use pool::{Grant, Lent, Permit, Pool};
pub use pools::{Pools, Shares};
pub use state::State;
pub use tokens::Tokens;

use crate::backend::prepared::Prepared;
use crate::config::Target;
use crate::lease::{BackendId, Generation, Moment, SessionId};
use crate::ledger::CancelTarget;
use crate::net::Stream;
use crate::net::stream::Pulse;
use crate::wire::frame::Header;

/// Whose state a backend carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Home {
    /// Nobody's: it is as after login.
    Clean,
    /// This session's: warm for it, and to be scrubbed before anybody else gets it.
    Of(SessionId),
    /// That of a session that has moved on or ended: to be scrubbed before anybody gets it, unless it is what they want.
    Left,
}

/// One authenticated connection to PostgreSQL.
#[derive(Debug)]
pub struct Backend {
    pub id: BackendId,
    pub stream: Stream,
    /// What its host must be: else it is closed once nobody holds it.
    pub target: Target,
    /// What a cancel request needs: PostgreSQL's key, and how many are on their way.
    pub key: Rc<CancelTarget>,
    /// What PostgreSQL last reported of its settings.
    pub parameters: Rc<Parameters>,
    /// What PostgreSQL remarked at its login, as messages, until the pool has them.
    pub notices: Vec<u8>,
    /// The startup parameters that it was opened with: what RESET goes back to.
    pub baseline: Rc<Baseline>,
    pub home: Home,
    /// The settings that it carries, as the last probe found them.
    pub carries: Rc<State>,
    /// Its named prepared statements, whoever made them.
    pub prepared: Prepared,
    /// Sequences may remember something (`currval`, `lastval`) of whoever held it last.
    pub spent: bool,
    /// It may carry something that no probe sees, such as a custom setting that only a function named.
    pub opaque: bool,
    /// It has something that `DISCARD ALL` doesn't undo: it is closed rather than scrubbed.
    pub stained: bool,
    /// How long it may take to answer us.
    pub pace: Pace,
    /// When it last came back to the pool.
    pub rested: Moment,
    /// The `application_name` that it was opened with: RESET goes back to it.
    pub application: Box<str>,
    /// The generation that it was opened in.
    pub generation: Generation,
    /// Bytes that came behind the answers to a question of ours: unasked messages, or the beginning of one.
    pub unread: Vec<u8>,
}

impl Backend {
    /// What a cancel of its session needs to know.
    #[must_use]
    pub fn cancel_target(&self) -> Rc<CancelTarget> {
        self.key.clone()
    }

    /// Whether a session with this state may take it over from another one as it is.
    #[must_use]
    pub fn is_like_one_with(&self, state: &Rc<State>) -> bool {
        let known = !self.opaque && !self.stained;
        known && (Rc::ptr_eq(&self.carries, state) || self.carries == *state)
    }

    /// Whether no session has left settings on it, or anything that nobody knows.
    #[must_use]
    pub fn is_blank(&self) -> bool {
        !self.opaque && !self.stained && self.carries.is_empty()
    }

    /// Whether it can be lent: it is alive as far as the kernel knows. Unasked messages that came meanwhile are taken in.
    pub fn is_fit(&mut self) -> bool {
        if self.stream.pulse() == Pulse::Stirring {
            let mut chunk = [0; 4096];
            loop {
                match self.stream.try_read(&mut chunk) {
                    Ok(0) => return false,
                    Ok(count) => self.unread.extend_from_slice(&chunk[..count]),
                    Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
                    Err(_) => return false,
                }
            }
        }
        self.take_in_unread() && self.suits()
    }

    /// Whether its host is still what it must be, as far as PostgreSQL said.
    #[must_use]
    pub fn suits(&self) -> bool {
        // This is asked at each return: most upstreams don't care.
        if matches!(self.target, Target::Any | Target::PreferStandby) {
            return true;
        }
        let name = "default_transaction_read_only";
        let own = self.carries.settings.iter().any(|(known, _)| known == name);
        let misfit = hosts::unfit(self.target, &self.parameters, &self.baseline);
        // A session may have made it read-only for itself.
        misfit.is_none() || own && self.parameters.get("in_hot_standby") == Some("off")
    }

    /// Takes in unasked messages; `false` when there is anything else, or only a part of one.
    fn take_in_unread(&mut self) -> bool {
        let unread = std::mem::take(&mut self.unread);
        let mut rest = &unread[..];
        while !rest.is_empty() {
            let Ok(Some(header)) = Header::read(rest) else {
                return false;
            };
            let Some(body) = rest.get(5..header.total()) else {
                return false;
            };
            match header.kind {
                b'S' => self.note_parameter(body),
                b'N' => {}
                _ => return false,
            }
            rest = &rest[header.total()..];
        }
        true
    }

    /// PostgreSQL's major version; 0 where it isn't known.
    #[must_use]
    pub fn version(&self) -> u32 {
        self.parameters.version()
    }

    /// Takes in a ParameterStatus.
    pub fn note_parameter(&mut self, body: &[u8]) {
        if let Some((name, value)) = parameters::read_status(body)
            && self.parameters.get(name) != Some(value)
        {
            Rc::make_mut(&mut self.parameters).set(name, value);
        }
    }
}
