//! The words of the command line, from clap.

use clap::{Arg, Command};

/// A flag such as `-f`.
pub(crate) struct Flag {
    pub(crate) short: Option<char>,
    pub(crate) long: Option<String>,
    /// What its value is called.
    pub(crate) value: Option<String>,
    /// The values that there are; empty when there are more than can be told.
    pub(crate) choices: Vec<String>,
    pub(crate) help: String,
}

impl Flag {
    /// True for `-o`.
    pub(crate) fn is_options(&self) -> bool {
        self.short == Some('o')
    }

    /// True when its value names a file.
    pub(crate) fn wants_file(&self) -> bool {
        self.value.as_deref() == Some("FILE")
    }
}

/// A word such as `umount`.
pub(crate) struct Verb {
    pub(crate) name: String,
    /// What its operands are called.
    pub(crate) operands: Vec<String>,
    pub(crate) help: String,
    pub(crate) flags: Vec<Flag>,
    /// Words for the first operand.
    pub(crate) choices: Vec<String>,
}

fn command() -> Command {
    let mut command = unionfs::cli::command();
    // Adds what clap adds itself: help and version.
    command.build();
    command
}

/// All flags of a mount.
pub(crate) fn flags() -> Vec<Flag> {
    flags_of(&command())
}

fn choices(arg: &Arg) -> Vec<String> {
    let values = arg.get_possible_values().into_iter();
    values.map(|value| value.get_name().to_owned()).collect()
}

fn flags_of(command: &Command) -> Vec<Flag> {
    let shown = |arg: &&Arg| !arg.is_positional() && !arg.is_hide_set();
    let flags = command.get_arguments().filter(shown).map(|arg| Flag {
        choices: match arg.get_action().takes_values() {
            true => choices(arg),
            false => Vec::new(),
        },
        short: arg.get_short(),
        long: arg.get_long().map(str::to_owned),
        value: arg
            .get_action()
            .takes_values()
            .then(|| arg.get_value_names())
            .flatten()
            .and_then(|names| names.first())
            .map(ToString::to_string),
        help: arg.get_help().map(ToString::to_string).unwrap_or_default(),
    });
    flags.collect()
}

/// All words that may stand first.
pub(crate) fn verbs() -> Vec<Verb> {
    let command = command();
    let verbs = command.get_subcommands().filter(|verb| !verb.is_hide_set());
    verbs
        .map(|verb| Verb {
            name: verb.get_name().to_owned(),
            flags: flags_of(verb),
            choices: verb
                .get_positionals()
                .next()
                .map(choices)
                .unwrap_or_default(),
            operands: verb
                .get_positionals()
                .filter_map(Arg::get_value_names)
                .flatten()
                .map(ToString::to_string)
                .collect(),
            help: verb
                .get_about()
                .map(ToString::to_string)
                .unwrap_or_default(),
        })
        .collect()
}
