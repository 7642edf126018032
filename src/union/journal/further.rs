//! What goes on over all servers of a mount beside its nodes: numbers that must not come twice, and
//! exchanges that may have been done without an answer.

use std::cell::Cell as StdCell;
use std::sync::atomic::Ordering;

use super::{Cell, FILE_SHIFT, FURTHER, Journal, OPEN, WRITTEN, active, head, node};

/// Serials are noted as used in blocks of so many, so that most cost a look only.
const BLOCK: u64 = 1 << 10;
/// Each server numbers opens from its own number on, above so many bits.
const OPENS_BITS: u32 = 32;
/// In [`head::EXCHANGES`], beside the number of the request, which is even: it was done.
const DONE: u64 = 1;

thread_local! {
    /// The exchange that this thread does: its word of the head, or 0.
    static DOING: StdCell<usize> = const { StdCell::new(0) };
}

impl Journal {
    /// The first serial that no server has used.
    pub fn next_serial(&self) -> u64 {
        self.words[head::SERIALS].load(Ordering::Acquire)
    }

    /// Notes that a serial is used.
    pub(super) fn note_serial(&self, serial: u64) {
        let serials = &self.words[head::SERIALS];
        if serial >= serials.load(Ordering::Acquire) {
            serials.fetch_max(serial + BLOCK, Ordering::AcqRel);
        }
    }

    /// The highest node id beyond the numbers of objects that any server gave out; 0 for none.
    pub fn last_fresh(&self) -> u64 {
        self.words[head::FRESH].load(Ordering::Acquire)
    }

    /// Notes that such an id is given out.
    pub fn note_fresh(&self, id: u64) {
        self.words[head::FRESH].fetch_max(id, Ordering::AcqRel);
    }

    /// What this server's numbers of opens begin above: no other server's are there.
    pub fn first_open(&self) -> u64 {
        let servers = self.words[head::SERVERS].load(Ordering::Acquire);
        // A handle has 62 bits for it.
        (servers & 0x3fff_ffff) << OPENS_BITS
    }

    /// Devices of objects, in the order of their indexes.
    pub fn devices(&self) -> Vec<u64> {
        let count = self.words[head::DEVICES].load(Ordering::Acquire) as usize;
        let words = self.words[head::DEVICES + 1..head::DEVICES_END].iter();
        words
            .take(count)
            .map(|w| w.load(Ordering::Acquire))
            .collect()
    }

    /// Notes that a device has this index. One device at a time; beyond what there is room for, the
    /// next server gives the indexes anew.
    pub fn note_device(&self, index: usize, device: u64) {
        let at = head::DEVICES + 1 + index;
        if at < head::DEVICES_END {
            self.words[at].store(device, Ordering::Release);
            self.words[head::DEVICES].fetch_max(index as u64 + 1, Ordering::AcqRel);
        }
    }

    /// Notes that the request with this number is for an exchange, until the result is dropped, which
    /// is to be when it was answered.
    pub fn begin_exchange(&self, request: u64) -> Exchanging<'_> {
        let slots = || head::EXCHANGES..head::EXCHANGES_END;
        let at = |slot: usize| self.words[slot].load(Ordering::Acquire);
        loop {
            // Sent again, it has its word already. One of a request that was answered just when its
            // server ended stays, and is the oldest when there are too many.
            let known = slots().find(|&slot| at(slot) & !DONE == request);
            let free = || slots().find(|&slot| at(slot) == 0);
            let oldest = || slots().min_by_key(|&slot| at(slot));
            let Some(slot) = known.or_else(free).or_else(oldest) else {
                return Exchanging(self, 0, request);
            };
            let before = at(slot);
            if before & !DONE == request {
                return Exchanging(self, slot, request);
            }
            let order = (Ordering::AcqRel, Ordering::Acquire);
            let taken = self.words[slot].compare_exchange(before, request, order.0, order.1);
            if taken.is_ok() {
                return Exchanging(self, slot, request);
            }
        }
    }
}

impl Journal {
    /// The number of the request that this thread answers, if it is for an exchange; else 0.
    pub(super) fn exchanging(&self) -> u64 {
        match DOING.get() {
            0 => 0,
            slot => self.words[slot].load(Ordering::Acquire) & !DONE,
        }
    }

    /// Notes that the exchange that the last server was asked for by this request was found done.
    pub(super) fn was_exchanged(&self, request: u64) {
        let slots = &self.words[head::EXCHANGES..head::EXCHANGES_END];
        let slot = slots.iter().find(|w| w.load(Ordering::Acquire) == request);
        if let Some(slot) = slot.filter(|_| request != 0) {
            slot.fetch_or(DONE, Ordering::AcqRel);
        }
    }
}

