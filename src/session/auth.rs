//! Owns the server's side of SCRAM-SHA-256 (RFC 5802, RFC 7677), bound to the TLS connection where there is one
//! (SCRAM-SHA-256-PLUS, RFC 5929), and what clients are checked against.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use pgwire::api::auth::sasl::scram::{ScramSecret, ScramServerAuth};
use pgwire::error::PgWireError;
use pgwire::messages::startup::Authentication;
use rustls::pki_types::CertificateDer;
use secrecy::{ExposeSecret, SecretString};
use x509_certificate::CapturedX509Certificate;

use crate::config::{Config, Secret};
use crate::wire::reply::{self, ClientError, Fault};
use crate::wire::scram::{ITERATIONS, Keys, Verifier};

/// How many passwords of one user are kept: they differ by database, and while they are rotated.
const MOST_KNOWN: usize = 4;

/// What a client's proof is checked against: derived once for each password, then kept.
#[derive(Debug, Default)]
pub struct Verifiers {
    known: Mutex<HashMap<String, Vec<Known>>>,
    /// Makes salts of users that don't exist look like those of users that do.
    /// Random: made of passwords or of verifiers, it would let anybody who asks for a salt try passwords at home.
    pepper: [u8; 32],
}

struct Known {
    password: SecretString,
    verifier: Arc<Verifier>,
}

impl std::fmt::Debug for Known {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Known")
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

    /// Derives what the configuration's own users need, so that their first logins take no longer than those of users
    /// that don't exist. It takes milliseconds a user.
    pub fn warm(&self, config: &Config) {
        let url = std::iter::once(&config.upstream.user);
        for user in url.chain(config.users.keys()) {
            let secret = config.secret_for(&config.upstream.database, user);
            self.verifier(user, secret.as_ref());
        }
    }

    /// The same as [`Self::verifier`], where nothing has to be derived for it.
    pub fn at_hand(&self, user: &str, secret: Option<&Secret>) -> Option<Arc<Verifier>> {
        let Some(Secret::Password(password)) = secret else {
            return Some(self.verifier(user, secret));
        };
        // Held elsewhere for as long as a derivation takes.
        let known = self.known.try_lock().ok()?;
        known_as(&known, user, password.expose_secret())
    }

    /// What a proof of `user` is checked against. For a user without a SCRAM secret it is one that nobody can fit.
    ///
    /// The first time it takes milliseconds: call it off the data thread.
    pub fn verifier(&self, user: &str, secret: Option<&Secret>) -> Arc<Verifier> {
        let password = match secret {
            Some(Secret::Verifier(verifier)) => return verifier.clone(),
            Some(Secret::Md5(_)) | None => return Arc::new(Verifier::mock(&self.pepper, user)),
            Some(Secret::Password(password)) => password,
        };
        let wanted = password.expose_secret();
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = known_as(&known, user, wanted) {
            return found;
        }
        // The same salt for the same user, whatever its password: as one that doesn't exist has it.
        let salt = Verifier::mock(&self.pepper, user).salt;
        let verifier =
            Arc::new(Keys::derive(wanted, &salt, ITERATIONS).verifier(&salt, ITERATIONS));
        let list = known.entry(user.to_owned()).or_default();
        list.truncate(MOST_KNOWN - 1);
        let password = password.clone();
        list.insert(
            0,
            Known {
                password,
                verifier: verifier.clone(),
            },
        );
        verifier
    }

    /// What stands in for the md5 hash of a user that has none.
    #[must_use]
    pub fn mock_md5(&self, user: &str) -> SecretString {
        let made = Verifier::mock(&self.pepper, user);
        let digits = made.stored_key()[..16]
            .iter()
            .map(|byte| format!("{byte:02x}"));
        SecretString::from(format!("md5{}", digits.collect::<String>()))
    }
}

fn known_as(
    known: &HashMap<String, Vec<Known>>,
    user: &str,
    password: &str,
) -> Option<Arc<Verifier>> {
    let list = known.get(user)?;
    let found = list
        .iter()
        .find(|known| known.password.expose_secret() == password)?;
    Some(found.verifier.clone())
}

/// The mechanisms, by their names in SASL.
const PLAIN: &str = "SCRAM-SHA-256";
/// Bound to the TLS connection, so that nobody in between can pass the proof on.
const BOUND: &str = "SCRAM-SHA-256-PLUS";

