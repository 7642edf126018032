//! The journal as the next server reads it, and what is noted of the session and of renames.

use std::collections::HashMap;
use std::os::fd::BorrowedFd;
use std::sync::atomic::Ordering;

use crate::layer::LayerIndex;
use crate::sys::{FileKind, Result, handover};

use super::{
    CELL, Cell, FIRST, FURTHER, Journal, LIVE, NAMES, Name, OpenFile, UNLINKED, head, message, node,
};

/// What is noted of a node.
#[derive(Debug)]
pub(crate) struct Noted {
    /// Where.
    pub cell: Cell,
    pub id: u64,
    pub serial: u64,
    pub ino: u64,
    pub refs: u64,
    pub kind: FileKind,
    pub by_name: bool,
    /// No name leads to it any more.
    pub unlinked: bool,
    /// By what the kernel may have it open.
    pub open: Option<OpenFile>,
    /// The layer it was first found in.
    pub layer: LayerIndex,
    /// Parents and names.
    pub names: Vec<Name>,
}

/// A rename under way: parent and name of source and target.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Swap {
    pub from: Name,
    pub to: Name,
    /// The two change places.
    pub exchange: bool,
    /// The request that asked for an exchange, if that is known.
    pub request: u64,
}

impl Journal {
    /// Calls `each` with every record's first cell, its size, and its first word.
    pub(super) fn for_each_record(&self, mut each: impl FnMut(u32, usize, u64)) {
        let end = self.words[head::END].load(Ordering::Acquire) as usize;
        let mut at = FIRST;
        while at < end {
            let cell = at as u32;
            let tag = self.load(cell, 0);
            let cells = match tag {
                LIVE | FURTHER => 1,
                size => (size as usize).clamp(1, 5),
            };
            each(cell, cells, tag);
            at += cells;
        }
    }

    /// Finds the records that no node uses.
    pub(super) fn find_free(&self) {
        let end = self.words[head::END].load(Ordering::Acquire) as usize;
        let mut used = vec![false; end];
        self.for_each_record(|cell, _, tag| {
            if tag == LIVE {
                let names = (0..NAMES).map(|n| self.name_of(cell, n));
                names.chain([cell]).for_each(|c| used[c as usize] = true);
            } else if tag == FURTHER {
                used[cell as usize] = true;
            }
        });
        let mut free = self.free.lock();
        self.for_each_record(|cell, cells, _| {
            if !used[cell as usize] {
                free[cells].push(cell);
            }
        });
    }

    pub(super) fn read_name(&self, name: u32) -> Name {
        let at = name as usize * CELL + 2;
        let length = self.words[at].load(Ordering::Acquire).to_ne_bytes()[0];
        let mut bytes = self.bytes(at, 1 + usize::from(length));
        bytes.remove(0);
        (self.load(name, 1), bytes)
    }

    fn bytes(&self, at: usize, length: usize) -> Vec<u8> {
        let words = self.words[at..].iter().take(length.div_ceil(8));
        let mut bytes: Vec<u8> = words
            .flat_map(|w| w.load(Ordering::Acquire).to_ne_bytes())
            .collect();
        bytes.truncate(length);
        bytes
    }

    /// All nodes. Of two with one id the later one counts: the first was just being forgotten.
    pub fn nodes(&self) -> HashMap<u64, Noted> {
        let mut nodes: HashMap<u64, Noted> = HashMap::new();
        let mut gone = Vec::new();
        self.for_each_record(|cell, _, tag| {
            if tag != LIVE {
                return;
            }
            let what = self.load(cell, node::WHAT);
            let names = (0..NAMES).map(|n| self.name_of(cell, n));
            let noted = Noted {
                cell: Cell(cell),
                id: self.load(cell, node::ID),
                serial: self.load(cell, node::SERIAL),
                ino: self.load(cell, node::INO),
                refs: self.load(cell, node::REFS),
                kind: kind_of(what as u8),
                by_name: what >> 8 & 1 != 0,
                unlinked: what & UNLINKED != 0,
                open: OpenFile::of(what),
                layer: (what >> 16) as LayerIndex,
                names: names
                    .filter(|&n| n != 0)
                    .map(|n| self.read_name(n))
                    .collect(),
            };
            match nodes.get(&noted.id) {
                Some(other) if other.serial > noted.serial => gone.push(noted.cell),
                _ => gone.extend(nodes.insert(noted.id, noted).map(|old| old.cell)),
            }
        });
        for cell in gone {
            self.remove(cell);
        }
        nodes
    }

