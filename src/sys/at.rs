//! Calls on one name in one directory. No name here holds a slash, so none can leave the directory.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, CWD, Gid, Mode, OFlags, RenameFlags, ResolveFlags, Timespec, Timestamps, Uid,
};

use super::doubt::{self, settle};
use super::fault::change;
use super::stat::{Time, stat_at};
use super::{Errno, FileKind, Result};

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
            Err(e) if doubt::is_open(e) && flags.contains(OFlags::CREATE | OFlags::EXCL) => {
                let is_new = doubt::is_new(dir.as_fd(), name, FileKind::Regular, 0);
                let flags = flags - (OFlags::CREATE | OFlags::EXCL);
                let again =
                    || rustix::fs::openat2(dir.as_fd(), name, flags, Mode::empty(), resolve);
                return is_new.then(again).and_then(Result::ok).ok_or(e);
            }
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
    let dir = dir.as_fd();
    let made = change("mkdirat", || {
        rustix::fs::mkdirat(dir, name, Mode::from_raw_mode(mode))
    });
    settle(made, || doubt::is_new(dir, name, FileKind::Directory, 0))
}

/// Makes a node of the type in `mode`.
pub(crate) fn mknod_at(dir: impl AsFd, name: &[u8], mode: u32, rdev: u64) -> Result<()> {
    let dir = dir.as_fd();
    let kind = rustix::fs::FileType::from_raw_mode(mode);
    let bits = Mode::from_raw_mode(mode & 0o7777);
    let made = change("mknodat", || {
        rustix::fs::mknodat(dir, name, kind, bits, rdev)
    });
    settle(made, || {
        doubt::is_new(dir, name, FileKind::from_mode(mode), rdev)
    })
}

/// Makes a symlink.
pub(crate) fn symlink_at(target: &[u8], dir: impl AsFd, name: &[u8]) -> Result<()> {
    let dir = dir.as_fd();
    let made = change("symlinkat", || rustix::fs::symlinkat(target, dir, name));
    settle(made, || doubt::is_new_symlink(dir, name, target))
}

/// The target of a symlink; an empty name reads the O_PATH handle `dir` itself.
pub(crate) fn readlink_at(dir: impl AsFd, name: &[u8]) -> Result<Vec<u8>> {
    rustix::fs::readlinkat(dir, name, Vec::with_capacity(256)).map(std::ffi::CString::into_bytes)
}

/// Adds a name to an existing object; a symlink is linked itself.
pub(crate) fn link_at(
    old_dir: impl AsFd, old: &[u8], new_dir: impl AsFd, new: &[u8],
) -> Result<()> {
    let (old_dir, new_dir) = (old_dir.as_fd(), new_dir.as_fd());
    let linked = change("linkat", || {
        rustix::fs::linkat(old_dir, old, new_dir, new, AtFlags::empty())
    });
    settle(linked, || doubt::is_one((old_dir, old), (new_dir, new)))
}

/// Gives an open file (O_TMPFILE, or still linked elsewhere) a name.
pub(crate) fn link_fd(fd: impl AsFd, new_dir: impl AsFd, new: &[u8]) -> Result<()> {
    // Linux 6.10 lets who opened the file do it so, the ones before whoever has
    // CAP_DAC_READ_SEARCH; anybody else is told ENOENT.
    let (fd, new_dir) = (fd.as_fd(), new_dir.as_fd());
    let directly = || rustix::fs::linkat(fd, c"", new_dir, new, AtFlags::EMPTY_PATH);
    let is_done = || doubt::is_one((fd, b""), (new_dir, new));
    match change("linkat", directly) {
        Err(Errno::NOENT | Errno::INVAL) => {}
        result => return settle(result, is_done),
    }
    let path = super::fd::proc_path(fd);
    let linked = change("linkat", || {
        rustix::fs::linkat(CWD, path.as_slice(), new_dir, new, AtFlags::SYMLINK_FOLLOW)
    });
    settle(linked, is_done)
}

/// Removes a name that is not a directory.
pub(crate) fn unlink_at(dir: impl AsFd, name: &[u8]) -> Result<()> {
    let dir = dir.as_fd();
    let removed = change("unlinkat", || {
        rustix::fs::unlinkat(dir, name, AtFlags::empty())
    });
    settle(removed, || doubt::is_gone(dir, name))
}

/// Removes an empty directory.
pub(crate) fn rmdir_at(dir: impl AsFd, name: &[u8]) -> Result<()> {
    let dir = dir.as_fd();
    let removed = change("unlinkat", || {
        rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR)
    });
    settle(removed, || doubt::is_gone(dir, name))
}

/// Renames; plain renameat when no flag is given, for filesystems that know no flags. On these
/// `NOREPLACE` is a look and a rename: for names that nobody else makes meanwhile.
pub(crate) fn rename_at(
    old_dir: impl AsFd, old: &[u8], new_dir: impl AsFd, new: &[u8], flags: RenameFlags,
) -> Result<()> {
    let (from, to) = ((old_dir.as_fd(), old), (new_dir.as_fd(), new));
    let exchanges = flags.contains(RenameFlags::EXCHANGE);
    // Only this shows afterwards whether two names have changed places.
    let before = exchanges.then(|| stat_at(from.0, old).map(|stat| (stat.dev, stat.ino)));
    let is_done = || {
        let left = stat_at(from.0, old);
        if let Some(before) = before {
            let now = stat_at(to.0, new).map(|stat| (stat.dev, stat.ino));
            return now.is_ok() && now == before;
        }
        let is_away = match left {
            Ok(left) => flags.contains(RenameFlags::WHITEOUT) && left.is_whiteout_device(),
            Err(e) => e == Errno::NOENT,
        };
        is_away && stat_at(to.0, new).is_ok()
    };
    settle(rename_once(from, to, flags), is_done)
}

fn rename_once(
    (old_dir, old): (BorrowedFd<'_>, &[u8]), (new_dir, new): (BorrowedFd<'_>, &[u8]),
    flags: RenameFlags,
) -> Result<()> {
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
        if super::stat::fstat(&handle)?.kind() == FileKind::Symlink {
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
