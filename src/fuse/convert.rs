//! Between the core's values and fuser's.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{FileAttr, INodeNo, Request, TimeOrNow};

use crate::sys::stat::Time;
use crate::sys::{Errno, FileKind};
use crate::union::{Attr, Caller, SetTime};

/// Who sent the request.
pub(crate) fn caller(req: &Request) -> Caller {
    Caller {
        uid: req.uid(),
        gid: req.gid(),
        pid: req.pid(),
    }
}

/// The errno as fuser sends it.
pub(crate) fn errno(e: Errno) -> fuser::Errno {
    fuser::Errno::from_i32(e.raw_os_error())
}

/// A file type.
pub(crate) fn kind(kind: FileKind) -> fuser::FileType {
    match kind {
        FileKind::Regular => fuser::FileType::RegularFile,
        FileKind::Directory => fuser::FileType::Directory,
        FileKind::Symlink => fuser::FileType::Symlink,
        FileKind::CharDevice => fuser::FileType::CharDevice,
        FileKind::BlockDevice => fuser::FileType::BlockDevice,
        FileKind::Fifo => fuser::FileType::NamedPipe,
        FileKind::Socket => fuser::FileType::Socket,
    }
}

/// Attributes, with `ino` in the place that fuser uses for both node id and inode number.
#[allow(clippy::cast_possible_truncation)]
pub(crate) fn file_attr(attr: &Attr, ino: u64) -> FileAttr {
    let s = &attr.stat;
    FileAttr {
        ino: INodeNo(ino),
        size: s.size,
        blocks: s.blocks,
        atime: system_time(s.atime),
        mtime: system_time(s.mtime),
        ctime: system_time(s.ctime),
        crtime: UNIX_EPOCH,
        kind: kind(s.kind()),
        perm: (s.mode & 0o7777) as u16,
        nlink: u32::try_from(s.nlink).unwrap_or(u32::MAX),
        uid: s.uid,
        gid: s.gid,
        // The kernel's own encoding of device numbers in 32 bits is stat's, cut.
        rdev: encode_rdev(s.rdev),
        blksize: s.blksize,
        flags: 0,
    }
}

/// Attributes of "there is no such name", to be remembered by the kernel.
pub(crate) fn negative_attr() -> FileAttr {
    FileAttr {
        ino: INodeNo(0),
        size: 0,
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: fuser::FileType::RegularFile,
        perm: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 0,
        flags: 0,
    }
}

/// A device number as FUSE sends it (`new_encode_dev` of the kernel).
#[allow(clippy::cast_possible_truncation)]
fn encode_rdev(rdev: u64) -> u32 {
    let (major, minor) = (libc::major(rdev), libc::minor(rdev));
    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
}

/// A device number as mknod takes it, from FUSE's 32 bits.
pub(crate) fn decode_rdev(rdev: u32) -> u64 {
    let major = (rdev & 0xfff00) >> 8;
    let minor = (rdev & 0xff) | ((rdev >> 12) & 0xfff00);
    libc::makedev(major, minor)
}

fn system_time(t: Time) -> SystemTime {
    let nanos = Duration::from_nanos(u64::from(t.nsec));
    let whole = Duration::from_secs(t.sec.unsigned_abs());
    let base = if t.sec >= 0 {
        UNIX_EPOCH.checked_add(whole)
    } else {
        UNIX_EPOCH.checked_sub(whole)
    };
    base.and_then(|b| b.checked_add(nanos))
        .unwrap_or(UNIX_EPOCH)
}

/// A time of a SETATTR request.
///
/// fuser 0.18 decodes a time before 1970 as `1970 - (seconds + nanoseconds)`, where the request
/// means `1970 - seconds + nanoseconds`; both parts can be read back.
pub(crate) fn set_time(time: Option<TimeOrNow>) -> Option<SetTime> {
    Some(match time? {
        TimeOrNow::Now => SetTime::Now,
        TimeOrNow::SpecificTime(t) => SetTime::At(match t.duration_since(UNIX_EPOCH) {
            Ok(after) => Time {
                sec: i64::try_from(after.as_secs()).unwrap_or(i64::MAX),
                nsec: after.subsec_nanos(),
            },
            Err(before) => {
                let before = before.duration();
                Time {
                    sec: i64::try_from(before.as_secs()).map_or(i64::MIN, |s| -s),
                    nsec: before.subsec_nanos(),
                }
            }
        }),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_numbers_survive() {
        for (major, minor) in [(1, 3), (8, 0), (259, 70000), (4095, 1_048_575)] {
            let dev = libc::makedev(major, minor);
            assert_eq!(decode_rdev(encode_rdev(dev)), dev);
        }
    }

    #[test]
    fn times_before_1970_survive_fusers_decoding() {
        // What fuser makes of seconds -2, nanoseconds 800000000.
        let decoded = UNIX_EPOCH - Duration::new(2, 800_000_000);
        let time = set_time(Some(TimeOrNow::SpecificTime(decoded)));
        assert_eq!(
            time,
            Some(SetTime::At(Time {
                sec: -2,
                nsec: 800_000_000
            }))
        );
        let shown = system_time(Time {
            sec: -2,
            nsec: 800_000_000,
        });
        assert_eq!(shown, UNIX_EPOCH - Duration::new(1, 200_000_000));
    }
}
