//! Operations by plain system calls: on the oracle, on a mount, on the kernel's overlayfs.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use nix::unistd::{Gid, Uid, setfsgid, setfsuid};
use rustix::fs::{
    AtFlags, CWD, FallocateFlags, FileType, Mode, OFlags, RenameFlags, SeekFrom, Timespec,
    Timestamps, XattrFlags,
};
use rustix::io::Errno;
use rustix::thread::{CapabilitySet, CapabilitySets};

use crate::ops::{Action, Do, Object, Outcome, Result, SetTo, Side, Who};
use crate::tree::join;

/// How callers other than root are played.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Users {
    /// Permission is not asked for, as in the union's core, whose caller has asked the kernel.
    /// The thread must keep its capabilities when ids change (see [`keep_capabilities`]).
    Unchecked,
    /// As the kernel treats them.
    Real,
}

/// A directory that is worked on by system calls.
pub struct Plain {
    root: PathBuf,
    users: Users,
    pub kept: Vec<File>,
}

/// Makes this thread's capabilities survive a change of its ids, and its umask its own.
pub fn keep_capabilities() {
    use rustix::thread::{
        CapabilitiesSecureBits as Bits, capabilities_secure_bits, set_capabilities_secure_bits,
    };
    let bits = capabilities_secure_bits().unwrap();
    set_capabilities_secure_bits(bits | Bits::NO_SETUID_FIXUP).expect("needs root");
}

/// What every test that works with owners and devices needs.
pub fn prepare_thread() {
    assert!(
        rustix::process::geteuid().is_root(),
        "this test needs root: owners, devices, trusted.*"
    );
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_FS).expect("unshare(CLONE_FS)");
    rustix::thread::set_thread_groups(&[]).expect("setgroups");
}

struct Restore {
    umask: Mode,
    capabilities: Option<CapabilitySets>,
}

impl Drop for Restore {
    fn drop(&mut self) {
        setfsuid(Uid::from_raw(0));
        setfsgid(Gid::from_raw(0));
        if let Some(sets) = self.capabilities {
            rustix::thread::set_capabilities(None, sets).unwrap();
        }
        rustix::process::umask(self.umask);
    }
}

impl Plain {
    pub fn new(root: &Path, users: Users) -> Self {
        Self {
            root: root.to_owned(),
            users,
            kept: Vec::new(),
        }
    }

    fn become_user(&self, who: Who) -> Restore {
        let umask = rustix::process::umask(Mode::from_raw_mode(who.umask));
        let mut capabilities = None;
        if self.users == Users::Unchecked && who.uid != 0 {
            // May do everything but keep set-id bits on what it writes.
            let sets = rustix::thread::capabilities(None).unwrap();
            capabilities = Some(sets);
            let mut less = sets;
            less.effective.remove(CapabilitySet::FSETID);
            rustix::thread::set_capabilities(None, less).unwrap();
        }
        setfsgid(Gid::from_raw(who.gid));
        setfsuid(Uid::from_raw(who.uid));
        Restore {
            umask,
            capabilities,
        }
    }

    fn path(&self, names: &[Vec<u8>]) -> PathBuf {
        join(&self.root, names)
    }

    /// A path to the object, to be followed when it is a kept one.
    fn object(&self, object: &Object) -> (PathBuf, bool) {
        match object {
            Object::Path(names) => (self.path(names), false),
            Object::Kept(n) => {
                let fd = self.kept[*n].as_raw_fd();
                (PathBuf::from(format!("/proc/self/fd/{fd}")), true)
            }
        }
    }

    fn open(&self, object: &Object, flags: OFlags) -> Result<File> {
        match object {
            Object::Path(names) => open(&self.path(names), flags),
            Object::Kept(n) => Ok(self.kept[*n].try_clone().unwrap()),
        }
    }

    fn create(&self, names: &[Vec<u8>], mode: u32, exclusive: bool, data: &[u8]) -> Result {
        let path = self.path(names);
        let exists = rustix::fs::lstat(&path).is_ok();
        let mut flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        if exclusive {
            flags |= OFlags::CREATE | OFlags::EXCL;
        } else if !exists {
            // For what exists, fs.protected_regular would meddle with O_CREAT.
            flags |= OFlags::CREATE;
        }
        let file: File = rustix::fs::open(&path, flags, Mode::from_raw_mode(mode))?.into();
        write_all(&file, data, 0)
    }

