//! The rules of the project that no compiler checks, as tests over its own sources.
//!
//! CONTRIBUTING.md gives the reasons. Functions over 70 lines are clippy's (`clippy.toml`).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // It is a test.

use std::fs;
use std::path::{Path, PathBuf};

/// No file longer than this; 300 is what to aim for.
const MAX_LINES: usize = 500;

/// Which modules of the library a module may name: the picture at the top of `src/lib.rs`.
const MAY_NAME: &[(&str, &[&str])] = &[
    ("sys", &[]),
    ("options", &[]),
    ("layer", &["sys", "options"]),
    ("union", &["layer", "sys", "options"]),
    ("stats", &["sys"]),
    ("fuse", &["union", "layer", "stats", "sys", "options"]),
    ("mount", &["fuse", "union", "layer", "sys", "options"]),
    ("cli", &["options"]),
    ("daemon", &["mount", "options", "sys"]),
    ("fuzzing", &["layer", "tools"]),
    (
        "tools",
        &["ctl", "mount", "union", "layer", "cli", "options", "sys"],
    ),
    (
        "harness",
        &[
            "daemon", "tools", "mount", "layer", "stats", "options", "sys",
        ],
    ),
    ("ctl", &["cli", "stats", "sys"]),
    ("plink", &["mount", "cli", "options", "sys"]),
    ("demo", &["daemon", "mount", "cli", "options", "sys"]),
];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn rust_files(dir: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut todo = vec![root().join(dir)];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display())) {
            let path = entry.unwrap().path();
            if path.is_dir() {
                todo.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                found.push(path);
            }
        }
    }
    found.sort();
    assert!(!found.is_empty(), "no sources in {dir}");
    found
}

/// Sources that are shipped: of the package and of the other members.
fn shipped() -> Vec<PathBuf> {
    ["src", "mount-helper/src", "bench/src"]
        .iter()
        .flat_map(|dir| rust_files(dir))
        .collect()
}

