//! What a process that serves a mount gives up once the mount is made: capabilities that serving does not
//! take, and the gain of others by running programs. docs/SECURITY.md says for what each one stays.

use std::sync::atomic::{AtomicBool, Ordering};

use rustix::thread::{CapabilitySet, CapabilitySets};

use super::{Errno, Result, cred};

/// What serving takes.
const NEEDED: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::DAC_READ_SEARCH)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::LINUX_IMMUTABLE)
    .union(CapabilitySet::MAC_ADMIN)
    .union(CapabilitySet::MAC_OVERRIDE)
    .union(CapabilitySet::MKNOD)
    .union(CapabilitySet::SETFCAP)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SYS_ADMIN)
    .union(CapabilitySet::SYS_PTRACE);

/// More than there are.
const CAPABILITIES: u32 = 64;

/// This process is there to serve a mount and does nothing else.
static SERVES_ONLY: AtomicBool = AtomicBool::new(false);

/// Gives up what serving does not take, for this thread and those that it makes from now on.
///
/// # Errors
/// What the calls give; what was given up until then stays so.
pub(crate) fn give_up() -> Result<()> {
    SERVES_ONLY.store(true, Ordering::Release);
    // Threads inherit what this takes a capability for that is given up.
    cred::can_switch();
    let sets = rustix::thread::capabilities(None)?;
    if sets.effective.contains(CapabilitySet::SETPCAP) {
        for number in 0..CAPABILITIES {
            let one = CapabilitySet::from_bits_retain(1 << number);
            if NEEDED.contains(one) {
                continue;
            }
            match rustix::thread::remove_capability_from_bounding_set(one) {
                // The kernel has no more.
                Err(Errno::INVAL) => break,
                done => done?,
            }
        }
    }
    let kept = CapabilitySets {
        effective: sets.effective & NEEDED,
        permitted: sets.permitted & NEEDED,
        inheritable: CapabilitySet::empty(),
    };
    rustix::thread::set_capabilities(None, kept)
}

/// From now on no program that this thread, or one that it makes, executes has more rights than this
/// process has. So it must not need fusermount3 any more. Nothing in a process that does not serve only.
pub(crate) fn gain_no_more() {
    if !SERVES_ONLY.load(Ordering::Acquire) {
        return;
    }
    // The call cannot fail with these arguments.
    if let Err(errno) = rustix::thread::set_no_new_privs(true) {
        tracing::warn!("no_new_privs: {errno}");
    }
}
