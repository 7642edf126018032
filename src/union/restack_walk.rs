//! The known directories after a change of the layers; see [`super::restack`].

use std::collections::{BTreeSet, HashMap, HashSet};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use smallvec::SmallVec;

use crate::layer::LayerIndex;
use crate::layer::name::{Name, NameBuf};
use crate::sys::{self, Result};

use super::inode::{Alias, DirStack, Held, Inode, LowerPlace, Pinned};
use super::look_again::Notice;
use super::names::{Info, Names};
use super::{ROOT_ID, Union};

/// Where a directory is in each layer that has a part of it.
type Paths = HashMap<LayerIndex, Vec<u8>>;

/// By the serial of a directory, the names in it that are known.
type Children = HashMap<u64, Vec<(Box<[u8]>, Arc<Inode>)>>;

/// A directory to be made right.
struct Visit {
    inode: Arc<Inode>,
    /// Its new parts.
    stack: DirStack,
    /// Where they are, if names do not lead there.
    lower: Option<Box<LowerPlace>>,
    /// Where the parts were that it had.
    paths: Paths,
}

/// One walk, with the tree lock written.
pub(super) struct Walk<'a> {
    union: &'a Union,
    children: Children,
    /// Layers that came or went.
    changed: HashSet<LayerIndex>,
    /// A directory has its parts in the lowers elsewhere than under its name, so that layers may count where
    /// names do not say so.
    redirects: bool,
    notices: BTreeSet<Notice>,
    /// Directories of which a name less is known.
    unpinned: Vec<u64>,
}

fn child_path(dir: &[u8], name: &[u8]) -> Vec<u8> {
    match dir {
        [] => name.to_vec(),
        dir => [dir, b"/", name].concat(),
    }
}

impl<'a> Walk<'a> {
    pub fn new(union: &'a Union, before: &[LayerIndex], after: &[LayerIndex]) -> Self {
        let came = after.iter().filter(|index| !before.contains(index));
        let went = before.iter().filter(|index| !after.contains(index));
        let mut children = Children::new();
        let mut redirects = false;
        for inode in union.inodes.all() {
            redirects |= inode.place.read().lower().is_some();
            if inode.is_unlinked() {
                continue;
            }
            for alias in inode.aliases() {
                let named = (alias.name, Arc::clone(&inode));
                children.entry(alias.parent.serial).or_default().push(named);
            }
        }
        Self {
            union,
            children,
            changed: came.chain(went).copied().collect(),
            redirects,
            notices: BTreeSet::new(),
            unpinned: Vec::new(),
        }
    }

    /// What the kernel is to be told, and whose references are to be given back.
    pub fn done(self) -> (Vec<Notice>, Vec<u64>) {
        (self.notices.into_iter().collect(), self.unpinned)
    }

    fn is_lower(&self, inode: &Inode) -> bool {
        !self.union.layers.is_top(inode.layer())
    }

    /// Objects of lowers without a name are found by their place from now on: the way there led over
    /// directories, which may lose their part in that layer.
    pub fn pin_the_nameless(&self) {
        for inode in self.union.inodes.all() {
            if !inode.is_unlinked() || !self.is_lower(&inode) || inode.is_pinned() {
                continue;
            }
            let layer = inode.layer();
            let path = match inode.alias_or_last() {
                _ if inode.dir.is_some() => inode.path_in(layer),
                Some(alias) => child_path(&alias.parent.path_in(layer), &alias.name),
                None => continue,
            };
            self.pin(&inode, &path);
        }
    }

    fn pin(&self, inode: &Inode, path: &[u8]) {
        let (dir, name) = match path.iter().rposition(|&b| b == b'/') {
            Some(at) => (&path[..at], &path[at + 1..]),
            None => (&[][..], path),
        };
        let layer = inode.layer();
        let pinned = Pinned {
            layer,
            root: self.union.layers.get(layer).root(),
            dir: dir.to_vec(),
            name: NameBuf::from_slice(name),
        };
        let held = Held::Lower(Arc::new(pinned));
        inode.place.write().set_held(Some(held));
    }

    /// From the root on.
    pub fn begin(&mut self, old: &DirStack, new: DirStack) {
        let Ok(root) = self.union.inodes.get(ROOT_ID) else {
            return;
        };
        let paths = old.iter().map(|part| (part.layer, Vec::new())).collect();
        let mut visits = vec![Visit {
            inode: root,
            stack: new,
            lower: None,
            paths,
        }];
        while let Some(visit) = visits.pop() {
            visits.extend(self.visit(visit));
        }
    }

