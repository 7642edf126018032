//! Extended attributes.

use crate::sys::{self, Errno, Result};

use super::Union;
use super::copy_up::Need;
use super::descriptors::Real;
use super::types::Caller;

const ACL_PREFIX: &[u8] = b"system.posix_acl_";
const ACCESS_ACL: &[u8] = b"system.posix_acl_access";

impl Union {
    /// The value of an attribute.
    ///
    /// # Errors
    /// ENODATA when there is none, or when it is a record of a union filesystem.
    pub fn getxattr(&self, id: u64, attr: &[u8]) -> Result<Vec<u8>> {
        self.check_readable(attr)?;
        let inode = self.inodes.get(id)?;
        if inode.facts.lacks(attr) && !self.rechecks(&inode) {
            return Err(Errno::NODATA);
        }
        let seen = inode.facts.look();
        let value = self.with_real(&inode, |real| self.stored_value(real, attr))?;
        // One that is found by name may share its object with others.
        if value.is_none() && !inode.by_name {
            inode.facts.set_lacking(attr, seen);
        }
        self.owners.shown_value(attr, value.ok_or(Errno::NODATA)?)
    }

    /// The names of all attributes that users see, each ended by a NUL byte.
    ///
    /// # Errors
    /// What listxattr(2) of the real object gives.
    pub fn listxattr(&self, id: u64, caller: Caller) -> Result<Vec<u8>> {
        let inode = self.inodes.get(id)?;
        let list = |real: &Real| Ok((sys::xattr::list(real.fd(), &real.name)?, real.layer));
        let (names, layer) = self.with_real(&inode, list)?;
        // The kernel leaves it to the filesystem to hide what only an administrator may read.
        let hide_trusted = caller.uid != 0;
        let is_shown = |attr: &&[u8]| {
            let hidden = hide_trusted && attr.starts_with(b"trusted.");
            let is_acl = attr.starts_with(ACL_PREFIX);
            !attr.is_empty() && !hidden && (!is_acl || self.has_acls())
        };
        let mut shown = Vec::with_capacity(names.len());
        let names = names.split(|&b| b == 0);
        let names = names.filter_map(|attr| self.owners.users_name(layer, attr));
        for attr in names.filter(is_shown) {
            shown.extend_from_slice(attr);
            shown.push(0);
        }
        Ok(shown)
    }

    /// Sets an attribute; `flags` are setxattr(2)'s.
    ///
    /// # Errors
    /// EPERM for a record of a union filesystem, EROFS, and what the call on the upper gives.
    pub fn setxattr(
        &self, id: u64, attr: &[u8], value: &[u8], flags: u32, caller: Caller,
    ) -> Result<()> {
        if self.owners.is_hidden(attr) {
            return Err(Errno::PERM);
        }
        self.check_acl(attr)?;
        let stored = self.owners.stored_name(0, attr)?;
        let value = self.owners.stored_value(attr, value)?;
        let inode = self.inodes.get(id)?;
        self.check_holder(&inode, attr)?;
        self.ensure_upper(&inode, Need::Attributes)?;
        let _held = self.not_while_copying(&inode);
        inode.facts.attr_changes();
        let result = self.with_real(&inode, |real| {
            sys::xattr::set(real.fd(), &real.name, &stored, &value, flags)?;
            if attr == ACCESS_ACL && caller.uid != 0 {
                // As chmod does: who is not in the file's group loses its set-group-id bit.
                let stat = real.stat()?;
                let is_member = self.owners.is_in_group(caller, stat.gid);
                if stat.mode & libc::S_ISGID != 0 && !is_member {
                    sys::at::chmod_at(real.fd(), &real.name, stat.mode & !libc::S_ISGID)?;
                }
            }
            Ok(())
        });
        inode.facts.attr_changes();
        result
    }

    /// Removes an attribute.
    ///
    /// # Errors
    /// ENODATA when there is none; nothing is copied up then.
    pub fn removexattr(&self, id: u64, attr: &[u8]) -> Result<()> {
        self.check_readable(attr)?;
        let inode = self.inodes.get(id)?;
        self.upper()?;
        let get = |real: &Real| self.stored_value(real, attr);
        if self.with_real(&inode, get)?.is_none() {
            // As Linux: there is no harm in removing an ACL that is not there.
            let is_acl = attr.starts_with(ACL_PREFIX);
            return if is_acl { Ok(()) } else { Err(Errno::NODATA) };
        }
        self.ensure_upper(&inode, Need::Attributes)?;
        let stored = self.owners.stored_name(0, attr)?;
        let _held = self.not_while_copying(&inode);
        self.with_real(&inode, |real| {
            sys::xattr::remove(real.fd(), &real.name, &stored)
        })
    }

    /// What the object's layer keeps for an attribute of users'.
    fn stored_value(&self, real: &Real, attr: &[u8]) -> Result<Option<Vec<u8>>> {
        let stored = self.owners.stored_name(real.layer, attr)?;
        sys::xattr::get(real.fd(), &real.name, &stored)
    }

    /// ENODATA for what users do not see.
    fn check_readable(&self, attr: &[u8]) -> Result<()> {
        if self.owners.is_hidden(attr) {
            return Err(Errno::NODATA);
        }
        self.check_acl(attr)
    }

    /// EOPNOTSUPP for an ACL where there are none.
    fn check_acl(&self, attr: &[u8]) -> Result<()> {
        if attr.starts_with(ACL_PREFIX) && !self.has_acls() {
            return Err(Errno::OPNOTSUPP);
        }
        Ok(())
    }

    /// The target of a symlink.
    ///
    /// # Errors
    /// EINVAL when the node is no symlink.
    pub fn readlink(&self, id: u64) -> Result<Vec<u8>> {
        let inode = self.inodes.get(id)?;
        if inode.kind != crate::sys::FileKind::Symlink {
            return Err(Errno::INVAL);
        }
        self.with_real(&inode, |real| sys::at::readlink_at(real.fd(), &real.name))
    }
}
