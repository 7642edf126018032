//! Mount calls: private clones of a layer's mount, and unmounting.

use std::ffi::OsString;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags};
pub(crate) use rustix::mount::MountFlags;
use rustix::mount::{OpenTreeFlags, UnmountFlags};

use super::{Errno, Result};

/// A detached clone of the mount that holds `path`, rooted there, without the mounts below it.
///
/// Lookups through the clone never meet a mount that was made over or inside the directory, so a
/// union may be mounted over its own layer. With `read_only` no descriptor opened through it, by
/// whatever route, can write.
pub(crate) fn clone_tree(dir: impl AsFd, read_only: bool) -> Result<OwnedFd> {
    let path = super::fd::proc_path(dir.as_fd());
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = rustix::mount::open_tree(CWD, path.as_slice(), flags)?;
    if read_only {
        set_read_only(&tree, false)?;
    }
    Ok(tree)
}

/// struct mount_attr of linux/mount.h.
#[repr(C)]
#[derive(Default)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    userns_fd: u64,
}

/// Makes a detached mount read-only and, with it, free of access-time updates; with `below` those on
/// top of it too.
pub(crate) fn set_read_only(tree: impl AsFd, below: bool) -> Result<()> {
    const RDONLY: u64 = 1;
    let attr = MountAttr {
        set: RDONLY,
        ..MountAttr::default()
    };
    set_attributes(tree, &attr, below)
}

/// When reading changes access times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AccessTimes {
    /// noatime.
    Never,
    /// relatime: once a day, and after a change.
    Relative,
    /// strictatime.
    Always,
}

/// Has a detached mount, given by its root, go by `rule`, if there is one, and say `of_directories` for those.
pub(crate) fn set_access_times(
    tree: impl AsFd, rule: Option<AccessTimes>, of_directories: bool,
) -> Result<()> {
    const RULES: u64 = 0x70;
    const NODIRATIME: u64 = 0x80;
    let mut attr = MountAttr::default();
    if let Some(rule) = rule {
        attr.clear = RULES;
        attr.set = match rule {
            AccessTimes::Relative => 0,
            AccessTimes::Never => 0x10,
            AccessTimes::Always => 0x20,
        };
    }
    if of_directories {
        attr.clear |= NODIRATIME;
    } else {
        attr.set |= NODIRATIME;
    }
    set_attributes(tree, &attr, false)
}

fn set_attributes(tree: impl AsFd, attr: &MountAttr, below: bool) -> Result<()> {
    const RECURSIVE: libc::c_int = 0x8000;
    const SYS_MOUNT_SETATTR: libc::c_long = 442;
    // SAFETY: the descriptor is open for the call, the path is a static NUL-terminated string, and
    // the structure has the size that is passed and is only read.
    let ret = unsafe {
        libc::syscall(
            SYS_MOUNT_SETATTR,
            tree.as_fd().as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | if below { RECURSIVE } else { 0 },
            std::ptr::from_ref(attr),
            size_of::<MountAttr>(),
        )
    };
    if ret == 0 {
        Ok(())
    } else {
        Err(super::fd::last_errno())
    }
}

/// What mount(2) needs to know for a FUSE filesystem.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FuseMount<'a> {
    /// First field in /proc/mounts.
    pub source: &'a [u8],
    /// Where.
    pub target: &'a [u8],
    /// Behind the dot of the filesystem type.
    pub subtype: &'a [u8],
    /// nosuid, nodev and the like.
    pub flags: MountFlags,
    /// Other users may use it.
    pub allow_other: bool,
    /// Further options, each with a comma before it.
    pub extra: &'a [u8],
}

/// Opens the device for a new connection.
pub(crate) fn open_fuse_device() -> Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    rustix::fs::openat(CWD, c"/dev/fuse", flags, Mode::empty())
}

/// Mounts a FUSE filesystem directly; `fd`, from [`open_fuse_device`], is its connection.
pub(crate) fn mount_fuse(fd: &OwnedFd, mount: &FuseMount<'_>) -> Result<()> {
    let data = format!(
        "fd={},rootmode=40000,user_id={},group_id={},default_permissions{}",
        fd.as_raw_fd(),
        rustix::process::getuid().as_raw(),
        rustix::process::getgid().as_raw(),
        if mount.allow_other {
            ",allow_other"
        } else {
            ""
        },
    );
    let data = [data.as_bytes(), mount.extra].concat();
    let data = std::ffi::CString::new(data).map_err(|_| Errno::INVAL)?;
    let kind = [b"fuse.", mount.subtype].concat();
    rustix::mount::mount(
        mount.source,
        mount.target,
        kind,
        mount.flags,
        data.as_c_str(),
    )
}

/// Unmounts; `lazy` detaches at once and lets open files go on.
pub(crate) fn unmount(path: &[u8], lazy: bool) -> Result<()> {
    let flags = if lazy {
        UnmountFlags::DETACH
    } else {
        UnmountFlags::empty()
    };
    rustix::mount::unmount(path, flags)
}

/// Changes the flags of the mount at `path` and of its filesystem to exactly these, except that
/// without a flag for access times their rule stays.
pub(crate) fn remount(path: &[u8], flags: MountFlags) -> Result<()> {
    rustix::mount::mount_remount(path, flags, c"")
}

/// Makes this process one of the mount namespace that the file `path` stands for; its directory
/// is the root there. Refused when the process has a second thread.
pub(crate) fn enter_namespace(path: &Path) -> Result<()> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let namespace = rustix::fs::openat(CWD, path, flags, Mode::empty())?;
    let kind = rustix::thread::LinkNameSpaceType::Mount;
    rustix::thread::move_into_link_name_space(namespace.as_fd(), Some(kind))
}

