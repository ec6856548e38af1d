//! Owns the proof of who we are towards PostgreSQL: a password, the SCRAM keys that a client's own login has shown, or an
//! md5 hash (protocol chapters 55.2.1 and 55.3).
//!
//! Refuses to send a password in clear where others could read it, and to show a secret.

use std::cell::RefCell;
use std::sync::Arc;

use bytes::BytesMut;
use md5::{Digest, Md5};
use postgres_protocol::authentication::md5_hash;
use postgres_protocol::message::frontend;
use secrecy::{ExposeSecret, SecretString};

use crate::backend::connect::{Talk, broken};
use crate::config::Secret;
use crate::executor;
use crate::net::{Stream, tls};
use crate::wire::frame::cstr;
use crate::wire::reply::{ClientError, Fault};
use crate::wire::scram::{Binding, Challenged, Client, Keys, Verifier};

/// The mechanisms, by their names in SASL.
const PLAIN: &str = "SCRAM-SHA-256";
/// Bound to the TLS connection.
const BOUND: &str = "SCRAM-SHA-256-PLUS";

/// What we prove ourselves with.
#[derive(Clone, Debug)]
pub enum Proof {
    Password(SecretString),
    /// The keys that belong to this verifier, and no others.
    Keys(Arc<Verifier>, Arc<Keys>),
    /// `md5` and the hash of password and user.
    Md5(SecretString),
    /// Nothing, as no client has logged in yet that could have shown it.
    Unseen,
    /// Nothing.
    None,
}

/// What a pool knows besides the configuration. In memory only, and gone with the pool.
#[derive(Debug, Default)]
pub struct Credentials {
    /// What the last login of a client has shown.
    shown: RefCell<Option<Proof>>,
    /// The keys of the password, for the salt that PostgreSQL sent last.
    derived: RefCell<Option<Derived>>,
}

#[derive(Clone, Debug)]
struct Derived {
    password: SecretString,
    verifier: Arc<Verifier>,
    keys: Arc<Keys>,
}

impl Credentials {
    /// Takes in what a client's login has shown; `true` where it is news.
    pub fn learn(&self, proof: Proof) -> bool {
        if matches!(proof, Proof::Unseen | Proof::None) {
            return false;
        }
        let known = self.shown.replace(Some(proof.clone()));
        match (known, proof) {
            (Some(Proof::Keys(known, _)), Proof::Keys(shown, _)) => !known.is(&shown),
            (Some(Proof::Md5(known)), Proof::Md5(shown))
            | (Some(Proof::Password(known)), Proof::Password(shown)) => {
                known.expose_secret() != shown.expose_secret()
            }
            _ => true,
        }
    }

    /// What to log in with, where the configuration says `secret`.
    #[must_use]
    pub fn proof(&self, secret: Option<Secret>, asks_postgresql: bool) -> Proof {
        let shown = self.shown.borrow().clone();
        match (secret, shown) {
            (Some(Secret::Password(password)), _) => Proof::Password(password),
            (Some(Secret::Md5(hash)), _) => Proof::Md5(hash),
            (Some(Secret::Verifier(verifier)), Some(Proof::Keys(known, keys)))
                if known.is(&verifier) =>
            {
                Proof::Keys(known, keys)
            }
            (Some(Secret::Verifier(_)), _) => Proof::Unseen,
            (None, Some(shown)) => shown,
            (None, None) if asks_postgresql => Proof::Unseen,
            (None, None) => Proof::None,
        }
    }

    /// The keys of `password` for this salt: derived once, off the data thread.
    async fn keys(&self, password: &SecretString, challenged: &Challenged) -> Option<Arc<Keys>> {
        let known = self.derived.borrow().clone();
        if let Some(known) = known
            && known.password.expose_secret() == password.expose_secret()
            && known.verifier.salt == challenged.salt
            && known.verifier.iterations == challenged.iterations
        {
            return Some(known.keys);
        }
        let (secret, salt) = (password.clone(), challenged.salt.clone());
        let iterations = challenged.iterations;
        let derive = move || {
            let keys = Keys::derive(secret.expose_secret(), &salt, iterations);
            (keys.verifier(&salt, iterations), keys)
        };
        let (verifier, keys) = executor::aside(derive).await.ok()?;
        let keys = Arc::new(keys);
        *self.derived.borrow_mut() = Some(Derived {
            password: password.clone(),
            verifier: Arc::new(verifier),
            keys: keys.clone(),
        });
        Some(keys)
    }
}

