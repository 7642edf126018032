//! The demonstration's layers, in a temporary directory of their own.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::unistd::mkdtemp;

use super::tree::{Node, Tree};
use crate::daemon::{Failure, device};

/// Path and content of each file; the last column says where the merged view gets it from.
const LOWER_1: &[(&str, &str)] = &[
    ("bin/tool", "version 2\n"),
    ("etc/motd", "welcome to lower 1\n"),
    ("share/guide.txt", "how to\n"),
    // A whiteout in a lower: it hides what a lower below it has.
    ("share/.wh.old.txt", ""),
];
const LOWER_2: &[(&str, &str)] = &[
    ("bin/shell", "a shell\n"),
    ("bin/tool", "version 1\n"),
    ("etc/hosts", "127.0.0.1 localhost\n"),
    ("games/chess", "e4 e5\n"),
    ("games/go", "pass\n"),
    ("share/old.txt", "long ago\n"),
];

/// Where each file of the merged view comes from at first.
const SOURCES: &[(&str, &str)] = &[
    ("bin/shell", "from lower 2"),
    ("bin/tool", "from lower 1, hides that of lower 2"),
    ("etc/hosts", "from lower 2"),
    ("etc/motd", "from lower 1"),
    ("games/chess", "from lower 2"),
    ("games/go", "from lower 2"),
    ("share/guide.txt", "from lower 1"),
];

pub(super) struct Stack {
    root: PathBuf,
    lowers: [Tree; 2],
}

impl Stack {
    pub(super) fn build() -> io::Result<Self> {
        let root = mkdtemp(&std::env::temp_dir().join("unionfs-demo-XXXXXX"))?;
        // The directory must go again when it cannot be filled.
        Self::fill(&root).inspect_err(|_| drop(fs::remove_dir_all(&root)))
    }

    fn fill(root: &Path) -> io::Result<Self> {
        let root = fs::canonicalize(root)?;
        for name in ["upper", "work", "merged"] {
            fs::create_dir(root.join(name))?;
        }
        for (name, files) in [("lower1", LOWER_1), ("lower2", LOWER_2)] {
            for (path, content) in files {
                let path = root.join(name).join(path);
                if let Some(dir) = path.parent() {
                    fs::create_dir_all(dir)?;
                }
                fs::write(path, content)?;
            }
        }
        let lowers = [
            Tree::read(&root.join("lower1"))?,
            Tree::read(&root.join("lower2"))?,
        ];
        Ok(Self { root, lowers })
    }

    pub(super) fn upper(&self) -> PathBuf {
        self.root.join("upper")
    }

    pub(super) fn work(&self) -> PathBuf {
        self.root.join("work")
    }

    pub(super) fn mountpoint(&self) -> PathBuf {
        self.root.join("merged")
    }

    /// A lower by its number, 1 on top.
    pub(super) fn lower(&self, number: usize) -> PathBuf {
        self.root.join(format!("lower{number}"))
    }

    pub(super) fn sources(&self) -> BTreeMap<PathBuf, String> {
        SOURCES
            .iter()
            .map(|&(path, source)| (path.into(), source.to_owned()))
            .collect()
    }

    pub(super) fn lowers_unchanged(&self) -> io::Result<bool> {
        Ok(Tree::read(&self.lower(1))? == self.lowers[0]
            && Tree::read(&self.lower(2))? == self.lowers[1])
    }

    /// True while something is mounted over the mountpoint, also when it does not answer.
    pub(super) fn is_mounted(&self) -> bool {
        match (device(&self.root), device(&self.mountpoint())) {
            (Ok(outside), Ok(inside)) => outside != inside,
            _ => true,
        }
    }

    /// Does the merged view show what the steps up to `step` must have done?
    pub(super) fn check(&self, step: usize, view: &Tree) -> Result<(), Failure> {
        let has = |path: &str, content: &str| matches!(view.get(path), Some(Node::File(found)) if found == content.as_bytes());
        let lacks = |path: &str| view.get(path).is_none();
        let done = [
            has("etc/motd", "welcome to lower 1\nchanged\n") && has("etc/hosts", LOWER_2[2].1),
            lacks("share/guide.txt") && lacks("share/old.txt") && view.get("share").is_some(),
            has("games/tetris", "new\n") && lacks("games/chess") && lacks("games/go"),
        ];
        if done.iter().take(step + 1).all(|&right| right) {
            return Ok(());
        }
        Err(Failure::new(
            "demo: the merged view is not what it should be",
        ))
    }

    /// Takes everything away again.
    pub(super) fn remove(self) -> io::Result<()> {
        if self.is_mounted() {
            // Removing now would go through the mount, or fail on it.
            let place = self.mountpoint();
            return Err(io::Error::other(format!(
                "{} is still mounted",
                place.display()
            )));
        }
        fs::remove_dir_all(&self.root)
    }
}
