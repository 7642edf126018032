//! stat and statfs.

use std::os::fd::AsFd;

use rustix::fs::{AtFlags, StatVfs};

use super::Result;

/// The type bits of a mode.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Hash)]
#[repr(u8)]
pub enum FileKind {
    /// Regular file.
    Regular,
    /// Directory.
    Directory,
    /// Symbolic link.
    Symlink,
    /// Character device.
    CharDevice,
    /// Block device.
    BlockDevice,
    /// Named pipe.
    Fifo,
    /// Unix domain socket.
    Socket,
}

impl FileKind {
    /// The kind in `mode`; a type that no Linux filesystem has reads as a regular file.
    pub fn from_mode(mode: u32) -> Self {
        match mode & libc::S_IFMT {
            libc::S_IFDIR => Self::Directory,
            libc::S_IFLNK => Self::Symlink,
            libc::S_IFCHR => Self::CharDevice,
            libc::S_IFBLK => Self::BlockDevice,
            libc::S_IFIFO => Self::Fifo,
            libc::S_IFSOCK => Self::Socket,
            _ => Self::Regular,
        }
    }

    /// True for a directory.
    pub fn is_dir(self) -> bool {
        self == Self::Directory
    }
}

/// A point in time: seconds (may be negative) and nanoseconds since 1970.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Time {
    /// Whole seconds since 1970-01-01, negative before.
    pub sec: i64,
    /// Nanoseconds to add, 0..1_000_000_000.
    pub nsec: u32,
}

/// The attributes of one real object.
#[derive(Clone, Copy, Debug)]
pub struct Stat {
    /// Device of the filesystem.
    pub dev: u64,
    /// Inode number on that device.
    pub ino: u64,
    /// Type and permission bits.
    pub mode: u32,
    /// Number of hard links.
    pub nlink: u64,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number of a device node.
    pub rdev: u64,
    /// Size in bytes.
    pub size: u64,
    /// Preferred block size of I/O in bytes.
    pub blksize: u32,
    /// 512-byte blocks in use.
    pub blocks: u64,
    /// Last access.
    pub atime: Time,
    /// Last change of the data.
    pub mtime: Time,
    /// Last change of the attributes.
    pub ctime: Time,
}

impl Stat {
    /// The file type.
    pub fn kind(&self) -> FileKind {
        FileKind::from_mode(self.mode)
    }

    /// True for a character device 0:0, overlayfs's whiteout.
    pub fn is_whiteout_device(&self) -> bool {
        self.kind() == FileKind::CharDevice && self.rdev == 0
    }

    #[allow(clippy::cast_sign_loss, clippy::cast_possible_truncation)]
    fn from_raw(s: &rustix::fs::Stat) -> Self {
        // The casts only change the width of fields whose C type differs between architectures.
        Self {
            dev: s.st_dev,
            ino: s.st_ino,
            mode: s.st_mode,
            nlink: s.st_nlink,
            uid: s.st_uid,
            gid: s.st_gid,
            rdev: s.st_rdev,
            size: s.st_size as u64,
            blksize: s.st_blksize as u32,
            blocks: s.st_blocks as u64,
            atime: Time {
                sec: s.st_atime,
                nsec: s.st_atime_nsec as u32,
            },
            mtime: Time {
                sec: s.st_mtime,
                nsec: s.st_mtime_nsec as u32,
            },
            ctime: Time {
                sec: s.st_ctime,
                nsec: s.st_ctime_nsec as u32,
            },
        }
    }
}

/// Attributes of `name` in `dir`; a symlink is not followed, an automount not triggered. An empty
/// name means `dir` itself, whatever its type.
pub(crate) fn stat_at(dir: impl AsFd, name: &[u8]) -> Result<Stat> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT | AtFlags::EMPTY_PATH;
    rustix::fs::statat(dir, name, flags).map(|s| Stat::from_raw(&s))
}

