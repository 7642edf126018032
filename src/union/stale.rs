//! What the kernel has to be told: attributes of a node that changed without its knowledge.

use std::fmt;
use std::sync::OnceLock;

/// Takes the id of a node whose attributes the kernel must not trust any longer.
pub(crate) type Listener = Box<dyn Fn(u64) + Send + Sync>;

/// The way to whoever tells the kernel; nobody, until the union is mounted.
#[derive(Default)]
pub(super) struct Stale(OnceLock<Listener>);

impl Stale {
    /// Sends what is told from now on to `listener`; the first one stays.
    pub fn listen(&self, listener: Listener) {
        let _ = self.0.set(listener);
    }

    /// Tells of a node. No lock may be held: the kernel may have requests of its own first.
    pub fn tell(&self, id: u64) {
        if let Some(listener) = self.0.get() {
            listener(id);
        }
    }
}

impl fmt::Debug for Stale {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Stale")
            .field(&self.0.get().is_some())
            .finish()
    }
}
