//! Completing a directory in the upper, so that it can move without its parts in the lowers.
//!
//! A directory that has no part in the upper cannot change, nor can anything below it: every change
//! first gives it one. So whatever of the tree is in the lowers alone is copied out of sight, while
//! all goes on, and a copy is still true if its place in the upper is still empty when all names
//! stand still for the rename. Then the copies get their places, which moves no data, and the
//! rename is one of a directory of the upper. Until it is done every failure takes the copies back,
//! and a crash leaves the old tree, at worst with some of its files copied up.
//!
//! What was changed meanwhile takes its copy's place: the copies of its siblings become copies of
//! their own ([`Bucket`]). As each such change makes one more directory of the lowers one of the
//! upper, there is an end to that.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::RenameFlags;

use crate::layer::name::{Name, NameBuf};
use crate::layer::remove_tree::remove_tree;
use crate::layer::upper::{Temp, move_to};
use crate::sys::{self, Errno, FileKind, Result};

use super::Union;
use super::inode::Inode;
use super::lookup::{Known, dir_of};
use super::published::Published;

/// So many errors may be due to what others do meanwhile.
const MOST_VANISHED: usize = 100;

/// Where a copy is kept: a path below a temporary.
#[derive(Clone, Debug)]
pub(super) struct StagePath {
    pub temp: usize,
    pub names: Vec<NameBuf>,
}

/// The copies that belong into one directory of the upper.
#[derive(Debug)]
pub(super) struct Bucket {
    pub dir: Arc<Inode>,
    pub place: StagePath,
    /// The copies by name.
    pub roots: HashMap<NameBuf, usize>,
}

/// What a copy lies in.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Holder {
    Bucket(usize),
    Node(usize),
}

/// The copy of one object.
#[derive(Debug)]
pub(super) struct Node<'a> {
    pub known: Known<'a>,
    pub holder: Holder,
    pub name: NameBuf,
    /// The number of the copy.
    pub key: u64,
}

/// What is missing in the upper, and what is there.
#[derive(Debug, Default)]
pub(super) struct Survey<'a> {
    /// Names that are in lowers alone and have no copy.
    pub missing: Vec<(Arc<Inode>, NameBuf)>,
    /// Files of the upper that find their data by their name.
    unpinned: Vec<(Arc<Inode>, NameBuf)>,
    /// Copies that are still good: bucket and name.
    ready: Vec<(usize, NameBuf)>,
    /// Directories of the upper in which lowers have a part.
    merged: Vec<Known<'a>>,
}

/// A directory on its way to being complete in the upper.
#[derive(Debug)]
pub(super) struct Completion<'a> {
    pub union: &'a Union,
    parent: Arc<Inode>,
    name: NameBuf,
    top: Known<'a>,
    pub temps: Vec<Temp>,
    pub buckets: Vec<Bucket>,
    /// Buckets by the serials of their directories.
    pub by_dir: HashMap<u64, usize>,
    /// What holds a node comes before it.
    pub nodes: Vec<Node<'a>>,
    /// The first copies by inode.
    pub by_id: HashMap<u64, usize>,
    /// Objects that went away while they were copied.
    vanished: usize,
    /// Files copied so far.
    pub files: usize,
    /// Data of copies are to be flushed.
    pub unsynced: bool,
    /// How often the layers had changed when it began.
    restacks: u64,
}

impl<'a> Completion<'a> {
    /// For the directory `top`, which is `name` in `parent`.
    pub fn new(union: &'a Union, parent: &Arc<Inode>, name: Name<'_>, top: Known<'a>) -> Self {
        Self {
            union,
            parent: Arc::clone(parent),
            name: NameBuf::from_slice(name.bytes()),
            top,
            temps: Vec::new(),
            buckets: Vec::new(),
            by_dir: HashMap::new(),
            nodes: Vec::new(),
            by_id: HashMap::new(),
            vanished: 0,
            files: 0,
            unsynced: false,
            restacks: union.restacks(),
        }
    }

    /// Begins anew when the layers are others than those that were copied from.
    fn follow_layers(&mut self) -> bool {
        let now = self.union.restacks();
        if self.restacks == now {
            return false;
        }
        self.restacks = now;
        self.by_id.clear();
        self.by_dir.clear();
        self.nodes.clear();
        self.buckets.clear();
        self.temps.clear();
        true
    }

