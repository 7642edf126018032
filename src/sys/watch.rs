//! Hearing of changes in directories: fanotify(7) with names, or inotify(7).
//!
//! Both watch single directories. fanotify says which process made a change (to a user without privilege
//! whether it was his own), inotify does not.

use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::event::{PollFd, PollFlags};

use super::{Errno, Result};

/// Events that may wait are read in pieces of so many bytes.
const BUFFER: usize = 64 << 10;
const FANOTIFY_HEAD: usize = size_of::<libc::fanotify_event_metadata>();
const INOTIFY_HEAD: usize = size_of::<libc::inotify_event>();
/// Of the record that names a directory: its own head, and the id of the filesystem.
const INFO_HEAD: usize = 4;
const FSID: usize = 8;
/// Of a file handle: its length and type.
const HANDLE_HEAD: usize = 8;
/// `AT_HANDLE_FID`: a handle that only tells files apart.
const HANDLE_FID: i32 = 0x200;

const FAN_NAMES: u64 =
    libc::FAN_CREATE | libc::FAN_DELETE | libc::FAN_MOVED_FROM | libc::FAN_MOVED_TO;
const IN_NAMES: u32 = libc::IN_CREATE | libc::IN_DELETE | libc::IN_MOVED_FROM | libc::IN_MOVED_TO;

/// What an event says of a name in a directory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools)] // Bits of an event.
pub(crate) struct Changed {
    /// It came, went, or stands for another object.
    pub name: bool,
    /// The data of the object changed.
    pub data: bool,
    /// Its attributes did.
    pub attributes: bool,
    /// The object is a directory.
    pub is_dir: bool,
}

/// One event.
#[derive(Debug)]
pub(crate) enum Event<'a> {
    /// Of a watched directory, by its key, and a name in it; `.` or nothing is the directory itself.
    Of(&'a [u8], &'a [u8], Changed),
    /// Some were lost.
    Lost,
}

/// A queue of events.
#[derive(Debug)]
pub(crate) struct Watch {
    fd: OwnedFd,
    /// fanotify, with the number of this process in its events.
    own: Option<i32>,
    unlimited: bool,
}

impl Watch {
    /// By fanotify; a user without privilege gets one with limits.
    pub fn by_fanotify() -> Result<Self> {
        let flags = libc::FAN_CLASS_NOTIF
            | libc::FAN_CLOEXEC
            | libc::FAN_NONBLOCK
            | libc::FAN_REPORT_DFID_NAME;
        let open = |more: u32| {
            // SAFETY: takes two numbers.
            let fd = unsafe { libc::fanotify_init(flags | more, 0) };
            owned(fd)
        };
        let (fd, unlimited) = match open(libc::FAN_UNLIMITED_MARKS) {
            Err(Errno::PERM) => (open(0)?, false),
            result => (result?, true),
        };
        let own = i32::try_from(std::process::id()).map_err(|_| Errno::OVERFLOW)?;
        Ok(Self {
            fd,
            own: Some(own),
            unlimited,
        })
    }

    /// By inotify.
    pub fn by_inotify() -> Result<Self> {
        // SAFETY: takes a number.
        let fd = unsafe { libc::inotify_init1(libc::IN_CLOEXEC | libc::IN_NONBLOCK) };
        Ok(Self {
            fd: owned(fd)?,
            own: None,
            unlimited: false,
        })
    }

    /// True when as many directories can be watched as there are.
    pub fn is_unlimited(&self) -> bool {
        self.unlimited
    }

    /// True when changes made by this process are told apart, and left out.
    pub fn knows_own(&self) -> bool {
        self.own.is_some()
    }

    /// Watches a directory; returns the key that events of it carry.
    ///
    /// # Errors
    /// ENOSPC when there may be no more; EACCES for who may not read the directory; EOPNOTSUPP, ENODEV
    /// or EXDEV where the filesystem cannot.
    pub fn add(&self, dir: BorrowedFd<'_>) -> Result<Box<[u8]>> {
        if self.own.is_none() {
            let path = format!("/proc/self/fd/{}/.\0", dir.as_raw_fd());
            let mask = IN_NAMES | libc::IN_MODIFY | libc::IN_ATTRIB | libc::IN_ONLYDIR;
            // SAFETY: the path ends with a NUL and outlives the call.
            let watch =
                unsafe { libc::inotify_add_watch(self.fd.as_raw_fd(), path.as_ptr().cast(), mask) };
            return match watch {
                ..0 => Err(last()),
                watch => Ok(watch.to_ne_bytes().into()),
            };
        }
        let key = key_of(dir)?;
        self.mark(libc::FAN_MARK_ADD, dir)?;
        Ok(key)
    }

