//! `unionfs apply`: unpacks a layer archive onto a directory.
//!
//! Each path is walked name by name from the directory's descriptor, without following symlinks, so
//! nothing an archive says leads out of it.

use std::collections::{BTreeMap, HashSet, btree_map};
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::OFlags;
use tar::EntryType;

use crate::cli::Apply;
use crate::layer::name::{self, NAME_MAX, Name};
use crate::layer::private::is_private;
use crate::layer::remove_tree::remove_tree;
use crate::sys::at::SetTime;
use crate::sys::{self, Errno, FileKind, stat::Time};

use super::progress::{Progress, Unit};
use super::tar_reader::{Entry, Reader};
use super::{Result, ToolError, join};

/// Does what was asked.
///
/// # Errors
/// One line for the first thing that went wrong; what came before it in the archive is unpacked then.
pub fn apply(what: &Apply) -> Result<()> {
    let fail = |path: &std::path::Path, e: io::Error| {
        ToolError::new(format_args!("{}: {e}", path.display()))
    };
    let progress = Progress::new("unpacking", Unit::Bytes);
    let input: Box<dyn Read> = match what.layer.as_os_str() == "-" {
        true => Box::new(io::stdin().lock()),
        false => {
            let file = File::open(&what.layer).map_err(|e| fail(&what.layer, e))?;
            let size = file.metadata().ok().filter(std::fs::Metadata::is_file);
            progress.next("unpacking", size.map(|meta| meta.len()));
            Box::new(file)
        }
    };
    let input = Counted(input, &progress);
    let root = sys::at::open_root(what.dir.as_os_str().as_bytes());
    let root = root.map_err(|e| fail(&what.dir, e.into()))?;
    let mut target = Target {
        root,
        is_layer: what.is_layer,
        privileged: sys::cred::own_uid() == 0,
        new: HashSet::new(),
        touched: BTreeMap::new(),
    };
    let mut reader = Reader::new(BufReader::with_capacity(1 << 18, input));
    loop {
        let entry = reader.next().map_err(|e| fail(&what.layer, e))?;
        let Some(entry) = entry else { break };
        target.put(&entry, &mut reader)?;
    }
    target.finish()
}

/// Input of which is told how much was read.
struct Counted<'a, R>(R, &'a Progress);

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let got = self.0.read(buffer)?;
        self.1.add(got as u64);
        Ok(got)
    }
}

/// Attributes for a directory when everything else is done.
enum Later {
    /// It was there, and the archive does not speak of it: its times stay.
    Times(Time, Time),
    /// As the archive says.
    All(Attrs),
}

struct Attrs {
    mode: u32,
    uid: u32,
    gid: u32,
    mtime: Time,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Attrs {
    fn of(entry: &Entry) -> Self {
        let (sec, nsec) = entry.mtime;
        Self {
            mode: entry.mode,
            uid: entry.uid,
            gid: entry.gid,
            mtime: Time { sec, nsec },
            xattrs: entry.xattrs.clone(),
        }
    }
}

struct Target {
    root: OwnedFd,
    /// Whiteouts are kept, as the directory is to be a layer.
    is_layer: bool,
    /// Owners and devices can be had.
    privileged: bool,
    /// Paths that this archive has made, and the directories above them.
    new: HashSet<Vec<u8>>,
    touched: BTreeMap<Vec<u8>, Later>,
}

/// The names of a path, of which none can lead out.
fn names(path: &[u8]) -> Result<Vec<&[u8]>> {
    let mut names = Vec::new();
    for name in path.split(|&b| b == b'/') {
        match name {
            b"" | b"." => {}
            b".." => return Err(ToolError::about(path, "leads out of the directory")),
            name if name.len() > NAME_MAX => return Err(ToolError::at(path, Errno::NAMETOOLONG)),
            name => names.push(Name::new(name).map_err(|e| ToolError::at(path, e))?.bytes()),
        }
    }
    Ok(names)
}

impl Target {
    fn put(&mut self, entry: &Entry, reader: &mut Reader<impl Read>) -> Result<()> {
        let names = names(&entry.path)?;
        let Some((last, parents)) = names.split_last() else {
            // The root itself.
            let all = Later::All(Attrs::of(entry));
            return match entry.kind {
                EntryType::Directory => {
                    self.touched.insert(Vec::new(), all);
                    Ok(())
                }
                _ => Err(ToolError::about(&entry.path, "is no name")),
            };
        };
        if parents.iter().any(|name| name::is_reserved(name)) {
            return Err(ToolError::about(&entry.path, "is below a reserved name"));
        }
        let dir = self.parent(parents)?;
        let parent = parents.join(&b'/');
        let path = join(&parent, last);
        let whiteout_device = entry.kind == EntryType::Char && entry.device == (0, 0);
        if name::is_reserved(last) {
            let hidden = name::hidden_by(last);
            return match (hidden, self.is_layer) {
                (None, _) if *last != name::OPAQUE => {
                    Err(ToolError::about(&entry.path, "is a reserved name"))
                }
                (_, true) => self.marker(&dir, last, &path),
                (Some(hidden), _) => self.remove_older(join(&parent, hidden)),
                (None, _) => self.empty_older(&parent),
            };
        }
        if whiteout_device && !self.is_layer {
            return self.remove_older(path);
        }
        self.object(entry, reader, &dir, last, path)
    }

