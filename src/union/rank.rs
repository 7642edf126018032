//! The tree lock, that of layer changes, and the assertion of the lock order in debug builds.

use std::cell::Cell;

use crate::sys::sync::{Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// Ranks of the module text of [`super`].
#[derive(Clone, Copy, Debug, Eq, PartialEq, Ord, PartialOrd)]
pub(crate) enum Rank {
    Layers = 0,
    Copying = 1,
    Tree = 2,
    Names = 3,
    Links = 4,
}

#[cfg(debug_assertions)]
mod held {
    use super::Rank;
    use crate::sys::sync::per_thread;
    use std::cell::RefCell;

    per_thread! {
        #[allow(clippy::missing_const_for_thread_local)] // the scheduler's takes no other
        static HELD: RefCell<Vec<Rank>> = RefCell::new(Vec::new());
    }

    pub(super) fn push(rank: Rank, second: bool) {
        HELD.with(|held| {
            let mut held = held.borrow_mut();
            let bad = held.iter().any(|&h| h > rank || (h == rank && !second));
            debug_assert!(!bad, "lock of rank {rank:?} taken while {held:?} are held");
            held.push(rank);
        });
    }

    pub(super) fn pop(rank: Rank) {
        HELD.with(|held| {
            let mut held = held.borrow_mut();
            if let Some(at) = held.iter().rposition(|&h| h == rank) {
                held.remove(at);
            }
        });
    }
}

/// Stands for a held lock of some rank on this thread.
#[derive(Debug)]
pub(crate) struct Ranked {
    #[cfg(debug_assertions)]
    rank: Rank,
    /// Bound to the thread that made it, as lock guards are.
    _thread: std::marker::PhantomData<*const ()>,
}

impl Ranked {
    /// Asserts that a lock of `rank` may be taken now; to be called before taking it.
    pub fn enter(rank: Rank) -> Self {
        Self::enter_as(rank, false)
    }

    /// The same for the second of two locks of one rank, taken in their own order.
    pub fn enter_second(rank: Rank) -> Self {
        Self::enter_as(rank, true)
    }

    #[cfg_attr(not(debug_assertions), allow(unused_variables))]
    fn enter_as(rank: Rank, second: bool) -> Self {
        #[cfg(debug_assertions)]
        held::push(rank, second);
        Self {
            #[cfg(debug_assertions)]
            rank,
            _thread: std::marker::PhantomData,
        }
    }
}

#[cfg(debug_assertions)]
impl Drop for Ranked {
    fn drop(&mut self) {
        held::pop(self.rank);
    }
}

/// [`super::Union::restacking`].
#[derive(Debug, Default)]
pub(crate) struct LayersLock(Mutex<()>);

/// The right to change the layers.
#[derive(Debug)]
pub(crate) struct ChangesLayers<'a> {
    _guard: MutexGuard<'a, ()>,
    _rank: Ranked,
}

impl LayersLock {
    pub fn lock(&self) -> ChangesLayers<'_> {
        let rank = Ranked::enter(Rank::Layers);
        ChangesLayers {
            _guard: self.0.lock(),
            _rank: rank,
        }
    }
}

/// [`super::Union::tree`].
#[derive(Debug, Default)]
pub(crate) struct TreeLock(RwLock<()>);

/// The tree lock, held for reading: no directory moves.
#[derive(Debug)]
pub(crate) struct TreeRead<'a> {
    _guard: RwLockReadGuard<'a, ()>,
    _rank: Ranked,
}

/// The tree lock, held for writing.
#[derive(Debug)]
pub(crate) struct TreeWrite<'a> {
    _guard: RwLockWriteGuard<'a, ()>,
    _rank: Ranked,
}

impl TreeLock {
    pub fn read(&self) -> TreeRead<'_> {
        let rank = Ranked::enter(Rank::Tree);
        TreeRead {
            _guard: self.0.read(),
            _rank: rank,
        }
    }

    /// The same if nobody writes it or waits to; with any lock held, as this never waits.
    pub fn try_read(&self) -> Option<RwLockReadGuard<'_, ()>> {
        self.0.try_read()
    }

    /// True while it is written.
    pub fn is_written(&self) -> bool {
        self.0.is_locked_exclusive()
    }

    pub fn write(&self) -> TreeWrite<'_> {
        let rank = Ranked::enter(Rank::Tree);
        TreeWrite {
            _guard: self.0.write(),
            _rank: rank,
        }
    }
}

/// A directory's names, held for reading.
#[derive(Debug)]
pub(crate) struct NamesRead<'a> {
    _guard: RwLockReadGuard<'a, ()>,
    _rank: Ranked,
}

/// A directory's names, held for writing.
///
/// Whoever holds it says what came of its change ([`super::known_names`]); else what is known of the
/// names is dropped with it.
#[derive(Debug)]
pub(crate) struct NamesWrite<'a> {
    dir: &'a super::inode::Dir,
    settled: Cell<bool>,
    _guard: RwLockWriteGuard<'a, ()>,
    _rank: Ranked,
}

impl<'a> NamesWrite<'a> {
    fn new(dir: &'a super::inode::Dir, rank: Ranked) -> Self {
        Self {
            dir,
            settled: Cell::new(false),
            _guard: dir.names.write(),
            _rank: rank,
        }
    }

    /// The directory.
    pub fn dir(&self) -> &'a super::inode::Dir {
        self.dir
    }

    /// Says that what is known of the names is right, until the next change.
    pub fn settle(&self) {
        self.settled.set(true);
    }

    /// Says that it may not be.
    pub fn unsettle(&self) {
        self.settled.set(false);
    }
}

impl Drop for NamesWrite<'_> {
    fn drop(&mut self) {
        if !self.settled.get() {
            self.dir.forget_names();
        }
    }
}

impl super::inode::Dir {
    pub fn read_names(&self) -> NamesRead<'_> {
        let rank = Ranked::enter(Rank::Names);
        NamesRead {
            _guard: self.names.read(),
            _rank: rank,
        }
    }

    pub fn write_names(&self) -> NamesWrite<'_> {
        NamesWrite::new(self, Ranked::enter(Rank::Names))
    }

    /// With those of the parent held.
    pub fn read_second_names(&self) -> NamesRead<'_> {
        let rank = Ranked::enter_second(Rank::Names);
        NamesRead {
            _guard: self.names.read(),
            _rank: rank,
        }
    }

    /// The second of two directories, ordered by serial, with the tree lock written.
    pub fn write_second_names(&self) -> NamesWrite<'_> {
        NamesWrite::new(self, Ranked::enter_second(Rank::Names))
    }
}

#[cfg(all(test, debug_assertions, not(feature = "shuttle")))]
mod tests {
    use super::*;

    #[test]
    fn the_layers_change_before_anything_else_is_locked() {
        let (layers, tree) = (LayersLock::default(), TreeLock::default());
        let changes = layers.lock();
        drop(tree.write());
        drop(changes);
        let _tree = tree.read();
        let too_late = || drop(layers.lock());
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(too_late));
        assert!(result.is_err(), "taken under the tree lock");
    }
}
