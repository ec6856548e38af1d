//! Owns the reading of the console's commands.

use super::table::Column;
use super::{shows, stats};

/// One command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Command {
    Show(Show),
    /// A setting that drivers look for.
    Parameter(&'static str, &'static str),
    Help,
    Order(Order),
    /// What drivers send before and between: taken, with this tag, and without effect.
    Ignored(&'static str),
    Begin,
    End(&'static str),
}

/// What can be shown as rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Show {
    Clients,
    Servers,
    Pools,
    Stats,
    StatsTotals,
    StatsAverages,
    Totals,
    Lists,
    Databases,
    Users,
    Config,
    Version,
    Mem,
    DnsHosts,
    DnsZones,
    Leases,
    Sessions,
    Owners,
    Leaks,
}

/// What changes something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Order {
    Pause(Option<String>),
    Resume(Option<String>),
    Reconnect(Option<String>),
    WaitClose(Option<String>),
    Kill(Option<String>),
    KillClient(u32),
    Reload,
    Shutdown(Shutdown),
    /// Returns one lease.
    Return(u32),
    /// Returns what an owner holds.
    ReturnOwner(String),
}

/// How pgvalet ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shutdown {
    Now,
    /// Sessions end at their next quiet point.
    Waiting,
}

impl Show {
    /// Every one, with its word.
    pub const ALL: [(&'static str, Self); 19] = [
        ("CLIENTS", Self::Clients),
        ("SERVERS", Self::Servers),
        ("POOLS", Self::Pools),
        ("STATS", Self::Stats),
        ("STATS_TOTALS", Self::StatsTotals),
        ("STATS_AVERAGES", Self::StatsAverages),
        ("TOTALS", Self::Totals),
        ("LISTS", Self::Lists),
        ("DATABASES", Self::Databases),
        ("USERS", Self::Users),
        ("CONFIG", Self::Config),
        ("VERSION", Self::Version),
        ("MEM", Self::Mem),
        ("DNS_HOSTS", Self::DnsHosts),
        ("DNS_ZONES", Self::DnsZones),
        ("LEASES", Self::Leases),
        ("SESSIONS", Self::Sessions),
        ("OWNERS", Self::Owners),
        ("LEAKS", Self::Leaks),
    ];

    /// What its rows consist of.
    pub fn columns(self) -> &'static [Column] {
        match self {
            Self::Clients => shows::CLIENTS,
            Self::Servers => shows::SERVERS,
            Self::Pools => shows::POOLS,
            Self::Stats => stats::STATS,
            Self::StatsTotals | Self::StatsAverages => stats::HALF,
            Self::Totals => stats::TOTALS,
            Self::Lists => shows::LISTS,
            Self::Databases => shows::DATABASES,
            Self::Users => shows::USERS,
            Self::Config => shows::CONFIG,
            Self::Version => shows::VERSION,
            Self::Mem => shows::MEM,
            Self::DnsHosts => shows::DNS_HOSTS,
            Self::DnsZones => shows::DNS_ZONES,
            Self::Leases | Self::Sessions => shows::LEASES,
            Self::Owners => shows::OWNERS,
            Self::Leaks => shows::LEAKS,
        }
    }
}

/// Settings that drivers ask for, and what they hear.
const PARAMETERS: [(&str, &str); 9] = [
    ("client_encoding", "UTF8"),
    ("server_encoding", "UTF8"),
    ("server_version", "1.18.0/pgvalet"),
    ("default_transaction_isolation", "read committed"),
    ("transaction_isolation", "read committed"),
    ("standard_conforming_strings", "on"),
    ("datestyle", "ISO"),
    ("timezone", "UTC"),
    ("extra_float_digits", "2"),
];

/// The commands of a text, parted by semicolons.
///
/// # Errors
/// The first one that isn't a command.
pub(super) fn read_all(text: &str) -> Result<Vec<Command>, String> {
    let pieces = pieces(text);
    let pieces = pieces.iter().map(|piece| piece.trim());
    pieces.filter(|piece| !piece.is_empty()).map(read).collect()
}

/// Parts a text at semicolons outside of quotes.
fn pieces(text: &str) -> Vec<&str> {
    let (mut quote, mut from, mut pieces) = (None, 0, Vec::new());
    for (at, character) in text.char_indices() {
        match (quote, character) {
            (None, ';') => {
                pieces.push(&text[from..at]);
                from = at + 1;
            }
            (None, '\'' | '"') => quote = Some(character),
            (Some(open), close) if open == close => quote = None,
            (Some(_) | None, _) => {}
        }
    }
    pieces.push(&text[from..]);
    pieces
}

