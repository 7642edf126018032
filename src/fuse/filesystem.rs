//! One method for each request: take it apart, ask the core, answer.

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
use crate::stats::Op;
use crate::sys::Errno;
use crate::union::{Make, SetAttr, Union};

use super::again::{is_resent, settled};
use super::convert::{self, caller, errno};
use super::data;
use super::desk::Desk;
use super::dropping::Dropping;
use super::init::MAX_WRITE;
use super::opening::number_of;
use super::passthrough::Passthrough;
use super::policy::{NEVER, Policy};
use super::pool::Pool;
use super::reply;
use super::spare::Spare;

/// The union as fuser drives it.
#[derive(Debug)]
pub(crate) struct UnionFs {
    pub(super) union: Arc<Union>,
    pub(super) policy: Policy,
    /// Files that the kernel reads and writes by itself, if it does.
    pub(super) passthrough: Option<Arc<Passthrough>>,
    /// Largest write request in bytes.
    max_write: u32,
    /// Threads that read requests and may do short work.
    pub(super) spare: Spare,
    pub(super) pool: Arc<Pool>,
    pub(super) writing: Arc<data::Writing>,
    pub(super) dropping: Arc<Dropping>,
    /// The session fails if the kernel might not check permissions.
    must_check: bool,
    /// Others may change files without our hearing of it.
    changes_unheard: bool,
    pub(super) desk: Arc<Desk>,
}

impl UnionFs {
    pub fn new(union: Arc<Union>, options: &Options) -> Self {
        let changes_unheard = union.changes_unheard();
        let (policy, choice) = Policy::new(options, &union);
        let passthrough = Passthrough::of(policy.way, &union);
        union.kernel_keeps_sizes(policy.way.keeps_writes());
        Self {
            desk: Arc::new(Desk::new(&union, passthrough.clone(), choice, options)),
            passthrough,
            union,
            policy,
            max_write: options.max_write.unwrap_or(MAX_WRITE),
            spare: Spare::of(super::flags::threads(options)),
            pool: Pool::new(),
            writing: Arc::default(),
            dropping: Arc::default(),
            must_check: false,
            changes_unheard,
        }
    }

    /// Has the session fail if the kernel might not check permissions.
    pub fn must_check(mut self) -> Self {
        self.must_check = true;
        self
    }

    /// Counts a request.
    fn count(&self, op: Op) {
        #[cfg(feature = "faults")]
        crate::sys::fault::points::panic_if_asked(&format!("{op:?}"));
        self.desk.count(op);
    }

    /// Counts a request, for the union to answer.
    pub(super) fn on(&self, op: Op) -> &Union {
        self.count(op);
        &self.union
    }

    /// Counts a request that may take long (copying data, flushing) and runs it on a thread of its
    /// own, so that the threads that read requests are never all waiting for it.
    fn slowly(&self, op: Op, work: impl FnOnce(&Union) + Send + 'static) {
        self.count(op);
        self.aside(work);
    }
}