    /// Ends the watch of a directory that [`Self::add`] gave `key` for.
    pub fn remove(&self, key: &[u8], dir: Option<BorrowedFd<'_>>) -> bool {
        if self.own.is_some() {
            return dir.is_some_and(|dir| self.mark(libc::FAN_MARK_REMOVE, dir).is_ok());
        }
        let Some(watch) = key.first_chunk().map(|watch| i32::from_ne_bytes(*watch)) else {
            return false;
        };
        // SAFETY: takes numbers.
        unsafe { libc::inotify_rm_watch(self.fd.as_raw_fd(), watch) == 0 }
    }

    /// Ends all watches.
    pub fn remove_all(&self) -> bool {
        let group = self.fd.as_raw_fd();
        // SAFETY: takes numbers; no path is looked at.
        let flush = |group| unsafe {
            libc::fanotify_mark(
                group,
                libc::FAN_MARK_FLUSH,
                0,
                libc::AT_FDCWD,
                std::ptr::null(),
            )
        };
        self.own.is_some() && flush(group) == 0
    }

    fn mark(&self, how: u32, dir: BorrowedFd<'_>) -> Result<()> {
        let mask = FAN_NAMES
            | libc::FAN_MODIFY
            | libc::FAN_ATTRIB
            | libc::FAN_ONDIR
            | libc::FAN_EVENT_ON_CHILD;
        let (group, dir) = (self.fd.as_raw_fd(), dir.as_raw_fd());
        // SAFETY: the path is a constant that ends with a NUL; the rest are numbers.
        let result = unsafe {
            libc::fanotify_mark(
                group,
                how | libc::FAN_MARK_ONLYDIR,
                mask,
                dir,
                c".".as_ptr(),
            )
        };
        if result == 0 { Ok(()) } else { Err(last()) }
    }

