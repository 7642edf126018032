//! What the kernel has to be told: what of a node changed without its knowledge.

use std::fmt;
use std::sync::OnceLock;

/// What of a node the kernel must not trust any longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum What {
    /// Its attributes.
    Attributes,
    /// These, and its pages: of a directory, the listing. What is not written back is before.
    Contents,
}

/// Takes the id of a node, and what of it is stale.
pub(crate) type Listener = Box<dyn Fn(u64, What) + Send + Sync>;

/// The way to whoever tells the kernel; nobody, until the union is mounted.
#[derive(Default)]
pub(super) struct Stale(OnceLock<Listener>);

impl Stale {
    /// Sends what is told from now on to `listener`; the first one stays.
    pub fn listen(&self, listener: Listener) {
        let _ = self.0.set(listener);
    }

    /// Tells of a node. No lock may be held: the kernel may have requests of its own first.
    pub fn tell(&self, id: u64, what: What) {
        if let Some(listener) = self.0.get() {
            listener(id, what);
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
