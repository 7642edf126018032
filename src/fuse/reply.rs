//! Results of the core as replies.

use fuser::{Generation, ReplyAttr, ReplyEmpty, ReplyEntry, ReplyWrite, ReplyXattr};

use crate::sys::{Errno, Result};
use crate::union::{Attr, Entry};

use super::convert::errno;
use super::policy::Policy;

/// A node found or made.
pub(super) fn entry(reply: ReplyEntry, result: Result<Entry>, policy: Policy) {
    match result {
        Ok(entry) => {
            let attr = policy.attributes(&entry.attr, entry.id);
            let generation = Generation(entry.generation);
            let ttl = policy.entry_of(&entry);
            reply.entry_with_ttls(&policy.attr_of(&entry), &ttl, &attr, generation);
        }
        Err(e) => reply.error(errno(e)),
    }
}

/// Attributes of a node.
pub(super) fn attr(reply: ReplyAttr, result: Result<Attr>, policy: Policy) {
    match result {
        Ok(attr) => reply.attr(&policy.attr_for(&attr), &policy.attributes(&attr, attr.ino)),
        Err(e) => reply.error(errno(e)),
    }
}

/// Success without a value.
pub(super) fn empty(reply: ReplyEmpty, result: Result<()>) {
    match result {
        Ok(()) => reply.ok(),
        Err(e) => reply.error(errno(e)),
    }
}

/// A value of an attribute, or a list of names, or how long it is.
pub(super) fn xattr(reply: ReplyXattr, size: u32, result: Result<Vec<u8>>) {
    match result {
        Ok(value) if size == 0 => reply.size(u32::try_from(value.len()).unwrap_or(u32::MAX)),
        Ok(value) if value.len() > size as usize => reply.error(errno(Errno::RANGE)),
        Ok(value) => reply.data(&value),
        Err(e) => reply.error(errno(e)),
    }
}

/// Bytes written.
pub(super) fn written(reply: ReplyWrite, result: Result<usize>) {
    match result {
        Ok(n) => reply.written(u32::try_from(n).unwrap_or(u32::MAX)),
        Err(e) => reply.error(errno(e)),
    }
}
