//! Owns what is different about replication connections (protocol chapter 55.4): a backend of their own from the login to
//! the end, in no pool, never returned, and closed with the client.
//!
//! Their traffic goes through the same relay as everybody's: a walsender speaks the simple protocol, and COPY both ways.

use std::rc::Rc;

use crate::backend::{Baseline, Lent, Pool};
use crate::lease::{Event, Pin, Status};
use crate::session::{Phase, Session, Shared};
use crate::wire::extended::write_frame;
use crate::wire::reply::{ClientError, Fault};

/// What a startup packet's `replication` asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wish {
    /// An ordinary session.
    None,
    /// Physical replication, of the whole cluster.
    Physical,
    /// Logical replication, and SQL, in one database.
    Logical,
}

impl Wish {
    /// Reads the value as PostgreSQL does.
    pub fn read(value: Option<&str>) -> Result<Self, ClientError> {
        let Some(value) = value else {
            return Ok(Self::None);
        };
        if value == "database" {
            return Ok(Self::Logical);
        }
        match boolean(value) {
            Some(true) => Ok(Self::Physical),
            Some(false) => Ok(Self::None),
            None => {
                let text = format!("invalid value for parameter \"replication\": \"{value}\"");
                let hint = "Valid values are: \"false\", 0, \"true\", 1, \"database\".";
                Err(ClientError::new(Fault::Client, "22023", text).hint(hint))
            }
        }
    }

    const fn word(self) -> &'static str {
        match self {
            Self::None => "false",
            Self::Physical => "true",
            Self::Logical => "database",
        }
    }
}

/// PostgreSQL's `parse_bool`: any beginning that can mean one word only, in any case.
fn boolean(text: &str) -> Option<bool> {
    let text = text.to_ascii_lowercase();
    let begins = |word: &str, least: usize| text.len() >= least && word.starts_with(&text);
    if text == "1" || begins("true", 1) || begins("yes", 1) || begins("on", 2) {
        Some(true)
    } else if text == "0" || begins("false", 1) || begins("no", 1) || begins("off", 2) {
        Some(false)
    } else {
        None
    }
}

/// Opens the backend of a replication connection: the login says whether PostgreSQL allows it.
pub(super) async fn open(
    shared: &Rc<Shared>,
    pool: &Rc<Pool>,
    baseline: &Baseline,
    application: &str,
    wish: Wish,
) -> Result<Lent, ClientError> {
    let baseline = Rc::new(baseline.for_replication(wish.word()));
    let generation = shared.ledger.book().generation();
    let opened = shared
        .pools
        .open_walsender(pool, &baseline, application, generation)
        .await?;
    opened.ok_or_else(|| {
        let max = shared.config.max_replication;
        let text = "too many replication connections through pgvalet";
        ClientError::new(Fault::Proxy, "53300", text).hint(format!(
            "`max_replication` of pgvalet sets the bound; it is {max}."
        ))
    })
}

impl Session {
    /// Begins with this backend, for good.
    pub(super) fn replicate(&mut self, lent: Lent) {
        self.rare.baseline = lent.backend.baseline.clone();
        self.rare.sticky.add(Pin::Replication);
        self.hold(lent);
        self.phase = Phase::Resting;
        self.step(Event::Ready(Status::Idle));
        let mut book = self.shared.ledger.book_mut();
        book.entry_mut(self.slot).pins.add(Pin::Replication);
    }

    /// Whether its backend is a walsender.
    pub(super) const fn is_replication(&self) -> bool {
        self.rare.sticky.contains(Pin::Replication)
    }

    /// Tells a walsender that the client is done: it would log a lost connection otherwise.
    pub(super) fn say_goodbye(&self, lent: &mut Lent) {
        if self.is_replication() && self.to_backend.is_empty() && self.inbound.is_between_frames() {
            let mut terminate = Vec::new();
            write_frame(&mut terminate, b'X', b"");
            // It is closed right after, whether it heard it or not.
            let _ = lent.backend.stream.try_write(&terminate);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_are_read_as_postgresql_reads_them() {
        for yes in ["true", "TRUE", "t", "on", "yes", "y", "1"] {
            assert_eq!(Wish::read(Some(yes)).unwrap(), Wish::Physical, "{yes}");
        }
        for no in ["false", "F", "off", "of", "no", "0"] {
            assert_eq!(Wish::read(Some(no)).unwrap(), Wish::None, "{no}");
        }
        assert_eq!(Wish::read(Some("database")).unwrap(), Wish::Logical);
        assert_eq!(Wish::read(None).unwrap(), Wish::None);
        for bad in ["", "o", "2", "Database", "truely"] {
            assert_eq!(Wish::read(Some(bad)).unwrap_err().code, "22023", "{bad}");
        }
    }
}
