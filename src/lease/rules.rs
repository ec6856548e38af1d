//! Owns the rules for owners: which sessions a rule is about, and what it decides.
//!
//! Of several rules that are about a session, the first one that sets a key decides it; what none sets is as for everybody.

use std::time::Duration;

use crate::lease::book::Entry;
use crate::lease::id::Moment;
use crate::lease::reload::Method;
use crate::lease::state::LeaseState;

/// A pattern of names, in which `*` stands for any run of characters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern(pub Box<str>);

impl Pattern {
    /// Whether `text` is such a name.
    #[must_use]
    pub fn matches(&self, text: &str) -> bool {
        let mut parts = self.0.split('*');
        let first = parts.next().unwrap_or_default();
        let Some(mut rest) = text.strip_prefix(first) else {
            return false;
        };
        let Some(last) = parts.next_back() else {
            return rest.is_empty();
        };
        for part in parts {
            match rest.find(part) {
                Some(at) => rest = &rest[at + part.len()..],
                None => return false,
            }
        }
        rest.ends_with(last)
    }
}

/// Whether a session that a rule is about may take a lease without an explicit scope.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Implicit {
    Allowed,
    Forbidden,
}

/// What happens to a session that is parked inside a transaction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IdleInTransaction {
    /// It shows, and nothing else.
    #[default]
    Report,
    /// The session ends; its transaction is rolled back.
    Close,
}

/// One rule. An absent pattern is about every session, an absent value decides nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    /// How errors and reports call it.
    pub name: Box<str>,
    pub owner: Option<Pattern>,
    pub application: Option<Pattern>,
    pub database: Option<Pattern>,
    pub user: Option<Pattern>,
    pub park_after: Option<Duration>,
    /// Zero is never.
    pub return_after: Option<Duration>,
    pub return_method: Option<Method>,
    /// The most leases that sessions of this rule may hold together.
    pub max_leases: Option<usize>,
    pub implicit: Option<Implicit>,
    pub idle_in_transaction: Option<IdleInTransaction>,
}

impl Rule {
    /// Whether it is about this session.
    #[must_use]
    pub fn is_about(&self, entry: &Entry) -> bool {
        let fits = |pattern: &Option<Pattern>, text: &str| {
            pattern.as_ref().is_none_or(|pattern| pattern.matches(text))
        };
        let profile = &entry.profile;
        fits(&self.database, &profile.database)
            && fits(&self.user, &profile.user)
            && fits(&self.application, &profile.application)
            && self
                .owner
                .as_ref()
                .is_none_or(|pattern| pattern.matches(&entry.owner().0))
    }
}

/// What holds for one session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Idle time from which it counts as parked.
    pub park_after: Duration,
    /// Parked time after which its lease is returned; zero is never.
    pub return_after: Duration,
    pub return_method: Method,
    pub idle_in_transaction: IdleInTransaction,
}

/// What holds for everybody, and the rules for some.
#[derive(Clone, Copy, Debug)]
pub struct Policies<'a> {
    pub general: Policy,
    pub rules: &'a [Rule],
}

impl<'a> Policies<'a> {
    /// What holds for this session.
    #[must_use]
    pub fn of(&self, entry: &Entry) -> Policy {
        let mut policy = self.general;
        // From the last to the first, so that the first has the last word.
        for rule in self.rules.iter().rev().filter(|rule| rule.is_about(entry)) {
            policy.park_after = rule.park_after.unwrap_or(policy.park_after);
            policy.return_after = rule.return_after.unwrap_or(policy.return_after);
            policy.return_method = rule.return_method.unwrap_or(policy.return_method);
            policy.idle_in_transaction = rule
                .idle_in_transaction
                .unwrap_or(policy.idle_in_transaction);
        }
        policy
    }

    /// The rule that forbids this session a lease outside of an explicit scope.
    #[must_use]
    pub fn forbidding(&self, entry: &Entry) -> Option<&'a Rule> {
        let decides = |rule: &&Rule| rule.implicit.is_some() && rule.is_about(entry);
        let rule = self.rules.iter().find(decides)?;
        (rule.implicit == Some(Implicit::Forbidden)).then_some(rule)
    }

    /// The number of the rule that bounds the leases of this session and its like, and the bound.
    #[must_use]
    pub fn bound(&self, entry: &Entry) -> Option<(usize, usize)> {
        let mut rules = self.rules.iter().enumerate();
        rules.find_map(|(index, rule)| {
            let bound = rule.max_leases?;
            rule.is_about(entry).then_some((index, bound))
        })
    }

    /// The shortest idle time from which any session may be parked.
    #[must_use]
    pub fn soonest(&self) -> Duration {
        let rules = self.rules.iter().filter_map(|rule| rule.park_after);
        rules.fold(self.general.park_after, Duration::min)
    }

    /// The shortest time after which something is to be done about a parked session; `None` when nothing ever is.
    #[must_use]
    pub fn patience(&self) -> Option<Duration> {
        let returns = self.rules.iter().filter_map(|rule| rule.return_after);
        let returns = returns.chain([self.general.return_after]);
        let returns = returns.filter(|after| !after.is_zero());
        let closes = self
            .rules
            .iter()
            .any(|rule| rule.idle_in_transaction == Some(IdleInTransaction::Close));
        returns.chain(closes.then(|| self.soonest())).min()
    }
}

