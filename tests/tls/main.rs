//! TLS on both legs: libpq's modes, certificates that are trusted or not, channel binding, reloads, and who stays outside.

#[path = "../clients/programs.rs"]
#[allow(dead_code, reason = "the programs of other tests, too")]
mod programs;
#[path = "../support/mod.rs"]
mod support;

mod backends;
mod certificates;
mod clients;
mod drivers;
mod encrypted;
mod fakes;
mod handshakes;
mod proofs;
mod secured;
