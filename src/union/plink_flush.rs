//! Flushing pseudo-links: every name gets its own place in the upper, then the entries go. What is
//! left stands without us.
//!
//! Until its entry goes, a file is found by it; so a crash at any point leaves some names that have
//! their place and some that follow the entry, and the next flush goes on from there.

use crate::sys::sync::atomic::Ordering;
use std::collections::HashSet;
use std::os::fd::AsFd;
use std::sync::Arc;

use crate::layer::{origin, plink};
use crate::sys::{self, Errno, Result};

use super::inode::{Held, Inode};
use super::plink_table::Group;
use super::stale::What;
use super::{ROOT, Union};

/// How often the whole tree is walked at most.
const ROUNDS: usize = 8;

/// What a flush did.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Flushed {
    /// Entries that are gone.
    pub entries: u64,
    /// Entries that had to stay. Those that were made since the flush began may stay too, and are not
    /// counted.
    pub kept: u64,
}

impl Union {
    /// Union inode numbers of the files whose names a pseudo-link holds together.
    pub fn plinks(&self) -> Vec<u64> {
        let all = self.plinks.all().into_iter();
        let mut numbers: Vec<u64> = all
            .filter(|(number, group)| group.record.upper != 0 && self.has_copy_read(*number))
            .map(|(number, _)| self.shown(number))
            .collect();
        numbers.sort_unstable();
        numbers
    }

    /// The same, with the paths from the union's root, sorted.
    ///
    /// # Errors
    /// What reading the tree gives.
    pub fn plink_names(&self) -> Result<Vec<(u64, Vec<u8>)>> {
        let mut names = Vec::new();
        let mut pending = vec![(ROOT, Vec::new())];
        while let Some((id, path)) = pending.pop() {
            let listing = self.inodes.get(id).and_then(|dir| self.listing(&dir));
            for entry in listing? {
                let mut path: Vec<u8> = path.clone();
                if !path.is_empty() {
                    path.push(b'/');
                }
                path.extend_from_slice(&entry.name);
                if entry.kind.is_dir() {
                    if let Some(found) = self.lookup(id, &entry.name)? {
                        pending.push((found.id, path));
                    }
                } else if self.has_copy_read(entry.ino) {
                    names.push((self.shown(entry.ino), path));
                }
            }
            self.forget(id, 1);
        }
        names.sort();
        Ok(names)
    }

    fn has_copy_read(&self, number: u64) -> bool {
        if let Some(group) = self.plinks.group(number) {
            self.read_group(number, group);
        }
        self.has_copy(number)
    }

    /// Gives every name that the union shows its own place in the upper and removes the entries.
    ///
    /// # Errors
    /// What reading the tree gives; nothing is lost then, and less done.
    pub fn flush_plinks(&self) -> Result<Flushed> {
        self.upper()?;
        let mut flushed = Flushed::default();
        if !self.plinks.any() || !self.plinks.follow() {
            return Ok(flushed);
        }
        // A directory that moves while we look may hide a name from us; and names of a file that got
        // its copy meanwhile were passed over. Then once more.
        for _ in 0..ROUNDS {
            let moves = self.moves.load(Ordering::Acquire);
            let placeable = self.plinks.all().into_iter();
            let placeable = placeable.filter(|(_, group)| group.record.upper != 0);
            let placeable = placeable.map(|(number, _)| number).collect();
            let unplaced = self.place_all_names()?;
            let (more, is_late) = self.drop_entries(moves, &placeable, &unplaced)?;
            flushed.entries += more.entries;
            flushed.kept = more.kept;
            if moves == self.moves.load(Ordering::Acquire) && !is_late {
                break;
            }
        }
        if let Some(disk) = self.plinks.disk() {
            // Not while somebody is about to put the first entry there.
            let _changing = self.plinks.change();
            disk.remove_empty();
        }
        Ok(flushed)
    }

    /// Walks the whole tree; returns the files of which some name could not be placed.
    fn place_all_names(&self) -> Result<HashSet<u64>> {
        let mut unplaced = HashSet::new();
        let mut pending = vec![ROOT];
        while let Some(id) = pending.pop() {
            let result = self.place_names_in(id, &mut pending, &mut unplaced);
            self.forget(id, 1);
            if let Err(e) = result {
                pending.into_iter().for_each(|id| self.forget(id, 1));
                return Err(e);
            }
        }
        Ok(unplaced)
    }

    fn place_names_in(
        &self, id: u64, pending: &mut Vec<u64>, unplaced: &mut HashSet<u64>,
    ) -> Result<()> {
        let dir = self.inodes.get(id)?;
        for entry in self.listing(&dir)? {
            if entry.kind.is_dir() {
                if let Some(found) = self.lookup(id, &entry.name)? {
                    pending.push(found.id);
                }
            } else if self.has_copy_read(entry.ino)
                && let Err(e) = self.put_name(&dir, &entry.name, entry.ino)
            {
                tracing::warn!("a name of a linked file cannot be put into the upper: {e}");
                unplaced.insert(entry.ino);
            }
        }
        Ok(())
    }

