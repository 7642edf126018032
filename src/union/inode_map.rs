//! The inodes by node id. The id is in the inode, so an entry is one word, which for a million files
//! makes a difference.

use std::hash::BuildHasher;
use std::sync::Arc;

use crate::sys::sync::RwLock;
use hashbrown::{DefaultHashBuilder, HashTable};

use super::inode::Inode;

/// Parts with locks of their own.
const SHARDS: usize = 32;

type Shard = RwLock<HashTable<Arc<Inode>>>;

/// See the module text. Its locks are leaves of the lock order.
#[derive(Debug)]
pub(super) struct InodeMap {
    shards: [Shard; SHARDS],
    hasher: DefaultHashBuilder,
}

impl InodeMap {
    /// An empty map.
    pub fn new() -> Self {
        Self {
            shards: std::array::from_fn(|_| Shard::default()),
            hasher: DefaultHashBuilder::default(),
        }
    }

    fn place(&self, id: u64) -> (u64, &Shard) {
        let hash = self.hasher.hash_one(id);
        // The table itself uses the lowest and the topmost bits.
        (hash, &self.shards[(hash >> 40) as usize % SHARDS])
    }

    /// The inode with an id.
    pub fn get(&self, id: u64) -> Option<Arc<Inode>> {
        let (hash, shard) = self.place(id);
        let shard = shard.read();
        shard.find(hash, |inode| inode.id == id).cloned()
    }

    /// True when there is an inode with this id.
    pub fn contains(&self, id: u64) -> bool {
        let (hash, shard) = self.place(id);
        shard.read().find(hash, |inode| inode.id == id).is_some()
    }

    /// Gives `found` the inode with an id, which cannot be removed meanwhile, or adds what `make`
    /// makes.
    pub fn with<T>(
        &self, id: u64, found: impl FnOnce(&Arc<Inode>) -> T,
        make: impl FnOnce() -> (Arc<Inode>, T),
    ) -> T {
        let (hash, shard) = self.place(id);
        let mut shard = shard.write();
        if let Some(inode) = shard.find(hash, |inode| inode.id == id) {
            return found(inode);
        }
        let (inode, result) = make();
        shard.insert_unique(hash, inode, |inode| self.hasher.hash_one(inode.id));
        result
    }

    /// Removes an inode if `condition` holds; returns whether it was.
    pub fn remove_if(&self, id: u64, condition: impl FnOnce(&Inode) -> bool) -> bool {
        let (hash, shard) = self.place(id);
        let mut shard = shard.write();
        let Ok(entry) = shard.find_entry(hash, |inode| inode.id == id) else {
            return false;
        };
        if !condition(entry.get()) {
            return false;
        }
        let (inode, _) = entry.remove();
        drop(shard);
        drop(inode);
        true
    }

    /// All of them.
    pub fn all(&self) -> Vec<Arc<Inode>> {
        let mut all = Vec::new();
        for shard in &self.shards {
            all.extend(shard.read().iter().cloned());
        }
        all
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.read().len()).sum()
    }

    /// Gives back memory that is not needed.
    pub fn shrink_to_fit(&self) {
        for shard in &self.shards {
            let hash = |inode: &Arc<Inode>| self.hasher.hash_one(inode.id);
            shard.write().shrink_to_fit(hash);
        }
    }
}
