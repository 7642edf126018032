//! One method for each request: take it apart, ask the core, answer.

use std::cell::RefCell;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, FileHandle, Filesystem, FopenFlags, Generation,
    INodeNo, IoctlFlags, KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate,
    ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek,
    ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};

use crate::options::Options;
use crate::sys::{Errno, cred};
use crate::union::{Make, OpenMode, SetAttr, Union, Work};

use super::convert::{self, caller, errno};
use super::init::MAX_WRITE;
use super::policy::{NEVER, Policy};
use super::reply;
use super::spare::Spare;

thread_local! {
    /// Read buffer of this thread, as large as its largest read so far (1 MiB at most).
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// The union as fuser drives it.
#[derive(Debug)]
pub(crate) struct UnionFs {
    pub(super) union: Arc<Union>,
    pub(super) policy: Policy,
    /// Largest write request in bytes.
    max_write: u32,
    /// Threads that read requests and may do short work.
    spare: Spare,
    /// The session fails if the kernel might not check permissions.
    must_check: bool,
}

impl UnionFs {
    pub fn new(union: Arc<Union>, options: &Options) -> Self {
        Self {
            union,
            policy: Policy::new(options),
            max_write: options.max_write.unwrap_or(MAX_WRITE),
            spare: Spare::of(super::flags::threads(options)),
            must_check: false,
        }
    }

    /// Has the session fail if the kernel might not check permissions.
    pub fn must_check(mut self) -> Self {
        self.must_check = true;
        self
    }

    /// Runs what may take long (copying data, flushing) on a thread of its own, so that the
    /// threads that read requests are never all waiting for it.
    fn slowly(&self, work: impl FnOnce(&Union) + Send + 'static) {
        let union = Arc::clone(&self.union);
        blocking::unblock(move || work(&union)).detach();
    }

    /// The same, here or there as the case is. Short work is done here as long as enough others read
    /// requests: handing it over takes longer than many a copy.
    fn as_long_as(&self, takes: Work, work: impl FnOnce(&Union) + Send + 'static) {
        match takes {
            Work::Quick => work(&self.union),
            Work::Short => match self.spare.take() {
                Some(_spare) => work(&self.union),
                None => self.slowly(work),
            },
            Work::Long => self.slowly(work),
        }
    }
}

impl Filesystem for UnionFs {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        let acls = self.union.has_acls();
        super::init::negotiate(config, self.max_write, self.must_check, acls)
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.union.lookup(parent.0, name.as_bytes()) {
            // Node id 0 is a "no" that the kernel remembers, where ENOENT is forgotten at once.
            Ok(None) => {
                let attr = convert::negative_attr();
                reply.entry_with_ttls(&NEVER, &self.policy.negative, &attr, Generation(0));
            }
            Ok(Some(entry)) => reply::entry(reply, Ok(entry), self.policy),
            Err(e) => reply.error(errno(e)),
        }
    }

    fn forget(&self, _req: &Request, ino: INodeNo, nlookup: u64) {
        self.union.forget_by_kernel(ino.0, nlookup);
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        reply::attr(reply, self.union.getattr(ino.0), self.policy);
    }

    fn setattr(
        &self, req: &Request, ino: INodeNo, mode: Option<u32>, uid: Option<u32>, gid: Option<u32>,
        size: Option<u64>, atime: Option<TimeOrNow>, mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>, _fh: Option<FileHandle>, _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>, _bkuptime: Option<SystemTime>, _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let (atime, mtime) = (convert::set_time(atime), convert::set_time(mtime));
        let set = SetAttr {
            mode,
            uid,
            gid,
            size,
            atime,
            mtime,
        };
        let who = caller(req);
        let policy = self.policy;
        let takes = self.union.work_to_change(ino.0, size.is_some());
        self.as_long_as(takes, move |union| {
            reply::attr(reply, union.setattr(ino.0, &set, who), policy);
        });
    }

    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        match self.union.readlink(ino.0) {
            Ok(target) => reply.data(&target),
            Err(e) => reply.error(errno(e)),
        }
    }

    fn mknod(
        &self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, rdev: u32,
        reply: ReplyEntry,
    ) {
        let make = Make::Node {
            mode,
            rdev: convert::decode_rdev(rdev),
        };
        let made = self
            .union
            .make(parent.0, name.as_bytes(), make, caller(req), umask);
        reply::entry(reply, made, self.policy);
    }

    fn mkdir(
        &self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32,
        reply: ReplyEntry,
    ) {
        let make = Make::Directory { mode };
        let made = self
            .union
            .make(parent.0, name.as_bytes(), make, caller(req), umask);
        reply::entry(reply, made, self.policy);
    }

    fn unlink(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        reply::empty(reply, self.union.unlink(parent.0, name.as_bytes()));
    }

    fn rmdir(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        reply::empty(reply, self.union.rmdir(parent.0, name.as_bytes()));
    }

    fn symlink(
        &self, req: &Request, parent: INodeNo, link_name: &OsStr, target: &Path, reply: ReplyEntry,
    ) {
        let make = Make::Symlink {
            target: target.as_os_str().as_bytes(),
        };
        let name = link_name.as_bytes();
        let made = self.union.make(parent.0, name, make, caller(req), 0);
        reply::entry(reply, made, self.policy);
    }

    fn rename(
        &self, _req: &Request, parent: INodeNo, name: &OsStr, newparent: INodeNo, newname: &OsStr,
        flags: RenameFlags, reply: ReplyEmpty,
    ) {
        let (name, new_name) = (name.as_bytes().to_vec(), newname.as_bytes().to_vec());
        let flags = flags.bits();
        // The source may have to be copied up.
        self.slowly(move |union| {
            reply::empty(
                reply,
                union.rename(parent.0, &name, newparent.0, &new_name, flags),
            );
        });
    }

    fn link(
        &self, _req: &Request, ino: INodeNo, newparent: INodeNo, newname: &OsStr, reply: ReplyEntry,
    ) {
        let name = newname.as_bytes().to_vec();
        let policy = self.policy;
        let takes = self.union.work_to_change(ino.0, false);
        self.as_long_as(takes, move |union| {
            reply::entry(reply, union.link(ino.0, newparent.0, &name), policy);
        });
    }

    fn open(&self, req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let (mode, who) = (OpenMode::from_flags(flags.0), caller(req));
        let takes = if mode.write || mode.truncate {
            self.union.work_to_change(ino.0, true)
        } else {
            Work::Quick
        };
        let flags = self.policy.open;
        self.as_long_as(takes, move |union| match union.open(ino.0, mode, who) {
            Ok(()) => reply.opened(FileHandle(0), flags),
            Err(e) => reply.error(errno(e)),
        });
    }

    fn read(
        &self, _req: &Request, ino: INodeNo, _fh: FileHandle, offset: u64, size: u32,
        _flags: OpenFlags, _lock_owner: Option<LockOwner>, reply: ReplyData,
    ) {
        BUFFER.with_borrow_mut(|buffer| {
            let size = size as usize;
            if buffer.len() < size {
                buffer.resize(size, 0);
            }
            match self.union.read(ino.0, offset, &mut buffer[..size]) {
                Ok(n) => reply.data(&buffer[..n]),
                Err(e) => reply.error(errno(e)),
            }
        });
    }

    fn write(
        &self, req: &Request, ino: INodeNo, _fh: FileHandle, offset: u64, data: &[u8],
        write_flags: WriteFlags, _flags: OpenFlags, _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let clears = write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID);
        let clear = clears.then(|| caller(req));
        let takes = self.union.work_to_change(ino.0, true);
        if takes == Work::Quick {
            return reply::written(reply, self.union.write(ino.0, offset, data, clear));
        }
        let data = data.to_vec();
        self.as_long_as(takes, move |union| {
            reply::written(reply, union.write(ino.0, offset, &data, clear));
        });
    }

    fn flush(
        &self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        // Every write has reported its own error, so close has none to report; locks are the
        // kernel's own business. It does not ask again.
        reply.error(errno(Errno::NOSYS));
    }

    fn fsync(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, data: bool, reply: ReplyEmpty) {
        self.slowly(move |union| reply::empty(reply, union.fsync(ino.0, data)));
    }

    fn fsyncdir(
        &self, _req: &Request, ino: INodeNo, _fh: FileHandle, data: bool, reply: ReplyEmpty,
    ) {
        self.slowly(move |union| reply::empty(reply, union.fsync(ino.0, data)));
    }

    fn opendir(&self, _req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        match self.union.opendir(ino.0) {
            Ok(handle) => {
                let flags = if self.union.keeps_numbers() {
                    FopenFlags::FOPEN_CACHE_DIR | FopenFlags::FOPEN_KEEP_CACHE
                } else {
                    FopenFlags::empty()
                };
                reply.opened(FileHandle(handle), flags);
            }
            Err(e) => reply.error(errno(e)),
        }
    }

    fn readdir(
        &self, _req: &Request, _ino: INodeNo, fh: FileHandle, offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let result = self.union.readdir(fh.0, offset, |entry| {
            let name = OsStr::from_bytes(&entry.name);
            !reply.add(
                INodeNo(entry.ino),
                entry.next,
                convert::kind(entry.kind),
                name,
            )
        });
        match result {
            Ok(()) => reply.ok(),
            Err(e) => reply.error(errno(e)),
        }
    }

    fn readdirplus(
        &self, _req: &Request, ino: INodeNo, fh: FileHandle, offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let result = self.union.readdir(fh.0, offset, |entry| {
            !self.add_plus(ino.0, entry, &mut reply)
        });
        match result {
            Ok(()) => reply.ok(),
            Err(e) => reply.error(errno(e)),
        }
    }

    fn releasedir(
        &self, _req: &Request, _ino: INodeNo, fh: FileHandle, _flags: OpenFlags, reply: ReplyEmpty,
    ) {
        self.union.closedir(fh.0);
        reply.ok();
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        match self.union.statfs() {
            Ok(s) => reply.statfs(
                s.blocks, s.bfree, s.bavail, s.files, s.ffree, s.bsize, s.namelen, s.frsize,
            ),
            Err(e) => reply.error(errno(e)),
        }
    }

    #[allow(clippy::cast_sign_loss)]
    fn setxattr(
        &self, req: &Request, ino: INodeNo, name: &OsStr, value: &[u8], flags: i32, _position: u32,
        reply: ReplyEmpty,
    ) {
        if self.policy.no_xattrs {
            return reply.error(errno(Errno::NOSYS));
        }
        let (attr, value) = (name.as_bytes().to_vec(), value.to_vec());
        let (flags, who) = (flags as u32, caller(req));
        let takes = self.union.work_to_change(ino.0, false);
        self.as_long_as(takes, move |union| {
            reply::empty(reply, union.setxattr(ino.0, &attr, &value, flags, who));
        });
    }

    fn getxattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        if self.policy.no_xattrs {
            return reply.error(errno(Errno::NOSYS));
        }
        let value = match self.union.getxattr(ino.0, name.as_bytes()) {
            // The kernel takes ACLs for granted here, and a "not supported" for a refusal.
            Err(Errno::OPNOTSUPP) if self.must_check => Err(Errno::NODATA),
            value => value,
        };
        reply::xattr(reply, size, value);
    }

    fn listxattr(&self, req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        if self.policy.no_xattrs {
            return reply.error(errno(Errno::NOSYS));
        }
        reply::xattr(reply, size, self.union.listxattr(ino.0, caller(req)));
    }

    fn removexattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        if self.policy.no_xattrs {
            return reply.error(errno(Errno::NOSYS));
        }
        let attr = name.as_bytes().to_vec();
        let takes = self.union.work_to_change(ino.0, false);
        self.as_long_as(takes, move |union| {
            reply::empty(reply, union.removexattr(ino.0, &attr));
        });
    }

    fn access(&self, _req: &Request, _ino: INodeNo, _mask: AccessFlags, reply: ReplyEmpty) {
        // The kernel checks by itself (default_permissions) and does not ask again.
        reply.error(errno(Errno::NOSYS));
    }

    fn create(
        &self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, flags: i32,
        reply: ReplyCreate,
    ) {
        let open = OpenMode::from_flags(flags);
        let exclusive = flags & libc::O_EXCL != 0;
        let name = name.as_bytes();
        match self
            .union
            .create(parent.0, name, mode, exclusive, open, caller(req), umask)
        {
            Ok(entry) => {
                let ttl = self.policy.attr_of(&entry).min(self.policy.entry);
                let attr = self.policy.attributes(&entry.attr, entry.id);
                let generation = Generation(entry.generation);
                reply.created(&ttl, &attr, generation, FileHandle(0), self.policy.open);
            }
            Err(e) => reply.error(errno(e)),
        }
    }

    fn ioctl(
        &self, req: &Request, ino: INodeNo, _fh: FileHandle, _flags: IoctlFlags, cmd: u32,
        in_data: &[u8], out_size: u32, reply: ReplyIoctl,
    ) {
        if self.union.is_control(ino.0, cmd) {
            if ![0, cred::own_uid()].contains(&req.uid()) {
                return reply.error(errno(Errno::PERM));
            }
            let input = in_data.to_vec();
            return self.slowly(move |union| match union.control(cmd, &input) {
                Ok(data) => reply.ioctl(0, &data),
                Err(e) => reply.error(errno(e)),
            });
        }
        match self.union.ioctl(ino.0, cmd, in_data, out_size as usize) {
            Ok(data) => reply.ioctl(0, &data),
            Err(e) => reply.error(errno(e)),
        }
    }

    fn fallocate(
        &self, req: &Request, ino: INodeNo, _fh: FileHandle, offset: u64, length: u64, mode: i32,
        reply: ReplyEmpty,
    ) {
        let who = caller(req);
        self.slowly(move |union| {
            reply::empty(reply, union.fallocate(ino.0, mode, offset, length, who));
        });
    }

    #[allow(clippy::cast_possible_wrap)]
    fn lseek(
        &self, _req: &Request, ino: INodeNo, _fh: FileHandle, offset: i64, whence: i32,
        reply: ReplyLseek,
    ) {
        let hole = match whence {
            libc::SEEK_DATA => false,
            libc::SEEK_HOLE => true,
            // The kernel knows the other positions itself.
            _ => return reply.error(errno(Errno::INVAL)),
        };
        let Ok(offset) = u64::try_from(offset) else {
            return reply.error(errno(Errno::NXIO));
        };
        match self.union.seek_data(ino.0, offset, hole) {
            Ok(position) => reply.offset(position as i64),
            Err(e) => reply.error(errno(e)),
        }
    }

    fn copy_file_range(
        &self, req: &Request, ino_in: INodeNo, _fh_in: FileHandle, offset_in: u64,
        ino_out: INodeNo, _fh_out: FileHandle, offset_out: u64, len: u64,
        _flags: CopyFileRangeFlags, reply: ReplyWrite,
    ) {
        let who = caller(req);
        self.slowly(move |union| {
            let (from, to) = ((ino_in.0, offset_in), (ino_out.0, offset_out));
            reply::written(reply, union.copy_range(from, to, len, who));
        });
    }
}
