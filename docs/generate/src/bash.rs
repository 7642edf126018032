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
    ];
    crate::fill(include_str!("../templates/unionfs.bash"), &texts)
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
    let mut text = "        -*o) _unionfs_text ''; return ;;\n".to_owned();
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
