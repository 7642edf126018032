//! `docs/OPTIONS.md`.

use std::fmt::Write;

use unionfs::options::table::{self, Peer, Row};

use crate::words;

pub(crate) fn options() -> String {
    let template = include_str!("../templates/OPTIONS.md");
    crate::fill(template, &[("TABLES", tables()), ("COUNTS", counts())])
}

fn tables() -> String {
    let mut text = String::new();
    for group in words::groups() {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "### {}\n", group.title);
        text.push_str("| option | written by users of | | meaning | example |\n");
        text.push_str("|---|---|---|---|---|\n");
        for row in group.rows {
            let _ = writeln!(
                text,
                "| {} | {} | {} | {} | {} |",
                spelling(row),
                words::users(row),
                row.status.name(),
                cell(&words::sentence(row)),
                cell(&format!("`{}`", row.example))
            );
        }
        text.push('\n');
    }
    text
}

/// All names of a row with their value.
fn spelling(row: &Row) -> String {
    let value = match words::shown_value(row) {
        None => String::new(),
        Some((syntax, false)) => format!("={syntax}"),
        Some((syntax, true)) => format!("[={syntax}]"),
    };
    let names = row.names.iter();
    let names: Vec<_> = names
        .map(|name| cell(&format!("`{name}{value}`")))
        .collect();
    names.join(", ")
}

/// A bar would end the cell, also in code.
fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}

fn counts() -> String {
    let mut text =
        String::from("| | supported | accepted, no effect | refused |\n|---|---|---|---|\n");
    for peer in Peer::ALL {
        let [supported, accepted, refused] = table::count(peer);
        let name = peer.name();
        let _ = writeln!(text, "| {name} | {supported} | {accepted} | {refused} |");
    }
    text
}
