//! Marks that `convert` adds.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{OFlags, RenameFlags};

use crate::layer::name;
use crate::layer::remove_tree::remove_tree;
use crate::layer::upper::keep_times;
use crate::layer::whiteout;
use crate::sys::at::SetTime;
use crate::sys::{self, Errno};
use crate::union::{ROOT, Union};

use super::changes::xattrs;
use super::convert::split;
use super::marks::{self, Form, Found, HIDDEN_DIR, HIDDEN_TAG, Means};
use super::{Result, ToolError, join};

/// Where the marks of unionfs-fuse are while they are not all there, or not all gone.
pub(super) const ASIDE: &[u8] = b".wh..wh.unionfs";
/// An object on its way to its name, in the directory where it belongs.
pub(super) const TEMPORARY: &[u8] = b".wh..wh.convert";

/// Marks that are being added.
pub(super) struct Adding<'a> {
    root: &'a Arc<OwnedFd>,
    /// Where the marks of unionfs-fuse are in the end, and where they are made.
    tagged: (&'static [u8], &'static [u8]),
    below: Option<&'a Union>,
}

impl<'a> Adding<'a> {
    /// In a layer of which was `found` what there is; marks of unionfs-fuse go to `tagged`; `below`
    /// are the layer's lowers, if they are known.
    pub fn new(
        root: &'a Arc<OwnedFd>, tagged: Option<&'static [u8]>, found: &Found,
        below: Option<&'a Union>,
    ) -> Result<Self> {
        let base = marks::open(root, b"").map_err(|e| ToolError::at(b"", e))?;
        if sys::stat::stat_at(&base, ASIDE).is_ok() {
            // Of a run that was cut off.
            keep_times(&base, || remove_tree(&base, ASIDE)).map_err(|e| ToolError::at(ASIDE, e))?;
        }
        let tagged = tagged.unwrap_or(HIDDEN_DIR);
        let made = match found.tagged.contains(&tagged) {
            true => tagged,
            false => ASIDE,
        };
        Ok(Self {
            root,
            tagged: (tagged, made),
            below,
        })
    }

    /// Tells whether there is a place for a mark of this path, or can be one.
    pub fn check_parent(&self, path: &[u8], means: Means) -> Result<()> {
        let (parent, _) = split(path);
        match marks::open(self.root, parent) {
            Err(Errno::NOENT) if means == Means::Hidden => self.missing(parent).map(drop),
            Err(e) => Err(ToolError::at(parent, e)),
            Ok(_) => Ok(()),
        }
    }

    /// The node of the lowers for a directory that the layer does not have.
    fn missing(&self, path: &[u8]) -> Result<(&'a Union, u64)> {
        let Some(below) = self.below else {
            return Err(ToolError::about(
                path,
                "is not in this layer, but names in it are hidden: the lowers are needed, to make it as \
                 they have it: -o lowerdir=L1:L2...",
            ));
        };
        let mut node = ROOT;
        for name in path.split(|&b| b == b'/') {
            let found = below
                .lookup(node, name)
                .map_err(|e| ToolError::at(path, e))?;
            node = match found {
                Some(found) if found.attr.kind().is_dir() => found.id,
                _ => {
                    return Err(ToolError::about(
                        path,
                        "is neither in this layer nor a directory of its lowers, but names in it are \
                         hidden: remove these marks from .unionfs, or give the right lowers",
                    ));
                }
            };
        }
        Ok((below, node))
    }

    /// Adds a mark; it may be there.
    pub fn add(&self, path: &[u8], means: Means, form: Form) -> Result<()> {
        let (parent, entry) = split(path);
        if means == Means::Hidden && !matches!(form, Form::Tagged(_)) {
            self.make_dirs(parent)?;
        }
        let result = match form {
            Form::Device => self.device(parent, entry),
            Form::Attribute(attr) => marks::open(self.root, path)
                .and_then(|dir| sys::xattr::set(dir.as_fd(), b"", attr, b"y", 0)),
            Form::Empty => Err(Errno::INVAL),
            Form::File if means == Means::Opaque => marks::open(self.root, path)
                .and_then(|dir| keep_times(&dir, || self.file(&dir, name::OPAQUE))),
            Form::File => marks::open(self.root, parent).and_then(|dir| {
                let marker = name::whiteout_of(entry).ok_or(Errno::NAMETOOLONG)?;
                keep_times(&dir, || self.file(&dir, &marker))
            }),
            Form::Tagged(_) => self.tag(parent, entry),
        };
        result.map_err(|e| refused(path, form, e))
    }

    /// All of them are there.
    pub fn finish(&self) -> Result<()> {
        let base = marks::open(self.root, b"").map_err(|e| ToolError::at(b"", e))?;
        let (dir, made) = self.tagged;
        if made == ASIDE && sys::stat::stat_at(&base, ASIDE).is_ok() {
            let flags = RenameFlags::NOREPLACE;
            let rename = || sys::at::rename_at(&base, ASIDE, &base, dir, flags);
            keep_times(&base, rename).map_err(|e| ToolError::at(dir, e))?;
        }
        Ok(())
    }

