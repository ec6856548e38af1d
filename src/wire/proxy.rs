//! Owns the header that a load balancer sends ahead of a connection: the PROXY protocol, version 2 (its text names the
//! layout, <https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt>).
//!
//! Version 1 is refused: it is told apart from a client's own words by guessing only.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

/// What every header begins with.
pub const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// The length of the part that says how long the rest is, in bytes.
pub const HEAD: usize = 16;
/// The longest rest that is read, in bytes: addresses, and what balancers add (a certificate's name, an endpoint's id).
pub const MAX_REST: usize = 4096;

/// Why a header is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadHeader {
    #[error("it begins with something else")]
    Signature,
    #[error("it begins with a header of version 1, and only version 2 is taken")]
    Version1,
    #[error("its version, command or address family is unknown")]
    Kind,
    #[error("its length doesn't fit")]
    Length,
}

/// Whether what came of a header so far can be the beginning of one.
///
/// # Errors
/// It can't.
pub fn check(begun: &[u8]) -> Result<(), BadHeader> {
    let known = begun.len().min(SIGNATURE.len());
    if begun[..known] == SIGNATURE[..known] {
        Ok(())
    } else if begun.starts_with(b"PROXY ") || b"PROXY ".starts_with(begun) {
        Err(BadHeader::Version1)
    } else {
        Err(BadHeader::Signature)
    }
}

/// How much follows a header's first part.
///
/// # Errors
/// It isn't a header of version 2, or too long.
pub fn rest(head: [u8; HEAD]) -> Result<usize, BadHeader> {
    check(&head)?;
    if head[12] >> 4 != 2 {
        return Err(BadHeader::Kind);
    }
    let length = usize::from(u16::from_be_bytes([head[14], head[15]]));
    if length <= MAX_REST {
        Ok(length)
    } else {
        Err(BadHeader::Length)
    }
}

/// The client's address; `None` where the balancer speaks for itself (LOCAL: a health check), or knows no address.
///
/// # Errors
/// What the balancer says is unknown, or cut short.
pub fn source(head: [u8; HEAD], rest: &[u8]) -> Result<Option<SocketAddr>, BadHeader> {
    match head[12] & 0x0F {
        0 => return Ok(None),
        1 => {}
        _ => return Err(BadHeader::Kind),
    }
    match head[13] {
        // UNSPEC, and unix sockets.
        0x00 | 0x31 => Ok(None),
        // TCP over IPv4: two addresses, two ports.
        0x11 => {
            let fields = rest.first_chunk::<12>().ok_or(BadHeader::Length)?;
            let [a, b, c, d, .., high, low, _, _] = *fields;
            let port = u16::from_be_bytes([high, low]);
            Ok(Some((Ipv4Addr::new(a, b, c, d), port).into()))
        }
        // TCP over IPv6.
        0x21 => {
            let fields = rest.first_chunk::<36>().ok_or(BadHeader::Length)?;
            let address = fields.first_chunk::<16>().ok_or(BadHeader::Length)?;
            let port = u16::from_be_bytes([fields[32], fields[33]]);
            Ok(Some((Ipv6Addr::from(*address), port).into()))
        }
        _ => Err(BadHeader::Kind),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn head(command: u8, family: u8, length: u16) -> [u8; HEAD] {
        let length = length.to_be_bytes();
        let tail = [command, family, length[0], length[1]];
        [&SIGNATURE[..], &tail].concat().try_into().unwrap()
    }

    #[test]
    fn the_client_s_address_is_read() {
        let v4 = [192, 0, 2, 1, 10, 0, 0, 1, 0x30, 0x39, 0x19, 0x20];
        assert_eq!(rest(head(0x21, 0x11, 12)), Ok(12));
        assert_eq!(
            source(head(0x21, 0x11, 12), &v4),
            Ok(Some("192.0.2.1:12345".parse().unwrap()))
        );
        let mut v6 = [0; 36];
        (v6[15], v6[32], v6[33]) = (1, 0, 80);
        assert_eq!(
            source(head(0x21, 0x21, 36), &v6),
            Ok(Some("[::1]:80".parse().unwrap()))
        );
    }

    #[test]
    fn a_balancer_that_speaks_for_itself_has_no_client() {
        assert_eq!(source(head(0x20, 0, 0), &[]), Ok(None));
        assert_eq!(source(head(0x20, 0x11, 3), &[1, 2, 3]), Ok(None));
        assert_eq!(source(head(0x21, 0, 0), &[]), Ok(None));
    }

    #[test]
    fn what_isn_t_a_header_is_refused() {
        assert_eq!(check(b"PROXY TCP4 "), Err(BadHeader::Version1));
        assert_eq!(check(&[0, 0, 0, 8]), Err(BadHeader::Signature));
        assert_eq!(check(b"\r\n\r\n\0\r"), Ok(()));
        assert_eq!(rest(head(0x11, 0x11, 12)), Err(BadHeader::Kind));
        assert_eq!(rest(head(0x21, 0x11, 4097)), Err(BadHeader::Length));
        assert_eq!(source(head(0x22, 0x11, 12), &[0; 12]), Err(BadHeader::Kind));
        assert_eq!(source(head(0x21, 0x12, 12), &[0; 12]), Err(BadHeader::Kind));
        assert_eq!(
            source(head(0x21, 0x11, 11), &[0; 11]),
            Err(BadHeader::Length)
        );
    }

    proptest! {
        #[test]
        fn any_header_is_read_without_a_panic(head: [u8; 16], body in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = check(&head[..usize::from(head[0] % 17)]);
            let _ = rest(head);
            let _ = source(head, &body);
        }
    }
}