/// All sources.
fn sources() -> Vec<PathBuf> {
    let others = ["tests", "docs/generate", "examples", "fuzz"]
        .into_iter()
        .flat_map(rust_files);
    shipped().into_iter().chain(others).collect()
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn shown(path: &Path) -> String {
    path.strip_prefix(root())
        .unwrap_or(path)
        .display()
        .to_string()
}

/// The source with the text of comments, strings and characters blanked; line breaks stay.
fn code_only(source: &str) -> String {
    let chars: Vec<char> = source.chars().collect();
    let at = |i: usize| chars.get(i).copied().unwrap_or('\0');
    let mut out = String::with_capacity(source.len());
    let mut i = 0;
    while i < chars.len() {
        let previous_is_word = i > 0 && (at(i - 1).is_alphanumeric() || at(i - 1) == '_');
        let end = if at(i) == '/' && at(i + 1) == '/' {
            line_end(&chars, i)
        } else if at(i) == '/' && at(i + 1) == '*' {
            block_comment_end(&chars, i)
        } else if !previous_is_word && raw_string_hashes(&chars, i).is_some() {
            raw_string_end(&chars, i)
        } else if at(i) == '"' {
            quoted_end(&chars, i, '"')
        } else if at(i) == '\'' && (at(i + 1) == '\\' || at(i + 2) == '\'') {
            quoted_end(&chars, i, '\'')
        } else {
            out.push(at(i));
            i += 1;
            continue;
        };
        out.extend(
            chars[i..end]
                .iter()
                .map(|&c| if c == '\n' { '\n' } else { ' ' }),
        );
        i = end;
    }
    out
}

fn line_end(chars: &[char], from: usize) -> usize {
    chars[from..]
        .iter()
        .position(|&c| c == '\n')
        .map_or(chars.len(), |n| from + n)
}

fn block_comment_end(chars: &[char], from: usize) -> usize {
    let (mut depth, mut i) = (1, from + 2);
    while i < chars.len() && depth > 0 {
        match (chars[i], chars.get(i + 1)) {
            ('/', Some('*')) => (depth, i) = (depth + 1, i + 2),
            ('*', Some('/')) => (depth, i) = (depth - 1, i + 2),
            _ => i += 1,
        }
    }
    i
}

/// For `r"`, `r#"`, `br"` and the like: how many hashes.
fn raw_string_hashes(chars: &[char], from: usize) -> Option<usize> {
    let after_r = match (chars.get(from), chars.get(from + 1)) {
        (Some('r'), _) => from + 1,
        (Some('b' | 'c'), Some('r')) => from + 2,
        _ => return None,
    };
    let hashes = chars[after_r..].iter().take_while(|&&c| c == '#').count();
    (chars.get(after_r + hashes) == Some(&'"')).then_some(hashes)
}

fn raw_string_end(chars: &[char], from: usize) -> usize {
    let hashes = raw_string_hashes(chars, from).unwrap();
    let open = from + chars[from..].iter().position(|&c| c == '"').unwrap();
    let mut i = open + 1;
    while i < chars.len() {
        if chars[i] == '"'
            && chars[i + 1..]
                .iter()
                .take(hashes)
                .filter(|&&c| c == '#')
                .count()
                == hashes
        {
            return i + 1 + hashes;
        }
        i += 1;
    }
    chars.len()
}

fn quoted_end(chars: &[char], from: usize, quote: char) -> usize {
    let mut i = from + 1;
    while i < chars.len() && chars[i] != quote {
        i += if chars[i] == '\\' { 2 } else { 1 };
    }
    (i + 1).min(chars.len())
}

/// Blanks what `#[cfg(test)]` guards with a block: `mod tests { ... }`, functions.
fn without_tests(code: &str) -> String {
    const MARK: &str = "#[cfg(test)]";
    let mut out = String::new();
    let mut rest = code;
    while let Some(start) = rest.find(MARK) {
        let (before, guarded) = rest.split_at(start);
        out.push_str(before);
        let end = match guarded.find(['{', ';']) {
            Some(n) if guarded.as_bytes()[n] == b'{' => n + block_len(&guarded[n..]),
            Some(n) => n + 1,
            None => guarded.len(),
        };
        out.extend(guarded[..end].chars().filter(|&c| c == '\n'));
        rest = &guarded[end..];
    }
    out + rest
}

fn block_len(text: &str) -> usize {
    let mut depth = 0;
    for (i, c) in text.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return i + 1;
        }
    }
    text.len()
}

/// Test modules in files of their own: `mod tests;` under `#[cfg(test)]`.
fn is_test_file(path: &Path) -> bool {
    path.components().any(|c| c.as_os_str() == "tests")
        || path.file_name().is_some_and(|n| n == "tests.rs")
}

/// Where `word` stands in `code`, not as a part of a longer word, with its line number.
fn lines_with(code: &str, word: &str) -> Vec<usize> {
    let is_word = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    code.match_indices(word)
        .filter(|(at, _)| {
            let starts = word.starts_with(|c: char| c.is_alphanumeric());
            let ends = word.ends_with(|c: char| c.is_alphanumeric());
            !(starts && is_word(code[..*at].chars().next_back())
                || ends && is_word(code[at + word.len()..].chars().next()))
        })
        .map(|(at, _)| code[..at].matches('\n').count() + 1)
        .collect()
}

/// The first names after each `crate::`, groups taken apart, with their line.
fn crate_names(code: &str) -> Vec<(usize, String)> {
    let mut names = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        let line = code[..at].matches('\n').count() + 1;
        let items = match rest.strip_prefix('{') {
            Some(_) => top_level_items(&rest[1..block_len(rest) - 1]),
            None => vec![rest],
        };
        for item in items {
            let name: String = item
                .trim_start()
                .chars()
                .take_while(|c| c.is_alphanumeric() || *c == '_')
                .collect();
            names.push((line, name));
        }
    }
    names
}

