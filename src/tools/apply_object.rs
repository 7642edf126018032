//! One object of an archive: made complete under a name of its own, and put in its place in one step.

use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{OFlags, RenameFlags};
use tar::EntryType;

use crate::layer::name::{self, NameBuf};
use crate::layer::private::is_private;
use crate::layer::remove_tree::remove_tree;
use crate::sys::at::SetTime;
use crate::sys::{self, Errno, FileKind, stat::Time};

use super::apply::Target;
use super::tar_reader::{Entry, Reader};
use super::{Result, ToolError};

/// Attributes of an object.
pub(super) struct Attrs {
    mode: u32,
    uid: u32,
    gid: u32,
    mtime: Time,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// What only an administrator may give, and so could not be given.
#[derive(Default)]
pub(super) struct LeftOut {
    owners: u64,
    attributes: u64,
    devices: u64,
}

impl LeftOut {
    /// One line about it.
    pub fn line(&self) -> Option<String> {
        let parts = [
            (self.owners, "owners"),
            (self.attributes, "attributes"),
            (self.devices, "devices"),
        ];
        let told = parts.iter().filter(|(count, _)| *count > 0);
        let told: Vec<String> = told
            .map(|(count, what)| format!("{count} {what}"))
            .collect();
        let any = !told.is_empty();
        any.then(|| format!("left out, as only root may give them: {}", told.join(", ")))
    }
}

/// True for attributes that go when an archive has an object without them.
fn is_told(attr: &[u8]) -> bool {
    let prefixes: [&[u8]; 3] = [b"user.", b"trusted.", b"system.posix_acl_"];
    let told = prefixes.iter().any(|prefix| attr.starts_with(prefix));
    (told || attr == b"security.capability") && !is_private(attr)
}

impl Attrs {
    pub fn of(entry: &Entry) -> Self {
        let (sec, nsec) = entry.mtime;
        Self {
            mode: entry.mode,
            uid: entry.uid,
            gid: entry.gid,
            mtime: Time { sec, nsec },
            xattrs: entry.xattrs.clone(),
        }
    }

