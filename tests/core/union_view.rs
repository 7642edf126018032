//! The tree as the union shows it.

use std::collections::BTreeMap;

use rustix::fs::FileType;
use unionfs::union::{Attr, DirEntry, ROOT};

use crate::ops::Result;
use crate::tree::{Names, Seen, Tree};
use crate::union_side::{UnionSide, caller, kind_of};

impl UnionSide {
    /// What the union shows of a node.
    pub fn look(&self, id: u64) -> Result<Seen> {
        let union = self.union();
        let Attr { ino, stat, .. } = union.getattr(id)?;
        let kind = kind_of(stat.kind());
        let is_dir = kind == FileType::Directory;
        let mut content = Vec::new();
        if kind == FileType::RegularFile {
            content = vec![0; usize::try_from(stat.size).unwrap() + 1];
            let n = union.read(id, 0, &mut content)?;
            // The kernel asks for no more than that.
            content.truncate(n.min(usize::try_from(stat.size).unwrap()));
        }
        let target = match kind {
            FileType::Symlink => union.readlink(id)?,
            _ => Vec::new(),
        };
        let mut xattrs = BTreeMap::new();
        let names = union.listxattr(id, caller(crate::ops::ROOT))?;
        for attr in names.split(|&b| b == 0).filter(|a| !a.is_empty()) {
            xattrs.insert(attr.to_vec(), union.getxattr(id, attr)?);
        }
        Ok(Seen {
            kind,
            mode: stat.mode & 0o7777,
            uid: stat.uid,
            gid: stat.gid,
            nlink: stat.nlink,
            size: if is_dir { 0 } else { stat.size },
            rdev: stat.rdev,
            mtime: (stat.mtime.sec, stat.mtime.nsec),
            target,
            content,
            xattrs,
            ino,
        })
    }

    /// The entries of a directory but `.` and `..`, read in pieces of `piece` entries.
    pub fn list(&self, id: u64, piece: usize) -> Result<Vec<DirEntry>> {
        let mut all: Vec<DirEntry> = Vec::new();
        let mut from = 0;
        loop {
            let mut part: Vec<DirEntry> = Vec::new();
            self.union().readdir(id, from, |entry| {
                part.push(entry.clone());
                part.len() < piece
            })?;
            let Some(last) = part.last() else { break };
            assert!(last.next > from, "positions grow");
            from = last.next;
            all.extend(part);
        }
        let dots: Vec<_> = all.iter().take(2).map(|e| e.name.to_vec()).collect();
        assert_eq!(dots, [b".".to_vec(), b"..".to_vec()]);
        assert_eq!(all[0].ino, self.union().getattr(id)?.ino, "the number of .");
        all.drain(..2);
        Ok(all)
    }

    /// The whole visible tree; every listing must agree with lookups.
    pub fn scan(&mut self, piece: usize) -> Tree {
        let mut tree = Tree::new();
        let mut todo = vec![(Names::new(), ROOT)];
        while let Some((names, id)) = todo.pop() {
            let seen = self.look(id).unwrap_or_else(|e| {
                panic!("{} cannot be read: {e}", crate::tree::show(&names));
            });
            if seen.kind == FileType::Directory {
                for entry in self.list(id, piece).expect("readdir") {
                    let mut child = names.clone();
                    child.push(entry.name.to_vec());
                    let text = crate::tree::show(&child);
                    let found = self.union().lookup(id, &entry.name).expect("lookup");
                    let found = found.unwrap_or_else(|| panic!("{text} is listed, not found"));
                    let found = self.count(found);
                    assert_eq!(
                        found.attr.kind(),
                        entry.kind,
                        "the type of {text} in its listing"
                    );
                    assert_eq!(
                        found.attr.ino, entry.ino,
                        "the number of {text} in its listing"
                    );
                    todo.push((child, found.id));
                }
            }
            let old = tree.insert(names, seen);
            assert!(old.is_none(), "a name is listed twice");
        }
        tree
    }

    /// Whether a name is found, for names that are not listed.
    pub fn finds(&mut self, dir: &[Vec<u8>], name: &[u8]) -> bool {
        let id = self.walk(dir).expect("a listed directory");
        let found = self.union().lookup(id, name).expect("lookup");
        found.map(|entry| self.count(entry)).is_some()
    }
}
