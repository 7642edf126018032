//! A directory tree, read as it is, and the lines it is drawn with.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// What is at one path of a tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Node {
    Dir(BTreeMap<OsString, Node>),
    File(Vec<u8>),
    /// Neither; a device with its number.
    Other {
        device: Option<u64>,
    },
}

/// Everything below one directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Tree(BTreeMap<OsString, Node>);

/// How a line is to be told from others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mood {
    Plain,
    New,
    Marker,
}

/// One line of a drawing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Line {
    /// For each ancestor and the entry itself: is it the last of its directory?
    pub(super) last: Vec<bool>,
    pub(super) name: String,
    pub(super) note: String,
    pub(super) mood: Mood,
}

impl Tree {
    /// Reads all there is. The demonstration's trees are a few levels deep.
    pub(super) fn read(root: &Path) -> io::Result<Self> {
        Ok(Self(read(root)?))
    }

    /// The node at a relative path.
    pub(super) fn get(&self, path: &str) -> Option<&Node> {
        let mut names = path.split('/');
        let mut node = self.0.get(&OsString::from(names.next()?))?;
        for name in names {
            let Node::Dir(entries) = node else {
                return None;
            };
            node = entries.get(&OsString::from(name))?;
        }
        Some(node)
    }

    pub(super) fn plain(&self) -> Vec<Line> {
        self.lines(&|_, _| (String::new(), Mood::Plain))
    }

    /// With a note behind every file that has one.
    pub(super) fn with_notes(&self, notes: &BTreeMap<PathBuf, String>) -> Vec<Line> {
        self.lines(&|path, _| (notes.get(path).cloned().unwrap_or_default(), Mood::Plain))
    }

    /// With what is new or changed since `before`.
    pub(super) fn compared(&self, before: &Self) -> Vec<Line> {
        self.lines(&|path, node| since(before, path, node))
    }

    /// A layer, its markers explained.
    pub(super) fn marked(&self) -> Vec<Line> {
        self.lines(&|path, node| match marker(path, node) {
            Some(meaning) => (meaning, Mood::Marker),
            None => (String::new(), Mood::Plain),
        })
    }

    /// The upper after a change: its markers, and what else came since `before`. What the merged
    /// view had all along was copied up.
    pub(super) fn marked_against(&self, before: &Self, view: &Self) -> Vec<Line> {
        self.lines(&|path, node| {
            if let Some(meaning) = marker(path, node) {
                return (meaning, Mood::Marker);
            }
            let (text, mood) = since(before, path, node);
            let known = path.to_str().is_some_and(|path| view.get(path).is_some());
            if text == NEW && known && !is_opaque(node) {
                return ("copied up".to_owned(), mood);
            }
            (text, mood)
        })
    }

    fn lines(&self, note: &dyn Fn(&Path, &Node) -> (String, Mood)) -> Vec<Line> {
        let mut lines = Vec::new();
        draw(&self.0, Path::new(""), &[], note, &mut lines);
        lines
    }
}

fn read(dir: &Path) -> io::Result<BTreeMap<OsString, Node>> {
    let mut entries = BTreeMap::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        let node = if kind.is_dir() {
            Node::Dir(read(&entry.path())?)
        } else if kind.is_file() {
            Node::File(fs::read(entry.path())?)
        } else {
            let device = kind
                .is_char_device()
                .then(|| entry.metadata().map(|m| m.rdev()));
            Node::Other {
                device: device.transpose()?,
            }
        };
        entries.insert(entry.file_name(), node);
    }
    Ok(entries)
}

fn draw(
    entries: &BTreeMap<OsString, Node>, dir: &Path, above: &[bool],
    note: &dyn Fn(&Path, &Node) -> (String, Mood), lines: &mut Vec<Line>,
) {
    for (index, (name, node)) in entries.iter().enumerate() {
        let path = dir.join(name);
        let mut last = above.to_vec();
        last.push(index + 1 == entries.len());
        let (text, mood) = note(&path, node);
        let mut shown = name.to_string_lossy().into_owned();
        if matches!(node, Node::Dir(_)) {
            shown.push('/');
        }
        lines.push(Line {
            last: last.clone(),
            name: shown,
            note: text,
            mood,
        });
        if let Node::Dir(below) = node {
            draw(below, &path, &last, note, lines);
        }
    }
}

const NEW: &str = "new";

fn since(before: &Tree, path: &Path, node: &Node) -> (String, Mood) {
    match path.to_str().and_then(|path| before.get(path)) {
        None => (NEW.to_owned(), Mood::New),
        Some(Node::Dir(_)) if matches!(node, Node::Dir(_)) => (String::new(), Mood::Plain),
        Some(old) if old == node => (String::new(), Mood::Plain),
        Some(_) => ("changed".to_owned(), Mood::New),
    }
}

/// Is it a directory with the marker of the aufs dialect, which the demonstration writes?
fn is_opaque(node: &Node) -> bool {
    matches!(node, Node::Dir(entries) if entries.contains_key(OsStr::new(".wh..wh..opq")))
}

/// What an entry of a layer says to the union, if it is not just itself.
fn marker(path: &Path, node: &Node) -> Option<String> {
    if matches!(node, Node::Other { device: Some(0) }) {
        return Some("whiteout: hides this name".to_owned());
    }
    let name = path.file_name()?.as_bytes();
    match name.strip_prefix(b".wh.")? {
        b".wh..opq" => Some("opaque: hides the lowers here".to_owned()),
        b".wh.aufs" => Some("what whiteouts are links to".to_owned()),
        rest if rest.starts_with(b".wh.") => Some("for our own use, never shown".to_owned()),
        hidden => Some(format!(
            "whiteout: hides {}",
            String::from_utf8_lossy(hidden)
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(files: &[(&str, &str)]) -> (tempfile::TempDir, Tree) {
        let dir = tempfile::tempdir().unwrap();
        for (path, content) in files {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        let tree = Tree::read(dir.path()).unwrap();
        (dir, tree)
    }

    fn notes(lines: &[Line]) -> Vec<(&str, &str)> {
        lines
            .iter()
            .map(|line| (line.name.as_str(), line.note.as_str()))
            .collect()
    }

    #[test]
    fn changes_are_told() {
        let (_one, before) = tree(&[("d/a", "1"), ("d/b", "1"), ("c", "")]);
        let (_two, after) = tree(&[("d/a", "2"), ("d/b", "1"), ("e/new", "")]);
        let lines = after.compared(&before);
        assert_eq!(
            notes(&lines),
            [
                ("d/", ""),
                ("a", "changed"),
                ("b", ""),
                ("e/", "new"),
                ("new", "new")
            ]
        );
        assert_eq!(lines[1].last, [false, false]);
        assert_eq!(lines[4].last, [true, true]);
    }

    #[test]
    fn markers_are_explained() {
        let (_one, view) = tree(&[("etc/motd", ""), ("games/go", "")]);
        let (_two, before) = tree(&[]);
        let (_three, after) = tree(&[
            (".wh..wh.aufs", ""),
            ("etc/.wh.hosts", ""),
            ("etc/motd", ""),
            ("games/.wh..wh..opq", ""),
            ("games/new", ""),
        ]);
        let lines = after.marked_against(&before, &view);
        assert_eq!(
            notes(&lines),
            [
                (".wh..wh.aufs", "what whiteouts are links to"),
                ("etc/", "copied up"),
                (".wh.hosts", "whiteout: hides hosts"),
                ("motd", "copied up"),
                ("games/", "new"),
                (".wh..wh..opq", "opaque: hides the lowers here"),
                ("new", "new"),
            ]
        );
    }
}
