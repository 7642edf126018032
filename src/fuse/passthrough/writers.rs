//! Files that the kernel has open for writing by themselves, not only while a user has: those that were just
//! made, or copied up. They keep the upper's filesystem from being made read-only.

use crate::union::Union;

use super::Passthrough;

impl Passthrough {
    /// Says that the kernel has such a file of a node.
    pub(super) fn note_writer(&self, union: &Union, id: u64) {
        self.writers.lock().push(id);
        union.expect_idle_files();
    }

    /// Lets go of files that are open for writing though no user has them open.
    pub fn drop_writers(&self, union: &Union) {
        let writers = std::mem::take(&mut *self.writers.lock());
        let mut open = Vec::new();
        for id in writers {
            let gone = self.nodes.remove_if(&id, |_, node| node.opens == 0);
            if gone.is_none() && self.nodes.contains_key(&id) {
                open.push(id);
            }
        }
        if !open.is_empty() {
            self.writers.lock().extend(open);
            union.expect_idle_files();
        }
    }
}