/// True when the object has a file handle (`name_to_handle_at(2)`), by which its filesystem would
/// find it again.
pub(crate) fn has_handle(fd: impl AsFd) -> bool {
    #[repr(C)]
    struct Handle {
        bytes: libc::c_uint,
        kind: libc::c_int,
        data: [u8; 128],
    }
    let mut handle = Handle {
        bytes: 128,
        kind: 0,
        data: [0; 128],
    };
    let mut mount: libc::c_int = 0;
    // SAFETY: the descriptor is open for the call, the path is a static NUL-terminated string, and
    // the structure is laid out as struct file_handle with room for as many bytes as it says.
    let ret = unsafe {
        libc::syscall(
            libc::SYS_name_to_handle_at,
            std::os::fd::AsRawFd::as_raw_fd(&fd.as_fd()),
            c"".as_ptr(),
            &raw mut handle,
            &raw mut mount,
            libc::AT_EMPTY_PATH,
        )
    };
    ret == 0
}

/// True for an object on a filesystem that is itself made of others, as far as it is known to be.
pub(crate) fn is_stacked(fd: impl AsFd) -> bool {
    rustix::fs::fstatfs(fd).is_ok_and(|s| {
        s.f_type == libc::OVERLAYFS_SUPER_MAGIC || s.f_type == libc::ECRYPTFS_SUPER_MAGIC
    })
}

/// True for an object, `name` in `dir`, that is immutable or append-only, where the filesystem tells.
pub(crate) fn is_frozen(dir: impl AsFd, name: &[u8]) -> bool {
    use rustix::fs::{StatxAttributes, StatxFlags};
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT | AtFlags::EMPTY_PATH;
    rustix::fs::statx(dir, name, flags, StatxFlags::empty()).is_ok_and(|got| {
        let frozen = StatxAttributes::IMMUTABLE | StatxAttributes::APPEND;
        got.stx_attributes.intersects(frozen)
    })
}

/// Time of birth of `name` in `dir` in nanoseconds since 1970, where the filesystem keeps it.
pub(crate) fn born(dir: impl AsFd, name: &[u8]) -> Option<u64> {
    use rustix::fs::StatxFlags;
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT | AtFlags::EMPTY_PATH;
    let got = rustix::fs::statx(dir, name, flags, StatxFlags::BTIME).ok()?;
    if !StatxFlags::from_bits_retain(got.stx_mask).contains(StatxFlags::BTIME) {
        return None;
    }
    let seconds = u64::try_from(got.stx_btime.tv_sec).ok()?;
    seconds
        .checked_mul(1_000_000_000)?
        .checked_add(u64::from(got.stx_btime.tv_nsec))
}

/// Device and inode number, from what the kernel knows without asking a remote or FUSE server.
pub(crate) fn identity(fd: impl AsFd) -> Result<(u64, u64)> {
    use rustix::fs::StatxFlags;
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let got = rustix::fs::statx(fd, c"", flags, StatxFlags::INO)?;
    let dev = rustix::fs::makedev(got.stx_dev_major, got.stx_dev_minor);
    Ok((dev, got.stx_ino))
}

/// Attributes of an open file.
pub(crate) fn fstat(fd: impl AsFd) -> Result<Stat> {
    rustix::fs::fstat(fd).map(|s| Stat::from_raw(&s))
}

/// True when the filesystem may tell only at close(2) what went wrong with a write: when it is on another
/// machine, or another program's.
pub(crate) fn tells_at_close(fd: impl AsFd) -> bool {
    /// By their numbers in linux/magic.h and the sources of each.
    const SUCH: [u32; 10] = [
        0x6969,      // nfs
        0x517b,      // smb
        0xff53_4d42, // cifs
        0xfe53_4d42, // smb2
        0x6573_5546, // fuse
        0x00c3_6400, // ceph
        0x5346_414f, // afs
        0x0102_1997, // 9p
        0x7375_7245, // coda
        0x0bd0_0bd0, // lustre
    ];
    // The type is wider on some machines; the numbers are not.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    rustix::fs::fstatfs(fd).is_ok_and(|s| SUCH.contains(&(s.f_type as u32)))
}

/// The number that says of which type the filesystem of `fd` is (`statfs(2)`, `linux/magic.h`).
#[allow(clippy::cast_sign_loss)] // some architectures' C type has a sign
pub(crate) fn filesystem_type(fd: impl AsFd) -> Result<u64> {
    rustix::fs::fstatfs(fd).map(|s| s.f_type as u64)
}

/// Figures of the filesystem that holds `fd`.
pub(crate) fn statvfs(fd: impl AsFd) -> Result<StatVfs> {
    rustix::fs::fstatvfs(fd)
}
