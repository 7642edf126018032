//! Lower files with several names: one inode, whatever becomes of the names.
//!
//! Copying one up commits with one link(2), of the finished copy to its entry in `.wh..wh.plnk`: then
//! any name that the lower gives the file leads to it. Names known then, or moved, get places too.
//!
//! The number of names is `links - gone` of the lower's and the copy's own links but its entry. Steps
//! that change `gone` are announced on disk, so a look at one name settles what a crash leaves.

use std::os::fd::AsFd;
use std::sync::Arc;

use crate::layer::name::{Name, NameBuf};
use crate::layer::plink::{self, Intent, Print, Record};
use crate::sys::{self, Errno, Result, Stat};

use super::Union;
use super::copy_up::{Copy, Need, give_name, restore_times};
use super::descriptors::Real;
use super::inode::Inode;
use super::inode_table::Found;
use super::lookup::dir_of;
use super::plink_table::{Changing, Group, State};

/// A name that is about to be taken from a file of several, or to be given to its copy.
pub(super) struct Losing<'a> {
    _changing: Changing<'a>,
    number: u64,
    /// Afterwards.
    group: Group,
    /// The lower gives the file this name.
    by_lower: bool,
    /// It is the last one.
    pub last: bool,
}

impl Union {
    /// Settles what a crash left half done, and reads what there is.
    pub(super) fn load_plinks(&self) -> Result<()> {
        let Some(disk) = self.plinks.disk() else {
            return Ok(());
        };
        if let Some(intent) = disk.intent().filter(|_| !self.is_read_only()) {
            if let Err(e) = self.settle(&intent) {
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
                let found = self.find(&parent, Name::new(name)?, 0)?;
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
                group.state = if group.record.print.fits(&print) {
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
        let copy = self.entry_stat(number, group.record.upper)?;
        let dir = self.plinks.dir()?;
        let entry = plink::entry_name(number, group.record.upper);
        let copy = self.owners.recorded(0, dir.as_fd(), &entry, copy).ok()?;
        Some((number, copy))
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

    /// The number of names of a file, of which the real object has `stat`.
    pub(super) fn names_of(&self, inode: &Inode, stat: &Stat) -> u64 {
        if !self.plinks.any() {
            return stat.nlink;
        }
        let group = || self.plinks.group(inode.ino()).filter(Group::is_ours);
        if !self.layers.is_top(inode.layer()) {
            let gone = group().map_or(0, |g| u64::from(g.record.gone));
            return stat.nlink.saturating_sub(gone);
        }
        let own = stat.nlink.saturating_sub(self.plinks.entries_of(stat.ino));
        if !inode.is_plinked() {
            return own;
        }
        own + group().map_or(0, |g| u64::from(g.left()))
    }

    /// What is known of the lower's file behind an inode that is not copied up.
    ///
    /// Precondition: no lock but a copy-up's is held.
    pub(super) fn lower_record(&self, inode: &Arc<Inode>) -> Result<Record> {
        self.with_real(inode, |real: &Real| {
            let stat = real.stat()?;
            Ok(Record {
                upper: 0,
                gone: 0,
                links: u32::try_from(stat.nlink).unwrap_or(u32::MAX),
                print: Print::of(real.fd(), &real.name, &stat),
            })
        })
    }

    /// Gives the copy of a file with several names its entry: from now on it stands for all names.
    ///
    /// Precondition: the inode's copy-up lock is held, no other.
    pub(super) fn publish_plink(
        &self, inode: &Arc<Inode>, copy: Copy, mut record: Record,
    ) -> Result<()> {
        let disk = self.plinks.disk().ok_or(Errno::ROFS)?;
        let _tree = self.tree.read();
        let changing = self.plinks.change();
        if self.in_upper(inode) {
            // The rename of a directory above brought it there.
            return Ok(());
        }
        if inode.is_unlinked() {
            drop(changing);
            return self.adopt_orphan(inode, copy);
        }
        let number = inode.ino();
        let plinks = disk.make()?;
        let before = self.plinks.group(number);
        record.gone = before.filter(Group::is_ours).map_or(0, |g| g.record.gone);
        let (dir, name) = copy.real();
        let stat = sys::stat::stat_at(dir, name)?;
        record.upper = stat.ino;
        let on_copy = plink::record_on(dir, name, &record)?;
        if !on_copy {
            disk.set_record_apart(number, &record)?;
        }
        let file = give_name(copy, plinks.as_fd(), &plink::entry_name(number, stat.ino))?;
        self.plinks.set(number, Group::met(record));
        if on_copy && before.is_some() {
            // What was counted while there was no copy; the record on the copy goes on from it.
            let _ = disk.remove_symlink(number);
        }
        inode.set_plinked(true);
        let key = self.inodes.numbers.of(stat.dev, stat.ino);
        self.inodes.rekey(inode, key, false);
        // Only the data of a file with one name may stay elsewhere.
        self.forget_data(inode);
        inode.set_copied_up();
        drop(changing);
        if let Some(file) = file {
            self.keep_file(inode, file);
        }
        Ok(())
    }

    /// Gives all known names of a file that was just copied up their places in the upper. A name
    /// for which that fails leads to the copy all the same.
    ///
    /// Precondition: no lock is held.
    pub(super) fn put_names(&self, inode: &Arc<Inode>) {
        for alias in inode.aliases() {
            if let Err(e) = self.put_name(&alias.parent, &alias.name, inode.ino()) {
                tracing::debug!("a name of a linked file was not put into the upper: {e}");
            }
        }
    }

    /// Puts a name that a lower gives file `number` into the upper, as a link to its copy.
    ///
    /// Precondition: no lock is held.
    pub(super) fn put_name(&self, parent: &Arc<Inode>, name: &[u8], number: u64) -> Result<()> {
        if parent.is_unlinked() {
            return Ok(());
        }
        self.ensure_upper(parent, Need::All)?;
        let name = Name::new(name)?;
        let _tree = self.tree.read();
        let _names = dir_of(parent)?.write_names();
        let Some(found) = self.find(parent, name, 0)?.map(|found| found.found) else {
            return Ok(());
        };
        let by_lower = found.plink == Some(number) && !self.layers.is_top(found.layer);
        if !by_lower || parent.is_unlinked() {
            return Ok(());
        }
        let fd = self.dir_fd(parent, 0)?;
        self.mark_copies(parent, fd.as_fd())?;
        let Some(losing) = self.losing(parent, name, &found)? else {
            return Ok(());
        };
        let plinks = self.plinks.dir().ok_or(Errno::STALE)?;
        let entry = plink::entry_name(number, losing.group.record.upper);
        let before = sys::stat::fstat(&*fd)?;
        sys::cred::enter_own();
        self.lose(Some((losing, parent, name)), true, || {
            sys::at::link_at(&*plinks, &entry, &*fd, name.bytes())
        })?;
        // The directory's entries are the same as before for its users, so are its times.
        restore_times(fd.as_fd(), &before);
        Ok(())
    }

    /// Sees to it that a name of a file in the upper is in the upper itself.
    ///
    /// Precondition: no lock is held.
    pub(super) fn bring_name_up(
        &self, inode: &Arc<Inode>, parent: &Arc<Inode>, name: &[u8],
    ) -> Result<()> {
        if !inode.is_plinked() {
            return Ok(());
        }
        self.put_name(parent, name, inode.ino())
    }

    /// Puts a name of a file that has several into the upper, which copies the file up; false for
    /// any other name. A directory that is completed in the upper gets such names in place, as they
    /// have to stay one file with names elsewhere.
    ///
    /// Precondition: no lock is held.
    pub(super) fn put_linked(
        &self, inode: &Arc<Inode>, parent: &Arc<Inode>, name: &[u8],
    ) -> Result<bool> {
        if inode.kind.is_dir() || !self.plinks.follow() || inode.by_name {
            return Ok(false);
        }
        if !self.in_upper(inode) {
            let links = self.with_real(inode, Real::stat)?.nlink;
            if links < 2 && self.plinks.group(inode.ino()).is_none() {
                return Ok(false);
            }
            self.copy_up(inode, Need::All)?;
        }
        if !inode.is_plinked() {
            return Ok(false);
        }
        self.put_name(parent, name, inode.ino())?;
        Ok(true)
    }

    /// Prepares for a name to go; nothing for a name that is its file's only one anyway.
    ///
    /// Precondition: the parent's names are written. AGAIN: a copy-up came in between.
    pub(super) fn losing(
        &self, parent: &Arc<Inode>, name: Name<'_>, found: &Found,
    ) -> Result<Option<Losing<'_>>> {
        if found.stat.kind().is_dir() || !self.plinks.follow() {
            return Ok(None);
        }
        let by_lower = !self.layers.is_top(found.layer);
        let number = match (found.plink, self.number_by_lower(found)) {
            (Some(number), _) => number,
            (None, Some(n)) if found.stat.nlink > 1 || self.plinks.group(n).is_some() => n,
            _ => return Ok(None),
        };
        let changing = self.plinks.change();
        let group = self.plinks.group(number).filter(Group::is_ours);
        if group.is_some_and(|g| g.record.upper != 0) != found.plink.is_some() {
            return Err(Errno::AGAIN);
        }
        let mut group = match group {
            Some(group) => group,
            None => {
                let dir = self.dir_fd(parent, found.layer)?;
                Group::met(Record {
                    upper: 0,
                    gone: 0,
                    links: u32::try_from(found.stat.nlink).unwrap_or(u32::MAX),
                    print: Print::of(dir.as_fd(), name.bytes(), &found.stat),
                })
            }
        };
        // The copy's names, without its entry.
        let mut own = match group.record.upper {
            0 => 0,
            upper => {
                let stat = self.entry_stat(number, upper).ok_or(Errno::AGAIN)?;
                stat.nlink.saturating_sub(1)
            }
        };
        if by_lower {
            group.record.gone = group.record.gone.saturating_add(1);
        } else {
            own = own.saturating_sub(1);
        }
        let last = own + u64::from(group.left()) == 0;
        Ok(Some(Losing {
            _changing: changing,
            number,
            group,
            by_lower,
            last,
        }))
    }

    /// Runs the change for which a name goes (or, when it `stays`, becomes the copy's own).
    pub(super) fn lose<T>(
        &self, losing: Option<(Losing<'_>, &Arc<Inode>, Name<'_>)>, stays: bool,
        change: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        let Some((losing, parent, name)) = losing else {
            return change();
        };
        let disk = self.plinks.disk().ok_or(Errno::ROFS)?;
        let Losing { number, group, .. } = losing;
        let record = group.record;
        let last = losing.last && !stays;
        if !losing.by_lower && !last {
            // The copy's own links say all.
            return change();
        }
        let intent = Intent {
            number,
            record,
            path: union_path(parent, name),
        };
        // Without room for it on disk, only a crash right now makes a difference, and a harmless one.
        if let Err(e) = disk.set_intent(&intent) {
            tracing::debug!("a change of names could not be announced: {e}");
        }
        let result = change();
        if result.is_ok() {
            let kept = if last {
                self.plinks.remove(number);
                disk.remove(number, record.upper)
            } else {
                self.plinks.set(number, group);
                disk.set_record(number, &record)
            };
            if let Err(e) = kept {
                // The note stays for the next mount.
                tracing::warn!("the number of names of a file could not be written down: {e}");
                return result;
            }
        }
        disk.clear_intent();
        result
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

/// The path of a name from the union's root, with slashes.
fn union_path(parent: &Arc<Inode>, name: Name<'_>) -> Vec<u8> {
    let mut names: Vec<NameBuf> = vec![NameBuf::from_slice(name.bytes())];
    let mut next = parent.alias();
    while let Some(alias) = next {
        names.push(NameBuf::from_slice(&alias.name));
        next = alias.parent.alias();
    }
    names.reverse();
    names.join(&b'/')
}
