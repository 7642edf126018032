//! The man pages. The few macros of man(7) that lists need are written here: crates for it (roff
//! 1.1, and so clap_mangen) write a backslash as `\\`, which is none outside of a macro's definition.

use std::fmt::Write;

use unionfs::options::table::{self, Row, Status};

use crate::command_line;
use crate::words::{self, Piece};

pub(crate) fn unionfs() -> String {
    let texts = [
        ("VERSION", env!("CARGO_PKG_VERSION").to_owned()),
        ("FLAGS", flags()),
        ("VERBS", verbs()),
        ("SUPPORTED", supported()),
        ("ACCEPTED", with_status(Status::Accepted)),
        ("REFUSED", with_status(Status::Refused)),
    ];
    crate::fill(include_str!("../templates/unionfs.8"), &texts)
}

pub(crate) fn mount_unionfs() -> String {
    let texts = [("VERSION", env!("CARGO_PKG_VERSION").to_owned())];
    crate::fill(include_str!("../templates/mount.unionfs.8"), &texts)
}

/// An entry of a list.
fn entry(page: &mut String, term: &str, text: &str) {
    // Writing to a String cannot fail.
    let _ = writeln!(page, ".TP\n{term}\n{text}");
}

fn flags() -> String {
    let mut page = String::new();
    for flag in command_line::flags() {
        let short = flag.short.map(|letter| bold(&format!("-{letter}")));
        let long = flag.long.map(|word| bold(&format!("--{word}")));
        let names: Vec<_> = [short, long].into_iter().flatten().collect();
        let mut term = names.join(", ");
        if let Some(value) = flag.value {
            term = format!("{term} {}", italic(&value));
        }
        entry(&mut page, &term, &sentence(&flag.help));
    }
    page
}

fn verbs() -> String {
    let mut page = String::new();
    for verb in command_line::verbs() {
        let mut term = bold(&verb.name);
        for operand in verb.operands {
            term = format!("{term} {}", italic(&operand));
        }
        entry(&mut page, &term, &sentence(&verb.help));
    }
    page
}

/// Help texts of clap have no full stop.
fn sentence(text: &str) -> String {
    let text = escape(text);
    format!("{}.", text.trim_end_matches('.'))
}

fn supported() -> String {
    let mut page = String::new();
    for group in words::groups() {
        let rows = group.rows.into_iter();
        let mut rows = rows
            .filter(|row| row.status == Status::Supported)
            .peekable();
        if rows.peek().is_some() {
            let _ = writeln!(page, ".SS {}", escape(group.title));
        }
        rows.for_each(|row| option(&mut page, row));
    }
    page
}

fn with_status(status: Status) -> String {
    let mut page = String::new();
    let rows = table::rows().filter(|row| row.status == status);
    rows.for_each(|row| option(&mut page, row));
    page
}

fn option(page: &mut String, row: &Row) {
    let value = match words::shown_value(row) {
        None => String::new(),
        Some((syntax, false)) => format!("{}{}", bold("="), syntax_shown(syntax)),
        Some((syntax, true)) => format!("[{}{}]", bold("="), syntax_shown(syntax)),
    };
    let names = row.names.iter().map(|name| {
        // The star stands for any text.
        let name = match name.strip_suffix('*') {
            Some(start) => bold(start) + &italic("TEXT"),
            None => bold(name),
        };
        name + &value
    });
    let term = names.collect::<Vec<_>>().join(", ");
    let text: String = words::pieces(&words::sentence(row))
        .map(|piece| match piece {
            Piece::Prose(prose) => escape(prose),
            Piece::Code(code) => bold(code),
        })
        .collect();
    entry(page, &term, &text);
}

/// Capitals are placeholders, small letters and digits are literal.
fn syntax_shown(syntax: &str) -> String {
    let class = |c: char| match c {
        'A'..='Z' => 2,
        'a'..='z' | '0'..='9' => 1,
        _ => 0,
    };
    let mut text = String::new();
    let mut rest = syntax;
    while let Some(first) = rest.chars().next() {
        let end = rest.find(|c| class(c) != class(first));
        let (part, after) = rest.split_at(end.unwrap_or(rest.len()));
        text += &match class(first) {
            2 => italic(part),
            1 => bold(part),
            _ => escape(part),
        };
        rest = after;
    }
    text
}

/// Literal text, never hyphenated.
fn bold(text: &str) -> String {
    format!("\\fB\\%{}\\fR", escape(text))
}

fn italic(text: &str) -> String {
    format!("\\fI{}\\fR", escape(text))
}

/// Text as roff shows it: a minus that can be pasted into a shell, no control lines.
fn escape(text: &str) -> String {
    let text = text.replace('\\', "\\e").replace('-', "\\-");
    if text.starts_with(['.', '\'']) {
        format!("\\&{text}")
    } else {
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roff_sees_no_commands_in_texts() {
        assert_eq!(escape(r".x -y \z"), r"\&.x \-y \ez");
        assert_eq!(syntax_shown("DIR[:on...]"), r"\fIDIR\fR[:\fB\%on\fR\&...]");
    }
}
