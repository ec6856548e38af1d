//! Owns the login of a client: which rule decides about it, and the proof that the rule asks for (protocol chapter 55.2.1).
//!
//! What a client hears is what PostgreSQL would say, the same whether or not the user exists. A proof may show what logs in
//! to PostgreSQL: it goes to the client's pool.

use std::sync::Arc;

use md5::{Digest, Md5};
use postgres_protocol::authentication::md5_hash;
use rustls::pki_types::CertificateDer;
use secrecy::{ExposeSecret, SecretString};
use subtle::ConstantTimeEq;
use tokio::io::AsyncReadExt;
use x509_certificate::X509Certificate;

use crate::backend::Proof;
use crate::backend::login::salted;
use crate::config::{Auth, Config, Knock, LoginMethod, LoginRule, Secret};
use crate::executor;
use crate::net::listen::Peer;
use crate::session::auth::{self, Challenge, Verifiers};
use crate::session::console;
use crate::session::handshake::{Door, Refusal};
use crate::wire::frame::{Header, cstr};
use crate::wire::reply::{self, ClientError, Fault};

/// The longest SASL message that is read, in bytes, as with PostgreSQL.
const MAX_SASL: usize = 1024;

/// The longest password that is read, in bytes, as with PostgreSQL.
const MAX_PASSWORD: usize = 65_535;

/// What pg_hba.conf doesn't let in.
const UNWELCOME: &str = "28000";