    /// True when this is about `inode`.
    pub fn is_for(&self, inode: &Arc<Inode>) -> bool {
        Arc::ptr_eq(&self.top.inode, inode)
    }

    /// Copies what is missing at this moment.
    ///
    /// Precondition: no lock is held.
    pub fn prepare(&mut self) -> Result<()> {
        self.follow_layers();
        let survey = self.survey(false)?;
        for (dir, name) in survey.missing {
            let before = self.nodes.len();
            match self.stage(&dir, &name) {
                // It went away while it was copied; the next look tells what is there.
                Err(Errno::NOENT | Errno::STALE) if self.vanished < MOST_VANISHED => {
                    self.vanished += 1;
                    self.give_up(&dir, &name, before)?;
                }
                result => result?,
            }
        }
        for (dir, name) in survey.unpinned {
            if let Some(known) = self.union.lookup_known(&dir, Name::new(&name)?)? {
                self.union.pin_data(&known.inode)?;
            }
        }
        self.flush()
    }

    /// Removes the copies made since there were `before` of them.
    fn give_up(&mut self, dir: &Arc<Inode>, name: &NameBuf, before: usize) -> Result<()> {
        self.nodes.truncate(before);
        self.by_id.retain(|_, node| *node < before);
        match self.by_dir.get(&dir.serial) {
            Some(bucket) => remove_tree(&*self.open(&self.buckets[*bucket].place)?, name),
            None => Ok(()),
        }
    }