impl Talk<'_> {
    /// Answers one authentication request; `true` for AuthenticationOk.
    pub(super) async fn authenticate(&mut self, body: &[u8]) -> Result<bool, ClientError> {
        let Some((code, rest)) = body.split_first_chunk::<4>() else {
            return Err(broken(&"a short authentication request"));
        };
        match u32::from_be_bytes(*code) {
            0 => return Ok(true),
            3 => self.cleartext().await?,
            5 => self.md5(rest).await?,
            10 => self.scram(rest).await?,
            2 | 6..=9 => return Err(unsupported(&"Kerberos, GSSAPI or SSPI")),
            other => return Err(broken(&format!("authentication method {other} is unknown"))),
        }
        Ok(false)
    }

    /// Why PostgreSQL's request can't be answered.
    fn ignorant(&self, wanted: &str) -> ClientError {
        let user = self.login.user;
        let asked = format!("PostgreSQL asks for {wanted} of user \"{user}\", and pgvalet knows");
        let error = |rest: &str| ClientError::new(Fault::Proxy, "28000", format!("{asked} {rest}"));
        match &self.login.proof {
            Proof::None => error("none").hint(
                "Put it into the upstream URL, into [users] of the configuration, or into .pgpass.",
            ),
            Proof::Unseen => error("it only once a client has logged in with it").hint(
                "A SCRAM verifier lets nobody in by itself: log in as that user by SCRAM or with the password first.",
            ),
            Proof::Keys(..) => error("only its SCRAM keys").hint(
                "PostgreSQL has to ask for scram-sha-256, or pgvalet to know the password itself.",
            ),
            Proof::Md5(_) => error("only its md5 hash").hint(
                "PostgreSQL has to ask for md5, or pgvalet to know the password itself.",
            ),
            Proof::Password(_) => error("no other than the one it has"),
        }
    }

    async fn cleartext(&mut self) -> Result<(), ClientError> {
        let exposed = match &self.stream {
            Stream::Tls(_) | Stream::Unix(_) => false,
            Stream::Tcp(stream) => !stream
                .peer_address()
                .is_some_and(|address| address.ip().is_loopback()),
        };
        if exposed {
            return Err(unsupported(&"a password in clear over the network"));
        }
        let Proof::Password(password) = &self.login.proof else {
            return Err(self.ignorant("the password"));
        };
        self.send_password(password.expose_secret().as_bytes())
            .await
    }

    async fn md5(&mut self, salt: &[u8]) -> Result<(), ClientError> {
        let salt = salt
            .first_chunk::<4>()
            .ok_or_else(|| broken(&"a short salt"))?;
        let answer = match &self.login.proof {
            Proof::Password(password) => {
                let password = password.expose_secret().as_bytes();
                md5_hash(self.login.user.as_bytes(), password, *salt)
            }
            Proof::Md5(hash) => salted(hash.expose_secret(), *salt),
            Proof::Keys(..) | Proof::Unseen | Proof::None => {
                return Err(self.ignorant("the password"));
            }
        };
        self.send_password(answer.as_bytes()).await
    }

    async fn send_password(&mut self, password: &[u8]) -> Result<(), ClientError> {
        let mut out = BytesMut::new();
        frontend::password_message(password, &mut out).map_err(|error| broken(&error))?;
        self.send(&out).await
    }

    async fn scram(&mut self, mechanisms: &[u8]) -> Result<(), ClientError> {
        let mut offered = Vec::new();
        let mut rest = mechanisms;
        while let Some((name, tail)) = cstr(rest).filter(|(name, _)| !name.is_empty()) {
            offered.push(name);
            rest = tail;
        }
        let (mechanism, binding) = self.mechanism(&offered)?;
        if !matches!(self.login.proof, Proof::Password(_) | Proof::Keys(..)) {
            return Err(self.ignorant("the password"));
        }
        let client = Client::new(binding).map_err(|error| broken(&error))?;
        let mut out = BytesMut::new();
        frontend::sasl_initial_response(mechanism, client.first().as_bytes(), &mut out)
            .map_err(|error| broken(&error))?;
        self.send(&out).await?;
        let challenge = self.sasl(11).await?;
        let challenged = client
            .challenged(&challenge)
            .map_err(|error| broken(&error))?;
        let keys = self.keys(&challenged).await?;
        let (answer, expected) = challenged.answer(&keys);
        let mut out = BytesMut::new();
        frontend::sasl_response(answer.as_bytes(), &mut out).map_err(|error| broken(&error))?;
        self.send(&out).await?;
        let proof = self.sasl(12).await?;
        expected.check(&proof).map_err(|error| broken(&error))
    }

    async fn keys(&self, challenged: &Challenged) -> Result<Arc<Keys>, ClientError> {
        match &self.login.proof {
            Proof::Password(password) => {
                let keys = self.login.credentials.keys(password, challenged).await;
                keys.ok_or_else(|| broken(&"its SCRAM keys could not be derived"))
            }
            // Other keys would be refused: better to say why.
            Proof::Keys(known, keys)
                if known.salt == challenged.salt && known.iterations == challenged.iterations =>
            {
                Ok(keys.clone())
            }
            Proof::Keys(..) => {
                let text = format!(
                    "the SCRAM verifier of user \"{}\" that pgvalet knows isn't PostgreSQL's",
                    self.login.user
                );
                let error = ClientError::new(Fault::Proxy, "28000", text);
                Err(error.hint("Copy it from pg_authid.rolpassword, or let auth_query ask for it, and log in again."))
            }
            Proof::Md5(_) | Proof::Unseen | Proof::None => Err(self.ignorant("the password")),
        }
    }

    /// The mechanism to use of those that PostgreSQL offers: the one that binds to the TLS connection where it can be.
    fn mechanism(&self, offered: &[&[u8]]) -> Result<(&'static str, Binding), ClientError> {
        let end_point = self.stream.peer_certificate().and_then(tls::end_point);
        let offers = |name: &str| offered.contains(&name.as_bytes());
        match end_point {
            Some(hash) if offers(BOUND) => Ok((BOUND, Binding::EndPoint(hash))),
            Some(_) if offers(PLAIN) => Ok((PLAIN, Binding::NotOffered)),
            None if offers(PLAIN) => Ok((PLAIN, Binding::None)),
            Some(_) | None => Err(unsupported(&"a SASL mechanism other than SCRAM-SHA-256")),
        }
    }

    /// Reads AuthenticationSASLContinue (11) or AuthenticationSASLFinal (12).
    async fn sasl(&mut self, expected: u32) -> Result<Vec<u8>, ClientError> {
        let (kind, body) = self.receive().await?;
        match body.split_first_chunk::<4>() {
            Some((code, rest)) if kind == b'R' && u32::from_be_bytes(*code) == expected => {
                Ok(rest.to_vec())
            }
            _ => Err(broken(&"the SASL exchange went astray")),
        }
    }
}

