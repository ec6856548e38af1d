//! Owns the kinds of keys: what each takes, in words, and how it fills and shows its field.

use std::path::PathBuf;
use std::time::Duration;

use secrecy::SecretString;

use super::show::HIDDEN;
use super::value::{self, Raw, Zero};
use super::{Address, Config, Group, Network, ValueProblem};

/// A field of the configuration.
type Slot<T> = fn(&mut Config) -> &mut T;

/// What a key takes, and the field that it fills.
#[derive(Debug)]
pub enum Kind {
    /// The upstream URL.
    Upstream,
    /// The `[users.NAME]` tables.
    Users,
    /// The `[[rules]]` tables.
    Rules,
    /// The `[[logins]]` tables.
    Logins,
    /// One address.
    Address(Slot<Address>),
    /// One address or more.
    Addresses(Slot<Vec<Address>>),
    /// A duration up to the bound.
    Duration(Slot<Duration>, Zero, Duration),
    /// A whole number from..=to.
    Count(Slot<usize>, usize, usize),
    /// One of some words.
    Choice(Choice),
    /// Names of custom settings.
    Patterns(Slot<Vec<String>>),
    /// A log filter.
    Filter(Slot<String>),
    /// A name.
    Name(Slot<Option<String>>),
    /// What people call something.
    Label(Slot<Option<String>>),
    /// A query for secrets.
    Query(Slot<Option<String>>),
    /// A secret: never a flag, never shown.
    Secret(Slot<Option<SecretString>>),
    /// Names of people or programs.
    Names(Slot<Vec<String>>),
    /// The permission bits of a file.
    Permissions(Slot<u32>),
    /// A group of the system's.
    Group(Slot<Option<Group>>),
    /// A shell command.
    Command(Slot<Option<String>>),
    /// Networks.
    Networks(Slot<Vec<Network>>),
    /// A file.
    Path(Slot<Option<PathBuf>>),
}

/// One of some words, and how it is written to and read from its field.
#[derive(Debug)]
pub struct Choice {
    /// The words.
    pub options: &'static [&'static str],
    pub(super) set: fn(&mut Config, usize),
    pub(super) get: fn(&Config) -> usize,
}

impl Kind {
    /// What the key takes, in words.
    pub fn allowed(&self) -> String {
        match self {
            Self::Upstream => {
                "postgres://user:password@host:port/database, special characters percent-encoded; \
                 ?host=/directory for a unix socket; several as host:port,host:port; \
                 ?sslmode=, sslrootcert=, sslcert=, sslkey=, target_session_attrs= and load_balance_hosts= as in libpq"
                    .to_owned()
            }
            Self::Users => super::file::USER.to_owned(),
            Self::Logins => super::logins::ALLOWED.to_owned(),
            Self::Rules => super::rules::ALLOWED.to_owned(),
            Self::Address(_) => "host:port or unix:/path".to_owned(),
            Self::Addresses(_) => "host:port or unix:/directory, or several".to_owned(),
            Self::Duration(_, Zero::Off, _) => {
                "a duration such as \"500ms\", \"30s\" or \"1h 30m\"; \"0s\" for off".to_owned()
            }
            Self::Duration(_, Zero::Refused, _) => {
                "a duration such as \"500ms\", \"30s\" or \"1h 30m\"".to_owned()
            }
            Self::Count(_, least, most) => format!("a whole number from {least} to {most}"),
            Self::Choice(choice) => {
                choice.options.iter().map(|word| format!("\"{word}\"")).collect::<Vec<_>>().join(" or ")
            }
            Self::Patterns(_) => "names such as \"app.tenant\" or patterns such as \"app.*\"".to_owned(),
            Self::Filter(_) => {
                "off, error, warn, info, debug or trace, or a filter such as \"info,pgvalet::session=debug\"".to_owned()
            }
            Self::Name(_) => "a name".to_owned(),
            Self::Label(_) => "1 to 63 characters, none of them a control character".to_owned(),
            Self::Query(_) => {
                "\"default\", or a query for name and secret with the user's name in $1, all names qualified".to_owned()
            }
            Self::Permissions(_) => "octal digits such as \"0770\"".to_owned(),
            Self::Group(_) => "the name or the number of a group".to_owned(),
            Self::Command(_) => "a command of the shell's".to_owned(),
            Self::Networks(_) => "networks such as \"10.0.0.0/8\", or addresses".to_owned(),
            Self::Path(_) => "the absolute path of a file".to_owned(),
            Self::Secret(_) => "16 characters or more, of visible ASCII".to_owned(),
            Self::Names(_) => "names, or `*` for all".to_owned(),
        }
    }