    /// Gives a directory its parts, and looks at its names. Returns the directories in it that have to be
    /// visited.
    fn visit(&mut self, visit: Visit) -> Vec<Visit> {
        let Visit {
            inode,
            stack,
            lower,
            paths,
        } = visit;
        let Some(dir) = &inode.dir else {
            return Vec::new();
        };
        let old = inode.stack();
        let is_touched = |stack: &DirStack| {
            let mut parts = stack.iter();
            parts.any(|part| self.changed.contains(&part.layer))
        };
        if old == stack && !is_touched(&old) && !self.redirects {
            return Vec::new();
        }
        let before = self.listing(&inode, &old);
        match lower {
            Some(lower) => inode.place.write().set_lower(*lower),
            // Who needed another place of a directory that moved has a place of his own by now.
            None => inode.place.write().drop_lower(),
        }
        for part in old.iter().filter(|part| !stack.contains(part)) {
            self.union.forget_dir_fd(&inode, part.layer);
        }
        dir.stack.write().clone_from(&stack);
        dir.forget_names();
        dir.subdirs.forget();
        self.lead(&inode, &old, &stack);
        let after = self.listing(&inode, &stack);
        self.notices.insert(Notice::Contents(inode.id));
        let mut visits = Vec::new();
        for (name, child) in self
            .children
            .get(&inode.serial)
            .cloned()
            .unwrap_or_default()
        {
            // What cannot be read has changed, as far as we know; what the upper has stays.
            let (was, is) = (info(&before, &name), info(&after, &name));
            if was.is_none() && is.is_none() && !self.is_lower(&child) {
                continue;
            }
            if let Some(next) = self.child(&inode, &name, &child, (was, is), &paths) {
                visits.extend(next);
            }
        }
        self.tell_names(&inode, &before, &after);
        visits
    }

    /// The directory's own object is that of its top part.
    fn lead(&self, inode: &Arc<Inode>, old: &DirStack, new: &DirStack) {
        let (Some(old), Some(new)) = (old.first(), new.first()) else {
            return;
        };
        if old.layer == new.layer {
            return;
        }
        inode.set_layer(new.layer);
        inode.facts.attr_changes();
        if inode.id == ROOT_ID {
            return;
        }
        // One that cannot be looked at fails when it is asked for.
        let stat = self.union.dir_fd(inode, new.layer);
        if let Ok(stat) = stat.and_then(|fd| sys::stat::fstat(&*fd)) {
            let number = self.union.inodes.numbers.of(stat.dev, stat.ino);
            let key = inode.key.load(std::sync::atomic::Ordering::Acquire);
            if inode.by_name || key == number {
                inode.set_ino(number);
            } else {
                self.union.inodes.rekey(inode, number, true);
            }
        }
    }

    fn listing(&self, inode: &Arc<Inode>, stack: &DirStack) -> Option<Names> {
        let read = || -> Result<Names> {
            let fds = stack
                .iter()
                .map(|part| self.union.dir_fd(inode, part.layer));
            let fds = fds.collect::<Result<SmallVec<[Arc<OwnedFd>; 4]>>>()?;
            self.union.read_names(stack, &fds)
        };
        let names = read();
        if let Err(e) = &names {
            tracing::warn!("a directory cannot be read while the layers change: {e}");
        }
        names.ok()
    }

    /// Looks at a known name; returns the visit that a directory needs.
    fn child(
        &mut self, parent: &Arc<Inode>, name: &[u8], child: &Arc<Inode>,
        (was, is): (Option<Info>, Option<Info>), paths: &Paths,
    ) -> Option<Option<Visit>> {
        let is_same = matches!((was, is), (Some(was), Some(is)) if is_same_object(was, is));
        let both_dirs = matches!((was, is), (Some(was), Some(is))
            if was.kind.is_dir() && is.kind.is_dir());
        let own = own_paths(child, name, paths);
        if !both_dirs || child.dir.is_none() {
            if !is_same {
                self.leave(parent, name, child, own);
            }
            return None;
        }
        let found = Name::new(name)
            .and_then(|name| self.union.find_by_looking(parent, name))
            .ok()
            .flatten();
        match found {
            Some(found) if found.found.stack.is_some() => Some(Some(Visit {
                inode: Arc::clone(child),
                stack: found.found.stack.unwrap_or_default(),
                lower: found.found.lower,
                paths: own,
            })),
            _ => {
                self.leave(parent, name, child, own);
                None
            }
        }
    }

