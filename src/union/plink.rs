//! Lower files with several names: one inode, whatever becomes of the names.
//!
//! Copying one up commits with one link(2), of the finished copy to its entry in `.wh..wh.plnk`:
//! from then on a look at any name that the lower gives the file leads to the copy. Names get their
//! own place in the upper when they are known at that moment, or have to move.
//!
//! The number of names is `links - gone` of the lower's and the copy's own links but its entry. A
//! step that changes `gone` is announced on disk before, so that what a crash leaves is settled by a
//! look at the one name it was about.

use std::os::fd::AsFd;

use crate::layer::name::Name;
use crate::layer::plink::{self, Intent, Print};
use crate::sys::{self, Errno, Result, Stat};

use super::Union;
use super::descriptors::Real;
use super::inode::Inode;
use super::inode_table::Found;
use super::lookup::dir_of;
use super::plink_table::{Group, State};

impl Union {
    /// Settles what a crash left half done, and reads what there is.
    pub(super) fn load_plinks(&self) -> Result<()> {
        let Some(disk) = self.plinks.disk() else {
            return Ok(());
        };
        if !self.is_read_only() {
            if let Some(intent) = disk.intent()
                && let Err(e) = self.settle(&intent)
            {
                tracing::warn!("the number of names of a file could not be settled: {e}");
            }
            disk.clear_intent();
        }
        self.plinks.load()?;
        if !self.plinks.follow() {
            if !self.is_read_only() {
                disk.remove_empty();
            }
            if self.plinks.any() {
                tracing::warn!("noplink: names that belong together show different files");
            }
        }
        Ok(())
    }

    /// Makes the record right after a crash: the change it was about was made unless the name is
    /// still the lower's.
    fn settle(&self, intent: &Intent) -> Result<()> {
        let Some(disk) = self.plinks.disk() else {
            return Ok(());
        };
        let Intent { number, record, .. } = *intent;
        // A path that could not be kept: too many names do no harm, too few would.
        if intent.path.is_empty() || self.lower_shows(&intent.path, number)? {
            return Ok(());
        }
        let links = match self.entry_stat(number, record.upper) {
            Some(stat) => stat.nlink.saturating_sub(1),
            None if record.upper != 0 => return disk.remove(number, record.upper),
            None => 0,
        };
        if links + u64::from(record.links.saturating_sub(record.gone)) == 0 {
            disk.remove(number, record.upper)
        } else {
            disk.set_record(number, &record)
        }
    }

    /// True when a path of the union shows the lower file `number` by the lower's own name.
    fn lower_shows(&self, path: &[u8], number: u64) -> Result<bool> {
        let (dirs, name) = match path.iter().rposition(|&b| b == b'/') {
            Some(at) => (&path[..at], &path[at + 1..]),
            None => (&path[..0], path),
        };
        let mut known = vec![super::ROOT];
        let mut shows = Ok(false);
        for dir in dirs.split(|&b| b == b'/').filter(|dir| !dir.is_empty()) {
            match self.lookup(*known.last().unwrap_or(&super::ROOT), dir) {
                Ok(Some(entry)) => known.push(entry.id),
                other => {
                    shows = other.map(|_| false);
                    known.push(0);
                    break;
                }
            }
        }
        if let Some(&id) = known.last().filter(|&&id| id != 0) {
            shows = self.inodes.get(id).and_then(|parent| {
                let dir = dir_of(&parent)?;
                let _tree = self.tree.read();
                let _names = dir.read_names();
                let found = self.find(&parent, Name::new(name)?)?;
                Ok(found.is_some_and(|f| self.number_by_lower(&f.found) == Some(number)))
            });
        }
        for id in known.into_iter().filter(|&id| id > super::ROOT).rev() {
            self.forget(id, 1);
        }
        match shows {
            Err(Errno::NOTDIR | Errno::NOENT) => Ok(false),
            shows => shows,
        }
    }

    /// The number of the file, if it is a lower that gives it this name.
    pub(super) fn number_by_lower(&self, found: &Found) -> Option<u64> {
        if self.layers.is_top(found.layer) || found.stat.kind().is_dir() {
            return None;
        }
        let own = || self.inodes.numbers.of(found.stat.dev, found.stat.ino);
        Some(found.plink.unwrap_or_else(own))
    }

    /// Attributes of a copy by its entry.
    pub(super) fn entry_stat(&self, number: u64, upper: u64) -> Option<Stat> {
        let dir = self.plinks.dir().filter(|_| upper != 0)?;
        sys::stat::stat_at(&*dir, &plink::entry_name(number, upper)).ok()
    }