impl Filesystem for UnionFs {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        let acls = self.union.has_acls();
        let way = self.policy.way;
        let asks = self.changes_unheard;
        super::init::negotiate(config, way, self.max_write, self.must_check, acls, asks)
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.on(Op::Lookup).lookup(parent.0, name.as_bytes()) {
            // Node id 0 is a "no" that the kernel remembers, where ENOENT is forgotten at once.
            Ok(None) => {
                let attr = convert::negative_attr();
                let keep = self.union.may_keep_absent(parent.0, name.as_bytes());
                let ttl = self.policy.negative_for(keep);
                reply.entry_with_ttls(&NEVER, &ttl, &attr, Generation(0));
            }
            Ok(Some(entry)) => reply::entry(reply, Ok(entry), self.policy),
            Err(e) => reply.error(errno(e)),
        }
    }

    fn forget(&self, _req: &Request, ino: INodeNo, nlookup: u64) {
        if let Some(table) = &self.passthrough {
            table.forget(ino.0);
        }
        self.on(Op::Forget).forget_by_kernel(ino.0, nlookup);
        if let Some(table) = &self.passthrough {
            table.forgotten(&self.union, ino.0);
        }
        if self.dropping.any() && self.union.node_ids(ino.0).is_err() {
            self.dropping.is_right(ino.0);
        }
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        let attr = self.on(Op::Getattr).getattr(ino.0);
        if let (Some(table), Ok(attr)) = (&self.passthrough, &attr) {
            table.looked_at(&self.union, ino.0, attr);
        }
        reply::attr(reply, attr, self.policy);
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
        let table = self.passthrough.clone().filter(|_| mode.is_some());
        if let (Some(table), Some(mode)) = (&table, mode) {
            table.mode_changes(&self.union, ino.0, mode);
        }
        let who = caller(req);
        let policy = self.policy;
        let dropping = Arc::clone(&self.dropping);
        let takes = self.on(Op::Setattr).work_to_change(ino.0, size.is_some());
        self.as_long_as(takes, move |union| {
            let result = if policy.way.keeps_writes() {
                union.setattr_kept(ino.0, &set, who)
            } else {
                union.setattr(ino.0, &set, who)
            };
            if let Some(table) = table {
                table.mode_changed(union, ino.0);
            }
            if size.is_some() && result.is_ok() && dropping.any() {
                dropping.is_right(ino.0);
            }
            reply::attr(reply, result, policy);
        });
    }

    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        match self.on(Op::Readlink).readlink(ino.0) {
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
        self.count(Op::Mknod);
        let made = self.make(req, parent.0, name.as_bytes(), make, umask);
        reply::entry(reply, made, self.policy);
    }

    fn mkdir(
        &self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32,
        reply: ReplyEntry,
    ) {
        let make = Make::Directory { mode };
        self.count(Op::Mkdir);
        let made = self.make(req, parent.0, name.as_bytes(), make, umask);
        reply::entry(reply, made, self.policy);
    }

    fn unlink(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let result = self.on(Op::Unlink).unlink(parent.0, name.as_bytes());
        let result = settled(is_resent(req), Errno::NOENT, result);
        reply::empty(reply, self.policy.settle(&self.union, &[parent.0], result));
    }

    fn rmdir(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let result = self.on(Op::Rmdir).rmdir(parent.0, name.as_bytes());
        let result = settled(is_resent(req), Errno::NOENT, result);
        reply::empty(reply, self.policy.settle(&self.union, &[parent.0], result));
    }

    fn symlink(
        &self, req: &Request, parent: INodeNo, link_name: &OsStr, target: &Path, reply: ReplyEntry,
    ) {
        let make = Make::Symlink {
            target: target.as_os_str().as_bytes(),
        };
        let name = link_name.as_bytes();
        self.count(Op::Symlink);
        let made = self.make(req, parent.0, name, make, 0);
        reply::entry(reply, made, self.policy);
    }

    fn rename(
        &self, req: &Request, parent: INodeNo, name: &OsStr, newparent: INodeNo, newname: &OsStr,
        flags: RenameFlags, reply: ReplyEmpty,
    ) {
        let resent = is_resent(req);
        let (name, new_name) = (name.as_bytes(), newname.as_bytes());
        let (policy, dirs) = (self.policy, [parent.0, newparent.0]);
        let flags = flags.bits();
        let union = self.on(Op::Rename);
        if flags & libc::RENAME_EXCHANGE != 0 {
            return self.exchange(req, (parent.0, name), (newparent.0, new_name), flags, reply);
        }
        if let Some(done) = union.try_rename(parent.0, name, newparent.0, new_name, flags) {
            let done = settled(resent, Errno::NOENT, done);
            return reply::empty(reply, policy.settle(union, &dirs, done));
        }
        // The source may have to be copied up.
        let (name, new_name) = (name.to_vec(), new_name.to_vec());
        self.aside(move |union| {
            let result = union.rename(parent.0, &name, newparent.0, &new_name, flags);
            let result = settled(resent, Errno::NOENT, result);
            reply::empty(reply, policy.settle(union, &dirs, result));
        });
    }

    fn link(
        &self, req: &Request, ino: INodeNo, newparent: INodeNo, newname: &OsStr, reply: ReplyEntry,
    ) {
        self.make_link(req, ino.0, newparent.0, newname.as_bytes(), reply);
    }

    fn open(&self, req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        self.count(Op::Open);
        if !self.policy.way.has_opens() {
            return reply.error(errno(Errno::NOSYS));
        }
        self.open_file(req, ino.0, flags.0, reply);
    }

    fn read(
        &self, _req: &Request, ino: INodeNo, _fh: FileHandle, offset: u64, size: u32,
        _flags: OpenFlags, _lock_owner: Option<LockOwner>, reply: ReplyData,
    ) {
        self.count(Op::Read);
        data::read(&self.union, ino.0, offset, size as usize, reply);
    }

    fn write(
        &self, req: &Request, ino: INodeNo, fh: FileHandle, offset: u64, data: &[u8],
        write_flags: WriteFlags, flags: OpenFlags, _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let clears = write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID);
        let whole = write_flags.contains(WriteFlags::FUSE_WRITE_CACHE);
        let write = data::Write {
            id: ino.0,
            offset,
            clear_for: clears.then(|| caller(req)),
            whole,
            appends: flags.0 & libc::O_APPEND != 0 && !whole,
            opened: self.policy.way.has_opens(),
            resent: is_resent(req),
            sync: self.policy.way.sync_of(flags.0, number_of(fh)),
        };
        self.count(Op::Write);
        self.write_data(write, data, reply);
    }

    fn flush(
        &self, _req: &Request, ino: INodeNo, _fh: FileHandle, _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        if !self.policy.tells_at_close {
            self.count(Op::Flush);
            // Every write has reported its own error, so close has none to report; locks are the
            // kernel's own business. It does not ask again.
            return reply.error(errno(Errno::NOSYS));
        }
        self.slowly(Op::Flush, move |union| {
            reply::empty(reply, union.flush(ino.0));
        });
    }

    fn release(
        &self, _req: &Request, ino: INodeNo, fh: FileHandle, _flags: OpenFlags,
        _lock_owner: Option<LockOwner>, _flush: bool, reply: ReplyEmpty,
    ) {
        self.count(Op::Release);
        if let Some(table) = &self.passthrough {
            table.release(&self.union, ino.0, fh);
        }
        reply.ok();
    }

    fn fsync(&self, _req: &Request, ino: INodeNo, fh: FileHandle, data: bool, reply: ReplyEmpty) {
        self.slowly(Op::Fsync, move |union| {
            reply::empty(reply, union.fsync(ino.0, number_of(fh), data));
        });
    }

    fn fsyncdir(
        &self, _req: &Request, ino: INodeNo, _fh: FileHandle, data: bool, reply: ReplyEmpty,
    ) {
        self.slowly(Op::Fsyncdir, move |union| {
            reply::empty(reply, union.fsync(ino.0, 0, data));
        });
    }

    fn opendir(&self, _req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        if self.on(Op::Opendir).keeps_numbers() && !self.changes_unheard {
            // Every piece of a listing can be had without a beginning. The kernel does not ask again,
            // and keeps listings.
            return reply.error(errno(Errno::NOSYS));
        }
        // A listing that is kept would show old numbers.
        match self.union.getattr(ino.0) {
            Ok(_) => reply.opened(FileHandle(0), FopenFlags::empty()),
            Err(e) => reply.error(errno(e)),
        }
    }

    fn readdir(
        &self, _req: &Request, ino: INodeNo, _fh: FileHandle, offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let result = self.on(Op::Readdir).readdir(ino.0, offset, |entry| {
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
        &self, _req: &Request, ino: INodeNo, _fh: FileHandle, offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let result = self.on(Op::Readdirplus).readdir(ino.0, offset, |entry| {
            !self.add_plus(ino.0, entry, &mut reply)
        });
        match result {
            Ok(()) => reply.ok(),
            Err(e) => reply.error(errno(e)),
        }
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        match self.on(Op::Statfs).statfs() {
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
        self.count(Op::Setxattr);
        self.set_attribute(req, ino.0, (name.as_bytes(), value), flags as u32, reply);
    }

    fn getxattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        self.count(Op::Getxattr);
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
        self.count(Op::Listxattr);
        if self.policy.no_xattrs {
            return reply.error(errno(Errno::NOSYS));
        }
        reply::xattr(reply, size, self.union.listxattr(ino.0, caller(req)));
    }

    fn removexattr(&self, req: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.count(Op::Removexattr);
        self.remove_attribute(req, ino.0, name.as_bytes(), reply);
    }

    fn access(&self, _req: &Request, _ino: INodeNo, _mask: AccessFlags, reply: ReplyEmpty) {
        self.count(Op::Access);
        // The kernel checks by itself (default_permissions) and does not ask again.
        reply.error(errno(Errno::NOSYS));
    }

    fn create(
        &self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, flags: i32,
        reply: ReplyCreate,
    ) {
        self.count(Op::Create);
        self.create_file(req, parent.0, name, (mode, umask), flags, reply);
    }

    fn ioctl(
        &self, req: &Request, ino: INodeNo, _fh: FileHandle, _flags: IoctlFlags, cmd: u32,
        in_data: &[u8], out_size: u32, reply: ReplyIoctl,
    ) {
        self.asked(req, ino.0, cmd, in_data, out_size, reply);
    }

    fn fallocate(
        &self, req: &Request, ino: INodeNo, _fh: FileHandle, offset: u64, length: u64, mode: i32,
        reply: ReplyEmpty,
    ) {
        let who = caller(req);
        self.slowly(Op::Fallocate, move |union| {
            reply::empty(reply, union.fallocate(ino.0, mode, offset, length, who));
        });
    }

    #[allow(clippy::cast_possible_wrap)]
    fn lseek(
        &self, _req: &Request, ino: INodeNo, fh: FileHandle, offset: i64, whence: i32,
        reply: ReplyLseek,
    ) {
        self.count(Op::Lseek);
        let hole = match whence {
            libc::SEEK_DATA => false,
            libc::SEEK_HOLE => true,
            // The kernel knows the other positions itself.
            _ => return reply.error(errno(Errno::INVAL)),
        };
        let Ok(offset) = u64::try_from(offset) else {
            return reply.error(errno(Errno::NXIO));
        };
        self.seek(ino.0, fh, offset, hole, reply);
    }

    fn copy_file_range(
        &self, req: &Request, ino_in: INodeNo, fh_in: FileHandle, offset_in: u64, ino_out: INodeNo,
        _fh_out: FileHandle, offset_out: u64, len: u64, _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        let who = caller(req);
        let old = self.old_file(ino_in.0, fh_in);
        self.slowly(Op::CopyFileRange, move |union| {
            let (from, to) = ((ino_in.0, offset_in), (ino_out.0, offset_out));
            let copied = union.copy_range(from, old.as_deref(), to, len, who);
            reply::written(reply, copied);
        });
    }
}