    /// An object has this name no more; of a directory, nothing in it has one.
    fn leave(&mut self, parent: &Arc<Inode>, name: &[u8], inode: &Arc<Inode>, paths: Paths) {
        let mut leaving = vec![(
            Arc::clone(parent),
            Box::from(name),
            Arc::clone(inode),
            paths,
        )];
        while let Some((parent, name, inode, paths)) = leaving.pop() {
            if !self.loses(&parent, &name, &inode, &paths) {
                continue;
            }
            for (name, child) in self.children.remove(&inode.serial).unwrap_or_default() {
                let own = own_paths(&child, &name, &paths);
                leaving.push((Arc::clone(&inode), name, child, own));
            }
        }
    }

    /// Takes a name away; true when the object has left the tree by that.
    fn loses(
        &mut self, parent: &Arc<Inode>, name: &[u8], inode: &Arc<Inode>, paths: &Paths,
    ) -> bool {
        let is_it = |a: &Alias| Arc::ptr_eq(&a.parent, parent) && *a.name == *name;
        let aliases = inode.aliases();
        if inode.is_unlinked() || !aliases.iter().any(is_it) {
            return false;
        }
        let is_lower = self.is_lower(inode);
        if !is_lower && !inode.is_plinked() {
            // The upper's own names do not depend on the lowers.
            return false;
        }
        self.notices.insert(Notice::Name(parent.id, name.into()));
        self.notices.insert(Notice::Attributes(inode.id));
        let is_first = aliases.first().is_some_and(is_it);
        if !is_first || (!is_lower && aliases.len() > 1) {
            let taken = if is_lower {
                inode.take_further_alias(parent, name)
            } else {
                inode.take_alias(parent, name).0
            };
            self.unpinned.extend(taken.map(|alias| alias.parent.id));
            return false;
        }
        // The way there goes with the name; by its other names it is looked up anew.
        for alias in &aliases {
            let other = Notice::Name(alias.parent.id, alias.name.clone());
            self.notices.insert(other);
        }
        if is_lower {
            let path = paths.get(&inode.layer()).cloned().unwrap_or_default();
            self.pin(inode, &path);
        } else {
            self.hold(inode);
        }
        self.union.inodes.retire(inode);
        inode.set_unlinked();
        inode.set_plinked(false);
        if let Some(dir) = &inode.dir {
            dir.stack.write().clear();
            dir.forget_names();
            self.notices.insert(Notice::Contents(inode.id));
        }
        true
    }

    /// Holds the copy of a linked file of a lower whose names have gone with the lower.
    fn hold(&self, inode: &Arc<Inode>) {
        let union = self.union;
        let open = || {
            let real = union.real(inode)?;
            union.with_descriptors(|| sys::at::open_path(real.fd(), &real.name))
        };
        match open() {
            Ok(fd) => {
                let held = Held::Handle {
                    fd: Arc::new(fd),
                    _permit: union.descriptors.held.take(),
                };
                inode.place.write().set_held(Some(held));
            }
            Err(e) => tracing::warn!("a file whose names have gone cannot be held: {e}"),
        }
    }

    /// The kernel may know names that have gone, and take for absent what has come. Of those that are the
    /// same nothing is told: a mount on one would go with it.
    fn tell_names(&mut self, dir: &Inode, before: &Option<Names>, after: &Option<Names>) {
        let shown = |names: &Option<Names>| -> Vec<Box<[u8]>> {
            let names = names.iter().flat_map(|names| names.after(0));
            names.map(|(_, entry)| entry.name.clone()).collect()
        };
        for name in shown(before).into_iter().chain(shown(after)) {
            let is_same = match (info(before, &name), info(after, &name)) {
                (Some(was), Some(is)) => {
                    is_same_object(was, is) || (was.kind.is_dir() && is.kind.is_dir())
                }
                _ => false,
            };
            if !is_same {
                self.notices.insert(Notice::Name(dir.id, name));
            }
        }
    }
}

/// What shows under a name.
fn info(names: &Option<Names>, name: &[u8]) -> Option<Info> {
    let (info, _) = names.as_ref()?.get(name)?;
    info.shown.then_some(info)
}

/// True when two listings mean the same object, which is no directory.
fn is_same_object(was: Info, is: Info) -> bool {
    let same = (was.layer, was.ino, was.kind) == (is.layer, is.ino, is.kind);
    same && !was.kind.is_dir() && !was.odd && !is.odd
}

/// Where the parts of a known object were, which is `name` in a directory with these parts.
fn own_paths(inode: &Inode, name: &[u8], parent: &Paths) -> Paths {
    let place = inode.place.read();
    let of = |(layer, path): (&LayerIndex, &Vec<u8>)| {
        let own = place.lower().and_then(|lower| lower.path(*layer));
        let path = own.map_or_else(|| child_path(path, name), <[u8]>::to_vec);
        (*layer, path)
    };
    parent.iter().map(of).collect()
}
