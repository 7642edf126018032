//! Descriptors of real objects, kept for a while: directory handles and open files.
//!
//! Inodes are known by (layer, parent, name); a descriptor is only a cache of the way there, so
//! the limit of descriptors bounds speed, not the size of the tree.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, OnceLock};

use quick_cache::sync::Cache;
use rustix::fs::OFlags;

use crate::layer::name::NameBuf;
use crate::layer::{LayerIndex, elsewhere};
use crate::sys::{self, Errno, FileKind, Result, Stat};

use super::Union;
use super::copy_up::Need;
use super::idle::Idle;
use super::inode::{Held, Inode, Permits, Pinned, Place};
use super::journal;

/// What a cached descriptor is good for.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Hash)]
pub(super) enum Use {
    /// O_PATH handle of a directory.
    Path,
    /// Open file, for reading.
    Read,
    /// Open file, for reading and writing.
    Write,
    /// Open file of a lower that has the data of an object of another layer.
    Data,
}

pub(super) type Key = (u64, LayerIndex, Use);

/// See the module text. The caches are leaves of the lock order.
#[derive(Debug)]
pub(crate) struct Descriptors {
    dirs: Cache<Key, Arc<OwnedFd>>,
    files: Cache<Key, Arc<OwnedFd>>,
    idle: Idle,
    /// Handles of objects without a name, which cannot be closed and opened again.
    pub held: Permits,
    max_held: usize,
}

impl Descriptors {
    /// Caches and handles of objects without a name, at most `budget` descriptors together.
    pub fn new(budget: usize) -> Self {
        let third = (budget / 3).max(4);
        Self {
            dirs: Cache::new(third),
            files: Cache::new(third),
            idle: Idle::default(),
            held: Permits::default(),
            max_held: third,
        }
    }

    /// How many directory handles and open files are kept.
    pub fn kept(&self) -> (usize, usize) {
        (self.dirs.len(), self.files.len())
    }

    /// True while objects without a name may be held by handles.
    pub fn may_hold(&self) -> bool {
        self.held.taken() < self.max_held
    }

    /// Closes what is kept for an inode that is gone.
    pub fn forget(&self, inode: &Inode) {
        if inode.kind == FileKind::Directory {
            for part in inode.stack() {
                self.dirs.remove(&(inode.serial, part.layer, Use::Path));
            }
        } else if inode.kind == FileKind::Regular {
            let layer = inode.layer();
            // In this order: who exchanges one for the other goes the other way.
            if layer == 0 {
                self.files.remove(&(inode.serial, layer, Use::Write));
            }
            self.files.remove(&(inode.serial, layer, Use::Read));
            if let Some(data) = inode.data() {
                self.drop_data(inode, data.layer);
            }
        }
    }

    /// Closes files of the lower after a copy-up.
    fn forget_lower(&self, inode: &Inode, layer: LayerIndex) {
        self.files.remove(&(inode.serial, layer, Use::Read));
    }

    /// The cached handle of a directory.
    pub fn known_dir(&self, inode: &Inode, layer: LayerIndex) -> Option<Arc<OwnedFd>> {
        self.dirs.get(&(inode.serial, layer, Use::Path))
    }

    /// Closes the handles of all directories, as they may be others by now.
    pub fn clear_dirs(&self) {
        self.dirs.clear();
    }

    /// A cached file.
    pub fn file(&self, key: Key) -> Option<Arc<OwnedFd>> {
        self.files.get(&key)
    }

    /// Caches a file.
    pub fn keep(&self, key: Key, fd: Arc<OwnedFd>) {
        self.files.insert(key, fd);
    }

    /// What is open for writing, for who closes it.
    pub fn idle(&self) -> &Idle {
        &self.idle
    }

    /// Keeps a file to write by.
    fn keep_writer(&self, key: Key, fd: Arc<OwnedFd>) {
        self.files.insert(key, fd);
        self.idle.note();
    }

