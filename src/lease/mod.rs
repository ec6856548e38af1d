//! Owns the rules of leases: who holds which backend, what state a lease is in, and what verdict it gets.
//!
//! Refuses IO, clocks and tasks: `now` is always an argument, so that every rule can be tested by itself.

pub mod book;
pub mod comment;
pub mod history;
pub mod id;
pub mod policy;
pub mod reload;
pub mod rules;
pub mod state;

pub use book::{
    Book, BookError, Claim, ClaimState, ClientAddress, Entry, Evidence, LastStatement, Pin, Pins,
    Process, Profile, Slot,
};
pub use id::{BackendId, Generation, Moment, SessionId};
pub use policy::{Basis, Verdict};
pub use state::{Cause, Event, IllegalTransition, LeaseState, Status};
