//! Which file the kernel has of each node, while it reads and writes the layers' files itself.
//!
//! What the kernel demands: as long as a node is open, every open of it is answered in the same way,
//! with the same backing id, and an id lives from before the first open to after the last. So a node
//! has one id, made at its first open. When nothing is open any more it stays for the next open,
//! which then needs no system call, until the kernel forgets the node or [`MAX_IDLE`] others were
//! used since.
//!
//! A node whose data came to the upper while it was open by a lower's file is switched: it answers
//! ESTALE, its names lead to another node, and what is open goes on with the lower's file.
//!
//! The next server of a supervised mount goes on with the ids of the nodes that were open, which are noted.
//!
//! A small file of a lower that is read and looked at again and again is read through the kernel's page cache
//! from then on (`cached.rs`).
//!
//! Where a file cannot be had so (layers on stacked filesystems, lowers without a read-only mount of
//! their own, no memory), its data go through us and the kernel's page cache.

mod cached;
mod inherited;
mod opens;
mod passed;
mod writers;

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use dashmap::DashMap;
use dashmap::mapref::entry::Entry as Slot;
use fuser::{FileHandle, FopenFlags};
use parking_lot::Mutex;

use crate::sys::{Errno, Result, cred};
use crate::union::journal::OpenFile;
use crate::union::{Caller, OpenMode, Source, Union};

use super::io::Way;
use super::opening::{handle_of, number_of};
use cached::Cached;
pub(super) use opens::{Opened, Opening};
pub(super) use passed::{Answer, Passed};

/// Ids that are kept though nothing is open. Each holds an inode of a layer in the kernel's memory,
/// 1 to 2 KiB, and no descriptor of ours.
const MAX_IDLE: usize = 16_384;

/// Bits of a file handle, beside the number of the open: it is counted here, and it may be mapped for
/// writing.
const COUNTED: u64 = 1;
const MAPS: u64 = 2;

/// What an open found.
enum Joined {
    Yes(Opened),
    /// It is open by a file that has the data no more.
    Moved,
    /// What is read of it is to be cached from now on.
    Cached,
    /// Nothing is known of the node, or nothing that holds.
    Unknown,
}

/// See the module text.
#[derive(Debug, Default)]
struct Node {
    opens: u32,
    /// Where the data were when the file was taken; `None` for a lower of which nothing else is known.
    source: Option<Source>,
    /// The file; none while data go through us.
    backing: Option<Arc<Passed>>,
    /// The id of the file that it was open by when the last server ended, until it is opened again.
    left: Option<u32>,
    /// It was opened for writing with success, with O_APPEND at least, or without.
    appends: bool,
    writes: bool,
    /// Writes have to come as requests, if that is known.
    guarded: Option<bool>,
    /// It was used since its turn in the queue of the idle, or it is open.
    used: bool,
    /// It stands in that queue.
    queued: bool,
    /// The lower's file that is open, after the data came to the upper.
    old: Option<Arc<OwnedFd>>,
    /// It was open when the last server ended; perhaps it is still.
    inherited: bool,
    /// Whether the kernel's page cache has it, for us.
    cached: Cached,
}

impl Node {
    fn new(source: Option<Source>, backing: Option<Arc<Passed>>) -> Self {
        Self {
            source,
            backing,
            ..Self::default()
        }
    }
}

/// See the module text. Its locks are leaves, but for calls to the core that make no system call.
#[derive(Debug)]
pub(super) struct Passthrough {
    nodes: DashMap<u64, Node>,
    /// Nodes with nothing open, oldest first, and some that are open again.
    idle: Mutex<VecDeque<u64>>,
    /// Nodes whose file is open for writing by itself, not only while it is by a user.
    writers: Mutex<Vec<u64>>,
    /// Layers of which the kernel takes no files.
    refused: Vec<AtomicBool>,
    /// There are nodes that were open when the last server ended.
    inherits: bool,
    /// The way to close their files.
    connection: OnceLock<OwnedFd>,
}

