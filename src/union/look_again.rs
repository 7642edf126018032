//! Looking again at what may have changed in the layers without our doing, and making right what is known:
//! listings, inodes with their names and layers, handles. What the kernel has to be told comes back as
//! [`Notice`]s, since that must not be done with a lock held.
//!
//! An event only says where to look. An object that is still what it was at its name stays; else its inode
//! loses that name, and the next lookup makes another one.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::layer::LayerIndex;
use crate::layer::name::{self, Name};
use crate::sys::watch::Changed;
use crate::sys::{self, Errno, FileKind, Result};

use super::find::FoundDir;
use super::inode::{Alias, DirStack, Inode};
use super::lookup::root_stack;
use super::watch::{Change, Heard};
use super::{ROOT, Union};

/// The file that makes a directory opaque.
const OPAQUE: &[u8] = b".wh..wh..opq";

/// What the kernel must not trust any longer. In the order in which it is told.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Notice {
    /// A file gets another node first, as the kernel would go by the size that it knows.
    Switch(u64),
    /// The data or the listing, and the attributes, of a node.
    Contents(u64),
    /// Its attributes.
    Attributes(u64),
    /// A name in a directory, or that there is none.
    Name(u64, Box<[u8]>),
}

/// A name to be looked at.
#[derive(Debug)]
struct Target {
    parent: Arc<Inode>,
    name: Box<[u8]>,
    what: Changed,
    /// In which layer; `None` for any.
    layer: Option<LayerIndex>,
    /// What is there may be another directory of the same layers.
    deep: bool,
}

/// By the serial of a directory, the names in it that are known.
type Children = HashMap<u64, Vec<(Box<[u8]>, Arc<Inode>)>>;

/// One look, with the tree lock written.
struct Look<'a> {
    union: &'a Union,
    targets: Vec<Target>,
    seen: HashSet<(u64, Box<[u8]>, bool)>,
    children: Option<Children>,
    notices: BTreeSet<Notice>,
    /// Directories of which a name less is known.
    unpinned: Vec<u64>,
}

impl Union {
    /// Looks at what was heard of, and makes right what is known. Returns what the kernel has to be told,
    /// by a thread that holds no lock and that no answer depends on.
    pub(crate) fn look_again(&self, heard: Heard) -> Vec<Notice> {
        let tree = self.tree.write();
        let mut look = Look::new(self);
        if heard.lost {
            look.add_everything();
        } else {
            if heard.changes.iter().any(|c| c.what.name && c.what.is_dir) {
                self.descriptors.clear_dirs();
            }
            for change in heard.changes {
                look.add(change);
            }
        }
        look.work();
        let Look {
            mut notices,
            unpinned,
            ..
        } = look;
        drop(tree);
        for id in unpinned {
            self.forget(id, 1);
        }
        notices.extend(heard.listed.into_iter().map(Notice::Contents));
        notices.into_iter().collect()
    }

    /// Looks at an inode's names again if they, or its layers, may not be what they were. True when it did.
    ///
    /// Precondition: no lock is held.
    pub(super) fn doubt(&self, id: u64) -> bool {
        let Ok(inode) = self.inodes.get(id) else {
            return false;
        };
        if !self.rechecks(&inode) {
            return false;
        }
        let aliases = inode.aliases();
        let dir = inode.dir.as_ref();
        if aliases.len() < 2 && !dir.is_some_and(|dir| dir.suspect.load(Ordering::Acquire)) {
            return false;
        }
        let changes = aliases.into_iter().map(|alias| Change {
            dir: (alias.parent.id, alias.parent.serial),
            layer: inode.layer(),
            name: alias.name,
            what: Changed {
                attributes: true,
                name: inode.dir.is_none(),
                ..Changed::default()
            },
        });
        self.look_again(Heard {
            changes: changes.collect(),
            ..Heard::default()
        });
        true
    }
}

impl<'a> Look<'a> {
    fn new(union: &'a Union) -> Self {
        Self {
            union,
            targets: Vec::new(),
            seen: HashSet::new(),
            children: None,
            notices: BTreeSet::new(),
            unpinned: Vec::new(),
        }
    }

    fn children(&mut self) -> &Children {
        let union = self.union;
        self.children.get_or_insert_with(|| {
            let mut children = Children::new();
            for inode in union.inodes.all() {
                for alias in inode.aliases() {
                    let named = (alias.name, Arc::clone(&inode));
                    children.entry(alias.parent.serial).or_default().push(named);
                }
            }
            children
        })
    }

    /// The inodes that are known by a name.
    fn known_as(&mut self, parent: &Inode, name: &[u8]) -> Vec<Arc<Inode>> {
        let all = self.children().get(&parent.serial);
        let named = all.into_iter().flatten().filter(|(n, _)| **n == *name);
        named.map(|(_, inode)| Arc::clone(inode)).collect()
    }

