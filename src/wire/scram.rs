//! Owns SCRAM-SHA-256's keys (RFC 5802, RFC 7677): deriving them, PostgreSQL's notation of verifiers, what a client's proof
//! gives away, and the client's side of a login.
//!
//! Refuses to do IO, and to show a key: no type here prints one.

use std::num::NonZeroU32;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::{digest, hmac, pbkdf2};
use secrecy::zeroize::Zeroizing;
use subtle::ConstantTimeEq;

/// The iterations of keys that we derive, as PostgreSQL's default has it.
pub const ITERATIONS: NonZeroU32 = NonZeroU32::new(4096).expect("4096 isn't zero");

/// The most iterations that we do for the other side: it could otherwise keep us busy for hours (CVE-2026-42198).
const MOST_ITERATIONS: u32 = 1_000_000;

/// The longest message of an exchange that is read, in bytes.
const LONGEST: usize = 4096;

/// How a verifier of this mechanism begins in PostgreSQL's notation.
const PREFIX: &str = "SCRAM-SHA-256$";

type Key = [u8; 32];

/// What a client logs in with: enough to prove itself, and to check the other side.
pub struct Keys {
    client: Zeroizing<Key>,
    server: Zeroizing<Key>,
}

/// What a server checks a client with: nobody logs in with it.
pub struct Verifier {
    pub salt: Vec<u8>,
    pub iterations: NonZeroU32,
    stored: Key,
    server: Zeroizing<Key>,
}

/// Why an exchange came to nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScramError {
    #[error("a SCRAM message isn't what RFC 5802 makes of it")]
    Malformed,
    #[error("a SCRAM message is too long")]
    TooLong,
    #[error("the SCRAM nonce isn't an answer to ours")]
    Nonce,
    #[error("SCRAM with so many iterations isn't done")]
    Iterations,
    #[error("the SCRAM login was refused")]
    Refused,
    #[error("the other side doesn't know the SCRAM keys itself")]
    Impostor,
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Keys")
    }
}

impl std::fmt::Debug for Verifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Verifier")
    }
}

impl Keys {
    /// The keys of a password. It takes milliseconds: call it off the data thread.
    #[must_use]
    pub fn derive(password: &str, salt: &[u8], iterations: NonZeroU32) -> Self {
        let mut salted = Zeroizing::new([0; 32]);
        let prepared = prepare(password);
        pbkdf2::derive(
            pbkdf2::PBKDF2_HMAC_SHA256,
            iterations,
            salt,
            prepared.as_bytes(),
            &mut *salted,
        );
        Self {
            client: Zeroizing::new(mac(&*salted, b"Client Key")),
            server: Zeroizing::new(mac(&*salted, b"Server Key")),
        }
    }

    /// What a server checks these keys with.
    #[must_use]
    pub fn verifier(&self, salt: &[u8], iterations: NonZeroU32) -> Verifier {
        Verifier {
            salt: salt.to_vec(),
            iterations,
            stored: hash(&*self.client),
            server: self.server.clone(),
        }
    }
}

impl Verifier {
    /// Reads PostgreSQL's notation: `SCRAM-SHA-256$<iterations>:<salt>$<StoredKey>:<ServerKey>`.
    #[must_use]
    pub fn read(text: &str) -> Option<Self> {
        let (head, keys) = text.strip_prefix(PREFIX)?.split_once('$')?;
        let (iterations, salt) = head.split_once(':')?;
        let (stored, server) = keys.split_once(':')?;
        let iterations = iterations.parse().ok()?;
        let salt = STANDARD
            .decode(salt)
            .ok()
            .filter(|salt| !salt.is_empty() && salt.len() <= LONGEST / 2)?;
        Some(Self {
            salt,
            iterations,
            stored: key(stored)?,
            server: Zeroizing::new(key(server)?),
        })
    }

    /// One that no password fits, with the shape of any other. It takes no time, as reading a real one takes none.
    #[must_use]
    pub fn mock(secret: &[u8], user: &str) -> Self {
        let made = |what: &str| mac(secret, format!("{what} {user}").as_bytes());
        Self {
            salt: made("salt")[..16].to_vec(),
            iterations: ITERATIONS,
            stored: made("stored"),
            server: Zeroizing::new(made("server")),
        }
    }

    /// StoredKey, by which a proof is checked.
    #[must_use]
    pub fn stored_key(&self) -> &[u8] {
        &self.stored
    }

    /// ServerKey, by which the server proves itself.
    #[must_use]
    pub fn server_key(&self) -> &[u8] {
        &*self.server
    }

    /// Whether one of the two is the other, salt and all.
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        self.salt == other.salt
            && self.iterations == other.iterations
            && bool::from(self.stored.ct_eq(&other.stored))
    }

    /// The keys that a password gives, if it is the right one. It takes milliseconds: call it off the data thread.
    #[must_use]
    pub fn keys_of_password(&self, password: &str) -> Option<Keys> {
        let iterations = self.iterations.min(NonZeroU32::new(MOST_ITERATIONS)?);
        let keys = Keys::derive(password, &self.salt, iterations);
        let stored = hash(&*keys.client);
        bool::from(stored.ct_eq(&self.stored)).then_some(keys)
    }

    /// The keys that a client has shown by its proof: ClientKey is ClientProof XOR ClientSignature. The messages are the
    /// three of the exchange as they were sent. `None` where the proof doesn't fit.
    #[must_use]
    pub fn keys_of_proof(&self, first: &[u8], challenge: &[u8], last: &[u8]) -> Option<Keys> {
        let bare = first.splitn(3, |byte| *byte == b',').nth(2)?;
        let at = memchr::memmem::rfind(last, b",p=")?;
        let proof = key(std::str::from_utf8(&last[at + 3..]).ok()?)?;
        let agreed = [bare, challenge, &last[..at]].join(&b',');
        let client = Zeroizing::new(xor(&proof, &mac(&self.stored, &agreed)));
        bool::from(hash(&*client).ct_eq(&self.stored)).then(|| Keys {
            client,
            server: self.server.clone(),
        })
    }
}