/// By what the kernel has a node open.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct OpenFile {
    /// The id under which the kernel has a file; `None` while data go through us.
    pub id: Option<u32>,
    /// It is a file of the upper.
    pub written: bool,
}

impl OpenFile {
    /// What the word says that has it.
    pub(super) fn of(what: u64) -> Option<Self> {
        let id = (what >> FILE_SHIFT) as u32;
        (what & OPEN != 0).then_some(Self {
            id: (id != 0).then_some(id),
            written: what & WRITTEN != 0,
        })
    }
}

/// A further node id of an object.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Further {
    /// Where it is noted.
    pub cell: Cell,
    pub id: u64,
    /// The object's.
    pub serial: u64,
    /// As for [`super::Noted::open`].
    pub open: Option<OpenFile>,
}

impl Journal {
    /// Notes that an object has another node id, before that is given out.
    pub fn add_further(&self, id: u64, serial: u64) -> Cell {
        let Some(cell) = self.take(1) else {
            return Cell::default();
        };
        self.store(cell, node::ID, id);
        self.store(cell, node::SERIAL, serial);
        self.store(cell, node::WHAT, 0);
        self.store(cell, node::TAG, FURTHER);
        Cell(cell)
    }

    /// It has it no more.
    pub fn remove_further(&self, Cell(cell): Cell) {
        if cell != 0 {
            self.store(cell, node::TAG, 1);
            self.give_back(cell, 1);
        }
    }

    /// All such ids, in the order in which they were given.
    pub fn further(&self) -> Vec<Further> {
        let mut all = Vec::new();
        self.for_each_record(|cell, _, tag| {
            if tag == FURTHER {
                all.push(Further {
                    cell: Cell(cell),
                    id: self.load(cell, node::ID),
                    serial: self.load(cell, node::SERIAL),
                    open: OpenFile::of(self.load(cell, node::WHAT)),
                });
            }
        });
        all.sort_unstable_by_key(|further| further.id);
        all
    }

    /// Notes by what the kernel may have a node open: before it is, after it is no more.
    pub fn set_open(&self, Cell(cell): Cell, open: Option<OpenFile>) {
        if cell == 0 {
            return;
        }
        let new = open.map_or(0, |open| {
            let id = u64::from(open.id.unwrap_or(0)) << FILE_SHIFT;
            id | OPEN | if open.written { WRITTEN } else { 0 }
        });
        let before = OPEN | WRITTEN | u64::MAX << FILE_SHIFT;
        let what = self.word(cell, node::WHAT);
        let change = |what| Some(what & !before | new);
        // It always gives another value, so it cannot fail.
        let _ = what.fetch_update(Ordering::AcqRel, Ordering::Acquire, change);
    }

    /// Ids of files that the kernel has, up to this one, are those of servers before the last one, and
    /// closed.
    pub fn closed_files(&self) -> u64 {
        self.words[head::FILES].load(Ordering::Acquire)
    }

    /// Notes that they are.
    pub fn note_closed_files(&self, last: u64) {
        self.words[head::FILES].store(last, Ordering::Release);
    }
}

/// An exchange that was not answered.
#[derive(Debug)]
pub(crate) struct Exchanging<'a>(&'a Journal, usize, u64);

impl Exchanging<'_> {
    /// True when it is known to be done.
    pub fn is_done(&self) -> bool {
        self.1 != 0 && self.0.words[self.1].load(Ordering::Acquire) == self.2 | DONE
    }

    /// Does it on this thread.
    pub fn run<T>(&self, work: impl FnOnce() -> T) -> T {
        DOING.set(self.1);
        let done = work();
        DOING.set(0);
        done
    }
}

impl Drop for Exchanging<'_> {
    fn drop(&mut self) {
        let order = (Ordering::AcqRel, Ordering::Acquire);
        for value in [self.2, self.2 | DONE] {
            if self.1 != 0 {
                let _ = self.0.words[self.1].compare_exchange(value, 0, order.0, order.1);
            }
        }
    }
}

/// Notes that the exchange that this thread does is done on disk; before anything else says so.
pub(crate) fn note_exchanged() {
    let slot = DOING.get();
    if slot != 0
        && let Some(journal) = active()
    {
        journal.words[slot].fetch_or(DONE, Ordering::AcqRel);
    }
}
