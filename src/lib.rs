//! pgvalet: a sidecar connection proxy for PostgreSQL that knows who holds each session, and gives parked ones back.

pub mod cli;
pub mod clock;
pub mod config;
pub mod demo;
pub mod lease;
pub mod ledger;
pub mod net;
pub mod wire;