    /// Takes in what an event says.
    fn add(&mut self, change: Change) {
        let (id, serial) = change.dir;
        let Ok(parent) = self.union.inodes.get(id) else {
            return;
        };
        if parent.serial != serial {
            return;
        }
        let mut what = change.what;
        let name = match name::hidden_by(&change.name) {
            _ if matches!(&*change.name, b"" | b"." | OPAQUE) => {
                what.attributes |= what.name;
                return self.add_itself(&parent, what, change.layer);
            }
            Some(hidden) => {
                // What hides a name, or does so no longer.
                what.name = true;
                hidden.into()
            }
            None if name::is_reserved(&change.name) => return,
            None => change.name,
        };
        if what.name {
            self.list_anew(&parent);
        }
        self.targets.push(Target {
            parent,
            name,
            what,
            layer: Some(change.layer),
            deep: what.name && what.is_dir,
        });
    }

    /// A directory itself has changed.
    fn add_itself(&mut self, dir: &Arc<Inode>, what: Changed, layer: LayerIndex) {
        let what = Changed {
            attributes: what.attributes,
            ..Changed::default()
        };
        if dir.id == ROOT {
            if let Ok(stack) = root_stack(&self.union.layers) {
                self.made_of(dir, stack, false);
            }
            self.notices.insert(Notice::Attributes(ROOT));
        } else if let Some(alias) = dir.alias() {
            self.targets.push(Target {
                parent: alias.parent,
                name: alias.name,
                what,
                layer: Some(layer),
                deep: false,
            });
        }
    }

    /// Everything has to be looked at.
    fn add_everything(&mut self) {
        let union = self.union;
        union.descriptors.clear_dirs();
        union.watch_root();
        let what = Changed {
            name: true,
            data: true,
            attributes: true,
            is_dir: true,
        };
        for inode in union.inodes.all() {
            if inode.dir.is_some() {
                self.list_anew(&inode);
                self.add_absent(&inode);
            }
            if inode.id == ROOT {
                self.add_itself(&inode, what, 0);
            }
            for alias in inode.aliases() {
                self.targets.push(Target {
                    parent: alias.parent,
                    name: alias.name,
                    what,
                    layer: None,
                    deep: true,
                });
            }
        }
    }

    /// Names that the kernel may take for absent.
    fn add_absent(&mut self, dir: &Arc<Inode>) {
        for name in self.union.watching.absent_in(dir) {
            self.targets.push(Target {
                parent: Arc::clone(dir),
                name,
                what: Changed::default(),
                layer: None,
                deep: true,
            });
        }
    }

    /// Nobody goes by the listing of a directory that is known.
    fn list_anew(&mut self, inode: &Arc<Inode>) {
        if let Some(dir) = &inode.dir {
            dir.forget_names();
            dir.subdirs.forget();
            self.notices.insert(Notice::Contents(inode.id));
        }
    }

    fn work(&mut self) {
        while let Some(target) = self.targets.pop() {
            // By events of one object there may be many.
            let changes_name = target.deep || target.what.name;
            let key = (target.parent.serial, target.name.clone(), changes_name);
            if !changes_name || self.seen.insert(key) || target.what.data || target.what.attributes
            {
                self.look_at(&target);
            }
        }
    }

    fn look_at(&mut self, target: &Target) {
        let Target { parent, name, .. } = target;
        let changes_name = target.deep || target.what.name;
        if !changes_name
            && let Some(inode) = self.in_place(target)
            && inode.dir.is_none()
        {
            return self.file_changed(&inode, target);
        }
        let found = match self.find(parent, name) {
            Err(Errno::NOENT | Errno::NOTDIR | Errno::STALE) => Ok(None),
            found => found,
        };
        let Ok(found) = found else {
            // What cannot be found fails when it is asked for.
            self.notices.insert(Notice::Name(parent.id, name.clone()));
            return;
        };
        let now = found.as_ref().and_then(|found| {
            let known = self
                .union
                .known(parent, Name::new(name).ok()?, &found.found)?;
            Some(Arc::clone(&known.inode))
        });
        let mut is_same = false;
        for inode in self.known_as(parent, name) {
            match (&found, &now) {
                (Some(found), Some(now)) if Arc::ptr_eq(now, &inode) => {
                    is_same = true;
                    self.is_still_there(&inode, found, target);
                }
                _ => self.has_gone(&inode, parent, name),
            }
        }
        if is_same || !changes_name {
            return;
        }
        self.notices.insert(Notice::Name(parent.id, name.clone()));
        if let Some(inode) = now.filter(|inode| target.what.name && inode.dir.is_none()) {
            // It has a name more.
            self.not_trusted(&inode, false);
        }
    }

