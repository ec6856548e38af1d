//! Owns the flags of the configuration, one for each key of `config`'s table.
//!
//! Written by hand where clap's derive would want each key a second time.

use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};

use crate::config::{KEYS, Key, Kind, Visibility};

/// Flags given, as (key name, value), in the table's order.
#[derive(Clone, Debug, Default)]
pub(super) struct ConfigOptions {
    pub(super) flags: Vec<(String, String)>,
}

impl Args for ConfigOptions {
    fn augment_args(command: Command) -> Command {
        KEYS.iter().filter_map(argument).fold(command, Command::arg)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for ConfigOptions {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut options = Self::default();
        options.update_from_arg_matches(matches)?;
        Ok(options)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        self.flags = KEYS
            .iter()
            .filter(|key| key.flag().is_some())
            .filter_map(|key| Some((key, matches.get_many::<String>(key.name)?)))
            .flat_map(|(key, values)| values.map(|value| (key.name.to_owned(), value.clone())))
            .collect();
        Ok(())
    }
}

fn argument(key: &'static Key) -> Option<Arg> {
    let help = format!("{} [{}]", key.about, key.variable());
    Some(
        Arg::new(key.name)
            .long(key.flag()?)
            .value_name(placeholder(&key.kind))
            .action(ArgAction::Append)
            .hide(key.visibility == Visibility::Hidden)
            .help(help),
    )
}

fn placeholder(kind: &Kind) -> String {
    match kind {
        Kind::Upstream => "URL".to_owned(),
        Kind::Address(_) | Kind::Addresses(_) => "ADDR".to_owned(),
        Kind::Duration(..) => "DURATION".to_owned(),
        Kind::Count(..) => "N".to_owned(),
        Kind::Choice(choice) => choice.options.join("|"),
        Kind::Patterns(_) => "PATTERN".to_owned(),
        Kind::Filter(_) => "FILTER".to_owned(),
        Kind::Path(_) => "FILE".to_owned(),
        Kind::Permissions(_) => "OCTAL".to_owned(),
        Kind::Command(_) => "COMMAND".to_owned(),
        Kind::Group(_) => "GROUP".to_owned(),
        Kind::Networks(_) => "NETWORK".to_owned(),
        Kind::Name(_) | Kind::Names(_) | Kind::Label(_) => "NAME".to_owned(),
        Kind::Query(_) => "SQL".to_owned(),
        Kind::Users | Kind::Rules | Kind::Logins | Kind::Secret(_) => "TABLE".to_owned(),
    }
}
