//! What keeps the relay fast, counted rather than timed: system calls and allocations of a round trip in the steady state.

#[path = "../support/mod.rs"]
mod support;

mod allocations;
mod exchange;
mod system_calls;