impl Door<'_> {
    /// Lets the client prove who it is, as the first rule about it says. Gives what its proof has shown.
    pub(super) async fn authenticate(
        &mut self,
        knock: &Knock<'_>,
        peer: &Peer,
    ) -> Result<Proof, Refusal> {
        let config = self.shared.config.clone();
        let (method, rule) = decide(&config, knock)?;
        let shown = match method {
            LoginMethod::Trust => Proof::None,
            LoginMethod::Reject => return Err(rejected(knock).into()),
            LoginMethod::Cert => self.certificate(rule, knock.user).await?,
            LoginMethod::Peer => peer_user(rule, knock.user, peer).await?,
            LoginMethod::Scram => {
                let secret = self.secret(knock).await?;
                self.scram(knock.user, secret).await?
            }
            LoginMethod::Md5 => {
                let secret = self.secret(knock).await?;
                self.md5(knock.user, secret).await?
            }
            LoginMethod::Password => {
                let secret = self.secret(knock).await?;
                self.cleartext(knock.user, secret).await?
            }
        };
        self.line.hold(&reply::authentication_ok());
        Ok(shown)
    }

    /// What is known of the user: by the configuration, or else by PostgreSQL.
    async fn secret(&self, knock: &Knock<'_>) -> Result<Option<Secret>, ClientError> {
        let config = self.shared.config.clone();
        let user = knock.user;
        // The console's guests have the passwords that they have in the URL's database.
        let database = if console::VIRTUAL.contains(&knock.database) {
            &config.upstream.database
        } else {
            knock.database
        };
        let known = if config.reads_a_file(user) {
            let (database, user) = (database.to_owned(), user.to_owned());
            aside(move || config.secret_for(&database, &user)).await?
        } else {
            config.secret_for(database, user)
        };
        match known {
            Some(known) => Ok(Some(known)),
            None => Box::pin(self.shared.pools.look_up(user)).await,
        }
    }

    async fn scram(&mut self, user: &str, secret: Option<Secret>) -> Result<Proof, Refusal> {
        let challenge = self.challenge(user, secret.as_ref()).await?;
        self.line.say(&challenge.offer()).await?;
        let body = self.answer(MAX_SASL).await?;
        let (answer, exchange) = challenge.first(&body)?;
        self.line.say(&answer).await?;
        let body = self.answer(MAX_SASL).await?;
        let (answer, keys) = exchange
            .last(&body, user)
            .inspect_err(|_| self.shared.pools.doubt(user))?;
        self.line.hold(&answer);
        Ok(match secret {
            Some(Secret::Verifier(verifier)) => Proof::Keys(verifier, Arc::new(keys)),
            Some(Secret::Password(password)) => Proof::Password(password),
            Some(Secret::Md5(_)) | None => Proof::None,
        })
    }

    /// What the client is to prove. At once where nothing has to be derived, and no certificate to be read.
    async fn challenge(
        &self,
        user: &str,
        secret: Option<&Secret>,
    ) -> Result<Challenge, ClientError> {
        let verifiers = &self.shared.verifiers;
        let shown = self.line.identity.as_ref();
        let shown = shown.map(|identity| identity.certificate.clone());
        if shown.is_none()
            && let Some(verifier) = verifiers.at_hand(user, secret)
        {
            return Ok(Challenge::new(verifier, None));
        }
        let (verifiers, name, known) = (verifiers.clone(), user.to_owned(), secret.cloned());
        aside(move || Challenge::new(verifiers.verifier(&name, known.as_ref()), shown.as_ref()))
            .await
    }

    /// By md5; or by SCRAM where that is what is known of the user, or would be if it existed. As PostgreSQL does it.
    async fn md5(&mut self, user: &str, secret: Option<Secret>) -> Result<Proof, Refusal> {
        let scram = match &secret {
            Some(Secret::Verifier(_)) => true,
            Some(Secret::Password(_) | Secret::Md5(_)) => false,
            None => self.shared.config.asks_postgresql(),
        };
        if scram {
            return self.scram(user, secret).await;
        }
        let mut salt = [0; 4];
        getrandom::fill(&mut salt).expect("the system gave randomness when pgvalet started");
        self.line.say(&reply::ask_for_md5(salt)).await?;
        let answer = self.password().await?;
        let expected = match &secret {
            Some(Secret::Password(password)) => {
                md5_hash(user.as_bytes(), password.expose_secret().as_bytes(), salt)
            }
            Some(Secret::Md5(hash)) => salted(hash.expose_secret(), salt),
            Some(Secret::Verifier(_)) | None => {
                salted(self.shared.verifiers.mock_md5(user).expose_secret(), salt)
            }
        };
        if !bool::from(answer.ct_eq(expected.as_bytes())) {
            return Err(self.failed(user));
        }
        Ok(match secret {
            Some(Secret::Md5(hash)) => Proof::Md5(hash),
            Some(Secret::Password(password)) => Proof::Password(password),
            Some(Secret::Verifier(_)) | None => Proof::None,
        })
    }

    async fn cleartext(&mut self, user: &str, secret: Option<Secret>) -> Result<Proof, Refusal> {
        self.line.say(&reply::ask_for_cleartext()).await?;
        let typed = self.password().await?;
        let (verifiers, name) = (self.shared.verifiers.clone(), user.to_owned());
        let checked = aside(move || check(&verifiers, &name, secret, &typed)).await?;
        checked.ok_or_else(|| self.failed(user))
    }

    fn failed(&self, user: &str) -> Refusal {
        self.shared.pools.doubt(user);
        auth::failed(user).into()
    }

    async fn certificate(
        &self,
        rule: Option<&LoginRule>,
        user: &str,
    ) -> Result<Proof, ClientError> {
        let Some(shown) = self.line.stream.peer_certificate() else {
            let text = "connection requires a valid client certificate";
            return Err(ClientError::new(Fault::Client, UNWELCOME, text));
        };
        let shown = shown.clone().into_owned();
        let name = aside(move || common_name(&shown)).await?;
        judge_name(rule, name, user, "certificate")
    }

    /// A password, as it came: without its terminator.
    async fn password(&mut self) -> Result<Vec<u8>, Refusal> {
        let mut body = self.answer(MAX_PASSWORD).await?;
        match cstr(&body) {
            Some(([], [])) => {
                let text = "empty password returned by client";
                Err(ClientError::new(Fault::Client, "28P01", text).into())
            }
            Some((_, [])) => {
                body.pop();
                Ok(body)
            }
            Some(_) | None => {
                let text = "invalid password packet size";
                Err(ClientError::new(Fault::Client, "08P01", text).into())
            }
        }
    }

    async fn answer(&mut self, longest: usize) -> Result<Vec<u8>, Refusal> {
        let mut header = [0; 5];
        self.line.stream.read_exact(&mut header).await?;
        let malformed = || ClientError::new(Fault::Client, "08P01", "expected a password message");
        let header = Header::read(&header).ok().flatten().ok_or_else(malformed)?;
        if header.kind != b'p' || header.body > longest {
            return Err(malformed().into());
        }
        let mut body = vec![0; header.body];
        self.line.stream.read_exact(&mut body).await?;
        Ok(body)
    }
}

/// Does what takes its time off the data thread.
async fn aside<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ClientError> {
    let done = executor::aside(work).await;
    done.map_err(|_| ClientError::new(Fault::Proxy, "XX000", "pgvalet could not check the login"))
}

