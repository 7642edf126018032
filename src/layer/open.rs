//! Opening and checking the layers, before anything is mounted.

use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::OFlags;

use crate::options::Options;
use crate::sys::{self, Errno, Stat};

use super::served::{Writable, into_layer, writable_layer};
use super::upper::{Markers, keep_times};
use super::{Layer, LayerIndex, LayerStack, Upper, name};

/// Why a stack of layers cannot be used. The text is one line for the administrator.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// A layer cannot be opened.
    #[error("{option}={}: {}", .path.display(), describe(*.errno))]
    Open {
        /// The option that named it.
        option: &'static str,
        /// As written.
        path: PathBuf,
        /// The failure.
        errno: Errno,
    },
    /// Two layers share files.
    #[error("{option}={}: overlaps {other}={}", .path.display(), .other_path.display())]
    Overlap {
        /// The option of the inner or second one.
        option: &'static str,
        /// As written.
        path: PathBuf,
        /// The option of the outer or first one.
        other: &'static str,
        /// As written.
        other_path: PathBuf,
    },
    /// Temporaries could not be moved into the upper in one step.
    #[error("workdir={}: not on the filesystem of upperdir={}", .work.display(), .upper.display())]
    OtherFilesystem {
        /// The workdir.
        work: PathBuf,
        /// The upperdir.
        upper: PathBuf,
    },
    /// The upper's filesystem does not let the marks be made.
    #[error(
        "upperdir={}: names that begin with .wh. cannot be made in it; is it inside another union? \
         It has to be outside of it, such as on a volume of its own",
        .0.display()
    )]
    NoMarks(PathBuf),
    /// The upper is in use.
    #[error("upperdir={}: in use by another mount", .0.display())]
    Busy(PathBuf),
    /// A metadata entry of the upper, or of the workdir, has the wrong type.
    #[error("{option}={}: {entry} is not a {expected}", .path.display())]
    Metadata {
        /// The option that named the directory.
        option: &'static str,
        /// The upperdir or workdir.
        path: PathBuf,
        /// The entry's name.
        entry: &'static str,
        /// What it must be.
        expected: &'static str,
    },
    /// More layers than a stack can hold.
    #[error("lowerdir: {0} layers given, 65000 at most")]
    TooMany(usize),
    /// No layer at all.
    #[error("lowerdir: no layer given")]
    None,
}

fn describe(errno: Errno) -> String {
    std::io::Error::from(errno).to_string()
}

/// How long to wait for the daemon of an earlier mount, which ends after that does, to let go of the upper.
pub(crate) const LOCK_PATIENCE: Duration = Duration::from_secs(5);
const MAX_LAYERS: usize = 65000;

/// A directory on the way into the stack.
pub(super) struct Opened {
    pub option: &'static str,
    pub path: PathBuf,
    pub fd: OwnedFd,
    pub stat: Stat,
}

fn open_one(option: &'static str, path: &Path) -> Result<Opened, LayerError> {
    let fail = |errno| LayerError::Open {
        option,
        path: path.to_owned(),
        errno,
    };
    let fd = sys::at::open_root(path.as_os_str().as_bytes()).map_err(fail)?;
    let stat = sys::stat::fstat(&fd).map_err(fail)?;
    Ok(Opened {
        option,
        path: path.to_owned(),
        fd,
        stat,
    })
}

/// All directories of a stack.
struct All {
    upper: Option<Opened>,
    work: Option<Opened>,
    lowers: Vec<Opened>,
}

impl All {
    fn open(options: &Options) -> Result<Self, LayerError> {
        if options.lowers.is_empty() && options.upper.is_none() {
            return Err(LayerError::None);
        }
        if options.lowers.len() > MAX_LAYERS {
            return Err(LayerError::TooMany(options.lowers.len()));
        }
        let upper = options
            .upper
            .as_deref()
            .map(|p| open_one("upperdir", p))
            .transpose()?;
        let work = match (&upper, &options.work) {
            (Some(_), Some(path)) => Some(open_one("workdir", path)?),
            // Without an upper there is nothing temporary to hold.
            _ => None,
        };
        let mut lowers = Vec::with_capacity(options.lowers.len());
        for lower in &options.lowers {
            lowers.push(open_one("lowerdir", &lower.path)?);
        }
        if !options.upper_inside {
            check_overlaps(upper.as_ref(), work.as_ref(), &lowers)?;
        }
        Ok(Self {
            upper,
            work,
            lowers,
        })
    }
}

impl LayerStack {
    /// Checks what can be checked without changing anything: that all layers of `options` are there
    /// and do not overlap.
    ///
    /// # Errors
    /// One [`LayerError`] for the first thing that is wrong.
    pub fn check(options: &Options) -> Result<(), LayerError> {
        All::open(options).map(drop)
    }

