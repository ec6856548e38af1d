//! Owns the proof of who a client is: SCRAM-SHA-256 (RFC 5802, RFC 7677) against the upstream user's password, bound to
//! the TLS connection where there is one (SCRAM-SHA-256-PLUS, RFC 5929).

use std::collections::HashMap;
use std::sync::Mutex;

use pgwire::api::auth::sasl::scram::{
    SCRAM_ITERATIONS, ScramSecret, ScramServerAuth, gen_salted_password,
};
use pgwire::error::PgWireError;
use pgwire::messages::startup::Authentication;
use rustls::pki_types::CertificateDer;
use secrecy::{ExposeSecret, SecretString};
use x509_certificate::CapturedX509Certificate;

use crate::wire::reply::{self, ClientError, Fault};

/// What a client's proof is checked against: derived once for each password, then kept.
#[derive(Debug, Default)]
pub struct Verifiers {
    known: Mutex<HashMap<String, Verifier>>,
    /// Makes salts of users that don't exist look like those of users that do.
    pepper: [u8; 32],
}

#[derive(Clone)]
struct Verifier {
    password: SecretString,
    salt: Vec<u8>,
    salted: Vec<u8>,
}

impl std::fmt::Debug for Verifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Verifier")
    }
}

impl Verifiers {
    /// No verifier yet.
    ///
    /// # Errors
    /// The system has no randomness to give.
    pub fn new() -> Result<Self, getrandom::Error> {
        let mut pepper = [0; 32];
        getrandom::fill(&mut pepper)?;
        Ok(Self {
            known: Mutex::default(),
            pepper,
        })
    }

    /// The secret that a proof of `user` is checked against. It takes as long for a user that doesn't exist.
    ///
    /// Deriving takes milliseconds: call it off the data thread.
    pub fn secret(&self, user: &str, password: Option<&SecretString>) -> ScramSecret {
        let mut known = self
            .known
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let wanted = password.map_or("", ExposeSecret::expose_secret);
        let fresh = known
            .get(user)
            .is_some_and(|verifier| verifier.password.expose_secret() == wanted);
        if !fresh {
            // Users that don't exist are not remembered, or anybody could fill the memory with them.
            let verifier = self.derive(user, password);
            if password.is_none() {
                return verifier.secret();
            }
            known.insert(user.to_owned(), verifier);
        }
        known[user].secret()
    }

    fn derive(&self, user: &str, password: Option<&SecretString>) -> Verifier {
        let salt = self.salt(user);
        // A user without a password has one that nobody can know.
        let password = password
            .cloned()
            .unwrap_or_else(|| SecretString::from(hex(&self.salted_pepper(user))));
        let salted = gen_salted_password(password.expose_secret(), &salt, SCRAM_ITERATIONS);
        Verifier {
            password,
            salt,
            salted,
        }
    }

    /// The same salt for the same user, as PostgreSQL's own would be.
    fn salt(&self, user: &str) -> Vec<u8> {
        let mut salt = self.salted_pepper(&format!("salt {user}"));
        salt.truncate(16);
        salt
    }

    fn salted_pepper(&self, text: &str) -> Vec<u8> {
        gen_salted_password(text, &self.pepper, 1)
    }
}

