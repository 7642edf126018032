//! Files whose data are still in a lower (overlayfs's metacopy).
//!
//! The object in its layer has all attributes, the size among them, and holes for data; the data
//! are those of the next whole file below it, under its name or where a redirect says. They are
//! copied at the first change of the data, into the same object, so that links stay links, and the
//! record goes last. What is known of a file here is learned when it is opened or looked at.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::OFlags;

use crate::layer::LayerIndex;
use crate::layer::elsewhere::{self, Record, Redirect};
use crate::layer::name::{Name, NameBuf};
use crate::sys::at::SetTime;
use crate::sys::{self, Errno, FileKind, Result, Stat};

use super::Union;
use super::copy_up::Need;
use super::descriptors::{Real, Use};
use super::find::Step;
use super::inode::{Alias, Inode};
use super::rank::{Rank, Ranked};
use super::redirect::Trail;

/// Files below this size in bytes are copied whole: it costs about as much.
const SMALLEST: u64 = 16 * 1024;
/// Blocks of 512 bytes that attributes alone may take.
const ATTRIBUTE_BLOCKS: u64 = 16;
/// An attribute that every write to the file's data removes.
const CAPABILITY: &[u8] = b"security.capability";

/// The right to change the attributes of a file.
pub(super) type AttributesHeld<'a> = (crate::sys::sync::MutexGuard<'a, ()>, Ranked);

/// Where the data of a file are.
#[derive(Clone, Debug)]
pub(crate) struct DataPlace {
    pub layer: LayerIndex,
    /// The directory, from the root of the layer.
    pub dir: Vec<u8>,
    pub name: NameBuf,
}

impl DataPlace {
    /// At `path` from the root of the layer.
    fn at(layer: LayerIndex, path: &[u8]) -> Self {
        let (dir, name) = match path.iter().rposition(|&b| b == b'/') {
            Some(at) => (&path[..at], &path[at + 1..]),
            None => (&[][..], path),
        };
        Self {
            layer,
            dir: dir.to_vec(),
            name: NameBuf::from_slice(name),
        }
    }
}

/// True when a file may have its data elsewhere. Its blocks do not say: attributes may take as many
/// as a small file's data, and a copying of data that was cut short leaves some.
fn may_borrow(stat: &Stat) -> bool {
    stat.kind() == FileKind::Regular
}

/// True when its blocks say that it does: enough for what is only shown, and never so for the many
/// whole files, each of which would have to be asked.
pub(super) fn shows_holes(stat: &Stat) -> bool {
    stat.kind() == FileKind::Regular
        && stat.blocks <= ATTRIBUTE_BLOCKS
        && stat.blocks.saturating_mul(512) < stat.size
}

impl Union {
    /// True when a copy-up for a change of attributes may leave the data where they are.
    pub(super) fn leaves_data(&self, need: Need, src: &OwnedFd, stat: &Stat) -> Result<bool> {
        if need != Need::Attributes || !self.elsewhere.metacopy || stat.size < SMALLEST {
            return Ok(false);
        }
        // Other names of the file would be asked for its data too.
        let single = stat.nlink == 1;
        Ok(single && sys::xattr::get(src.as_fd(), b"", CAPABILITY)?.is_none())
    }

    /// Says where the data of a file are, of which the upper gets a copy in place of what a layer
    /// has as `alias`: there if the copy `leaves` them.
    pub(super) fn settle_data(&self, inode: &Inode, leaves: bool, alias: &Alias) {
        if !leaves {
            self.forget_data(inode);
        } else if !inode.is_borrowed() {
            let layer = inode.layer();
            inode.borrow(DataPlace {
                layer,
                dir: alias.parent.path_in(layer),
                name: NameBuf::from_slice(&alias.name),
            });
        }
    }

    /// Says that a file has its data itself.
    pub(super) fn forget_data(&self, inode: &Inode) {
        if let Some(data) = inode.own_data() {
            self.tell_data_moved(inode, (data.layer, Use::Data), None);
            self.descriptors.drop_data(inode, data.layer);
        }
    }

