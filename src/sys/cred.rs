//! Acting as the caller: file-system ids and umask of the current thread.
//!
//! An object made on the upper must have its owner, group, mode and ACL in one step, exactly as
//! the backing filesystem gives them to a local process. So the thread takes the caller's
//! file-system ids and umask for the call. Its capabilities stay (securebit
//! `NO_SETUID_FIXUP`): permission was checked by the kernel on the union, where the caller's
//! groups are known. A daemon that may not switch refuses to make objects for other users: made
//! with its own id, a set-user-id program of theirs would run as this user.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::Mode;
use rustix::thread::{CapabilitiesSecureBits, CapabilitySet, CapabilitySets, UnshareFlags};

use super::{Errno, Result};

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

/// What this thread is, and may become.
#[derive(Clone, Copy, Debug)]
struct Own {
    uid: u32,
    gid: u32,
    /// It may take other ids and keep its capabilities.
    switches: bool,
}

thread_local! {
    /// This thread's own ids, once it was prepared.
    static OWN: Cell<Option<Own>> = const { Cell::new(None) };
    static UMASK: Cell<u32> = const { Cell::new(u32::MAX) };
    /// The last ids that this thread is known to be able to take.
    static TAKEN: Cell<Option<(u32, u32)>> = const { Cell::new(None) };
}

/// Threads share a umask, so none knows what it is.
static SHARED_UMASK: AtomicBool = AtomicBool::new(false);

/// Gives this thread a umask and a working directory of its own, which it would otherwise share with
/// threads that are not ours.
///
/// # Errors
/// EPERM in a sandbox that forbids it.
pub(crate) fn leave_shared_state() -> Result<()> {
    // SAFETY: as in `prepare`.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::FS) }
}

/// Gives this thread a umask and credentials of its own.
fn prepare() -> Own {
    if let Some(own) = OWN.get() {
        return own;
    }
    // SAFETY: CLONE_FS only detaches this thread's umask and working directory from the other
    // threads'; no descriptor table or memory is touched.
    if let Err(e) = unsafe { rustix::thread::unshare_unsafe(UnshareFlags::FS) } {
        // A sandbox may forbid unshare; the umask is then shared by the threads, and modes of
        // objects made at the same moment may be wrong. Better to say so than to be silent.
        if !SHARED_UMASK.swap(true, Ordering::AcqRel) {
            tracing::warn!("unshare(CLONE_FS) failed ({e}): umasks of concurrent callers may mix");
        }
    }
    let own = Own {
        uid: own_uid(),
        gid: rustix::process::getegid().as_raw(),
        switches: has(CapabilitySet::SETUID | CapabilitySet::SETGID) && keep_capabilities(),
    };
    OWN.set(Some(own));
    own
}

/// True when this process has all of `wanted` at its disposal, in its user namespace.
fn has(wanted: CapabilitySet) -> bool {
    rustix::thread::capabilities(None).is_ok_and(|sets| sets.effective.contains(wanted))
}

/// True when this process may open any file, whatever the mode says.
pub(crate) fn overrides_modes() -> bool {
    has(CapabilitySet::DAC_OVERRIDE)
}

/// Has this thread keep its capabilities when it takes another user's id.
fn keep_capabilities() -> bool {
    let bits = CapabilitiesSecureBits::NO_SETUID_FIXUP;
    let Ok(old) = rustix::thread::capabilities_secure_bits() else {
        return false;
    };
    old.contains(bits) || rustix::thread::set_capabilities_secure_bits(old | bits).is_ok()
}

/// The user that this process acts as.
pub(crate) fn own_uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// True when this thread, and any other, may act for other users. Prepares the thread.
pub(crate) fn can_switch() -> bool {
    prepare().switches
}

/// True in the user namespace that the machine started with.
fn in_initial_namespace() -> bool {
    /// `PROC_USER_INIT_INO` of linux/proc_ns.h: the number of the initial user namespace.
    const INITIAL: u64 = 0xEFFF_FFFD;
    rustix::fs::stat("/proc/self/ns/user").is_ok_and(|stat| stat.st_ino == INITIAL)
}

/// True when this process may make device nodes, which only the initial user namespace allows.
pub(crate) fn can_make_devices() -> bool {
    in_initial_namespace() && has(CapabilitySet::MKNOD)
}

/// True for root of the machine, whose set-id programs act on all of it.
pub(crate) fn is_real_root() -> bool {
    is_root() && in_initial_namespace()
}

