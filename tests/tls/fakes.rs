//! Somebody who pretends to be PostgreSQL with TLS, as far as its first word on passwords.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, mpsc};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use crate::certificates::Pair;
use crate::support::DEADLINE;
use crate::support::messages::frame;

/// How it behaves.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Manners {
    OffersBinding,
    HidesBinding,
    /// It sends more behind its answer to SSLRequest.
    TalksInClear,
}

pub struct Pretender {
    port: u16,
    heard: mpsc::Receiver<Vec<u8>>,
}

impl Pretender {
    /// Listens until the test ends.
    pub fn start(pair: &Pair, manners: Manners) -> Self {
        let chain = CertificateDer::from_pem_file(&pair.cert).expect("a certificate");
        let key = PrivateKeyDer::from_pem_file(&pair.key).expect("a key");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("the versions are known")
            .with_no_client_auth()
            .with_single_cert(vec![chain], key)
            .expect("a pair");
        let config = Arc::new(config);
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("it is bound").port();
        let (sender, heard) = mpsc::channel();
        std::thread::spawn(move || {
            for socket in listener.incoming().flatten() {
                // Who breaks off has seen through it.
                if let Ok(message) = pretend(socket, &config, manners) {
                    let _ = sender.send(message);
                }
            }
        });
        Self { port, heard }
    }

    pub fn url(&self) -> String {
        let port = self.port;
        format!("postgres://postgres:secret@127.0.0.1:{port}/postgres?sslmode=require")
    }

    /// What pgvalet answers to the question for a password, while `act` makes it log in.
    #[track_caller]
    pub fn first_message_of(&self, act: impl FnOnce(&str)) -> String {
        act(&self.url());
        let heard = self.heard.recv_timeout(DEADLINE);
        String::from_utf8_lossy(&heard.expect("pgvalet logs in")).into_owned()
    }
}

fn pretend(
    mut socket: TcpStream,
    config: &Arc<ServerConfig>,
    manners: Manners,
) -> std::io::Result<Vec<u8>> {
    socket.read_exact(&mut [0; 8])?;
    if manners == Manners::TalksInClear {
        socket.write_all(&[&b"S"[..], &frame(b'R', &[0; 4])].concat())?;
        socket.read_to_end(&mut Vec::new())?;
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    }
    socket.write_all(b"S")?;
    let connection = ServerConnection::new(Arc::clone(config)).map_err(std::io::Error::other)?;
    let mut stream = StreamOwned::new(connection, socket);
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    stream.read_exact(&mut vec![0; u32::from_be_bytes(length) as usize - 4])?;
    let offer: &[u8] = match manners {
        Manners::OffersBinding => b"\0\0\0\x0aSCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0",
        Manners::HidesBinding | Manners::TalksInClear => b"\0\0\0\x0aSCRAM-SHA-256\0\0",
    };
    stream.write_all(&frame(b'R', offer))?;
    let mut header = [0; 5];
    stream.read_exact(&mut header)?;
    let length = u32::from_be_bytes([header[1], header[2], header[3], header[4]]) as usize;
    let mut body = vec![0; length - 4];
    stream.read_exact(&mut body)?;
    Ok(body)
}
