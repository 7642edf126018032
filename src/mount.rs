//! From options to a running mount: layers opened, union built, session handed to the kernel.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::fuse::{FuseError, Session};
use crate::layer::{LayerError, LayerStack};
use crate::options::Options;
use crate::sys::{self, Errno};
use crate::union::{Owners, Settings, Union};

/// Descriptors kept free for what is not cached: open layers, sockets, calls under way.
const RESERVED_DESCRIPTORS: u64 = 256;
/// More cached descriptors than this bring no speed.
const MAX_CACHED_DESCRIPTORS: u64 = 8192;

/// Why a mount failed; the text is one line.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct MountError(#[from] Reason);

#[derive(Debug, thiserror::Error)]
enum Reason {
    #[error(transparent)]
    Layer(#[from] LayerError),
    #[error("reading the layers: {}", std::io::Error::from(*.0))]
    Union(Errno),
    #[error("option xattr_permissions: the upper cannot hold owners: {}", std::io::Error::from(*.0))]
    Records(Errno),
    #[error(transparent)]
    Fuse(#[from] FuseError),
    #[error("{}: {}", .path.display(), .reason)]
    Mountpoint { path: PathBuf, reason: String },
}

/// Layers opened and checked; nothing is mounted yet.
#[derive(Debug)]
pub struct Prepared {
    union: Arc<Union>,
    mountpoint: PathBuf,
    options: Options,
}

/// A mount that has answered the kernel's first request.
#[derive(Debug)]
pub struct Mounted {
    session: Session,
}

/// Ends a mount from any thread.
#[derive(Clone, Debug)]
pub struct Unmounter(crate::fuse::Unmounter);

/// Opens and checks the layers of `options` and the mountpoint.
///
/// # Errors
/// One line for the first thing that is wrong.
pub fn prepare(options: &Options, mountpoint: &Path) -> Result<Prepared, MountError> {
    let at = |e: std::io::Error| Reason::Mountpoint {
        path: mountpoint.to_owned(),
        reason: e.to_string(),
    };
    let real = mountpoint.canonicalize().map_err(at)?;
    if !std::fs::metadata(&real).map_err(at)?.is_dir() {
        return Err(at(Errno::NOTDIR.into()).into());
    }
    let union = open_union(options)?;
    Ok(Prepared {
        union: Arc::new(union),
        mountpoint: real,
        options: options.clone(),
    })
}

/// Opens and checks the layers of `options` and makes the union of them, without a mount.
///
/// # Errors
/// One line for the first thing that is wrong.
pub fn open_union(options: &Options) -> Result<Union, MountError> {
    let limit = sys::fd::raise_fd_limit();
    let spare = limit.saturating_sub(RESERVED_DESCRIPTORS + options.lowers.len() as u64);
    let descriptors = (spare / 2).min(MAX_CACHED_DESCRIPTORS);
    let layers = LayerStack::open(options).map_err(Reason::from)?;
    let owners = Owners::open(&layers, &options.ownership).map_err(Reason::Records)?;
    let settings = Settings {
        owners,
        descriptors: usize::try_from(descriptors).unwrap_or(64),
        volatile: options.volatile,
        sum_statfs: options.sum_statfs,
    };
    Ok(Union::new(layers, settings).map_err(Reason::Union)?)
}

impl Prepared {
    /// Mounts. No request but the first is answered before [`Mounted::run`].
    ///
    /// # Errors
    /// The kernel's or fusermount3's words, on one line; nothing stays mounted then.
    pub fn mount(self) -> Result<Mounted, MountError> {
        let session = Session::mount(self.union, &self.mountpoint, &self.options);
        Ok(Mounted {
            session: session.map_err(Reason::from)?,
        })
    }
}

impl Mounted {
    /// What ends the mount from another thread.
    pub fn unmounter(&self) -> Unmounter {
        Unmounter(self.session.unmounter())
    }

    /// Serves until the filesystem is unmounted and its last open file closed.
    ///
    /// # Errors
    /// A connection to the kernel that broke.
    pub fn run(self) -> Result<(), MountError> {
        Ok(self.session.run().map_err(Reason::from)?)
    }
}

impl Unmounter {
    /// Detaches the mount at once; open files go on until they are closed.
    ///
    /// # Errors
    /// The kernel's or fusermount3's words, on one line.
    pub fn detach(&self) -> Result<(), MountError> {
        Ok(self.0.detach().map_err(Reason::from)?)
    }
}
