//! Opening and making files, in each way of data that has opens.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use fuser::{FileHandle, FopenFlags, Generation, ReplyCreate, ReplyOpen, Request};

use crate::sys::{Errno, Result};
use crate::union::{Entry, Union, Work};

use super::again::{is_resent, made};
use super::convert::{caller, errno};
use super::filesystem::UnionFs;
use super::passthrough::{Opened, Opening, Passthrough};
use super::policy::NEVER;

impl UnionFs {
    /// The file that those read who opened the node before its data came to the upper.
    pub(super) fn old_file(&self, id: u64, handle: FileHandle) -> Option<Arc<OwnedFd>> {
        self.passthrough.as_ref()?.old_file(id, handle)
    }

    pub(super) fn open_file(&self, req: &Request, id: u64, flags: i32, reply: ReplyOpen) {
        let (opening, who) = (Opening::new(id, flags), caller(req));
        let passthrough = self.passthrough.clone();
        let syncs = passthrough.is_some() && opening.mode.write && flags & libc::O_DSYNC != 0;
        let takes = match opening.mode.write || opening.mode.truncate {
            true if syncs => Work::Long,
            true => self.union.work_to_change(opening.id, true),
            false => Work::Quick,
        };
        let flags = self.policy.open_flags(opening.mode.write);
        self.as_long_as(takes, move |union| {
            let opened = match &passthrough {
                Some(table) => table.open(union, opening, who, &reply),
                None => union
                    .open(opening.id, opening.mode, who)
                    .map(|()| through_us(union, flags)),
            };
            let settled = match (&opened, &passthrough) {
                (Ok(opened), Some(table)) if syncs => {
                    let settled = union.flush_once(id, number_of(opened.handle));
                    settled.inspect_err(|_| table.release(union, id, opened.handle))
                }
                _ => Ok(()),
            };
            match settled.and(opened) {
                Ok(Opened {
                    handle,
                    flags,
                    backing: Some(backing),
                }) => reply.opened_passthrough(handle, flags, backing.id()),
                Ok(opened) => reply.opened(opened.handle, opened.flags),
                Err(e) => reply.error(errno(e)),
            }
        });
    }

    pub(super) fn create_file(
        &self, req: &Request, parent: u64, name: &OsStr, mode: (u32, u32), flags: i32,
        reply: ReplyCreate,
    ) {
        let (mode, umask) = mode;
        let mut opening = Opening::new(0, flags);
        let resent = is_resent(req);
        // What was made before the request came again is told from what came behind the mount.
        let exclusive = flags & libc::O_EXCL != 0 || resent;
        let (name, who) = (name.as_bytes(), caller(req));
        let result = self.union.create(parent, name, mode, exclusive, who, umask);
        let made = made(&self.union, resent, parent, name, result);
        let entry = match self.policy.settle_made(&self.union, parent, made) {
            Ok(entry) => entry,
            Err(e) => return reply.error(errno(e)),
        };
        opening.id = entry.id;
        let opened = match &self.passthrough {
            Some(table) => open_made(table, &self.union, opening, &entry, &reply),
            None => Ok(through_us(
                &self.union,
                self.policy.open_flags(opening.mode.write),
            )),
        };
        let opened = match opened {
            Ok(opened) => opened,
            Err(e) => {
                self.union.forget(entry.id, 1);
                return reply.error(errno(e));
            }
        };
        let mut ttl = self
            .policy
            .attr_of(&entry)
            .min(self.policy.entry_of(&entry));
        let is_empty = entry.attr.stat.size == 0;
        if opening.maps && opened.backing.is_some() && !is_empty {
            // Its attributes were taken before it was opened. Where it is empty nobody can change it
            // through a mapping before the kernel was asked to extend it, and has dropped them.
            ttl = NEVER;
        }
        let attr = self.policy.attributes(&entry.attr, entry.id);
        let generation = Generation(entry.generation);
        let (handle, flags) = (opened.handle, opened.flags);
        match opened.backing {
            Some(backing) => {
                reply.created_passthrough(&ttl, &attr, generation, handle, flags, backing.id());
            }
            None => reply.created(&ttl, &attr, generation, handle, flags),
        }
    }
}

/// Bits of a file handle below the number of the open; [`super::passthrough`] uses them.
const HANDLE_BITS: u32 = 2;

/// The handle of another open.
pub(super) fn handle_of(union: &Union, bits: u64) -> FileHandle {
    FileHandle(union.number_of_open() << HANDLE_BITS | bits)
}

/// The number of the open that has this handle; 0 where opens are not seen.
pub(super) fn number_of(handle: FileHandle) -> u64 {
    handle.0 >> HANDLE_BITS
}

/// An open file whose data go through us.
fn through_us(union: &Union, flags: FopenFlags) -> Opened {
    Opened {
        handle: handle_of(union, 0),
        flags,
        backing: None,
    }
}

fn open_made(
    table: &Arc<Passthrough>, union: &Union, opening: Opening, entry: &Entry, reply: &ReplyCreate,
) -> Result<Opened> {
    if entry.attr.stat.mode & libc::S_IFMT != libc::S_IFREG {
        return Err(Errno::STALE);
    }
    let guarded = union.must_see_writes_of(&entry.attr);
    table.open_ready(union, opening, guarded, reply)
}
