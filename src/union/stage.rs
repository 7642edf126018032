//! Copying trees of the lowers out of sight, for [`super::complete`].

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::OFlags;

use crate::layer::name::{Name, NameBuf};
use crate::layer::origin;
use crate::sys::{self, FileKind, Result, Stat};

use super::complete::{Bucket, Completion, Holder, Node, StagePath};
use super::copy_up::{Need, give_name};
use super::inode::Inode;
use super::lookup::Known;

/// After so many files the log is told of a copy that goes on.
const TOLD_AFTER: usize = 1000;
/// So many files are flushed one by one; if there are more, their whole filesystem is, once.
const FLUSHED_SINGLY: usize = 16;

/// A directory that is being copied.
struct Frame {
    node: usize,
    /// Its copy.
    fd: Arc<OwnedFd>,
    /// What is still to be copied.
    names: Vec<NameBuf>,
    /// Something in it keeps its number.
    marked: bool,
}

impl<'a> Completion<'a> {
    /// Copies `name` of the directory `dir` with all that is below it.
    ///
    /// Precondition: no lock is held.
    pub fn stage(&mut self, dir: &Arc<Inode>, name: &NameBuf) -> Result<()> {
        let Some(known) = self.union.lookup_known(dir, Name::new(name)?)? else {
            // Gone since.
            return Ok(());
        };
        if self.union.put_linked(&known.inode, dir, name)? {
            return Ok(());
        }
        let bucket = match self.bucket_of(dir) {
            Some(bucket) => bucket,
            None => self.new_bucket(dir)?,
        };
        let fd = self.open(&self.buckets[bucket].place)?;
        let root = self.copy_one(Holder::Bucket(bucket), name, known, &fd)?;
        let mut frames = Vec::new();
        frames.extend(self.enter(root, &fd)?);
        while let Some(frame) = frames.last_mut() {
            let Some(name) = frame.names.pop() else {
                self.finish(frame)?;
                frames.pop();
                continue;
            };
            let inode = Arc::clone(&self.nodes[frame.node].known.inode);
            let Some(known) = self.union.lookup_known(&inode, Name::new(&name)?)? else {
                continue;
            };
            if self.union.put_linked(&known.inode, &inode, &name)? {
                continue;
            }
            frame.marked = true;
            let fd = Arc::clone(&frame.fd);
            let node = self.copy_one(Holder::Node(frame.node), &name, known, &fd)?;
            frames.extend(self.enter(node, &fd)?);
        }
        self.buckets[bucket].roots.insert(name.clone(), root);
        Ok(())
    }

    /// Begins the copies for a directory.
    fn new_bucket(&mut self, dir: &Arc<Inode>) -> Result<usize> {
        sys::cred::enter_own();
        let upper = self.union.upper()?;
        let temp = upper.temp(|dir, name| sys::at::mkdir_at(dir, name, 0o700))?;
        let place = StagePath {
            temp: self.temps.len(),
            names: Vec::new(),
        };
        self.temps.push(temp);
        Ok(self.add_bucket(dir, place, HashMap::new()))
    }