impl Verifier {
    fn secret(&self) -> ScramSecret {
        ScramSecret::SaltedPassword {
            salt: self.salt.clone(),
            salted_password: self.salted.clone(),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The mechanisms, by their names in SASL.
const PLAIN: &str = "SCRAM-SHA-256";
/// Bound to the TLS connection, so that nobody in between can pass the proof on.
const BOUND: &str = "SCRAM-SHA-256-PLUS";

/// The SQLSTATE that PostgreSQL gives to what is wrong with a channel binding.
const BINDING: &str = "28000";

/// What a client is asked to prove, and over which connection.
pub struct Challenge {
    secret: ScramSecret,
    server: ScramServerAuth,
}

impl Challenge {
    /// `shown` is the certificate that the client saw, if the connection is encrypted.
    ///
    /// Reading it takes a while: call it off the data thread.
    #[must_use]
    pub fn new(secret: ScramSecret, shown: Option<&CertificateDer<'static>>) -> Self {
        let mut server = ScramServerAuth::new();
        let readable = shown.and_then(|der| CapturedX509Certificate::from_der(der.to_vec()).ok());
        if let Some(certificate) = readable {
            // Where the certificate's signature names no hash to bind to (Ed25519), binding isn't offered.
            let _ = server.configure_certificate(certificate.encode_pem().as_bytes());
        }
        Self { secret, server }
    }

    /// AuthenticationSASL with the mechanisms that are offered.
    #[must_use]
    pub fn offer(&self) -> Vec<u8> {
        let bound = self.server.supports_channel_binding().then_some(BOUND);
        let names = bound.into_iter().chain([PLAIN]).map(str::to_owned);
        reply::authentication(&Authentication::SASL(names.collect()))
    }

    /// Begins with the client's first message. Gives the answer to send.
    ///
    /// # Errors
    /// The message isn't SCRAM's, or somebody in between has kept channel binding from the client.
    pub fn first(self, body: &[u8]) -> Result<(Vec<u8>, Exchange), ClientError> {
        let (mechanism, rest) = crate::wire::frame::cstr(body).ok_or_else(malformed)?;
        let (length, message) = rest.split_first_chunk::<4>().ok_or_else(malformed)?;
        if usize::try_from(i32::from_be_bytes(*length)) != Ok(message.len()) {
            return Err(malformed());
        }
        self.judge_binding(mechanism, message)?;
        let begun = self
            .server
            .on_client_first_message_with_secret(message, self.secret);
        let (answer, exchange) = begun.map_err(|_| malformed())?;
        let answer = Authentication::SASLContinue(answer.into_bytes().into());
        Ok((reply::authentication(&answer), Exchange(exchange)))
    }

    /// Whether mechanism and channel binding flag go together, and with what was offered (RFC 5802, section 6).
    fn judge_binding(&self, mechanism: &[u8], message: &[u8]) -> Result<(), ClientError> {
        let offered = self.server.supports_channel_binding();
        let bound = mechanism == BOUND.as_bytes() && offered;
        if !bound && mechanism != PLAIN.as_bytes() {
            let text = "client selected an invalid SASL authentication mechanism";
            return Err(ClientError::new(Fault::Client, "08P01", text));
        }
        match message.first() {
            Some(b'p') if bound => Ok(()),
            Some(b'p') => Err(malformed().detail(
                "The client selected SCRAM-SHA-256 without channel binding, but the SCRAM message includes channel \
                 binding data.",
            )),
            Some(_) if bound => Err(malformed().detail(
                "The client selected SCRAM-SHA-256-PLUS, but the SCRAM message does not include channel binding data.",
            )),
            Some(b'y') if offered => {
                let error = ClientError::new(
                    Fault::Client,
                    BINDING,
                    "SCRAM channel binding negotiation error",
                );
                Err(error.detail(
                    "The client supports SCRAM channel binding but thinks the server does not. However, this server \
                     does support channel binding.",
                ))
            }
            Some(_) | None => Ok(()),
        }
    }
}

impl std::fmt::Debug for Challenge {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Challenge")
    }
}

/// The server's side of one exchange.
#[derive(Debug)]
pub struct Exchange(pgwire::api::auth::sasl::scram::ScramServerAuthWaitingForClientFinal);

/// Ends with the client's proof. Gives the answer to send.
///
/// # Errors
/// The proof is wrong, or no proof: PostgreSQL's own text and code, the same for users that don't exist.
pub fn last(body: &[u8], exchange: &Exchange, user: &str) -> Result<Vec<u8>, ClientError> {
    let answer = exchange
        .0
        .on_client_final_message(body)
        .map_err(|error| match error {
            PgWireError::InvalidScramMessage(text) if text == MISMATCH => {
                ClientError::new(Fault::Client, BINDING, "SCRAM channel binding check failed")
            }
            _ => failed(user),
        })?;
    Ok(reply::authentication(&Authentication::SASLFinal(
        answer.into_bytes().into(),
    )))
}

/// How pgwire says that a client has bound its proof to another connection.
const MISMATCH: &str = "Channel binding mismatch";

fn malformed() -> ClientError {
    ClientError::new(Fault::Client, "08P01", "malformed SCRAM message")
}

/// What a client hears whose login failed, whatever the cause.
#[must_use]
pub fn failed(user: &str) -> ClientError {
    ClientError::new(
        Fault::Client,
        "28P01",
        format!("password authentication failed for user \"{user}\""),
    )
}
