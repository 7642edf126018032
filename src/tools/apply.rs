//! `unionfs apply`: unpacks a layer archive onto a directory.
//!
//! Each path is walked name by name from the directory's descriptor, without following symlinks, so
//! nothing an archive says leads out of it.

use std::collections::{BTreeMap, HashMap, HashSet, btree_map};
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use tar::EntryType;

use crate::cli::Apply;
use crate::layer::name::{self, NAME_MAX, Name};
use crate::layer::remove_tree::remove_tree;
use crate::sys::at::SetTime;
use crate::sys::{self, Errno, stat::Time};

use super::apply_object::{Attrs, LeftOut};
use super::in_use::{self, Purpose};
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
    let root = Arc::new(root);
    let _lock = match what.is_layer {
        true => Some(in_use::lock(&root, &what.dir, Purpose::Change)?),
        false => {
            in_use::refuse_others(&root, &what.dir, Purpose::Change)?;
            None
        }
    };
    let mut target = Target {
        root,
        is_layer: what.is_layer,
        new: HashSet::new(),
        touched: BTreeMap::new(),
        aside: HashMap::new(),
        left_out: LeftOut::default(),
    };
    let mut reader = Reader::new(BufReader::with_capacity(1 << 18, input));
    loop {
        let entry = reader.next().map_err(|e| fail(&what.layer, e))?;
        let Some(entry) = entry else { break };
        target.put(&entry, &mut reader)?;
    }
    target.finish()?;
    if let Some(line) = target.left_out.line() {
        progress.tell(&format!("{}: {line}", what.dir.display()));
    }
    Ok(())
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

/// The longest path that anyone could name.
const PATH_MAX: usize = 4096;

/// The directory that is changed.
pub(super) struct Target {
    root: Arc<OwnedFd>,
    /// Whiteouts are kept, as the directory is to be a layer.
    pub is_layer: bool,
    /// Paths that this archive has made, and the directories above them.
    pub new: HashSet<Vec<u8>>,
    touched: BTreeMap<Vec<u8>, Later>,
    /// Pseudo-links of an archive of aufs, and under which names of the root they are for now.
    aside: HashMap<Vec<u8>, Vec<u8>>,
    pub left_out: LeftOut,
}

