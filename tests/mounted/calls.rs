//! System calls by name inside a mount, with the error as a value, and other callers than root.

use std::ffi::OsString;
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::thread;

use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, RenameFlags, Stat, Uid};
use rustix::io::{Errno, Result};

use crate::process::open_file;
use crate::support::Mount;

/// Expects a call to fail with this error.
#[macro_export]
macro_rules! fails {
    ($call:expr, $errno:ident) => {
        match $call {
            Ok(_) => panic!(
                "{} succeeded, {} expected",
                stringify!($call),
                stringify!($errno)
            ),
            Err(error) => assert_eq!(error, rustix::io::Errno::$errno, "{}", stringify!($call)),
        }
    };
}

/// Makes one test per dialect out of a function of the dialect.
#[macro_export]
macro_rules! dialects {
    ($($(#[$meta:meta])* fn $name:ident($dialect:ident) $body:block)+) => { $(
        $(#[$meta])*
        mod $name {
            use super::*;
            fn check($dialect: Dialect) $body
            #[test]
            fn aufs() {
                check(Dialect::Aufs);
            }
            #[test]
            fn overlay() {
                check(Dialect::Overlay);
            }
            #[test]
            fn mixed() {
                check(Dialect::Mixed);
            }
        }
    )+ };
}

impl Mount {
    pub fn stat(&self, name: &str) -> Result<Stat> {
        rustix::fs::lstat(self.p(name))
    }

    /// Names in a directory, sorted, without `.` and `..`.
    pub fn ls(&self, name: &str) -> Vec<String> {
        list(&self.p(name))
    }

    #[track_caller]
    pub fn assert_ls(&self, name: &str, expected: &[&str]) {
        assert_eq!(self.ls(name), expected, "left: the listing of {name:?}");
    }

    pub fn read(&self, name: &str) -> Result<String> {
        let data = fs::read(self.p(name)).map_err(|error| errno(&error))?;
        Ok(String::from_utf8_lossy(&data).into_owned())
    }

    #[track_caller]
    pub fn assert_file(&self, name: &str, content: &str) {
        assert_eq!(self.read(name).as_deref(), Ok(content), "{name}");
    }

    /// Creates or truncates, then writes.
    pub fn write(&self, name: &str, content: &str) -> Result<()> {
        fs::write(self.p(name), content).map_err(|error| errno(&error))
    }

    pub fn open(&self, name: &str, flags: OFlags) -> Result<OwnedFd> {
        open(&self.p(name), flags)
    }

    pub fn creat(&self, name: &str, mode: u32) -> Result<OwnedFd> {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY;
        open_file(self.p(name), flags, Mode::from_raw_mode(mode))
    }

    pub fn mkdir(&self, name: &str) -> Result<()> {
        self.mkdir_mode(name, 0o755)
    }

    pub fn mkdir_mode(&self, name: &str, mode: u32) -> Result<()> {
        rustix::fs::mkdir(self.p(name), Mode::from_raw_mode(mode))
    }

    pub fn unlink(&self, name: &str) -> Result<()> {
        rustix::fs::unlink(self.p(name))
    }

    pub fn rmdir(&self, name: &str) -> Result<()> {
        rustix::fs::rmdir(self.p(name))
    }

    pub fn rename(&self, old: &str, new: &str) -> Result<()> {
        rustix::fs::rename(self.p(old), self.p(new))
    }

    pub fn rename_with(&self, old: &str, new: &str, flags: RenameFlags) -> Result<()> {
        rustix::fs::renameat_with(CWD, self.p(old), CWD, self.p(new), flags)
    }

    pub fn link(&self, old: &str, new: &str) -> Result<()> {
        rustix::fs::linkat(CWD, self.p(old), CWD, self.p(new), AtFlags::empty())
    }

    pub fn symlink(&self, target: &str, name: &str) -> Result<()> {
        rustix::fs::symlink(target, self.p(name))
    }

    pub fn mknod(&self, name: &str, kind: FileType, mode: u32, dev: u64) -> Result<()> {
        rustix::fs::mknodat(CWD, self.p(name), kind, Mode::from_raw_mode(mode), dev)
    }

    pub fn chmod(&self, name: &str, mode: u32) -> Result<()> {
        rustix::fs::chmod(self.p(name), Mode::from_raw_mode(mode))
    }

    pub fn chown(&self, name: &str, uid: u32, gid: u32) -> Result<()> {
        let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
        rustix::fs::chownat(
            CWD,
            self.p(name),
            Some(uid),
            Some(gid),
            AtFlags::SYMLINK_NOFOLLOW,
        )
    }

    /// Keeps the kernel from forgetting these: st_ino of what was copied up lasts as long as
    /// that, and other tests drop the caches of the whole system.
    #[must_use]
    pub fn remembered(&self, names: &[&str]) -> Vec<OwnedFd> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW;
        names
            .iter()
            .map(|name| self.open(name, flags).unwrap())
            .collect()
    }

    /// Permission bits with setuid, setgid and sticky.
    pub fn mode(&self, name: &str) -> u32 {
        self.stat(name).unwrap().st_mode & 0o7777
    }
}

pub fn open(path: &Path, flags: OFlags) -> Result<OwnedFd> {
    open_file(path, flags, Mode::from_raw_mode(0o644))
}

pub fn list(dir: &Path) -> Vec<String> {
    let name = |entry: std::io::Result<fs::DirEntry>| {
        entry.unwrap().file_name().to_string_lossy().into_owned()
    };
    let mut names: Vec<String> = fs::read_dir(dir).unwrap().map(name).collect();
    names.sort();
    names
}

pub fn errno(error: &std::io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or_else(|| panic!("not a system error: {error}"))
}

/// The whole of a file through a descriptor, from its start.
pub fn contents(fd: &OwnedFd) -> Vec<u8> {
    let (mut data, mut chunk) = (Vec::new(), vec![0; 1 << 16]);
    loop {
        let count = rustix::io::pread(fd, &mut chunk, data.len() as u64).unwrap();
        if count == 0 {
            return data;
        }
        data.extend(&chunk[..count]);
    }
}

/// Names of all xattrs as they are shown.
pub fn xattr_names(path: &Path) -> Vec<String> {
    let text = |name: OsString| String::from_utf8_lossy(name.as_bytes()).into_owned();
    let mut names: Vec<String> = xattr::list(path).unwrap().map(text).collect();
    names.sort();
    names
}

/// Somebody who makes system calls.
#[derive(Clone, Debug)]
pub struct Caller {
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
    pub umask: u32,
}

impl Caller {
    pub fn root() -> Self {
        Self {
            uid: 0,
            gid: 0,
            groups: Vec::new(),
            umask: 0o022,
        }
    }

    pub fn user(id: u32) -> Self {
        Self {
            uid: id,
            gid: id,
            groups: Vec::new(),
            umask: 0o022,
        }
    }

    pub fn umask(mut self, umask: u32) -> Self {
        self.umask = umask;
        self
    }

    pub fn groups(mut self, groups: &[u32]) -> Self {
        self.groups = groups.to_vec();
        self
    }

    /// Runs `work` in a thread with this identity, umask and a working directory of its own.
    pub fn call<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let run = scope.spawn(|| {
                self.become_caller();
                work()
            });
            run.join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    fn become_caller(&self) {
        use rustix::thread::{UnshareFlags, set_thread_groups, set_thread_res_gid};
        // SAFETY: only the thread's working directory and umask stop being shared, no descriptors.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::FS) }.unwrap();
        rustix::process::umask(Mode::from_raw_mode(self.umask));
        let groups: Vec<Gid> = self.groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
        set_thread_groups(&groups).unwrap();
        let gid = Gid::from_raw(self.gid);
        set_thread_res_gid(gid, gid, gid).unwrap();
        let uid = Uid::from_raw(self.uid);
        rustix::thread::set_thread_res_uid(uid, uid, uid).unwrap();
    }
}
