//! Owners: who is said to hold a session, over SQL, at startup and in comments; and the rules for them; what is told of them,
//! and what is done about all of them at once.

#[path = "../support/mod.rs"]
mod support;

mod checks;
mod comments;
mod events;
mod fences;
mod fleet;
mod leaks;
mod prepared;
mod reloads;
mod rules;
mod scenario;
mod shows;
mod stage;
mod startup;
mod streams;
mod virtual_settings;