/// True when mount(2) is not refused for want of a capability.
pub(crate) fn may_mount_somewhere() -> bool {
    has(CapabilitySet::SYS_ADMIN)
}

/// True when set-user-id programs have no effect for this process.
pub(crate) fn no_new_privileges() -> bool {
    rustix::thread::no_new_privs().unwrap_or(false)
}

/// Puts the daemon's own ids back when dropped.
#[derive(Debug)]
pub(crate) struct AsCaller {
    restore: Option<Own>,
}

/// Acts as `creds` until the result is dropped.
///
/// # Errors
/// EPERM when this process may not act for that user, EOVERFLOW when its user namespace has no
/// such id.
pub(crate) fn enter(creds: Creds) -> Result<AsCaller> {
    let own = prepare();
    set_umask(creds.umask);
    if !own.switches {
        // The group is the daemon's then, as far as the directory does not give its own.
        return match creds.uid == own.uid {
            true => Ok(AsCaller { restore: None }),
            false => Err(Errno::PERM),
        };
    }
    if (creds.uid, creds.gid) == (own.uid, own.gid) {
        return Ok(AsCaller { restore: None });
    }
    let caller = AsCaller { restore: Some(own) };
    let ids = (creds.uid, creds.gid);
    set_fs_ids(creds.uid, creds.gid);
    if TAKEN.get() != Some(ids) {
        if !has_fs_ids(creds.uid, creds.gid) {
            return Err(Errno::OVERFLOW);
        }
        TAKEN.set(Some(ids));
    }
    Ok(caller)
}

/// The umask that this thread has taken, for calls to which it makes no difference.
pub(crate) fn present_umask() -> u32 {
    Some(UMASK.get())
        .filter(|&mask| mask != u32::MAX)
        .unwrap_or(0)
}

/// Prepares this thread to make objects of the daemon's own (whiteouts, temporaries): its own
/// ids, and modes that are not masked.
pub(crate) fn enter_own() {
    prepare();
    set_umask(0);
}

impl Drop for AsCaller {
    fn drop(&mut self) {
        if let Some(own) = self.restore {
            set_fs_ids(own.uid, own.gid);
        }
    }
}

fn set_umask(mask: u32) {
    if UMASK.get() != mask || SHARED_UMASK.load(Ordering::Acquire) {
        rustix::process::umask(Mode::from_raw_mode(mask & 0o777));
        UMASK.set(mask);
    }
}

/// Sets this thread's file-system ids; returns those before.
fn set_fs_ids(uid: u32, gid: u32) -> (libc::c_long, libc::c_long) {
    // SAFETY: both calls only change this thread's credentials; they take plain numbers. They are
    // the raw calls, as libc's are the same.
    let group = unsafe { libc::syscall(libc::SYS_setfsgid, gid) };
    // SAFETY: as above.
    let user = unsafe { libc::syscall(libc::SYS_setfsuid, uid) };
    (user, group)
}

/// True when this thread has these file-system ids.
fn has_fs_ids(uid: u32, gid: u32) -> bool {
    // The calls report no error, but answer with the ids before: so an id that no one has, which is
    // always refused, asks for the present ones.
    set_fs_ids(u32::MAX, u32::MAX) == (libc::c_long::from(uid), libc::c_long::from(gid))
}

/// True when the process is root of its user namespace.
pub(crate) fn is_root() -> bool {
    own_uid() == 0
}

/// Runs `call` without this thread's right to keep set-id bits. What the kernel later writes with the
/// credentials of that moment clears the bits, whoever the writer is.
///
/// # Errors
/// What changing the thread's capabilities gives; then nothing was called.
pub(crate) fn without_keeping_set_ids<T>(call: impl FnOnce() -> T) -> Result<T> {
    thread_local! {
        static SETS: Cell<Option<CapabilitySets>> = const { Cell::new(None) };
    }
    let sets = match SETS.get() {
        Some(sets) => sets,
        None => rustix::thread::capabilities(None)?,
    };
    SETS.set(Some(sets));
    if !sets.effective.contains(CapabilitySet::FSETID) {
        return Ok(call());
    }
    let lowered = CapabilitySets {
        effective: sets.effective - CapabilitySet::FSETID,
        ..sets
    };
    rustix::thread::set_capabilities(None, lowered)?;
    let result = call();
    // It is permitted, so it cannot be refused.
    if let Err(e) = rustix::thread::set_capabilities(None, sets) {
        tracing::error!("a capability was not given back: {e}");
    }
    Ok(result)
}