/// The method for this client, with the rule that says so.
fn decide<'a>(
    config: &'a Config,
    knock: &Knock<'_>,
) -> Result<(LoginMethod, Option<&'a LoginRule>), ClientError> {
    if config.logins.is_empty() {
        let method = match config.auth {
            Auth::Scram => LoginMethod::Scram,
            Auth::Trust => LoginMethod::Trust,
        };
        return Ok((method, None));
    }
    let rule = config.logins.iter().find(|rule| rule.covers(knock));
    let rule = rule.ok_or_else(|| no_entry(knock))?;
    Ok((rule.method, Some(rule)))
}

/// Whether a password is the right one. It takes as long whatever is known of the user.
fn check(verifiers: &Verifiers, user: &str, secret: Option<Secret>, typed: &[u8]) -> Option<Proof> {
    let verifier = verifiers.verifier(user, secret.as_ref());
    let text = SecretString::from(String::from_utf8_lossy(typed).into_owned());
    let keys = verifier.keys_of_password(text.expose_secret());
    let is_text = std::str::from_utf8(typed).is_ok();
    match secret {
        Some(Secret::Password(password)) => {
            let right = keys.filter(|_| is_text);
            right.map(|_| Proof::Password(password))
        }
        Some(Secret::Verifier(verifier)) => {
            let keys = keys.filter(|_| is_text)?;
            Some(Proof::Keys(verifier, Arc::new(keys)))
        }
        Some(Secret::Md5(hash)) => {
            let digest = Md5::new().chain_update(typed).chain_update(user).finalize();
            let digits = digest.iter().map(|byte| format!("{byte:02x}"));
            let hashed = format!("md5{}", digits.collect::<String>());
            let same = hashed.as_bytes().ct_eq(hash.expose_secret().as_bytes());
            bool::from(same).then_some(Proof::Md5(hash))
        }
        None => None,
    }
}

async fn peer_user(
    rule: Option<&LoginRule>,
    user: &str,
    peer: &Peer,
) -> Result<Proof, ClientError> {
    let uid = match peer {
        Peer::Unix { uid, .. } => *uid,
        Peer::Tcp(_) => None,
    };
    let name = match uid {
        Some(uid) => aside(move || crate::process::user_name(uid)).await?,
        None => None,
    };
    judge_name(rule, name, user, "Peer")
}

/// Whether who bears this name may log in as `user`. The words are PostgreSQL's.
fn judge_name(
    rule: Option<&LoginRule>,
    name: Option<String>,
    user: &str,
    kind: &str,
) -> Result<Proof, ClientError> {
    let lets = |name: &String| rule.is_some_and(|rule| rule.lets(name, user));
    if name.as_ref().is_some_and(lets) {
        return Ok(Proof::None);
    }
    let name = name.as_deref().unwrap_or("nobody that is known");
    tracing::info!(
        ?user,
        ?name,
        "the name in the certificate or of the process doesn't let in"
    );
    let text = format!("{kind} authentication failed for user \"{user}\"");
    Err(ClientError::new(Fault::Client, UNWELCOME, text))
}

/// The subject's name in a certificate.
fn common_name(shown: &CertificateDer<'_>) -> Option<String> {
    let parsed = X509Certificate::from_der(shown).ok()?;
    parsed
        .subject_common_name()
        .filter(|name| !name.is_empty() && !name.contains('\0'))
}

/// Where a client comes from, and whether encrypted, in PostgreSQL's words.
fn whence(knock: &Knock<'_>) -> (String, &'static str) {
    let host = knock.address.map_or_else(
        || "[local]".to_owned(),
        |address| address.to_canonical().to_string(),
    );
    let encryption = if knock.encrypted {
        "SSL encryption"
    } else {
        "no encryption"
    };
    (host, encryption)
}

fn no_entry(knock: &Knock<'_>) -> ClientError {
    let (host, encryption) = whence(knock);
    let user = knock.user;
    let text = if knock.replication {
        format!(
            "no pg_hba.conf entry for replication connection from host \"{host}\", user \"{user}\", {encryption}"
        )
    } else {
        let database = knock.database;
        format!(
            "no pg_hba.conf entry for host \"{host}\", user \"{user}\", database \"{database}\", {encryption}"
        )
    };
    ClientError::new(Fault::Client, UNWELCOME, text)
        .hint("pgvalet says so: none of its `[[logins]]` is about this client.")
}

fn rejected(knock: &Knock<'_>) -> ClientError {
    let (host, encryption) = whence(knock);
    let (user, database) = (knock.user, knock.database);
    let text = format!(
        "pg_hba.conf rejects connection for host \"{host}\", user \"{user}\", database \"{database}\", {encryption}"
    );
    ClientError::new(Fault::Client, UNWELCOME, text)
        .hint("pgvalet says so, by one of its `[[logins]]`.")
}
