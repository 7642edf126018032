//! The union as fuser drives it, by as many threads as there is work for.

use std::ffi::OsStr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, FileHandle, Filesystem, INodeNo, IoctlFlags,
    KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen,
    ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};

use crate::stats::Op;

use super::convert::errno;
use super::filesystem::UnionFs;
use super::injected::{Meet, Nothing};
use super::readers::Readers;

/// Serves each request as [`UnionFs`] does, and lets the thread wait afterwards when too many read.
#[derive(Debug)]
pub(super) struct Turns<M = Nothing> {
    pub union: UnionFs,
    pub readers: Arc<Readers>,
    /// What requests meet first.
    pub met: M,
}

/// Every method that answers a request: the same, as a turn of its thread. A turn is all of a request:
/// the thread may wait for long when it ends.
macro_rules! turns {
    ($($op:ident $name:ident($node:ident: INodeNo $(, $arg:ident: $kind:ty)*; $reply:ty);)*) => {$(
        fn $name(&self, request: &Request, $node: INodeNo, $($arg: $kind,)* reply: $reply) {
            let _turn = self.readers.turn(request.pid());
            let _timed = self.union.desk.clock.begin($node.0, request);
            // Within the turn: a delay is seen as any other work that takes long.
            if let Some(failure) = self.met.meet(Op::$op) {
                return reply.error(errno(failure));
            }
            alive(|| self.union.$name(request, $node, $($arg,)* reply));
        }
    )*};
}

/// Does what a request asks for. A panic is a defect, and has been logged by then; its locks are free again, and its
/// request is answered with EIO when the reply is dropped. It must not end the thread, and with that the mount.
fn alive(work: impl FnOnce()) {
    let _ = catch_unwind(AssertUnwindSafe(work));
}

impl<M: Meet> Filesystem for Turns<M> {
    fn init(&mut self, request: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        self.union.init(request, config)
    }

    // Called for each node of a batch: the thread may not wait before the last of them.
    fn forget(&self, request: &Request, ino: INodeNo, nlookup: u64) {
        let _busy = self.readers.part_of_a_turn(request.unique().0);
        alive(|| self.union.forget(request, ino, nlookup));
    }

    turns! {
        Lookup lookup(parent: INodeNo, name: &OsStr; ReplyEntry);
        Getattr getattr(ino: INodeNo, fh: Option<FileHandle>; ReplyAttr);
        Setattr setattr(ino: INodeNo, mode: Option<u32>, uid: Option<u32>, gid: Option<u32>,
            size: Option<u64>, atime: Option<TimeOrNow>, mtime: Option<TimeOrNow>,
            ctime: Option<SystemTime>, fh: Option<FileHandle>, crtime: Option<SystemTime>,
            chgtime: Option<SystemTime>, bkuptime: Option<SystemTime>,
            flags: Option<BsdFileFlags>; ReplyAttr);
        Readlink readlink(ino: INodeNo; ReplyData);
        Mknod mknod(parent: INodeNo, name: &OsStr, mode: u32, umask: u32, rdev: u32; ReplyEntry);
        Mkdir mkdir(parent: INodeNo, name: &OsStr, mode: u32, umask: u32; ReplyEntry);
        Unlink unlink(parent: INodeNo, name: &OsStr; ReplyEmpty);
        Rmdir rmdir(parent: INodeNo, name: &OsStr; ReplyEmpty);
        Symlink symlink(parent: INodeNo, link_name: &OsStr, target: &Path; ReplyEntry);
        Rename rename(parent: INodeNo, name: &OsStr, newparent: INodeNo, newname: &OsStr,
            flags: RenameFlags; ReplyEmpty);
        Link link(ino: INodeNo, newparent: INodeNo, newname: &OsStr; ReplyEntry);
        Open open(ino: INodeNo, flags: OpenFlags; ReplyOpen);
        Read read(ino: INodeNo, fh: FileHandle, offset: u64, size: u32, flags: OpenFlags,
            lock_owner: Option<LockOwner>; ReplyData);
        Write write(ino: INodeNo, fh: FileHandle, offset: u64, data: &[u8], write_flags: WriteFlags,
            flags: OpenFlags, lock_owner: Option<LockOwner>; ReplyWrite);
        Flush flush(ino: INodeNo, fh: FileHandle, lock_owner: LockOwner; ReplyEmpty);
        Release release(ino: INodeNo, fh: FileHandle, flags: OpenFlags, lock_owner: Option<LockOwner>,
            flush: bool; ReplyEmpty);
        Fsync fsync(ino: INodeNo, fh: FileHandle, datasync: bool; ReplyEmpty);
        Fsyncdir fsyncdir(ino: INodeNo, fh: FileHandle, datasync: bool; ReplyEmpty);
        Opendir opendir(ino: INodeNo, flags: OpenFlags; ReplyOpen);
        Readdir readdir(ino: INodeNo, fh: FileHandle, offset: u64; ReplyDirectory);
        Readdirplus readdirplus(ino: INodeNo, fh: FileHandle, offset: u64; ReplyDirectoryPlus);
        Statfs statfs(ino: INodeNo; ReplyStatfs);
        Setxattr setxattr(ino: INodeNo, name: &OsStr, value: &[u8], flags: i32, position: u32; ReplyEmpty);
        Getxattr getxattr(ino: INodeNo, name: &OsStr, size: u32; ReplyXattr);
        Listxattr listxattr(ino: INodeNo, size: u32; ReplyXattr);
        Removexattr removexattr(ino: INodeNo, name: &OsStr; ReplyEmpty);
        Access access(ino: INodeNo, mask: AccessFlags; ReplyEmpty);
        Create create(parent: INodeNo, name: &OsStr, mode: u32, umask: u32, flags: i32; ReplyCreate);
        Ioctl ioctl(ino: INodeNo, fh: FileHandle, flags: IoctlFlags, cmd: u32, in_data: &[u8],
            out_size: u32; ReplyIoctl);
        Fallocate fallocate(ino: INodeNo, fh: FileHandle, offset: u64, length: u64, mode: i32; ReplyEmpty);
        Lseek lseek(ino: INodeNo, fh: FileHandle, offset: i64, whence: i32; ReplyLseek);
        CopyFileRange copy_file_range(ino_in: INodeNo, fh_in: FileHandle, offset_in: u64, ino_out: INodeNo,
            fh_out: FileHandle, offset_out: u64, len: u64, flags: CopyFileRangeFlags; ReplyWrite);
    }
}