    /// Gives them to an open object, which has others, or has inherited some from its directory.
    pub fn give(
        &self, object: &OwnedFd, is_symlink: bool, left_out: &mut LeftOut,
    ) -> sys::Result<()> {
        let lenient = !sys::cred::is_real_root();
        let refused = |e: Errno| {
            let refused = [Errno::PERM, Errno::INVAL, Errno::OPNOTSUPP, Errno::ACCESS];
            lenient && refused.contains(&e)
        };
        let mut mode = self.mode;
        match sys::at::chown_at(object, b"", Some(self.uid), Some(self.gid)) {
            Err(e) if refused(e) => {
                left_out.owners += 1;
                // A program would act for another user than the one that it was meant for.
                mode &= !0o6000;
            }
            result => result?,
        }
        let present = sys::xattr::list(object.as_fd(), b"")?;
        for attr in present.split(|&b| b == 0).filter(|attr| is_told(attr)) {
            if self.xattrs.iter().any(|(name, _)| name == attr) {
                continue;
            }
            match sys::xattr::remove(object.as_fd(), b"", attr) {
                Err(Errno::NODATA) => {}
                Err(e) if refused(e) => left_out.attributes += 1,
                result => result?,
            }
        }
        if !is_symlink {
            sys::at::chmod_at(object, b"", mode)?;
        }
        for (attr, value) in &self.xattrs {
            // A union's own records would say that contents are elsewhere.
            if is_private(attr) {
                continue;
            }
            match sys::xattr::set(object.as_fd(), b"", attr, value, 0) {
                Err(e) if refused(e) => left_out.attributes += 1,
                result => result?,
            }
        }
        let time = SetTime::At(self.mtime);
        sys::at::utimens_at(object, b"", time, time)
    }
}

impl Target {
    /// Makes the object `name` of `dir`, which is at `path`.
    pub fn object(
        &mut self, entry: &Entry, reader: &mut Reader<impl Read>, dir: &OwnedFd, name: &[u8],
        path: Vec<u8>,
    ) -> Result<()> {
        let fail = |e| ToolError::at(&path, e);
        let there = match sys::stat::stat_at(dir, name) {
            Ok(stat) => Some(stat),
            Err(Errno::NOENT) => None,
            Err(e) => return Err(fail(e)),
        };
        let was_dir = there.is_some_and(|stat| stat.kind() == FileKind::Directory);
        let is_dir = entry.kind == EntryType::Directory;
        if is_dir && was_dir {
            self.new.insert(path.clone());
            self.touch_later(path.clone(), Attrs::of(entry));
            return self.clear_whiteout(dir, name, &path, false);
        }
        let source = match entry.kind {
            EntryType::Link => Some(self.link_source(entry)?),
            _ => None,
        };
        // Linking a file to itself would take it away.
        let is_same = |(from, old): &(OwnedFd, Vec<u8>)| same(from, old, dir, name);
        if there.is_some() && source.as_ref().is_some_and(is_same) {
            self.new.insert(path);
            return Ok(());
        }
        let temp = self.temp_name();
        if !self.make(entry, reader, dir, &temp, &path, source)? {
            return Ok(());
        }
        if was_dir {
            self.forget_below(&path);
        }
        let placed = place(dir, &temp, name, there.map(|stat| stat.kind()), is_dir);
        if placed.is_err() {
            let _ = remove_tree(dir, &temp);
        }
        placed.map_err(|e| ToolError::at(&path, e))?;
        self.new.insert(path.clone());
        if is_dir {
            self.touch_later(path.clone(), Attrs::of(entry));
        }
        let over_whiteout = there.is_some_and(|stat| stat.is_whiteout_device());
        self.clear_whiteout(dir, name, &path, is_dir && over_whiteout)
    }

    /// In a layer that has more already, a whiteout of this name was of a layer below this one: a
    /// directory has to hide the same.
    fn clear_whiteout(
        &self, dir: &OwnedFd, name: &[u8], path: &[u8], over_whiteout: bool,
    ) -> Result<()> {
        if !self.is_layer {
            return Ok(());
        }
        let fail = |e| ToolError::at(path, e);
        let marker = name::whiteout_of(name);
        let marker = marker.filter(|marker| sys::stat::stat_at(dir, marker).is_ok());
        if marker.is_some() || over_whiteout {
            match sys::at::open_dir_path(dir, name, false) {
                Ok(inner) => self.marker(&inner, name::OPAQUE, path)?,
                Err(Errno::NOTDIR | Errno::LOOP) => {}
                Err(e) => return Err(fail(e)),
            }
        }
        match marker {
            Some(marker) => sys::at::unlink_at(dir, &marker).map_err(fail),
            None => Ok(()),
        }
    }

    /// A name that nobody else has. In a layer it is one that does not show.
    fn temp_name(&self) -> NameBuf {
        let prefix = if self.is_layer {
            ".wh..wh."
        } else {
            ".unionfs-"
        };
        let name = format!("{prefix}apply.{}.{}", std::process::id(), self.new.len());
        NameBuf::from_slice(name.as_bytes())
    }

    /// Makes the object under another name; false when it has to be left out.
    fn make(
        &mut self, entry: &Entry, reader: &mut Reader<impl Read>, dir: &OwnedFd, temp: &[u8],
        path: &[u8], source: Option<(OwnedFd, Vec<u8>)>,
    ) -> Result<bool> {
        let made = self.try_make(entry, reader, dir, temp, path, source);
        if made.is_err() {
            let _ = remove_tree(dir, temp);
        }
        made
    }