    fn on_data(&self, object: &Object, action: &Action) -> Result {
        let read_write = OFlags::RDWR;
        match action {
            Action::Read { offset, len } => {
                let file = self.open(object, OFlags::RDONLY)?;
                let mut buf = vec![0; *len];
                let n = rustix::io::retry_on_intr(|| {
                    rustix::io::pread(&file, buf.as_mut_slice(), *offset)
                })?;
                buf.truncate(n);
                Ok(Outcome::Bytes(buf))
            }
            Action::Seek { offset, hole } => {
                let file = self.open(object, OFlags::RDONLY)?;
                let to = if *hole {
                    SeekFrom::Hole(*offset)
                } else {
                    SeekFrom::Data(*offset)
                };
                rustix::fs::seek(&file, to).map(Outcome::Number)
            }
            Action::Write { offset, data } => {
                write_all(&self.open(object, read_write)?, data, *offset)
            }
            Action::Append { data } => {
                let file = self.open(object, read_write)?;
                let end = file.metadata().unwrap().len();
                write_all(&file, data, end)
            }
            Action::Truncate { size } => {
                let file = self.open(object, read_write)?;
                rustix::fs::ftruncate(&file, *size)?;
                Ok(Outcome::Done)
            }
            Action::OpenTruncate => {
                match object {
                    Object::Path(names) => {
                        open(&self.path(names), read_write | OFlags::TRUNC)?;
                    }
                    Object::Kept(_) => {
                        open(&self.object(object).0, read_write | OFlags::TRUNC)?;
                    }
                }
                Ok(Outcome::Done)
            }
            Action::Allocate { mode, offset, len } => {
                let file = self.open(object, read_write)?;
                let mode = FallocateFlags::from_bits_retain(*mode);
                rustix::fs::fallocate(&file, mode, *offset, *len)?;
                Ok(Outcome::Done)
            }
            Action::Sync { data_only: true } => {
                rustix::fs::fdatasync(self.open(object, OFlags::RDONLY)?)?;
                Ok(Outcome::Done)
            }
            _ => {
                rustix::fs::fsync(self.open(object, OFlags::RDONLY)?)?;
                Ok(Outcome::Done)
            }
        }
    }

    fn on(&self, object: &Object, action: &Action) -> Result {
        if action.on_data() {
            return self.on_data(object, action);
        }
        let (path, follow) = self.object(object);
        let at = if follow {
            AtFlags::empty()
        } else {
            AtFlags::SYMLINK_NOFOLLOW
        };
        match action {
            Action::Chmod { mode } => {
                // Symlinks are not asked.
                rustix::fs::chmodat(CWD, &path, Mode::from_raw_mode(*mode), AtFlags::empty())?;
            }
            Action::Cut { size } => {
                let size = i64::try_from(*size).unwrap();
                nix::unistd::truncate(&path, size)
                    .map_err(|e| Errno::from_raw_os_error(e as i32))?;
            }
            Action::Chown { uid, gid } => {
                let uid = uid.map(rustix::fs::Uid::from_raw);
                let gid = gid.map(rustix::fs::Gid::from_raw);
                rustix::fs::chownat(CWD, &path, uid, gid, at)?;
            }
            Action::Times { atime, mtime } => {
                let times = Timestamps {
                    last_access: timespec(*atime),
                    last_modification: timespec(*mtime),
                };
                rustix::fs::utimensat(CWD, &path, &times, at)?;
            }
            Action::SetXattr { attr, value, flags } => {
                let flags = XattrFlags::from_bits_retain(*flags);
                if follow {
                    rustix::fs::setxattr(&path, *attr, value, flags)?;
                } else {
                    rustix::fs::lsetxattr(&path, *attr, value, flags)?;
                }
            }
            Action::RemoveXattr { attr } => {
                if follow {
                    rustix::fs::removexattr(&path, *attr)?;
                } else {
                    rustix::fs::lremovexattr(&path, *attr)?;
                }
            }
            Action::GetXattr { attr } => {
                let mut value = vec![0_u8; 65536];
                let len = if follow {
                    rustix::fs::getxattr(&path, *attr, &mut value)?
                } else {
                    rustix::fs::lgetxattr(&path, *attr, &mut value)?
                };
                value.truncate(len);
                return Ok(Outcome::Bytes(value));
            }
            _ => {
                rustix::fs::statat(CWD, &path, at)?;
            }
        }
        Ok(Outcome::Done)
    }

