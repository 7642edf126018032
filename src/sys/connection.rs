//! A FUSE connection that somebody else opened, mounted and passed on as an open descriptor.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::FdFlags;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};

use super::mount::unescape;

/// Device number of /dev/fuse.
const DEVICE: (u32, u32) = (10, 229);

/// How long the first request may be on its way. It waits already when the mount was made before.
const PATIENCE: Timespec = Timespec {
    tv_sec: 5,
    tv_nsec: 0,
};

/// Takes the descriptor `number` over from whoever started this process.
///
/// Must be called before the process opens anything, so that the number can be nobody else's.
///
/// # Errors
/// In words: it is not open, or no mounted connection that waits for its first answer.
pub(crate) fn inherit(number: RawFd) -> std::result::Result<OwnedFd, String> {
    if number <= libc::STDERR_FILENO {
        return Err("0 to 2 are for input and output".to_owned());
    }
    // SAFETY: fcntl takes any number; one that is not open is EBADF.
    if unsafe { libc::fcntl(number, libc::F_GETFD) } < 0 {
        return Err("no such descriptor was passed".to_owned());
    }
    // SAFETY: it is open, and by the contract above nothing else in this process owns it.
    let fd = unsafe { OwnedFd::from_raw_fd(number) };
    if !is_fuse_device(&fd) {
        return Err("not a descriptor of /dev/fuse".to_owned());
    }
    wait_for_request(&fd)?;
    Ok(fd)
}

fn is_fuse_device(fd: &OwnedFd) -> bool {
    rustix::fs::fstat(fd).is_ok_and(|stat| {
        let number = (
            rustix::fs::major(stat.st_rdev),
            rustix::fs::minor(stat.st_rdev),
        );
        FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && number == DEVICE
    })
}

fn wait_for_request(fd: &OwnedFd) -> std::result::Result<(), String> {
    let words = |errno: super::Errno| io::Error::from(errno).to_string();
    rustix::io::fcntl_setfd(fd, FdFlags::CLOEXEC).map_err(words)?;
    // The session would go round in circles on a descriptor that does not wait.
    let flags = rustix::fs::fcntl_getfl(fd).map_err(words)?;
    rustix::fs::fcntl_setfl(fd, flags - OFlags::NONBLOCK).map_err(words)?;
    let mut polled = [PollFd::new(fd, PollFlags::IN)];
    rustix::io::retry_on_intr(|| rustix::event::poll(&mut polled, Some(&PATIENCE)))
        .map_err(words)?;
    let found = polled[0].revents();
    if found.contains(PollFlags::ERR) {
        Err("nothing is mounted with this descriptor".to_owned())
    } else if found.contains(PollFlags::IN) {
        Ok(())
    } else {
        let limit = Duration::try_from(PATIENCE).unwrap_or_default();
        Err(format!(
            "the kernel asks nothing for {} s: somebody else serves it",
            limit.as_secs()
        ))
    }
}

/// The number of the connection `fd`, which is the minor number of its mount's device; `None` where
/// the kernel does not tell (before Linux 6.16 or so), or it is not mounted.
pub(crate) fn number(fd: BorrowedFd<'_>) -> Option<u32> {
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd())).ok()?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("fuse_connection:"))?;
    line.trim().parse().ok()
}

/// Where the connection `number` is mounted, if it is in this mount namespace.
pub(crate) fn mountpoint(number: u32) -> Option<PathBuf> {
    let table = std::fs::read("/proc/self/mountinfo").ok()?;
    let device = format!("0:{number}");
    table.split(|&b| b == b'\n').find_map(|line| {
        let mut fields = line.split(|&b| b == b' ').skip(2);
        let found = fields.next()? == device.as_bytes() && fields.next()? == b"/";
        found.then(|| PathBuf::from(OsString::from_vec(unescape(fields.next().unwrap_or(b"")))))
    })
}

/// Ends the connection `number`: whoever uses the mount gets ENOTCONN. Needs fusectl mounted, or the right
/// to mount it.
pub(crate) fn abort(number: u32) -> io::Result<()> {
    match std::fs::write(format!("/sys/fs/fuse/connections/{number}/abort"), "1") {
        Err(e) if e.kind() == io::ErrorKind::NotFound => abort_unmounted(number).or(Err(e)),
        done => done,
    }
}

/// The same where fusectl is mounted nowhere.
fn abort_unmounted(number: u32) -> io::Result<()> {
    let file = control_file(number, "abort", OFlags::WRONLY)?;
    rustix::io::write(file, b"1").map(drop)?;
    Ok(())
}

/// How many requests of the connection `number` are not answered yet, those that the kernel sends when it
/// likes among them; `None` when that may not be known. Needs what [`abort`] needs.
pub(crate) fn waiting(number: u32) -> Option<u64> {
    let path = format!("/sys/fs/fuse/connections/{number}/waiting");
    let text = std::fs::read(path).or_else(|_| {
        let file = control_file(number, "waiting", OFlags::RDONLY)?;
        let mut text = vec![0; 32];
        let read = rustix::io::read(file, &mut text)?;
        text.truncate(read);
        io::Result::Ok(text)
    });
    std::str::from_utf8(&text.ok()?).ok()?.trim().parse().ok()
}

/// A file about a connection, where fusectl is mounted nowhere.
fn control_file(number: u32, name: &str, flags: OFlags) -> io::Result<OwnedFd> {
    let control = fsopen("fusectl", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(&control)?;
    let none = MountAttrFlags::empty();
    let root = fsmount(&control, FsMountFlags::FSMOUNT_CLOEXEC, none)?;
    let path = format!("{number}/{name}");
    let flags = flags | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(root, path, flags, Mode::empty())?)
}
