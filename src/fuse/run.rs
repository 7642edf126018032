//! Mounting and the session.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::options::Options;
use crate::sys::{self, Errno, fusermount};
use crate::union::Union;

use super::filesystem::UnionFs;
use super::flags::MountFlags;
use super::init::MAX_WRITE;
use super::policy::Policy;

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

/// A mounted union whose first request was answered.
#[derive(Debug)]
pub(crate) struct Session {
    session: fuser::Session<UnionFs>,
    mountpoint: PathBuf,
}

impl Session {
    /// Mounts the union: by mount(2), or by fusermount3 where that is not permitted.
    pub fn mount(
        union: Arc<Union>, mountpoint: &Path, options: &Options,
    ) -> Result<Self, FuseError> {
        let flags = MountFlags::new(options, union.is_read_only());
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
        let max_write = options.max_write.unwrap_or(MAX_WRITE);
        let filesystem = UnionFs::new(union, Policy::new(options), max_write);
        let session = fuser::Session::from_fd(filesystem, fd, acl, config)
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
