//! The copies of [`super::complete`] at their places, and what becomes of the inodes then.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::RenameFlags;

use crate::layer::name::NameBuf;
use crate::layer::{elsewhere, opaque, whiteout};
use crate::sys::{self, Result, Stat};

use super::Union;
use super::complete::Node;
use super::copy_up::restore_times;
use super::descriptors::Use;
use super::inode::{DirPart, DirStack, Inode};
use super::lookup::Known;

/// Copies in their places, before the rename. Taken back when dropped.
#[derive(Debug)]
pub(super) struct Published<'a> {
    union: &'a Union,
    /// From, to, name.
    pub moves: Vec<(Arc<OwnedFd>, Arc<OwnedFd>, NameBuf)>,
    /// What was moved.
    pub nodes: Vec<usize>,
    /// Directories of the upper in which lowers had a part.
    pub merged: Vec<Known<'a>>,
    /// The directories that got entries, as they were.
    pub times: Vec<(Arc<OwnedFd>, Stat)>,
    /// The directory was marked opaque.
    opaque: Option<(Arc<OwnedFd>, NameBuf)>,
    /// Those that led elsewhere are opaque instead.
    redirected: Vec<Arc<OwnedFd>>,
    /// The rename came to its end.
    done: bool,
}

impl<'a> Published<'a> {
    /// Nothing yet.
    pub fn new(union: &'a Union, merged: Vec<Known<'a>>) -> Self {
        Self {
            union,
            moves: Vec::new(),
            nodes: Vec::new(),
            merged,
            times: Vec::new(),
            opaque: None,
            redirected: Vec::new(),
            done: false,
        }
    }

    /// The rename is done: nothing is taken back any more.
    pub fn keep(&mut self) {
        self.done = true;
        for dir in &self.redirected {
            if let Err(e) = elsewhere::clear_redirect(dir.as_fd(), b"") {
                // The directory is opaque, so nobody follows it.
                tracing::debug!("a needless redirect stays on a moved directory: {e}");
            }
        }
    }

    /// Marks the directory, which is `name` of `parent`, as opaque, until the rename fails.
    pub fn set_opaque(&mut self, parent: &Arc<OwnedFd>, name: &[u8]) -> Result<()> {
        let upper = self.union.upper()?;
        let (dir, union) = (parent.as_fd(), self.union);
        // Noted first: it may be there even after a failure.
        self.opaque = Some((Arc::clone(parent), NameBuf::from_slice(name)));
        union.with_descriptors(|| upper.set_opaque(dir, name))
    }

    /// Makes the directories opaque that lead to parts in the lowers by themselves.
    pub fn end_redirects(&mut self) -> Result<()> {
        for known in &self.merged {
            let dir = self.union.dir_fd(&known.inode, 0)?;
            if elsewhere::redirect(dir.as_fd(), b"")?.is_some() {
                self.redirected.push(Arc::clone(&dir));
                opaque::set_attr(dir.as_fd(), b"")?;
            }
        }
        Ok(())
    }

    /// The directories' entries are the same as before for their users, so are their times.
    pub fn restore_times(&self) {
        for (dir, before) in &self.times {
            restore_times(dir.as_fd(), before);
        }
    }
}

impl Drop for Published<'_> {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        let clear = || {
            for dir in &self.redirected {
                opaque::clear_attr(dir.as_fd(), b"")?;
            }
            match &self.opaque {
                Some((parent, name)) => self.union.upper()?.clear_opaque(parent.as_fd(), name),
                None => Ok(()),
            }
        };
        if let Err(e) = clear() {
            // With a mark the copies must stay: they are what shows.
            tracing::error!("a directory stays complete in the upper after a failed rename: {e}");
            return;
        }
        for known in &self.merged {
            if let Some(dir) = &known.inode.dir {
                dir.forget_names();
            }
        }
        for (from, to, name) in self.moves.iter().rev() {
            if let Err(e) = sys::at::rename_at(&**to, name, &**from, name, RenameFlags::empty()) {
                tracing::warn!("a copy stays in the upper after a failed rename: {e}");
            }
        }
        self.restore_times();
    }
}

impl Union {
    /// The node's inode is its copy from now on.
    pub(super) fn adopt_copy(&self, node: &Node<'_>) {
        let inode = &node.known.inode;
        if self.in_upper(inode) {
            // Another name of a file that is there already.
            return;
        }
        let from = inode.layer();
        if inode.kind.is_dir() {
            self.leave_lowers(inode);
        }
        self.inodes.rekey(inode, node.key, inode.by_name);
        inode.set_copied_up();
        self.counted.copy_up();
        self.tell_data_moved(inode, (from, Use::Read), None);
        self.drop_lower_file(inode, from);
        self.forget_data(inode);
    }

    /// Lowers have no part in the directory any more. Objects of theirs that lost their names may
    /// still be in use below it.
    pub(super) fn leave_lowers(&self, inode: &Arc<Inode>) {
        let Some(dir) = &inode.dir else { return };
        dir.forget_names();
        let lower = Self::lower_place(inode);
        let own = DirPart {
            copies: true,
            ..DirPart::new_upper()
        };
        let old = {
            let mut stack = dir.stack.write();
            let first = stack.first().filter(|part| part.layer == 0);
            let new = DirStack::from_slice(&[*first.unwrap_or(&own)]);
            std::mem::replace(&mut *stack, new)
        };
        inode.place.write().set_lower(lower);
        for part in old.iter().filter(|part| part.layer > 0) {
            self.forget_dir_fd(inode, part.layer);
        }
    }

    /// Removes the whiteouts of directories in which lowers have no part any more: they hide
    /// nothing, but other tools show or trip over them.
    pub(super) fn clear_whiteouts(&self, dirs: &[Known<'_>]) {
        for known in dirs {
            let part = known.inode.stack().first().copied();
            let cleared = self.dir_fd(&known.inode, 0).and_then(|dir| {
                let readable = self.with_descriptors(|| sys::fd::reopen_dir(&*dir))?;
                whiteout::clear(&readable, part.is_some_and(|part| part.xattr_whiteouts))
            });
            if let Err(e) = cleared {
                tracing::debug!("needless whiteouts stay in a moved directory: {e}");
            }
        }
    }
}