    /// Exchanges what is open for writing for the same open for reading.
    pub fn close_writers(&self) {
        let writers = self
            .files
            .iter()
            .filter(|((.., usage), _)| *usage == Use::Write);
        let writers: Vec<_> = writers.collect();
        for (key, file) in writers {
            let read = (key.0, key.1, Use::Read);
            let is_new = self.files.peek(&read).is_none();
            if is_new {
                let flags = OFlags::RDONLY | OFlags::NONBLOCK;
                let Ok(file) = sys::fd::reopen(&*file, flags) else {
                    // Without descriptors: it is tried again.
                    self.idle.note();
                    continue;
                };
                self.files.insert(read, Arc::new(file));
            }
            if self.files.remove(&key).is_none() && is_new {
                // The inode may be gone, which nothing may keep.
                self.files.remove(&read);
            }
        }
    }

    /// Closes the file that had the data of an inode.
    pub fn drop_data(&self, inode: &Inode, layer: LayerIndex) {
        self.files.remove(&(inode.serial, layer, Use::Data));
    }

    /// Closes everything that is not in use at this moment.
    pub fn clear(&self) {
        self.dirs.clear();
        self.files.clear();
    }
}

/// Where a real object is: a name in a directory handle, or (with an empty name) the handle.
#[derive(Debug)]
pub(crate) struct Real {
    pub dir: Arc<OwnedFd>,
    pub name: NameBuf,
    pub layer: LayerIndex,
}

impl Real {
    /// The directory handle, or the object itself when [`Self::name`] is empty.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// Its attributes.
    pub fn stat(&self) -> Result<Stat> {
        sys::stat::stat_at(self.fd(), &self.name)
    }

    pub(super) fn open(&self, flags: OFlags, same_mount: bool) -> Result<OwnedFd> {
        if self.name.is_empty() {
            return sys::fd::reopen(self.fd(), flags);
        }
        sys::at::open_at(self.fd(), &self.name, flags, 0, same_mount)
    }
}

impl Union {
    /// Runs a call that opens something; when descriptors ran out, again after closing the cached
    /// ones.
    pub(super) fn with_descriptors<T>(&self, mut call: impl FnMut() -> Result<T>) -> Result<T> {
        match call() {
            Err(Errno::MFILE | Errno::NFILE) => {
                self.descriptors.clear();
                call()
            }
            result => result,
        }
    }

    /// An O_PATH handle of the directory `inode` in `layer`.
    ///
    /// Precondition: the tree lock is held. The way down does not recurse, so a deep tree is no
    /// danger, and every step stays beneath the layer.
    pub(super) fn dir_fd(&self, inode: &Arc<Inode>, layer: LayerIndex) -> Result<Arc<OwnedFd>> {
        if self.watching.period_is_over() {
            self.descriptors.clear_dirs();
        }
        let mut missing: Vec<(Arc<Inode>, NameBuf)> = Vec::new();
        let mut current = Arc::clone(inode);
        let mut fd = loop {
            if current.id == super::ROOT_ID {
                break self.layers.get(layer).root();
            }
            if let Some(fd) = self
                .descriptors
                .dirs
                .get(&(current.serial, layer, Use::Path))
            {
                break fd;
            }
            let (parent, name) = {
                let place = current.place.read();
                // A directory is never held by a link.
                if let (Some(Held::Handle { fd: held, .. }), 0) = (place.held(), layer) {
                    break Arc::clone(held);
                }
                if let Some(Held::Lower(pinned)) = place.held()
                    && pinned.layer == layer
                {
                    let pinned = Arc::clone(pinned);
                    drop(place);
                    let dir = self.pinned_dir(&pinned)?;
                    break self.dir_below(dir, &pinned.name, layer)?;
                }
                let lower = place.lower().filter(|_| layer > 0);
                if let Some(path) = lower.and_then(|lower| lower.path(layer)) {
                    let path = path.to_vec();
                    drop(place);
                    let fd = self.lower_dir(&path, layer)?;
                    self.watch_part(&current, layer, fd.as_fd());
                    break fd;
                }
                let alias = place.alias.as_ref().ok_or(Errno::STALE)?;
                (Arc::clone(&alias.parent), NameBuf::from_slice(&alias.name))
            };
            missing.push((current, name));
            current = parent;
        };
        let same_mount = self.layers.get(layer).same_mount;
        while let Some((inode, name)) = missing.pop() {
            let open = || sys::at::open_dir_path(&*fd, &name, same_mount);
            let next = Arc::new(self.with_descriptors(open)?);
            self.watch_part(&inode, layer, next.as_fd());
            self.descriptors
                .dirs
                .insert((inode.serial, layer, Use::Path), Arc::clone(&next));
            fd = next;
        }
        Ok(fd)
    }