/// What ties a login to its TLS connection (RFC 5929).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Binding {
    /// There is nothing to bind to.
    None,
    /// There is, and the other side doesn't offer it: it notices where somebody in between took the offer away.
    NotOffered,
    /// The hash of the certificate that the other side showed.
    EndPoint(Vec<u8>),
}

/// The client's side of a login that has said nothing yet.
#[derive(Debug)]
pub struct Client {
    nonce: String,
    binding: Binding,
}

/// The client's side of a login, challenged.
#[derive(Debug)]
pub struct Challenged {
    pub salt: Vec<u8>,
    pub iterations: NonZeroU32,
    /// The exchange so far, and the last message without its proof.
    agreed: String,
    unproven: String,
}

/// What the other side has to say to prove itself.
#[derive(Debug)]
pub struct Expected([u8; 32]);

impl Binding {
    fn header(&self) -> &'static str {
        match self {
            Self::None => "n,,",
            Self::NotOffered => "y,,",
            Self::EndPoint(_) => "p=tls-server-end-point,,",
        }
    }

    fn encoded(&self) -> String {
        let hash = match self {
            Self::None | Self::NotOffered => &[][..],
            Self::EndPoint(hash) => hash,
        };
        STANDARD.encode([self.header().as_bytes(), hash].concat())
    }
}

impl Client {
    /// Begins a login.
    ///
    /// # Errors
    /// The system has no randomness to give.
    pub fn new(binding: Binding) -> Result<Self, getrandom::Error> {
        let mut nonce = [0; 18];
        getrandom::fill(&mut nonce)?;
        let nonce = STANDARD.encode(nonce);
        Ok(Self { nonce, binding })
    }

    /// The first message. PostgreSQL takes the user from the startup packet.
    #[must_use]
    pub fn first(&self) -> String {
        format!("{}n=,r={}", self.binding.header(), self.nonce)
    }

    /// Takes the server's first message in.
    ///
    /// # Errors
    /// It isn't one, or it isn't an answer to ours.
    pub fn challenged(self, message: &[u8]) -> Result<Challenged, ScramError> {
        if message.len() > LONGEST {
            return Err(ScramError::TooLong);
        }
        let message = std::str::from_utf8(message).map_err(|_| ScramError::Malformed)?;
        let mut parts = message.split(',');
        let mut part = |name: &str| parts.next().and_then(|part| part.strip_prefix(name));
        let (Some(nonce), Some(salt), Some(iterations)) = (part("r="), part("s="), part("i="))
        else {
            return Err(ScramError::Malformed);
        };
        if nonce.len() <= self.nonce.len() || !nonce.starts_with(&self.nonce) {
            return Err(ScramError::Nonce);
        }
        let salt = STANDARD.decode(salt).map_err(|_| ScramError::Malformed)?;
        let iterations: NonZeroU32 = iterations.parse().map_err(|_| ScramError::Malformed)?;
        if iterations.get() > MOST_ITERATIONS {
            return Err(ScramError::Iterations);
        }
        let unproven = format!("c={},r={nonce}", self.binding.encoded());
        Ok(Challenged {
            salt,
            iterations,
            agreed: format!("n=,r={},{message},{unproven}", self.nonce),
            unproven,
        })
    }
}

impl Challenged {
    /// The last message, with the proof, and what the server has to answer.
    #[must_use]
    pub fn answer(&self, keys: &Keys) -> (String, Expected) {
        let agreed = self.agreed.as_bytes();
        let signature = mac(&hash(&*keys.client), agreed);
        let proof = STANDARD.encode(xor(&keys.client, &signature));
        let expected = Expected(mac(&*keys.server, agreed));
        (format!("{},p={proof}", self.unproven), expected)
    }
}

impl Expected {
    /// Takes the server's last message in.
    ///
    /// # Errors
    /// It refuses us, or doesn't prove that it knows us.
    pub fn check(&self, message: &[u8]) -> Result<(), ScramError> {
        let text = std::str::from_utf8(message).map_err(|_| ScramError::Malformed)?;
        if text.starts_with("e=") {
            return Err(ScramError::Refused);
        }
        let proof = text
            .strip_prefix("v=")
            .and_then(|rest| rest.split(',').next());
        let proof = proof.and_then(key).ok_or(ScramError::Malformed)?;
        if bool::from(proof.ct_eq(&self.0)) {
            Ok(())
        } else {
            Err(ScramError::Impostor)
        }
    }
}

/// SASLprep (RFC 4013), as PostgreSQL does it: what it can't prepare is taken as it is.
fn prepare(password: &str) -> std::borrow::Cow<'_, str> {
    stringprep::saslprep(password).unwrap_or(std::borrow::Cow::Borrowed(password))
}

fn key(text: &str) -> Option<Key> {
    STANDARD.decode(text).ok()?.try_into().ok()
}

fn mac(key: &[u8], text: &[u8]) -> Key {
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text);
    tag.as_ref().try_into().expect("SHA-256 makes 32 bytes")
}

fn hash(text: &[u8]) -> Key {
    let digest = digest::digest(&digest::SHA256, text);
    digest.as_ref().try_into().expect("SHA-256 makes 32 bytes")
}

fn xor(one: &Key, other: &Key) -> Key {
    std::array::from_fn(|at| one[at] ^ other[at])
}

#[cfg(test)]
mod tests;
