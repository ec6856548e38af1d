//! Owns what SHOW of a virtual setting answers, and the shape of all our answers.

use crate::session::Session;
use crate::view::{LeaseView, duration};
use crate::wire::rows;
use crate::wire::sql::virtual_setting::{Change, Meaning, Shown, Switch, Verb, Virtual};

/// The columns of `SHOW pgvalet.session`.
const SESSION: [&str; 9] = [
    "session",
    "owner",
    "evidence",
    "claim",
    "state",
    "scope",
    "pins",
    "backend",
    "generation",
];

/// The columns of `SHOW pgvalet.leases` and `SHOW pgvalet.leaks`.
const LEASES: [&str; 15] = [
    "session",
    "database",
    "application",
    "owner",
    "evidence",
    "claim",
    "state",
    "verdict",
    "basis",
    "since",
    "idle",
    "last_statement",
    "where",
    "pins",
    "backend",
];

/// The command tag.
pub(super) const fn tag(verb: Verb) -> &'static str {
    match verb {
        Verb::Set => "SET",
        Verb::Reset => "RESET",
        Verb::Call => "SELECT 1",
        Verb::Show => "SHOW",
    }
}

/// The value that `set_config` gives back.
pub(super) fn value(change: &Change) -> String {
    match change {
        Change::Owner(name) | Change::Scope(name) => name.as_deref().unwrap_or_default().to_owned(),
        Change::Pin(switch) => on_or_off(*switch == Switch::On).to_owned(),
    }
}

fn on_or_off(on: bool) -> &'static str {
    if on { "on" } else { "off" }
}

/// The columns of a statement's rows; none when it has no rows.
fn columns(found: &Virtual) -> &'static [&'static str] {
    match (&found.meaning, found.verb) {
        (Meaning::Change(_), Verb::Call) => &["set_config"],
        (Meaning::Change(_), Verb::Set | Verb::Reset | Verb::Show) => &[],
        (Meaning::Show(Shown::Session), _) => &SESSION,
        (Meaning::Show(Shown::Leases | Shown::Leaks), _) => &LEASES,
        (Meaning::Show(Shown::Owner), _) => &["pgvalet.owner"],
        (Meaning::Show(Shown::Scope), _) => &["pgvalet.scope"],
        (Meaning::Show(Shown::Pin), _) => &["pgvalet.pin"],
    }
}

impl Session {
    /// Appends the description of a statement's rows, if it has any.
    pub(super) fn describe(&self, out: &mut Vec<u8>, found: &Virtual) {
        match columns(found) {
            [] => {}
            columns => rows::row_description(out, columns),
        }
    }

    /// The same, or NoData.
    pub(super) fn describe_or_not(&self, out: &mut Vec<u8>, found: &Virtual) {
        let before = out.len();
        self.describe(out, found);
        if out.len() == before {
            rows::no_data(out);
        }
    }

    /// The rows that SHOW answers.
    pub(super) fn shown(&self, shown: Shown) -> Vec<Vec<Option<String>>> {
        match shown {
            Shown::Leases => self.leases(|_| true),
            Shown::Leaks => self.leases(|view| matches!(view.verdict, "parked" | "pinned")),
            Shown::Session | Shown::Owner | Shown::Scope | Shown::Pin => vec![self.own_row(shown)],
        }
    }

    /// The leases of this session's own user, as PostgreSQL shows a user its own part of `pg_stat_activity`. The one
    /// that has been idle for longest comes first.
    fn leases(&self, wanted: impl Fn(&LeaseView) -> bool) -> Vec<Vec<Option<String>>> {
        let ledger = &self.shared.ledger;
        let (book, policies) = (ledger.book(), self.shared.config.policies());
        let own = book.entries().filter(|(_, entry)| {
            entry.state.backend().is_some() && entry.profile.user == self.pool.user
        });
        let views = own.map(|(slot, _)| LeaseView::of(ledger, slot, &policies));
        let mut views: Vec<_> = views.filter(wanted).collect();
        views.sort_by_key(|view| (std::cmp::Reverse(view.idle), view.id));
        views.into_iter().map(row).collect()
    }

    fn own_row(&self, shown: Shown) -> Vec<Option<String>> {
        let ledger = &self.shared.ledger;
        let book = ledger.book();
        let entry = book.entry(self.slot);
        let text = |text: Option<&str>| vec![Some(text.unwrap_or_default().to_owned())];
        match shown {
            Shown::Leases | Shown::Leaks => Vec::new(),
            Shown::Owner => text(entry.declared_owner()),
            Shown::Scope => text(entry.scope()),
            Shown::Pin => {
                let pinned = self
                    .rare
                    .sticky
                    .iter()
                    .any(|pin| pin == crate::lease::Pin::Explicit);
                text(Some(on_or_off(pinned)))
            }
            Shown::Session => {
                let policies = self.shared.config.policies();
                let view = LeaseView::of(ledger, self.slot, &policies);
                vec![
                    Some(view.session.to_string()),
                    Some(view.owner),
                    Some(view.evidence.to_owned()),
                    Some(view.claim.to_owned()),
                    Some(view.state.to_owned()),
                    entry.scope().map(str::to_owned),
                    Some(view.pins.join(", ")),
                    view.backend.map(|pid| pid.to_string()),
                    Some(view.generation.to_string()),
                ]
            }
        }
    }
}

/// A lease in the columns of [`LEASES`].
fn row(view: LeaseView) -> Vec<Option<String>> {
    vec![
        Some(view.session.to_string()),
        Some(view.database),
        Some(view.application),
        Some(view.owner),
        Some(view.evidence.to_owned()),
        Some(view.claim.to_owned()),
        Some(view.state.to_owned()),
        Some(view.verdict.to_owned()),
        view.basis.map(str::to_owned),
        Some(view.since),
        Some(duration(view.idle)),
        view.last_statement,
        view.place,
        Some(view.pins.join(", ")),
        view.backend.map(|pid| pid.to_string()),
    ]
}
