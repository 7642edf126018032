//! Completion for zsh.

use std::fmt::Write;

use crate::command_line::{self, Flag};
use crate::words::{self, Kind, Offer};

pub(crate) fn completion() -> String {
    let mut options = String::new();
    for offer in words::offers() {
        // Writing to a String cannot fail.
        let _ = writeln!(options, "        '{}'", option(&offer));
    }
    let mut verbs = String::new();
    for verb in command_line::verbs() {
        let _ = writeln!(verbs, "        '{}:{}'", verb.name, quoted(&verb.help));
    }
    let mut flags = String::new();
    for flag in command_line::flags() {
        let _ = writeln!(flags, "        {} \\", argument(&flag));
    }
    let mut of_verbs = String::new();
    let others = command_line::verbs().into_iter();
    for verb in others.filter(|verb| verb.name != "mount") {
        let _ = write!(of_verbs, "    {})\n        _arguments -S \\\n", verb.name);
        for flag in &verb.flags {
            let _ = writeln!(of_verbs, "            {} \\", argument(flag));
        }
        let is_archive = |name: &String| name.contains(".tar");
        let second = match (verb.choices.as_slice(), verb.operands.first()) {
            ([], Some(first)) if is_archive(first) => "'2:archive:_files'".to_owned(),
            ([], _) => "'2:directory:_files -/'".to_owned(),
            (choices, _) => format!("'2:action:({})'", choices.join(" ")),
        };
        let _ = writeln!(
            of_verbs,
            "            '1: :' \\\n            {second} \\\n            '*:directory:_files -/'\n        return ;;"
        );
    }
    let texts = [
        ("OPTIONS", options),
        ("VERBS", verbs),
        ("FLAGS", flags),
        ("OF_VERBS", of_verbs),
    ];
    crate::fill(include_str!("../templates/_unionfs"), &texts)
}

/// An entry of `_values`.
fn option(offer: &Offer) -> String {
    let value = match &offer.value {
        None => String::new(),
        Some((kind, optional)) => {
            let colons = if *optional { "::" } else { ":" };
            let action = match kind {
                Kind::Choice(words) => format!("value:({})", words.join(" ")),
                Kind::Directory => "directory:_files -/".to_owned(),
                Kind::Directories => "directories:_unionfs_directories".to_owned(),
                Kind::Branches => "branches:_unionfs_branches".to_owned(),
                Kind::File => "file:_files".to_owned(),
                Kind::Free => "value: ".to_owned(),
            };
            format!("{colons}{action}")
        }
    };
    // Those that add a layer may come more than once.
    let repeated = offer.name.ends_with('+')
        || matches!(offer.value, Some((Kind::Branches, _)))
            && !["br", "dirs"].contains(&offer.name);
    let star = if repeated { "*" } else { "" };
    format!("{star}{}[{}]{value}", offer.name, quoted(&offer.summary))
}

/// An argument of `_arguments`.
fn argument(flag: &Flag) -> String {
    let help = quoted(&flag.help);
    let action = match (flag.is_options(), flag.wants_file(), &flag.value) {
        (true, ..) => ":options:_unionfs_options".to_owned(),
        (_, true, _) => ":file:_files".to_owned(),
        (.., Some(_)) if !flag.choices.is_empty() => format!(":value:({})", flag.choices.join(" ")),
        (.., Some(_)) => ":value: ".to_owned(),
        (.., None) => String::new(),
    };
    let plus = if flag.value.is_some() { "+" } else { "" };
    let star = if flag.is_options() { "*" } else { "" };
    match (flag.short, &flag.long) {
        (Some(letter), Some(word)) => {
            format!("'(-{letter} --{word})'{{-{letter}{plus},--{word}}}'[{help}]{action}'")
        }
        (Some(letter), None) => format!("'{star}-{letter}{plus}[{help}]{action}'"),
        (None, Some(word)) => format!("'--{word}[{help}]{action}'"),
        (None, None) => String::new(),
    }
}

/// Text within brackets within single quotes.
fn quoted(text: &str) -> String {
    let mut quoted = String::new();
    for c in text.chars() {
        match c {
            '\'' => quoted.push_str("'\\''"),
            '[' | ']' | ':' | '\\' => quoted.extend(['\\', c]),
            _ => quoted.push(c),
        }
    }
    quoted
}
