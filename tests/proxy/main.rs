//! What every client meets: the front door, the pool, outages, isolation from other sessions, cancellation, the end.

#[path = "../support/mod.rs"]
mod support;

mod boundaries;
mod cancel;
mod dialects;
mod drain;
mod front_door;
mod garbage;
mod hosts;
mod isolation;
mod login;
mod memory;
mod outage;
mod pool;
mod proxied;
mod roles;
mod sockets;
mod tokens;
