//! Calls on one name in one directory. No name here holds a slash, so none can leave the directory.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{
    AtFlags, CWD, Gid, Mode, OFlags, RenameFlags, ResolveFlags, Timespec, Timestamps, Uid,
};

use super::fault::change;
use super::stat::Time;
use super::{Errno, Result};

const CONFINED: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS);

/// openat2 returns EAGAIN when a rename raced with the walk; a single name needs few tries.
const OPENAT2_TRIES: usize = 64;

/// Opens `name` in `dir` with close-on-exec; symlinks are never followed.
///
/// With `same_mount` a name that is a mount point gives EXDEV instead of being entered.
pub(crate) fn open_at(
    dir: impl AsFd, name: &[u8], flags: OFlags, mode: u32, same_mount: bool,
) -> Result<OwnedFd> {
    let resolve = if same_mount {
        CONFINED | ResolveFlags::NO_XDEV
    } else {
        CONFINED
    };
    let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let mode = Mode::from_raw_mode(mode);
    for _ in 0..OPENAT2_TRIES {
        let open = || rustix::fs::openat2(dir.as_fd(), name, flags, mode, resolve);
        let opened = if flags.intersects(OFlags::CREATE | OFlags::TRUNC) {
            change("openat", open)
        } else {
            open()
        };
        match opened {
            Err(Errno::AGAIN) => {}
            result => return result,
        }
    }
    Err(Errno::AGAIN)
}

/// Opens a directory handle (O_PATH) for `name` in `dir`.
pub(crate) fn open_dir_path(dir: impl AsFd, name: &[u8], same_mount: bool) -> Result<OwnedFd> {
    open_at(dir, name, OFlags::PATH | OFlags::DIRECTORY, 0, same_mount)
}

/// Opens a handle (O_PATH) for `name` in `dir`, whatever its type.
pub(crate) fn open_path(dir: impl AsFd, name: &[u8]) -> Result<OwnedFd> {
    open_at(dir, name, OFlags::PATH, 0, false)
}

/// Opens the directory at `path` as given by the administrator (symlinks are followed).
pub(crate) fn open_root(path: &[u8]) -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(CWD, path, flags, Mode::empty())
}

/// An unnamed file in the filesystem of `dir`, readable and writable.
pub(crate) fn open_tmpfile(dir: impl AsFd, mode: u32) -> Result<OwnedFd> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    change("openat", || {
        rustix::fs::openat(dir, c".", flags, Mode::from_raw_mode(mode))
    })
}

/// Makes a directory.
pub(crate) fn mkdir_at(dir: impl AsFd, name: &[u8], mode: u32) -> Result<()> {
    change("mkdirat", || {
        rustix::fs::mkdirat(dir, name, Mode::from_raw_mode(mode))
    })
}

/// Makes a node of the type in `mode`.
pub(crate) fn mknod_at(dir: impl AsFd, name: &[u8], mode: u32, rdev: u64) -> Result<()> {
    let kind = rustix::fs::FileType::from_raw_mode(mode);
    let mode = Mode::from_raw_mode(mode & 0o7777);
    change("mknodat", || {
        rustix::fs::mknodat(dir, name, kind, mode, rdev)
    })
}

/// Makes a symlink.
pub(crate) fn symlink_at(target: &[u8], dir: impl AsFd, name: &[u8]) -> Result<()> {
    change("symlinkat", || rustix::fs::symlinkat(target, dir, name))
}

/// The target of a symlink; an empty name reads the O_PATH handle `dir` itself.
pub(crate) fn readlink_at(dir: impl AsFd, name: &[u8]) -> Result<Vec<u8>> {
    rustix::fs::readlinkat(dir, name, Vec::with_capacity(256)).map(std::ffi::CString::into_bytes)
}

/// Adds a name to an existing object; a symlink is linked itself.
pub(crate) fn link_at(
    old_dir: impl AsFd, old: &[u8], new_dir: impl AsFd, new: &[u8],
) -> Result<()> {
    change("linkat", || {
        rustix::fs::linkat(old_dir, old, new_dir, new, AtFlags::empty())
    })
}

/// Gives an open file (O_TMPFILE, or still linked elsewhere) a name.
pub(crate) fn link_fd(fd: impl AsFd, new_dir: impl AsFd, new: &[u8]) -> Result<()> {
    // Linux 6.10 lets who opened the file do it so, the ones before whoever has
    // CAP_DAC_READ_SEARCH; anybody else is told ENOENT.
    let (fd, new_dir) = (fd.as_fd(), new_dir.as_fd());
    let directly = || rustix::fs::linkat(fd, c"", new_dir, new, AtFlags::EMPTY_PATH);
    match change("linkat", directly) {
        Err(Errno::NOENT | Errno::INVAL) => {}
        result => return result,
    }
    let path = super::fd::proc_path(fd);
    change("linkat", || {
        rustix::fs::linkat(CWD, path.as_slice(), new_dir, new, AtFlags::SYMLINK_FOLLOW)
    })
}

