//! Owns the protocol's shape: frames, startup packets, the account of requests and replies, and our own messages.
//!
//! Refuses sockets: bytes come in, decisions come out (protocol chapters 55.2 to 55.8).

pub mod cut;
pub mod extended;
pub mod frame;
pub mod options;
pub mod proxy;
pub mod reply;
pub mod rows;
pub mod scram;
pub mod sql;
pub mod startup;
pub mod tracker;
