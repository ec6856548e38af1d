//! The first bytes of a connection: a load balancer's header, and the first packet.

use pgvalet::wire::options;
use pgvalet::wire::proxy;
use pgvalet::wire::startup::{self, BadPacket, First, Startup};

pub fn run(data: &[u8]) {
    packet(data);
    header(data);
    if let Ok(text) = std::str::from_utf8(data) {
        settings(text);
    }
}

fn packet(data: &[u8]) {
    match startup::read(data) {
        Ok(First::Startup(read)) => {
            assert_eq!(Some(&read), naively(data).as_ref(), "the packet says else");
            let written = written(&read);
            assert_eq!(startup::read(&written), Ok(First::Startup(read)));
        }
        Ok(First::Cancel(key)) => {
            assert!((4..=startup::MAX_KEY).contains(&key.secret.len()));
            let code = &data[..4];
            assert_eq!(data, [code, &key.pid.to_be_bytes(), &key.secret].concat());
        }
        Ok(First::Ssl | First::Gssenc) => assert_eq!(data.len(), 4),
        Err(BadPacket::Layout | BadPacket::Encoding) => assert_eq!(naively(data), None),
        Err(BadPacket::Length | BadPacket::Version { .. }) => {}
    }
}

/// The packet as a list of strings, read in the simplest way.
fn naively(data: &[u8]) -> Option<Startup> {
    let strings = data.get(4..)?.strip_suffix(&[0])?;
    let mut read = Startup {
        minor: u16::from_be_bytes([data[2], data[3]]),
        ..Startup::default()
    };
    if strings.is_empty() {
        return Some(read);
    }
    let strings: Vec<&[u8]> = strings
        .strip_suffix(&[0])?
        .split(|byte| *byte == 0)
        .collect();
    for pair in strings.chunks(2) {
        let [name, value] = pair else { return None };
        let name = std::str::from_utf8(name)
            .ok()
            .filter(|name| !name.is_empty())?;
        if name.starts_with("_pq_.") {
            read.options.push(name.to_owned());
        } else {
            let value = std::str::from_utf8(value).ok()?;
            read.parameters.insert(name.to_owned(), value.to_owned());
        }
    }
    Some(read)
}

fn written(startup: &Startup) -> Vec<u8> {
    let mut out = vec![0, 3];
    out.extend_from_slice(&startup.minor.to_be_bytes());
    let options = startup.options.iter().map(|name| (name.as_str(), ""));
    let parameters = startup.parameters.iter();
    let parameters = parameters.map(|(name, value)| (name.as_str(), value.as_str()));
    for (name, value) in options.chain(parameters) {
        out.extend_from_slice(&[name.as_bytes(), b"\0", value.as_bytes(), b"\0"].concat());
    }
    out.push(0);
    out
}

/// However a header is cut, its beginning is taken for one as long as the whole is.
fn header(data: &[u8]) {
    let (Some(head), rest) = (data.first_chunk::<16>(), data.get(16..)) else {
        return;
    };
    let Ok(length) = proxy::rest(*head) else {
        return;
    };
    assert!(length <= proxy::MAX_REST);
    for end in 0..=head.len() {
        assert_eq!(proxy::check(&head[..end]), Ok(()), "{end}");
    }
    let rest = rest.unwrap_or_default();
    let rest = &rest[..length.min(rest.len())];
    if let Ok(Some(address)) = proxy::source(*head, rest) {
        assert_eq!(head[12] & 0x0F, 1, "only PROXY names a client: {address}");
        assert_eq!(address.is_ipv4(), head[13] == 0x11);
        let longer = [rest, b"more"].concat();
        assert_eq!(proxy::source(*head, &longer), Ok(Some(address)));
    }
}

/// Our own settings are taken out of `options`, once and for all, and nothing else changes.
fn settings(options: &str) {
    let mut parameters = [("options".to_owned(), options.to_owned())].into();
    let ours = options::take_ours(&mut parameters);
    if ours.is_empty() && !options.is_empty() {
        assert_eq!(parameters["options"], options);
    }
    assert!(ours.keys().all(|name| *name == name.to_ascii_lowercase()));
    assert!(
        options::take_ours(&mut parameters).is_empty(),
        "{options:?}"
    );
}
