//! What layers are served from: private clones of their mounts, where the system allows them.

use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::RwLock;

use crate::options::KernelFlags;
use crate::sys::mount::AccessTimes;
use crate::sys::{self, Stat};

use super::open::{Opened, parent};
use super::{Layer, LayerError};

/// An upper that can be written, before it is taken.
pub(super) struct Writable {
    pub layer: Layer,
    pub work: Option<Arc<OwnedFd>>,
    pub mount: UpperMount,
}

/// The mount that an upper is served from. Its rule for access times is the union's: the kernel has no rule
/// for files of FUSE, and leaves it to whoever reads them.
#[derive(Clone, Debug)]
pub(crate) struct UpperMount {
    /// The root of the private clone.
    tree: Option<Arc<OwnedFd>>,
    /// Without an option, reading directories changes their access times.
    of_directories: bool,
}

/// The rule that `flags` ask for, if any.
fn rule(flags: KernelFlags) -> Option<AccessTimes> {
    let rules = [
        (flags.noatime, AccessTimes::Never),
        (flags.strictatime, AccessTimes::Always),
        (flags.relatime, AccessTimes::Relative),
    ];
    rules.iter().find(|(on, _)| *on).map(|(_, rule)| *rule)
}

impl UpperMount {
    /// Has the clone at `tree` go by `flags`; what they say nothing of stays as its mount has it.
    fn of(tree: Option<Arc<OwnedFd>>, flags: KernelFlags, path: &Path) -> Self {
        let found = tree
            .as_ref()
            .and_then(|tree| sys::stat::statvfs(&**tree).ok());
        let nodiratime = rustix::fs::StatVfsMountFlags::NODIRATIME;
        let of_directories = !found.is_some_and(|found| found.f_flag.contains(nodiratime));
        let mount = Self {
            tree,
            of_directories,
        };
        if (rule(flags).is_some() || flags.nodiratime)
            && let Err(e) = mount.set_access_times(flags)
        {
            let path = path.display();
            tracing::warn!("upperdir={path}: access times stay as its own mount has them: {e}");
        }
        mount
    }

    /// Has it go by `flags`, as after a remount with them.
    ///
    /// # Errors
    /// EOPNOTSUPP where the upper is not served from a clone.
    pub fn set_access_times(&self, flags: KernelFlags) -> sys::Result<()> {
        let tree = self.tree.as_ref().ok_or(sys::Errno::OPNOTSUPP)?;
        let of_directories = self.of_directories && !flags.nodiratime;
        sys::mount::set_access_times(tree, rule(flags), of_directories)
    }
}

/// Turns an opened directory into a layer, served from a private clone of its mount where that is
/// allowed. A lower is cloned read-only: then nothing can write it, and reading leaves its access
/// times alone.
pub(super) fn into_layer(opened: Opened, read_only: bool) -> Layer {
    let Opened { path, fd, stat, .. } = opened;
    match sys::mount::clone_tree(&fd, read_only) {
        Ok(clone) => Layer {
            root: RwLock::new(Arc::new(clone)),
            path,
            dev: stat.dev,
            whiteouts: true,
            same_mount: false,
        },
        Err(e) => {
            tracing::debug!("{}: no private clone of its mount ({e})", path.display());
            Layer {
                root: RwLock::new(Arc::new(fd)),
                path,
                dev: stat.dev,
                whiteouts: true,
                same_mount: true,
            }
        }
    }
}

/// The upper and its workdir, both reached through one private clone of their mount: rename(2)
/// does not cross mounts, not even two of one filesystem.
pub(super) fn writable_layer(
    upper: Opened, work: Option<Opened>, flags: KernelFlags,
) -> Result<Writable, LayerError> {
    let Some(work) = work else {
        let layer = into_layer(upper, false);
        let tree = (!layer.same_mount).then(|| layer.root());
        return Ok(Writable {
            mount: UpperMount::of(tree, flags, &layer.path),
            layer,
            work: None,
        });
    };
    let other = || LayerError::OtherFilesystem {
        work: work.path.clone(),
        upper: upper.path.clone(),
    };
    if work.stat.dev != upper.stat.dev || sys::mount::id(&work.fd) != sys::mount::id(&upper.fd) {
        return Err(other());
    }
    let dev = upper.stat.dev;
    if let Some([tree, upper_fd, work_fd]) = clone_both(&upper, &work) {
        return Ok(Writable {
            mount: UpperMount::of(Some(Arc::new(tree)), flags, &upper.path),
            layer: Layer {
                root: RwLock::new(Arc::new(upper_fd)),
                path: upper.path,
                dev,
                whiteouts: true,
                same_mount: false,
            },
            work: Some(Arc::new(work_fd)),
        });
    }
    tracing::debug!("{}: no private clone of its mount", upper.path.display());
    let layer = Layer {
        root: RwLock::new(Arc::new(upper.fd)),
        path: upper.path,
        dev,
        whiteouts: true,
        same_mount: true,
    };
    Ok(Writable {
        mount: UpperMount::of(None, flags, &layer.path),
        layer,
        work: Some(Arc::new(work.fd)),
    })
}

/// A clone of the mount at the nearest directory that holds both, and the two in it; `None` where that is not possible.
fn clone_both(upper: &Opened, work: &Opened) -> Option<[OwnedFd; 3]> {
    let upper_path = sys::fd::real_path(&upper.fd).ok()?;
    let work_path = sys::fd::real_path(&work.fd).ok()?;
    let common: PathBuf = upper_path
        .components()
        .zip(work_path.components())
        .take_while(|(a, b)| a == b)
        .map(|(a, _)| a)
        .collect();
    // Upwards and not by its path, which may lead into a mount that waits for us.
    let above = upper_path.strip_prefix(&common).ok()?.components().count();
    let mut base = upper.fd.try_clone().ok()?;
    for _ in 0..above {
        base = parent(&base).ok()?;
    }
    let tree = sys::mount::clone_tree(&base, false).ok()?;
    let reach = |path: &Path, expected: &Stat| {
        let relative = path.strip_prefix(&common).ok()?.as_os_str().as_bytes();
        let fd = sys::at::open_dir_path(&tree, relative, true).ok()?;
        let stat = sys::stat::fstat(&fd).ok()?;
        ((stat.dev, stat.ino) == (expected.dev, expected.ino)).then_some(fd)
    };
    let upper = reach(&upper_path, &upper.stat)?;
    let work = reach(&work_path, &work.stat)?;
    Some([tree, upper, work])
}
