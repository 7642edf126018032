//! The committed documents are what the generator writes, and what their readers can read.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // It is a test.

use std::path::PathBuf;
use std::process::{Command, Output};

use unionfs::options::table;

/// Runs a program; it has to be there (tests/setup.sh installs it).
fn run(program: &str, args: &[&str]) -> Output {
    let output = Command::new(program)
        .args(args)
        .env("LC_ALL", "C.UTF-8")
        .output();
    output.unwrap_or_else(|error| panic!("{program}: {error}; tests/setup.sh installs it"))
}

/// The same, in silence and with success.
fn clean(program: &str, args: &[&str]) -> String {
    let output = run(program, args);
    let errors = String::from_utf8_lossy(&output.stderr);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success() && errors.is_empty(),
        "{program} {args:?}: {}\n{errors}{text}",
        output.status
    );
    text
}

fn path(document: &str) -> String {
    let path: PathBuf = docs_generate::directory().join(document);
    path.to_str().unwrap().to_owned()
}

const PAGES: [&str; 2] = ["unionfs.8", "mount.unionfs.8"];

#[test]
fn the_documents_are_up_to_date() {
    for (name, text) in docs_generate::documents() {
        let committed = std::fs::read_to_string(path(name)).unwrap_or_default();
        let line = text
            .lines()
            .zip(committed.lines())
            .position(|(a, b)| a != b);
        assert!(
            committed == text,
            "docs/{name} is old, from line {}: cargo run -p docs-generate",
            line.map_or(text.lines().count().min(committed.lines().count()), |n| n) + 1
        );
    }
}

#[test]
fn nothing_is_left_to_fill_in() {
    for (name, text) in docs_generate::documents() {
        let mark = |word: &&str| {
            let inside = word
                .strip_prefix('@')
                .and_then(|word| word.strip_suffix('@'));
            inside.is_some_and(|name| name.bytes().all(|b| b.is_ascii_uppercase()))
        };
        let left = text.split_whitespace().find(mark);
        assert_eq!(left, None, "{name}");
        assert!(text.ends_with('\n') && !text.contains('\r'), "{name}");
    }
}

#[test]
fn every_option_is_in_the_list_and_in_the_man_page() {
    let list = std::fs::read_to_string(path("OPTIONS.md")).unwrap();
    let page = clean("man", &["-l", "-Tutf8", "-P", "cat", &path("unionfs.8")]);
    // Bold and underlined letters are overstruck on paper.
    let mut plain = String::new();
    for c in page.chars() {
        if c == '\u{8}' {
            plain.pop();
        } else {
            plain.push(c);
        }
    }
    let words: Vec<&str> = plain.split_whitespace().collect();
    for name in table::rows().flat_map(|row| row.names) {
        assert!(
            list.contains(&format!("`{name}")),
            "{name} is not in OPTIONS.md"
        );
        let name = name.trim_end_matches('*');
        assert!(
            words.iter().any(|word| word.starts_with(name)),
            "{name} is not in unionfs(8):\n{plain}"
        );
    }
}

#[test]
fn the_man_pages_are_well_formed() {
    for page in PAGES {
        let page = path(page);
        clean("groff", &["-man", "-ww", "-Tutf8", "-z", &page]);
        clean("mandoc", &["-Tlint", "-Wwarning", &page]);
        let text = clean("man", &["-l", "--warnings", "-P", "cat", &page]);
        for section in [
            "NAME",
            "SYNOPSIS",
            "DESCRIPTION",
            "OPTIONS",
            "EXIT STATUS",
            "FILES",
        ] {
            assert!(
                text.lines().any(|line| line == section),
                "{page}: {section}"
            );
        }
    }
}

#[test]
fn the_examples_of_the_man_pages_can_be_mounted() {
    let mut lines = 0;
    for page in PAGES {
        let text = std::fs::read_to_string(path(page)).unwrap();
        let text = text
            .replace("\\-", "-")
            .replace("\\(aq", "'")
            .replace("\\e", "\\");
        let mut in_example = false;
        for line in text.lines() {
            in_example = (in_example || line == ".EX") && line != ".EE";
            let fields: Vec<&str> = line.split_whitespace().collect();
            // Lines of fstab.
            let [source, _, kind, options, "0", "0"] = fields[..] else {
                continue;
            };
            if !in_example {
                continue;
            }
            lines += 1;
            let source = source.strip_prefix("unionfs#").unwrap_or(source);
            assert!(
                ["unionfs", "fuse.unionfs", "fuse"].contains(&kind),
                "{line}"
            );
            let known =
                unionfs::options::parse_with_source(Some(source.as_ref()), &[options.into()]);
            let known = known.unwrap_or_else(|error| panic!("{line}: {error}"));
            assert!(known.ignored.is_empty() && known.upper.is_some(), "{line}");
        }
    }
    assert!(lines >= 8, "{lines}");
}