    fn find(&self, parent: &Arc<Inode>, name: &[u8]) -> Result<Option<FoundDir>> {
        match Name::new(name) {
            Ok(name) if !name.is_reserved() => self.union.find_by_looking(parent, name),
            _ => Ok(None),
        }
    }

    /// The inode of the object that changed, without the names of all others.
    fn in_place(&self, target: &Target) -> Option<Arc<Inode>> {
        let dir = self.union.dir_fd(&target.parent, target.layer?).ok()?;
        let stat = sys::stat::stat_at(&*dir, &target.name).ok()?;
        let number = self.union.inodes.numbers.of(stat.dev, stat.ino);
        let inode = self.union.inodes.find(number)?;
        (Some(inode.layer()) == target.layer).then_some(inode)
    }

    /// An object is at its name as it was.
    fn is_still_there(&mut self, inode: &Arc<Inode>, found: &FoundDir, target: &Target) {
        let Some(stack) = &found.found.stack else {
            return self.file_changed(inode, target);
        };
        if let Some(lower) = &found.found.lower {
            inode.place.write().set_lower((**lower).clone());
        }
        self.made_of(inode, stack.clone(), target.deep);
        let is_it = target.layer.is_none_or(|layer| layer == inode.layer());
        if target.what.attributes && is_it {
            inode.facts.attr_changes();
            self.notices.insert(Notice::Attributes(inode.id));
        }
    }

    /// A directory is made of these layers.
    fn made_of(&mut self, inode: &Arc<Inode>, stack: DirStack, deep: bool) {
        let Some(dir) = &inode.dir else { return };
        dir.suspect.store(false, Ordering::Release);
        if *dir.stack.read() == stack && !deep {
            return;
        }
        *dir.stack.write() = stack;
        self.union.descriptors.clear_dirs();
        if inode.id == ROOT {
            self.union.watch_root();
        }
        self.list_anew(inode);
        self.add_absent(inode);
        let children = self.children().get(&inode.serial).cloned();
        for (name, _) in children.into_iter().flatten() {
            self.targets.push(Target {
                parent: Arc::clone(inode),
                name,
                what: Changed::default(),
                layer: None,
                deep: true,
            });
        }
    }

    /// Something of an object that is no directory changed.
    fn file_changed(&mut self, inode: &Arc<Inode>, target: &Target) {
        let is_it = target.layer.is_none_or(|layer| layer == inode.layer());
        let data = target.what.data && (is_it || inode.is_borrowed());
        let attributes = target.what.attributes && is_it;
        if attributes {
            inode.facts.attr_changes();
            inode.facts.set_whole(false);
        }
        if data {
            self.union.maps.drop(inode.serial);
        }
        if data || attributes || (target.what.name && inode.aliases().len() > 1) {
            self.not_trusted(inode, data);
        }
    }

    /// The kernel must not trust the attributes of a file, and its data, if they may be others.
    fn not_trusted(&mut self, inode: &Inode, data: bool) {
        let keeps = self.union.watching.keeps_sizes.load(Ordering::Acquire);
        if keeps && inode.kind == FileKind::Regular {
            self.notices.insert(Notice::Switch(inode.id));
            for alias in inode.aliases() {
                let name = Notice::Name(alias.parent.id, alias.name);
                self.notices.insert(name);
            }
        } else if data {
            self.notices.insert(Notice::Contents(inode.id));
        } else {
            self.notices.insert(Notice::Attributes(inode.id));
        }
    }

    /// An object has a name no more; nor has what is in it, if it has no other.
    fn has_gone(&mut self, inode: &Arc<Inode>, parent: &Arc<Inode>, name: &[u8]) {
        let mut gone = vec![(Arc::clone(inode), Arc::clone(parent), Box::from(name))];
        while let Some((inode, parent, name)) = gone.pop() {
            if !self.loses(&inode, &parent, &name) {
                continue;
            }
            let children = self.children().get(&inode.serial).cloned();
            let children = children.into_iter().flatten();
            gone.extend(children.map(|(name, child)| (child, Arc::clone(&inode), name)));
        }
    }

    /// Takes a name away; true when it was the last one of a directory.
    fn loses(&mut self, inode: &Arc<Inode>, parent: &Arc<Inode>, name: &[u8]) -> bool {
        let is_it = |a: &Alias| Arc::ptr_eq(&a.parent, parent) && *a.name == *name;
        let aliases = inode.aliases();
        if !aliases.iter().any(is_it) {
            return false;
        }
        self.notices.insert(Notice::Name(parent.id, name.into()));
        let is_last = aliases.len() == 1;
        if is_last {
            self.union.inodes.retire(inode);
        }
        if inode.take_alias(parent, name).0.is_some() {
            self.unpinned.push(parent.id);
        }
        if is_last {
            inode.set_unlinked();
            self.union.maps.drop(inode.serial);
        } else {
            self.not_trusted(inode, false);
        }
        is_last && inode.dir.is_some()
    }
}
