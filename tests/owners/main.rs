//! Owners: who is said to hold a session, over SQL, at startup and in comments; and the rules for them.

#[path = "../support/mod.rs"]
mod support;

mod comments;
mod leaks;
mod prepared;
mod reloads;
mod rules;
mod stage;
mod startup;
mod virtual_settings;