    /// The copy that stands for a lower's file with attributes `stat`, found as `name` in `dir`.
    ///
    /// Precondition: as for [`Self::find`].
    pub(super) fn copy_of(&self, dir: impl AsFd, name: &[u8], stat: &Stat) -> Option<(u64, Stat)> {
        if !self.plinks.any() || !self.plinks.follow() {
            return None;
        }
        let number = self.inodes.numbers.of(stat.dev, stat.ino);
        let mut group = self.plinks.group(number)?;
        if matches!(group.state, State::Unread | State::Read) {
            group = self.read_group(number, group);
            if group.is_ours() {
                let print = Print::of(dir.as_fd(), name, stat);
                let copy = self.recorded_entry(number, group.record.upper);
                // A record may have been forged; a file is no directory whatever it says.
                let same_kind = copy.is_none_or(|copy| copy.kind() == stat.kind());
                group.state = if same_kind && group.record.print.fits(&print) {
                    State::Fits
                } else {
                    State::Foreign
                };
                group.record.links = u32::try_from(stat.nlink).unwrap_or(u32::MAX);
                self.plinks.set(number, group);
            }
            if group.state == State::Foreign {
                tracing::warn!(
                    number,
                    "a pseudo-link in the upper is not of this lower file"
                );
            }
        }
        if !group.is_ours() || group.record.upper == 0 {
            return None;
        }
        let copy = self.recorded_entry(number, group.record.upper)?;
        Some((number, copy))
    }

    /// The same as [`Self::entry_stat`], with the owner and kind that are kept in attributes.
    fn recorded_entry(&self, number: u64, upper: u64) -> Option<Stat> {
        let stat = self.entry_stat(number, upper)?;
        let (dir, entry) = (self.plinks.dir()?, plink::entry_name(number, upper));
        self.owners.recorded(0, dir.as_fd(), &entry, stat).ok()
    }

    /// The number that an object of the upper shows as the copy of a file with several names.
    pub(super) fn number_of_copy(&self, dev: u64, ino: u64) -> Option<u64> {
        let number = self.plinks.number_of(ino)?;
        if self.layers.top_dev() != Some(dev) || !self.plinks.follow() {
            return None;
        }
        let group = self.plinks.group(number)?;
        let group = match group.state {
            State::Unread => self.read_group(number, group),
            _ => group,
        };
        (group.is_ours() && group.copy == ino).then_some(number)
    }

    /// True unless files get other numbers while they are known, as those of several names do when
    /// these part. Listings may be kept then.
    pub fn keeps_numbers(&self) -> bool {
        self.plinks.follow() || self.is_read_only()
    }

    /// True when a copy stands for the lower file `number`.
    pub(super) fn has_copy(&self, number: u64) -> bool {
        let group = self.plinks.group(number).filter(Group::is_ours);
        self.plinks.follow() && group.is_some_and(|g| g.record.upper != 0)
    }

    pub(super) fn read_group(&self, number: u64, mut group: Group) -> Group {
        if group.state != State::Unread {
            return group;
        }
        let disk = self.plinks.disk();
        let record = disk.and_then(|d| d.record(number, group.record.upper).ok().flatten());
        group.state = if record.is_some() {
            State::Read
        } else {
            State::Foreign
        };
        group.record = record.unwrap_or(group.record);
        self.plinks.set(number, group);
        group
    }

    /// The number of names of a file, of which the real object had `stat` since the tree lock was
    /// taken.
    ///
    /// Precondition: the tree lock is held, and nothing of rank 4 or above.
    pub(super) fn names_of(&self, inode: &Inode, stat: &Stat) -> u64 {
        if !self.plinks.any() {
            return stat.nlink;
        }
        self.plinks
            .while_unchanged(|| self.count_names(inode, stat))
    }

    /// The same while no names change.
    fn count_names(&self, inode: &Inode, stat: &Stat) -> u64 {
        let group = || self.plinks.group(inode.ino()).filter(Group::is_ours);
        if !self.layers.is_top(inode.layer()) {
            let gone = group().map_or(0, |g| u64::from(g.record.gone));
            return stat.nlink.saturating_sub(gone);
        }
        let own = |stat: &Stat| stat.nlink.saturating_sub(self.plinks.entries_of(stat.ino));
        if !inode.is_plinked() {
            return own(stat);
        }
        let Some(group) = group() else {
            return own(stat);
        };
        // A name may have become the copy's own since: one more of its links, one less of the
        // lower's names. A file that seems to have none cannot be linked to, says the kernel.
        let now = self.entry_stat(inode.ino(), group.record.upper);
        own(now.as_ref().unwrap_or(stat)) + u64::from(group.left())
    }

    /// Where the copy behind an inode with several names is.
    pub(super) fn plink_place(&self, inode: &Inode) -> Option<Real> {
        if !inode.is_plinked() {
            return None;
        }
        let group = self.plinks.group(inode.ino())?;
        Some(Real {
            dir: self.plinks.dir()?,
            name: plink::entry_name(inode.ino(), group.record.upper),
            layer: 0,
        })
    }
}
