//! Owns the first packet of a connection (protocol chapter 55.2.1): startup, cancel, or a request for encryption.

use std::collections::BTreeMap;

use crate::wire::frame::cstr;

/// PostgreSQL's own bound (MAX_STARTUP_PACKET_LENGTH), in bytes.
pub const MAX_PACKET: usize = 10_000;
/// The longest cancel key that protocol 3.2 allows, in bytes.
pub const MAX_KEY: usize = 256;
/// The newest minor version of protocol 3 that we speak.
pub const NEWEST_MINOR: u16 = 2;

const SSL_REQUEST: u32 = 80_877_103;
const GSSENC_REQUEST: u32 = 80_877_104;
const CANCEL_REQUEST: u32 = 80_877_102;

/// What a client asks for with its first packet.
#[derive(Debug, PartialEq, Eq)]
pub enum First {
    Ssl,
    Gssenc,
    Cancel(CancelKey),
    Startup(Startup),
}

/// What names a session to be cancelled.
#[derive(Clone, PartialEq, Eq)]
pub struct CancelKey {
    pub pid: u32,
    pub secret: Box<[u8]>,
}

impl std::fmt::Debug for CancelKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CancelKey")
            .field("pid", &self.pid)
            .finish_non_exhaustive()
    }
}

/// A startup packet of protocol 3.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Startup {
    /// The minor version that the client asks for.
    pub minor: u16,
    /// Its parameters, less `_pq_.` ones.
    pub parameters: BTreeMap<String, String>,
    /// Protocol options (`_pq_.…`) that it asks for: we know none.
    pub options: Vec<String>,
}

/// Why a first packet is refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadPacket {
    #[error("invalid length of startup packet")]
    Length,
    #[error(
        "unsupported frontend protocol {major}.{minor}: pgvalet supports 3.0 to 3.{NEWEST_MINOR}"
    )]
    Version { major: u16, minor: u16 },
    #[error("invalid startup packet layout: expected terminator as last byte")]
    Layout,
    #[error("startup parameters must be valid UTF-8")]
    Encoding,
}

/// The length of the packet that begins with these four bytes, itself included.
///
/// # Errors
/// A length outside of PostgreSQL's bounds.
pub fn packet_length(bytes: [u8; 4]) -> Result<usize, BadPacket> {
    let length = u32::from_be_bytes(bytes) as usize;
    if (8..=MAX_PACKET).contains(&length) {
        Ok(length)
    } else {
        Err(BadPacket::Length)
    }
}

/// Reads a whole first packet, less its length.
///
/// # Errors
/// A packet that PostgreSQL would refuse, too.
pub fn read(packet: &[u8]) -> Result<First, BadPacket> {
    let (code, body) = packet.split_first_chunk::<4>().ok_or(BadPacket::Length)?;
    match u32::from_be_bytes(*code) {
        SSL_REQUEST if body.is_empty() => Ok(First::Ssl),
        GSSENC_REQUEST if body.is_empty() => Ok(First::Gssenc),
        CANCEL_REQUEST => read_cancel(body),
        version => {
            let (major, minor) = ((version >> 16) as u16, (version & 0xFFFF) as u16);
            if major == 3 {
                read_startup(minor, body)
            } else {
                Err(BadPacket::Version { major, minor })
            }
        }
    }
}

fn read_cancel(body: &[u8]) -> Result<First, BadPacket> {
    let (pid, secret) = body.split_first_chunk::<4>().ok_or(BadPacket::Length)?;
    if !(4..=MAX_KEY).contains(&secret.len()) {
        return Err(BadPacket::Length);
    }
    Ok(First::Cancel(CancelKey {
        pid: u32::from_be_bytes(*pid),
        secret: secret.into(),
    }))
}

fn read_startup(minor: u16, mut body: &[u8]) -> Result<First, BadPacket> {
    let mut startup = Startup {
        minor,
        ..Startup::default()
    };
    loop {
        let (name, rest) = cstr(body).ok_or(BadPacket::Layout)?;
        if name.is_empty() {
            return if rest.is_empty() {
                Ok(First::Startup(startup))
            } else {
                Err(BadPacket::Layout)
            };
        }
        let (value, rest) = cstr(rest).ok_or(BadPacket::Layout)?;
        let text =
            |bytes: &[u8]| String::from_utf8(bytes.to_vec()).map_err(|_| BadPacket::Encoding);
        if name.starts_with(b"_pq_.") {
            startup.options.push(text(name)?);
        } else {
            startup.parameters.insert(text(name)?, text(value)?);
        }
        body = rest;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_startup_packet_is_read() {
        let First::Startup(startup) = read(b"\0\x03\0\x02user\0app\0_pq_.x\01\0\0").unwrap() else {
            panic!()
        };
        assert_eq!(startup.minor, 2);
        assert_eq!(startup.parameters["user"], "app");
        assert_eq!(startup.options, ["_pq_.x"]);
    }

    #[test]
    fn a_missing_terminator_is_refused() {
        assert_eq!(read(b"\0\x03\0\0user\0app\0"), Err(BadPacket::Layout));
        assert_eq!(read(b"\0\x03\0\0user\0app\0\0x"), Err(BadPacket::Layout));
    }

    #[test]
    fn cancel_keys_of_4_to_256_bytes_are_read() {
        let packet = |length: usize| [&[4, 210, 22, 46, 0, 0, 0, 9][..], &vec![7; length]].concat();
        for length in [4, 32, 256] {
            let First::Cancel(key) = read(&packet(length)).unwrap() else {
                panic!()
            };
            assert_eq!((key.pid, key.secret.len()), (9, length));
        }
        assert_eq!(read(&packet(3)), Err(BadPacket::Length));
        assert_eq!(read(&packet(257)), Err(BadPacket::Length));
    }

    #[test]
    fn an_old_protocol_is_refused_by_name() {
        assert_eq!(
            read(&[0, 2, 0, 0]),
            Err(BadPacket::Version { major: 2, minor: 0 })
        );
    }

    proptest! {
        #[test]
        fn any_packet_is_read_without_a_panic(packet in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = read(&packet);
        }
    }
}