    /// Copies the data of a file of the upper there, if they are elsewhere.
    ///
    /// Precondition: no lock is held.
    pub(super) fn own_data(&self, inode: &Arc<Inode>, need: Need) -> Result<()> {
        if inode.kind != FileKind::Regular || !self.in_upper(inode) || inode.is_whole() {
            return Ok(());
        }
        let stat = self.with_real(inode, Real::stat)?;
        if may_borrow(&stat) {
            self.fetch_data(inode, need)?;
        }
        Ok(())
    }

    /// Finds out whether the data of a file are elsewhere, from its attributes.
    ///
    /// Precondition: the tree lock is held.
    pub(super) fn learn(&self, inode: &Arc<Inode>, stat: &Stat) -> Result<()> {
        if inode.is_borrowed() || inode.is_whole() || !may_borrow(stat) {
            return Ok(());
        }
        let Real { dir, name, .. } = self.real(inode)?;
        match elsewhere::metacopy(dir.as_fd(), &name)? {
            Some(record) => self.learn_from(inode, &record),
            None => {
                inode.facts.set_whole(true);
                Ok(())
            }
        }
    }

    /// The same for a file that was found to hold a record.
    ///
    /// Precondition: no lock but a copy-up's is held.
    pub(super) fn learn_borrowed(&self, inode: &Arc<Inode>) -> Result<()> {
        if inode.is_whole() {
            return Ok(());
        }
        let _tree = self.tree.read();
        let Real { dir, name, .. } = self.real(inode)?;
        match elsewhere::metacopy(dir.as_fd(), &name)? {
            Some(record) if !inode.is_borrowed() => self.learn_from(inode, &record),
            Some(_) => Ok(()),
            None => {
                inode.facts.set_whole(true);
                Ok(())
            }
        }
    }

    fn learn_from(&self, inode: &Arc<Inode>, record: &Record) -> Result<()> {
        let alias = inode.alias_or_last().ok_or(Errno::STALE)?;
        let layer = inode.layer();
        self.check_metacopy(layer, &alias.name, record)?;
        let dir = self.dir_fd(&alias.parent, layer)?;
        let way = self.data_way(layer, dir.as_fd(), Name::new(&alias.name)?)?;
        let mut trail = Trail::below(self, &alias.parent, layer, way);
        while let Some(stop) = trail.next()? {
            match stop.step {
                Step::File(stat) if stat.kind() == FileKind::Regular => {}
                _ => break,
            }
            match elsewhere::metacopy(stop.dir.as_fd(), &stop.name)? {
                None => {
                    inode.borrow_unless_whole(DataPlace::at(stop.layer, &stop.path));
                    return Ok(());
                }
                Some(record) => {
                    self.check_metacopy(stop.layer, &stop.name, &record)?;
                    let record = elsewhere::redirect(stop.dir.as_fd(), &stop.name)?;
                    if let Some(redirect) = self.redirect_of(stop.layer, &stop.name, record)? {
                        trail.turn(redirect);
                    }
                }
            }
        }
        self.refuse(
            layer,
            &alias.name,
            "a metacopy record, and no layer below has its data",
        );
        Err(Errno::IO)
    }

    fn check_metacopy(&self, layer: LayerIndex, name: &[u8], record: &Record) -> Result<()> {
        self.check_trust(layer, name, record)?;
        if !elsewhere::is_metacopy_record(&record.value) {
            self.refuse(layer, name, "a metacopy record that cannot be read");
            return Err(Errno::IO);
        }
        Ok(())
    }

    /// Under which name the layers below have the data of `name`.
    fn data_way(
        &self, layer: LayerIndex, dir: std::os::fd::BorrowedFd<'_>, name: Name<'_>,
    ) -> Result<Redirect> {
        let record = elsewhere::redirect(dir, name.bytes())?;
        let redirect = self.redirect_of(layer, name.bytes(), record)?;
        Ok(redirect.unwrap_or_else(|| Redirect::Sibling(NameBuf::from_slice(name.bytes()))))
    }

