//! What must hold after every operation.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::FileType;

use crate::model::{Time, names};
use crate::tree::{self, NOT_COUNTED, Names, Seen, Tree, show};
use crate::union_side::UnionSide;

/// Times this near to now were not given by a test; they are compared only in kind.
const RECENT: u64 = 86_400;

fn is_recent(time: Time) -> bool {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs();
    u64::try_from(time.0).is_ok_and(|sec| sec.abs_diff(now) < RECENT)
}

/// Compares what users see of one object; `None` when it is the same.
pub fn difference(expected: &Seen, got: &Seen) -> Option<String> {
    let mut texts = Vec::new();
    let mut check = |what: &str, expected: &dyn std::fmt::Debug, got: &dyn std::fmt::Debug| {
        let (expected, got) = (format!("{expected:?}"), format!("{got:?}"));
        if expected != got {
            let cut = |s: String| s.chars().take(300).collect::<String>();
            texts.push(format!(
                "{what}: expected {}, got {}",
                cut(expected),
                cut(got)
            ));
        }
    };
    check("type", &expected.kind, &got.kind);
    check(
        "mode",
        &format!("{:o}", expected.mode),
        &format!("{:o}", got.mode),
    );
    check("owner", &(expected.uid, expected.gid), &(got.uid, got.gid));
    if ![expected.nlink, got.nlink].contains(&NOT_COUNTED) {
        check("links", &expected.nlink, &got.nlink);
    }
    check("size", &expected.size, &got.size);
    check("rdev", &expected.rdev, &got.rdev);
    check("target", &expected.target, &got.target);
    check("xattrs", &expected.xattrs, &got.xattrs);
    check("content equal", &true, &(expected.content == got.content));
    if is_recent(expected.mtime) {
        check("mtime recent", &true, &is_recent(got.mtime));
    } else {
        check("mtime", &expected.mtime, &got.mtime);
    }
    (!texts.is_empty()).then(|| texts.join("; "))
}

/// Compares two trees; the differences on one line each.
pub fn differences(expected: &Tree, got: &Tree) -> Vec<String> {
    let mut texts = Vec::new();
    for (path, seen) in expected {
        match got.get(path) {
            None => texts.push(format!("{} is missing", show(path))),
            Some(other) => {
                if let Some(text) = difference(seen, other) {
                    texts.push(format!("{}: {text}", show(path)));
                }
            }
        }
    }
    for path in got.keys().filter(|path| !expected.contains_key(*path)) {
        texts.push(format!("{} should not be there", show(path)));
    }
    texts.extend(link_differences(expected, got));
    texts
}

/// Two names have one number exactly when they are one file.
fn link_differences(expected: &Tree, got: &Tree) -> Vec<String> {
    let groups = |tree: &Tree| {
        let mut groups: BTreeMap<u64, Vec<Names>> = BTreeMap::new();
        for (path, seen) in tree {
            groups.entry(seen.ino).or_default().push(path.clone());
        }
        let mut groups: Vec<_> = groups.into_values().filter(|g| g.len() > 1).collect();
        groups.sort();
        groups
    };
    let (expected, got) = (groups(expected), groups(got));
    if expected == got {
        return Vec::new();
    }
    let text = |groups: &Vec<Vec<Names>>| -> Vec<Vec<String>> {
        groups
            .iter()
            .map(|g| g.iter().map(|p| show(p)).collect())
            .collect()
    };
    vec![format!(
        "hard links: expected {:?}, got {:?}",
        text(&expected),
        text(&got)
    )]
}

/// Names that are neither listed nor expected are not found either, and no reserved name is.
pub fn check_absent(union: &mut UnionSide, expected: &Tree) {
    let mut reserved: Vec<Vec<u8>> = vec![
        b".wh.".to_vec(),
        b".wh..wh..opq".to_vec(),
        b".wh..wh.orph".to_vec(),
        b".wh..wh.aufs".to_vec(),
        b".wh..wh.plnk".to_vec(),
    ];
    let prefixed = |name: Vec<u8>| [b".wh.".to_vec(), name].concat();
    reserved.extend(names().into_iter().filter(|n| n.len() <= 251).map(prefixed));
    let dirs = expected
        .iter()
        .filter(|(_, s)| s.kind == FileType::Directory);
    for (dir, _) in dirs {
        for name in names() {
            let mut path = dir.clone();
            path.push(name.clone());
            let found = union.finds(dir, &name);
            assert_eq!(
                found,
                expected.contains_key(&path),
                "lookup of {}",
                show(&path)
            );
        }
        for name in &reserved {
            assert!(!union.finds(dir, name), "{} is found", name.escape_ascii());
        }
    }
}

/// Kept objects are the same as on the other side, named or not.
pub fn kept_difference(index: usize, expected: &Seen, got: &Seen) -> Option<String> {
    let mut got = got.clone();
    if expected.kind == FileType::Directory {
        // A removed directory may have held markers; clearing them away is a change of it.
        got.mtime = expected.mtime;
        // Those with a name are compared by it.
        got.nlink = NOT_COUNTED;
    }
    difference(expected, &got).map(|text| format!("kept#{index}: {text}"))
}

/// A lower with everything that could be changed in it, reserved names and records included.
pub struct Raw(Vec<(PathBuf, Tree)>);

impl Raw {
    pub fn of(dirs: &[PathBuf]) -> Self {
        Self(
            dirs.iter()
                .map(|dir| (dir.clone(), tree::scan(dir)))
                .collect(),
        )
    }

    pub fn check_unchanged(&self) {
        for (dir, before) in &self.0 {
            let now = tree::scan(dir);
            for (path, seen) in before {
                assert_eq!(
                    Some(seen),
                    now.get(path),
                    "{} of {}",
                    show(path),
                    dir.display()
                );
            }
            assert_eq!(
                before.len(),
                now.len(),
                "{}: entries were added",
                dir.display()
            );
        }
    }
}
