//! Owns the counts of what sessions of ours have changed for others: by the name of what they changed, on all data threads.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// The count of one name.
pub type Count = Arc<AtomicU64>;

/// Counts by name, as long as somebody has one.
#[derive(Clone, Debug, Default)]
pub struct Counts(Arc<Mutex<HashMap<Box<str>, Count>>>);

impl Counts {
    /// The count of `name`, which all who ask for it share.
    #[must_use]
    pub fn of(&self, name: &str) -> Count {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Names that nobody asks about any more.
        all.retain(|_, count| Arc::strong_count(count) > 1);
        all.entry(name.into()).or_default().clone()
    }

    /// One more for each name that it concerns.
    pub fn add(&self, concerns: impl Fn(&str) -> bool) {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (_, count) in all.iter().filter(|(name, _)| concerns(name)) {
            count.fetch_add(1, Ordering::Release);
        }
    }
}

/// What sessions of ours have changed that others must learn of.
#[derive(Clone, Debug, Default)]
pub struct Changes {
    /// What was defined in a database.
    pub databases: Counts,
    /// The same of what makes no state in a session, such as a table.
    pub tables: Counts,
    /// What became of a role.
    pub roles: Counts,
}
