//! The attribute ioctls of files (inode flags and project attributes), and those of our own.

use std::os::fd::{AsFd, AsRawFd};

use super::fault::change;
use super::{Errno, Result};

/// `FS_IOC_GETFLAGS`: inode flags (chattr), read.
pub(crate) const GETFLAGS: u32 = 0x8008_6601;
/// `FS_IOC_SETFLAGS`: inode flags, set.
pub(crate) const SETFLAGS: u32 = 0x4008_6602;
/// `FS_IOC_FSGETXATTR`: extended flags and project id, read.
pub(crate) const FSGETXATTR: u32 = 0x801c_581f;
/// `FS_IOC_FSSETXATTR`: extended flags and project id, set.
pub(crate) const FSSETXATTR: u32 = 0x401c_5820;

/// Of ours, on the root of a mount: flush the pseudo-links. `_IOWR('u', 0x50, [u64; 64])`.
pub(crate) const PLINK_FLUSH: u32 = control_number(0x50);
/// List the inode numbers above the given one that pseudo-links hold together.
pub(crate) const PLINK_LIST: u32 = control_number(0x51);
/// Tell how many requests of each kind came, by their numbers.
pub(crate) const REQUESTS: u32 = control_number(0x52);
/// Tell of one layer: which directory it is, see `union/control.rs`.
pub(crate) const LAYER: u32 = control_number(0x53);
/// Has the program at the path in the argument, which ends with a NUL byte, serve the mount.
pub(crate) const UPGRADE: u32 = control_number(0x54);
/// Tells of a remount: when reading changes access times now, a number of `union/control.rs`.
pub(crate) const ACCESS_TIMES: u32 = control_number(0x56);
/// Asks something in words; what comes back is a text, piece by piece (`fuse/answers.rs`).
pub(crate) const TELL: u32 = number_of(0x55, 8 * TELL_WORDS);
/// Words of its argument: what the kernel passes at most, which is less than 16 KiB.
pub(crate) const TELL_WORDS: usize = 2047;
/// Words before the text: the ticket of an answer (0 for a new question), where the piece is in it, its
/// length in bytes, the length of the whole.
pub(crate) const TELL_HEAD: usize = 4;
/// Words of the argument of the others.
pub(crate) const CONTROL_WORDS: usize = 64;

const fn control_number(number: u32) -> u32 {
    number_of(number, 8 * CONTROL_WORDS)
}

#[allow(clippy::cast_possible_truncation)] // of 14 bits
const fn number_of(number: u32, bytes: usize) -> u32 {
    const READ_AND_WRITTEN: u32 = 3 << 30;
    READ_AND_WRITTEN | (bytes as u32) << 16 | (b'u' as u32) << 8 | number
}

/// Asks the daemon of a mount in words, or for more of an answer; the answer's piece takes the place of
/// the question.
pub(crate) fn tell(fd: impl AsFd, words: &mut [u64; TELL_WORDS]) -> Result<()> {
    // SAFETY: the descriptor is open for the call; by its number, the command reads and writes as
    // many bytes at the argument as it has. A file that does not know the command does nothing.
    let ret = unsafe {
        libc::ioctl(
            fd.as_fd().as_raw_fd(),
            libc::Ioctl::from(TELL),
            words.as_mut_ptr(),
        )
    };
    if ret < 0 {
        return Err(super::fd::last_errno());
    }
    Ok(())
}

/// Asks the daemon of a mount for one of ours; `input` is the first word of the argument.
pub(crate) fn control(fd: impl AsFd, command: u32, input: u64) -> Result<[u64; CONTROL_WORDS]> {
    let mut words = [0; CONTROL_WORDS];
    words[0] = input;
    control_with(fd, command, words)
}

/// Asks the daemon of a mount for one of ours.
pub(crate) fn control_with(
    fd: impl AsFd, command: u32, mut words: [u64; CONTROL_WORDS],
) -> Result<[u64; CONTROL_WORDS]> {
    if !matches!(
        command,
        PLINK_FLUSH | PLINK_LIST | REQUESTS | LAYER | UPGRADE | ACCESS_TIMES
    ) {
        return Err(Errno::NOTTY);
    }
    // SAFETY: the descriptor is open for the call; by its number, the command reads and writes as
    // many bytes at the argument as it has. A file that does not know the command does nothing.
    let ret = unsafe {
        libc::ioctl(
            fd.as_fd().as_raw_fd(),
            libc::Ioctl::from(command),
            words.as_mut_ptr(),
        )
    };
    if ret < 0 {
        return Err(super::fd::last_errno());
    }
    Ok(words)
}

/// Size of the largest argument among the four, struct fsxattr.
const ARG: usize = 28;

/// Runs one of the four ioctls above; `input` is the argument as the caller gave it. The result
/// holds the first `out` bytes of the argument afterwards.
pub(crate) fn attribute(fd: impl AsFd, command: u32, input: &[u8], out: usize) -> Result<Vec<u8>> {
    if !matches!(command, GETFLAGS | SETFLAGS | FSGETXATTR | FSSETXATTR) {
        return Err(Errno::NOTTY);
    }
    if input.len() > ARG {
        return Err(Errno::INVAL);
    }
    #[repr(align(8))]
    struct Arg([u8; 32]);
    let mut arg = Arg([0; 32]);
    arg.0[..input.len()].copy_from_slice(input);
    let mut call = || {
        // SAFETY: the descriptor is open for the call, and each of the four commands reads or writes
        // at most 28 bytes at the argument, which has 32.
        let ret = unsafe {
            libc::ioctl(
                fd.as_fd().as_raw_fd(),
                libc::Ioctl::from(command),
                arg.0.as_mut_ptr(),
            )
        };
        match ret {
            0.. => Ok(()),
            _ => Err(super::fd::last_errno()),
        }
    };
    if matches!(command, SETFLAGS | FSSETXATTR) {
        change("ioctl", call)?;
    } else {
        call()?;
    }
    Ok(arg.0[..out.min(ARG)].to_vec())
}