    fn make(&self, what: &Do) -> Result {
        match what {
            Do::Create {
                path,
                mode,
                exclusive,
                data,
            } => {
                return self.create(path, *mode, *exclusive, data);
            }
            Do::Mkdir { path, mode } => {
                rustix::fs::mkdirat(CWD, self.path(path), Mode::from_raw_mode(*mode))?;
            }
            Do::Mknod {
                path,
                kind,
                mode,
                rdev,
            } => {
                let mode = Mode::from_raw_mode(*mode);
                rustix::fs::mknodat(CWD, self.path(path), *kind, mode, *rdev)?;
            }
            Do::Symlink { path, target } => {
                rustix::fs::symlinkat(target.as_slice(), CWD, self.path(path))?;
            }
            Do::Link { from, to } => {
                let (from, follow) = self.object(from);
                let flags = if follow {
                    AtFlags::SYMLINK_FOLLOW
                } else {
                    AtFlags::empty()
                };
                rustix::fs::linkat(CWD, from, CWD, self.path(to), flags)?;
            }
            _ => unreachable!(),
        }
        Ok(Outcome::Done)
    }
}

impl Side for Plain {
    fn run(&mut self, who: Who, what: &Do) -> Result {
        let _restore = self.become_user(who);
        match what {
            Do::Unlink { path } => rustix::fs::unlink(self.path(path))?,
            Do::Rmdir { path } => rustix::fs::rmdir(self.path(path))?,
            Do::Rename { from, to, flags } => {
                let (from, to) = (self.path(from), self.path(to));
                let flags = RenameFlags::from_bits_retain(*flags);
                rustix::fs::renameat_with(CWD, from, CWD, to, flags)?;
            }
            Do::On { object, action } => return self.on(object, action),
            Do::CopyRange {
                from,
                from_offset,
                to,
                to_offset,
                len,
            } => {
                let src = self.open(from, OFlags::RDONLY)?;
                let dst = self.open(to, OFlags::RDWR)?;
                let (mut a, mut b) = (*from_offset, *to_offset);
                let len = usize::try_from(*len).unwrap();
                let n = rustix::fs::copy_file_range(&src, Some(&mut a), &dst, Some(&mut b), len)?;
                return Ok(Outcome::Number(n as u64));
            }
            Do::Keep { path } => {
                let path = self.path(path);
                let is_dir = rustix::fs::lstat(&path)
                    .is_ok_and(|s| FileType::from_raw_mode(s.st_mode) == FileType::Directory);
                let flags = if is_dir {
                    OFlags::RDONLY | OFlags::DIRECTORY
                } else {
                    OFlags::RDWR
                };
                let file = open(&path, flags)?;
                self.kept.push(file);
            }
            Do::Close { kept } => drop(self.kept.remove(*kept)),
            Do::Forget | Do::Flush => {}
            Do::Remount => self.kept.clear(),
            make => return self.make(make),
        }
        Ok(Outcome::Done)
    }
}

fn open(path: &Path, flags: OFlags) -> Result<File> {
    rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty()).map(File::from)
}

fn write_all(file: &File, data: &[u8], offset: u64) -> Result {
    file.write_all_at(data, offset)
        .map_err(|e| Errno::from_io_error(&e).unwrap())?;
    Ok(Outcome::Number(data.len() as u64))
}

/// A time argument as utimensat(2) wants it.
fn timespec(to: SetTo) -> Timespec {
    let special = |tv_nsec| Timespec { tv_sec: 0, tv_nsec };
    match to {
        SetTo::Omit => special(rustix::fs::UTIME_OMIT),
        SetTo::Now => special(rustix::fs::UTIME_NOW),
        SetTo::At((sec, nsec)) => Timespec {
            tv_sec: sec,
            tv_nsec: i64::from(nsec),
        },
    }
}
