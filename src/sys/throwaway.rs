//! A FUSE connection that is never mounted, to try what the kernel allows: only a connection whose
//! first request was answered can tell.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, MemfdFlags, Mode, OFlags, memfd_create};
use rustix::mount::{FsOpenFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsopen};

use super::{Errno, Result};

/// The kernel sends its first request while the filesystem is made; this only bounds a kernel that
/// does otherwise.
const PATIENCE: Timespec = Timespec {
    tv_sec: 2,
    tv_nsec: 0,
};
/// Less is refused by the kernel.
const READ_BUFFER: usize = 8192;
/// struct fuse_in_header and struct fuse_init_in of linux/fuse.h.
const IN_HEADER: usize = 40;
/// struct fuse_out_header and struct fuse_init_out.
const OUT_HEADER: usize = 16;
const INIT_OUT: usize = 64;
/// Opcode of the first request.
const INIT: u32 = 26;
/// Flags of INIT, the low and the high word.
const INIT_EXT: u32 = 1 << 30;
const PASSTHROUGH: u32 = 1 << 5;
/// The version of the protocol in which passthrough came.
const MAJOR: u32 = 7;
const MINOR: u32 = 40;

/// What a connection is told when it starts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Offer {
    /// The kernel knows passthrough.
    pub passthrough: bool,
}

/// The connection; it ends when this is dropped. The device goes first, so that nothing waits for an
/// answer.
#[derive(Debug)]
pub(crate) struct Connection {
    device: OwnedFd,
    _filesystem: OwnedFd,
}

impl Connection {
    /// Makes a connection without a mount.
    ///
    /// # Errors
    /// What the calls give: EPERM without CAP_SYS_ADMIN, ENOSYS before Linux 5.2.
    pub fn new() -> Result<Self> {
        let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let device = rustix::fs::openat(CWD, c"/dev/fuse", flags, Mode::empty())?;
        let filesystem = fsopen(c"fuse", FsOpenFlags::FSOPEN_CLOEXEC)?;
        let settings = [
            ("fd", device.as_raw_fd().to_string()),
            ("rootmode", "40000".to_owned()),
            ("user_id", rustix::process::getuid().as_raw().to_string()),
            ("group_id", rustix::process::getgid().as_raw().to_string()),
        ];
        for (key, value) in settings {
            fsconfig_set_string(&filesystem, key, value)?;
        }
        fsconfig_set_flag(&filesystem, c"default_permissions")?;
        fsconfig_create(&filesystem)?;
        Ok(Self {
            device,
            _filesystem: filesystem,
        })
    }

    /// The connection's device.
    pub fn device(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }

    /// Answers the first request, and asks for passthrough if it is offered, with files that are on
    /// no stacked filesystem themselves.
    ///
    /// # Errors
    /// ETIMEDOUT when the request does not come, EPROTO when it is not the one expected.
    pub fn start(&self) -> Result<Offer> {
        let mut events = [PollFd::new(&self.device, PollFlags::IN)];
        if poll(&mut events, Some(&PATIENCE))? == 0 {
            return Err(Errno::TIMEDOUT);
        }
        let mut request = [0; READ_BUFFER];
        let len = rustix::io::read(&self.device, &mut request)?;
        let word = |at: usize| {
            let bytes = request[..len].get(at..at + 4).and_then(|b| b.first_chunk());
            bytes.map(|b| u32::from_ne_bytes(*b))
        };
        let (Some(INIT), Some(MAJOR)) = (word(4), word(IN_HEADER)) else {
            return Err(Errno::PROTO);
        };
        let minor = word(IN_HEADER + 4).unwrap_or_default();
        // Before the flags had a second word there was no passthrough.
        let more = word(IN_HEADER + 12).is_some_and(|flags| flags & INIT_EXT != 0);
        let offered = word(IN_HEADER + 16).unwrap_or_default();
        let offer = Offer {
            passthrough: more && minor >= MINOR && offered & PASSTHROUGH != 0,
        };
        let mut reply = [0; OUT_HEADER + INIT_OUT];
        let mut put = |at: usize, bytes: &[u8]| reply[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &((OUT_HEADER + INIT_OUT) as u32).to_ne_bytes());
        put(8, &request[8..16]);
        let flags = if offer.passthrough { PASSTHROUGH } else { 0 };
        let words = [
            (0, MAJOR),
            (4, minor.min(MINOR)),
            (12, if offer.passthrough { INIT_EXT } else { 0 }),
            // The largest write, in bytes.
            (20, 4096),
            (32, flags),
            // Levels of stacked filesystems below, and this one.
            (36, 1),
        ];
        for (at, value) in words {
            put(OUT_HEADER + at, &value.to_ne_bytes());
        }
        rustix::io::write(&self.device, &reply)?;
        Ok(offer)
    }
}

/// A file on no filesystem of anybody's.
pub(crate) fn nameless_file() -> Result<OwnedFd> {
    memfd_create(c"unionfs-probe", MemfdFlags::CLOEXEC)
}
