//! Titles, texts and trees side by side on stdout.

use std::io::{self, IsTerminal, Write};

use super::tree::{Line, Mood};

/// The space between two columns.
const GAP: usize = 4;

const BOLD: &str = "\x1b[1m";
const DIM: &str = "\x1b[2m";
const GREEN: &str = "\x1b[32m";
const RED: &str = "\x1b[31m";
const PLAIN: &str = "\x1b[0m";

/// Branches of a drawn tree: one that goes on, the last one, and what continues below them.
struct Branches {
    middle: &'static str,
    last: &'static str,
    through: &'static str,
    none: &'static str,
}

const UNICODE: Branches = Branches {
    middle: "\u{251c}\u{2500}\u{2500} ",
    last: "\u{2514}\u{2500}\u{2500} ",
    through: "\u{2502}   ",
    none: "    ",
};
const ASCII: Branches = Branches {
    middle: "|-- ",
    last: "`-- ",
    through: "|   ",
    none: "    ",
};

pub(super) struct Screen {
    colours: bool,
    branches: &'static Branches,
}

/// A text and how it looks; its width is counted without the looks.
struct Cell {
    text: String,
    looks: &'static str,
}

impl Screen {
    pub(super) fn new() -> Self {
        // An empty NO_COLOR means nothing, by its convention.
        let no_colour = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        // The first of these that is set decides, as in setlocale.
        let locale = ["LC_ALL", "LC_CTYPE", "LANG"]
            .iter()
            .filter_map(std::env::var_os)
            .find(|value| !value.is_empty())
            .unwrap_or_default();
        let locale = locale.to_string_lossy().to_ascii_lowercase();
        let unicode = locale.contains("utf-8") || locale.contains("utf8");
        Self {
            colours: io::stdout().is_terminal() && !no_colour,
            branches: if unicode { &UNICODE } else { &ASCII },
        }
    }

    pub(super) fn title(&mut self, text: &str) -> io::Result<()> {
        let text = format!("== {text} ==");
        self.row("\n", &[Cell { text, looks: BOLD }], &[0])
    }

    pub(super) fn text(&mut self, text: &str) -> io::Result<()> {
        self.row(
            "",
            &[Cell {
                text: text.to_owned(),
                looks: "",
            }],
            &[0],
        )
    }

    pub(super) fn command(&mut self, text: &str) -> io::Result<()> {
        self.row(
            "",
            &[Cell {
                text: format!("$ {text}"),
                looks: BOLD,
            }],
            &[0],
        )
    }

    /// Trees side by side, each under its heading.
    pub(super) fn columns(&mut self, columns: &[(&str, Vec<Line>)]) -> io::Result<()> {
        let columns: Vec<Vec<Cell>> = columns
            .iter()
            .map(|(heading, lines)| self.column(heading, lines))
            .collect();
        let width = |cell: &Cell| cell.text.chars().count();
        let widths: Vec<usize> = columns
            .iter()
            .map(|cells| cells.iter().map(width).max().unwrap_or(0) + GAP)
            .collect();
        let height = columns.iter().map(Vec::len).max().unwrap_or(0);
        let mut columns: Vec<_> = columns.into_iter().map(Vec::into_iter).collect();
        for row in 0..height {
            let empty = || Cell {
                text: String::new(),
                looks: "",
            };
            let cells: Vec<Cell> = columns
                .iter_mut()
                .map(|column| column.next().unwrap_or_else(empty))
                .collect();
            self.row(if row == 0 { "\n" } else { "" }, &cells, &widths)?;
        }
        Ok(())
    }

    fn column(&self, heading: &str, lines: &[Line]) -> Vec<Cell> {
        let mut cells = vec![Cell {
            text: heading.to_owned(),
            looks: BOLD,
        }];
        if lines.is_empty() {
            cells.push(Cell {
                text: "(empty)".to_owned(),
                looks: DIM,
            });
        }
        let drawn: Vec<String> = lines.iter().map(|line| self.draw(line)).collect();
        let noted = drawn
            .iter()
            .zip(lines)
            .filter(|(_, line)| !line.note.is_empty());
        let notes_at = noted
            .map(|(text, _)| text.chars().count())
            .max()
            .unwrap_or(0)
            + 2;
        for (mut text, line) in drawn.into_iter().zip(lines) {
            if !line.note.is_empty() {
                let fill = notes_at.saturating_sub(text.chars().count());
                text.push_str(&" ".repeat(fill));
                text.push_str(&line.note);
            }
            let looks = match line.mood {
                Mood::Plain => "",
                Mood::New => GREEN,
                Mood::Marker => RED,
            };
            cells.push(Cell { text, looks });
        }
        cells
    }

    fn draw(&self, line: &Line) -> String {
        let mut text = String::new();
        if let Some((own, above)) = line.last.split_last() {
            for &last in above {
                text.push_str(if last {
                    self.branches.none
                } else {
                    self.branches.through
                });
            }
            text.push_str(if *own {
                self.branches.last
            } else {
                self.branches.middle
            });
        }
        // A control character in a name must not reach the terminal.
        text.extend(
            line.name
                .chars()
                .map(|c| if c.is_control() { '?' } else { c }),
        );
        text
    }

    fn row(&mut self, before: &str, cells: &[Cell], widths: &[usize]) -> io::Result<()> {
        let mut text = before.to_owned();
        for (index, (cell, width)) in cells.iter().zip(widths).enumerate() {
            if self.colours && !cell.looks.is_empty() {
                text.push_str(cell.looks);
                text.push_str(&cell.text);
                text.push_str(PLAIN);
            } else {
                text.push_str(&cell.text);
            }
            if index + 1 < cells.len() {
                let fill = width.saturating_sub(cell.text.chars().count());
                text.push_str(&" ".repeat(fill));
            }
        }
        let mut out = io::stdout().lock();
        writeln!(out, "{}", text.trim_end_matches(' '))
    }
}
