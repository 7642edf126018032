//! From options to a running mount: layers opened, union built, session handed to the kernel.

mod remount;

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::fuse::{FuseError, Session};
use crate::layer::{LayerError, LayerStack};
use crate::options::Options;
use crate::sys::{self, Errno};
use crate::union::{Elsewhere, Owners, Settings, TakenOver, Union};

pub(crate) use crate::fuse::{Effect, Injected, Rule};
pub(crate) use crate::union::journal;
pub use remount::{check_remount, remount};

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
    #[error("option xino: layer {} is on a filesystem without file handles", .0.display())]
    NoHandles(PathBuf),
    #[error("option xattr_permissions: {}", records(*.0))]
    Records(Errno),
    #[error(transparent)]
    Fuse(#[from] FuseError),
    #[error("mountpoint {}: {}", .path.display(), .reason)]
    Mountpoint { path: PathBuf, reason: String },
    #[error("option remount: {}: {}", .path.display(), .reason)]
    Remount { path: PathBuf, reason: String },
}

/// Why owners cannot be kept in records.
fn records(errno: Errno) -> String {
    match errno {
        Errno::NOTEMPTY => {
            "the upper holds objects, but no record on its root directory: anybody may \
                            have set some on files of his own"
                .to_owned()
        }
        errno => std::io::Error::from(errno).to_string(),
    }
}

/// Where a union appears.
#[derive(Debug)]
pub enum Target {
    /// Over this directory.
    Directory(PathBuf),
    /// Where somebody else has mounted this connection to the kernel already.
    Connection {
        /// The open descriptor of /dev/fuse.
        fd: OwnedFd,
        /// What the user called it.
        name: PathBuf,
    },
    /// Where another process of ours has served it before.
    Again(Box<Again>),
}

/// A mount whose server has ended, and what was kept for the next one.
#[derive(Debug)]
pub struct Again {
    /// Its connection to the kernel.
    pub fd: OwnedFd,
    /// What the user called it.
    pub name: PathBuf,
    /// Somebody else has mounted it.
    pub adopted: bool,
    /// Objects without a name, by the serials of their nodes.
    pub held: HashMap<u64, OwnedFd>,
    /// The layers' directories, which the options now name by these descriptors.
    pub layers: Vec<OwnedFd>,
}

impl Target {
    /// `/dev/fd/N` is the descriptor that was passed to this process under that number, as in libfuse;
    /// anything else is a directory.
    ///
    /// Must be called before the process opens anything.
    ///
    /// # Errors
    /// When there is no such descriptor, or no mount behind it that waits to be served.
    pub fn new(mountpoint: &Path) -> Result<Self, MountError> {
        let Some(digits) = mountpoint.as_os_str().as_bytes().strip_prefix(b"/dev/fd/") else {
            return Ok(Self::Directory(mountpoint.to_owned()));
        };
        // Rust's numbers may have a sign, these not.
        let number = std::str::from_utf8(digits)
            .ok()
            .filter(|digits| digits.bytes().all(|b| b.is_ascii_digit()))
            .and_then(|digits| digits.parse::<u32>().ok())
            .unwrap_or(u32::MAX);
        let at = |reason| Reason::Mountpoint {
            path: mountpoint.to_owned(),
            reason,
        };
        let number = i32::try_from(number).map_err(|_| at("no such descriptor".to_owned()))?;
        Ok(Self::Connection {
            fd: sys::connection::inherit(number).map_err(at)?,
            name: mountpoint.to_owned(),
        })
    }

    /// What the user called it.
    #[must_use]
    pub fn name(&self) -> &Path {
        match self {
            Self::Directory(path) => path,
            Self::Connection { name, .. } => name,
            Self::Again(again) => &again.name,
        }
    }

    /// True when somebody else has mounted it.
    #[must_use]
    pub fn is_adopted(&self) -> bool {
        match self {
            Self::Directory(_) => false,
            Self::Connection { .. } => true,
            Self::Again(again) => again.adopted,
        }
    }

    /// The directory where the mount can be reached by us; `None` when there is none, or it is not known.
    #[must_use]
    pub fn reached_at(&self) -> Option<PathBuf> {
        match self {
            Self::Directory(path) => Some(path.clone()),
            Self::Connection { fd, .. } => {
                let number = sys::connection::number(fd.as_fd())?;
                sys::connection::mountpoint(number)
            }
            Self::Again(again) if again.adopted => {
                let number = sys::connection::number(again.fd.as_fd())?;
                sys::connection::mountpoint(number)
            }
            Self::Again(again) => Some(again.name.clone()),
        }
    }

    /// Checks that something can be mounted there.
    fn check(&self) -> Result<(), Reason> {
        let Self::Directory(path) = self else {
            return Ok(());
        };
        let at = |e: std::io::Error| Reason::Mountpoint {
            path: path.clone(),
            reason: e.to_string(),
        };
        match std::fs::metadata(path).map_err(at)?.is_dir() {
            true => Ok(()),
            false => Err(at(Errno::NOTDIR.into())),
        }
    }
}

/// Layers opened and checked; nothing is mounted yet.
#[derive(Debug)]
pub struct Prepared {
    union: Arc<Union>,
    target: Target,
    options: Options,
    injected: Option<Arc<Injected>>,
}

/// A mount that has answered the kernel's first request.
#[derive(Debug)]
pub struct Mounted {
    session: Session,
    /// To be flushed at the end.
    flush: Option<Arc<Union>>,
}

/// Ends a mount from any thread.
#[derive(Clone, Debug)]
pub struct Unmounter(crate::fuse::Unmounter);