    fn device(&self, parent: &[u8], entry: &[u8]) -> sys::Result<()> {
        let dir = marks::open(self.root, parent)?;
        let make = |name: &[u8]| sys::at::mknod_at(&dir, name, libc::S_IFCHR, 0);
        keep_times(&dir, || match make(entry) {
            // An empty file with an attribute: it is a whiteout already, and has to stay one.
            Err(Errno::EXIST) => match whiteout::entry(dir.as_fd(), entry, true)? {
                whiteout::Entry::Whiteout => {
                    remove_tree(&dir, TEMPORARY)?;
                    make(TEMPORARY)?;
                    sys::at::rename_at(&dir, TEMPORARY, &dir, entry, RenameFlags::empty())
                }
                _ => Err(Errno::EXIST),
            },
            result => result,
        })
    }

    /// Makes the directories of this path that the layer does not have, as its lowers have them.
    fn make_dirs(&self, path: &[u8]) -> Result<()> {
        let fail = |e| ToolError::at(path, e);
        let mut dir = marks::open(self.root, b"").map_err(fail)?;
        let mut at = Vec::new();
        for name in path.split(|&b| b == b'/').filter(|name| !name.is_empty()) {
            at = join(&at, name);
            dir = match sys::at::open_dir_path(&dir, name, true) {
                Err(Errno::NOENT) => {
                    let (below, node) = self.missing(&at)?;
                    self.make_dir(&dir, name, below, node).map_err(fail)?;
                    sys::at::open_dir_path(&dir, name, true).map_err(fail)?
                }
                there => there.map_err(fail)?,
            };
        }
        Ok(())
    }

    /// Makes one, complete before it has its name.
    fn make_dir(&self, dir: &OwnedFd, name: &[u8], below: &Union, node: u64) -> sys::Result<()> {
        let stat = below.getattr(node)?.stat;
        let attrs = xattrs(below, node)?;
        keep_times(dir, || {
            remove_tree(dir, TEMPORARY)?;
            sys::at::mkdir_at(dir, TEMPORARY, 0o700)?;
            let made = sys::at::open_dir_path(dir, TEMPORARY, true)?;
            sys::at::chown_at(&made, b"", Some(stat.uid), Some(stat.gid))?;
            for attr in sys::xattr::list(made.as_fd(), b"")?.split(|&b| b == 0) {
                if attr.starts_with(b"system.posix_acl_") {
                    sys::xattr::remove(made.as_fd(), b"", attr)?;
                }
            }
            sys::at::chmod_at(&made, b"", stat.mode & 0o7777)?;
            for (attr, value) in &attrs {
                sys::xattr::set(made.as_fd(), b"", attr, value, 0)?;
            }
            let times = (SetTime::At(stat.atime), SetTime::At(stat.mtime));
            sys::at::utimens_at(&made, b"", times.0, times.1)?;
            sys::at::rename_at(dir, TEMPORARY, dir, name, RenameFlags::NOREPLACE)
        })
    }

    fn tag(&self, parent: &[u8], entry: &[u8]) -> sys::Result<()> {
        let mut dir = marks::open(self.root, b"")?;
        let above = parent.split(|&b| b == b'/').filter(|name| !name.is_empty());
        for name in std::iter::once(self.tagged.1).chain(above) {
            keep_times(&dir, || sys::at::mkdir_at(&dir, name, 0o755).or_else(there))?;
            dir = sys::at::open_dir_path(&dir, name, true)?;
        }
        self.file(&dir, &[entry, HIDDEN_TAG].concat())
    }

    /// An empty file; for aufs a link to the one that all of its whiteouts are.
    fn file(&self, dir: &OwnedFd, name: &[u8]) -> sys::Result<()> {
        let make = |dir: &OwnedFd, name: &[u8]| {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
            sys::at::open_at(dir, name, flags, 0o444, false)
                .map(drop)
                .or_else(there)
        };
        if !name.starts_with(name::PREFIX) {
            return make(dir, name);
        }
        let base = marks::open(self.root, b"")?;
        keep_times(&base, || make(&base, name::WHITEOUT_BASE))?;
        match sys::at::link_at(&base, name::WHITEOUT_BASE, dir, name) {
            Ok(()) | Err(Errno::EXIST) => Ok(()),
            // At the limit of links, or where there are none.
            Err(_) => make(dir, name),
        }
    }
}

fn there(errno: Errno) -> sys::Result<()> {
    match errno {
        Errno::EXIST => Ok(()),
        e => Err(e),
    }
}

fn refused(path: &[u8], form: Form, errno: Errno) -> ToolError {
    let what = match form {
        Form::Device => "a whiteout device cannot be made",
        Form::Attribute(_) => "an opaque attribute cannot be set",
        _ => "a whiteout cannot be made",
    };
    ToolError::about(
        path,
        format_args!("{what}: {}", std::io::Error::from(errno)),
    )
}