/// The answer to an md5 challenge, from the hash that PostgreSQL keeps.
#[must_use]
pub fn salted(hash: &str, salt: [u8; 4]) -> String {
    let hash = hash.strip_prefix("md5").unwrap_or(hash);
    let digest = Md5::new().chain_update(hash).chain_update(salt).finalize();
    let digits = digest.iter().map(|byte| format!("{byte:02x}"));
    format!("md5{}", digits.collect::<String>())
}

fn unsupported(what: &dyn std::fmt::Display) -> ClientError {
    ClientError::new(
        Fault::Proxy,
        "28000",
        format!("PostgreSQL asks pgvalet for {what}, which it refuses to answer"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_that_postgresql_keeps_answers_like_the_password() {
        // SELECT 'md5' || md5('secret' || 'alice')
        let digest = Md5::new().chain_update("secretalice").finalize();
        let kept: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(
            salted(&format!("md5{kept}"), *b"salt"),
            md5_hash(b"alice", b"secret", *b"salt")
        );
    }

    #[tokio::test]
    async fn keys_are_derived_once_for_the_same_salt() {
        let credentials = Credentials::default();
        let password = SecretString::from("pencil".to_owned());
        let challenged = |salt: &str| {
            let client = Client::new(Binding::None).unwrap();
            let first = client.first();
            let nonce = first.rsplit_once("r=").unwrap().1;
            let challenge = format!("r={nonce}x,s={salt},i=4096");
            client.challenged(challenge.as_bytes()).unwrap()
        };
        let salt = "W22ZaJ0SNY7soEsUEjb6gQ==";
        let first = credentials
            .keys(&password, &challenged(salt))
            .await
            .unwrap();
        let again = credentials
            .keys(&password, &challenged(salt))
            .await
            .unwrap();
        assert!(Arc::ptr_eq(&first, &again));
        let salted = credentials
            .keys(&password, &challenged("AAAA"))
            .await
            .unwrap();
        assert!(!Arc::ptr_eq(&first, &salted));
        let changed = SecretString::from("crayon".to_owned());
        let changed = credentials
            .keys(&changed, &challenged("AAAA"))
            .await
            .unwrap();
        assert!(!Arc::ptr_eq(&salted, &changed));
    }

    #[test]
    fn a_verifier_waits_for_a_client_that_shows_its_keys() {
        let salt = b"0123456789abcdef";
        let keys = Keys::derive("pencil", salt, crate::wire::scram::ITERATIONS);
        let verifier = Arc::new(keys.verifier(salt, crate::wire::scram::ITERATIONS));
        let secret = || Some(Secret::Verifier(verifier.clone()));
        let credentials = Credentials::default();
        assert!(matches!(credentials.proof(secret(), false), Proof::Unseen));
        assert!(matches!(credentials.proof(None, true), Proof::Unseen));
        assert!(matches!(credentials.proof(None, false), Proof::None));
        let shown = Proof::Keys(verifier.clone(), Arc::new(keys));
        assert!(credentials.learn(shown.clone()), "it is news");
        assert!(!credentials.learn(shown), "it is known");
        assert!(
            !credentials.learn(Proof::None),
            "a certificate shows nothing"
        );
        assert!(matches!(
            credentials.proof(secret(), false),
            Proof::Keys(..)
        ));
        let other = Arc::new(Verifier::mock(b"pepper", "user"));
        let changed = Some(Secret::Verifier(other));
        assert!(matches!(credentials.proof(changed, false), Proof::Unseen));
    }
}
