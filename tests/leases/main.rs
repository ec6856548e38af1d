//! Leases: who holds them, claims on them, their return, and what a session keeps across it.

#[path = "../support/mod.rs"]
mod support;

mod claims;
mod differential;
mod hazards;
mod listen_shared;
mod moves;
mod pins;
mod probes;
mod problems;
mod random_programs;
mod reloads;
mod returns;
mod settings;
mod shapes;
mod sql_prepared;
mod stage;
mod standby;
mod statements;
mod stress;
mod tenants;
mod views;
