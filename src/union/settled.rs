//! Whether all that leads to a file's data is on disk: its name in the upper, and that no record sends
//! elsewhere any more.
//!
//! To the user a file of a lower has had its name for ever, and fdatasync(2) is about its data alone. To
//! the upper's filesystem the name came with the copy-up, later than the file, and is none of fdatasync's business:
//! ext4 does not commit the transaction of a name, or of an attribute, for it (`i_datasync_tid`). So the
//! first flush of a file is a whole one, whatever is asked for.

use std::sync::atomic::{AtomicU8, Ordering};

/// See the module text; and whether the data are those of another file, as there are many inodes and a
/// byte more would make each of them larger.
#[derive(Debug, Default)]
pub(crate) struct Settled(AtomicU8);

const SETTLED: u8 = 1;
const BORROWED: u8 = 2;
/// Above the bits it is counted how often something changed, and the count wraps: it takes more changes
/// during one flush than there can be.
const CHANGE: u8 = 4;

/// A whole flush, under way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Flush(u8);

impl Settled {
    /// True when the data are those of another file.
    pub fn is_borrowed(&self) -> bool {
        self.0.load(Ordering::Acquire) & BORROWED != 0
    }

    /// The data are those of another file from now on.
    pub fn borrow(&self) {
        self.0.fetch_or(BORROWED, Ordering::AcqRel);
    }

    /// The file has its data itself, and nothing says so on disk yet.
    pub fn own(&self) {
        let next = |now: u8| Some((now & !(SETTLED | BORROWED)).wrapping_add(CHANGE));
        let _ = self
            .0
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, next);
    }

    /// What [`Self::end`] takes after a whole flush; `None` when none is needed.
    pub fn begin(&self) -> Option<Flush> {
        let now = self.0.load(Ordering::Acquire);
        (now & SETTLED == 0).then_some(Flush(now))
    }

    /// A whole flush that began then was done. What changed meanwhile may have come too late for it.
    pub fn end(&self, begun: Flush) {
        let (then, settled) = (begun.0, begun.0 | SETTLED);
        let _ = self
            .0
            .compare_exchange(then, settled, Ordering::AcqRel, Ordering::Acquire);
    }
}

#[cfg(test)]
mod tests {
    use super::Settled;

    #[test]
    fn a_change_during_the_flush_needs_another() {
        let settled = Settled::default();
        settled.borrow();
        let begun = settled.begin().unwrap();
        settled.own();
        assert!(!settled.is_borrowed());
        settled.end(begun);
        let again = settled.begin().unwrap();
        settled.end(again);
        assert!(settled.begin().is_none());
        settled.own();
        assert!(settled.begin().is_some());
    }

    #[test]
    fn whose_the_data_are_does_not_hang_on_the_count() {
        let settled = Settled::default();
        for _ in 0..300 {
            assert!(!settled.is_borrowed());
            settled.borrow();
            assert!(settled.is_borrowed());
            settled.own();
        }
    }
}