/// The SQLSTATE that PostgreSQL gives to what is wrong with a channel binding.
const BINDING: &str = "28000";

/// What a client is asked to prove, and over which connection.
pub struct Challenge {
    verifier: Arc<Verifier>,
    server: ScramServerAuth,
}

impl Challenge {
    /// `shown` is the certificate that the client saw, if the connection is encrypted.
    ///
    /// Reading it takes a while: call it off the data thread.
    #[must_use]
    pub fn new(verifier: Arc<Verifier>, shown: Option<&CertificateDer<'static>>) -> Self {
        let mut server = ScramServerAuth::new();
        let readable = shown.and_then(|der| CapturedX509Certificate::from_der(der.to_vec()).ok());
        if let Some(certificate) = readable {
            // Where the certificate's signature names no hash to bind to (Ed25519), binding isn't offered.
            let _ = server.configure_certificate(certificate.encode_pem().as_bytes());
        }
        Self { verifier, server }
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
        let secret = ScramSecret::Verifier {
            salt: self.verifier.salt.clone(),
            iterations: self.verifier.iterations.get() as usize,
            stored_key: self.verifier.stored_key().to_vec(),
            server_key: self.verifier.server_key().to_vec(),
        };
        let begun = self
            .server
            .on_client_first_message_with_secret(message, secret);
        let (challenge, state) = begun.map_err(|_| malformed())?;
        let exchange = Exchange {
            first: message.to_vec(),
            challenge: challenge.clone(),
            verifier: self.verifier,
            state,
        };
        let answer = Authentication::SASLContinue(challenge.into_bytes().into());
        Ok((reply::authentication(&answer), exchange))
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
pub struct Exchange {
    first: Vec<u8>,
    challenge: String,
    verifier: Arc<Verifier>,
    state: pgwire::api::auth::sasl::scram::ScramServerAuthWaitingForClientFinal,
}

impl std::fmt::Debug for Exchange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Exchange")
    }
}

impl Exchange {
    /// Ends with the client's proof. Gives the answer to send, and the keys that the proof has shown.
    ///
    /// # Errors
    /// The proof is wrong, or no proof: PostgreSQL's own text and code, the same for users that don't exist.
    pub fn last(&self, body: &[u8], user: &str) -> Result<(Vec<u8>, Keys), ClientError> {
        let answer = self
            .state
            .on_client_final_message(body)
            .map_err(|error| match error {
                PgWireError::InvalidScramMessage(text) if text == MISMATCH => {
                    ClientError::new(Fault::Client, BINDING, "SCRAM channel binding check failed")
                }
                _ => failed(user),
            })?;
        let challenge = self.challenge.as_bytes();
        let keys = self.verifier.keys_of_proof(&self.first, challenge, body);
        let answer = Authentication::SASLFinal(answer.into_bytes().into());
        Ok((
            reply::authentication(&answer),
            keys.ok_or_else(|| failed(user))?,
        ))
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn password(text: &str) -> Option<Secret> {
        Some(Secret::Password(SecretString::from(text.to_owned())))
    }

    #[test]
    fn keys_are_derived_once_for_each_password() {
        let verifiers = Verifiers::new().unwrap();
        let first = verifiers.verifier("app", password("pencil").as_ref());
        let other = verifiers.verifier("app", password("crayon").as_ref());
        let again = verifiers.verifier("app", password("pencil").as_ref());
        assert!(Arc::ptr_eq(&first, &again) && !first.is(&other));
        assert_eq!(
            first.salt, other.salt,
            "a salt that changes tells of a new password"
        );
        for count in 0..100 {
            verifiers.verifier("app", password(&count.to_string()).as_ref());
        }
        assert!(verifiers.known.lock().unwrap()["app"].len() <= MOST_KNOWN);
    }

    #[test]
    fn users_without_a_secret_of_scram_are_not_remembered_and_fit_nothing() {
        let verifiers = Verifiers::new().unwrap();
        let hash = SecretString::from("md50123456789abcdef0123456789abcdef".to_owned());
        for secret in [None, Some(Secret::Md5(hash))] {
            let mock = verifiers.verifier("mallory", secret.as_ref());
            assert!(mock.keys_of_password("").is_none());
            assert!(mock.is(&verifiers.verifier("mallory", None)));
        }
        assert!(verifiers.known.lock().unwrap().is_empty());
        assert_eq!(verifiers.mock_md5("mallory").expose_secret().len(), 35);
    }
}
