//! Completion for bash.

use std::fmt::Write;

use crate::command_line::{self, Flag};
use crate::words::{self, Kind};

pub(crate) fn completion() -> String {
    let flags = command_line::flags();
    let offers = words::offers();
    let names = offers.iter().map(|offer| match offer.value {
        Some((_, false)) => format!("{}=", offer.name),
        _ => offer.name.to_owned(),
    });
    let verbs = command_line::verbs().into_iter().map(|verb| verb.name);
    let short = flags.iter().filter_map(|flag| flag.short);
    let long = flags.iter().filter_map(|flag| flag.long.as_ref());
    let texts = [
        ("KINDS", kinds()),
        ("NAMES", joined(names, " ")),
        (
            "COLONS",
            joined(words::WITH_COLON.map(|name| format!("{name}:*")), " | "),
        ),
        ("PATHS", paths(&flags)),
        (
            "SHORT",
            joined(short.map(|letter| format!("-{letter}")), " "),
        ),
        ("LONG", joined(long.map(|word| format!("--{word}")), " ")),
        ("VERBS", joined(verbs, " ")),
        ("OF_VERBS", of_verbs()),
        ("VALUES_OF_VERBS", values_of_verbs()),
    ];
    crate::fill(include_str!("../templates/unionfs.bash"), &texts)
}

/// The flags of each word that may stand first.
fn of_verbs() -> String {
    let mut text = String::new();
    for verb in command_line::verbs() {
        let short = verb.flags.iter().filter_map(|flag| flag.short);
        let short = short.map(|letter| format!("-{letter}"));
        let long = verb.flags.iter().filter_map(|flag| flag.long.as_ref());
        let long = long.map(|word| format!("--{word}"));
        let words = joined(short.chain(long), " ");
        let _ = writeln!(text, "        {}) flags='{words}' ;;", verb.name);
    }
    text
}

/// What stands after a flag of such a word, and the words that are its first operand.
fn values_of_verbs() -> String {
    let mut text = String::new();
    for verb in command_line::verbs() {
        let name = &verb.name;
        for flag in verb.flags.iter().filter(|flag| flag.long.is_some()) {
            let word = flag.long.as_deref().unwrap_or_default();
            let _ = match (flag.wants_file(), flag.choices.as_slice()) {
                (true, _) => writeln!(
                    text,
                    "        '{name} --{word}') _unionfs_operand -f \"$cur\"; return ;;"
                ),
                (_, []) => continue,
                (_, choices) => writeln!(
                    text,
                    "        '{name} --{word}') _unionfs_word '{}'; return ;;",
                    choices.join(" ")
                ),
            };
        }
        let first = verb
            .operands
            .first()
            .is_some_and(|name| name.contains(".tar"));
        let _ = match (verb.choices.as_slice(), first) {
            ([], false) => continue,
            ([], true) => writeln!(
                text,
                "        '{name} {name}') _unionfs_operand -f \"$cur\"; return ;;"
            ),
            (choices, _) => writeln!(
                text,
                "        '{name} {name}') _unionfs_word '{}'; return ;;",
                choices.join(" ")
            ),
        };
    }
    text
}

fn joined(words: impl IntoIterator<Item = String>, by: &str) -> String {
    words.into_iter().collect::<Vec<_>>().join(by)
}

fn kinds() -> String {
    let mut text = String::new();
    for (kind, names) in words::kinds() {
        let set = match kind {
            Kind::Choice(words) => format!("kind=choice choices='{}'", words.join(" ")),
            Kind::Directory => "kind=directory".to_owned(),
            Kind::Directories => "kind=directories".to_owned(),
            Kind::Branches => "kind=branches".to_owned(),
            Kind::File => "kind=file".to_owned(),
            Kind::Free => continue,
        };
        // Writing to a String cannot fail.
        let _ = writeln!(text, "        {}) {set} ;;", names.join(" | "));
    }
    text
}

/// The flags with a value: options, or a file.
fn paths(flags: &[Flag]) -> String {
    let mut text = "        -o | -[!-]*o) _unionfs_text ''; return ;;\n".to_owned();
    for flag in flags.iter().filter(|flag| flag.wants_file()) {
        let short = flag.short.map(|letter| format!("-{letter}"));
        let long = flag.long.as_ref().map(|word| format!("--{word}"));
        let names = joined([short, long].into_iter().flatten(), " | ");
        let _ = writeln!(
            text,
            "        {names}) _unionfs_operand -f \"$cur\"; return ;;"
        );
    }
    text
}
