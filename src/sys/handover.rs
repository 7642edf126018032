//! Handing descriptors to another process, and a connection to the kernel to another server.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::FdFlags;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};

use super::{Errno, Result};

/// Words of a message.
pub(crate) const WORDS: usize = 3;
const BYTES: usize = WORDS * 8;

/// Two ends of a channel that keeps messages whole and in order.
pub(crate) fn channel() -> Result<(OwnedFd, OwnedFd)> {
    rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
}

/// Sends a message and a descriptor without waiting. What was sent arrives even if this process
/// ends at once.
///
/// # Errors
/// EAGAIN when the other side does not read; EPIPE or ECONNRESET when it is gone.
pub(crate) fn send(
    to: impl AsFd, message: [u64; WORDS], passed: Option<BorrowedFd<'_>>,
) -> Result<()> {
    let bytes: Vec<u8> = message.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let fds: Vec<BorrowedFd<'_>> = passed.into_iter().collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(&fds));
    }
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    rustix::net::sendmsg(to, &[IoSlice::new(&bytes)], &mut control, flags)?;
    Ok(())
}

/// The same, but waits for a moment while the other side has too much to read already.
///
/// # Errors
/// As [`send`].
pub(crate) fn send_soon(
    to: impl AsFd, message: [u64; WORDS], passed: Option<BorrowedFd<'_>>,
) -> Result<()> {
    const PATIENCE: Timespec = Timespec {
        tv_sec: 1,
        tv_nsec: 0,
    };
    /// Of which poll(2) knows nothing: too many descriptors are under way.
    const PAUSE: Duration = Duration::from_millis(5);
    let mut pauses = 0;
    loop {
        match send(&to, message, passed) {
            Err(Errno::AGAIN) => {}
            Err(Errno::TOOMANYREFS) if pauses < 200 => {
                pauses += 1;
                std::thread::sleep(PAUSE);
                continue;
            }
            result => return result,
        }
        let mut polled = [PollFd::new(&to, PollFlags::OUT)];
        if rustix::io::retry_on_intr(|| poll(&mut polled, Some(&PATIENCE)))? == 0 {
            return Err(Errno::AGAIN);
        }
    }
}

/// Takes the next message, if there is one, without waiting.
///
/// # Errors
/// EPIPE when there is none and the other side is gone; EPROTO for a message of another length;
/// EMFILE when a descriptor came for which this process has no room.
pub(crate) fn receive(from: impl AsFd) -> Result<Option<([u64; WORDS], Option<OwnedFd>)>> {
    let mut bytes = [0; BYTES];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let mut parts = [IoSliceMut::new(&mut bytes)];
    let received = match rustix::net::recvmsg(from, &mut parts, &mut control, flags) {
        Ok(received) => received,
        Err(Errno::AGAIN) => return Ok(None),
        Err(e) => return Err(e),
    };
    let mut passed = None;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = message {
            passed = fds.last();
        }
    }
    if received.flags.contains(ReturnFlags::CTRUNC) {
        return Err(Errno::MFILE);
    }
    match received.bytes {
        0 => Err(Errno::PIPE),
        BYTES => {
            let mut words = [0; WORDS];
            for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(8)) {
                *word = u64::from_ne_bytes(bytes.try_into().unwrap_or_default());
            }
            Ok(Some((words, passed)))
        }
        _ => Err(Errno::PROTO),
    }
}

/// Has the number of `place` stand for what `by` is open on; what it was open on is closed.
pub(crate) fn replace(place: BorrowedFd<'_>, by: impl AsFd) -> Result<()> {
    let (old, new) = (by.as_fd().as_raw_fd(), place.as_raw_fd());
    // SAFETY: both are open during the call. The owner of `place` goes on owning an open descriptor
    // of that number; that it is another file from now on is what its caller is told.
    match unsafe { libc::dup3(old, new, libc::O_CLOEXEC) } {
        n if n == new => Ok(()),
        _ => Err(super::fd::last_errno()),
    }
}

/// Has a descriptor stay open under its number in a program that is executed; returns the number.
pub(crate) fn pass_on(fd: impl AsFd) -> Result<RawFd> {
    rustix::io::fcntl_setfd(&fd, FdFlags::empty())?;
    Ok(fd.as_fd().as_raw_fd())
}

/// Has a descriptor be closed again in a program that is executed.
pub(crate) fn keep_back(fd: impl AsFd) -> Result<()> {
    rustix::io::fcntl_setfd(fd, FdFlags::CLOEXEC)
}

