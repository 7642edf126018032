//! Changing the names of lower files with several: see [`super::plink`].

use std::os::fd::AsFd;
use std::sync::Arc;

use crate::layer::name::{Name, NameBuf};
use crate::layer::plink::{self, Intent, Print, Record};
use crate::sys::{self, Errno, Result};

use super::Union;
use super::copy_up::{Copy, Need, give_name, restore_times};
use super::descriptors::Real;
use super::inode::Inode;
use super::inode_table::Found;
use super::lookup::dir_of;
use super::plink_table::{Changing, Group};

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
        let stat = copy.made;
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
        let names = dir_of(parent)?.write_names();
        names.unchanged();
        let Some(found) = self.find(parent, name)?.map(|found| found.found) else {
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
        names.unsettle();
        sys::cred::enter_own();
        self.lose(Some((losing, parent, name)), true, || {
            sys::at::link_at(&*plinks, &entry, &*fd, name.bytes())
        })?;
        names.note_copied_up(name.bytes());
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
        self.plinks.catch_up()?;
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
                // The note stays for the next change, or the next mount.
                self.plinks.fall_behind(number, record.upper);
                tracing::warn!("the number of names of a file could not be written down: {e}");
                return result;
            }
        }
        disk.clear_intent();
        result
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