    /// A handle of a directory among the copies.
    pub fn open(&self, place: &StagePath) -> Result<Arc<OwnedFd>> {
        let temp = &self.temps[place.temp];
        let step = |dir: BorrowedFd<'_>, name: &[u8]| {
            self.union
                .with_descriptors(|| sys::at::open_dir_path(dir, name, true))
        };
        let mut fd = step(temp.dir(), temp.name())?;
        for name in &place.names {
            fd = step(fd.as_fd(), name)?;
        }
        Ok(Arc::new(fd))
    }

    /// Makes the copy of one object in the directory `into`; a directory stays empty as yet.
    fn copy_one(
        &mut self, holder: Holder, name: &NameBuf, known: Known<'a>, into: &Arc<OwnedFd>,
    ) -> Result<usize> {
        sys::cred::enter_own();
        let inode = &known.inode;
        let union = self.union;
        let mut made = None;
        if inode.kind.is_dir() {
            sys::at::mkdir_at(&**into, name, 0o700)?;
        } else if union.in_upper(inode) {
            // Another name of it was copied up.
            union.with_real(inode, |real| {
                if real.name.is_empty() {
                    sys::at::link_fd(real.fd(), &**into, name)
                } else {
                    sys::at::link_at(real.fd(), &real.name, &**into, name)
                }
            })?;
        } else if let Some(first) = self.by_id.get(&inode.id) {
            let dir = self.holder_place(*first);
            let dir = self.open(&dir)?;
            sys::at::link_at(&*dir, &self.nodes[*first].name, &**into, name)?;
        } else if inode.kind == FileKind::Regular {
            made = Some(self.copy_file(inode, name, into)?);
        } else {
            let copy = union.copy_node(inode)?;
            if !inode.by_name {
                copy.record_ino(inode.ino())?;
            }
            made = Some(copy.made);
            give_name(copy, into.as_fd(), name)?;
        }
        let stat = match made {
            Some(made) => made,
            None => sys::stat::stat_at(&**into, name)?,
        };
        let node = self.nodes.len();
        self.by_id.entry(inode.id).or_insert(node);
        let key = union.inodes.numbers.of(stat.dev, stat.ino);
        self.nodes.push(Node {
            known,
            holder,
            name: name.clone(),
            key,
        });
        Ok(node)
    }

    /// The same for a regular file; returns what it was made as.
    fn copy_file(
        &mut self, inode: &Arc<Inode>, name: &NameBuf, into: &Arc<OwnedFd>,
    ) -> Result<Stat> {
        let union = self.union;
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
        let is_flushed = !union.volatile && self.files < FLUSHED_SINGLY;
        let filled = union.fill_copy(inode, Need::All, is_flushed, |mode| {
            union.with_descriptors(|| sys::at::open_at(&**into, name, flags, mode, false))
        })?;
        self.files += 1;
        if self.files.is_multiple_of(TOLD_AFTER) {
            // Whoever waits for the rename may ask the log what takes so long.
            let files = self.files;
            tracing::info!(files, "a directory that is to be renamed is copied");
        }
        if self.files > FLUSHED_SINGLY {
            self.unsynced = true;
        } else if !union.volatile {
            union.upper()?.order.settle(&filled.file, filled.copied)?;
        }
        self.record(inode, filled.file.as_fd(), &filled.made)?;
        Ok(filled.made)
    }

    /// Writes down the number under which users know the object, so that its copy, which is `own`,
    /// keeps it.
    fn record(&self, inode: &Inode, copy: BorrowedFd<'_>, own: &Stat) -> Result<()> {
        if inode.by_name {
            return Ok(());
        }
        origin::record(copy, b"", inode.ino(), own.ino).map(|_| ())
    }

    /// Where the copy that holds this one is.
    fn holder_place(&self, node: usize) -> StagePath {
        match self.nodes[node].holder {
            Holder::Node(holder) => self.stage_path(holder),
            Holder::Bucket(bucket) => {
                let Bucket { place, .. } = &self.buckets[bucket];
                place.clone()
            }
        }
    }

    /// Goes on inside a directory.
    fn enter(&self, node: usize, into: &Arc<OwnedFd>) -> Result<Option<Frame>> {
        let Node { known, name, .. } = &self.nodes[node];
        if !known.inode.kind.is_dir() {
            return Ok(None);
        }
        let listing = self.union.listing(&known.inode)?;
        let open = || sys::at::open_dir_path(&**into, name, true);
        let fd = Arc::new(self.union.with_descriptors(open)?);
        let names = listing.into_iter().map(|entry| entry.name).collect();
        Ok(Some(Frame {
            node,
            fd,
            names,
            marked: false,
        }))
    }

    /// Gives a directory its attributes, after its entries, which would change its times.
    fn finish(&self, frame: &Frame) -> Result<()> {
        let inode = &self.nodes[frame.node].known.inode;
        let fd = frame.fd.as_fd();
        self.record(inode, fd, &sys::stat::fstat(fd)?)?;
        if frame.marked {
            origin::mark(fd)?;
        }
        self.union.with_real(inode, |real| {
            let stat = self.union.stat_of(real)?;
            let from = (real.layer, real.fd(), &*real.name);
            self.union.copy_attributes(from, (fd, b""), &stat, None)
        })
    }

    /// Flushes what was copied.
    pub fn flush(&mut self) -> Result<()> {
        if std::mem::take(&mut self.unsynced) && !self.union.volatile {
            self.union.upper()?.sync()?;
        }
        Ok(())
    }
}