fn read(text: &str) -> Result<Command, String> {
    let unknown = || format!("invalid command '{}', use SHOW HELP;", shortened(text));
    let words = words(text).ok_or_else(unknown)?;
    let upper: Vec<String> = words.iter().map(|word| word.to_ascii_uppercase()).collect();
    let upper: Vec<&str> = upper.iter().map(String::as_str).collect();
    let argument = |at: usize| words.get(at).cloned();
    let command = match upper.as_slice() {
        ["SHOW", "HELP"] | ["HELP"] => Command::Help,
        ["SHOW", what] => show(what).ok_or_else(unknown)?,
        ["SHOW", "TRANSACTION", "ISOLATION", "LEVEL"] => {
            Command::Parameter("transaction_isolation", "read committed")
        }
        ["SHOW", "TIME", "ZONE"] => Command::Parameter("timezone", "UTC"),
        ["PAUSE"] | ["PAUSE", _] => Command::Order(Order::Pause(argument(1))),
        ["RESUME"] | ["RESUME", _] => Command::Order(Order::Resume(argument(1))),
        ["RECONNECT"] | ["RECONNECT", _] => Command::Order(Order::Reconnect(argument(1))),
        ["WAIT_CLOSE"] | ["WAIT_CLOSE", _] => Command::Order(Order::WaitClose(argument(1))),
        ["KILL"] | ["KILL", _] => Command::Order(Order::Kill(argument(1))),
        ["KILL_CLIENT", id] => Command::Order(Order::KillClient(session(id).ok_or_else(unknown)?)),
        ["RELOAD"] => Command::Order(Order::Reload),
        ["SHUTDOWN"] => Command::Order(Order::Shutdown(Shutdown::Now)),
        ["SHUTDOWN", "WAIT_FOR_SERVERS" | "WAIT_FOR_CLIENTS"] => {
            Command::Order(Order::Shutdown(Shutdown::Waiting))
        }
        ["RETURN", "OWNER", _] => {
            Command::Order(Order::ReturnOwner(argument(2).unwrap_or_default()))
        }
        ["RETURN", id] => Command::Order(Order::Return(session(id).ok_or_else(unknown)?)),
        ["BEGIN", ..] | ["START", "TRANSACTION", ..] => Command::Begin,
        ["COMMIT" | "END", ..] => Command::End("COMMIT"),
        ["ROLLBACK" | "ABORT", ..] => Command::End("ROLLBACK"),
        ["SET", ..] => Command::Ignored("SET"),
        ["RESET", ..] => Command::Ignored("RESET"),
        ["DISCARD", ..] => Command::Ignored("DISCARD ALL"),
        ["DEALLOCATE", ..] => Command::Ignored("DEALLOCATE ALL"),
        ["CLOSE", ..] => Command::Ignored("CLOSE CURSOR ALL"),
        ["UNLISTEN", ..] => Command::Ignored("UNLISTEN"),
        ["SELECT", "PG_ADVISORY_UNLOCK_ALL()"] => Command::Ignored("SELECT 0"),
        _ => return Err(unknown()),
    };
    Ok(command)
}

fn show(what: &str) -> Option<Command> {
    let known = Show::ALL.iter().find(|(word, _)| *word == what);
    let parameter = || {
        let known = PARAMETERS.iter();
        known
            .clone()
            .find(|(name, _)| name.eq_ignore_ascii_case(what))
    };
    known
        .map(|(_, show)| Command::Show(*show))
        .or_else(|| parameter().map(|(name, value)| Command::Parameter(name, value)))
}

/// A session's id, as SHOW CLIENTS gives it: in its column `id`, or, in hexadecimal, in `ptr`.
fn session(text: &str) -> Option<u32> {
    match text.strip_prefix("0X") {
        Some(digits) => u32::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

/// The words of a command; quotes keep a word together.
fn words(text: &str) -> Option<Vec<String>> {
    let (mut words, mut rest) = (Vec::new(), text.trim_start());
    while let Some(first) = rest.chars().next() {
        if first == '"' || first == '\'' {
            let (word, after) = quoted(rest, first)?;
            words.push(word);
            rest = after;
        } else {
            let end = rest.find(|c: char| c.is_whitespace() || c == '"' || c == '\'');
            let (word, after) = rest.split_at(end.unwrap_or(rest.len()));
            words.push(word.to_owned());
            rest = after;
        }
        rest = rest.trim_start();
    }
    (!words.is_empty()).then_some(words)
}

/// A quoted word, in which a doubled quote stands for one; and what follows it.
fn quoted(text: &str, quote: char) -> Option<(String, &str)> {
    let mut word = String::new();
    let mut inside = text.char_indices().skip(1).peekable();
    while let Some((at, character)) = inside.next() {
        if character != quote {
            word.push(character);
        } else if inside.next_if(|(_, next)| *next == quote).is_some() {
            word.push(quote);
        } else {
            return Some((word, &text[at + quote.len_utf8()..]));
        }
    }
    None
}

/// As much of a text as an error repeats.
fn shortened(text: &str) -> String {
    text.chars().take(100).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_read_as_people_write_them() {
        let read = |text| read_all(text).map(|mut all| all.pop().unwrap());
        assert_eq!(read("show pools;"), Ok(Command::Show(Show::Pools)));
        let pause = |name: &str| Ok(Command::Order(Order::Pause(Some(name.to_owned()))));
        assert_eq!(read(" PAUSE  shop ; "), pause("shop"));
        assert_eq!(
            read("pause \"My \"\"Shop\"\"; one\""),
            pause("My \"Shop\"; one")
        );
        assert_eq!(read("PAUSE"), Ok(Command::Order(Order::Pause(None))));
        let id = Ok(Command::Order(Order::KillClient(10_000_001)));
        assert_eq!(read("KILL_CLIENT 10000001"), id);
        assert_eq!(read("kill_client 0x989681"), id);
        let reset = "SELECT pg_advisory_unlock_all(); CLOSE ALL; UNLISTEN *; RESET ALL;";
        assert_eq!(read_all(reset).unwrap().len(), 4);
        for text in [
            "SELECT 1",
            "SHOW x",
            "PAUSE a b",
            "KILL_CLIENT x",
            "'open",
            "SHOW",
        ] {
            let error = read(text).unwrap_err();
            assert!(error.starts_with("invalid command '"), "{error}");
        }
    }
}
