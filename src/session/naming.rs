//! Owns the `application_name` under which PostgreSQL sees the session: its own on every backend that it takes over, and after
//! a RESET, too, which goes back to that of whoever opened the backend.

use std::rc::Rc;

use crate::backend::Parameters;
use crate::backend::capture::write_statement;
use crate::backend::parameters::APPLICATION_NAME;
use crate::session::leg::Spill;
use crate::session::relay::End;
use crate::session::returning::last_words;
use crate::session::{Name, Session};
use crate::wire::cut::Verdict;
use crate::wire::extended::write_frame;
use crate::wire::reply;
use crate::wire::sql;

impl Session {
    /// Has a backend that was taken over report what the client was told, and the client hear what differs. Another name is
    /// given ahead of whatever runs first there, without waiting for an answer.
    pub(super) fn agree_on_reports(&mut self) {
        let Some(lent) = &mut self.lent else { return };
        let (reported, told) = (&mut lent.backend.parameters, &self.rare.told);
        self.rare.unnamed = false;
        if Rc::ptr_eq(reported, told) {
            return;
        }
        let name = told
            .application()
            .filter(|name| reported.application() != Some(name));
        if let Some(name) = name {
            self.to_backend.push(&naming(name));
            self.tracker.sent_own(None);
        }
        if reported.are_alike(told) {
            // Whoever goes from one of these backends to another needn't compare, and sessions share what they were told.
            *reported = told.clone();
            return;
        }
        if let Some(name) = name {
            Rc::make_mut(reported).set(APPLICATION_NAME, name);
        }
        tell_news(&mut self.to_client, reported, told);
    }

    /// Notes whether the backend goes back to another name than the session's own with this text.
    #[inline]
    pub(super) fn note_name(&mut self, text: &[u8]) {
        if self.rare.guest && !self.tracker.is_skipping() && sql::resets_the_name(text) {
            self.rare.unnamed = true;
            self.rare.resetting = true;
        }
    }

    /// What goes ahead of the first frame behind such a text, where it may: within a pipeline, nothing may come between.
    pub(super) fn name_again(&mut self, kind: u8) -> Option<Vec<u8>> {
        let asks = matches!(kind, b'Q' | b'P' | b'B' | b'D' | b'F');
        if !asks || self.tracker.is_skipping() || !self.tracker.is_between_requests() {
            return None;
        }
        self.rare.unnamed = false;
        self.tracker.sent_own(None);
        Some(naming(&self.rare.application))
    }

    /// The backend goes by the name that we gave it.
    pub(super) fn hear_own_name(&mut self, name: &str) -> Verdict {
        if self.rare.name == Name::Foreign && *name == *self.rare.application {
            self.rare.name = Name::Own;
        }
        if let Some(lent) = &mut self.lent
            && lent.backend.parameters.application() != Some(name)
        {
            Rc::make_mut(&mut lent.backend.parameters).set(APPLICATION_NAME, name);
        }
        Verdict::Drop
    }

    /// The backend goes by another name from here on: the session's own choice, or that of whoever opened the backend.
    pub(super) fn hear_name(&mut self, value: &str) -> Verdict {
        let Some(lent) = &mut self.lent else {
            return Verdict::Pass;
        };
        let own = self.rare.name != Name::Own && *value == *lent.backend.application;
        if own {
            self.rare.name = Name::Foreign;
        }
        let value = if own { &*self.rare.application } else { value };
        let known = lent.backend.parameters.application() == Some(value);
        if !known {
            Rc::make_mut(&mut lent.backend.parameters).set(APPLICATION_NAME, value);
        }
        self.shared
            .ledger
            .book_mut()
            .entry_mut(self.slot)
            .profile
            .application = value.into();
        let mut report = Vec::new();
        reply::parameter_status(&mut report, APPLICATION_NAME, value);
        match (own, known) {
            (false, _) => Verdict::Pass,
            (true, true) => Verdict::Drop,
            (true, false) => Verdict::Instead(report),
        }
    }

    /// Gives the backend the session's own name again, after a RESET went back to its opener's. In most cases the client was
    /// told its own name already.
    pub(super) async fn rename(&mut self) -> Result<(), End> {
        self.rare.name = Name::Own;
        self.rare.unnamed = false;
        let Some(lent) = &mut self.lent else {
            return Ok(());
        };
        let mut request = Vec::new();
        let text = "SELECT pg_catalog.set_config('application_name', $1, false)";
        write_statement(&mut request, text, Some(&self.rare.application));
        write_frame(&mut request, b'S', b"");
        let before = lent.backend.parameters.clone();
        let renamed = lent.backend.exchange(&request, 1).await;
        let answers = renamed.map_err(|error| End::Backend(Some(last_words(error))))?;
        tell_news(&mut self.to_client, &lent.backend.parameters, &before);
        let backend = lent.backend.cancel_target();
        self.notify(answers.notifications, &backend);
        Ok(())
    }
}

/// Tells a client that was told `told` what has changed since.
fn tell_news(to_client: &mut Spill, reported: &Parameters, told: &Parameters) {
    let mut news = Vec::new();
    for (name, value) in reported.news(told) {
        reply::parameter_status(&mut news, name, value);
    }
    to_client.push(&news);
}

/// A request that gives this name. Whatever `standard_conforming_strings` says, PostgreSQL reads it alike.
fn naming(name: &str) -> Vec<u8> {
    let quoted = name.replace('\\', r"\\").replace('\'', "''");
    let mut out = Vec::new();
    let text = format!("SET application_name = E'{quoted}'\0");
    write_frame(&mut out, b'Q', text.as_bytes());
    out
}
