//! Owns what is read from SQL text without a parser: a fingerprint for people, and what to watch for.
//!
//! Refuses to decide what a statement does: PostgreSQL itself is asked for that.

mod fingerprint;
mod watch;

pub use fingerprint::fingerprint;
pub use watch::{Watch, watch};