    /// The kernel's first request and the answer that it got, once it has got it.
    pub fn session(&self) -> Option<(Vec<u8>, Vec<u8>)> {
        let lengths = self.words[head::INIT].load(Ordering::Acquire);
        let (init, answer) = (lengths as u32 as usize, (lengths >> 32) as usize);
        (init > 0).then(|| {
            (
                self.bytes(head::INIT_BYTES, init),
                self.bytes(head::ANSWER_BYTES, answer),
            )
        })
    }

    /// Notes them, and has the connection kept.
    ///
    /// # Errors
    /// EMSGSIZE when they are longer than any known; otherwise that nobody keeps it.
    pub fn keep_session(
        &self, init: &[u8], answer: &[u8], connection: BorrowedFd<'_>,
    ) -> Result<()> {
        let room = |from: usize, to: usize| (to - from) * 8;
        let fits = init.len() <= room(head::INIT_BYTES, head::ANSWER_BYTES)
            && answer.len() <= room(head::ANSWER_BYTES, head::SWAP);
        if !fits {
            return Err(crate::sys::Errno::MSGSIZE);
        }
        self.put_bytes(head::INIT_BYTES, init);
        self.put_bytes(head::ANSWER_BYTES, answer);
        let lengths = init.len() as u64 | (answer.len() as u64) << 32;
        self.words[head::INIT].store(lengths, Ordering::Release);
        handover::send(&self.keeper, [message::CONNECTION, 0, 0], Some(connection))
    }

    /// Says that this server has gone on with the session.
    pub fn tell_ready(&self) {
        if let Err(e) = handover::send(&self.keeper, [message::READY, 0, 0], None) {
            tracing::warn!("nobody keeps the mount if this process dies: {e}");
        }
    }

    /// Notes a rename that is about to happen. The caller keeps others from doing the same; it is
    /// over when the result is dropped, with the names noted where they are then.
    pub fn rename(&self, from: (u64, &[u8]), to: (u64, &[u8]), exchange: bool) -> Renaming<'_> {
        let word = |n: usize| &self.words[head::SWAP + n];
        word(1).store(from.0, Ordering::Release);
        word(2).store(to.0, Ordering::Release);
        let lengths = from.1.len() as u64 | (to.1.len() as u64) << 16;
        word(3).store(lengths | u64::from(exchange) << 32, Ordering::Release);
        word(4).store(self.exchanging(), Ordering::Release);
        self.put_bytes(head::SWAP_FROM, from.1);
        self.put_bytes(head::SWAP_TO, to.1);
        word(0).store(1, Ordering::Release);
        Renaming(self)
    }

    /// The rename that was under way when the last server ended.
    pub fn unfinished_rename(&self) -> Option<Swap> {
        let word = |n: usize| self.words[head::SWAP + n].load(Ordering::Acquire);
        (word(0) == 1).then(|| {
            let lengths = word(3);
            let (from, to) = (lengths as u16, (lengths >> 16) as u16);
            Swap {
                from: (word(1), self.bytes(head::SWAP_FROM, usize::from(from))),
                to: (word(2), self.bytes(head::SWAP_TO, usize::from(to))),
                exchange: lengths >> 32 & 1 != 0,
                request: word(4),
            }
        })
    }

    /// The rename is settled; of an exchange, that it was found done.
    pub fn settle_rename(&self, swap: &Swap, done: bool) {
        if swap.exchange && done {
            self.was_exchanged(swap.request);
        }
        self.end_rename();
    }

    fn end_rename(&self) {
        self.words[head::SWAP].store(0, Ordering::Release);
    }
}

/// A rename under way.
#[derive(Debug)]
pub(crate) struct Renaming<'a>(&'a Journal);

impl Drop for Renaming<'_> {
    fn drop(&mut self) {
        self.0.end_rename();
    }
}

/// The kind with this number.
fn kind_of(number: u8) -> FileKind {
    use FileKind as K;
    let kinds = [
        K::Regular,
        K::Directory,
        K::Symlink,
        K::CharDevice,
        K::BlockDevice,
        K::Fifo,
        K::Socket,
    ];
    let found = kinds.into_iter().find(|kind| *kind as u8 == number);
    found.unwrap_or(K::Regular)
}
