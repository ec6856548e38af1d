//! Owns the client's half of SCRAM-SHA-256 (RFC 5802, 7677), with the costly key derived once: a storm of logins shall
//! measure the proxy, not its client.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex};

use ring::{digest, hmac, pbkdf2};

use crate::Failure;
use crate::wire::{Client, frame};

/// What the client's nonce is: nobody attacks a benchmark.
const NONCE: &str = "benchmarkbenchmarkbench";

type Salted = [u8; 32];
/// By salt and count of iterations.
type Keys = HashMap<(Vec<u8>, u32), Salted>;

/// A password, with the keys that were derived from it. Clones share them.
#[derive(Clone, Debug)]
pub struct Scram {
    password: String,
    keys: Arc<Mutex<Keys>>,
}

impl Scram {
    pub fn new(password: &str) -> Self {
        Self {
            password: password.to_owned(),
            keys: Arc::default(),
        }
    }

    /// Answers AuthenticationSASL, up to before AuthenticationOk.
    pub fn answer(&self, client: &mut Client) -> Result<(), Failure> {
        let bare = format!("n=,r={NONCE}");
        let first = format!("n,,{bare}");
        let length = u32::try_from(first.len())?;
        let body = [
            b"SCRAM-SHA-256\0",
            &length.to_be_bytes()[..],
            first.as_bytes(),
        ];
        client.send(&frame(b'p', &body.concat()))?;
        let challenge = sasl(client, 11)?;
        let field = |name: &str| {
            challenge
                .split(',')
                .find_map(|field| field.strip_prefix(name))
                .ok_or("a challenge without a field")
        };
        let salted = self.salted(&from_base64(field("s=")?)?, field("i=")?.parse()?)?;
        let without_proof = format!("c=biws,r={}", field("r=")?);
        let message = format!("{bare},{challenge},{without_proof}");
        let proof = proof(&salted, message.as_bytes());
        let last = format!("{without_proof},p={}", to_base64(&proof));
        client.send(&frame(b'p', last.as_bytes()))?;
        sasl(client, 12).map(|_| ())
    }

    fn salted(&self, salt: &[u8], iterations: NonZeroU32) -> Result<Salted, Failure> {
        let mut keys = self.keys.lock().map_err(|_| "a thread panicked")?;
        let salted = keys
            .entry((salt.to_vec(), iterations.get()))
            .or_insert_with(|| salt_password(&self.password, salt, iterations));
        Ok(*salted)
    }
}

/// What PostgreSQL keeps of a password, and PgBouncer may be given.
pub fn verifier(password: &str, salt: &[u8]) -> String {
    let iterations = NonZeroU32::new(4096).unwrap_or(NonZeroU32::MIN);
    let salted = salt_password(password, salt, iterations);
    let stored = digest::digest(&digest::SHA256, &sign(&salted, b"Client Key"));
    let server = sign(&salted, b"Server Key");
    format!(
        "SCRAM-SHA-256$4096:{}${}:{}",
        to_base64(salt),
        to_base64(stored.as_ref()),
        to_base64(&server)
    )
}

fn salt_password(password: &str, salt: &[u8], iterations: NonZeroU32) -> Salted {
    let mut salted = [0; 32];
    pbkdf2::derive(
        pbkdf2::PBKDF2_HMAC_SHA256,
        iterations,
        salt,
        password.as_bytes(),
        &mut salted,
    );
    salted
}

fn proof(salted: &Salted, message: &[u8]) -> Vec<u8> {
    let client_key = sign(salted, b"Client Key");
    let stored = digest::digest(&digest::SHA256, &client_key);
    let signature = sign(stored.as_ref(), message);
    client_key
        .iter()
        .zip(signature)
        .map(|(key, signature)| key ^ signature)
        .collect()
}

fn sign(key: &[u8], message: &[u8]) -> Vec<u8> {
    let key = hmac::Key::new(hmac::HMAC_SHA256, key);
    hmac::sign(&key, message).as_ref().to_vec()
}

fn sasl(client: &mut Client, expected: u32) -> Result<String, Failure> {
    let (tag, body) = client.message()?;
    match body.split_first_chunk() {
        Some((code, rest)) if tag == b'R' && u32::from_be_bytes(*code) == expected => {
            Ok(String::from_utf8(rest.to_vec())?)
        }
        Some(_) | None => Err("the login went astray".into()),
    }
}

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

fn to_base64(bytes: &[u8]) -> String {
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let mut word = [0; 4];
        word[1..=chunk.len()].copy_from_slice(chunk);
        let word = u32::from_be_bytes(word);
        for place in 0..4 {
            let digit = (word >> (18 - 6 * place)) & 63;
            let digit = char::from(ALPHABET[digit as usize]);
            text.push(if place <= chunk.len() { digit } else { '=' });
        }
    }
    text
}

fn from_base64(text: &str) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    let (mut word, mut bits) = (0u32, 0);
    for digit in text.bytes().filter(|digit| *digit != b'=') {
        let value = ALPHABET
            .iter()
            .position(|known| *known == digit)
            .ok_or("not base64")?;
        word = (word << 6) | u32::try_from(value)?;
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            bytes.push((word >> bits).to_be_bytes()[3]);
            word &= (1 << bits) - 1;
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_goes_there_and_back() {
        assert_eq!(to_base64(b"biws"), "Yml3cw==");
        for length in 0..40u8 {
            let bytes: Vec<u8> = (0..length).map(|byte| byte.wrapping_mul(37)).collect();
            assert_eq!(from_base64(&to_base64(&bytes)).unwrap(), bytes);
        }
    }

    /// RFC 7677, section 3.
    #[test]
    fn the_proof_is_that_of_the_standard() {
        let salt = from_base64("W22ZaJ0SNY7soEsUEjb6gQ==").unwrap();
        let salted = salt_password("pencil", &salt, NonZeroU32::new(4096).unwrap());
        let message = "n=user,r=rOprNGfwEbeRWgbNEkqO,\
            r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096,\
            c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";
        let proof = proof(&salted, message.as_bytes());
        assert_eq!(
            to_base64(&proof),
            "dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
        );
    }
}
