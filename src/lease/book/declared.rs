//! Owns what a session itself says of its owner, and how that ranks among the evidence.

use std::rc::Rc;

use crate::lease::book::{Claim, ClaimState, Entry, Evidence};
use crate::lease::comment;
use crate::lease::id::Moment;

/// What the session itself said: over SQL, and in its startup packet.
#[derive(Clone, Debug, Default)]
pub struct Declared {
    /// `SET pgvalet.owner`, or its RESET.
    pub sql: Option<Claim>,
    /// The startup option `pgvalet.owner`.
    pub startup: Option<Rc<str>>,
    /// `SET pgvalet.scope`: the explicit scope that is open.
    pub scope: Option<Rc<str>>,
}

impl Entry {
    /// Takes in `pgvalet.owner`: `None` says that the session rests. The same owner again goes on holding it.
    pub fn declare_owner(&mut self, owner: Option<&str>, now: Moment) {
        let declared = self.declared.get_or_insert_default();
        let known = declared.sql.as_ref();
        if known.is_some_and(|claim| claim.owner.as_deref() == owner) {
            return;
        }
        let state = if owner.is_some() {
            ClaimState::Held
        } else {
            ClaimState::Resting
        };
        declared.sql = Some(Claim {
            owner: owner.map(Rc::from),
            state,
            since: owner.is_some().then_some(now),
            place: None,
            source: None,
        });
    }

    /// Takes in `pgvalet.scope`.
    pub fn declare_scope(&mut self, scope: Option<&str>) {
        if scope.is_some() || self.declared.is_some() {
            self.declared.get_or_insert_default().scope = scope.map(Rc::from);
        }
    }

    /// Takes in the startup option `pgvalet.owner`.
    pub fn declare_startup(&mut self, owner: &str) {
        self.declared.get_or_insert_default().startup = Some(owner.into());
    }

    /// The explicit scope that is open.
    #[must_use]
    pub fn scope(&self) -> Option<&str> {
        self.declared.as_ref()?.scope.as_deref()
    }

    /// What `SHOW pgvalet.owner` answers: what was declared last, over SQL or at startup; empty while it rests.
    #[must_use]
    pub fn declared_owner(&self) -> Option<&str> {
        let declared = self.declared.as_ref()?;
        match &declared.sql {
            Some(claim) => claim.owner.as_deref(),
            None => declared.startup.as_deref(),
        }
    }

    /// The app's word that counts: over HTTP, else over SQL.
    #[must_use]
    pub fn standing_claim(&self) -> Option<&Claim> {
        let sql = || self.declared.as_ref()?.sql.as_ref();
        self.claim.as_deref().or_else(sql)
    }

    /// Who holds the session, and what that rests on: the strongest evidence that there is.
    #[must_use]
    pub fn owner(&self) -> (Rc<str>, Evidence) {
        let claimed = |claim: Option<&Claim>| claim.and_then(|claim| claim.owner.clone());
        if let Some(owner) = claimed(self.claim.as_deref()) {
            return (owner, Evidence::Claim);
        }
        if let Some(declared) = &self.declared {
            if let Some(owner) = claimed(declared.sql.as_ref()) {
                return (owner, Evidence::Sql);
            }
            if let Some(owner) = &declared.startup {
                return (owner.clone(), Evidence::Startup);
            }
        }
        if let Some(owner) = comment::tags(&self.statement).owner() {
            return (owner.into(), Evidence::Comment);
        }
        if !self.profile.application.is_empty() {
            return (self.profile.application.clone(), Evidence::ApplicationName);
        }
        match &self.process {
            Some(process) => (process.command.as_str().into(), Evidence::Process),
            None => ("unknown".into(), Evidence::None),
        }
    }

    /// Where in the app's code the owner is: as the claim says, else as the last statement's comment does.
    #[must_use]
    pub fn place(&self) -> Option<String> {
        let claimed = self
            .standing_claim()
            .and_then(|claim| claim.place.as_deref());
        claimed
            .map(str::to_owned)
            .or_else(|| comment::tags(&self.statement).source_location)
    }
}