impl Passthrough {
    /// The table for this way of data, if it needs one.
    pub fn of(way: Way, union: &Union) -> Option<Arc<Self>> {
        if way != Way::Passthrough {
            return None;
        }
        let layers = 0..union.layer_count();
        let open = union.take_open_nodes();
        let table = Arc::new(Self {
            inherits: !open.is_empty(),
            nodes: DashMap::new(),
            idle: Mutex::default(),
            writers: Mutex::default(),
            refused: layers.map(|_| AtomicBool::new(false)).collect(),
            connection: OnceLock::new(),
        });
        for (id, by) in open {
            table.inherit(union, id, by);
        }
        let listener = Arc::downgrade(&table);
        union.on_data_moved(Box::new(move |id, file| {
            if let Some(table) = listener.upgrade() {
                table.data_moved(id, file);
            }
        }));
        Some(table)
    }

    /// Opens a file, which `answer` hands to the kernel.
    ///
    /// # Errors
    /// ESTALE when the name leads to another node now, which the kernel then finds; and as
    /// [`Union::open`].
    pub fn open(
        &self, union: &Union, opening: Opening, caller: Caller, answer: &impl Answer,
    ) -> Result<Opened> {
        if opening.writes() && !self.may_write(union, opening)? {
            union.open(opening.id, opening.mode, caller)?;
        }
        let known = self.nodes.get(&opening.id).and_then(|node| node.guarded);
        let guarded = match known {
            Some(guarded) => guarded,
            None if opening.mode.write => union.must_see_writes(opening.id)?,
            None => false,
        };
        self.open_ready(union, opening, guarded, answer)
    }

    /// The same for a file that is ready to be opened so, as one that was just made. Writes have to
    /// come as requests if it is `guarded`.
    pub fn open_ready(
        &self, union: &Union, opening: Opening, guarded: bool, answer: &impl Answer,
    ) -> Result<Opened> {
        if opening.direct {
            union.check_direct(&union.backing(opening.id)?)?;
        }
        let opened = loop {
            match self.join(union, opening, guarded, answer)? {
                Joined::Yes(opened) => break opened,
                Joined::Moved => {
                    union.switch_node(opening.id)?;
                    return Err(Errno::STALE);
                }
                Joined::Cached => self.begin_caching(opening.id),
                Joined::Unknown => self.learn(union, opening, answer)?,
            }
        };
        if opened.handle.0 & MAPS != 0 {
            union.mapper_opened(opening.id)?;
        }
        Ok(opened)
    }

    /// True for a file of the upper that was opened for the same before.
    fn may_write(&self, union: &Union, opening: Opening) -> Result<bool> {
        if opening.mode.truncate {
            return Ok(false);
        }
        let Some(node) = self.nodes.get(&opening.id) else {
            return Ok(false);
        };
        let known = node.writes || (node.appends && opening.mode.append);
        let source = union.source(opening.id)?;
        Ok(known && node.source == Some(source) && union.is_written(source))
    }