    fn try_make(
        &mut self, entry: &Entry, reader: &mut Reader<impl Read>, dir: &OwnedFd, temp: &[u8],
        path: &[u8], source: Option<(OwnedFd, Vec<u8>)>,
    ) -> Result<bool> {
        let fail = |e| ToolError::at(path, e);
        let attrs = Attrs::of(entry);
        if entry.kind == EntryType::Directory {
            return sys::at::mkdir_at(dir, temp, 0o700)
                .map(|()| true)
                .map_err(fail);
        }
        if let Some((from, old)) = source {
            return sys::at::link_at(&from, &old, dir, temp)
                .map(|()| true)
                .map_err(fail);
        }
        let is_file = [
            EntryType::Regular,
            EntryType::Continuous,
            EntryType::GNUSparse,
        ];
        if is_file.contains(&entry.kind) {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
            let file = sys::at::open_at(dir, temp, flags, 0o600, false).map_err(fail)?;
            data(entry, reader, &file, path)?;
            attrs.give(&file, false, &mut self.left_out).map_err(fail)?;
            return Ok(true);
        }
        let is_symlink = entry.kind == EntryType::Symlink;
        if is_symlink {
            sys::at::symlink_at(&entry.target, dir, temp).map_err(fail)?;
        } else {
            let kind = match entry.kind {
                EntryType::Char => libc::S_IFCHR,
                EntryType::Block => libc::S_IFBLK,
                EntryType::Fifo => libc::S_IFIFO,
                _ => {
                    let text = "is of a type that is not known; pack it with GNU tar, or bsdtar --format=pax";
                    return Err(ToolError::about(path, text));
                }
            };
            let device = libc::makedev(entry.device.0, entry.device.1);
            match sys::at::mknod_at(dir, temp, kind | 0o600, device) {
                Err(Errno::PERM) if kind != libc::S_IFIFO && !sys::cred::is_real_root() => {
                    self.left_out.devices += 1;
                    return Ok(false);
                }
                result => result.map_err(fail)?,
            }
        }
        let object = sys::at::open_path(dir, temp).map_err(fail)?;
        if sys::stat::fstat(&object).map_err(fail)?.nlink != 1 {
            return Err(ToolError::about(
                path,
                "was replaced while it was made; see who else writes there",
            ));
        }
        attrs
            .give(&object, is_symlink, &mut self.left_out)
            .map_err(fail)?;
        Ok(true)
    }
}

/// Puts a finished object in its place; what was there is gone then, and not before.
fn place(
    dir: &OwnedFd, temp: &[u8], name: &[u8], there: Option<FileKind>, is_dir: bool,
) -> sys::Result<()> {
    let simple = match there {
        None => true,
        Some(kind) => !kind.is_dir() && !is_dir,
    };
    let rename = || sys::at::rename_at(dir, temp, dir, name, RenameFlags::empty());
    if simple {
        return rename();
    }
    match sys::at::rename_at(dir, temp, dir, name, RenameFlags::EXCHANGE) {
        Ok(()) => remove_tree(dir, temp),
        // A filesystem without exchanges.
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
            remove_tree(dir, name)?;
            rename()
        }
        Err(e) => Err(e),
    }
}

fn data(entry: &Entry, reader: &mut Reader<impl Read>, file: &OwnedFd, path: &[u8]) -> Result<()> {
    let copied = reader.data(entry, |offset, data| {
        let mut done = 0;
        while done < data.len() {
            let at = offset + done as u64;
            done += match sys::file::write_full(file, &data[done..], at)? {
                0 => return Err(Errno::NOSPC.into()),
                n => n,
            };
        }
        Ok(())
    });
    copied.map_err(|e| ToolError::about(path, e))?;
    sys::file::truncate(file, entry.size).map_err(|e| ToolError::at(path, e))
}

/// True when both names are of one object.
fn same(a: &OwnedFd, a_name: &[u8], b: &OwnedFd, b_name: &[u8]) -> bool {
    let facts = |dir, name| sys::stat::stat_at(dir, name).map(|stat| (stat.dev, stat.ino));
    matches!((facts(a, a_name), facts(b, b_name)), (Ok(a), Ok(b)) if a == b)
}
