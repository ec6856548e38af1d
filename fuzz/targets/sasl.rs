//! SCRAM-SHA-256 on both sides: whoever doesn't know the password gets nowhere, and whoever does always gets in.

use std::num::NonZeroU32;
use std::sync::{Arc, OnceLock};

use pgvalet::session::auth::Challenge;
use pgvalet::wire::scram::{Binding, Client, Keys, Verifier};

use super::input::Input;

/// Few, so that a round takes microseconds.
const ITERATIONS: NonZeroU32 = NonZeroU32::new(2).expect("two isn't zero");
const SALT: &[u8] = b"0123456789abcdef";

pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    match input.below(4) {
        0 => as_client(input.rest()),
        1 => as_server(&mut input),
        2 => with_itself(&mut input),
        _ => notation(input.rest()),
    }
}

fn keys() -> &'static (Keys, Arc<Verifier>) {
    static KEYS: OnceLock<(Keys, Arc<Verifier>)> = OnceLock::new();
    KEYS.get_or_init(|| {
        let keys = Keys::derive("pencil", SALT, ITERATIONS);
        let verifier = Arc::new(keys.verifier(SALT, ITERATIONS));
        (keys, verifier)
    })
}

/// A server's messages, with our nonce where they say NONCE. What we take for a challenge, we answer rightly.
fn as_client(data: &[u8]) {
    let (challenge, end) = data.split_at(
        data.iter()
            .position(|byte| *byte == 0)
            .unwrap_or(data.len()),
    );
    let client = Client::new(Binding::None).expect("there is randomness");
    let first = client.first();
    let nonce = first.rsplit_once("r=").expect("it has a nonce").1;
    let text = String::from_utf8_lossy(challenge).replace("NONCE", nonce);
    let Ok(challenged) = client.challenged(text.as_bytes()) else {
        return;
    };
    assert!(text.starts_with(&format!("r={nonce}")), "not our nonce");
    assert!(text.len() <= 4096 && challenged.iterations.get() <= 1_000_000);
    let (keys, _) = keys();
    let (last, expected) = challenged.answer(keys);
    let verifier = keys.verifier(&challenged.salt, challenged.iterations);
    let proven = verifier.keys_of_proof(first.as_bytes(), text.as_bytes(), last.as_bytes());
    assert!(proven.is_some(), "who knows the keys can prove it");
    let other = Verifier::mock(b"pepper", "user");
    let fits = other.keys_of_proof(first.as_bytes(), text.as_bytes(), last.as_bytes());
    assert!(fits.is_none(), "nobody else's keys fit");
    assert!(
        expected.check(end.get(1..).unwrap_or_default()).is_err(),
        "an impostor"
    );
}

/// A client's messages: nobody gets in by chance.
fn as_server(input: &mut Input<'_>) {
    let length = usize::from(input.byte()) * 4;
    let first = input.take(length).to_vec();
    let (_, verifier) = keys();
    let challenge = Challenge::new(verifier.clone(), None);
    assert!(challenge.offer().starts_with(b"R"));
    let Ok((answer, exchange)) = challenge.first(&first) else {
        return;
    };
    let challenge = String::from_utf8_lossy(&answer[9..]).into_owned();
    let nonce = challenge
        .split(',')
        .next()
        .expect("it begins with the nonce");
    let last = String::from_utf8_lossy(input.rest()).replace("NONCE", nonce);
    assert!(exchange.last(last.as_bytes(), "app").is_err(), "{last}");
}

/// Our client's side against our server's side: it ends well just when the passwords are the same.
fn with_itself(input: &mut Input<'_>) {
    let count = usize::from(input.byte());
    let password = String::from_utf8_lossy(input.take(count)).into_owned();
    let typed = String::from_utf8_lossy(input.rest()).into_owned();
    let typed = if typed.is_empty() {
        password.clone()
    } else {
        typed
    };
    let known = Keys::derive(&password, SALT, ITERATIONS);
    let verifier = Arc::new(known.verifier(SALT, ITERATIONS));
    let right = verifier.keys_of_password(&typed).is_some();
    let client = Client::new(Binding::None).expect("there is randomness");
    let first = client.first();
    let length = u32::try_from(first.len())
        .expect("it is short")
        .to_be_bytes();
    let body = [b"SCRAM-SHA-256\0", &length[..], first.as_bytes()].concat();
    let begun = Challenge::new(verifier, None).first(&body);
    let (challenge, exchange) = begun.unwrap_or_else(|error| panic!("{error:?}"));
    let challenged = client
        .challenged(&challenge[9..])
        .expect("our own challenge");
    let keys = Keys::derive(&typed, &challenged.salt, challenged.iterations);
    let (last, expected) = challenged.answer(&keys);
    match exchange.last(last.as_bytes(), "app") {
        Ok((answer, _)) => {
            assert!(right, "{password:?} {typed:?}");
            expected
                .check(&answer[9..])
                .expect("the server knows the keys");
        }
        Err(error) => {
            assert!(!right, "{password:?} {typed:?}");
            assert_eq!(error.code, "28P01");
        }
    }
}

fn notation(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    if let Some(verifier) = Verifier::read(text) {
        assert!(text.starts_with("SCRAM-SHA-256$"));
        assert!((1..=2048).contains(&verifier.salt.len()));
        assert!(verifier.is(&Verifier::read(text).expect("as before")));
        assert_eq!(verifier.stored_key().len(), 32);
    }
}