    /// Opens all layers of `options` and checks that they can form a union.
    ///
    /// # Errors
    /// One [`LayerError`] for the first thing that is wrong.
    pub fn open(options: &Options) -> Result<Self, LayerError> {
        let All {
            upper,
            work,
            lowers,
        } = All::open(options)?;
        let has_upper = upper.is_some();
        let mut layers = Vec::with_capacity(lowers.len() + 1);
        let mut state = None;
        match upper {
            Some(upper) if options.read_only => layers.push(into_layer(upper, true)),
            Some(upper) => {
                let writable = writable_layer(upper, work, options.kernel_flags)?;
                state = Some(take_upper(&writable, options)?);
                layers.push(writable.layer);
            }
            None => {}
        }
        for (opened, lower) in lowers.into_iter().zip(&options.lowers) {
            layers.push(Layer {
                whiteouts: lower.whiteouts,
                ..into_layer(opened, true)
            });
        }
        Ok(Self::of(layers, state, has_upper))
    }
}

impl LayerStack {
    /// Opens a lower that is to be added to a running union, and checks that it can be part of it.
    ///
    /// # Errors
    /// One [`LayerError`] for the first thing that is wrong.
    pub fn open_added(
        &self, path: &Path, without: Option<LayerIndex>,
    ) -> Result<Layer, LayerError> {
        let new = open_one("layer", path)?;
        let mut others = Vec::new();
        for (index, layer) in self.all() {
            if Some(index) == without {
                continue;
            }
            // By its path, if it is still there: the way up from a private mount ends at its root.
            let known = sys::stat::fstat(&*layer.root());
            let named = open_one("layer", &layer.path);
            if let (Ok(known), Ok(named)) = (known, named)
                && (known.dev, known.ino) == (named.stat.dev, named.stat.ino)
            {
                others.push(named);
            } else if let (Ok(stat), Ok(fd)) = (known, layer.root().try_clone()) {
                let path = layer.path.clone();
                others.push(Opened {
                    option: "layer",
                    path,
                    fd,
                    stat,
                });
            }
        }
        check_overlaps(Some(&new), None, &others)?;
        Ok(into_layer(new, true))
    }
}

/// Locks the upper and checks that it can be written.
fn take_upper(writable: &Writable, options: &Options) -> Result<Upper, LayerError> {
    let Writable { layer, work, mount } = writable;
    let fail = |errno| LayerError::Open {
        option: "upperdir",
        path: layer.path.clone(),
        errno,
    };
    let lock = sys::fd::reopen_dir(&*layer.root()).map_err(fail)?;
    match sys::fd::lock_within(&lock, LOCK_PATIENCE) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => return Err(LayerError::Busy(layer.path.clone())),
        // A filesystem without locks cannot be protected; that is no reason not to serve it.
        Err(e) => {
            tracing::warn!("upperdir={}: cannot be locked: {e}", layer.path.display());
        }
    }
    check_metadata(&layer.root(), "upperdir", &layer.path, &UPPER_ENTRIES)?;
    if let (Some(dir), Some(path)) = (work, &options.work) {
        check_metadata(dir, "workdir", path, &WORKDIR_ENTRIES)?;
    }
    let flags = sys::stat::statvfs(&*layer.root()).map_err(fail)?.f_flag;
    if flags.contains(rustix::fs::StatVfsMountFlags::RDONLY) {
        return Err(fail(Errno::ROFS));
    }
    let markers = Markers {
        form: options.whiteout,
        separate: options.separate_whiteouts,
        always_opaque: options.always_opaque,
    };
    let mut upper = Upper::new(layer.root(), work.clone(), mount.clone(), markers, lock);
    if let Err(errno) = upper.find_abilities(&layer.path) {
        let denied = matches!(errno, Errno::ACCESS | Errno::PERM | Errno::ROFS);
        let owner = sys::stat::fstat(&*layer.root()).map_err(fail)?.uid;
        let protected = errno == Errno::ACCESS && owner == sys::cred::own_uid();
        if errno == Errno::PERM && refuses_marks(&layer.root()) {
            return Err(LayerError::NoMarks(layer.path.clone()));
        }
        if denied && !protected {
            return Err(fail(errno));
        }
        // A full disk, or a root directory that its own user has made read-only: most of the
        // union can be used all the same.
        let path = layer.path.display();
        tracing::warn!("upperdir={path}: no temporary file can be made: {errno}");
    }
    Ok(upper)
}