/// Opens and checks the layers of `options` and the directory to be mounted over.
///
/// # Errors
/// One line for the first thing that is wrong.
pub fn prepare(options: &Options, target: Target) -> Result<Prepared, MountError> {
    prepare_within(options, target, own_descriptors(options))
}

/// The same for a process that has other things to do: `descriptors` may be kept open for caching,
/// and its limit stays as it is.
///
/// # Errors
/// As [`prepare`].
pub(crate) fn prepare_within(
    options: &Options, target: Target, descriptors: usize,
) -> Result<Prepared, MountError> {
    target.check()?;
    let mut target = target;
    let union = open_union_within(options, descriptors)?;
    if let (Some(journal), Target::Again(again)) = (journal::active(), &mut target) {
        let TakenOver {
            named,
            nameless,
            lost,
        } = union.take_over(journal, std::mem::take(&mut again.held));
        union.doubt_everything();
        tracing::info!("taken over: {named} nodes by name, {nameless} without, {lost} lost");
    }
    Ok(Prepared {
        union: Arc::new(union),
        target,
        options: options.clone(),
        injected: None,
    })
}

/// Checks the layers of `options` and the mountpoint as far as it can be done without changing
/// anything.
///
/// # Errors
/// One line for the first thing that is wrong.
pub fn check(options: &Options, target: &Target) -> Result<(), MountError> {
    target.check()?;
    Ok(LayerStack::check(options).map_err(Reason::from)?)
}

/// Opens and checks the layers of `options` and makes the union of them, without a mount.
///
/// # Errors
/// One line for the first thing that is wrong.
pub fn open_union(options: &Options) -> Result<Union, MountError> {
    open_union_within(options, own_descriptors(options))
}

/// How many descriptors a process may keep for caching that only serves this union. Raises its limit.
fn own_descriptors(options: &Options) -> usize {
    let limit = sys::fd::raise_fd_limit();
    let reserved = RESERVED_DESCRIPTORS + options.lowers.len() as u64;
    let descriptors = (limit.saturating_sub(reserved) / 2).min(MAX_CACHED_DESCRIPTORS);
    sys::fd::make_room(reserved + descriptors);
    usize::try_from(descriptors).unwrap_or(64)
}

/// The same for a process that has other things to do: `descriptors` may be kept open for caching,
/// and its limit stays as it is.
///
/// # Errors
/// As [`open_union`].
pub(crate) fn open_union_within(
    options: &Options, descriptors: usize,
) -> Result<Union, MountError> {
    let layers = LayerStack::open(options).map_err(Reason::from)?;
    if options.identity.xino_on
        && let Some(layer) = layers.without_handles()
    {
        return Err(Reason::NoHandles(layer.path.clone()).into());
    }
    let owners = Owners::open(&layers, &options.ownership).map_err(Reason::Records)?;
    let cache = options.cache_times();
    if options.volatile && options.upper.is_some() {
        tracing::warn!(
            "volatile: nothing is flushed, fsync does nothing; a crash of the machine may lose all since the mount"
        );
    }
    let settings = Settings {
        owners,
        descriptors,
        volatile: options.volatile,
        sum_statfs: options.sum_statfs,
        elsewhere: Elsewhere {
            rename_dir: options.rename_dir,
            metacopy: options.metacopy,
            // Who cannot read privileged records has no rights that others' records could abuse.
            user_records: options.userxattr || !sys::cred::is_real_root(),
        },
        plinks: !options.identity.noplink,
        ino32: options.identity.ino32,
        names_last: cache.entry.is_none() && cache.negative.is_none(),
        udba: (options.udba, trusted_for(options)),
    };
    Ok(Union::new(layers, settings).map_err(Reason::Union)?)
}

/// How long anything is trusted that others may have changed.
fn trusted_for(options: &Options) -> Duration {
    let cache = options.cache_times();
    let times = [cache.attr, cache.entry, cache.negative];
    times.into_iter().flatten().min().unwrap_or(Duration::MAX)
}

impl Prepared {
    /// Has requests meet what a test asks for.
    pub(crate) fn inject(&mut self, injected: Arc<Injected>) {
        self.injected = Some(injected);
    }

    /// Mounts. No request but the first is answered before [`Mounted::run`].
    ///
    /// # Errors
    /// The kernel's or fusermount3's words, on one line; nothing stays mounted then.
    pub fn mount(self) -> Result<Mounted, MountError> {
        let session = match self.target {
            Target::Directory(path) => {
                Session::mount(&self.union, &path, &self.options, self.injected)
            }
            Target::Connection { fd, name } => {
                Session::adopt(&self.union, fd, &name, &self.options)
            }
            Target::Again(again) => {
                let Again { fd, name, .. } = *again;
                let go_on = if again.adopted {
                    Session::adopt
                } else {
                    if sys::cred::is_real_root() {
                        // Who may mount, as the first server did.
                        sys::privileges::gain_no_more();
                    }
                    Session::go_on
                };
                go_on(&self.union, fd, &name, &self.options)
            }
        };
        let flush = self.options.identity.flush_at_umount && !self.union.is_read_only();
        Ok(Mounted {
            session: session.map_err(Reason::from)?,
            flush: flush.then_some(self.union),
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
        self.session.run().map_err(Reason::from)?;
        if let Some(union) = self.flush {
            match union.flush_plinks() {
                Ok(flushed) if flushed.kept == 0 => {}
                Ok(flushed) => tracing::warn!("{} pseudo-links had to stay", flushed.kept),
                // What is not flushed now is there at the next mount.
                Err(e) => tracing::error!("pseudo-links could not be flushed: {e}"),
            }
        }
        Ok(())
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
