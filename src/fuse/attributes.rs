//! Changes of extended attributes.

use fuser::{ReplyEmpty, Request};

use crate::sys::Errno;

use super::again::{is_resent, settled, was_set};
use super::convert::{caller, errno};
use super::filesystem::UnionFs;
use super::reply;

impl UnionFs {
    /// Sets the attribute to the value.
    pub(super) fn set_attribute(
        &self, req: &Request, id: u64, (attr, value): (&[u8], &[u8]), flags: u32, reply: ReplyEmpty,
    ) {
        if self.policy.no_xattrs {
            return reply.error(errno(Errno::NOSYS));
        }
        let (attr, value) = (attr.to_vec(), value.to_vec());
        let (who, resent) = (caller(req), is_resent(req));
        let takes = self.union.work_to_change(id, false);
        self.as_long_as(takes, move |union| {
            let result = union.setxattr(id, &attr, &value, flags, who);
            reply::empty(reply, was_set(union, resent, (id, &attr, &value), result));
        });
    }

    pub(super) fn remove_attribute(&self, req: &Request, id: u64, attr: &[u8], reply: ReplyEmpty) {
        if self.policy.no_xattrs {
            return reply.error(errno(Errno::NOSYS));
        }
        let (attr, resent) = (attr.to_vec(), is_resent(req));
        let takes = self.union.work_to_change(id, false);
        self.as_long_as(takes, move |union| {
            let result = union.removexattr(id, &attr);
            reply::empty(reply, settled(resent, Errno::NODATA, result));
        });
    }
}