    /// The open file that has the data of a file whose data are elsewhere.
    ///
    /// Precondition: no lock but a copy-up's is held.
    pub(super) fn data_file(&self, inode: &Arc<Inode>) -> Result<Arc<OwnedFd>> {
        let data = inode.data().ok_or(Errno::IO)?;
        let key = (inode.serial, data.layer, Use::Data);
        if let Some(fd) = self.descriptors.file(key) {
            return Ok(fd);
        }
        let real = Real {
            dir: self.lower_dir(&data.dir, data.layer)?,
            name: data.name.clone(),
            layer: data.layer,
        };
        let fd = Arc::new(self.open_real(&real, data.layer, false)?);
        let whole =
            sys::stat::fstat(&*fd)?.kind() == FileKind::Regular && !elsewhere::is_metacopy(&*fd)?;
        if !whole {
            return Err(Errno::IO);
        }
        self.descriptors.keep(key, Arc::clone(&fd));
        Ok(fd)
    }

    /// Blocks that the data of such a file take.
    pub(super) fn data_blocks(&self, inode: &Inode) -> Result<u64> {
        let data = inode.data().ok_or(Errno::IO)?;
        let dir = self.lower_dir(&data.dir, data.layer)?;
        sys::stat::stat_at(&*dir, &data.name).map(|stat| stat.blocks)
    }

    /// Copies the data into the upper's object, which is a whole file from then on.
    ///
    /// Precondition: no lock is held, and the object is in the upper.
    pub(super) fn fetch_data(&self, inode: &Arc<Inode>, need: Need) -> Result<()> {
        let _rank = Ranked::enter(Rank::Copying);
        let _copying = inode.copying.lock();
        self.learn_borrowed(inode)?;
        if !inode.is_borrowed() {
            return Ok(());
        }
        sys::cred::enter_own();
        let src = self.data_file(inode)?;
        let dst = self.with_real(inode, |real| self.open_real(real, 0, true))?;
        let stat = sys::stat::fstat(&dst)?;
        let capability = sys::xattr::get(dst.as_fd(), b"", CAPABILITY)?;
        let len = match need {
            Need::Bytes(n) => n.min(stat.size),
            Need::All | Need::Attributes => stat.size,
        };
        let brought = self.bring_data(inode, &src, &dst, (&stat, len), capability);
        if brought.is_err() && elsewhere::is_metacopy(&dst)? {
            // The data are still elsewhere: all is as it was.
            if len < stat.size {
                let _ = sys::file::truncate(&dst, stat.size);
            }
            let (atime, mtime) = (SetTime::At(stat.atime), SetTime::At(stat.mtime));
            let _ = sys::at::utimens_at(&dst, b"", atime, mtime);
            return brought;
        }
        if let Some(data) = inode.data() {
            // It may have been let go meanwhile, and who reads it needs it on.
            let key = (inode.serial, data.layer, Use::Data);
            self.descriptors.keep(key, src);
        }
        self.forget_data(inode);
        tracing::debug!(inode = inode.ino(), "data copied up");
        Ok(())
    }

    /// Copies the first `len` bytes of the data from `src` into `dst`, whose attributes are `stat`, and
    /// removes the record that says that they are elsewhere.
    fn bring_data(
        &self, inode: &Inode, src: &OwnedFd, dst: &OwnedFd, (stat, len): (&Stat, u64),
        capability: Option<Vec<u8>>,
    ) -> Result<()> {
        let upper = self.upper()?;
        let from = sys::stat::fstat(src)?;
        let copied = sys::copy::copy_data(src, &from, dst, len, &upper.refusals)?;
        self.counted.copied(len);
        if len < stat.size {
            // Before the record goes: without it the rest would be holes.
            sys::file::truncate(dst, len)?;
        }
        // Writing has cleared what a change of the data clears; but they have not changed.
        if let Some(value) = capability {
            sys::xattr::set(dst.as_fd(), b"", CAPABILITY, &value, 0)?;
            // Whoever looked meanwhile found none.
            inode.facts.attr_changes();
        }
        if sys::stat::fstat(dst)?.mode != stat.mode {
            sys::at::chmod_at(dst, b"", stat.mode)?;
        }
        let mtime = if len < stat.size {
            // That was a change, which the file shows already.
            SetTime::Omit
        } else {
            SetTime::At(stat.mtime)
        };
        sys::at::utimens_at(dst, b"", SetTime::At(stat.atime), mtime)?;
        if !self.volatile {
            // Before the record goes, as for a name.
            upper.order.settle(dst, copied)?;
        }
        elsewhere::clear_metacopy(dst.as_fd(), b"")
    }