    /// Removes the entries of the `placeable` files but those that are `unplaced`. Returns whether
    /// there are others since, which are left to the next walk.
    fn drop_entries(
        &self, moves: u64, placeable: &HashSet<u64>, unplaced: &HashSet<u64>,
    ) -> Result<(Flushed, bool)> {
        let mut flushed = Flushed::default();
        let mut is_late = false;
        let disk = self.plinks.disk().ok_or(Errno::ROFS)?;
        for (number, upper, _) in disk.list()? {
            if upper == 0 {
                self.drop_apart(number)?;
                continue;
            }
            let mut renumbered = None;
            // No one else is about, so what is true of the names stays true.
            let tree = self.tree.write();
            let group = self.plinks.group(number).filter(Group::is_ours);
            let goes = match group.filter(|group| group.record.upper == upper) {
                None => self.drop_foreign(number, upper),
                Some(_) if !placeable.contains(&number) => {
                    is_late = true;
                    continue;
                }
                Some(_) if self.moves.load(Ordering::Acquire) != moves => Err(Errno::AGAIN),
                Some(_) if unplaced.contains(&number) => Err(Errno::AGAIN),
                Some(group) => self.drop_entry(number, group, &mut renumbered),
            };
            drop(tree);
            if let Some(id) = renumbered {
                self.stale.tell(id, What::Attributes);
            }
            match goes {
                Ok(()) => flushed.entries += 1,
                // Its last name has gone since the entries were listed, and it with that.
                Err(_) if self.entry_stat(number, upper).is_none() => {}
                Err(_) => flushed.kept += 1,
            }
        }
        Ok((flushed, is_late))
    }

    /// Removes a symlink `I.0` that a crash left when the entry was gone that it was about. Others
    /// say how many names were taken from a file that has no copy.
    fn drop_apart(&self, number: u64) -> Result<()> {
        let _changing = self.plinks.change();
        let group = self.plinks.group(number).filter(Group::is_ours);
        let has_copy = group.is_some_and(|group| group.record.upper != 0);
        match self.plinks.disk() {
            Some(disk) if !has_copy && disk.is_leftover(number)? => disk.remove_symlink(number),
            _ => Ok(()),
        }
    }

    /// Removes someone else's entry, unless it is the only link to its data.
    fn drop_foreign(&self, number: u64, upper: u64) -> Result<()> {
        let stat = self.entry_stat(number, upper).ok_or(Errno::NOENT)?;
        if stat.nlink < 2 {
            return Err(Errno::NOTEMPTY);
        }
        let _changing = self.plinks.change();
        let dir = self.plinks.dir().ok_or(Errno::NOENT)?;
        sys::at::unlink_at(&*dir, &plink::entry_name(number, upper))?;
        self.plinks.forget_entry(number, upper, stat.ino);
        Ok(())
    }

    /// Removes the entry of a file of which all names have their places. Says which node has got another
    /// number by that.
    ///
    /// Precondition: the tree lock is written.
    fn drop_entry(&self, number: u64, group: Group, renumbered: &mut Option<u64>) -> Result<()> {
        let key = self.layers.top_dev().map(|dev| {
            let numbers = &self.inodes.numbers;
            numbers.of(dev, group.copy)
        });
        let inode = key.and_then(|key| self.inodes.find(key));
        if let Some(inode) = &inode {
            self.part_from_entry(inode, number, group)?;
        }
        let entry = plink::entry_name(number, group.record.upper);
        let dir = self.plinks.dir();
        let copy = dir.and_then(|dir| sys::at::open_path(&*dir, &entry).ok());
        self.remove_entry(number, group)?;
        let recorded = copy
            .as_ref()
            .map(|copy| origin::recorded(copy.as_fd(), b"", group.copy));
        if recorded.is_some_and(|recorded| recorded == Ok(None)) {
            // Only the entry's name said which number it has. Nobody is to go on with that, as a name
            // of which nothing is known from now on would have another one.
            self.forget_known_names();
            if let Some(inode) = inode {
                inode.set_ino(inode.key.load(Ordering::Acquire));
                *renumbered = Some(inode.id);
            }
        }
        // Last, as an entry without its record would be someone else's, and stay after a crash.
        if let Some(copy) = copy {
            plink::clear_record(copy.as_fd(), b"");
        }
        Ok(())
    }

    fn remove_entry(&self, number: u64, group: Group) -> Result<()> {
        let _changing = self.plinks.change();
        if let Some(disk) = self.plinks.disk() {
            disk.remove(number, group.record.upper)?;
        }
        self.plinks.remove(number);
        Ok(())
    }

    /// Has an inode that someone knows found by one of its names from now on.
    ///
    /// Precondition: the tree lock is written.
    fn part_from_entry(&self, inode: &Arc<Inode>, number: u64, group: Group) -> Result<()> {
        let entry = plink::entry_name(number, group.record.upper);
        for alias in inode.aliases() {
            let is_own = || {
                let dir = self.dir_fd(&alias.parent, 0).ok()?;
                let stat = sys::stat::stat_at(&*dir, &alias.name).ok()?;
                (stat.ino == group.copy && !alias.parent.is_unlinked()).then_some(())
            };
            if is_own().is_none()
                && let (Some(alias), _) = inode.take_alias(&alias.parent, &alias.name)
            {
                self.forget(alias.parent.id, 1);
            }
        }
        if inode.alias().is_none() {
            // Its names are not known here, or it has none.
            let dir = self.plinks.dir().ok_or(Errno::STALE)?;
            let fd = self.with_descriptors(|| sys::at::open_path(&*dir, &entry))?;
            if let Some(journal) = super::journal::active() {
                journal.hold(inode.cell, inode.serial, fd.as_fd());
            }
            let held = Held::Handle {
                fd: Arc::new(fd),
                _permit: self.descriptors.held.take(),
            };
            inode.place.write().set_held(Some(held));
        }
        inode.set_plinked(false);
        Ok(())
    }
}
