//! What was changed, and what becomes of it.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use serde_json::{Value, json};

use crate::cli::{Commit, Ending, Run};
use crate::layer::name;

use super::super::changes::{self, Before, Change};
use super::super::commit::commit_layers;
use super::super::place::Place as Layers;
use super::{Place, Result, Shown, ToolError};

/// More changes than this are counted, not shown.
const MOST: usize = 200;

/// One changed path, from the root of the view.
struct Item {
    path: Vec<u8>,
    letter: char,
    is_dir: bool,
}

/// Tells what was changed, and does with it what the user wants.
pub(super) fn end(what: &Run, unions: &[Shown], place: &Place) -> Result<()> {
    let (mut items, mut changed) = (Vec::new(), Vec::new());
    for union in unions {
        if is_empty(&union.upper) && union.path.symlink_metadata().is_err() {
            // Unmounted and removed meanwhile.
            continue;
        }
        let layers = Layers::open(&union.upper, Some(&union.options))?;
        let before = items.len();
        for change in changes::find(&layers)? {
            items.extend(item(&union.path, &change));
        }
        if items.len() > before {
            changed.push(union);
        }
    }
    let ending = match (items.is_empty() && what.upper.is_none(), what.ending) {
        (true, _) => Ending::Discard,
        (false, Ending::Ask) if what.json => default(what),
        (false, Ending::Ask) => {
            show(&items);
            ask(what)
        }
        (false, ending) => {
            if !what.json {
                show(&items);
            }
            ending
        }
    };
    match ending {
        Ending::Discard => place.discard(unions)?,
        Ending::Commit => {
            for union in &changed {
                commit_one(union)?;
            }
            place.discard(unions)?;
        }
        Ending::Keep | Ending::Ask => {
            let unchanged = |union: &&Shown| !changed.iter().any(|c| c.path == union.path);
            place.drop_uppers(unions.iter().filter(unchanged))?;
        }
    }
    let told = match what.json {
        true => tell_json(ending, &items, &changed),
        false => tell(ending, items.len(), &changed),
    };
    told.map_err(|e| ToolError::new(format_args!("writing: {e}")))
}

/// True when an upper holds nothing but what its mount made for itself.
fn is_empty(upper: &Path) -> bool {
    let entries = std::fs::read_dir(upper);
    let mut entries = entries.into_iter().flatten().flatten();
    entries.all(|entry| *entry.file_name().as_bytes() == *name::ORPHANS)
}

fn commit_one(union: &Shown) -> Result<()> {
    let mut lowers = union.options.lowers.iter().map(|lower| lower.path.clone());
    let Some(lower) = lowers.next() else {
        return Ok(());
    };
    let commit = Commit {
        upper: union.upper.clone(),
        lower,
        below: lowers.collect(),
        json: false,
    };
    commit_layers(&commit, !union.options.ownership.squashes()).map(drop)
}

/// What happens when nobody can be asked.
fn default(what: &Run) -> Ending {
    match what.upper.is_some() {
        // It was named in order to be there afterwards.
        true => Ending::Keep,
        false => Ending::Discard,
    }
}

fn ask(what: &Run) -> Ending {
    let default = default(what);
    if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        return default;
    }
    let shown = match default {
        Ending::Keep => "[k]eep (default), [d]iscard or [c]ommit?",
        _ => "[k]eep, [d]iscard (default) or [c]ommit?",
    };
    loop {
        let _ = write!(io::stderr(), "These changes: {shown} ");
        let mut answer = String::new();
        // Without an answer nothing is lost that cannot be made again.
        if !matches!(io::stdin().read_line(&mut answer), Ok(1..)) {
            return Ending::Keep;
        }
        match answer.trim() {
            "k" | "keep" => return Ending::Keep,
            "d" | "discard" => return Ending::Discard,
            "c" | "commit" => return Ending::Commit,
            "" => return default,
            _ => {}
        }
    }
}

fn item(root: &Path, change: &Change) -> Option<Item> {
    let letter = match (change.counts, change.now.is_some(), change.before) {
        (false, ..) => return None,
        (_, false, _) => 'D',
        (_, true, Before::Nothing) => 'A',
        (_, true, Before::Something | Before::Replaced) => 'M',
    };
    let mut path = root.as_os_str().as_bytes().to_vec();
    if !change.path.is_empty() {
        if !path.ends_with(b"/") {
            path.push(b'/');
        }
        path.extend_from_slice(&change.path);
    }
    let is_dir = change
        .now
        .as_ref()
        .is_some_and(|(_, attr)| attr.kind().is_dir());
    Some(Item {
        path,
        letter,
        is_dir,
    })
}