    /// Compares the tree with the copies.
    ///
    /// Precondition: no lock is held, or with `locked` the tree lock is written.
    fn survey(&mut self, locked: bool) -> Result<Survey<'a>> {
        let union = self.union;
        let mut survey = Survey::default();
        let top = self.top.again();
        let mut todo = Vec::new();
        if union.in_upper(&top.inode) {
            todo.push(top);
        } else {
            let (parent, name) = (Arc::clone(&self.parent), self.name.clone());
            self.note(&parent, name, &mut survey);
        }
        while let Some(known) = todo.pop() {
            if self.survey_dir(&known.inode, locked, &mut survey, &mut todo)? {
                survey.merged.push(known);
            }
        }
        Ok(survey)
    }

    /// The same for one directory of the upper; false when lowers have no part in it, nor then in
    /// what is below it.
    fn survey_dir(
        &mut self, dir: &Arc<Inode>, locked: bool, survey: &mut Survey<'a>,
        todo: &mut Vec<Known<'a>>,
    ) -> Result<bool> {
        let union = self.union;
        let (_tree, _names);
        if !locked {
            _tree = union.tree.read();
            _names = dir_of(dir)?.read_names();
        }
        let stack = dir.stack();
        if dir.is_unlinked() || stack.iter().all(|part| part.layer == 0) {
            return Ok(false);
        }
        for (name, layer, kind) in union.names_by_layer(&stack, |layer| union.dir_fd(dir, layer))? {
            if layer > 0 {
                self.note(dir, name, survey);
            } else if kind.is_dir()
                && let Some(entry) = union.lookup_locked(dir, Name::new(&name)?)?
            {
                todo.push(union.adopt(entry.id)?);
            } else if kind == FileKind::Regular
                && union.needs_pin(&*union.dir_fd(dir, 0)?, &name)?
            {
                survey.unpinned.push((Arc::clone(dir), name));
            }
        }
        Ok(true)
    }

    /// Notes the name of a lower as copied or missing.
    fn note(&mut self, dir: &Arc<Inode>, name: NameBuf, survey: &mut Survey<'_>) {
        match self.bucket_of(dir) {
            Some(bucket) if self.buckets[bucket].roots.contains_key(&name) => {
                survey.ready.push((bucket, name));
            }
            _ => survey.missing.push((Arc::clone(dir), name)),
        }
    }

    /// The copies for a directory of the upper, if there are any. Those of a directory that was
    /// copied itself, and got a part in the upper since, are no longer that copy's.
    pub fn bucket_of(&mut self, dir: &Arc<Inode>) -> Option<usize> {
        if let Some(bucket) = self.by_dir.get(&dir.serial) {
            return Some(*bucket);
        }
        let node = *self.by_id.get(&dir.id)?;
        let bucket = self.buckets.len();
        let mut roots = HashMap::new();
        for (at, child) in self.nodes.iter().enumerate() {
            if child.holder == Holder::Node(node) {
                roots.insert(child.name.clone(), at);
            }
        }
        let place = self.stage_path(node);
        for at in roots.values() {
            self.nodes[*at].holder = Holder::Bucket(bucket);
        }
        Some(self.add_bucket(dir, place, roots))
    }

    /// Begins the copies for a directory of the upper.
    pub fn add_bucket(
        &mut self, dir: &Arc<Inode>, place: StagePath, roots: HashMap<NameBuf, usize>,
    ) -> usize {
        let bucket = self.buckets.len();
        self.by_dir.insert(dir.serial, bucket);
        self.buckets.push(Bucket {
            dir: Arc::clone(dir),
            place,
            roots,
        });
        bucket
    }

    /// Where a copy is.
    pub fn stage_path(&self, node: usize) -> StagePath {
        let mut names = Vec::new();
        let mut at = node;
        loop {
            let Node { holder, name, .. } = &self.nodes[at];
            names.push(name.clone());
            match holder {
                Holder::Node(next) => at = *next,
                Holder::Bucket(bucket) => {
                    let place = &self.buckets[*bucket].place;
                    names.extend(place.names.iter().rev().cloned());
                    names.reverse();
                    return StagePath {
                        temp: place.temp,
                        names,
                    };
                }
            }
        }
    }

    /// Gives all copies their places.
    ///
    /// Precondition: the tree lock and the names of both parents of the rename are written.
    ///
    /// # Errors
    /// EAGAIN when something is missing; nothing has changed after any error.
    pub fn publish(&mut self) -> Result<Published<'a>> {
        if self.follow_layers() {
            return Err(Errno::AGAIN);
        }
        let survey = self.survey(true)?;
        if !survey.missing.is_empty() || !survey.unpinned.is_empty() {
            return Err(Errno::AGAIN);
        }
        let mut published = Published::new(self.union, survey.merged);
        let union = self.union;
        let mut current: Option<(usize, Arc<OwnedFd>, Arc<OwnedFd>)> = None;
        for (bucket, name) in survey.ready {
            let (_, from, to) = match &mut current {
                Some(current) if current.0 == bucket => current,
                current => {
                    let Bucket { dir, place, .. } = &self.buckets[bucket];
                    let to = union.dir_fd(dir, 0)?;
                    dir_of(dir)?.forget_names();
                    published
                        .times
                        .push((Arc::clone(&to), sys::stat::fstat(&*to)?));
                    union.mark_copies(dir, to.as_fd())?;
                    current.insert((bucket, self.open(place)?, to))
                }
            };
            let (old, new) = ((from.as_fd(), &*name), (to.as_fd(), &*name));
            move_to(old, new, RenameFlags::NOREPLACE)?;
            let moved = (Arc::clone(from), Arc::clone(to), name.clone());
            published.moves.push(moved);
            published.nodes.push(self.buckets[bucket].roots[&name]);
        }
        published.end_redirects()?;
        published.restore_times();
        Ok(published)
    }

    /// Says that the copies are the objects of the union now. Returns the directories in which
    /// lowers had a part beside the upper.
    ///
    /// Precondition: as for [`Self::publish`], and the rename is done on disk, but not yet in the
    /// inodes.
    pub fn commit(&mut self, mut published: Published<'a>) -> Vec<Known<'a>> {
        published.keep();
        let union = self.union;
        let mut is_published = vec![false; self.nodes.len()];
        for root in &published.nodes {
            is_published[*root] = true;
        }
        for (at, node) in self.nodes.iter().enumerate() {
            if let Holder::Node(holder) = node.holder {
                is_published[at] = is_published[holder];
            }
            if is_published[at] {
                union.adopt_copy(node);
            }
        }
        for known in &published.merged {
            union.leave_lowers(&known.inode);
        }
        std::mem::take(&mut published.merged)
    }
}