    /// Waits until there are events (true), or `stop` can be read or has no other end any more.
    pub fn wait(&self, stop: BorrowedFd<'_>, limit: std::time::Duration) -> Result<Waited> {
        let limit = rustix::event::Timespec {
            tv_sec: i64::try_from(limit.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: limit.subsec_nanos().into(),
        };
        let mut both = [
            PollFd::new(&self.fd, PollFlags::IN),
            PollFd::from_borrowed_fd(stop, PollFlags::IN),
        ];
        match rustix::event::poll(&mut both, Some(&limit)) {
            Ok(_) if !both[1].revents().is_empty() => Ok(Waited::Stop),
            Ok(_) if !both[0].revents().is_empty() => Ok(Waited::Events),
            Ok(_) | Err(Errno::INTR) => Ok(Waited::Nothing),
            Err(e) => Err(e),
        }
    }

    /// Gives `each` the events that are there, those of this process left out where it is known.
    pub fn read(&self, mut each: impl FnMut(Event<'_>)) -> Result<()> {
        let mut buffer = vec![0_u8; BUFFER];
        loop {
            let size = match rustix::io::read(&self.fd, &mut *buffer) {
                Err(Errno::AGAIN) | Ok(0) => return Ok(()),
                Err(Errno::INTR) => continue,
                result => result?,
            };
            let mut rest = &buffer[..size];
            while let Some(next) = match self.own {
                Some(own) => fanotify_event(rest, own, &mut each),
                None => inotify_event(rest, &mut each),
            } {
                rest = next;
            }
        }
    }
}

/// What a wait ended with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Waited {
    /// There are events.
    Events,
    /// It is time to stop.
    Stop,
    /// Neither.
    Nothing,
}

fn last() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

fn owned(fd: i32) -> Result<OwnedFd> {
    if fd < 0 {
        return Err(last());
    }
    // SAFETY: a call that returned a new descriptor, of which nobody else knows.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// What events call a directory: the id of its filesystem, and its handle.
fn key_of(dir: BorrowedFd<'_>) -> Result<Box<[u8]>> {
    let mut handle = [0_u8; HANDLE_HEAD + libc::MAX_HANDLE_SZ as usize];
    let mut get = |flags: i32| {
        handle[..4].copy_from_slice(&libc::MAX_HANDLE_SZ.cast_unsigned().to_ne_bytes());
        let mut mount = 0;
        // SAFETY: the handle has room for as many bytes as its first word says, and the words of its head
        // may be written byte by byte; the path is empty and ends with a NUL.
        let result = unsafe {
            let handle = handle.as_mut_ptr().cast();
            let (dir, flags) = (dir.as_raw_fd(), flags | libc::AT_EMPTY_PATH);
            libc::name_to_handle_at(dir, c"".as_ptr(), handle, &raw mut mount, flags)
        };
        if result == 0 { Ok(()) } else { Err(last()) }
    };
    match get(HANDLE_FID) {
        // Older than that flag.
        Err(Errno::INVAL) => get(0)?,
        result => result?,
    }
    let mut key = fsid(dir)?.to_vec();
    let size = handle.first_chunk().map_or(0, |n| u32::from_ne_bytes(*n)) as usize;
    key.extend_from_slice(handle.get(..HANDLE_HEAD + size).ok_or(Errno::OVERFLOW)?);
    Ok(key.into())
}

/// The id of a filesystem, as statfs(2) and events have it.
fn fsid(fd: BorrowedFd<'_>) -> Result<[u8; FSID]> {
    let figures = rustix::fs::fstatfs(fd)?;
    const { assert!(size_of::<libc::fsid_t>() == FSID) };
    // SAFETY: two numbers that C hides, of that size.
    Ok(unsafe { std::mem::transmute_copy(&figures.f_fsid) })
}

/// A number in the bytes of an event.
fn word<const N: usize>(event: &[u8], at: usize) -> Option<[u8; N]> {
    event.get(at..)?.first_chunk().copied()
}

fn until_nul(name: &[u8]) -> &[u8] {
    name.split(|&b| b == 0).next().unwrap_or_default()
}

/// Gives the first event away; returns what follows.
fn fanotify_event<'a>(
    bytes: &'a [u8], own: i32, each: &mut impl FnMut(Event<'_>),
) -> Option<&'a [u8]> {
    let length = u32::from_ne_bytes(word(bytes, 0)?) as usize;
    let (event, rest) = bytes.split_at_checked(length.max(FANOTIFY_HEAD))?;
    let head = usize::from(u16::from_ne_bytes(word(event, 6)?));
    let mask = u64::from_ne_bytes(word(event, 8)?);
    let pid = i32::from_ne_bytes(word(event, 20)?);
    if mask & libc::FAN_Q_OVERFLOW != 0 {
        each(Event::Lost);
        return Some(rest);
    }
    let changed = Changed {
        name: mask & FAN_NAMES != 0,
        data: mask & libc::FAN_MODIFY != 0,
        attributes: mask & libc::FAN_ATTRIB != 0,
        is_dir: mask & libc::FAN_ONDIR != 0,
    };
    let mut records = event.get(head..)?;
    while pid != own && records.len() > INFO_HEAD + FSID + HANDLE_HEAD {
        let size = usize::from(u16::from_ne_bytes(word(records, 2)?));
        let Some((record, more)) = records.split_at_checked(size.max(INFO_HEAD)) else {
            break;
        };
        records = more;
        if !matches!(
            record[0],
            libc::FAN_EVENT_INFO_TYPE_DFID_NAME | libc::FAN_EVENT_INFO_TYPE_DFID
        ) {
            continue;
        }
        let handle = u32::from_ne_bytes(word(record, INFO_HEAD + FSID)?) as usize;
        let Some((key, name)) = record[INFO_HEAD..].split_at_checked(FSID + HANDLE_HEAD + handle)
        else {
            continue;
        };
        each(Event::Of(key, until_nul(name), changed));
        break;
    }
    Some(rest)
}

fn inotify_event<'a>(bytes: &'a [u8], each: &mut impl FnMut(Event<'_>)) -> Option<&'a [u8]> {
    let mask = u32::from_ne_bytes(word(bytes, 4)?);
    let length = u32::from_ne_bytes(word(bytes, 12)?) as usize;
    let (event, rest) = bytes.split_at_checked(INOTIFY_HEAD + length)?;
    if mask & libc::IN_Q_OVERFLOW != 0 {
        each(Event::Lost);
    } else if mask & libc::IN_IGNORED == 0 {
        let changed = Changed {
            name: mask & IN_NAMES != 0,
            data: mask & libc::IN_MODIFY != 0,
            attributes: mask & libc::IN_ATTRIB != 0,
            is_dir: mask & libc::IN_ISDIR != 0,
        };
        each(Event::Of(
            &event[..4],
            until_nul(&event[INOTIFY_HEAD..]),
            changed,
        ));
    }
    Some(rest)
}