/// The names of a path, of which none can lead out.
fn names(path: &[u8]) -> Result<Vec<&[u8]>> {
    let mut names = Vec::new();
    if path.len() > PATH_MAX {
        return Err(ToolError::at(&path[..80], Errno::NAMETOOLONG));
    }
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
        if [name::WHITEOUT_BASE, name::ORPHANS, name::PSEUDO_LINKS].contains(&names[0]) {
            return self.metadata(entry, reader, &names);
        }
        if parents.iter().any(|name| name::is_reserved(name)) {
            let text =
                "is below a name that unions keep for themselves; pack it without such names";
            return Err(ToolError::about(&entry.path, text));
        }
        let dir = self.parent(parents)?;
        let parent = parents.join(&b'/');
        let path = join(&parent, last);
        let whiteout_device = entry.kind == EntryType::Char && entry.device == (0, 0);
        if name::is_reserved(last) {
            let hidden = name::hidden_by(last);
            return match (hidden, self.is_layer) {
                (None, _) if *last != name::OPAQUE => {
                    let text =
                        "is a name that unions keep for themselves; pack it without such names";
                    Err(ToolError::about(&entry.path, text))
                }
                (Some(hidden), true) => self.hide(&dir, last, &join(&parent, hidden)),
                (None, true) => {
                    // Of layers that were unpacked here before nothing shows through any more.
                    self.empty_older(&parent)?;
                    self.marker(&dir, last, &path)
                }
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

    /// What aufs kept at the root of its branches: old archives of engines have it too. Files may be
    /// linked to its pseudo-links.
    fn metadata(
        &mut self, entry: &Entry, reader: &mut Reader<impl Read>, names: &[&[u8]],
    ) -> Result<()> {
        if names[0] != name::PSEUDO_LINKS || names.len() != 2 || entry.kind != EntryType::Regular {
            return Ok(());
        }
        let number = self.aside.len();
        let name = format!(".unionfs-apply.{}.{number}.plnk", std::process::id()).into_bytes();
        let root = self.parent(&[])?;
        self.object(entry, reader, &root, &name, name.clone())?;
        self.aside.insert(names.join(&b'/'), name);
        Ok(())
    }

    /// Hides a path by a whiteout, in a layer.
    fn hide(&mut self, dir: &OwnedFd, marker: &[u8], path: &[u8]) -> Result<()> {
        if !self.new.contains(path) {
            self.remove_older(path.to_owned())?;
            return self.marker(dir, marker, path);
        }
        // It is about what was there before: a new directory hides that as it is opaque.
        let fail = |e| ToolError::at(path, e);
        self.empty_older(path)?;
        let names = names(path)?;
        match self.find(&names).map_err(fail)? {
            Some(inner) => self.marker(&inner, name::OPAQUE, path),
            None => Ok(()),
        }
    }

    pub fn marker(&self, dir: &OwnedFd, name: &[u8], path: &[u8]) -> Result<()> {
        let flags =
            rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::CREATE | rustix::fs::OFlags::EXCL;
        match sys::at::open_at(dir, name, flags, 0o444, false) {
            Ok(_) | Err(Errno::EXIST) => Ok(()),
            Err(e) => Err(ToolError::at(path, e)),
        }
    }

    /// Removes what this archive did not make.
    pub fn remove_older(&self, path: Vec<u8>) -> Result<()> {
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
    pub fn find(&self, names: &[&[u8]]) -> sys::Result<Option<OwnedFd>> {
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

    /// The directory and name of a hard link's target.
    pub fn link_source<'a>(&self, entry: &'a Entry) -> Result<(OwnedFd, Vec<u8>)> {
        let names: Vec<&'a [u8]> = names(&entry.target)?;
        let aside = self.aside.get(&names.join(&b'/')).cloned();
        let missing = || {
            let target = String::from_utf8_lossy(&entry.target);
            ToolError::about(
                &entry.path,
                format_args!("a link to {target}, which is not there"),
            )
        };
        let (last, parents) = names.split_last().ok_or_else(missing)?;
        let parents = if aside.is_some() { &[] } else { parents };
        let dir = self
            .find(parents)
            .map_err(|e| ToolError::at(&entry.target, e))?;
        let dir = dir.ok_or_else(missing)?;
        let last = aside.unwrap_or_else(|| last.to_vec());
        match sys::stat::stat_at(&dir, &last) {
            Ok(stat) if !stat.kind().is_dir() => Ok((dir, last)),
            _ => Err(missing()),
        }
    }

    /// Attributes for a directory when everything else is done.
    pub fn touch_later(&mut self, path: Vec<u8>, attrs: Attrs) {
        self.touched.insert(path, Later::All(attrs));
    }

    /// What was to be done about a directory that is gone.
    pub fn forget_below(&mut self, path: &[u8]) {
        let prefix = join(path, b"");
        self.touched
            .retain(|key, _| !(key.starts_with(&prefix) || *key == path));
    }

    /// Gives directories their attributes, the innermost first.
    fn finish(&mut self) -> Result<()> {
        for name in self.aside.values() {
            sys::at::unlink_at(&*self.root, name).map_err(|e| ToolError::at(name, e))?;
        }
        for (path, later) in std::mem::take(&mut self.touched).iter().rev() {
            let fail = |e| ToolError::at(path, e);
            let Some(dir) = self.find(&names(path)?).map_err(fail)? else {
                continue;
            };
            match later {
                Later::Times(atime, mtime) => {
                    let times = (SetTime::At(*atime), SetTime::At(*mtime));
                    sys::at::utimens_at(&dir, b"", times.0, times.1).map_err(fail)?;
                }
                Later::All(attrs) => attrs.give(&dir, false, &mut self.left_out).map_err(fail)?,
            }
        }
        Ok(())
    }
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