fn top_level_items(group: &str) -> Vec<&str> {
    let (mut items, mut depth, mut start) = (Vec::new(), 0, 0);
    for (i, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                items.push(&group[start..i]);
                start = i + 1;
            }
            _ => {}
        }
    }
    items.push(&group[start..]);
    items.retain(|item| !item.trim().is_empty());
    items
}

/// The module of the library that a file of `src` belongs to.
fn module_of(path: &Path) -> String {
    let inside = path.strip_prefix(root().join("src")).unwrap();
    let first = inside
        .components()
        .next()
        .unwrap()
        .as_os_str()
        .to_string_lossy()
        .into_owned();
    first.trim_end_matches(".rs").to_owned()
}

fn report(rule: &str, broken: &[String]) {
    assert!(broken.is_empty(), "{rule}:\n  {}", broken.join("\n  "));
}

#[test]
fn no_file_is_too_long() {
    let mut broken = Vec::new();
    for path in sources() {
        let lines = read(&path).lines().count();
        if lines > MAX_LINES {
            broken.push(format!("{}: {lines} lines", shown(&path)));
        }
    }
    report(&format!("at most {MAX_LINES} lines a file"), &broken);
}

#[test]
fn modules_name_only_those_below() {
    let mut broken = Vec::new();
    for path in rust_files("src") {
        let module = module_of(&path);
        if ["main", "lib"].contains(&module.as_str()) {
            continue;
        }
        let Some((_, below)) = MAY_NAME.iter().find(|(name, _)| *name == module) else {
            broken.push(format!(
                "{}: module `{module}` has no place in the picture",
                shown(&path)
            ));
            continue;
        };
        // Tests of a module may reach where they like.
        let code = if is_test_file(&path) {
            String::new()
        } else {
            without_tests(&code_only(&read(&path)))
        };
        for (line, name) in crate_names(&code) {
            if name != module && !below.contains(&name.as_str()) {
                broken.push(format!(
                    "{}:{line}: `{module}` names `crate::{name}`",
                    shown(&path)
                ));
            }
        }
    }
    report("arrows point downward only (src/lib.rs)", &broken);
}

/// `word` may stand only in files below `home`.
fn only_under(home: &str, word: &str) {
    let mut broken = Vec::new();
    for path in shipped() {
        if path.starts_with(root().join(home)) {
            continue;
        }
        for line in lines_with(&code_only(&read(&path)), word) {
            broken.push(format!("{}:{line}", shown(&path)));
        }
    }
    report(&format!("`{word}` only under {home}"), &broken);
}

#[test]
fn fuser_is_named_only_in_the_adapter() {
    only_under("src/fuse", "fuser");
}

#[test]
fn unsafe_only_in_the_system_call_layer() {
    only_under("src/sys", "unsafe");
}

/// Where code below `dir` has one of `calls`, but in the file `except`.
fn calls_in(dir: &str, except: &str, calls: &[&str]) -> Vec<String> {
    let files = rust_files(dir).into_iter();
    let files = files.filter(|path| !path.ends_with(except));
    let found = files.flat_map(|path| {
        let code = code_only(&read(&path));
        let lines = calls.iter().flat_map(|call| lines_with(&code, call));
        let lines: Vec<String> = lines.map(|n| format!("{}:{n}", shown(&path))).collect();
        lines
    });
    found.collect()
}

#[test]
fn tests_of_mounts_open_files_for_themselves_alone() {
    let calls = ["rustix::fs::open(", "rustix::fs::openat("];
    report(
        "programs that other tests start get no descriptors: process::open_file",
        &calls_in("tests/mounted", "process.rs", &calls),
    );
}

#[test]
fn tests_do_not_copy_programs_by_themselves() {
    report(
        "who is forked meanwhile keeps them busy (cp does it), and std::io::copy copies data",
        &calls_in("tests", "tidy.rs", &["fs::copy("]),
    );
}

