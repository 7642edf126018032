//! Listings of directories that are being read.
//!
//! The kernel reads a directory in pieces, without telling when it begins or ends. A piece that
//! starts at the beginning makes a new listing; those that follow are taken from it. Positions mean
//! the same in every listing of a directory, so it may be dropped at any time.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;

use super::types::DirEntry;

/// Listings that are kept whatever their size, so that no reader of a very large directory has it
/// made anew for each piece.
const ALWAYS: usize = 4;
/// Listings that are kept at most.
const MOST: usize = 64;
/// Entries in all listings together above which only [`ALWAYS`] are kept.
const ENTRIES: usize = 100_000;

type Listing = Arc<[DirEntry]>;

/// See the module text. A leaf of the lock order.
#[derive(Debug, Default)]
pub(super) struct Recent(Mutex<VecDeque<(u64, Listing)>>);

impl Recent {
    /// The listing of the directory with this serial.
    pub fn get(&self, serial: u64) -> Option<Listing> {
        let kept = self.0.lock();
        let found = kept.iter().find(|(of, _)| *of == serial);
        found.map(|(_, listing)| Arc::clone(listing))
    }

    /// Keeps a listing, in the place of an older one of the same directory.
    pub fn keep(&self, serial: u64, listing: &Listing) {
        let mut kept = self.0.lock();
        kept.retain(|(of, _)| *of != serial);
        kept.push_back((serial, Arc::clone(listing)));
        let mut entries: usize = kept.iter().map(|(_, listing)| listing.len()).sum();
        while kept.len() > ALWAYS && (kept.len() > MOST || entries > ENTRIES) {
            let oldest = kept.pop_front();
            entries -= oldest.map_or(0, |(_, listing)| listing.len());
        }
    }

    /// Lets go of the listing of a directory that was read to the end, or is gone.
    pub fn drop(&self, serial: u64) {
        self.0.lock().retain(|(of, _)| *of != serial);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::name::NameBuf;
    use crate::sys::FileKind;

    fn listing(entries: usize) -> Listing {
        let entry = |next: u64| DirEntry {
            name: NameBuf::from_slice(b"name"),
            ino: next,
            kind: FileKind::Regular,
            next,
        };
        (0..entries as u64).map(entry).collect()
    }

    #[test]
    fn few_large_or_many_small_listings_are_kept() {
        let recent = Recent::default();
        let (large, small) = (listing(ENTRIES), listing(1));
        for serial in 0..10 {
            recent.keep(serial, &large);
        }
        let kept = |range: std::ops::Range<u64>| range.filter(|&s| recent.get(s).is_some()).count();
        assert_eq!(kept(0..10), ALWAYS);
        assert!(recent.get(9).is_some());
        for serial in 10..200 {
            recent.keep(serial, &small);
        }
        assert_eq!(kept(0..200), MOST);
        recent.drop(199);
        assert!(recent.get(199).is_none() && kept(0..200) == MOST - 1);
    }
}