    /// Counts an open of a node that has its file already.
    fn join(
        &self, union: &Union, opening: Opening, guarded: bool, answer: &impl Answer,
    ) -> Result<Joined> {
        let Some(mut node) = self.nodes.get_mut(&opening.id) else {
            return Ok(Joined::Unknown);
        };
        let source = union.source(opening.id)?;
        if opening.writes() && !union.is_written(source) {
            // Cannot be: it was made ready for writing.
            return Err(Errno::IO);
        }
        let mut flags = FopenFlags::empty();
        if !opening.mode.write {
            // It has nothing to report at close.
            flags = FopenFlags::FOPEN_NOFLUSH;
        }
        if let Some(number) = node.left.take() {
            node.backing = Some(Arc::new(answer.own(number)));
        }
        match (node.source == Some(source), node.opens, &node.backing) {
            (true, ..) => {}
            (false, 0, _) => return Ok(Joined::Unknown),
            // The kernel would not try another node; so reads come to us.
            (false, _, Some(_)) if opening.by_kernel => flags |= FopenFlags::FOPEN_DIRECT_IO,
            (false, _, Some(_)) => return Ok(Joined::Moved),
            // Through us, all that is open follows.
            (false, _, None) => {
                node.source = Some(source);
                node.cached = Cached::default();
            }
        }
        match node.cached {
            Cached::Soon if node.opens == 0 && opening.only_reads() => return Ok(Joined::Cached),
            // That is for the layer's filesystem to do.
            Cached::Yes if node.opens == 0 && opening.direct => return Ok(Joined::Unknown),
            _ => {}
        }
        let mut handle = COUNTED;
        if node.backing.is_some() {
            if guarded && opening.mode.write {
                flags |= FopenFlags::FOPEN_DIRECT_IO;
            }
            if opening.maps {
                handle |= MAPS;
            }
        } else if node.opens > 0 || !union.is_written(source) {
            flags |= FopenFlags::FOPEN_KEEP_CACHE;
        }
        if node.opens == 0 {
            let by = OpenFile {
                id: node.backing.as_ref().map(|file| file.number()),
                written: union.is_written(source),
            };
            union.note_open(opening.id, Some(by));
        }
        node.opens += 1;
        node.used = true;
        if opening.mode.write {
            node.appends = true;
            node.writes |= !opening.mode.append;
            node.guarded = Some(guarded);
        }
        Ok(Joined::Yes(Opened {
            handle: handle_of(union, handle),
            flags,
            backing: node.backing.clone(),
        }))
    }

    /// Finds the file of a node and hands it to the kernel, where it takes it.
    fn learn(&self, union: &Union, opening: Opening, answer: &impl Answer) -> Result<()> {
        let mut source = union.source(opening.id)?;
        let mut backing = None;
        if union.may_pass(source) && !self.is_refused(source) {
            let found = union.backing(opening.id)?;
            source = found.source;
            if found.is_all_shown && union.may_pass(source) && !self.is_refused(source) {
                backing = self.register(union, source, found.file.as_fd(), answer)?;
                if found.writes && backing.is_some() {
                    self.note_writer(union, opening.id);
                }
            }
        }
        if backing.is_none() {
            // For the requests that will come.
            union.open(opening.id, OpenMode::default(), NOBODY)?;
        }
        let node = Node::new(Some(source), backing.map(Arc::new));
        let unused = match self.nodes.entry(opening.id) {
            Slot::Vacant(slot) => {
                slot.insert(node);
                None
            }
            Slot::Occupied(mut slot) if slot.get().opens == 0 => {
                let queued = slot.get().queued;
                Some(slot.insert(Node { queued, ..node }))
            }
            // Another open was faster.
            Slot::Occupied(_) => Some(node),
        };
        // Not under the lock: dropping it is a system call.
        drop(unused);
        Ok(())
    }

    fn register(
        &self, union: &Union, source: Source, file: BorrowedFd<'_>, answer: &impl Answer,
    ) -> Result<Option<Passed>> {
        let made = if union.is_written(source) {
            // The kernel writes with the rights of this moment, and cannot know who may keep
            // set-id bits that are set after the file was opened.
            cred::without_keeping_set_ids(|| answer.pass(file))?
        } else {
            answer.pass(file)
        };
        match made {
            Ok(id) => Ok(Some(id)),
            Err(e) => {
                if matches!(e.raw_os_error(), Some(libc::ELOOP | libc::EPERM)) {
                    self.refuse(source, &e);
                } else {
                    tracing::debug!("a file is not passed through: {e}");
                }
                Ok(None)
            }
        }
    }

    /// Layers of which the kernel takes no files, as far as was found out.
    pub fn refused(&self) -> Vec<usize> {
        let layers = self.refused.iter().enumerate();
        let refused = layers.filter(|(_, refused)| refused.load(Ordering::Relaxed));
        refused.map(|(at, _)| at).collect()
    }

    fn is_refused(&self, source: Source) -> bool {
        let flag = self.refused.get(usize::from(source.layer()));
        flag.is_none_or(|refused| refused.load(Ordering::Relaxed))
    }

    fn refuse(&self, source: Source, e: &io::Error) {
        let layer = source.layer();
        if let Some(flag) = self.refused.get(usize::from(layer))
            && !flag.swap(true, Ordering::Relaxed)
        {
            tracing::info!("files of layer {layer} are not passed through: {e}");
        }
    }

