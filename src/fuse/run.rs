//! Mounting and the session.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::options::Options;
use crate::sys::{self, Errno, fusermount};
use crate::union::{Union, What};

use super::closing::Closing;
use super::filesystem::UnionFs;
use super::flags::MountFlags;
use super::handover;
use super::injected::{Injected, Meet, Nothing};
use super::leftover::Inherited;
use super::readers::Readers;
use super::turns::Turns;
use super::watching::Hearing;

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
    serving: Serving,
    unmounter: Unmounter,
}

/// What goes on beside the session, until it is dropped.
type Threads = (Hearing, Closing);

/// The one for tests is a type of its own, so that the other has nothing of it.
#[derive(Debug)]
enum Serving {
    Plain(fuser::Session<Turns>, Threads),
    Injected(fuser::Session<Turns<Arc<Injected>>>, Threads),
}

impl Session {
    /// Mounts the union: by mount(2), or by fusermount3 where that is not permitted.
    pub fn mount(
        union: &Arc<Union>, mountpoint: &Path, options: &Options, injected: Option<Arc<Injected>>,
    ) -> Result<Self, FuseError> {
        let flags = MountFlags::new(options, union.is_read_only());
        let fail = |reason| FuseError::Mount {
            mountpoint: mountpoint.to_owned(),
            reason,
        };
        let (fd, by_us) = connect(mountpoint, &flags).map_err(fail)?;
        if by_us {
            // fusermount3 is set-user-id, and has to end what it began; nothing else is executed.
            sys::privileges::gain_no_more();
        }
        let unmounter = Unmounter(Arc::new(Way::Path(mountpoint.to_owned())));
        let filesystem = UnionFs::new(Arc::clone(union), options);
        let serving = Serving::begin(filesystem, fd, options, injected).inspect_err(|_| {
            // Nothing may stay mounted that no one serves.
            let _ = unmounter.detach();
        });
        let serving = serving.map_err(|e| fail(one_line(&e)))?;
        Ok(Self { serving, unmounter })
    }

    /// Serves a mount that this program made: `fd` is its connection.
    pub fn go_on(
        union: &Arc<Union>, fd: OwnedFd, mountpoint: &Path, options: &Options,
    ) -> Result<Self, FuseError> {
        let unmounter = Unmounter(Arc::new(Way::Path(mountpoint.to_owned())));
        let filesystem = UnionFs::new(Arc::clone(union), options);
        let serving =
            Serving::begin(filesystem, fd, options, None).map_err(|e| FuseError::Mount {
                mountpoint: mountpoint.to_owned(),
                reason: one_line(&e),
            })?;
        Ok(Self { serving, unmounter })
    }

    /// Serves a mount that somebody else made: `fd` is its connection, `name` what the user called
    /// it. How it shows and what it allows was decided there; of `options` only the rest counts.
    pub fn adopt(
        union: &Arc<Union>, fd: OwnedFd, name: &Path, options: &Options,
    ) -> Result<Self, FuseError> {
        // Somebody else ends it, too.
        sys::privileges::gain_no_more();
        let number = sys::connection::number(fd.as_fd());
        let unmounter = Unmounter(Arc::new(Way::Connection {
            name: name.to_owned(),
            number,
        }));
        let filesystem = UnionFs::new(Arc::clone(union), options).must_check();
        let serving =
            Serving::begin(filesystem, fd, options, None).map_err(|e| FuseError::Mount {
                mountpoint: name.to_owned(),
                reason: one_line(&e),
            })?;
        Ok(Self { serving, unmounter })
    }

    /// What ends the mount from another thread.
    pub fn unmounter(&self) -> Unmounter {
        self.unmounter.clone()
    }

    /// Serves until the filesystem is unmounted and its last open file closed.
    pub fn run(self) -> Result<(), FuseError> {
        let mountpoint = self.unmounter.name().to_owned();
        let outcome = match self.serving {
            Serving::Plain(session, _threads) => session.run(),
            Serving::Injected(session, _threads) => session.run(),
        };
        outcome.map_err(|e| FuseError::Serve {
            mountpoint,
            reason: one_line(&e),
        })
    }
}

impl Serving {
    /// Answers the kernel's first request on a connection.
    fn begin(
        union: UnionFs, fd: OwnedFd, options: &Options, injected: Option<Arc<Injected>>,
    ) -> io::Result<Self> {
        Ok(match injected {
            None => {
                let (session, threads) = begin(union, fd, options, Nothing)?;
                Self::Plain(session, threads)
            }
            Some(injected) => {
                let (session, threads) = begin(union, fd, options, injected)?;
                Self::Injected(session, threads)
            }
        })
    }
}

