//! Owns sockets: how they are bound, connected and set up, TCP, TLS and unix alike.
//!
//! Refuses to know what flows through them.

pub mod listen;
pub mod resolve;
pub mod socket;
pub mod stream;
pub mod tls;

pub use listen::{Bound, bind, bind_for_clients};
pub use socket::Socket;
pub use stream::Stream;
