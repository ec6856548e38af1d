//! Real clients, each doing what it does against PostgreSQL itself.
//!
//! With `PGVALET_TEST_NO_SKIP=1` a client that can't be had is a failure.

#[path = "../support/mod.rs"]
mod support;

mod apps;
mod dump;
mod libpq;
mod node;
mod pgbench;
mod programs;
mod protocol;
mod psql;
mod python;
mod replication;
mod tokio_postgres;
