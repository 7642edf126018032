//! What the next server of a mount has to know about the nodes that the kernel knows, in memory
//! that outlives this process.
//!
//! Kept are the numbers of each node and its names, and nothing that a look at the disk tells as
//! well: the disk is the old or the new state at any instant, and something remembered beside it
//! could contradict it.
//!
//! A kill can come between any two stores but loses none that were made, so their order is all that
//! counts: a node or name is complete before the one word that makes it count. References are
//! counted before anyone can give them back; a kill leaves too many, never too few.
//!
//! The memory is an array of cells of eight words. Which are free is known only by the process that
//! writes; the next one finds out what is in use by following the nodes.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::sys::{Errno, Result, handover};

use super::inode::{Alias, NewInode};

mod further;
mod read;

#[cfg(test)]
mod tests;
mod upgrade;

pub(crate) use further::{Exchanging, Further, OpenFile, note_exchanged};
pub(crate) use read::{Noted, Swap};
pub(crate) use upgrade::{begin_upgrade, end_upgrade, program};

/// Says that the memory has this layout; the last byte is its version.
const MAGIC: u64 = u64::from_be_bytes(*b"unionfs\x04");
/// Words of a cell.
const CELL: usize = 8;
/// The first cell that is not part of the head.
const FIRST: usize = 256;
/// Names kept for a node.
const NAMES: usize = 4;
/// Bytes of a name in its first cell.
const HEAD_BYTES: usize = (CELL - 2) * 8;

/// Words of the head.
mod head {
    pub const MAGIC: usize = 0;
    /// Cells from here on were never used.
    pub const END: usize = 1;
    /// How many servers there were.
    pub const SERVERS: usize = 2;
    /// Lengths of the first request and its answer, in bytes.
    pub const INIT: usize = 3;
    pub const INIT_BYTES: usize = 16;
    pub const ANSWER_BYTES: usize = 64;
    /// A rename under way: state, parents, flags, lengths, then the names.
    pub const SWAP: usize = 128;
    pub const SWAP_FROM: usize = 160;
    pub const SWAP_TO: usize = 192;
    /// The first serial that was never used, and the last id beyond those of objects (`further`).
    pub const SERIALS: usize = 5;
    pub const FRESH: usize = 6;
    /// Up to this one, ids of files that the kernel has are closed.
    pub const FILES: usize = 7;
    /// Exchanges that were not answered: the numbers of their requests.
    pub const EXCHANGES: usize = 8;
    pub const EXCHANGES_END: usize = 16;
    /// What became of the last upgrade: an errno, 0, or how far it is (`upgrade`).
    pub const UPGRADED: usize = 4;
    /// The program that is to serve: its path, ended by a NUL byte.
    pub const PROGRAM: usize = 256;
    /// How many devices have an index, and those.
    pub const DEVICES: usize = 1024;
    pub const DEVICES_END: usize = 2048;
}

/// Words of a node's cell.
mod node {
    /// [`super::LIVE`], or the size of a free record.
    pub const TAG: usize = 0;
    pub const ID: usize = 1;
    pub const REFS: usize = 2;
    pub const SERIAL: usize = 3;
    pub const INO: usize = 4;
    /// Kind, whether it is found by name, whether a descriptor is kept, layer; the file that the kernel
    /// has open.
    pub const WHAT: usize = 5;
    /// Two words of two names each.
    pub const NAMES: usize = 6;
}

/// A node's cell begins with this; any other record begins with its number of cells.
const LIVE: u64 = u64::from_be_bytes(*b"\0\0\0node\x01");

/// So does one of a further node id of an object.
const FURTHER: u64 = u64::from_be_bytes(*b"\0\0\0more\x01");

/// In [`node::WHAT`]: a descriptor is kept.
const HELD: u64 = 1 << 9;
/// No name of the union leads to it any more.
const UNLINKED: u64 = 1 << 10;
/// The kernel may have the node open.
const OPEN: u64 = 1 << 11;
/// By a file of the upper.
const WRITTEN: u64 = 1 << 12;
/// Where the id of the file that it has begins; 0 where there is none.
const FILE_SHIFT: u32 = 32;

/// Messages to whoever keeps the connection and the descriptors.
pub(crate) mod message {
    /// The connection to the kernel, once its first request was answered.
    pub const CONNECTION: u64 = 1;
    /// The server serves; the first one has also told its caller.
    pub const READY: u64 = 3;
    /// An object without a name: the cell of its node, and its serial.
    pub const HELD: u64 = 2;
    /// The node of such an object is forgotten.
    pub const DROPPED: u64 = 5;
    /// Another program shall serve the mount.
    pub const UPGRADE: u64 = 4;
}

static ACTIVE: OnceLock<Journal> = OnceLock::new();