    /// Keeps the attributes of a file still while its data come: they are put back afterwards to what
    /// they were before.
    ///
    /// Precondition: no lock is held.
    pub(super) fn not_while_copying<'a>(&self, inode: &'a Inode) -> Option<AttributesHeld<'a>> {
        (inode.kind == FileKind::Regular).then(|| {
            let rank = Ranked::enter(Rank::Copying);
            (inode.copying.lock(), rank)
        })
    }

    /// Sees to it that a file finds its data under any name: a path is recorded where so far the
    /// name leads there. Where it cannot be, the data are copied.
    ///
    /// Precondition: no lock is held.
    pub(super) fn pin_data(&self, inode: &Arc<Inode>) -> Result<()> {
        if inode.kind != FileKind::Regular || !self.in_upper(inode) || inode.is_whole() {
            return Ok(());
        }
        let pinned = {
            let _tree = self.tree.read();
            let real = self.real(inode)?;
            self.learn(inode, &real.stat()?)?;
            if !inode.is_borrowed() {
                return Ok(());
            }
            match inode.alias() {
                Some(alias) => self.pin_locked(&alias.parent, &real),
                None => Ok(()),
            }
        };
        match pinned {
            Ok(()) => Ok(()),
            Err(_) => self.fetch_data(inode, Need::All),
        }
    }

    fn pin_locked(&self, parent: &Arc<Inode>, real: &Real) -> Result<()> {
        if real.name.is_empty() {
            return Ok(());
        }
        let record = elsewhere::redirect(real.fd(), &real.name)?;
        let name = match self.redirect_of(0, &real.name, record)? {
            Some(Redirect::Path(_)) => return Ok(()),
            Some(Redirect::Sibling(name)) => name,
            None => real.name.clone(),
        };
        let path = [b"/", parent.union_path_with(&name).as_slice()].concat();
        sys::cred::enter_own();
        elsewhere::set_redirect(real.fd(), &real.name, &path)
    }

    /// True when the file `name` of a directory of the upper finds its data by its name, which it
    /// must not lose then.
    pub(super) fn needs_pin(&self, dir: &OwnedFd, name: &[u8]) -> Result<bool> {
        if !may_borrow(&sys::stat::stat_at(dir, name)?)
            || elsewhere::metacopy(dir.as_fd(), name)?.is_none()
        {
            return Ok(false);
        }
        let record = elsewhere::redirect(dir.as_fd(), name)?;
        Ok(!record.is_some_and(|record| record.value.starts_with(b"/")))
    }

    /// Opens an object of `layer` for its data; it never waits for anyone.
    pub(super) fn open_real(&self, real: &Real, layer: LayerIndex, write: bool) -> Result<OwnedFd> {
        let same_mount = self.layers.get(layer).same_mount;
        let access = if write { OFlags::RDWR } else { OFlags::RDONLY };
        let flags = access | OFlags::NONBLOCK | OFlags::NOCTTY;
        self.with_descriptors(|| {
            if !self.layers.is_upper(layer) {
                // Reading a lower leaves its access time alone, where we may say so.
                match real.open(flags | OFlags::NOATIME, same_mount) {
                    Err(Errno::PERM) => {}
                    result => return result,
                }
            }
            match real.open(flags, same_mount) {
                // An append-only file; who may open it so was checked at open.
                Err(Errno::PERM) if write => real.open(flags | OFlags::APPEND, same_mount),
                result => result,
            }
        })
    }
}