    /// An open has ended.
    pub fn release(&self, union: &Union, id: u64, handle: FileHandle) {
        if handle.0 & COUNTED == 0 || !union.is_own_open(number_of(handle)) {
            return;
        }
        if handle.0 & MAPS != 0 {
            union.mapper_closed(id);
        }
        let source = union.source(id);
        let (mut gone, mut queue) = (None, false);
        if let Slot::Occupied(mut slot) = self.nodes.entry(id) {
            let node = slot.get_mut();
            node.opens = node.opens.saturating_sub(1);
            if node.opens == 0 {
                union.note_open(id, None);
                node.old = None;
                let is_kept = (node.backing.is_some() || node.cached == Cached::Yes)
                    && source.is_ok_and(|s| node.source == Some(s));
                queue = is_kept && !std::mem::replace(&mut node.queued, true);
                if !is_kept {
                    gone = Some(slot.remove());
                }
            }
        }
        drop(gone);
        if queue {
            self.queue(id);
        }
    }

    /// Puts a node among the idle, and lets go of another if there are too many. A node that was used
    /// since its last turn gets another one.
    fn queue(&self, id: u64) {
        let mut idle = self.idle.lock();
        idle.push_back(id);
        let mut tries = 16;
        while idle.len() > MAX_IDLE && tries > 0 {
            tries -= 1;
            let Some(oldest) = idle.pop_front() else {
                return;
            };
            let Slot::Occupied(mut slot) = self.nodes.entry(oldest) else {
                continue;
            };
            let node = slot.get_mut();
            if node.opens > 0 {
                // It comes again when it is closed.
                node.queued = false;
            } else if std::mem::replace(&mut node.used, false) {
                drop(slot);
                idle.push_back(oldest);
            } else {
                let gone = slot.remove();
                drop(idle);
                drop(gone);
                return;
            }
        }
    }

    /// The kernel gives references to a node back.
    pub fn forget(&self, id: u64) {
        let gone = self.nodes.remove_if(&id, |_, node| node.opens == 0);
        drop(gone);
    }

    /// The mode of a file is about to be changed: who writes from now on has to be asked for anew.
    pub fn mode_changes(&self, union: &Union, id: u64, mode: u32) {
        if mode & (libc::S_ISUID | libc::S_ISGID) != 0 {
            union.set_ids_may_go(id);
        }
        self.mode_changed(union, id);
    }

    /// The mode of a file was changed: who opened it meanwhile may have seen the one before.
    pub fn mode_changed(&self, union: &Union, id: u64) {
        self.change_all(union, id, |node| node.guarded = None);
    }

    /// The flags of a file were changed, which say who may open it.
    pub fn flags_changed(&self, union: &Union, id: u64) {
        self.change_all(union, id, |node| {
            (node.appends, node.writes) = (false, false);
        });
    }

    fn change_all(&self, union: &Union, id: u64, change: impl Fn(&mut Node)) {
        for id in union.node_ids(id).unwrap_or_default() {
            if let Some(mut node) = self.nodes.get_mut(&id) {
                change(&mut node);
            }
        }
    }

    /// The data of a node were in `file` until now.
    pub fn data_moved(&self, id: u64, file: &dyn Fn() -> Option<Arc<OwnedFd>>) {
        if let Some(mut node) = self.nodes.get_mut(&id)
            && node.opens > 0
            && (node.backing.is_some() || node.left.is_some())
            && let Some(file) = file()
        {
            node.old = Some(file);
        }
    }

    /// The file that those read who have the node open, if its data have come to the upper since.
    pub fn old_file(&self, id: u64, handle: FileHandle) -> Option<Arc<OwnedFd>> {
        if handle.0 & COUNTED == 0 {
            return None;
        }
        self.nodes.get(&id)?.old.clone()
    }
}

/// Nobody in particular.
const NOBODY: Caller = Caller {
    uid: 0,
    gid: 0,
    pid: 0,
};