/// See the module text. A process serves one mount, so there is one.
#[derive(Debug)]
pub(crate) struct Journal {
    words: &'static [AtomicU64],
    /// Free records by their number of cells.
    free: Mutex<[Vec<u32>; 6]>,
    keeper: OwnedFd,
    /// It did not read for so long that nobody shall wait for it again until it does.
    stuck: AtomicBool,
}

/// The journal, if this process has one.
pub(crate) fn active() -> Option<&'static Journal> {
    ACTIVE.get()
}

/// Has this process write a journal from now on; `keeper` is the way to whoever keeps it.
///
/// # Errors
/// EPROTO when the memory is laid out as another version of the program does.
pub(crate) fn start(words: &'static [AtomicU64], keeper: OwnedFd) -> Result<()> {
    let before = words[head::MAGIC].swap(MAGIC, Ordering::AcqRel);
    if ![0, MAGIC].contains(&before) {
        words[head::MAGIC].store(before, Ordering::Release);
        return Err(Errno::PROTO);
    }
    words[head::SERVERS].fetch_add(1, Ordering::AcqRel);
    words[head::END].fetch_max(FIRST as u64, Ordering::AcqRel);
    let journal = Journal {
        words,
        free: Mutex::default(),
        keeper,
        stuck: AtomicBool::new(false),
    };
    journal.find_free();
    // A process starts it once.
    let _ = ACTIVE.set(journal);
    Ok(())
}

/// True while a node still has the cell that is said to be its.
pub(crate) fn is_live(words: &[AtomicU64], cell: u64, serial: u64) -> bool {
    let Some(at) = usize::try_from(cell).ok().and_then(|c| c.checked_mul(CELL)) else {
        return false;
    };
    let word = |n: usize| words.get(at + n).map(|w| w.load(Ordering::Acquire));
    word(node::TAG) == Some(LIVE) && word(node::SERIAL) == Some(serial)
}

/// A parent and a name in it.
pub(crate) type Name = (u64, Vec<u8>);

/// The cell of a node, or 0.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Cell(u32);

impl Journal {
    fn word(&self, cell: u32, word: usize) -> &AtomicU64 {
        &self.words[cell as usize * CELL + word]
    }

    fn store(&self, cell: u32, word: usize, value: u64) {
        self.word(cell, word).store(value, Ordering::Release);
    }

    fn load(&self, cell: u32, word: usize) -> u64 {
        self.word(cell, word).load(Ordering::Acquire)
    }

    /// A free record of so many cells; `None` when the memory is full. Until it is used it has its
    /// size in its first word, so that the way over all records is never lost.
    fn take(&self, cells: usize) -> Option<u32> {
        let mut free = self.free.lock();
        if let Some(cell) = free[cells].pop() {
            return Some(cell);
        }
        let end = self.words[head::END].load(Ordering::Acquire);
        let next = end + cells as u64;
        if next as usize * CELL > self.words.len() {
            return None;
        }
        let cell = u32::try_from(end).ok()?;
        self.store(cell, 0, cells as u64);
        self.words[head::END].store(next, Ordering::Release);
        Some(cell)
    }

    fn give_back(&self, cell: u32, cells: usize) {
        // No record has another size; one that seems to is better lost than given out.
        if let Some(free) = self.free.lock().get_mut(cells) {
            free.push(cell);
        }
    }

    /// Notes a new node, with the one reference it begins with. Without room for it the next server
    /// will not know it.
    pub(super) fn add(&self, new: &NewInode) -> Cell {
        let Some(cell) = self.take(1) else {
            return Cell::default();
        };
        let name = new.alias.as_ref().and_then(|a| self.add_name(a));
        self.note_serial(new.serial);
        self.store(cell, node::ID, new.id);
        self.store(cell, node::REFS, 1);
        self.store(cell, node::SERIAL, new.serial);
        self.store(cell, node::INO, new.ino);
        let what = new.kind as u64 | u64::from(new.by_name) << 8 | u64::from(new.layer) << 16;
        self.store(cell, node::WHAT, what);
        self.store(cell, node::NAMES, u64::from(name.unwrap_or(0)));
        self.store(cell, node::NAMES + 1, 0);
        self.store(cell, node::TAG, LIVE);
        Cell(cell)
    }

    /// The node is forgotten.
    pub fn remove(&self, Cell(cell): Cell) {
        if cell == 0 {
            return;
        }
        let names: Vec<u32> = (0..NAMES).map(|n| self.name_of(cell, n)).collect();
        if self.load(cell, node::WHAT) & HELD != 0 {
            let message = [
                message::DROPPED,
                u64::from(cell),
                self.load(cell, node::SERIAL),
            ];
            // When it cannot be told now, the keeper finds out.
            let _ = handover::send(&self.keeper, message, None);
        }
        self.store(cell, node::TAG, 1);
        for name in names.into_iter().filter(|&name| name != 0) {
            self.give_back(name, self.load(name, 0) as usize);
        }
        self.give_back(cell, 1);
    }

