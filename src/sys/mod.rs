//! The system-call layer: one function per call, nothing of the union known here.
//!
//! rustix makes the calls; this module gives them the project's types (byte names, [`Stat`]), the
//! flags that keep a lookup inside its directory, and the few calls that rustix lacks. It is the one
//! place where unsafe code is allowed.

pub(crate) mod at;
pub(crate) mod caller;
pub(crate) mod connection;
pub(crate) mod copy;
pub(crate) mod cred;
pub(crate) mod daemonize;
pub(crate) mod dir;
mod doubt;
pub(crate) mod fault;
pub(crate) mod fd;
pub(crate) mod file;
pub(crate) mod fusermount;
pub(crate) mod handover;
pub(crate) mod ioctl;
pub(crate) mod map;
pub(crate) mod mount;
pub(crate) mod namespace;
pub(crate) mod own;
pub(crate) mod privileges;
pub(crate) mod shared;
pub(crate) mod stat;
pub(crate) mod sync;
pub(crate) mod throwaway;
pub(crate) mod watch;
pub(crate) mod xattr;

/// An errno as the kernel returned it.
pub type Errno = rustix::io::Errno;

/// The kernel's version, its first two numbers.
pub(crate) fn kernel_version() -> Option<(u32, u32)> {
    let system = rustix::system::uname();
    let release = system.release().to_str().ok()?;
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    let mut next = || numbers.next()?.parse().ok();
    Some((next()?, next()?))
}

/// What every function of this layer returns.
pub type Result<T> = std::result::Result<T, Errno>;

pub use stat::{FileKind, Stat};