/// Removes a name that is not a directory.
pub(crate) fn unlink_at(dir: impl AsFd, name: &[u8]) -> Result<()> {
    change("unlinkat", || {
        rustix::fs::unlinkat(dir, name, AtFlags::empty())
    })
}

/// Removes an empty directory.
pub(crate) fn rmdir_at(dir: impl AsFd, name: &[u8]) -> Result<()> {
    change("unlinkat", || {
        rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR)
    })
}

/// Renames; plain renameat when no flag is given, for filesystems that know no flags. On these
/// `NOREPLACE` is a look and a rename: for names that nobody else makes meanwhile.
pub(crate) fn rename_at(
    old_dir: impl AsFd, old: &[u8], new_dir: impl AsFd, new: &[u8], flags: RenameFlags,
) -> Result<()> {
    let (old_dir, new_dir) = (old_dir.as_fd(), new_dir.as_fd());
    let plainly = || {
        change("renameat", || {
            rustix::fs::renameat(old_dir, old, new_dir, new)
        })
    };
    if flags.is_empty() {
        return plainly();
    }
    let with_flags = || rustix::fs::renameat_with(old_dir, old, new_dir, new, flags);
    match change("renameat", with_flags) {
        Err(Errno::INVAL | Errno::NOSYS) if flags == RenameFlags::NOREPLACE => {
            match rustix::fs::statat(new_dir, new, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(_) => Err(Errno::EXIST),
                Err(Errno::NOENT) => plainly(),
                Err(e) => Err(e),
            }
        }
        done => done,
    }
}

/// Changes owner and group; `None` leaves as it is. An empty name means `dir` itself.
pub(crate) fn chown_at(
    dir: impl AsFd, name: &[u8], uid: Option<u32>, gid: Option<u32>,
) -> Result<()> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::EMPTY_PATH;
    let (uid, gid) = (uid.map(Uid::from_raw), gid.map(Gid::from_raw));
    change("fchownat", || {
        rustix::fs::chownat(dir, name, uid, gid, flags)
    })
}

/// Changes the permission bits without following a symlink. An empty name means `dir` itself.
pub(crate) fn chmod_at(dir: impl AsFd, name: &[u8], mode: u32) -> Result<()> {
    match super::file::fchmodat2(dir.as_fd(), name, mode & 0o7777) {
        Err(Errno::NOSYS) => {}
        result => return result,
    }
    // Before Linux 6.6: through the magic link of an O_PATH handle, which cannot be a symlink.
    let handle;
    let fd = if name.is_empty() {
        dir.as_fd()
    } else {
        handle = open_path(dir, name)?;
        if super::stat::fstat(&handle)?.kind() == super::FileKind::Symlink {
            return Err(Errno::OPNOTSUPP);
        }
        handle.as_fd()
    };
    let path = super::fd::proc_path(fd);
    let mode = Mode::from_raw_mode(mode & 0o7777);
    change("fchmodat", || {
        rustix::fs::chmodat(CWD, path.as_slice(), mode, AtFlags::empty())
    })
}

/// A time to set.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum SetTime {
    /// Leave as it is.
    Omit,
    /// The time of the call.
    Now,
    /// This time.
    At(Time),
}

impl SetTime {
    fn to_timespec(self) -> Timespec {
        match self {
            Self::Omit => Timespec {
                tv_sec: 0,
                tv_nsec: rustix::fs::UTIME_OMIT,
            },
            Self::Now => Timespec {
                tv_sec: 0,
                tv_nsec: rustix::fs::UTIME_NOW,
            },
            Self::At(t) => Timespec {
                tv_sec: t.sec,
                tv_nsec: i64::from(t.nsec),
            },
        }
    }
}

/// Sets access and modification time without following a symlink. An empty name means `dir`.
pub(crate) fn utimens_at(
    dir: impl AsFd, name: &[u8], atime: SetTime, mtime: SetTime,
) -> Result<()> {
    let times = Timestamps {
        last_access: atime.to_timespec(),
        last_modification: mtime.to_timespec(),
    };
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::EMPTY_PATH;
    change("utimensat", || {
        rustix::fs::utimensat(dir, name, &times, flags)
    })
}
