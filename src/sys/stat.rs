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

/// Attributes of an open file.
pub(crate) fn fstat(fd: impl AsFd) -> Result<Stat> {
    rustix::fs::fstat(fd).map(|s| Stat::from_raw(&s))
}

/// Figures of the filesystem that holds `fd`.
pub(crate) fn statvfs(fd: impl AsFd) -> Result<StatVfs> {
    rustix::fs::fstatvfs(fd)
}
