//! pgvalet: a sidecar connection proxy for PostgreSQL that knows who holds each session, and gives parked ones back.

pub mod admin;
pub mod backend;
pub mod cli;
pub mod clock;
pub mod config;
pub mod demo;
pub mod drain;
pub mod events;
pub mod executor;
pub mod lease;
pub mod ledger;
pub mod metrics;
pub mod net;
pub mod pacer;
pub mod process;
pub mod reload;
pub mod serve;
pub mod session;
pub mod shard;
pub mod view;
pub mod wire;

pub use serve::{Certificates, Listeners, RunError, run};
