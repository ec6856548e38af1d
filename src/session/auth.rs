//! Owns the proof of who a client is: SCRAM-SHA-256 (RFC 5802, RFC 7677) against the upstream user's password.

use std::collections::HashMap;
use std::sync::Mutex;

use pgwire::api::auth::sasl::scram::{
    SCRAM_ITERATIONS, ScramSecret, ScramServerAuth, gen_salted_password,
};
use pgwire::messages::startup::Authentication;
use secrecy::{ExposeSecret, SecretString};

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

/// AuthenticationSASL with the one mechanism that is offered.
#[must_use]
pub fn offer() -> Vec<u8> {
    reply::authentication(&Authentication::SASL(vec!["SCRAM-SHA-256".to_owned()]))
}

/// The server's side of one exchange.
#[derive(Debug)]
pub struct Exchange(pgwire::api::auth::sasl::scram::ScramServerAuthWaitingForClientFinal);

/// Begins with the client's first message. Gives the answer to send.
///
/// # Errors
/// The message isn't SCRAM's.
pub fn first(body: &[u8], secret: ScramSecret) -> Result<(Vec<u8>, Exchange), ClientError> {
    let (mechanism, rest) = crate::wire::frame::cstr(body).ok_or_else(malformed)?;
    if mechanism != b"SCRAM-SHA-256" {
        return Err(malformed().detail("The only mechanism offered is SCRAM-SHA-256."));
    }
    let (length, message) = rest.split_first_chunk::<4>().ok_or_else(malformed)?;
    if usize::try_from(i32::from_be_bytes(*length)) != Ok(message.len()) {
        return Err(malformed());
    }
    let begun = ScramServerAuth::new().on_client_first_message_with_secret(message, secret);
    let (answer, exchange) = begun.map_err(|_| malformed())?;
    let answer = Authentication::SASLContinue(answer.into_bytes().into());
    Ok((reply::authentication(&answer), Exchange(exchange)))
}

/// Ends with the client's proof. Gives the answer to send.
///
/// # Errors
/// The proof is wrong, or no proof: PostgreSQL's own text and code, the same for users that don't exist.
pub fn last(body: &[u8], exchange: &Exchange, user: &str) -> Result<Vec<u8>, ClientError> {
    let answer = exchange
        .0
        .on_client_final_message(body)
        .map_err(|_| failed(user))?;
    Ok(reply::authentication(&Authentication::SASLFinal(
        answer.into_bytes().into(),
    )))
}

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
