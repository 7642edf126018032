//! Inode numbers: one number for each real object of any layer.

use crate::sys::sync::atomic::{AtomicU64, Ordering};

use crate::sys::sync::DashMap;
use crate::sys::sync::RwLock;
use crate::sys::sync::Slot as Entry;

use super::journal::{self, Journal};

/// Bits of a number that hold the real inode number; the filesystem's index is above.
const INO_BITS: u32 = 48;
/// Filesystems that get a prefix of their own; the objects of any further one are in the overflow.
const MAX_PREFIXED: usize = 1 << 13;
/// First number for objects that the scheme cannot express.
const OVERFLOW_BASE: u64 = 1 << 62;
/// First node id of objects that cannot have their number as node id.
const FRESH_BASE: u64 = 1 << 63;

/// Maps (device, real inode number) to a number that is unique in the union: the real number
/// itself on the first filesystem, with the filesystem's index above it on others.
#[derive(Debug)]
pub(crate) struct Numbers {
    devices: RwLock<Vec<u64>>,
    overflow: DashMap<(u64, u64), u64>,
    /// The object that has a number of the overflow.
    taken: DashMap<u64, (u64, u64)>,
    next_fresh: AtomicU64,
}

impl Numbers {
    /// Knows the devices of the layers, so that the numbers follow the order of the options; after
    /// those that a server before has given an index, which stay what they were.
    pub fn new(devices: impl IntoIterator<Item = u64>) -> Self {
        let known = journal::active().map_or_else(Vec::new, Journal::devices);
        let numbers = Self {
            devices: RwLock::new(Vec::new()),
            overflow: DashMap::with_shard_amount(4),
            taken: DashMap::with_shard_amount(4),
            next_fresh: AtomicU64::new(FRESH_BASE),
        };
        for dev in known.into_iter().chain(devices) {
            numbers.index(dev);
        }
        if let Some(journal) = journal::active() {
            numbers.skip(journal.last_fresh());
        }
        numbers
    }

    fn index(&self, dev: u64) -> usize {
        let known = self.devices.read().iter().position(|&d| d == dev);
        known.unwrap_or_else(|| {
            let mut devices = self.devices.write();
            devices.iter().position(|&d| d == dev).unwrap_or_else(|| {
                if let Some(journal) = journal::active() {
                    journal.note_device(devices.len(), dev);
                }
                devices.push(dev);
                devices.len() - 1
            })
        })
    }

    /// The number of a real object. Never 0, and never 1, which is the union's root.
    pub fn of(&self, dev: u64, ino: u64) -> u64 {
        let index = self.index(dev);
        let number = ((index as u64) << INO_BITS) | ino;
        if ino >> INO_BITS == 0 && index < MAX_PREFIXED && number > 1 {
            return number;
        }
        let next = || self.overflow_number(dev, ino, index as u64);
        *self.overflow.entry((dev, ino)).or_insert_with(next)
    }

    /// A number of the overflow: made of the object's own, so that it is the same at the next mount,
    /// unless another object has it already.
    fn overflow_number(&self, dev: u64, ino: u64, index: u64) -> u64 {
        // Fixed odd factors spread what differs in few bits.
        let mixed = ino.wrapping_mul(0x9e37_79b9_7f4a_7c15)
            ^ (index + 1)
                .wrapping_mul(0xc2b2_ae3d_27d4_eb4f)
                .rotate_left(31);
        let mut number = OVERFLOW_BASE | (mixed ^ mixed >> 29) & (OVERFLOW_BASE - 1);
        loop {
            match self.taken.entry(number) {
                Entry::Vacant(slot) => {
                    slot.insert((dev, ino));
                    return number;
                }
                Entry::Occupied(slot) if *slot.get() == (dev, ino) => return number,
                Entry::Occupied(_) => {
                    number = OVERFLOW_BASE | (number + 1) & (OVERFLOW_BASE - 1);
                }
            }
        }
    }

    /// A node id that is no object's number.
    pub fn fresh(&self) -> u64 {
        let id = self.next_fresh.fetch_add(1, Ordering::Relaxed);
        if let Some(journal) = journal::active() {
            journal.note_fresh(id);
        }
        id
    }

    /// Says that a node id is in use.
    pub fn skip(&self, id: u64) {
        if id >= FRESH_BASE {
            self.next_fresh.fetch_max(id + 1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_unique_and_stable() {
        let numbers = Numbers::new([10, 20]);
        assert_eq!(numbers.of(10, 7), 7);
        assert_eq!(numbers.of(20, 7), (1 << 48) | 7);
        assert_eq!(numbers.of(30, 7), (2 << 48) | 7);
        let large = numbers.of(10, 1 << 50);
        assert_eq!(numbers.of(10, 1 << 50), large);
        assert_ne!(numbers.of(20, 1 << 50), large);
        let later = Numbers::new([10, 20]);
        assert_ne!(later.of(20, 1 << 50), large);
        assert_eq!(later.of(10, 1 << 50), large);
        assert!((1 << 62..1 << 63).contains(&large));
        let many: std::collections::HashSet<u64> =
            (0..10_000).map(|n| numbers.of(10, (1 << 48) + n)).collect();
        assert_eq!(many.len(), 10_000);
        assert!(numbers.of(10, 1) > 1);
        assert!(numbers.of(10, 0) > 1);
        assert_ne!(numbers.fresh(), numbers.fresh());
    }
}