fn begin<M: Meet>(
    union: UnionFs, fd: OwnedFd, options: &Options, met: M,
) -> io::Result<(fuser::Session<Turns<M>>, Threads)> {
    let config = MountFlags::new(options, union.union.is_read_only()).config();
    let acl = config.acl;
    let core = Arc::clone(&union.union);
    // Served by as many of the session's threads as there is work for.
    let desk = Arc::clone(&union.desk);
    let inherited = union.passthrough.clone().map(|table| Inherited {
        union: Arc::clone(&core),
        table,
    });
    let readers = Readers::new(super::flags::threads(options));
    let filesystem = Turns {
        union,
        readers: Arc::clone(&readers),
        met,
    };
    let session = handover::session(filesystem, fd, acl, config, inherited)?;
    tell_of_changes(&core, session.notifier());
    // There is none yet.
    let _ = desk.notifier.set(session.notifier());
    if let Err(e) = readers.watch(&session) {
        tracing::warn!("all threads read requests at all times: {e}");
    }
    let hearing = Hearing::start(&core, &session.notifier());
    Ok((session, (hearing, Closing::start(&desk))))
}

/// Has the kernel ask again for what it does not know to have changed.
fn tell_of_changes(union: &Union, notifier: fuser::Notifier) {
    union.on_stale(Box::new(move |id, what| {
        let offset = match what {
            // From a negative offset on: the attributes alone, the pages stay.
            What::Attributes => -1,
            What::Contents => 0,
        };
        // ENOENT: not known to it.
        let _ = notifier.inval_inode(fuser::INodeNo(id), offset, 0);
    }));
}

/// Makes the mount; the descriptor is its connection, with whether it was done without fusermount3.
/// Errors are in words.
fn connect(mountpoint: &Path, flags: &MountFlags) -> Result<(OwnedFd, bool), String> {
    let fd = sys::mount::open_fuse_device().map_err(explain_device)?;
    match sys::mount::mount_fuse(&fd, &flags.direct(mountpoint)) {
        Ok(()) => return Ok((fd, true)),
        Err(Errno::PERM) => {}
        Err(e) => return Err(std::io::Error::from(e).to_string()),
    }
    drop(fd);
    if sys::cred::no_new_privileges() {
        let reason = "not permitted, and fusermount3 cannot help where no_new_privs is set";
        return Err(reason.to_owned());
    }
    // fusermount3 may do what we may not.
    let mounted = fusermount::mount(mountpoint, &flags.for_helper());
    mounted.map(|fd| (fd, false)).map_err(|reason| {
        // What we were told ourselves says more then.
        if sys::cred::may_mount_somewhere() {
            format!("not permitted in this mount namespace (unshare -m makes one); {reason}")
        } else {
            reason
        }
    })
}

/// Unmounts from any thread.
#[derive(Clone, Debug)]
pub(crate) struct Unmounter(Arc<Way>);

/// How the mount came about, which says how it ends.
#[derive(Debug)]
enum Way {
    /// We mounted there.
    Path(PathBuf),
    /// Somebody else did.
    Connection { name: PathBuf, number: Option<u32> },
}

impl Unmounter {
    /// What the user called it.
    fn name(&self) -> &Path {
        match &*self.0 {
            Way::Path(name) | Way::Connection { name, .. } => name,
        }
    }

    /// Detaches the mount at once; open files go on. A mount that somebody else made stays for him
    /// to unmount, but all its users get an error, where the kernel lets us; else they do when this
    /// process has ended and nobody else holds the descriptor.
    pub fn detach(&self) -> Result<(), FuseError> {
        match &*self.0 {
            Way::Path(path) => match sys::mount::unmount(path.as_os_str().as_bytes(), true) {
                Ok(()) => Ok(()),
                Err(Errno::PERM) => fusermount::unmount(path, true),
                Err(e) => Err(std::io::Error::from(e).to_string()),
            },
            Way::Connection { number: None, .. } => Ok(()),
            Way::Connection {
                number: Some(number),
                ..
            } => {
                if let Err(e) = sys::connection::abort(*number) {
                    tracing::debug!("connection {number} is not ended before the process is: {e}");
                }
                Ok(())
            }
        }
        .map_err(|reason| FuseError::Unmount {
            mountpoint: self.name().to_owned(),
            reason,
        })
    }
}

/// Why /dev/fuse cannot be opened.
fn explain_device(e: Errno) -> String {
    match e {
        Errno::NOENT => "/dev/fuse is missing (modprobe fuse)".into(),
        Errno::ACCESS => "/dev/fuse may not be opened (check its mode)".into(),
        e => format!("/dev/fuse: {}", std::io::Error::from(e)),
    }
}

fn one_line(e: &dyn std::error::Error) -> String {
    e.to_string().trim().replace('\n', "; ")
}