/// True where objects can be made, but none whose name begins with `.wh.`: in another union, which
/// takes such names for its own. Only that tells it from a directory in which nothing may be made.
fn refuses_marks(root: &OwnedFd) -> bool {
    let made = |prefix: &str| {
        let name = format!("{prefix}unionfs-{}", std::process::id());
        keep_times(root, || {
            sys::at::mkdir_at(root, name.as_bytes(), 0o700)?;
            sys::at::rmdir_at(root, name.as_bytes())
        })
    };
    made(".wh.") == Err(Errno::PERM) && made("").is_ok()
}

/// Reserved entries: name, text, and whether it is a directory.
type Reserved = (&'static [u8], &'static str, bool);

const UPPER_ENTRIES: [Reserved; 3] = [
    (name::WHITEOUT_BASE, ".wh..wh.aufs", false),
    (name::ORPHANS, ".wh..wh.orph", true),
    (name::PSEUDO_LINKS, ".wh..wh.plnk", true),
];
const WORKDIR_ENTRIES: [Reserved; 1] = [(b"work", "work", true)];

/// The metadata entries must be what the format says, or whiteouts would be written wrongly, and
/// nothing that needs a temporary could be done.
fn check_metadata(
    dir: &OwnedFd, option: &'static str, path: &Path, entries: &[Reserved],
) -> Result<(), LayerError> {
    for &(entry, text, is_dir) in entries {
        let Ok(stat) = sys::stat::stat_at(dir, entry) else {
            continue;
        };
        let good = if is_dir {
            stat.kind().is_dir()
        } else {
            stat.kind() == sys::FileKind::Regular
        };
        if !good {
            let expected = if is_dir { "directory" } else { "regular file" };
            return Err(LayerError::Metadata {
                option,
                path: path.to_owned(),
                entry: text,
                expected,
            });
        }
    }
    Ok(())
}

/// Refuses layers that share files: a change through one would show in the other.
fn check_overlaps(
    upper: Option<&Opened>, work: Option<&Opened>, lowers: &[Opened],
) -> Result<(), LayerError> {
    let all: Vec<&Opened> = upper.into_iter().chain(work).chain(lowers).collect();
    let mut roots = std::collections::HashMap::new();
    for opened in &all {
        if let Some(other) = roots.insert((opened.stat.dev, opened.stat.ino), *opened) {
            return Err(overlap(opened, other));
        }
    }
    for opened in &all {
        if let Some(outer) = find_ancestor(opened, &roots) {
            return Err(overlap(opened, outer));
        }
    }
    check_inner_paths(&all)
}

/// Finds overlaps that the way up from a bind mount does not lead to: each layer's path from the
/// root of its filesystem, as the mount table has it.
fn check_inner_paths(all: &[&Opened]) -> Result<(), LayerError> {
    let table = std::fs::read("/proc/self/mountinfo").unwrap_or_default();
    let mut inner: Vec<(u64, PathBuf, &Opened)> = Vec::with_capacity(all.len());
    for opened in all {
        if let Some(path) = sys::mount::inner_path(&table, &opened.fd) {
            inner.push((opened.stat.dev, path, opened));
        }
    }
    // In this order a path comes right before the paths below it.
    inner.sort_by(|a, b| (a.0, &a.1).cmp(&(b.0, &b.1)));
    for pair in inner.windows(2) {
        if pair[0].0 == pair[1].0 && pair[1].1.starts_with(&pair[0].1) {
            return Err(overlap(pair[1].2, pair[0].2));
        }
    }
    Ok(())
}

fn overlap(inner: &Opened, outer: &Opened) -> LayerError {
    LayerError::Overlap {
        option: inner.option,
        path: inner.path.clone(),
        other: outer.option,
        other_path: outer.path.clone(),
    }
}

/// The layer that contains `opened` on the same filesystem, if any. A layer on another filesystem
/// mounted inside a layer shares no files with it.
fn find_ancestor<'a>(
    opened: &Opened, roots: &std::collections::HashMap<(u64, u64), &'a Opened>,
) -> Option<&'a Opened> {
    let mut last = (opened.stat.dev, opened.stat.ino);
    let mut fd = parent(&opened.fd).ok()?;
    loop {
        // What is mounted above may be the very union that begins here, and is not asked.
        let here = sys::stat::identity(&fd).ok()?;
        if here == last || here.0 != opened.stat.dev {
            return None;
        }
        if let Some(outer) = roots.get(&here) {
            return Some(outer);
        }
        last = here;
        fd = parent(&fd).ok()?;
    }
}

/// A handle of the directory above.
pub(super) fn parent(fd: &OwnedFd) -> sys::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(fd, c"..", flags, rustix::fs::Mode::empty())
}