#[test]
fn shipped_code_does_not_panic_on_purpose() {
    let mut broken = Vec::new();
    for path in shipped().into_iter().filter(|path| !is_test_file(path)) {
        let code = without_tests(&code_only(&read(&path)));
        for word in [
            ".unwrap()",
            ".expect(",
            "panic!",
            "todo!",
            "unimplemented!",
            "dbg!",
        ] {
            for line in lines_with(&code, word) {
                broken.push(format!("{}:{line}: {word}", shown(&path)));
            }
        }
    }
    report("a dead daemon takes its users with it", &broken);
}

#[test]
fn sources_are_ascii() {
    let mut broken = Vec::new();
    for path in sources() {
        for (n, line) in read(&path).lines().enumerate() {
            if !line.is_ascii() {
                broken.push(format!("{}:{}", shown(&path), n + 1));
            }
        }
    }
    report("ASCII only", &broken);
}

#[test]
fn files_that_the_documents_link_exist() {
    let mut broken = Vec::new();
    let mut documents = vec![root().join("README.md"), root().join("CONTRIBUTING.md")];
    for entry in fs::read_dir(root().join("docs")).unwrap() {
        documents.push(entry.unwrap().path());
    }
    documents.retain(|path| path.extension().is_some_and(|e| e == "md"));
    let mut links = 0;
    for document in &documents {
        let text = read(document);
        for (at, _) in text.match_indices("](") {
            let target = text[at + 2..].split([')', '#']).next().unwrap_or_default();
            if target.is_empty() || target.contains("://") {
                continue;
            }
            links += 1;
            if !document.parent().unwrap().join(target).exists() {
                broken.push(format!("{}: {target}", shown(document)));
            }
        }
    }
    assert!(links > 3, "README.md and docs/ have hardly a link: {links}");
    report("links lead somewhere", &broken);
}

/// The rules above are only as good as the reading of the sources.
mod reading {
    use super::*;

    #[test]
    fn comments_and_strings_are_no_code() {
        let code =
            code_only("a /* unsafe /* x */ */ b // unsafe\n\"un\\\"safe\" 'u' r#\"uns\"afe\"# c");
        assert!(!code.contains("un"), "{code}");
        assert!(code.contains('a') && code.contains('b') && code.contains('c'));
        assert_eq!(code.lines().count(), 2);
        assert_eq!(
            code_only("fn f<'a>(x: &'a str) { '\\'' }").trim_end(),
            "fn f<'a>(x: &'a str) {      }"
        );
        assert_eq!(code_only("var\"x\" r\"y\\\" z"), "var          z");
    }

    #[test]
    fn what_cfg_test_guards_is_left_out() {
        let code = "fn a() {}\n#[cfg(test)]\nmod tests { fn b() { c.unwrap() } }\nfn d() {}";
        let kept = without_tests(code);
        assert!(
            kept.contains("fn a") && kept.contains("fn d") && !kept.contains("unwrap"),
            "{kept}"
        );
        assert_eq!(
            without_tests("#[cfg(test)]\nmod tests;\nx.unwrap()").trim(),
            "x.unwrap()"
        );
    }

    #[test]
    fn words_are_whole() {
        assert_eq!(lines_with("unsafe_op\nmy_unsafe\nunsafe {", "unsafe"), [3]);
        assert_eq!(lines_with("a.unwrap_or(b)\nc.unwrap()", ".unwrap()"), [2]);
    }

    #[test]
    fn groups_of_imports_are_taken_apart() {
        let code =
            "use crate::{layer::{Layer, real}, sys::at,\n union};\nlet x = crate::fuse::run();";
        let names: Vec<String> = crate_names(code)
            .into_iter()
            .map(|(_, name)| name)
            .collect();
        assert_eq!(names, ["layer", "sys", "union", "fuse"]);
        assert_eq!(crate_names(code)[3].0, 3);
    }
}