    /// A handle of the directory at `path` below the root of a layer, name by name.
    pub(super) fn lower_dir(&self, path: &[u8], layer: LayerIndex) -> Result<Arc<OwnedFd>> {
        self.dir_below(self.layers.get(layer).root(), path, layer)
    }

    /// The same from a directory of the layer on.
    fn dir_below(
        &self, mut fd: Arc<OwnedFd>, path: &[u8], layer: LayerIndex,
    ) -> Result<Arc<OwnedFd>> {
        let same_mount = self.layers.get(layer).same_mount;
        for name in path.split(|&b| b == b'/').filter(|name| !name.is_empty()) {
            let open = || sys::at::open_dir_path(&*fd, name, same_mount);
            fd = Arc::new(self.with_descriptors(open)?);
        }
        Ok(fd)
    }

    /// The directory that holds an object which a change of the layers has taken out of the tree.
    fn pinned_dir(&self, pinned: &Pinned) -> Result<Arc<OwnedFd>> {
        self.dir_below(Arc::clone(&pinned.root), &pinned.dir, pinned.layer)
    }

    /// Keeps a handle that was just opened anyway.
    pub(super) fn keep_dir_fd(&self, inode: &Inode, layer: LayerIndex, fd: OwnedFd) {
        self.watch_part(inode, layer, fd.as_fd());
        self.descriptors
            .dirs
            .insert((inode.serial, layer, Use::Path), Arc::new(fd));
    }

    /// Lets go of a handle whose directory was replaced.
    pub(super) fn forget_dir_fd(&self, inode: &Inode, layer: LayerIndex) {
        self.descriptors
            .dirs
            .remove(&(inode.serial, layer, Use::Path));
    }

    /// Where the inode's real object is now.
    ///
    /// Precondition: the tree lock is held.
    pub(super) fn real(&self, inode: &Arc<Inode>) -> Result<Real> {
        let layer = inode.layer();
        if inode.kind == FileKind::Directory {
            return Ok(Real {
                dir: self.dir_fd(inode, layer)?,
                name: NameBuf::new(),
                layer,
            });
        }
        let (parent, name) = {
            let place: &Place = &inode.place.read();
            match place.held() {
                Some(Held::Handle { fd: held, .. }) if layer == 0 => {
                    return Ok(Real {
                        dir: Arc::clone(held),
                        name: NameBuf::new(),
                        layer,
                    });
                }
                Some(Held::Link(link)) if layer == 0 => {
                    let name = NameBuf::from_slice(link.name());
                    return Ok(Real {
                        dir: Arc::clone(&link.dir),
                        name,
                        layer,
                    });
                }
                Some(Held::Lower(pinned)) if pinned.layer == layer => {
                    let name = pinned.name.clone();
                    return Ok(Real {
                        dir: self.pinned_dir(pinned)?,
                        name,
                        layer,
                    });
                }
                _ => {}
            }
            if let Some(place) = self.plink_place(inode) {
                return Ok(place);
            }
            let alias = place.alias.as_ref().ok_or(Errno::STALE)?;
            (Arc::clone(&alias.parent), NameBuf::from_slice(&alias.name))
        };
        Ok(Real {
            dir: self.dir_fd(&parent, layer)?,
            name,
            layer,
        })
    }

    /// Runs a call on the inode's real object. An object that loses its name between the look and
    /// the call is reached through its handle in a second try.
    ///
    /// Precondition: no lock but a copy-up's is held.
    pub(super) fn with_real<T>(
        &self, inode: &Arc<Inode>, mut call: impl FnMut(&Real) -> Result<T>,
    ) -> Result<T> {
        let _tree = self.tree.read();
        let real = self.real(inode)?;
        match call(&real) {
            Err(Errno::NOENT) if !real.name.is_empty() => call(&self.real(inode)?),
            result => result,
        }
    }

