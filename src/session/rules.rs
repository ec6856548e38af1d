//! Owns the rules that stand before a lease: `forbid_implicit` and `max_leases`.

use crate::events::Happening;
use crate::lease::Entry;
use crate::ledger::Reserved;
use crate::session::Session;
use crate::wire::reply::{ClientError, Fault};

/// What a client hears whose session ends inside its transaction.
pub(super) fn idle_in_transaction() -> Box<ClientError> {
    let text =
        "terminating connection: the session idled in a transaction for longer than park_after";
    let hint =
        "A rule of pgvalet has idle_in_transaction = \"close\": end transactions before waiting.";
    Box::new(ClientError::new(Fault::Proxy, "57P01", text).hint(hint))
}

impl Session {
    /// Whether some rule has a say in whether this session gets a lease.
    pub(super) fn is_ruled(&self) -> bool {
        let rules = &self.shared.config.rules;
        !rules.is_empty()
            && rules
                .iter()
                .any(|rule| rule.implicit.is_some() || rule.max_leases.is_some())
    }

    /// Admits the session to a lease, as far as rules go; where a rule bounds leases, the place is its as long as the
    /// value lives, or until the lease is in the book.
    ///
    /// # Errors
    /// What the client hears: 55000 for a lease without a scope, 53300 beyond `max_leases`.
    pub(super) fn admit(&self) -> Result<Option<Reserved>, ClientError> {
        if !self.is_ruled() {
            return Ok(None);
        }
        let (shared, policies) = (&self.shared, self.shared.config.policies());
        let book = shared.ledger.book();
        let entry = book.entry(self.slot);
        if let Some(rule) = policies.forbidding(entry)
            && entry.scope().is_none()
        {
            self.tell_refused(&rule.name, entry, "55000");
            return Err(implicit(&rule.name, &entry.owner().0));
        }
        let Some((index, bound)) = policies.bound(entry) else {
            return Ok(None);
        };
        // Each data thread has its share, as of backends.
        let share = bound.div_ceil(shared.config.threads);
        let held = book.held_under(index, self.slot, &policies) + shared.ledger.reserved(index);
        if held >= share {
            let rule = &policies.rules[index];
            self.tell_refused(&rule.name, entry, "53300");
            return Err(beyond(&rule.name, bound, &entry.owner().0));
        }
        Ok(Some(shared.ledger.reserve(index)))
    }

    fn tell_refused(&self, rule: &str, entry: &Entry, sqlstate: &'static str) {
        self.shared.metrics.refused(rule);
        self.shared.events.tell(Happening::Refused {
            rule: rule.to_owned(),
            session: self.id.get(),
            owner: entry.owner().0.to_string(),
            sqlstate,
        });
    }
}

fn implicit(rule: &str, owner: &str) -> ClientError {
    let text =
        format!("rule \"{rule}\" forbids \"{owner}\" a backend outside of an explicit scope");
    ClientError::new(Fault::Client, "55000", text).hint(
        "Put SET pgvalet.scope = 'name' before the work and RESET pgvalet.scope behind it, or change forbid_implicit.",
    )
}

fn beyond(rule: &str, bound: usize, owner: &str) -> ClientError {
    let text = format!("rule \"{rule}\" allows at most {bound} leases, and they are held");
    ClientError::new(Fault::Client, "53300", text)
        .detail(format!("The session belongs to \"{owner}\"."))
        .hint("`pgvalet leases` shows who holds them; max_leases of the rule sets the bound.")
}
