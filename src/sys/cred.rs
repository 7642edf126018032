//! Acting as the caller: file-system ids and umask of the current thread.
//!
//! An object made on the upper must have its owner, group, mode and ACL in one step, exactly as
//! the backing filesystem gives them to a local process. So the thread takes the caller's
//! file-system ids and umask for the call. Its capabilities stay (securebit
//! `NO_SETUID_FIXUP`): permission was checked by the kernel on the union, where the caller's
//! groups are known.

use std::cell::Cell;

use rustix::fs::Mode;
use rustix::thread::{CapabilitiesSecureBits, UnshareFlags};

/// Who asks, as far as making objects goes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Creds {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// The caller's umask.
    pub umask: u32,
}

thread_local! {
    /// This thread's own ids, once it was prepared.
    static OWN: Cell<Option<(u32, u32)>> = const { Cell::new(None) };
    static UMASK: Cell<u32> = const { Cell::new(u32::MAX) };
}

/// Gives this thread a umask and credentials of its own; returns its ids.
fn prepare() -> (u32, u32) {
    if let Some(ids) = OWN.get() {
        return ids;
    }
    // SAFETY: CLONE_FS only detaches this thread's umask and working directory from the other
    // threads'; no descriptor table or memory is touched.
    if let Err(e) = unsafe { rustix::thread::unshare_unsafe(UnshareFlags::FS) } {
        // A sandbox may forbid unshare; the umask is then shared by the threads, and modes of
        // objects made at the same moment may be wrong. Better to say so than to be silent.
        tracing::warn!("unshare(CLONE_FS) failed ({e}): umasks of concurrent callers may mix");
    }
    let ids = (
        rustix::process::geteuid().as_raw(),
        rustix::process::getegid().as_raw(),
    );
    let bits = CapabilitiesSecureBits::NO_SETUID_FIXUP;
    // Without CAP_SETPCAP this fails: then this process is no one else's agent either, and the
    // ids are never switched.
    let _ = rustix::thread::capabilities_secure_bits()
        .and_then(|old| rustix::thread::set_capabilities_secure_bits(old | bits));
    OWN.set(Some(ids));
    ids
}

/// Puts the daemon's own ids back when dropped.
#[derive(Debug)]
pub(crate) struct AsCaller {
    restore: Option<(u32, u32)>,
}

/// Acts as `creds` until the result is dropped.
pub(crate) fn enter(creds: Creds) -> AsCaller {
    let own = prepare();
    set_umask(creds.umask);
    if (creds.uid, creds.gid) == own || own.0 != 0 {
        // An unprivileged daemon cannot switch; its own ids are the only right answer.
        return AsCaller { restore: None };
    }
    set_fs_ids(creds.uid, creds.gid);
    AsCaller { restore: Some(own) }
}

/// Prepares this thread to make objects of the daemon's own (whiteouts, temporaries): its own
/// ids, and modes that are not masked.
pub(crate) fn enter_own() {
    prepare();
    set_umask(0);
}

impl Drop for AsCaller {
    fn drop(&mut self) {
        if let Some((uid, gid)) = self.restore {
            set_fs_ids(uid, gid);
        }
    }
}

fn set_umask(mask: u32) {
    if UMASK.get() != mask {
        rustix::process::umask(Mode::from_raw_mode(mask & 0o777));
        UMASK.set(mask);
    }
}

/// setfsgid and setfsuid of this thread alone (the raw calls; libc's are the same).
fn set_fs_ids(uid: u32, gid: u32) {
    // SAFETY: both calls only change this thread's credentials; they take plain numbers. They
    // report no error: a daemon that runs as root of its user namespace may take any id mapped
    // there, and an unmapped id never reaches us.
    unsafe {
        libc::syscall(libc::SYS_setfsgid, gid);
        libc::syscall(libc::SYS_setfsuid, uid);
    }
}

/// True when the process may act for other users (root of its user namespace).
pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// True for root of the first user namespace, whose set-id programs act on the whole machine.
pub(crate) fn is_real_root() -> bool {
    is_root() && mapped_ids("uid").contains(&(0, u32::MAX))
}

/// The ids that exist in this process's user namespace: first and count of each range; `kind` is
/// `uid` or `gid`. All where it cannot be read.
pub(crate) fn mapped_ids(kind: &str) -> Vec<(u32, u32)> {
    let Ok(text) = std::fs::read_to_string(format!("/proc/self/{kind}_map")) else {
        return vec![(0, u32::MAX)];
    };
    let range = |line: &str| {
        let mut numbers = line.split_whitespace();
        let (first, _, count) = (numbers.next()?, numbers.next()?, numbers.next()?);
        Some((first.parse().ok()?, count.parse().ok()?))
    };
    text.lines().filter_map(range).collect()
}
