//! Owns what PostgreSQL reports of a session's settings, and what a client asked for at startup.

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use crate::wire::frame::cstr;
use crate::wire::reply;

/// The setting by which PostgreSQL's views and logs name an application. It is no part of a session's state: what it is stands
/// in the reports, and a backend gets it with the session.
pub const APPLICATION_NAME: &str = "application_name";

/// Reported settings (ParameterStatus), by name.
#[derive(Clone, Debug, Default)]
pub struct Parameters {
    by_name: BTreeMap<Rc<str>, Rc<str>>,
    /// The same as messages, once somebody was told all of them.
    frames: OnceCell<Rc<[u8]>>,
}

impl PartialEq for Parameters {
    fn eq(&self, other: &Self) -> bool {
        self.by_name == other.by_name
    }
}

impl Eq for Parameters {}

impl Parameters {
    /// The reported value.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.by_name.get(name).map(AsRef::as_ref)
    }

    /// The reported `application_name`.
    #[must_use]
    pub fn application(&self) -> Option<&str> {
        self.get(APPLICATION_NAME)
    }

    /// Whether they differ in the `application_name` at most.
    #[must_use]
    pub fn are_alike(&self, other: &Self) -> bool {
        fn rest(all: &Parameters) -> impl Iterator<Item = (&str, &str)> {
            all.iter().filter(|(name, _)| *name != APPLICATION_NAME)
        }
        rest(self).eq(rest(other))
    }

    /// PostgreSQL's major version; 0 where it isn't known.
    #[must_use]
    pub fn version(&self) -> u32 {
        self.get("server_version").map_or(0, major)
    }

    /// Takes in a report.
    pub fn set(&mut self, name: &str, value: &str) {
        self.by_name.insert(name.into(), value.into());
        self.frames.take();
    }

    /// All of them as messages.
    #[must_use]
    pub fn frames(&self) -> &[u8] {
        self.frames.get_or_init(|| {
            let mut frames = Vec::new();
            for (name, value) in self.iter() {
                reply::parameter_status(&mut frames, name, value);
            }
            frames.into()
        })
    }

    /// Every report, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.by_name
            .iter()
            .map(|(name, value)| (name.as_ref(), value.as_ref()))
    }

    /// What a client that was told `told` has to be told to know these.
    pub fn news<'a>(&'a self, told: &'a Self) -> impl Iterator<Item = (&'a str, &'a str)> {
        self.iter()
            .filter(|(name, value)| told.get(name) != Some(value))
    }
}

/// Reads the body of a ParameterStatus.
#[must_use]
pub fn read_status(body: &[u8]) -> Option<(&str, &str)> {
    let (name, rest) = cstr(body)?;
    let (value, _) = cstr(rest)?;
    Some((
        std::str::from_utf8(name).ok()?,
        std::str::from_utf8(value).ok()?,
    ))
}

/// The startup parameters that make backends differ: what RESET goes back to.
///
/// `application_name` isn't among them: it differs too often, and is set when a backend changes hands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Baseline(pub BTreeMap<String, String>);

impl Baseline {
    /// The parameters of a startup packet that PostgreSQL shall see, apart from who and where.
    #[must_use]
    pub fn of_startup(parameters: &BTreeMap<String, String>) -> Self {
        let ours = |name: &str| {
            matches!(
                name,
                "user" | "database" | "application_name" | "replication"
            ) || name.starts_with("pgvalet.")
        };
        Self(
            parameters
                .iter()
                .filter(|(name, _)| !ours(name))
                .map(|(name, value)| (name.clone(), value.clone()))
                .collect(),
        )
    }

    /// Whether they set `name`, by itself or in `options`.
    #[must_use]
    pub fn names(&self, name: &str) -> bool {
        self.0.iter().any(|(key, value)| {
            key.eq_ignore_ascii_case(name)
                || key == "options" && value.to_ascii_lowercase().contains(name)
        })
    }

    /// The same for a walsender, which the startup parameter `replication` makes of a backend.
    #[must_use]
    pub fn for_replication(&self, kind: &str) -> Self {
        let mut parameters = self.0.clone();
        parameters.insert("replication".to_owned(), kind.to_owned());
        Self(parameters)
    }
}

/// How long a name is at most, in bytes: PostgreSQL's `NAMEDATALEN` less one.
const LONGEST_NAME: usize = 63;

/// A name as PostgreSQL cuts it, at the end of a character.
#[must_use]
pub fn cut(name: &str) -> &str {
    let mut ends = (0..=name.len().min(LONGEST_NAME)).rev();
    let end = ends.find(|end| name.is_char_boundary(*end));
    &name[..end.unwrap_or(0)]
}

/// The major version in the text of a version; 0 where there is none.
fn major(version: &str) -> u32 {
    let end = version.find(|letter: char| !letter.is_ascii_digit());
    version[..end.unwrap_or(version.len())].parse().unwrap_or(0)
}

/// An `application_name` as PostgreSQL takes it: no longer than its names are, and in printable ASCII. What isn't becomes a
/// question mark, or its number from version 16 on.
#[must_use]
pub fn application_name(name: &str, version: Option<&str>) -> String {
    let old = (1..16).contains(&version.map_or(0, major));
    let mut clean = String::new();
    for byte in cut(name).bytes() {
        match byte {
            b' '..=b'~' => clean.push(char::from(byte)),
            _ if old => clean.push('?'),
            _ => clean.push_str(&format!("\\x{byte:02x}")),
        }
    }
    // It goes to other backends in this form.
    clean.truncate(LONGEST_NAME);
    clean
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_changed_is_news() {
        let (mut old, mut new) = (Parameters::default(), Parameters::default());
        old.set("TimeZone", "UTC");
        old.set("DateStyle", "ISO, MDY");
        new.set("TimeZone", "Asia/Tokyo");
        new.set("DateStyle", "ISO, MDY");
        assert_eq!(
            new.news(&old).collect::<Vec<_>>(),
            [("TimeZone", "Asia/Tokyo")]
        );
    }

    #[test]
    fn those_that_differ_in_the_name_alone_are_alike() {
        let of = |name: &str, zone: &str| {
            let mut parameters = Parameters::default();
            parameters.set("TimeZone", zone);
            parameters.set(APPLICATION_NAME, name);
            parameters
        };
        assert!(of("web", "UTC").are_alike(&of("jobs", "UTC")));
        assert!(!of("web", "UTC").are_alike(&of("web", "Asia/Tokyo")));
        assert!(!of("web", "UTC").are_alike(&Parameters::default()));
    }

    #[test]
    fn a_baseline_leaves_out_who_and_where() {
        let startup = [
            ("user", "a"),
            ("database", "b"),
            ("application_name", "c"),
            ("options", "-c x=1"),
        ];
        let startup = startup
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into();
        assert_eq!(
            Baseline::of_startup(&startup).0.keys().collect::<Vec<_>>(),
            ["options"]
        );
    }

    #[test]
    fn a_name_of_an_application_is_what_postgresql_makes_of_it() {
        let long = "é".repeat(50);
        for (name, version, taken) in [
            ("web", "15.8", "web".to_owned()),
            (&*"a".repeat(99), "18.1", "a".repeat(63)),
            ("é\n", "15.8 (Debian)", "???".to_owned()),
            ("é\n", "16.1", r"\xc3\xa9\x0a".to_owned()),
            (&*long, "14.1", "?".repeat(62)),
        ] {
            assert_eq!(application_name(name, Some(version)), taken, "{name}");
        }
        assert_eq!(application_name(&long, Some("17beta1")).len(), 63);
    }
}
