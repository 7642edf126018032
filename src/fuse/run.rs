//! Mounting and the session.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fuser::{Config, MountOption, SessionACL};

use crate::options::SUBTYPE;
use crate::sys::mount::{FuseMount, MountFlags as Flags};
use crate::sys::{self, Errno};
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

    /// For fusermount3, through fuser.
    fn config(&self) -> Config {
        let on = |flag: bool, yes, no| if flag { yes } else { no };
        let mut options = vec![
            MountOption::FSName(self.source.to_string_lossy().into_owned()),
            MountOption::Subtype(SUBTYPE.into()),
            MountOption::DefaultPermissions,
            on(self.read_only, MountOption::RO, MountOption::RW),
            on(self.nosuid, MountOption::NoSuid, MountOption::Suid),
            on(self.nodev, MountOption::NoDev, MountOption::Dev),
            on(self.noexec, MountOption::NoExec, MountOption::Exec),
        ];
        let optional = [
            (self.noatime, MountOption::NoAtime),
            (self.dirsync, MountOption::DirSync),
            (self.sync, MountOption::Sync),
        ];
        options.extend(
            optional
                .into_iter()
                .filter(|(on, _)| *on)
                .map(|(_, option)| option),
        );
        let cpus = std::thread::available_parallelism().map_or(2, usize::from);
        let mut config = Config::default();
        config.mount_options = options;
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
        let filesystem = UnionFs::new(union);
        let session = match sys::mount::mount_fuse(&flags.direct(mountpoint)) {
            Ok(fd) => {
                let config = flags.config();
                let acl = config.acl;
                fuser::Session::from_fd(filesystem, fd, acl, config).inspect_err(|_| {
                    // Nothing may stay mounted that no one serves.
                    let _ = sys::mount::unmount(mountpoint.as_os_str().as_bytes(), true);
                })
            }
            // fusermount3 may do what we may not. Its errors speak for themselves.
            Err(Errno::PERM) => fuser::Session::new(filesystem, mountpoint, &flags.config()),
            Err(e) => return Err(fail(explain(e))),
        };
        let session = session.map_err(|e| fail(one_line(&e)))?;
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
            Err(Errno::PERM) => sys::fusermount::fusermount(&self.mountpoint, true),
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