/// A directory of the tree.
#[derive(Default)]
struct Node<'a> {
    letter: Option<char>,
    is_dir: bool,
    below: BTreeMap<&'a [u8], Node<'a>>,
}

/// The tree as lines: a letter, and names below each other.
fn tree(items: &[Item]) -> Vec<String> {
    let mut root = Node::default();
    for item in items {
        let mut node = &mut root;
        for name in item
            .path
            .split(|&b| b == b'/')
            .filter(|name| !name.is_empty())
        {
            node = node.below.entry(name).or_default();
        }
        (node.letter, node.is_dir) = (Some(item.letter), item.is_dir);
    }
    let mut lines = vec![format!("{} /", root.letter.unwrap_or(' '))];
    let mut pending: Vec<(usize, &[u8], &Node<'_>)> = Vec::new();
    pending.extend(root.below.iter().rev().map(|(name, node)| (1, *name, node)));
    while let Some((depth, name, node)) = pending.pop() {
        let slash = if node.is_dir || !node.below.is_empty() {
            "/"
        } else {
            ""
        };
        let letter = node.letter.unwrap_or(' ');
        let text = String::from_utf8_lossy(name);
        let text: String = text
            .chars()
            .map(|c| if c.is_control() { '?' } else { c })
            .collect();
        lines.push(format!(
            "{letter} {:width$}{text}{slash}",
            "",
            width = depth * 2
        ));
        let below = node.below.iter().rev();
        pending.extend(below.map(|(name, node)| (depth + 1, *name, node)));
    }
    lines
}

fn show(items: &[Item]) {
    let mut err = io::stderr().lock();
    let count = |letter| items.iter().filter(|item| item.letter == letter).count();
    let lines = tree(items);
    for line in lines.iter().take(MOST) {
        let _ = writeln!(err, "{line}");
    }
    if lines.len() > MOST {
        let _ = writeln!(err, "  ... {} lines more", lines.len() - MOST);
    }
    let (added, changed, deleted) = (count('A'), count('M'), count('D'));
    let _ = writeln!(err, "{added} added, {changed} changed, {deleted} deleted");
}

fn tell(ending: Ending, changes: usize, unions: &[&Shown]) -> io::Result<()> {
    let mut err = io::stderr().lock();
    match ending {
        _ if changes == 0 => writeln!(err, "unionfs: nothing was changed"),
        Ending::Discard => writeln!(err, "unionfs: discarded"),
        Ending::Commit => writeln!(err, "unionfs: committed"),
        Ending::Keep | Ending::Ask => {
            for union in unions {
                let (upper, path) = (union.upper.display(), union.path.display());
                writeln!(err, "unionfs: kept in {upper} (over {path})")?;
            }
            Ok(())
        }
    }
}

fn tell_json(ending: Ending, items: &[Item], unions: &[&Shown]) -> io::Result<()> {
    let text = |path: &[u8]| String::from_utf8_lossy(path).into_owned();
    let changes: Vec<Value> = items
        .iter()
        .map(|item| {
            let mut value = json!({ "path": text(&item.path), "change": item.letter.to_string() });
            if std::str::from_utf8(&item.path).is_err() {
                value["bytes"] = json!(item.path);
            }
            value
        })
        .collect();
    let kept = matches!(ending, Ending::Keep | Ending::Ask);
    let uppers: Vec<Value> = unions
        .iter()
        .filter(|_| kept)
        .map(|union| {
            let (over, upper) = (union.path.as_os_str(), union.upper.as_os_str());
            json!({ "over": text(over.as_bytes()), "upper": text(upper.as_bytes()) })
        })
        .collect();
    let end = match ending {
        Ending::Commit => "committed",
        Ending::Discard => "discarded",
        Ending::Keep | Ending::Ask => "kept",
    };
    let mut out = io::stdout().lock();
    writeln!(
        out,
        "{}",
        json!({ "changes": changes, "end": end, "kept": uppers })
    )?;
    out.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_of_changes() {
        let item = |path: &str, letter, is_dir| Item {
            path: path.into(),
            letter,
            is_dir,
        };
        let items = [
            item("/etc/new", 'A', true),
            item("/etc/new/x", 'A', false),
            item("/etc/passwd", 'M', false),
            item("/var/lib/y", 'D', false),
        ];
        let expected =
            "  /\n    etc/\nA     new/\nA       x\nM     passwd\n    var/\n      lib/\nD       y";
        assert_eq!(tree(&items).join("\n"), expected);
    }
}