/// The type of the filesystem that is mounted at `path`, by the mount table `mountinfo` (the text
/// of /proc/self/mountinfo); of several the topmost.
pub(crate) fn kind_at<'a>(mountinfo: &'a [u8], path: &Path) -> Option<&'a [u8]> {
    let line = mountinfo.split(|&b| b == b'\n').rfind(|line| {
        let place = line.split(|&b| b == b' ').nth(4);
        place.is_some_and(|place| unescape(place) == path.as_os_str().as_bytes())
    })?;
    let mut fields = line.split(|&b| b == b' ').skip_while(|field| field != b"-");
    fields.nth(1)
}

/// Gives freed heap memory back to the system.
pub(crate) fn trim_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim has no precondition.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// What tells a mount from any other at its place, as far as the kernel knows it without asking its server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    /// The minor number of its device, which for FUSE is the number of the connection. It is given to
    /// another mount when this one is gone.
    pub device: u32,
    /// From Linux 6.8 on a number that no other mount ever has.
    mount: u64,
}

/// What stands at `path`.
pub(crate) fn identity(path: &Path) -> Result<Identity> {
    /// `STATX_MNT_ID_UNIQUE` of linux/stat.h.
    const UNIQUE: u32 = 0x4000;
    let wanted = rustix::fs::StatxFlags::MNT_ID.bits() | UNIQUE;
    let wanted = rustix::fs::StatxFlags::from_bits_retain(wanted);
    let flags = rustix::fs::AtFlags::STATX_DONT_SYNC;
    let found = rustix::fs::statx(CWD, path, flags, wanted)?;
    Ok(Identity {
        device: found.stx_dev_minor,
        mount: found.stx_mnt_id,
    })
}

/// An id of the mount that `fd` was opened through; `None` before Linux 5.8.
pub(crate) fn id(fd: impl AsFd) -> Option<u64> {
    let flags = rustix::fs::AtFlags::EMPTY_PATH;
    let got = rustix::fs::statx(fd, c"", flags, rustix::fs::StatxFlags::MNT_ID).ok()?;
    (got.stx_mask & rustix::fs::StatxFlags::MNT_ID.bits() != 0).then_some(got.stx_mnt_id)
}

/// The path of the directory `fd` from the root of its filesystem, by the mount table `mountinfo`
/// (the text of /proc/self/mountinfo); `None` when the table does not say.
pub(crate) fn inner_path(mountinfo: &[u8], fd: impl AsFd) -> Option<PathBuf> {
    let id = id(fd.as_fd())?.to_string();
    let path = super::fd::real_path(fd).ok()?;
    let line = mountinfo
        .split(|&b| b == b'\n')
        .find(|line| line.split(|&b| b == b' ').next() == Some(id.as_bytes()))?;
    let mut fields = line.split(|&b| b == b' ');
    let root = PathBuf::from(OsString::from_vec(unescape(fields.nth(3)?)));
    let mountpoint = PathBuf::from(OsString::from_vec(unescape(fields.next()?)));
    Some(root.join(path.strip_prefix(mountpoint).ok()?))
}

/// The type of the filesystem that `fd` was opened through, and of FUSE the user who mounted it, by the
/// mount table `mountinfo` (the text of /proc/self/mountinfo).
pub(crate) fn kind_of(mountinfo: &[u8], fd: impl AsFd) -> Option<(Vec<u8>, Option<u32>)> {
    let id = id(fd)?.to_string();
    let line = mountinfo
        .split(|&b| b == b'\n')
        .find(|line| line.split(|&b| b == b' ').next() == Some(id.as_bytes()))?;
    let mut fields = line
        .split(|&b| b == b' ')
        .skip_while(|field| *field != b"-");
    let kind = fields.nth(1)?.to_vec();
    let options = fields.nth(1).unwrap_or_default();
    let mut options = options.split(|&b| b == b',');
    let user = options.find_map(|option| option.strip_prefix(b"user_id="));
    let user = user.and_then(|user| std::str::from_utf8(user).ok()?.parse().ok());
    Some((kind, user))
}

/// Undoes the octal escapes of /proc/self/mountinfo and /etc/fstab.
pub(crate) fn unescape(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, tail)) = rest.split_first() {
        let code = tail.get(..3).and_then(|t| std::str::from_utf8(t).ok());
        match code
            .and_then(|c| u8::from_str_radix(c, 8).ok())
            .filter(|_| first == b'\\')
        {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[3..];
            }
            None => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{kind_at, unescape};

    #[test]
    fn the_topmost_mount_counts() {
        let table = b"1 0 8:1 / / rw,relatime shared:1 - ext4 /dev/a rw\n\
            2 1 0:9 / /a\\040b rw - fuse.unionfs /l:/m rw\n\
            3 2 0:8 / /a\\040b rw shared:2 master:1 - tmpfs none rw\n\
            4 1 0:7 / /m rw - fuse.unionfs - rw\n";
        assert_eq!(kind_at(table, Path::new("/a b")), Some(&b"tmpfs"[..]));
        assert_eq!(kind_at(table, Path::new("/m")), Some(&b"fuse.unionfs"[..]));
        assert_eq!(kind_at(table, Path::new("/a")), None);
        assert_eq!(kind_at(b"", Path::new("/")), None);
    }

    #[test]
    fn mount_table_escapes_are_undone() {
        assert_eq!(unescape(b"/a\\040b\\134c"), b"/a b\\c");
        assert_eq!(unescape(b"/a\\"), b"/a\\");
        assert_eq!(unescape(b"/a\\9"), b"/a\\9");
    }
}