    /// Opens the directory with these names; what is missing is made.
    fn parent(&mut self, names: &[&[u8]]) -> Result<OwnedFd> {
        let mut path = Vec::new();
        let mut dir = self.root.try_clone();
        for name in names {
            let fd = dir.map_err(|e| ToolError::about(&path, e))?;
            path = join(&path, name);
            let fail = |e: Errno| match e {
                Errno::LOOP | Errno::NOTDIR => ToolError::about(
                    &path,
                    "is no directory, but the archive has something in it; symlinks are not followed",
                ),
                e => ToolError::at(&path, e),
            };
            let next = match sys::at::open_dir_path(&fd, name, false) {
                Err(Errno::NOENT) => {
                    sys::at::mkdir_at(&fd, name, 0o755).map_err(fail)?;
                    sys::at::open_dir_path(&fd, name, false)
                }
                found => found,
            };
            dir = Ok(next.map_err(fail)?);
            self.new.insert(path.clone());
        }
        let dir = dir.map_err(|e| ToolError::about(&path, e))?;
        if let btree_map::Entry::Vacant(slot) = self.touched.entry(path) {
            let stat = sys::stat::fstat(&dir).map_err(|e| ToolError::at(slot.key(), e))?;
            slot.insert(Later::Times(stat.atime, stat.mtime));
        }
        Ok(dir)
    }

    fn marker(&self, dir: &OwnedFd, name: &[u8], path: &[u8]) -> Result<()> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
        match sys::at::open_at(dir, name, flags, 0o444, false) {
            Ok(_) | Err(Errno::EXIST) => Ok(()),
            Err(e) => Err(ToolError::at(path, e)),
        }
    }

    /// Removes what this archive did not make.
    fn remove_older(&self, path: Vec<u8>) -> Result<()> {
        let mut pending = vec![path];
        while let Some(path) = pending.pop() {
            let fail = |e| ToolError::at(&path, e);
            let names = names(&path)?;
            let Some((last, parents)) = names.split_last() else {
                continue;
            };
            let Some(dir) = self.find(parents).map_err(fail)? else {
                continue;
            };
            if !self.new.contains(&path) {
                remove_tree(&dir, last).map_err(fail)?;
                continue;
            }
            match sys::at::open_dir_path(&dir, last, false) {
                Ok(dir) => pending.extend(children(&dir, &path).map_err(fail)?),
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                Err(e) => return Err(fail(e)),
            }
        }
        Ok(())
    }

    fn empty_older(&self, path: &[u8]) -> Result<()> {
        let fail = |e| ToolError::at(path, e);
        let dir = self.find(&names(path)?).map_err(fail)?;
        let Some(dir) = dir else { return Ok(()) };
        let children = children(&dir, path).map_err(fail)?;
        children
            .into_iter()
            .try_for_each(|child| self.remove_older(child))
    }

    /// Opens a directory if it is there.
    fn find(&self, names: &[&[u8]]) -> sys::Result<Option<OwnedFd>> {
        let mut dir = sys::at::open_dir_path(&self.root, b".", false)?;
        for name in names {
            dir = match sys::at::open_dir_path(&dir, name, false) {
                Ok(dir) => dir,
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(None),
                Err(e) => return Err(e),
            };
        }
        Ok(Some(dir))
    }

