//! Owns the first look at a text: does it mention anything that we act on?
//!
//! Nearly no text does. To find that out costs some forty instructions for eight bytes, all that most texts cost us.

/// Which words of interest occur in a text, in any case, at any place, be it in a comment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Words {
    /// `set` or `load`: state that the probe may not see.
    pub state: bool,
    /// `pgvalet`: perhaps one of our own settings.
    pub own: bool,
}

/// One byte of value 1 in each lane.
const EACH: u64 = u64::MAX / 0xff;

impl Words {
    /// Looks at a text, or at a message that holds one.
    #[must_use]
    pub fn of(text: &[u8]) -> Self {
        let Some(last) = text.len().checked_sub(LANES + MARGIN) else {
            return Self::of_short(text);
        };
        let (mut state, mut own, mut at) = (0, 0, 0);
        loop {
            let window = text[at..]
                .first_chunk()
                .expect("the last place leaves room for all lanes");
            let (a, b, c, d) = (
                lower::<0>(window),
                lower::<1>(window),
                lower::<2>(window),
                lower::<3>(window),
            );
            let set = differ(a, b's') | differ(b, b'e') | differ(c, b't');
            let load = differ(a, b'l') | differ(b, b'o') | differ(c, b'a') | differ(d, b'd');
            let pgv = differ(a, b'p') | differ(b, b'g') | differ(c, b'v');
            state |= zeros(set) | zeros(load);
            own |= zeros(pgv);
            if at == last {
                break;
            }
            at = (at + LANES).min(last);
        }
        let rest = Self::of_short(&text[last + LANES..]);
        Self {
            state: state != 0 || rest.state,
            own: own != 0 || rest.own,
        }
    }

    fn of_short(text: &[u8]) -> Self {
        let has = |word: &[u8]| {
            text.windows(word.len())
                .any(|window| window.eq_ignore_ascii_case(word))
        };
        Self {
            state: has(b"set") || has(b"load"),
            own: has(b"pgv"),
        }
    }
}

/// How many places are looked at in one go.
const LANES: usize = size_of::<u64>();

/// How far behind a place the longest word reaches.
const MARGIN: usize = 3;

/// Eight bytes of the text, letters in lower case.
#[inline(always)]
fn lower<const OFFSET: usize>(window: &[u8; LANES + MARGIN]) -> u64 {
    let bytes = window[OFFSET..]
        .first_chunk()
        .expect("no offset is beyond the margin");
    u64::from_ne_bytes(*bytes) | (EACH * 0x20)
}

/// Zero in the lanes that hold this letter.
#[inline(always)]
const fn differ(lanes: u64, letter: u8) -> u64 {
    lanes ^ (EACH * letter as u64)
}

/// Not zero when a lane is zero.
#[inline(always)]
const fn zeros(lanes: u64) -> u64 {
    lanes.wrapping_sub(EACH) & !lanes & (EACH * 0x80)
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
        fn it_finds_what_a_plain_search_finds(text in "[ sSeEtTlLoOaAdDpPgGvV\u{13}]{0,80}") {
            let plain = text.to_ascii_lowercase();
            let found = Words::of(text.as_bytes());
            prop_assert_eq!(found.state, plain.contains("set") || plain.contains("load"));
            prop_assert_eq!(found.own, plain.contains("pgv"));
        }
    }
}
