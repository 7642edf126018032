//! Mounting and the session.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fuser::{Config, SessionACL};

use crate::options::SUBTYPE;
use crate::sys::mount::{FuseMount, MountFlags as Flags};
use crate::sys::{self, Errno, fusermount};
use crate::union::Union;

use super::filesystem::UnionFs;

/// Reader threads: more cost on each request what they bring in parallel work; slow operations
/// have threads of their own.
const MAX_THREADS: usize = 4;

/// Why mounting or serving failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FuseError {
    /// The kernel or fusermount3 refused.
    #[error("mounting on {}: {reason}", .mountpoint.display())]
    Mount {
        /// Where.
        mountpoint: PathBuf,
        /// Its words.
        reason: String,
    },
    /// The connection broke.
    #[error("serving {}: {reason}", .mountpoint.display())]
    Serve {
        /// Where.
        mountpoint: PathBuf,
        /// The failure.
        reason: String,
    },
    /// Unmounting was refused.
    #[error("unmounting {}: {reason}", .mountpoint.display())]
    Unmount {
        /// Where.
        mountpoint: PathBuf,
        /// The failure.
        reason: String,
    },
}

/// How the mount shows and what it allows.
#[derive(Clone, Debug, Default)]
pub(crate) struct MountFlags {
    /// First field in /proc/mounts.
    pub source: OsString,
    /// Other users may use it.
    pub allow_other: bool,
    /// No writes.
    pub read_only: bool,
    /// Set-id bits have no effect.
    pub nosuid: bool,
    /// Device nodes have no effect.
    pub nodev: bool,
    /// Nothing can be executed.
    pub noexec: bool,
    /// Access times are not updated.
    pub noatime: bool,
    /// Changes of directories are written at once.
    pub dirsync: bool,
    /// Everything is written at once.
    pub sync: bool,
    /// Reader threads; `None` decides by the processors.
    pub threads: Option<usize>,
}

impl MountFlags {
    /// For mount(2).
    fn direct<'a>(&'a self, mountpoint: &'a Path) -> FuseMount<'a> {
        let flags = [
            (self.read_only, Flags::RDONLY),
            (self.nosuid, Flags::NOSUID),
            (self.nodev, Flags::NODEV),
            (self.noexec, Flags::NOEXEC),
            (self.noatime, Flags::NOATIME),
            (self.dirsync, Flags::DIRSYNC),
            (self.sync, Flags::SYNCHRONOUS),
        ];
        FuseMount {
            source: self.source.as_bytes(),
            target: mountpoint.as_os_str().as_bytes(),
            subtype: SUBTYPE,
            flags: flags
                .into_iter()
                .filter(|(on, _)| *on)
                .map(|(_, flag)| flag)
                .collect(),
            allow_other: self.allow_other,
        }
    }

    /// For fusermount3, which adds what an ordinary user must have (nosuid, nodev).
    fn for_helper(&self) -> OsString {
        let mut options = OsString::from(format!("subtype={SUBTYPE},default_permissions,fsname="));
        for &byte in self.source.as_bytes() {
            if byte == b',' || byte == b'\\' {
                options.push("\\");
            }
            options.push(OsStr::from_bytes(&[byte]));
        }
        let flags = [
            (self.allow_other, ",allow_other"),
            (self.read_only, ",ro"),
            (self.nosuid, ",nosuid"),
            (self.nodev, ",nodev"),
            (self.noexec, ",noexec"),
            (self.noatime, ",noatime"),
            (self.dirsync, ",dirsync"),
            (self.sync, ",sync"),
        ];
        for (_, option) in flags.into_iter().filter(|(on, _)| *on) {
            options.push(option);
        }
        options
    }

    /// For the session.
    fn config(&self) -> Config {
        let cpus = std::thread::available_parallelism().map_or(2, usize::from);
        let mut config = Config::default();
        config.acl = if self.allow_other {
            SessionACL::All
        } else {
            SessionACL::Owner
        };
        config.n_threads = Some(self.threads.unwrap_or_else(|| cpus.clamp(2, MAX_THREADS)));
        config
    }
}

/// A mounted union whose first request was answered.
#[derive(Debug)]
pub(crate) struct Session {
    session: fuser::Session<UnionFs>,
    mountpoint: PathBuf,
}

impl Session {
    /// Mounts the union: by mount(2), or by fusermount3 where that is not permitted.
    pub fn mount(
        union: Arc<Union>, mountpoint: &Path, flags: &MountFlags,
    ) -> Result<Self, FuseError> {
        let fail = |reason| FuseError::Mount {
            mountpoint: mountpoint.to_owned(),
            reason,
        };
        let fd = match sys::mount::mount_fuse(&flags.direct(mountpoint)) {
            Ok(fd) => fd,
            // fusermount3 may do what we may not.
            Err(Errno::PERM) => fusermount::mount(mountpoint, &flags.for_helper()).map_err(fail)?,
            Err(e) => return Err(fail(explain(e))),
        };
        let config = flags.config();
        let acl = config.acl;
        let unmounter = Unmounter {
            mountpoint: Arc::new(mountpoint.to_owned()),
        };
        let session = fuser::Session::from_fd(UnionFs::new(union), fd, acl, config)
            .inspect_err(|_| {
                // Nothing may stay mounted that no one serves.
                let _ = unmounter.detach();
            })
            .map_err(|e| fail(one_line(&e)))?;
        Ok(Self {
            session,
            mountpoint: mountpoint.to_owned(),
        })
    }

    /// What ends the mount from another thread.
    pub fn unmounter(&self) -> Unmounter {
        Unmounter {
            mountpoint: Arc::new(self.mountpoint.clone()),
        }
    }

    /// Serves until the filesystem is unmounted and its last open file closed.
    pub fn run(self) -> Result<(), FuseError> {
        let mountpoint = self.mountpoint;
        self.session.run().map_err(|e| FuseError::Serve {
            mountpoint,
            reason: one_line(&e),
        })
    }
}

/// Unmounts from any thread.
#[derive(Clone, Debug)]
pub(crate) struct Unmounter {
    mountpoint: Arc<PathBuf>,
}

impl Unmounter {
    /// Detaches the mount at once; open files go on.
    pub fn detach(&self) -> Result<(), FuseError> {
        let path = self.mountpoint.as_os_str();
        match sys::mount::unmount(path.as_bytes(), true) {
            Ok(()) => Ok(()),
            Err(Errno::PERM) => fusermount::unmount(&self.mountpoint, true),
            Err(e) => Err(std::io::Error::from(e).to_string()),
        }
        .map_err(|reason| FuseError::Unmount {
            mountpoint: self.mountpoint.to_path_buf(),
            reason,
        })
    }
}

/// The errno of mount(2) in words.
fn explain(e: Errno) -> String {
    match e {
        Errno::NOENT => "/dev/fuse is missing (modprobe fuse)".into(),
        Errno::ACCESS => "/dev/fuse may not be opened (check its mode)".into(),
        e => std::io::Error::from(e).to_string(),
    }
}

fn one_line(e: &dyn std::error::Error) -> String {
    e.to_string().trim().replace('\n', "; ")
}