/// Takes over a descriptor that was passed on by whoever executed this program. Each number may be
/// taken once, before the process opens anything.
pub(crate) fn take_over(number: RawFd) -> Result<OwnedFd> {
    // SAFETY: fcntl takes any number; one that is not open is EBADF.
    if number <= libc::STDERR_FILENO || unsafe { libc::fcntl(number, libc::F_GETFD) } < 0 {
        return Err(Errno::BADF);
    }
    // SAFETY: it is open, and by the contract above nothing else in this process owns it.
    let fd = unsafe { OwnedFd::from_raw_fd(number) };
    rustix::io::fcntl_setfd(&fd, FdFlags::CLOEXEC)?;
    Ok(fd)
}

/// Has the kernel send all requests again that were read from a connection and not answered
/// (FUSE_NOTIFY_RESEND). Their numbers then have [`RESENT`] set.
///
/// # Errors
/// EINVAL before Linux 6.9.
pub(crate) fn resend(connection: impl AsFd) -> Result<()> {
    const LENGTH: u32 = 16;
    const RESEND: u32 = 7;
    let notice = [LENGTH, RESEND, 0, 0].map(u32::to_ne_bytes).concat();
    rustix::io::write(connection, &notice).map(drop)
}

/// Closes a file that the kernel got by a connection for passthrough, by its id.
///
/// # Errors
/// ENOENT when there is none.
pub(crate) fn close_file(connection: impl AsFd, id: u32) -> Result<()> {
    /// `FUSE_DEV_IOC_BACKING_CLOSE`: `_IOW(229, 2, uint32_t)`.
    const CLOSE: libc::Ioctl = 1 << 30 | 4 << 16 | 229 << 8 | 2;
    // SAFETY: the descriptor is open for the call, which reads one word that outlives it.
    match unsafe { libc::ioctl(connection.as_fd().as_raw_fd(), CLOSE, &raw const id) } {
        0 => Ok(()),
        _ => Err(super::fd::last_errno()),
    }
}

/// Has `wrap` make an owner, by `answer`, of a file that the kernel got by a connection for passthrough.
/// Only one is to be made of each id, or the file would be closed while it is still to be opened.
pub(crate) fn own_file<A, O>(wrap: unsafe fn(&A, u32) -> O, answer: &A, id: u32) -> O {
    // SAFETY: no memory depends on it. It is marked only as an id is to have one owner, which is the
    // caller's business; the kernel looks every id up.
    unsafe { wrap(answer, id) }
}

/// Marks the number of a request that was sent before.
pub(crate) const RESENT: u64 = 1 << 63;

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek, SeekFrom, Write};

    use super::*;

    /// A process that another test has just forked has a copy of every end, until it executes something
    /// or ends. What waits is taken.
    fn is_closed_soon(end: &OwnedFd) -> bool {
        let closed = || matches!(receive(end), Err(Errno::PIPE));
        (0..2000).any(|_| {
            closed() || {
                std::thread::sleep(Duration::from_millis(5));
                false
            }
        })
    }

    #[test]
    fn descriptors_arrive_though_the_sender_is_gone() {
        let (here, there) = channel().unwrap();
        assert!(receive(&there).unwrap().is_none());
        let mut file = tempfile::tempfile().unwrap();
        send(&here, [1, 2, 3], Some(file.as_fd())).unwrap();
        send(&here, [4, 5, 6], None).unwrap();
        drop(here);
        file.write_all(b"same").unwrap();
        let (words, passed) = receive(&there).unwrap().unwrap();
        assert_eq!(words, [1, 2, 3]);
        let mut passed = std::fs::File::from(passed.unwrap());
        passed.seek(SeekFrom::Start(0)).unwrap();
        let mut text = String::new();
        passed.read_to_string(&mut text).unwrap();
        assert_eq!(text, "same");
        assert_eq!(receive(&there).unwrap().unwrap().0, [4, 5, 6]);
        assert!(is_closed_soon(&there));
    }

    #[test]
    fn a_number_can_stand_for_another_file() {
        let (here, there) = channel().unwrap();
        let mut file = tempfile::tempfile().unwrap();
        replace(here.as_fd(), &file).unwrap();
        rustix::io::write(&here, b"x").unwrap();
        file.seek(SeekFrom::Start(0)).unwrap();
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "x");
        assert!(is_closed_soon(&there), "the old end is closed");
    }
}
