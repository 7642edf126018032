//! What is negotiated with the kernel (see `docs/DESIGN.md` for what each choice buys).

use std::io;

use fuser::{InitFlags, KernelConfig};

use super::io::Way;

/// Largest read and write request in bytes; the kernel's default limit of pages gives no more.
pub(super) const MAX_WRITE: u32 = 1 << 20;
/// Requests that the kernel may have under way on its own behalf (readahead, write-back).
const MAX_BACKGROUND: u16 = 64;

/// Taken where the kernel offers them.
const WANTED: [InitFlags; 16] = [
    InitFlags::FUSE_ASYNC_READ,
    InitFlags::FUSE_ASYNC_DIO,
    InitFlags::FUSE_MAX_PAGES,
    InitFlags::FUSE_BIG_WRITES,
    // O_TRUNC comes with the open: then no data are copied up only to be cut off.
    InitFlags::FUSE_ATOMIC_O_TRUNC,
    InitFlags::FUSE_DO_READDIRPLUS,
    InitFlags::FUSE_READDIRPLUS_AUTO,
    InitFlags::FUSE_PARALLEL_DIROPS,
    InitFlags::FUSE_CACHE_SYMLINKS,
    InitFlags::FUSE_HAS_IOCTL_DIR,
    // Pages go when a file turns out to have changed.
    InitFlags::FUSE_AUTO_INVAL_DATA,
    InitFlags::FUSE_HANDLE_KILLPRIV_V2,
    // Both together: a directory's default ACL replaces the umask, so the umask must come to us.
    InitFlags::FUSE_POSIX_ACL,
    InitFlags::FUSE_DONT_MASK,
    // Never both: the kernel would drop the first without a word. See `io`.
    InitFlags::FUSE_PASSTHROUGH,
    InitFlags::FUSE_WRITEBACK_CACHE,
];

/// Negotiates. With `must_check` the kernel has to check permissions because of what is negotiated,
/// as nobody knows whether it was asked to when the mount was made. Otherwise ACLs are neither asked
/// for nor enforced without `acls`. Pages are kept whatever the times of a file, unless layers are
/// `changing` unnoticed.
pub(crate) fn negotiate(
    config: &mut KernelConfig, way: Way, max_write: u32, must_check: bool, acls: bool,
    changing: bool,
) -> io::Result<()> {
    // ACLs imply `default_permissions`, in every kernel that has them.
    if must_check && !config.capabilities().contains(InitFlags::FUSE_POSIX_ACL) {
        let reason = "the kernel has no ACLs, so it may not check permissions on this mount";
        return Err(io::Error::new(io::ErrorKind::Unsupported, reason));
    }
    let wanted = |flag: &InitFlags| acls || must_check || *flag != InitFlags::FUSE_POSIX_ACL;
    let data = |flag: &InitFlags| changing || *flag != InitFlags::FUSE_AUTO_INVAL_DATA;
    let fits = |flag: &InitFlags| wanted(flag) && data(flag) && !way.leaves_out(*flag);
    for flag in WANTED.into_iter().filter(fits) {
        if config.add_capabilities(flag).is_err() {
            tracing::debug!("the kernel does not offer {flag:?}");
        }
    }
    // All three take a smaller value where the kernel has one; their errors name it.
    if let Err(max) = config.set_max_write(max_write) {
        let _ = config.set_max_write(max);
    }
    let _ = config.set_max_background(MAX_BACKGROUND);
    // Our objects may be the layers of kernel overlayfs: one level of stacking is left to it.
    let _ = config.set_max_stack_depth(1);
    Ok(())
}
