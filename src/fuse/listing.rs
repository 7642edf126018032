//! Listings with attributes.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use fuser::{Generation, INodeNo, ReplyDirectoryPlus};

use crate::union::DirEntry;

use super::convert;
use super::filesystem::UnionFs;
use super::policy::NEVER;

impl UnionFs {
    /// Adds an entry with its attributes; true when the buffer is full.
    pub(super) fn add_plus(
        &self, dir: u64, entry: &DirEntry, reply: &mut ReplyDirectoryPlus,
    ) -> bool {
        let name = OsStr::from_bytes(&entry.name);
        let mut nameless = convert::negative_attr();
        nameless.ino = INodeNo(entry.ino);
        nameless.kind = convert::kind(entry.kind);
        if &*entry.name == b"." || &*entry.name == b".." {
            // The kernel takes no reference for these two.
            let ino = INodeNo(entry.ino);
            return reply.add(ino, entry.next, name, &NEVER, &nameless, Generation(0));
        }
        match self.union.lookup(dir, &entry.name) {
            Ok(Some(found)) if found.id != found.attr.ino => {
                self.union.forget(found.id, 1);
                self.add_listed_only(entry, reply)
            }
            Ok(Some(found)) => {
                let ttl = self
                    .policy
                    .attr_of(&found)
                    .min(self.policy.entry_of(&found));
                let attr = self.policy.attributes(&found.attr, found.id);
                let generation = Generation(found.generation);
                let full = reply.add(INodeNo(found.id), entry.next, name, &ttl, &attr, generation);
                if full {
                    // It did not fit, so the kernel will not know of it.
                    self.union.forget(found.id, 1);
                }
                full
            }
            // Gone since the listing.
            Ok(None) => false,
            // Listed, but without an answer for its attributes.
            Err(_) => self.add_listed_only(entry, reply),
        }
    }

    /// Adds an entry that the kernel shall list and look up before any use; true when the buffer is
    /// full.
    ///
    /// fuser has one number for the node, its attributes and the listing. This is the listing's; that
    /// it is taken for a node is prevented by a size that no file has. The kernel lists the name all
    /// the same, and then forgets a node that it never knew.
    fn add_listed_only(&self, entry: &DirEntry, reply: &mut ReplyDirectoryPlus) -> bool {
        let mut attr = convert::negative_attr();
        attr.ino = INodeNo(entry.ino);
        attr.kind = convert::kind(entry.kind);
        attr.size = u64::MAX;
        let name = OsStr::from_bytes(&entry.name);
        let generation = Generation(0);
        let full = reply.add(attr.ino, entry.next, name, &NEVER, &attr, generation);
        if !full {
            self.union.expect_stray_forget(entry.ino);
        }
        full
    }
}
