//! For tests: whether what is known of names is right.

use crate::sys::sync::atomic::Ordering;
use std::sync::Weak;

use smallvec::SmallVec;

use crate::sys::Result;

use super::Union;
use super::lookup::dir_of;

impl Union {
    /// Forgets all listings. Public for tests.
    ///
    /// Precondition: the tree lock is written, or nobody else is about.
    #[doc(hidden)]
    pub fn forget_known_names(&self) {
        let ring: Vec<_> = self.known_names.ring.lock().drain(..).collect();
        for inode in ring.iter().filter_map(Weak::upgrade) {
            if let Some(dir) = &inode.dir {
                dir.in_turns.store(false, Ordering::Release);
                dir.forget_names();
            }
        }
    }

    /// Reads all directories again whose listing is known.
    ///
    /// # Errors
    /// Says what differs, for tests.
    #[doc(hidden)]
    pub fn check_known_names(&self) -> std::result::Result<usize, String> {
        let ring: Vec<_> = self.known_names.ring.lock().iter().cloned().collect();
        let mut checked = 0;
        for inode in ring.iter().filter_map(Weak::upgrade) {
            let Ok(dir) = dir_of(&inode) else { continue };
            let _tree = self.tree.read();
            let _names = dir.read_names();
            let Some(known) = dir.with_lasting_names(Clone::clone) else {
                continue;
            };
            if inode.is_unlinked() {
                continue;
            }
            let stack = inode.stack();
            let fds = stack.iter().map(|part| self.dir_fd(&inode, part.layer));
            let read = fds
                .collect::<Result<SmallVec<[_; 4]>>>()
                .and_then(|fds| self.read_names(&stack, &fds))
                .map_err(|e| format!("{e} for inode {}", inode.ino()))?;
            if let Some(difference) = known.difference(&read) {
                return Err(format!("inode {}: {difference}", inode.ino()));
            }
            checked += 1;
        }
        Ok(checked)
    }
}
