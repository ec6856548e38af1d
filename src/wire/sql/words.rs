//! Owns the first look at a text: does it mention anything that we act on?
//!
//! Nearly no text does. To find that out costs some forty instructions for sixteen bytes, all that most texts cost us.

/// Which words of interest occur in a text, in any case, at any place, be it in a comment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Words {
    /// `set`, `load`, or a name of PostgreSQL's own (`pg_…`): state that the probe may not see.
    pub state: bool,
    /// `pgvalet`: perhaps one of our own settings.
    pub own: bool,
}

impl Words {
    /// Looks at a text, or at a message that holds one.
    #[must_use]
    pub fn of(text: &[u8]) -> Self {
        let (mut state, mut own) = ([0; LANES], [0; LANES]);
        let rest = windows(text, |window| look(window, &mut state, &mut own));
        let rest = Self::of_short(rest);
        Self {
            state: state != [0; LANES] || rest.state,
            own: own != [0; LANES] || rest.own,
        }
    }

    fn of_short(text: &[u8]) -> Self {
        let has = |word: &[u8]| {
            text.windows(word.len())
                .any(|window| window.eq_ignore_ascii_case(word))
        };
        Self {
            state: STATE.iter().any(|word| has(word)),
            own: has(b"pgv"),
        }
    }
}

/// What occurs in every word that may make state.
const STATE: [&[u8]; 3] = [b"set", b"load", b"pg_"];

/// How many places are looked at in one go: what a vector register holds.
pub(super) const LANES: usize = 16;

/// How far behind a place the longest word reaches.
pub(super) const MARGIN: usize = 3;

/// Looks at all places of a text but the last ones, which are given back: all of a short text.
#[inline(always)]
pub(super) fn windows(text: &[u8], mut look: impl FnMut(&[u8; LANES + MARGIN])) -> &[u8] {
    let Some(last) = text.len().checked_sub(LANES + MARGIN) else {
        return text;
    };
    let mut at = 0;
    loop {
        let window = text[at..].first_chunk();
        look(window.expect("the last place leaves room for all lanes"));
        if at == last {
            return &text[last + LANES..];
        }
        at = (at + LANES).min(last);
    }
}

/// Looks for a word at each place. The compiler makes vector instructions of it.
#[inline(always)]
fn look(window: &[u8; LANES + MARGIN], state: &mut [u8; LANES], own: &mut [u8; LANES]) {
    for place in 0..LANES {
        let is = |offset: usize, letter: u8| u8::from(window[place + offset] | 0x20 == letter);
        let set = is(0, b's') & is(1, b'e') & is(2, b't');
        let load = is(0, b'l') & is(1, b'o') & is(2, b'a') & is(3, b'd');
        let pg = is(0, b'p') & is(1, b'g');
        let behind = u8::from(window[place + 2] == b'_');
        state[place] |= set | load | pg & behind;
        own[place] |= pg & is(2, b'v');
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_word_is_found_wherever_it_stands() {
        for before in 0..40 {
            for after in 0..40 {
                let around = |word: &str| {
                    let text = [&vec![b'x'; before][..], word.as_bytes(), &vec![b'e'; after]];
                    Words::of(&text.concat())
                };
                let place = format!("{before} {after}");
                assert!(around("sEt").state && !around("sEt").own, "{place}");
                assert!(around("LOAD").state && !around("lOAD").own, "{place}");
                assert!(around("pgValet").own && !around("PGv").state, "{place}");
                assert_eq!(around("se"), Words::default(), "{place}");
            }
        }
    }

    proptest! {
        #[test]
        fn it_finds_what_a_plain_search_finds(text in "[ sSeEtTlLoOaAdDpPgGvV_\u{13}]{0,80}") {
            let plain = text.to_ascii_lowercase();
            let found = Words::of(text.as_bytes());
            let state = ["set", "load", "pg_"];
            prop_assert_eq!(found.state, state.iter().any(|word| plain.contains(word)));
            prop_assert_eq!(found.own, plain.contains("pgv"));
        }
    }
}
