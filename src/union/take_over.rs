//! Going on where the last server of the mount was when it ended.
//!
//! What it had noted of a node is its numbers and its names (`journal`). All else is read from disk
//! by an ordinary lookup of one of the names. A name counts if what it leads to has the node's type
//! and st_ino, which stays over copy-up; a name that no longer does was changed just when the server
//! ended, and then another name, or the descriptor that was put aside before, is the way.

use crate::sys::sync::atomic::Ordering;
use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::layer::name::Name;
use crate::sys::{self, FileKind, Stat};

use super::Union;
use super::find::FoundDir;
use super::inode::{Alias, DirPart, DirStack, Held, Inode, NewInode};
use super::journal::{Further, Journal, Noted, Swap};
use super::lookup::dir_of;
use super::metacopy::shows_holes;

/// Descriptors of objects without a name, by the serials of their nodes.
pub(crate) type HeldFds = HashMap<u64, OwnedFd>;

/// What the last server left.
struct Left<'a> {
    journal: &'a Journal,
    nodes: HashMap<u64, Noted>,
    held: HeldFds,
    rename: Option<Swap>,
    /// Further ids, by serials.
    further: HashMap<u64, Vec<Further>>,
    /// The two of an exchange had changed places.
    exchanged: bool,
}

/// What became of the nodes.
#[derive(Debug, Default)]
pub(crate) struct TakenOver {
    /// Found under a name.
    pub named: usize,
    /// Without a name.
    pub nameless: usize,
    /// Not found: their users get ESTALE.
    pub lost: usize,
}

impl Union {
    /// Knows again all nodes that the kernel got from the last server. Called before anything is
    /// served.
    pub(crate) fn take_over(&self, journal: &Journal, held: HeldFds) -> TakenOver {
        let mut left = Left {
            journal,
            nodes: journal.nodes(),
            held,
            rename: journal.unfinished_rename(),
            further: HashMap::new(),
            exchanged: false,
        };
        for further in journal.further() {
            left.further
                .entry(further.serial)
                .or_default()
                .push(further);
        }
        let mut result = TakenOver::default();
        left.skip_used(self);
        let swap = left.rename.clone();
        let first = swap.iter().flat_map(|swap| [swap.from.0, swap.to.0]);
        let ids: Vec<u64> = first.chain(left.nodes.keys().copied()).collect();
        for id in ids {
            // Parents first, without recursion.
            let mut chain = vec![id];
            while let Some(&id) = chain.last() {
                let names = left.nodes.get(&id).map_or(&[][..], |noted| &noted.names);
                let parent = names.iter().map(|(parent, _)| *parent);
                // There is no circle, but it would do no harm.
                let mut missing =
                    parent.filter(|p| left.nodes.contains_key(p) && !chain.contains(p));
                if let Some(parent) = missing.next() {
                    chain.push(parent);
                    continue;
                }
                chain.pop();
                if let Some(noted) = left.nodes.remove(&id) {
                    self.restore(&noted, &mut left, &mut result);
                }
            }
        }
        for further in left.further.values().flatten() {
            journal.remove_further(further.cell);
        }
        if let Some(swap) = &left.rename {
            journal.settle_rename(swap, left.exchanged);
        }
        result
    }

