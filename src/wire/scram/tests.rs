use proptest::prelude::*;

use super::*;

/// The password `pencil` in PostgreSQL's notation, made by another implementation (Python's hashlib).
const PENCIL: &str = "SCRAM-SHA-256$4096:jw47HFptfpARIjNEVWZ3jw==$8tXfeZtNqSoHnD1gL+DGDxRQGJnug7u3aNOzcdcP30k=:FmAuh4cDyNRfgOufDBkID/Kz+yFge2bYc30gG5lMw/4=";

fn verifier(password: &str) -> Verifier {
    Keys::derive(password, b"0123456789abcdef", ITERATIONS)
        .verifier(b"0123456789abcdef", ITERATIONS)
}

/// A whole exchange of keys against a verifier: the three messages, and what the server has to say.
fn exchange(keys: &Keys, salt: &[u8], iterations: NonZeroU32) -> ([String; 3], Expected) {
    let client = Client::new(Binding::None).unwrap();
    let first = client.first();
    let nonce = first.rsplit_once("r=").unwrap().1;
    let salt = STANDARD.encode(salt);
    let challenge = format!("r={nonce}server,s={salt},i={iterations}");
    let (last, expected) = client
        .challenged(challenge.as_bytes())
        .unwrap()
        .answer(keys);
    ([first, challenge, last], expected)
}

#[test]
fn a_verifier_fits_its_password_only() {
    let verifier = Verifier::read(PENCIL).unwrap();
    assert!(verifier.keys_of_password("pencil").is_some());
    assert!(verifier.keys_of_password("pencils").is_none());
    assert!(verifier.keys_of_password("").is_none());
}

#[test]
fn the_example_of_rfc_7677_comes_out() {
    let salt = STANDARD.decode("W22ZaJ0SNY7soEsUEjb6gQ==").unwrap();
    let client = Client {
        nonce: "rOprNGfwEbeRWgbNEkqO".to_owned(),
        binding: Binding::None,
    };
    let nonce = "rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";
    let challenge = format!("r={nonce},s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096");
    let mut challenged = client.challenged(challenge.as_bytes()).unwrap();
    // The example names its user.
    challenged.agreed = challenged.agreed.replacen("n=,", "n=user,", 1);
    let (last, expected) = challenged.answer(&Keys::derive("pencil", &salt, ITERATIONS));
    let proof = "dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=";
    assert_eq!(last, format!("c=biws,r={nonce},p={proof}"));
    let signature = b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=";
    assert_eq!(expected.check(signature), Ok(()));
}

#[test]
fn a_proof_gives_the_keys_away_with_which_the_next_login_is_made() {
    let keys = Keys::derive("pencil", b"0123456789abcdef", ITERATIONS);
    let verifier = verifier("pencil");
    let ([first, challenge, last], _) = exchange(&keys, &verifier.salt, verifier.iterations);
    let shown = verifier
        .keys_of_proof(first.as_bytes(), challenge.as_bytes(), last.as_bytes())
        .unwrap();
    assert_eq!(*shown.client, *keys.client);
    assert_eq!(*shown.server, *keys.server);
}

#[test]
fn a_wrong_proof_gives_nothing_away() {
    let verifier = verifier("pencil");
    let keys = Keys::derive("eraser", &verifier.salt, ITERATIONS);
    let ([first, challenge, last], _) = exchange(&keys, &verifier.salt, verifier.iterations);
    let (first, challenge) = (first.as_bytes(), challenge.as_bytes());
    assert!(
        verifier
            .keys_of_proof(first, challenge, last.as_bytes())
            .is_none()
    );
    for broken in [
        &b""[..],
        b"n,",
        b",p=",
        b"c=biws,r=x,p=AAAA",
        b"\xff,p=\xff",
    ] {
        assert!(verifier.keys_of_proof(first, challenge, broken).is_none());
        assert!(
            verifier
                .keys_of_proof(broken, challenge, last.as_bytes())
                .is_none()
        );
    }
}

