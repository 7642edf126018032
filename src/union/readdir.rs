//! Reading directories.

use std::sync::Arc;

use crate::layer::name::NameBuf;
use crate::sys::{FileKind, Result};

use super::Union;
use super::inode::Inode;
use super::lookup::dir_of;
use super::names::{FIRST_POSITION, Names};
use super::types::DirEntry;

/// Positions of the first two entries.
const DOT: u64 = 1;
const DOT_DOT: u64 = 2;
/// Entries taken out of a listing at once: it is not held while they are given away.
const PIECE: usize = 128;

impl Union {
    /// Gives `each` the entries after position `from` until it returns false. Positions are those of
    /// the names, whatever else comes and goes; 0 is the start.
    ///
    /// # Errors
    /// ENOTDIR, and what reading the layers gives.
    pub fn readdir(
        &self, id: u64, from: u64, mut each: impl FnMut(&DirEntry) -> bool,
    ) -> Result<()> {
        let inode = self.inodes.get(id)?;
        let dir = dir_of(&inode)?;
        if from == 0 {
            dir.forget_short_lived();
        }
        self.note_listed(&inode);
        if from < DOT_DOT && !self.give_dots(&inode, from, &mut each) {
            return Ok(());
        }
        let mut from = from.max(FIRST_POSITION);
        // Where a listing cannot be kept, one is enough for this call.
        let mut own = None;
        let mut is_first = true;
        loop {
            let mut piece = self.piece(&inode, from, &mut own)?;
            let Some(last) = piece.last() else {
                if is_first {
                    // Whoever reads on to the end asks once more there.
                    Self::end_of_listing(&inode);
                }
                return Ok(());
            };
            is_first = false;
            from = last.next;
            for entry in &mut piece {
                entry.ino = self.shown(entry.ino);
            }
            if !piece.iter().all(&mut each) {
                return Ok(());
            }
        }
    }

    fn give_dots(
        &self, inode: &Arc<Inode>, from: u64, each: &mut impl FnMut(&DirEntry) -> bool,
    ) -> bool {
        let parent = inode.alias().map_or(inode.ino(), |a| a.parent.ino());
        let dots = [
            (b".".as_slice(), inode.ino(), DOT),
            (b"..", parent, DOT_DOT),
        ];
        let mut rest = dots.into_iter().filter(|(_, _, next)| from < *next);
        rest.all(|(name, ino, next)| {
            each(&DirEntry {
                name: NameBuf::from_slice(name),
                ino: self.shown(ino),
                kind: FileKind::Directory,
                next,
            })
        })
    }

    /// The next entries of a directory, as it is now, with numbers as we know them.
    fn piece(
        &self, inode: &Arc<Inode>, from: u64, own: &mut Option<Names>,
    ) -> Result<Vec<DirEntry>> {
        let take = |names: &Names| {
            let next = names.after(from).take(PIECE);
            next.map(|(at, entry)| DirEntry {
                name: NameBuf::from_slice(&entry.name),
                ino: entry.info.ino,
                kind: entry.info.kind,
                next: at,
            })
            .collect()
        };
        if inode.is_unlinked() {
            return Ok(Vec::new());
        }
        if let Some(names) = own {
            return Ok(take(names));
        }
        let dir = dir_of(inode)?;
        loop {
            if let Some(piece) = dir.with_names(take) {
                return Ok(piece);
            }
            if let Some(names) = self.read_and_keep(inode)? {
                return Ok(take(own.insert(names)));
            }
        }
    }

    /// All entries of a directory, ordered by position, with numbers as we know them: those that users
    /// see may be cut.
    pub(super) fn listing(&self, inode: &Arc<Inode>) -> Result<Vec<DirEntry>> {
        dir_of(inode)?.forget_short_lived();
        let mut own = None;
        let mut entries = Vec::new();
        let mut from = FIRST_POSITION;
        loop {
            let piece = self.piece(inode, from, &mut own)?;
            let Some(last) = piece.last() else {
                Self::end_of_listing(inode);
                return Ok(entries);
            };
            from = last.next;
            entries.extend(piece);
        }
    }
}
