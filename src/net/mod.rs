//! Owns sockets: how they are bound, connected and set up, TCP, TLS and unix alike.
//!
//! Refuses to know what flows through them.

pub mod listen;
pub mod resolve;
pub mod stream;
pub mod tls;
pub mod unix;

pub use listen::{Bound, bind, bind_for_clients};
pub use stream::Stream;
pub use unix::UnixSocket;