    fn restore(&self, noted: &Noted, left: &mut Left<'_>, result: &mut TakenOver) {
        let mut inode: Option<Arc<Inode>> = None;
        let mut unpinned = Vec::new();
        if noted.refs == 0 {
            // It was just being forgotten.
            left.journal.remove(noted.cell);
            for (parent, _) in &noted.names {
                self.forget(*parent, 1);
            }
            return;
        }
        for (parent, name) in &noted.names {
            let places = match noted.unlinked {
                // What has its name now is another object, though its number may be the same.
                true => Vec::new(),
                false => left.places(*parent, name),
            };
            let found = places
                .iter()
                .enumerate()
                .find_map(|(n, (parent, name))| Some((n, self.find_noted(noted, *parent, name)?)));
            let Some((at, (dir, found))) = found else {
                unpinned.push(*parent);
                continue;
            };
            let alias = Alias {
                parent: dir,
                name: places[at].1.as_slice().into(),
            };
            if at > 0 {
                alias.parent.add_refs(1);
                unpinned.push(*parent);
                left.exchanged = true;
            }
            match &inode {
                None => {
                    let restored = self.restore_named(noted, alias, found);
                    if let Some(fd) = left.held.remove(&noted.serial) {
                        self.take_held(&restored, fd);
                    }
                    inode = Some(restored);
                }
                Some(inode) => {
                    // It counts one of its own for it.
                    inode.add_alias(&alias.parent, &alias.name);
                    unpinned.push(alias.parent.id);
                }
            }
        }
        result.named += usize::from(inode.is_some());
        if inode.is_none() {
            inode = self.restore_nameless(noted, left, &mut unpinned);
            result.nameless += usize::from(inode.is_some());
        }
        if let Some(inode) = inode {
            inode.note_names_again();
            let further = left.further.remove(&noted.serial).unwrap_or_default();
            self.restore_nodes(noted, &inode, &further);
        } else {
            result.lost += 1;
            tracing::debug!("no way leads to {noted:?} any more");
            left.journal.remove(noted.cell);
        }
        for parent in unpinned {
            self.forget(parent, 1);
        }
    }

    /// By which ids the kernel knows an inode, and which of them it may have open.
    fn restore_nodes(&self, noted: &Noted, inode: &Arc<Inode>, further: &[Further]) {
        if let Some(by) = noted.open {
            self.was_open(noted.id, by);
        }
        for further in further {
            self.restore_node(inode, further);
            if let Some(by) = further.open {
                self.was_open(further.id, by);
            }
        }
    }

    /// What a name leads to, if that is the node.
    fn find_noted(
        &self, noted: &Noted, parent: u64, name: &[u8],
    ) -> Option<(Arc<Inode>, FoundDir)> {
        let parent = self.inodes.get(parent).ok()?;
        if parent.is_unlinked() {
            return None;
        }
        let name = Name::new(name).ok()?;
        let _tree = self.tree.read();
        let _names = dir_of(&parent).ok()?.read_names();
        let mut found = self.find(&parent, name).ok()??;
        if found.found.plink.is_none() && found.found.ino.is_none() {
            found.found.ino = self.recorded_ino(&parent, name, &found.found);
        }
        let stat = &found.found.stat;
        let number = self.inodes.numbers.of(stat.dev, stat.ino);
        // By its first name it is known already, and its record is not read again.
        let known = || self.inodes.find(number).map(|inode| inode.ino());
        let ino = found.found.ino.or_else(known).unwrap_or(number);
        let is_it = stat.kind() == noted.kind && ino == noted.ino;
        is_it.then(|| (Arc::clone(&parent), found))
    }

    fn restore_named(&self, noted: &Noted, alias: Alias, found: FoundDir) -> Arc<Inode> {
        let FoundDir { found, handle } = found;
        let (stat, layer) = (found.stat, found.layer);
        let key = match noted.by_name && self.inodes.is_named(&found) {
            true => 0,
            false => self.inodes.numbers.of(stat.dev, stat.ino),
        };
        let inode = self.inodes.put(Inode::new(NewInode {
            key,
            layer: found.object_layer(),
            plinked: found.plink.is_some(),
            alias: Some(alias),
            stack: found.stack,
            lower: found.lower,
            subdirs: found.subdirs,
            ..new_inode(noted)
        }));
        if let Some(handle) = handle {
            self.keep_dir_fd(&inode, layer, handle);
        }
        if shows_holes(&stat)
            && let Err(e) = self.learn(&inode, &stat)
        {
            tracing::warn!("where the data of a file are could not be told again: {e}");
        }
        inode
    }

    /// What was kept of a file with a name is a descriptor that its mode forbids to get again.
    fn take_held(&self, inode: &Arc<Inode>, fd: OwnedFd) {
        let key = inode.key.load(Ordering::Acquire);
        let is_it = |stat: Stat| self.inodes.numbers.of(stat.dev, stat.ino) == key;
        let writes = sys::fd::is_writable(&fd).unwrap_or(false);
        if writes && self.in_upper(inode) && sys::stat::fstat(&fd).is_ok_and(is_it) {
            self.take_file(inode, fd);
        }
    }

