//! psql over TLS, and a raw client that is encrypted.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use crate::programs::{everything, psql};
use crate::support::messages::{self, SSL_REQUEST};
use crate::support::{DEADLINE, Message};

/// What psql answers to `sql` with these connection parameters, or the error that it shows.
pub fn ask(port: u16, parameters: &str, sql: &str) -> Result<String, String> {
    let conninfo = format!("host=localhost hostaddr=127.0.0.1 {parameters}");
    let mut command = psql(port);
    // Nobody's ~/.postgresql.
    command.env("HOME", "/nonexistent");
    let (status, out, err) =
        everything(command.args([&conninfo, "-v", "VERBOSITY=verbose", "-c", sql]));
    if status == Some(0) {
        Ok(out.trim_end().to_owned())
    } else {
        Err(err)
    }
}

/// How psql says that its own connection is encrypted: the TLS version, or "plain".
pub fn encryption(port: u16, parameters: &str) -> Result<String, String> {
    let said = ask(port, parameters, "\\conninfo")?;
    let version = said.split_once("SSL connection (protocol: ");
    Ok(version.map_or("plain".to_owned(), |(_, rest)| {
        rest.split(',').next().unwrap_or_default().to_owned()
    }))
}

/// A client that says exactly what it is told to, through TLS.
pub struct Encrypted {
    stream: StreamOwned<ClientConnection, TcpStream>,
}

impl Encrypted {
    /// Asks for TLS by SSLRequest, and shakes hands.
    #[track_caller]
    pub fn dial(port: u16, root: &str) -> Self {
        let mut socket = socket(port);
        let request = messages::request(SSL_REQUEST);
        socket.write_all(&request).expect("it reads");
        let mut answer = [0];
        socket.read_exact(&mut answer).expect("it answers");
        assert_eq!(answer, *b"S");
        Self::shake(socket, root, &[]).expect("the handshake succeeds")
    }

    /// Begins with TLS, and names these protocols.
    pub fn direct(port: u16, root: &str, protocols: &[&[u8]]) -> std::io::Result<Self> {
        Self::shake(socket(port), root, protocols)
    }

    fn shake(mut socket: TcpStream, root: &str, protocols: &[&[u8]]) -> std::io::Result<Self> {
        let mut roots = RootCertStore::empty();
        let certificate = CertificateDer::from_pem_file(Path::new(root)).expect("a certificate");
        roots.add(certificate).expect("a root");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("the versions are known")
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
        let name = ServerName::try_from("localhost").expect("a name");
        let mut connection = ClientConnection::new(Arc::new(config), name).expect("a connection");
        connection.complete_io(&mut socket)?;
        Ok(Self {
            stream: StreamOwned::new(connection, socket),
        })
    }

    /// Logs in where clients are trusted.
    #[track_caller]
    pub fn log_in(&mut self) {
        let parameters = [("user", "postgres"), ("database", "postgres")];
        self.send(&messages::startup(0x0003_0000, &parameters));
        self.until(b'Z');
    }

    /// The certificate that the other side has shown.
    pub fn shown(&self) -> CertificateDer<'static> {
        let certificates = self.stream.conn.peer_certificates();
        certificates.expect("it has shown one")[0].clone()
    }

    #[track_caller]
    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("it reads");
        self.stream.flush().expect("it reads");
    }

    /// The next message; `None` at the end.
    #[track_caller]
    pub fn next(&mut self) -> Option<Message> {
        let mut header = [0; 5];
        self.stream.read_exact(&mut header).ok()?;
        let length = u32::from_be_bytes(header[1..].try_into().expect("four bytes")) as usize;
        let mut body = vec![0; length - 4];
        self.stream.read_exact(&mut body).expect("a whole message");
        let tag = header[0];
        Some(Message { tag, body })
    }

    /// Skips to the next message of `tag`; gives it, and how many bytes of DataRows came before.
    #[track_caller]
    pub fn until(&mut self, tag: u8) -> (Message, usize) {
        let mut rows = 0;
        loop {
            let message = self.next().expect("the connection is open");
            match message.tag {
                found if found == tag => return (message, rows),
                b'D' => rows += message.body.len(),
                b'E' => panic!("waiting for {}: {message:?}", tag as char),
                _ => {}
            }
        }
    }

    /// The first column of the first row.
    #[track_caller]
    pub fn value(&mut self, sql: &str) -> String {
        self.send(&messages::query(sql));
        let (row, _) = self.until(b'D');
        self.until(b'Z');
        row.columns().swap_remove(0)
    }
}

fn socket(port: u16) -> TcpStream {
    let socket = TcpStream::connect(("127.0.0.1", port)).expect("somebody listens there");
    socket
        .set_read_timeout(Some(DEADLINE))
        .expect("a timeout can be set");
    socket.set_nodelay(true).expect("nodelay can be set");
    socket
}