    /// Counts references.
    pub fn refer(&self, Cell(cell): Cell, count: u64) {
        if cell != 0 {
            self.word(cell, node::REFS)
                .fetch_add(count, Ordering::AcqRel);
        }
    }

    /// Gives references back that were counted.
    pub fn unrefer(&self, Cell(cell): Cell, count: u64) {
        if cell != 0 {
            self.word(cell, node::REFS)
                .fetch_sub(count, Ordering::AcqRel);
        }
    }

    /// Notes another st_ino.
    pub fn set_ino(&self, Cell(cell): Cell, ino: u64) {
        if cell != 0 {
            self.store(cell, node::INO, ino);
        }
    }

    /// Notes that no name leads to the node any more.
    pub(super) fn set_unlinked(&self, Cell(cell): Cell) {
        if cell != 0 {
            let what = self.word(cell, node::WHAT);
            what.fetch_or(UNLINKED, Ordering::AcqRel);
        }
    }

    fn name_of(&self, cell: u32, index: usize) -> u32 {
        let pair = self.load(cell, node::NAMES + index / 2);
        (pair >> (32 * (index % 2))) as u32
    }

    /// Changes one of the names, in one store.
    fn set_name(&self, cell: u32, index: usize, name: u32) {
        let shift = 32 * (index % 2);
        let word = self.word(cell, node::NAMES + index / 2);
        let old = word.load(Ordering::Acquire);
        let new = old & !(0xffff_ffff << shift) | u64::from(name) << shift;
        word.store(new, Ordering::Release);
    }

    fn add_name(&self, alias: &Alias) -> Option<u32> {
        let length = alias.name.len();
        let cells = 1 + (1 + length).saturating_sub(HEAD_BYTES).div_ceil(CELL * 8);
        let cell = self.take(cells)?;
        // The first word stays: it has the size.
        self.store(cell, 1, alias.parent.id);
        let at = cell as usize * CELL + 2;
        // The length stands in front of the bytes, so that no word more is needed for it.
        let bytes = [&[u8::try_from(length).ok()?], &*alias.name].concat();
        self.put_bytes(at, &bytes);
        Some(cell)
    }

    fn put_bytes(&self, at: usize, bytes: &[u8]) {
        for (word, chunk) in self.words[at..].iter().zip(bytes.chunks(8)) {
            let mut whole = [0; 8];
            whole[..chunk.len()].copy_from_slice(chunk);
            word.store(u64::from_ne_bytes(whole), Ordering::Release);
        }
    }

    /// Brings the names that are noted for a node to those it has. The caller keeps others from doing
    /// the same.
    pub(super) fn note_names(&self, Cell(cell): Cell, names: &[&Alias]) {
        if cell == 0 {
            return;
        }
        let noted = (0..NAMES).map(|n| self.name_of(cell, n));
        let noted: Vec<(u32, Option<Name>)> = noted
            .map(|name| (name, (name != 0).then(|| self.read_name(name))))
            .collect();
        let is_same =
            |alias: &Alias, noted: &Name| alias.parent.id == noted.0 && *alias.name == *noted.1;
        let is_noted = |a: &Alias| {
            let mut noted = noted.iter();
            noted.any(|(_, name)| name.as_ref().is_some_and(|name| is_same(a, name)))
        };
        let mut new = names.iter().filter(|a| !is_noted(a));
        for (index, (old, value)) in noted.iter().enumerate() {
            let stays = |value: &Name| names.iter().any(|a| is_same(a, value));
            if value.as_ref().is_some_and(stays) {
                continue;
            }
            let name = new.next().and_then(|alias| self.add_name(alias));
            if name.is_none() && *old == 0 {
                continue;
            }
            self.set_name(cell, index, name.unwrap_or(0));
            if *old != 0 {
                self.give_back(*old, self.load(*old, 0) as usize);
            }
        }
    }

    /// Has a descriptor kept for an object that loses its last name. Without that the next server
    /// cannot reach it.
    pub fn hold(&self, Cell(cell): Cell, serial: u64, fd: BorrowedFd<'_>) {
        let message = [message::HELD, u64::from(cell), serial];
        if cell == 0 {
            return;
        }
        self.word(cell, node::WHAT).fetch_or(HELD, Ordering::AcqRel);
        let sent = if self.stuck.load(Ordering::Acquire) {
            handover::send(&self.keeper, message, Some(fd))
        } else {
            handover::send_soon(&self.keeper, message, Some(fd))
        };
        // Told once for each time that it stops reading.
        let was_stuck = self.stuck.swap(sent.is_err(), Ordering::AcqRel);
        if let (Err(e), false) = (sent, was_stuck) {
            tracing::warn!("objects without a name would not survive this server: {e}");
        }
    }
}
