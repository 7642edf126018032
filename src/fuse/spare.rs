//! How many of the threads that read requests may do something else meanwhile.

use std::sync::atomic::{AtomicUsize, Ordering};

/// A count of them; at least one always reads.
#[derive(Debug)]
pub(super) struct Spare {
    left: AtomicUsize,
}

/// One of them, given back when dropped.
#[derive(Debug)]
pub(super) struct Taken<'a>(&'a Spare);

impl Spare {
    /// Half of `threads`; none of one.
    pub fn of(threads: usize) -> Self {
        Self {
            left: AtomicUsize::new(threads / 2),
        }
    }

    /// Takes one, if any is left.
    pub fn take(&self) -> Option<Taken<'_>> {
        let less = |left: usize| left.checked_sub(1);
        self.left
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, less)
            .is_ok()
            .then_some(Taken(self))
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        self.0.left.fetch_add(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::Spare;

    #[test]
    fn half_of_the_threads_are_spared() {
        assert!(Spare::of(1).take().is_none());
        let spare = Spare::of(4);
        let (first, second) = (spare.take(), spare.take());
        assert!(first.is_some() && second.is_some() && spare.take().is_none());
        drop(first);
        assert!(spare.take().is_some() && second.is_some());
    }
}