    /// A node that no name leads to any more.
    fn restore_nameless(
        &self, noted: &Noted, left: &mut Left<'_>, unpinned: &mut Vec<u64>,
    ) -> Option<Arc<Inode>> {
        if let Some(fd) = left.held.remove(&noted.serial) {
            let stat = sys::stat::fstat(&fd).ok()?;
            if stat.kind() != noted.kind {
                return None;
            }
            let is_gone = stat.nlink == 0 || noted.kind.is_dir();
            let number = self.inodes.numbers.of(stat.dev, stat.ino);
            let inode = Inode::new(NewInode {
                // By another name it is found again.
                key: if is_gone { 0 } else { number },
                stack: stack_of(noted.kind, 0),
                ..new_inode(noted)
            });
            inode.place.write().set_held(Some(Held::Handle {
                fd: Arc::new(fd),
                _permit: self.descriptors.held.take(),
            }));
            if is_gone {
                inode.set_unlinked();
            }
            return Some(self.inodes.put(inode));
        }
        if noted.kind != FileKind::Directory && self.has_copy(noted.ino) {
            return Some(self.inodes.put(Inode::new(NewInode {
                plinked: true,
                ..new_inode(noted)
            })));
        }
        self.restore_of_lower(noted, unpinned)
    }

    /// An object of a lower whose name is hidden stays where it was.
    fn restore_of_lower(&self, noted: &Noted, unpinned: &mut Vec<u64>) -> Option<Arc<Inode>> {
        let (parent, name) = noted.names.first()?;
        let is_upper = self.layers.upper.is_some() && noted.layer == 0;
        if is_upper || !self.layers.order().contains(&noted.layer) {
            return None;
        }
        let dir = self.inodes.get(*parent).ok()?;
        let tree = self.tree.read();
        let handle = self.dir_fd(&dir, noted.layer).ok()?;
        let stat: Stat = sys::stat::stat_at(&*handle, name).ok()?;
        drop(tree);
        let number = self.inodes.numbers.of(stat.dev, stat.ino);
        if stat.kind() != noted.kind || number != noted.ino {
            return None;
        }
        let at = unpinned.iter().position(|id| id == parent)?;
        unpinned.swap_remove(at);
        let inode = Inode::new(NewInode {
            layer: noted.layer,
            stack: stack_of(noted.kind, noted.layer),
            alias: Some(Alias {
                parent: dir,
                name: name.as_slice().into(),
            }),
            ..new_inode(noted)
        });
        inode.set_unlinked();
        Some(self.inodes.put(inode))
    }
}

impl Left<'_> {
    /// Nodes that are not found again have used their numbers all the same.
    fn skip_used(&self, union: &Union) {
        for noted in self.nodes.values() {
            union.inodes.skip(noted.id, noted.serial);
        }
        for further in self.further.values().flatten() {
            union.inodes.skip(further.id, further.serial);
        }
    }

    /// Where a node may be that was noted here: after an unfinished rename also at the other place.
    fn places(&self, parent: u64, name: &[u8]) -> Vec<(u64, Vec<u8>)> {
        let here = (parent, name.to_vec());
        let there = self.rename.as_ref().and_then(|swap| {
            if swap.from == here {
                Some(swap.to.clone())
            } else if swap.exchange && swap.to == here {
                Some(swap.from.clone())
            } else {
                None
            }
        });
        [here].into_iter().chain(there).collect()
    }
}

/// The parts of a directory that has no name.
fn stack_of(kind: FileKind, layer: u16) -> Option<DirStack> {
    let part = DirPart {
        layer,
        ..DirPart::new_upper()
    };
    kind.is_dir().then(|| DirStack::from_slice(&[part]))
}

/// An object of the upper without names.
fn new_inode(noted: &Noted) -> NewInode {
    NewInode {
        id: noted.id,
        serial: noted.serial,
        ino: noted.ino,
        key: 0,
        layer: 0,
        kind: noted.kind,
        by_name: noted.by_name,
        plinked: false,
        alias: None,
        stack: None,
        lower: None,
        subdirs: None,
        noted: (noted.cell, noted.refs),
    }
}