    /// The regular file behind the inode, open for reading (and for writing, which needs it to be
    /// in the upper, and brings its data there).
    ///
    /// Precondition: no lock but a copy-up's is held; for writing not that one.
    pub(super) fn file(&self, inode: &Arc<Inode>, write: bool) -> Result<Arc<OwnedFd>> {
        if !write && inode.is_borrowed() {
            return self.data_file(inode);
        }
        let layer = inode.layer();
        let usage = if write { Use::Write } else { Use::Read };
        let key = (inode.serial, layer, usage);
        if let Some(fd) = self.descriptors.files.get(&key) {
            self.counted.file(true);
            return Ok(fd);
        }
        if !write && layer == 0 {
            // What is open for writing can be read too, even if the mode forbids opening it anew.
            let key = (inode.serial, layer, Use::Write);
            if let Some(fd) = self.descriptors.files.get(&key) {
                self.counted.file(true);
                return Ok(fd);
            }
        }
        self.counted.file(false);
        if write && !self.in_upper(inode) {
            return Err(Errno::ROFS);
        }
        let mut tries = 0;
        let fd = loop {
            match self.open_file(inode, layer, write) {
                Err(Errno::STALE) if tries < 3 => tries += 1,
                result => break Arc::new(result?),
            }
        };
        if inode.is_whole() {
            // No need to ask.
        } else if !elsewhere::is_metacopy(&*fd)? {
            inode.facts.set_whole(true);
        } else if write {
            self.fetch_data(inode, Need::All)?;
        } else {
            self.learn_borrowed(inode)?;
            if inode.is_borrowed() {
                return self.data_file(inode);
            }
        }
        // A copy-up may have happened meanwhile; the key holds the layer, so what is kept under
        // it stays true.
        if write {
            self.descriptors.keep_writer(key, Arc::clone(&fd));
        } else {
            self.descriptors.files.insert(key, Arc::clone(&fd));
        }
        Ok(fd)
    }

    /// Opens the inode's file in `layer` anew.
    pub(super) fn open_file(
        &self, inode: &Arc<Inode>, layer: LayerIndex, write: bool,
    ) -> Result<OwnedFd> {
        // Never waits, whatever another process may have put in the file's place.
        let fd = self.with_real(inode, |real| self.open_real(real, layer, write))?;
        let stat = sys::stat::fstat(&fd)?;
        if stat.kind() != FileKind::Regular {
            return Err(Errno::IO);
        }
        let key = inode.key.load(crate::sys::sync::atomic::Ordering::Acquire);
        let is_it = key == 0 || key == self.inodes.numbers.of(stat.dev, stat.ino);
        if !is_it && inode.layer() == layer {
            // The name was given to another file between the look and the call.
            return Err(Errno::STALE);
        }
        Ok(fd)
    }

    /// Closes the cached files of an inode whose flags were changed: they decide what may be opened.
    pub(super) fn reopen_files(&self, inode: &Inode) {
        self.descriptors.forget(inode);
    }

    /// Keeps the descriptor of a file that was just made in the upper.
    pub(super) fn keep_file(&self, inode: &Inode, fd: OwnedFd) {
        self.keep_for_next(inode, &fd);
        self.take_file(inode, fd);
    }

    /// Has the next server of the mount get a descriptor of a file that it could not open again, as the
    /// mode forbids it.
    pub(super) fn keep_for_next(&self, inode: &Inode, fd: &OwnedFd) {
        static OVERRIDES: OnceLock<bool> = OnceLock::new();
        let Some(journal) = journal::active() else {
            return;
        };
        let both = libc::S_IRUSR | libc::S_IWUSR;
        if !*OVERRIDES.get_or_init(sys::cred::overrides_modes)
            && sys::stat::fstat(fd).is_ok_and(|stat| stat.mode & both != both)
        {
            journal.hold(inode.cell, inode.serial, fd.as_fd());
        }
    }

    /// Keeps a descriptor to write by.
    pub(super) fn take_file(&self, inode: &Inode, fd: OwnedFd) {
        let key = (inode.serial, 0, Use::Write);
        self.descriptors.keep_writer(key, Arc::new(fd));
    }

    /// Lets go of the lower's file after a copy-up from `layer`.
    pub(super) fn drop_lower_file(&self, inode: &Inode, layer: LayerIndex) {
        self.maps.drop(inode.serial);
        self.descriptors.forget_lower(inode, layer);
    }
}