/// What is to be done about a session that was parked for too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// Its lease is returned.
    Return(Method),
    /// The session ends, inside its transaction.
    End,
}

/// From when on something is due for a parked session if nothing changes; the last moment where nothing ever is.
#[must_use]
pub fn due_from(entry: &Entry, policy: Policy) -> Moment {
    let Policy {
        park_after,
        return_after,
        ..
    } = policy;
    let closes = policy.idle_in_transaction == IdleInTransaction::Close;
    match entry.state {
        LeaseState::InTransaction { since, .. } if closes => since.after(park_after),
        LeaseState::Idle { since, .. } if !return_after.is_zero() && entry.pins.is_empty() => {
            since.after(park_after.saturating_add(return_after))
        }
        LeaseState::InTransaction { .. }
        | LeaseState::Idle { .. }
        | LeaseState::Ended { .. }
        | LeaseState::Active { .. }
        | LeaseState::Returning { .. } => Moment::LAST,
    }
}

/// What is due at `now` for a session that is parked.
#[must_use]
pub fn due(entry: &Entry, policy: Policy, now: Moment) -> Option<Due> {
    if now < due_from(entry, policy) {
        return None;
    }
    match entry.state {
        LeaseState::InTransaction { .. } => Some(Due::End),
        LeaseState::Idle { .. } => Some(Due::Return(policy.return_method)),
        LeaseState::Ended { .. } | LeaseState::Active { .. } | LeaseState::Returning { .. } => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::lease::book::{Book, Profile};
    use crate::lease::id::{Moment, SessionId};

    fn matches(pattern: &str, text: &str) -> bool {
        Pattern(pattern.into()).matches(text)
    }

    #[test]
    fn a_star_stands_for_any_run() {
        for text in ["dispatcher", "dispatcher (Thread)"] {
            assert!(matches("dispatcher*", text) && matches("*", text) && matches("*patch*", text));
        }
        assert!(matches("a*b*c", "abbc") && matches("", "") && matches("a*a", "aa"));
        assert!(!matches("a*a", "a") && !matches("ab", "abc") && !matches("a*b", "ac"));
    }

    fn rule(owner: &str, set: impl FnOnce(&mut Rule)) -> Rule {
        let mut rule = Rule {
            owner: Some(Pattern(owner.into())),
            ..Rule::default()
        };
        set(&mut rule);
        rule
    }

    #[test]
    fn the_first_rule_that_sets_a_key_decides_it() {
        let second = Duration::from_secs(1);
        let rules = [
            rule("job-*", |rule| rule.park_after = Some(second)),
            rule("*", |rule| {
                rule.park_after = Some(second * 9);
                rule.return_after = Some(second * 2);
                rule.implicit = Some(Implicit::Forbidden);
                rule.max_leases = Some(3);
            }),
        ];
        let general = Policy {
            park_after: second * 5,
            return_after: Duration::ZERO,
            return_method: Method::Detach,
            idle_in_transaction: IdleInTransaction::Report,
        };
        let policies = Policies {
            general,
            rules: &rules,
        };
        let mut book = Book::default();
        let profile = Profile {
            database: "d".into(),
            user: "u".into(),
            application: "job-7".into(),
            client: crate::lease::ClientAddress::Unix,
        };
        let slot = book.open(SessionId::new(1), profile, Moment::default());
        let entry = book.entry(slot);
        let policy = policies.of(entry);
        assert_eq!(
            (policy.park_after, policy.return_after),
            (second, second * 2)
        );
        assert_eq!(policies.bound(entry), Some((1, 3)));
        assert!(policies.forbidding(entry).is_some());
        assert_eq!(
            (policies.soonest(), policies.patience()),
            (second, Some(second * 2))
        );
    }

    proptest! {
        #[test]
        fn any_pattern_is_matched_without_a_panic(pattern in "[ab*é]{0,8}", text in "[abé]{0,12}") {
            let found = matches(&pattern, &text);
            if !pattern.contains('*') {
                prop_assert_eq!(found, pattern == text);
            }
        }
    }
}