    fn object(
        &mut self, entry: &Entry, reader: &mut Reader<impl Read>, dir: &OwnedFd, name: &[u8],
        path: Vec<u8>,
    ) -> Result<()> {
        let fail = |e| ToolError::at(&path, e);
        let there = match sys::stat::stat_at(dir, name) {
            Ok(stat) => Some(stat.kind()),
            Err(Errno::NOENT) => None,
            Err(e) => return Err(fail(e)),
        };
        let both_dirs = entry.kind == EntryType::Directory && there == Some(FileKind::Directory);
        // Linking a file to itself must not take it away first.
        let source = match entry.kind {
            EntryType::Link => Some(self.link_source(entry)?),
            _ => None,
        };
        if there.is_some() && !both_dirs {
            if let Some((from, old)) = &source
                && same(from, old, dir, name)
            {
                self.new.insert(path);
                return Ok(());
            }
            remove_tree(dir, name).map_err(fail)?;
            let below = |key: &Vec<u8>| key.starts_with(&join(&path, b"")) || *key == path;
            self.touched.retain(|key, _| !below(key));
        }
        self.new.insert(path.clone());
        let attrs = Attrs::of(entry);
        match entry.kind {
            EntryType::Directory => {
                if !both_dirs {
                    sys::at::mkdir_at(dir, name, 0o700).map_err(fail)?;
                }
                self.touched.insert(path, Later::All(attrs));
                return Ok(());
            }
            EntryType::Link => {
                let (from, old) = source.ok_or_else(|| fail(Errno::INVAL))?;
                return sys::at::link_at(&from, &old, dir, name).map_err(fail);
            }
            EntryType::Symlink => {
                sys::at::symlink_at(&entry.target, dir, name).map_err(fail)?;
            }
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
                let file = sys::at::open_at(dir, name, flags, 0o600, false).map_err(fail)?;
                self.data(entry, reader, &file, &path)?;
            }
            kind => {
                let kind = match kind {
                    EntryType::Char => libc::S_IFCHR,
                    EntryType::Block => libc::S_IFBLK,
                    EntryType::Fifo => libc::S_IFIFO,
                    _ => return Err(ToolError::about(&path, "is of a type that is not known")),
                };
                let device = libc::makedev(entry.device.0, entry.device.1);
                sys::at::mknod_at(dir, name, kind | 0o600, device).map_err(fail)?;
            }
        }
        let is_symlink = entry.kind == EntryType::Symlink;
        self.give(dir.as_fd(), name, &attrs, is_symlink)
            .map_err(|e| ToolError::at(&path, e))
    }

    /// The directory and name of a hard link's target.
    fn link_source<'a>(&self, entry: &'a Entry) -> Result<(OwnedFd, Vec<u8>)> {
        let names: Vec<&'a [u8]> = names(&entry.target)?;
        let missing = || {
            let target = String::from_utf8_lossy(&entry.target);
            ToolError::about(
                &entry.path,
                format_args!("a link to {target}, which is not there"),
            )
        };
        let (last, parents) = names.split_last().ok_or_else(missing)?;
        let dir = self
            .find(parents)
            .map_err(|e| ToolError::at(&entry.target, e))?;
        let dir = dir.ok_or_else(missing)?;
        match sys::stat::stat_at(&dir, last) {
            Ok(stat) if !stat.kind().is_dir() => Ok((dir, last.to_vec())),
            _ => Err(missing()),
        }
    }

    fn data(
        &self, entry: &Entry, reader: &mut Reader<impl Read>, file: &OwnedFd, path: &[u8],
    ) -> Result<()> {
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

    /// Owner, mode, attributes and times. What only an administrator may give is left out for others,
    /// as tar(1) does.
    fn give(
        &self, dir: BorrowedFd<'_>, name: &[u8], attrs: &Attrs, is_symlink: bool,
    ) -> sys::Result<()> {
        let lenient = |result: sys::Result<()>| match result {
            Err(Errno::PERM | Errno::INVAL | Errno::OPNOTSUPP | Errno::ACCESS)
                if !self.privileged =>
            {
                Ok(())
            }
            result => result,
        };
        lenient(sys::at::chown_at(
            dir,
            name,
            Some(attrs.uid),
            Some(attrs.gid),
        ))?;
        if !is_symlink {
            sys::at::chmod_at(dir, name, attrs.mode)?;
        }
        for (attr, value) in &attrs.xattrs {
            // A union's own records would say that contents are elsewhere.
            if !is_private(attr) {
                lenient(sys::xattr::set(dir, name, attr, value, 0))?;
            }
        }
        let time = SetTime::At(attrs.mtime);
        sys::at::utimens_at(dir, name, time, time)
    }

    /// Gives directories their attributes, the innermost first.
    fn finish(self) -> Result<()> {
        for (path, later) in self.touched.iter().rev() {
            let fail = |e| ToolError::at(path, e);
            let Some(dir) = self.find(&names(path)?).map_err(fail)? else {
                continue;
            };
            match later {
                Later::Times(atime, mtime) => {
                    let times = (SetTime::At(*atime), SetTime::At(*mtime));
                    sys::at::utimens_at(&dir, b"", times.0, times.1).map_err(fail)?;
                }
                Later::All(attrs) => self.give(dir.as_fd(), b"", attrs, false).map_err(fail)?,
            }
        }
        Ok(())
    }
}

/// True when both names are of one object.
fn same(a: &OwnedFd, a_name: &[u8], b: &OwnedFd, b_name: &[u8]) -> bool {
    let facts = |dir, name| sys::stat::stat_at(dir, name).map(|stat| (stat.dev, stat.ino));
    matches!((facts(a, a_name), facts(b, b_name)), (Ok(a), Ok(b)) if a == b)
}

/// The paths of what is in a directory.
fn children(dir: &OwnedFd, path: &[u8]) -> sys::Result<Vec<Vec<u8>>> {
    let mut children = Vec::new();
    let readable = sys::fd::reopen_dir(dir)?;
    sys::dir::for_each_entry(&readable, |entry| {
        children.push(join(path, entry.name));
        Ok(())
    })?;
    Ok(children)
}
