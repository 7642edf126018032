//! Changing the flags of a running mount, as `mount -o remount` asks for.
//!
//! It is a matter of the kernel, but for access times, which the daemon is told of. No other daemon is started.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::fuse::kernel_flags;
use crate::options::{KernelFlags, Options, SUBTYPE};
use crate::sys::{self, Errno};
use crate::union::control::access_times_word;

use super::{MountError, Reason};

/// An attribute that nobody has. A union without an upper refuses to remove it before it looks.
const PROBE: &[u8] = b"user.unionfs-probe";

/// Checks that `mountpoint` is a mount of this program.
///
/// # Errors
/// One line that says so when it is not.
pub fn check_remount(options: &Options, mountpoint: &Path) -> Result<(), MountError> {
    let fail = |reason: String| Reason::Remount {
        path: mountpoint.to_owned(),
        reason,
    };
    let table = fs::read("/proc/self/mountinfo").map_err(|e| fail(e.to_string()))?;
    let ours = [SUBTYPE.as_bytes(), options.subtype().as_bytes()];
    match sys::mount::kind_at(&table, mountpoint) {
        Some(kind)
            if kind
                .strip_prefix(b"fuse.")
                .is_some_and(|kind| ours.contains(&kind)) =>
        {
            Ok(())
        }
        Some(kind) => {
            let kind = kind.escape_ascii();
            Err(fail(format!("mounted as {kind}, not as fuse.{SUBTYPE}")).into())
        }
        None => Err(fail("nothing is mounted there".to_owned()).into()),
    }
}

/// Gives the mount at `mountpoint`, a path without symlinks, the flags of `options`: `ro`, `nosuid`,
/// `noatime` and the like. Other options of a running mount cannot be changed and are left alone.
///
/// # Errors
/// One line, when it is no mount of this program, the caller may not do it, files are open for writing,
/// or `rw` is asked of a union that has nowhere to write. Nothing has changed then.
pub fn remount(options: &Options, mountpoint: &Path) -> Result<(), MountError> {
    check_remount(options, mountpoint)?;
    let fail = |reason: String| {
        let path = mountpoint.to_owned();
        MountError::from(Reason::Remount { path, reason })
    };
    let kernel = |read_only| {
        let path = mountpoint.as_os_str().as_bytes();
        let flags = kernel_flags(options.kernel_flags, read_only);
        sys::mount::remount(path, flags).map_err(|e| match e {
            Errno::PERM => fail("only root may change a mount".to_owned()),
            Errno::BUSY => fail("busy, files are open for writing".to_owned()),
            e => fail(std::io::Error::from(e).to_string()),
        })
    };
    kernel(options.read_only)?;
    if !options.read_only && sys::xattr::remove_path(mountpoint, PROBE) == Err(Errno::ROFS) {
        kernel(true)?;
        let reason = "rw: it was mounted with ro or without upperdir and takes no changes";
        return Err(fail(reason.to_owned()));
    }
    if !options.read_only {
        tell_access_times(options.kernel_flags, mountpoint);
    }
    Ok(())
}

/// Has the daemon go by the rule for access times that `flags` ask for. One that cannot, because it is older or the
/// upper is not served from a mount of its own, goes on as before.
fn tell_access_times(flags: KernelFlags, mountpoint: &Path) {
    let told = fs::File::open(mountpoint).map(|root| {
        let word = access_times_word(flags);
        sys::ioctl::control(&root, sys::ioctl::ACCESS_TIMES, word)
    });
    tracing::debug!("access times told: {told:?}");
}
