//! The locks, maps and counters that threads of the core share.
//!
//! With the feature `shuttle`, which only tests turn on, they are those of a scheduler that decides at
//! each of them which thread goes on (`tests/core/explorer.rs`). Whoever uses one of them needs no
//! other word for it than these.

#[cfg(not(feature = "shuttle"))]
mod used {
    pub(crate) use std::sync::atomic;
    #[cfg(debug_assertions)]
    pub(crate) use std::thread_local as per_thread;

    pub(crate) use dashmap::DashMap;
    pub(crate) use dashmap::mapref::entry::Entry as Slot;
    pub(crate) use parking_lot::{Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};
}

#[cfg(feature = "shuttle")]
mod used {
    pub(crate) use shuttle::sync::atomic;
    pub(crate) use shuttle::thread_local as per_thread;

    pub(crate) use shuttle_dashmap::DashMap;
    pub(crate) use shuttle_dashmap::mapref::entry::Entry as Slot;
    pub(crate) use shuttle_parking_lot::{
        Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard,
    };
}

pub(crate) use used::*;
