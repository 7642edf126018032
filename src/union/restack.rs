//! Layers that come and go while the union is in use.
//!
//! With the tree lock written, so that no name is looked at or changed meanwhile, the list of layers changes
//! and the directories that are known are gone through ([`super::restack_walk`]): each in which a changed
//! layer has or had a part gets its new parts, and what its names stood for before is compared with what they
//! stand for now. What is the same stays, with its inode. What is not leaves the tree: it has no name any
//! more, as after unlink(2), and is found by its place in its layer for as long as somebody uses it. The
//! kernel is told of each such name, and of no other, as a mount may sit on one.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::layer::LayerIndex;
use crate::sys::{self, Errno};

use super::Union;
use super::inode::Inode;
use super::journal;
use super::look_again::Notice;
use super::lookup::root_stack;
use super::restack_walk::Walk;

/// A change of the layers. Paths are as the layers were named.
#[derive(Clone, Debug)]
pub(crate) enum LayerChange {
    /// A further lower, on top of the others, or directly below the layer of this path.
    Add {
        path: PathBuf,
        below: Option<PathBuf>,
    },
    /// A lower goes.
    Remove { path: PathBuf },
    /// A lower takes the place of another.
    Replace { old: PathBuf, new: PathBuf },
}

type Said<T> = std::result::Result<T, String>;

fn about(path: &Path, errno: Errno) -> String {
    format!("{}: {}", path.display(), std::io::Error::from(errno))
}

impl Union {
    /// How often the layers have changed.
    pub(super) fn restacks(&self) -> u64 {
        self.restacks.load(Ordering::Acquire)
    }

    /// Changes the layers. Returns what the kernel has to be told, by a thread that holds no lock and that no
    /// answer depends on.
    ///
    /// # Errors
    /// One line that says why not; nothing has changed then.
    pub(crate) fn change_layers(&self, change: &LayerChange) -> Said<Vec<Notice>> {
        let _one = self.restacking.lock();
        self.may_change_layers()?;
        let before = self.layers.order();
        let lowers_from = usize::from(self.layers.has_upper);
        let place_of = |path: &Path| {
            let found = before[lowers_from..]
                .iter()
                .rposition(|&index| self.layers.get(index).path == path);
            let found = found.map(|at| at + lowers_from);
            found.ok_or_else(|| format!("{}: no lower layer of this mount", path.display()))
        };
        let mut after = before.to_vec();
        let mut gone = None;
        match change {
            LayerChange::Add { path, below } => {
                let at = match below {
                    None => lowers_from,
                    Some(other) if Some(other) == self.top_path().as_ref() => lowers_from,
                    Some(other) => place_of(other)? + 1,
                };
                after.insert(at, self.take_in(path, None)?);
            }
            LayerChange::Remove { path } => {
                let at = place_of(path)?;
                if before.len() == lowers_from + 1 {
                    return Err("the last lower layer cannot be removed".to_owned());
                }
                gone = Some(after.remove(at));
            }
            LayerChange::Replace { old, new } => {
                let at = place_of(old)?;
                let index = self.take_in(new, Some(after[at]))?;
                gone = Some(std::mem::replace(&mut after[at], index));
            }
        }
        if let Some(gone) = gone.filter(|gone| self.borrows_from(*gone)) {
            let path = self.layers.get(gone).path.display();
            return Err(format!(
                "{path}: files of the upper that are in use have their data there"
            ));
        }
        self.restack(&before, &after, gone).map_err(|e| {
            let path = match change {
                LayerChange::Add { path, .. } | LayerChange::Remove { path } => path,
                LayerChange::Replace { new, .. } => new,
            };
            about(path, e)
        })
    }

    /// Lets go of what is kept for speed: listings and handles. Returns what the kernel keeps of nodes, which it
    /// writes back first. Names it may go on knowing: they are right, and a mount may sit on one.
    pub(crate) fn flush_caches(&self) -> Vec<Notice> {
        let tree = self.tree.write();
        let all = self.inodes.all();
        for dir in all.iter().filter_map(|inode| inode.dir.as_ref()) {
            dir.forget_names();
        }
        self.descriptors.clear();
        drop(tree);
        let ids = all.iter().map(|inode| Notice::Contents(inode.id));
        ids.collect()
    }

    /// Has the filesystem of the upper write what it keeps to its device.
    pub(crate) fn sync_upper(&self) -> sys::Result<()> {
        match self.layers.top().filter(|_| !self.is_read_only()) {
            Some(top) => sys::file::sync_filesystem(sys::fd::reopen_dir(&*top.root())?),
            None => Ok(()),
        }
    }

    fn top_path(&self) -> Option<PathBuf> {
        let top = self.layers.top().filter(|_| self.layers.has_upper);
        top.map(|layer| layer.path.clone())
    }

    /// Why the layers of this union cannot change.
    fn may_change_layers(&self) -> Said<()> {
        let why = if journal::active().is_some() {
            "the mount is supervised: the next server would have the layers of the command line"
        } else if !self.watching.is_off() {
            "with udba= the directories of the layers are watched as they were at the mount"
        } else if self.elsewhere.metacopy {
            "with metacopy=on files of the upper have their data in lowers"
        } else {
            return Ok(());
        };
        Err(format!("the layers cannot change: {why}"))
    }

    /// Opens a layer and gives it a number. It is not in use yet.
    fn take_in(&self, path: &Path, without: Option<LayerIndex>) -> Said<LayerIndex> {
        let layer = self.layers.open_added(path, without);
        let layer = layer.map_err(|e| e.to_string())?;
        let root = layer.root();
        let plain = self
            .owners
            .would_be_without_records(std::os::fd::AsFd::as_fd(&*root));
        if !plain.map_err(|e| about(path, e))? {
            let path = path.display();
            return Err(format!(
                "{path}: with owners kept in attributes layers cannot change"
            ));
        }
        // A layer that turns out not to be good keeps its number, but not its directory.
        let index = self.layers.add(layer);
        index.ok_or_else(|| "too many layers were added to this mount; mount it anew".to_owned())
    }

    /// True when a file that is in use has its data in a layer and its attributes elsewhere.
    fn borrows_from(&self, layer: LayerIndex) -> bool {
        let borrows = |inode: &Arc<Inode>| inode.data().is_some_and(|data| data.layer == layer);
        self.inodes.all().iter().any(borrows)
    }

    fn restack(
        &self, before: &[LayerIndex], after: &[LayerIndex], gone: Option<LayerIndex>,
    ) -> sys::Result<Vec<Notice>> {
        let tree = self.tree.write();
        let old_root = root_stack(&self.layers)?;
        self.layers.set_order(after);
        let new_root = match root_stack(&self.layers) {
            Ok(stack) => stack,
            Err(e) => {
                self.layers.set_order(before);
                for &index in after.iter().filter(|index| !before.contains(index)) {
                    self.layers.let_go(index);
                }
                return Err(e);
            }
        };
        tracing::info!(?before, ?after, "the layers change");
        let mut walk = Walk::new(self, before, after);
        walk.pin_the_nameless();
        walk.begin(&old_root, new_root);
        let (notices, unpinned) = walk.done();
        self.descriptors.clear_dirs();
        self.moves.fetch_add(1, Ordering::AcqRel);
        self.restacks.fetch_add(1, Ordering::AcqRel);
        if let Some(gone) = gone {
            self.layers.let_go(gone);
        }
        drop(tree);
        for id in unpinned {
            self.forget(id, 1);
        }
        Ok(notices)
    }
}