    /// Fills the key's field. `load` sees to the upstream and the tables.
    pub(super) fn set(&self, config: &mut Config, raw: &Raw) -> Result<(), ValueProblem> {
        match self {
            Self::Upstream => {}
            // Tables are taken as they are read: this is something else.
            Self::Users | Self::Rules | Self::Logins => {
                raw.text()?;
                return Err(ValueProblem::Type { found: "a string" });
            }
            Self::Address(slot) => *slot(config) = value::address(raw.text()?.trim())?,
            Self::Addresses(slot) => {
                let texts = raw.list()?;
                let addresses = texts
                    .iter()
                    .map(|text| value::address(text))
                    .collect::<Result<Vec<_>, _>>()?;
                if addresses.is_empty() {
                    return Err(ValueProblem::Several { count: 0 });
                }
                *slot(config) = addresses;
            }
            Self::Duration(slot, zero, most) => *slot(config) = value::duration(raw, *zero, *most)?,
            Self::Count(slot, least, most) => *slot(config) = value::count(raw, *least, *most)?,
            Self::Choice(choice) => (choice.set)(config, value::choice(raw, choice.options)?),
            Self::Patterns(slot) => {
                *slot(config) = raw
                    .list()?
                    .iter()
                    .map(|text| value::pattern(text))
                    .collect::<Result<_, _>>()?;
            }
            Self::Filter(slot) => *slot(config) = value::filter(raw.text()?.trim())?,
            Self::Name(slot) => *slot(config) = Some(raw.text()?.to_owned()),
            Self::Label(slot) => *slot(config) = Some(value::name(raw.text()?.trim())?),
            Self::Query(slot) => *slot(config) = Some(value::auth_query(raw.text()?)?),
            Self::Permissions(slot) => *slot(config) = value::permissions(raw.text()?.trim())?,
            Self::Group(slot) => *slot(config) = Some(value::group(raw)?),
            Self::Command(slot) => {
                // Commas are the shell's own here.
                *slot(config) = Some(raw.text()?.trim().to_owned()).filter(|text| !text.is_empty());
            }
            Self::Networks(slot) => {
                *slot(config) = raw
                    .list()?
                    .iter()
                    .map(|text| value::network(text))
                    .collect::<Result<_, _>>()?;
            }
            Self::Path(slot) => *slot(config) = Some(value::path(raw.text()?)?),
            Self::Secret(slot) => *slot(config) = Some(value::token(raw.text()?)?),
            Self::Names(slot) => *slot(config) = raw.list()?,
        }
        Ok(())
    }

    /// The field's value as TOML; None where it has none, for rules, and for the upstream and the users, whose secrets `show` hides.
    pub(super) fn get(&self, config: &Config) -> Option<toml::Value> {
        // A slot is the one way to the field, and wants a mutable configuration.
        let config = &mut config.clone();
        let texts = |list: Vec<String>| {
            toml::Value::Array(list.into_iter().map(toml::Value::String).collect())
        };
        Some(match self {
            Self::Upstream | Self::Users | Self::Rules | Self::Logins => return None,
            Self::Secret(slot) => {
                slot(config).as_ref()?;
                toml::Value::String(HIDDEN.to_owned())
            }
            Self::Names(slot) => texts(slot(config).clone()),
            Self::Address(slot) => toml::Value::String(slot(config).to_string()),
            Self::Addresses(slot) => match slot(config).as_slice() {
                [address] => toml::Value::String(address.to_string()),
                several => texts(several.iter().map(Address::to_string).collect()),
            },
            Self::Duration(slot, _, _) => {
                toml::Value::String(humantime::format_duration(*slot(config)).to_string())
            }
            Self::Count(slot, _, _) => {
                toml::Value::Integer(i64::try_from(*slot(config)).unwrap_or(i64::MAX))
            }
            Self::Choice(choice) => {
                toml::Value::String(choice.options[(choice.get)(config)].to_owned())
            }
            Self::Patterns(slot) => texts(slot(config).clone()),
            Self::Filter(slot) => toml::Value::String(slot(config).clone()),
            Self::Name(slot) | Self::Query(slot) | Self::Label(slot) => {
                toml::Value::String(slot(config).clone()?)
            }
            Self::Permissions(slot) => toml::Value::String(format!("{:04o}", slot(config))),
            Self::Group(slot) => toml::Value::String(slot(config).as_ref()?.name.clone()),
            Self::Command(slot) => toml::Value::String(slot(config).clone()?),
            Self::Networks(slot) => texts(slot(config).iter().map(Network::to_string).collect()),
            Self::Path(slot) => {
                toml::Value::String(slot(config).as_ref()?.to_string_lossy().into_owned())
            }
        })
    }
}
