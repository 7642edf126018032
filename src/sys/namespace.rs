//! Namespaces, and what makes a root directory in one of them.

use std::io;
use std::path::Path;

use nix::sched::{CloneFlags, unshare};
use rustix::fs::CWD;
use rustix::mount::{
    MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags,
};

use super::Result;

/// What a process gets for itself.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Own {
    /// Users: this process has all capabilities there.
    pub users: bool,
    /// Mounts.
    pub mounts: bool,
    /// Processes: those that it forks from now on are in there.
    pub processes: bool,
    /// The network, with nothing but a loopback device that is down.
    pub network: bool,
}

/// Leaves the namespaces that this process is in. It has to have one thread.
pub(crate) fn leave(own: Own) -> io::Result<()> {
    let mut flags = CloneFlags::empty();
    flags.set(CloneFlags::CLONE_NEWUSER, own.users);
    flags.set(CloneFlags::CLONE_NEWNS, own.mounts);
    flags.set(CloneFlags::CLONE_NEWPID, own.processes);
    flags.set(CloneFlags::CLONE_NEWNET, own.network);
    Ok(unshare(flags)?)
}

/// No mount that is made or goes here is seen elsewhere. What goes elsewhere goes here too, where mounts
/// are shared at all: else it would be held for as long as we are.
pub(crate) fn keep_mounts_to_us() -> Result<()> {
    let flags = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", flags)
}

/// Mounts a filesystem that has no device.
pub(crate) fn mount_new(kind: &str, target: &Path, data: &str, exec: bool) -> Result<()> {
    let mut flags = MountFlags::NOSUID | MountFlags::NODEV;
    flags.set(MountFlags::NOEXEC, !exec);
    let data = std::ffi::CString::new(data).unwrap_or_default();
    rustix::mount::mount(kind, target, kind, flags, data.as_c_str())
}

/// Makes what is at `from`, with all mounts below it, appear at `to` too.
pub(crate) fn bind(from: &Path, to: &Path, read_only: bool) -> Result<()> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_RECURSIVE;
    let tree = rustix::mount::open_tree(CWD, from, flags)?;
    if read_only {
        super::mount::set_read_only(&tree, true)?;
    }
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    rustix::mount::move_mount(&tree, c"", CWD, to, flags)
}

/// Makes a mount point the root directory of this process, and all else unreachable.
pub(crate) fn enter_root(root: &Path) -> io::Result<()> {
    rustix::process::chdir(root)?;
    // The old root comes to lie over the new one, and goes from there.
    nix::unistd::pivot_root(".", ".")?;
    rustix::mount::unmount(".", UnmountFlags::DETACH)?;
    Ok(rustix::process::chdir("/")?)
}

/// This process is killed when its parent ends.
pub(crate) fn end_with_parent() -> io::Result<()> {
    let kill = rustix::process::Signal::KILL;
    Ok(rustix::process::set_parent_process_death_signal(Some(
        kill,
    ))?)
}

/// Brings up the loopback device of the network namespace of this process.
pub(crate) fn bring_up_loopback() -> io::Result<()> {
    use rustix::net::{AddressFamily, SocketType};
    use std::os::fd::AsRawFd;
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None)?;
    // SAFETY: all-zero bytes are a valid ifreq: an empty name and no address.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = *from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: the socket is open for the call, which only reads the request, a whole ifreq.
    let done = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
    match done {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
