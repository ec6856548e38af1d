//! Owns our own settings among a client's startup parameters: by name, or inside of `options` (`-c pgvalet.owner=x`).
//!
//! PostgreSQL never sees them, and no two backends differ by them.

use std::collections::BTreeMap;

/// The prefix of our own settings.
const OURS: &str = "pgvalet.";

/// Takes our own settings out of startup parameters: names without their prefix, in lower case.
#[must_use]
pub fn take_ours(parameters: &mut BTreeMap<String, String>) -> BTreeMap<String, String> {
    let mut ours = BTreeMap::new();
    if let Some(options) = parameters.remove("options") {
        let rest = strip(&options, &mut ours);
        if !rest.is_empty() {
            parameters.insert("options".to_owned(), rest);
        }
    }
    parameters.retain(|name, value| match own_name(name) {
        Some(name) => {
            ours.insert(name, std::mem::take(value));
            false
        }
        None => true,
    });
    ours
}

fn own_name(name: &str) -> Option<String> {
    let prefix = name.get(..OURS.len())?;
    let own = prefix.eq_ignore_ascii_case(OURS);
    own.then(|| name[OURS.len()..].to_ascii_lowercase())
}

/// The options without ours, which go to `ours`; as they were when there is none of ours.
fn strip(options: &str, ours: &mut BTreeMap<String, String>) -> String {
    let words = words(options);
    let (mut kept, mut at) = (Vec::new(), 0);
    while at < words.len() {
        let word = unescaped(words[at]);
        let (length, setting) = match word.strip_prefix("--").or_else(|| word.strip_prefix("-c")) {
            Some("") if word == "-c" => (2, words.get(at + 1).map(|word| unescaped(word))),
            Some(setting) => (1, Some(setting.to_owned())),
            None => (1, None),
        };
        let pair = setting
            .as_deref()
            .and_then(|setting| setting.split_once('='));
        match pair.and_then(|(name, value)| Some((own_name(name)?, value))) {
            Some((name, value)) => drop(ours.insert(name, value.to_owned())),
            None => kept.extend(words[at..].iter().take(length).copied()),
        }
        at += length;
    }
    if kept.len() == words.len() {
        options.to_owned()
    } else {
        kept.join(" ")
    }
}

/// The words of `options`, as PostgreSQL parts them: by white space that no backslash precedes.
fn words(options: &str) -> Vec<&str> {
    let (mut words, mut start, mut escaped) = (Vec::new(), None, false);
    for (at, letter) in options.char_indices() {
        if letter.is_ascii_whitespace() && !escaped {
            words.extend(start.take().map(|start: usize| &options[start..at]));
        } else {
            start.get_or_insert(at);
        }
        escaped = letter == '\\' && !escaped;
    }
    words.extend(start.map(|start| &options[start..]));
    words
}

/// A word without its backslashes.
fn unescaped(word: &str) -> String {
    let mut letters = word.chars();
    let mut plain = String::with_capacity(word.len());
    while let Some(letter) = letters.next() {
        match letter {
            '\\' => plain.extend(letters.next()),
            letter => plain.push(letter),
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn taken(options: &str) -> (Option<String>, Option<String>) {
        let mut parameters = BTreeMap::from([("options".to_owned(), options.to_owned())]);
        let ours = take_ours(&mut parameters);
        (parameters.remove("options"), ours.get("owner").cloned())
    }

    fn some(text: &str) -> Option<String> {
        Some(text.to_owned())
    }

    #[test]
    fn our_options_are_taken_out_and_the_rest_stays_as_it_was() {
        assert_eq!(taken("-c pgvalet.owner=jobs"), (None, some("jobs")));
        assert_eq!(taken("-cpgvalet.owner=a\\ b"), (None, some("a b")));
        assert_eq!(
            taken("-c search_path=a\\ b --pgvalet.owner=x  -c geqo=off"),
            (some("-c search_path=a\\ b -c geqo=off"), some("x"))
        );
        for other in [
            "-c  geqo=off",
            "-c",
            "--",
            "-c x",
            "pgvalet.owner=x",
            "-c a=-cpgvalet.owner=x",
        ] {
            assert_eq!(taken(other), (some(other), None), "{other}");
        }
    }

    #[test]
    fn a_parameter_of_its_own_is_taken_out() {
        let mut parameters = BTreeMap::from([
            ("pgvalet.owner".to_owned(), "x".to_owned()),
            ("user".to_owned(), "a".to_owned()),
        ]);
        assert_eq!(take_ours(&mut parameters).get("owner"), some("x").as_ref());
        assert_eq!(parameters.keys().collect::<Vec<_>>(), ["user"]);
    }

    proptest! {
        #[test]
        fn any_options_are_read_without_a_panic(options in "[-c\\\\ =.pgvaletownr\té]{0,60}") {
            let _ = taken(&options);
        }
    }
}
