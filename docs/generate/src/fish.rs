//! Completion for fish.

use std::fmt::Write;

use crate::command_line;
use crate::words::{self, Kind};

pub(crate) fn completion() -> String {
    let mut names = String::new();
    for offer in words::offers() {
        let equals = if matches!(offer.value, Some((_, false))) {
            "="
        } else {
            ""
        };
        // Writing to a String cannot fail.
        let _ = writeln!(
            names,
            "                {}{equals} {} \\",
            offer.name,
            quoted(&offer.summary)
        );
    }
    let mut verbs = String::new();
    for verb in command_line::verbs() {
        let _ = writeln!(
            verbs,
            "complete -c unionfs -n '__fish_is_nth_token 1' -a {} -d {}",
            verb.name,
            quoted(&verb.help)
        );
        of_verb(&verb, &mut verbs);
    }
    let texts = [
        ("VALUES", values()),
        (
            "COLONS",
            words::WITH_COLON
                .map(|name| format!("'{name}:*'"))
                .join(" "),
        ),
        (
            "NAMES",
            names.trim_end_matches([' ', '\\', '\n']).to_owned(),
        ),
        ("VERBS", verbs),
        ("FLAGS", flags()),
    ];
    crate::fill(include_str!("../templates/unionfs.fish"), &texts)
}

/// The flags of a word that stands first, and the words that are its first operand.
fn of_verb(verb: &command_line::Verb, text: &mut String) {
    if !verb.choices.is_empty() {
        let _ = writeln!(
            text,
            "complete -c unionfs -n '__fish_seen_subcommand_from {}; and __fish_is_nth_token 2' -a '{}'",
            verb.name,
            verb.choices.join(" ")
        );
    }
    for flag in verb.flags.iter().filter(|flag| flag.long.is_some()) {
        let word = flag.long.as_deref().unwrap_or_default();
        let value = match (flag.wants_file(), flag.choices.as_slice(), &flag.value) {
            (true, ..) => " -r -F".to_owned(),
            (_, [], None) => String::new(),
            (_, [], Some(_)) => " -x".to_owned(),
            (_, choices, _) => format!(" -x -a '{}'", choices.join(" ")),
        };
        if ["help", "version"].contains(&word) || verb.name == "mount" {
            continue;
        }
        let _ = writeln!(
            text,
            "complete -c unionfs -n '__fish_seen_subcommand_from {}' -l {word}{value} -d {}",
            verb.name,
            quoted(&flag.help)
        );
    }
    if verb
        .operands
        .first()
        .is_some_and(|name| name.contains(".tar"))
    {
        let _ = writeln!(
            text,
            "complete -c unionfs -n '__fish_seen_subcommand_from {}' -F",
            verb.name
        );
    }
}

fn values() -> String {
    let mut text = String::new();
    for (kind, names) in words::kinds() {
        let commands = match kind {
            Kind::Choice(words) => {
                format!("printf '%s\\n' $upto{{{}}}", words.join(","))
            }
            Kind::Directory | Kind::Directories => "__unionfs_directories $upto $part".to_owned(),
            Kind::Branches => "__unionfs_branches $upto $part".to_owned(),
            Kind::File => "printf '%s\\n' $upto(complete -C \"'' $part\")".to_owned(),
            Kind::Free => continue,
        };
        let patterns = names.iter().flat_map(|name| {
            let colon = words::WITH_COLON
                .contains(name)
                .then(|| format!("'{name}:*'"));
            std::iter::once(format!("'{name}=*'")).chain(colon)
        });
        let patterns = patterns.collect::<Vec<_>>().join(" ");
        let _ = writeln!(text, "        case {patterns}\n            {commands}");
    }
    text
}

fn flags() -> String {
    let mut text = String::new();
    for flag in command_line::flags()
        .iter()
        .filter(|flag| !flag.is_options())
    {
        let mut line = "complete -c unionfs".to_owned();
        if let Some(letter) = flag.short {
            let _ = write!(line, " -s {letter}");
        }
        if let Some(word) = &flag.long {
            let _ = write!(line, " -l {word}");
        }
        line += match (flag.wants_file(), &flag.value) {
            (true, _) => " -r -F",
            (false, Some(_)) => " -x",
            (false, None) => "",
        };
        let _ = writeln!(text, "{line} -d {}", quoted(&flag.help));
    }
    text
}

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"))
}
