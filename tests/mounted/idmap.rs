//! Mounts that show other owners than their filesystem stores.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::process::Command;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{MoveMountFlags, OpenTreeFlags};

/// struct mount_attr of linux/mount.h.
#[repr(C)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    userns_fd: u64,
}

const MOUNT_ATTR_IDMAP: u64 = 0x0010_0000;

/// Mounts `from` at `to`; of `(stored, shown, count)` ids each stored one shows as another.
pub fn mount(from: &Path, to: &Path, map: (u32, u32, u32)) {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = rustix::mount::open_tree(CWD, from, flags).unwrap();
    let namespace = namespace(map);
    let attr = MountAttr {
        set: MOUNT_ATTR_IDMAP,
        clear: 0,
        propagation: 0,
        userns_fd: u64::try_from(namespace.as_raw_fd()).unwrap(),
    };
    // SAFETY: both descriptors are open, the path ends with NUL, and the structure has the size that
    // is given.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attr,
            size_of::<MountAttr>(),
        )
    };
    assert_eq!(
        done,
        0,
        "mount_setattr: {}",
        std::io::Error::last_os_error()
    );
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    rustix::mount::move_mount(&tree, "", CWD, to, flags).unwrap();
}

/// A user namespace with that map; its process is gone, the descriptor keeps it.
fn namespace((stored, shown, count): (u32, u32, u32)) -> OwnedFd {
    let mut child = Command::new("unshare")
        .args(["-U", "sleep", "30"])
        .spawn()
        .unwrap();
    let pid = child.id();
    let own = std::fs::read_link("/proc/self/ns/user").unwrap();
    let path = format!("/proc/{pid}/ns/user");
    let entered = || {
        std::fs::read_link(&path)
            .is_ok_and(|theirs| theirs != own)
            .then_some(())
    };
    let entered = crate::process::wait_for(std::time::Duration::from_secs(10), entered);
    for kind in ["uid_map", "gid_map"] {
        let map = format!("{stored} {shown} {count}");
        std::fs::write(format!("/proc/{pid}/{kind}"), map).unwrap();
    }
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let fd = crate::process::open_file(&path, flags, Mode::empty());
    let _ = child.kill();
    let _ = child.wait();
    assert!(entered.is_some(), "no user namespace can be made");
    fd.unwrap()
}
