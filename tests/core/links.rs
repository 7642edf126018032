//! Hard links between names of one lower, added to layers that are already on disk.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType};
use rustix::io::Errno;
use unionfs::options::Options;

use crate::ops::{Outcome, Result};
use crate::tree::{self, Names, Tree, join};
use crate::union_side::UnionSide;

impl UnionSide {
    /// Gives every name its own place; no entry is left then.
    pub fn flush(&self) -> Result {
        if self.union().flush_plinks()?.kept > 0 {
            return Err(Errno::BUSY);
        }
        let upper = self.options.upper.as_ref().unwrap();
        let entries = std::fs::read_dir(upper.join(".wh..wh.plnk"));
        for entry in entries.into_iter().flatten() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            assert!(name.ends_with(".0"), "{name} is left after a flush");
        }
        Ok(Outcome::Done)
    }
}

/// Chooses a file and a directory among those that the same lower shows.
pub type Pick = (u16, u16);

/// Gives visible files of the lowers further names, in the lower and in the oracle. A name that
/// would not show is not kept, so that every link of such a file is a name of the union.
pub fn add(options: &Options, oracle: &Path, picks: &[Pick]) {
    for (at, (file, dir)) in picks.iter().enumerate() {
        let tree = tree::scan(oracle);
        let Some((lower, from)) = choose_file(options, &tree, *file) else {
            return;
        };
        let dirs: Vec<&Names> = tree
            .iter()
            .filter(|(path, seen)| {
                let inside = join(&lower, path);
                seen.kind == FileType::Directory
                    && std::fs::symlink_metadata(inside).is_ok_and(|m| m.is_dir())
            })
            .map(|(path, _)| path)
            .collect();
        let mut to = dirs[usize::from(*dir) % dirs.len()].clone();
        to.push(format!("link{at}").into_bytes());
        link_keeping_times(&lower, &from, &to);
        if shows(options, &from, &to) {
            link_keeping_times(oracle, &from, &to);
        } else {
            remove_keeping_times(&lower, &to);
        }
    }
}

/// A visible file that is no directory, and the lower that shows it.
fn choose_file(options: &Options, tree: &Tree, pick: u16) -> Option<(PathBuf, Names)> {
    let mut union = open(options);
    let by_inode: BTreeMap<(u64, u64), Names> = tree
        .iter()
        .filter(|(_, seen)| seen.kind != FileType::Directory)
        .map(|(path, _)| {
            let id = union.walk(path).unwrap();
            let stat = union.union().getattr(id).unwrap().stat;
            ((stat.dev, stat.ino), path.clone())
        })
        .collect();
    let mut files = Vec::new();
    for lower in &options.lowers {
        for path in by_inode.values() {
            let Ok(meta) = std::fs::symlink_metadata(join(&lower.path, path)) else {
                continue;
            };
            if by_inode.get(&(meta.dev(), meta.ino())) == Some(path) {
                files.push((lower.path.clone(), path.clone()));
            }
        }
    }
    files.sort();
    (!files.is_empty()).then(|| files[usize::from(pick) % files.len()].clone())
}

fn open(options: &Options) -> UnionSide {
    UnionSide::new(Options {
        read_only: true,
        ..options.clone()
    })
}

fn shows(options: &Options, from: &Names, to: &Names) -> bool {
    let mut union = open(options);
    let mut number = |path: &Names| {
        let id = union.walk(path).ok()?;
        Some(union.union().getattr(id).unwrap().ino)
    };
    number(to).is_some_and(|ino| number(from) == Some(ino))
}

fn keeping_times(root: &Path, path: &Names, change: impl FnOnce(&Path)) {
    let path = join(root, path);
    let dir = path.parent().unwrap();
    let meta = std::fs::metadata(dir).unwrap();
    change(&path);
    let nanoseconds = u32::try_from(meta.mtime_nsec()).unwrap();
    tree::set_times(dir, (meta.mtime(), nanoseconds));
}

fn link_keeping_times(root: &Path, from: &Names, to: &Names) {
    let from = join(root, from);
    keeping_times(root, to, |to| {
        rustix::fs::linkat(CWD, from, CWD, to, AtFlags::empty()).unwrap();
    });
}

fn remove_keeping_times(root: &Path, path: &Names) {
    keeping_times(root, path, |path| rustix::fs::unlink(path).unwrap());
}