#[test]
fn a_server_that_doesn_t_know_the_keys_is_found_out() {
    let keys = Keys::derive("pencil", b"0123456789abcdef", ITERATIONS);
    let (_, expected) = exchange(&keys, b"0123456789abcdef", ITERATIONS);
    let guess = format!("v={}", STANDARD.encode([7; 32]));
    assert_eq!(expected.check(guess.as_bytes()), Err(ScramError::Impostor));
    assert_eq!(expected.check(b"e=invalid-proof"), Err(ScramError::Refused));
    assert_eq!(expected.check(b"v=AAAA"), Err(ScramError::Malformed));
    assert_eq!(expected.check(b""), Err(ScramError::Malformed));
}

#[test]
fn a_challenge_that_is_none_is_refused() {
    let refused = |challenge: &dyn Fn(&str) -> String| {
        let client = Client::new(Binding::NotOffered).unwrap();
        let challenge = challenge(&client.nonce);
        client.challenged(challenge.as_bytes()).unwrap_err()
    };
    let salt = "s=W22ZaJ0SNY7soEsUEjb6gQ==";
    assert_eq!(
        refused(&|_| format!("r=other,{salt},i=4096")),
        ScramError::Nonce
    );
    assert_eq!(
        refused(&|ours| format!("r={ours},{salt},i=4096")),
        ScramError::Nonce
    );
    assert_eq!(
        refused(&|ours| format!("r={ours}x,{salt},i=0")),
        ScramError::Malformed
    );
    assert_eq!(
        refused(&|ours| format!("r={ours}x,{salt},i=-1")),
        ScramError::Malformed
    );
    assert_eq!(
        refused(&|ours| format!("r={ours}x,s=%,i=4096")),
        ScramError::Malformed
    );
    assert_eq!(
        refused(&|ours| format!("{salt},r={ours}x,i=4096")),
        ScramError::Malformed
    );
    assert_eq!(refused(&|_| String::new()), ScramError::Malformed);
    let endless = refused(&|ours| format!("r={ours}x,{salt},i=4294967295"));
    assert_eq!(endless, ScramError::Iterations);
    let long = refused(&|ours| format!("r={ours}{},{salt},i=4096", "x".repeat(5000)));
    assert_eq!(long, ScramError::TooLong);
}

#[test]
fn what_is_no_verifier_is_not_read_as_one() {
    for text in [
        "",
        "pencil",
        "SCRAM-SHA-256$",
        "SCRAM-SHA-256$0:W22ZaJ0SNY7soEsUEjb6gQ==$AAAA:AAAA",
        "SCRAM-SHA-256$4096:$AAAA:AAAA",
        "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$AAAA:AAAA",
        "SCRAM-SHA-1$4096:W22ZaJ0SNY7soEsUEjb6gQ==$AAAA:AAAA",
    ] {
        assert!(Verifier::read(text).is_none(), "{text}");
    }
}

#[test]
fn passwords_are_prepared_as_rfc_4013_wants_it() {
    // A soft hyphen is dropped, a no-break space is a space, a ligature is taken apart.
    for (one, other) in [("I\u{AD}X", "IX"), ("a\u{A0}b", "a b"), ("ﬁsh", "fish")] {
        assert!(verifier(one).is(&verifier(other)), "{one:?}");
    }
    // What mustn't be there is taken as it is.
    assert!(verifier("\u{7}").keys_of_password("\u{7}").is_some());
}

#[test]
fn a_mock_is_the_same_for_the_same_user_and_fits_nobody() {
    let mock = |user: &str| Verifier::mock(b"pepper", user);
    assert!(mock("mallory").is(&mock("mallory")));
    assert_ne!(mock("mallory").salt, mock("alice").salt);
    assert_eq!(mock("mallory").salt.len(), 16);
    assert!(mock("mallory").keys_of_password("").is_none());
}

proptest! {
    #[test]
    fn nothing_from_outside_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = Client::new(Binding::None).unwrap().challenged(&bytes);
        let verifier = Verifier::mock(b"pepper", "user");
        let _ = verifier.keys_of_proof(&bytes, &bytes, &bytes);
        let _ = Expected([0; 32]).check(&bytes);
        let _ = Verifier::read(&String::from_utf8_lossy(&bytes));
    }

    #[test]
    fn a_challenge_of_any_shape_is_judged(text in "(r=[!-~]{0,40})?,?(s=[A-Za-z0-9+/=]{0,40})?,?(i=[0-9]{0,12})?") {
        let _ = Client::new(Binding::None).unwrap().challenged(text.as_bytes());
        let _ = Verifier::read(&format!("SCRAM-SHA-256${text}"));
    }
}
