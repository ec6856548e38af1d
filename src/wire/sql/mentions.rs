//! Owns the first look at a text: does a word occur in it at all?
//!
//! Most texts mention nothing that we act on. To find that out costs a few vector instructions, so that the readers that
//! look closer see only texts that may concern them.

/// Whether `word`, of lower-case letters, occurs in `text`, in any case and at any place. Its letter number `rarest` is
/// what is looked for: the fewer a text has, the less there is to compare.
#[must_use]
#[inline]
pub fn mentions(text: &[u8], word: &[u8], rarest: usize) -> bool {
    let letter = word[rarest];
    memchr::memchr2_iter(letter, letter.to_ascii_uppercase(), text).any(|at| {
        at.checked_sub(rarest)
            .and_then(|from| text.get(from..from + word.len()))
            .is_some_and(|there| there.eq_ignore_ascii_case(word))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_word_is_found_wherever_it_stands() {
        for before in 0..70 {
            for after in 0..40 {
                let text = [&vec![b'x'; before][..], b"sEt", &vec![b'e'; after]].concat();
                assert!(mentions(&text, b"set", 2), "{before} {after}");
                assert!(!mentions(&text[..before + 2], b"set", 2), "{before}");
            }
        }
    }

    proptest! {
        #[test]
        fn it_finds_what_a_plain_search_finds(text in "[ sSeEtT\u{13}]{0,80}", rarest in 0..3_usize) {
            let plain = text.to_ascii_lowercase().contains("set");
            prop_assert_eq!(mentions(text.as_bytes(), b"set", rarest), plain);
        }
    }
}
