//! What an upper makes of its lowers: found by reading the upper, each of whose names is looked up
//! in the union and in the lowers.

use std::collections::{BTreeMap, HashSet};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use crate::layer::name::{self, NameBuf};
use crate::layer::plink::PlinkDir;
use crate::layer::whiteout::{self, Marker};
use crate::layer::{elsewhere, opaque, origin, private};
use crate::sys::{self, Errno};
use crate::union::{Attr, Caller, ROOT, Union};

use super::place::Place;
use super::{Result, ToolError, join};

const AS_ROOT: Caller = Caller {
    uid: 0,
    gid: 0,
    pid: 0,
};

/// What the lowers have under the name of a change.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Before {
    /// Nothing.
    Nothing,
    /// An object of which this is a change.
    Something,
    /// A directory of which nothing shows any more.
    Replaced,
}

/// One name that the upper has something to say about.
#[derive(Clone, Debug)]
pub(super) struct Change {
    /// From the root, without a slash before it; the root's is empty.
    pub path: Vec<u8>,
    /// The node of the union and its attributes; `None` when the name is hidden.
    pub now: Option<(u64, Attr)>,
    /// What was there.
    pub before: Before,
    /// A directory through which nothing of the lowers shows.
    pub opaque: bool,
    /// It is more than a directory on the way to changes.
    pub counts: bool,
}

/// All changes, ordered by their paths, directories before what is in them.
#[allow(dead_code, reason = "for callers who show nothing while it runs")]
pub(super) fn find(place: &Place) -> Result<Vec<Change>> {
    find_counting(place, &|_| {})
}

/// The same; `count` is told of each directory that was read.
pub(super) fn find_counting(place: &Place, count: &dyn Fn(u64)) -> Result<Vec<Change>> {
    let mut walk = Walk {
        place,
        found: Vec::new(),
        pending: Vec::new(),
    };
    walk.root()?;
    while let Some(dir) = walk.pending.pop() {
        walk.read(&dir)?;
        count(1);
    }
    walk.other_names()?;
    let mut found = walk.found;
    found.sort_by(|a, b| {
        let parts = |path: &'_ [u8]| path.split(|&b| b == b'/').map(<[u8]>::to_vec).collect();
        let (a, b): (Vec<_>, Vec<_>) = (parts(&a.path), parts(&b.path));
        a.cmp(&b)
    });
    Ok(found)
}

/// What the lowers have at a directory.
#[derive(Clone, Copy, Debug)]
enum Below {
    /// Nobody said which the lowers are.
    Unknown,
    /// Nothing that shows.
    Nothing,
    /// This directory.
    Directory(u64),
}

/// A directory still to be read.
struct Pending {
    /// Where it is in the upper; `None` below a directory whose contents are elsewhere.
    upper: Option<(Option<Arc<OwnedFd>>, NameBuf)>,
    /// In the union.
    id: u64,
    below: Below,
    path: Vec<u8>,
}

struct Walk<'a> {
    place: &'a Place,
    found: Vec<Change>,
    pending: Vec<Pending>,
}

/// A name that the upper has, before it is looked up.
struct Named {
    name: NameBuf,
    /// A whiteout file stands beside it.
    marked: bool,
    /// There is an object.
    real: bool,
}

impl Walk<'_> {
    fn root(&mut self) -> Result<()> {
        let upper = self.place.upper.as_fd();
        let marks = opaque::read(upper).map_err(|e| ToolError::at(b"", e))?;
        let is_opaque = marks.opaque || opaque::has_marker_file(upper).unwrap_or(false);
        let fail = |e| ToolError::at(b"", e);
        let attr = self.place.all.getattr(ROOT).map_err(fail)?;
        let mut counts = is_opaque;
        if let Some(below) = &self.place.below {
            counts |= !self
                .is_same_dir((ROOT, &attr), (below, ROOT))
                .map_err(fail)?;
        }
        let below = match (&self.place.below, is_opaque) {
            (_, true) => Below::Nothing,
            (None, _) => Below::Unknown,
            (Some(_), _) => Below::Directory(ROOT),
        };
        if counts {
            self.found.push(Change {
                path: Vec::new(),
                now: Some((ROOT, attr)),
                before: match is_opaque {
                    true => Before::Replaced,
                    false => Before::Something,
                },
                opaque: is_opaque,
                counts,
            });
        }
        self.pending.push(Pending {
            upper: Some((None, NameBuf::new())),
            id: ROOT,
            below,
            path: Vec::new(),
        });
        Ok(())
    }

    fn read(&mut self, dir: &Pending) -> Result<()> {
        let fail = |e| ToolError::at(&dir.path, e);
        let Some((parent, name)) = &dir.upper else {
            return self.read_moved(dir);
        };
        let open = match parent {
            Some(parent) => sys::at::open_dir_path(&**parent, name, true),
            None => sys::at::open_dir_path(&self.place.upper, b".", true),
        };
        let fd = Arc::new(open.map_err(fail)?);
        let marks = opaque::read(fd.as_fd()).map_err(fail)?;
        let names = read_names(&fd, marks.xattr_whiteouts).map_err(fail)?;
        for named in names {
            let path = join(&dir.path, &named.name);
            let before = self.before(dir.below, &named.name, &path)?;
            if named.real {
                self.real(dir, &fd, &named, path, before)?;
            } else if whiteout::marker(fd.as_fd(), &named.name) == Ok(Marker::Malformed) {
                return Err(ToolError::about(
                    &path,
                    "what should be its whiteout is no file",
                ));
            } else if before.is_some() || matches!(dir.below, Below::Unknown) {
                self.found.push(Change {
                    path,
                    now: None,
                    before: Before::Something,
                    opaque: false,
                    counts: true,
                });
            }
        }
        Ok(())
    }

    /// The object of that name in the lowers.
    fn before(&self, below: Below, name: &[u8], path: &[u8]) -> Result<Option<(u64, Attr)>> {
        match (below, &self.place.below) {
            (Below::Directory(id), Some(lowers)) => {
                let found = lowers.lookup(id, name);
                let found = found.map_err(|e| ToolError::at(path, e))?;
                Ok(found.map(|entry| (entry.id, entry.attr)))
            }
            _ => Ok(None),
        }
    }

    fn real(
        &mut self, dir: &Pending, fd: &Arc<OwnedFd>, named: &Named, path: Vec<u8>,
        before: Option<(u64, Attr)>,
    ) -> Result<()> {
        let fail = |e| ToolError::at(&path, e);
        let all = &self.place.all;
        let Some(now) = all.lookup(dir.id, &named.name).map_err(fail)? else {
            // Gone meanwhile.
            return Ok(());
        };
        let unknown = matches!(dir.below, Below::Unknown);
        if !now.attr.kind().is_dir() {
            if unknown && is_metacopy(fd.as_fd(), &named.name).map_err(fail)? {
                return Err(lowers_needed(&path));
            }
            let was = before.is_some() || unknown && is_copy(fd.as_fd(), &named.name);
            self.found.push(Change {
                path,
                now: Some((now.id, now.attr)),
                before: match was {
                    true => Before::Something,
                    false => Before::Nothing,
                },
                opaque: false,
                counts: true,
            });
            return Ok(());
        }
        let own = sys::at::open_dir_path(&**fd, &named.name, true).map_err(fail)?;
        let marks = opaque::read(own.as_fd()).map_err(fail)?;
        let has_file = opaque::has_marker_file(own.as_fd()).map_err(fail)?;
        let alone = named.marked || marks.opaque || has_file;
        let moved = !alone && marks.redirect.is_some();
        if moved && self.place.below.is_none() {
            return Err(lowers_needed(&path));
        }
        let was_dir = before.filter(|(_, attr)| attr.kind().is_dir());
        let shows = was_dir.filter(|_| !alone && !moved);
        let same = match (shows, &self.place.below) {
            (Some((id, _)), Some(lowers)) => self
                .is_same_dir((now.id, &now.attr), (lowers, id))
                .map_err(fail)?,
            _ => false,
        };
        let copied = unknown && is_copy(fd.as_fd(), &named.name);
        self.found.push(Change {
            path: path.clone(),
            now: Some((now.id, now.attr)),
            before: match (before.is_some(), was_dir.is_some() && shows.is_none()) {
                (_, true) => Before::Replaced,
                (true, _) => Before::Something,
                (false, _) if copied => Before::Something,
                (false, _) => Before::Nothing,
            },
            opaque: alone || moved,
            counts: !same,
        });
        self.pending.push(Pending {
            upper: (!moved).then(|| (Some(Arc::clone(fd)), named.name.clone())),
            id: now.id,
            below: match (unknown && !alone, shows) {
                (true, _) => Below::Unknown,
                (_, Some((id, _))) => Below::Directory(id),
                (_, None) => Below::Nothing,
            },
            path,
        });
        Ok(())
    }

    /// A directory that has its contents under another name in the lowers: all of it is new here.
    fn read_moved(&mut self, dir: &Pending) -> Result<()> {
        let fail = |e| ToolError::at(&dir.path, e);
        for name in list(&self.place.all, dir.id).map_err(fail)? {
            let path = join(&dir.path, &name);
            let found = self.place.all.lookup(dir.id, &name);
            let Some(now) = found.map_err(|e| ToolError::at(&path, e))? else {
                continue;
            };
            self.found.push(Change {
                path: path.clone(),
                now: Some((now.id, now.attr)),
                before: Before::Nothing,
                opaque: false,
                counts: true,
            });
            if now.attr.kind().is_dir() {
                self.pending.push(Pending {
                    upper: None,
                    id: now.id,
                    below: Below::Nothing,
                    path,
                });
            }
        }
        Ok(())
    }

    /// True when only the contents of a directory differ from what the lowers show.
    fn is_same_dir(&self, now: (u64, &Attr), before: (&Union, u64)) -> sys::Result<bool> {
        let (lowers, id) = before;
        let (new, old) = (now.1.stat, lowers.getattr(id)?.stat);
        let facts = |s: &sys::Stat| (s.mode, s.uid, s.gid);
        Ok(facts(&new) == facts(&old) && xattrs(&self.place.all, now.0)? == xattrs(lowers, id)?)
    }

    /// Names that are the lowers' on disk, but whose file was changed under another name of it.
    fn other_names(&mut self) -> Result<()> {
        if !self.place_has_open_links()? {
            return Ok(());
        }
        let all = &self.place.all;
        let known: HashSet<&[u8]> = self.found.iter().map(|c| c.path.as_slice()).collect();
        let names = all.plink_names().map_err(|e| ToolError::at(b"", e))?;
        let mut more = Vec::new();
        let mut dirs = HashSet::new();
        for (_, path) in names {
            if known.contains(path.as_slice()) {
                continue;
            }
            let mut node = ROOT;
            let mut way = Vec::new();
            let mut at = Vec::new();
            for name in path.split(|&b| b == b'/') {
                let found = all
                    .lookup(node, name)
                    .map_err(|e| ToolError::at(&path, e))?;
                let Some(found) = found else {
                    // Gone meanwhile.
                    way.clear();
                    break;
                };
                node = found.id;
                at = join(&at, name);
                way.push(Change {
                    counts: at == path,
                    path: at.clone(),
                    now: Some((node, found.attr)),
                    before: Before::Something,
                    opaque: false,
                });
            }
            // Who unpacks a layer would make directories on the way as he likes.
            way.retain(|c| {
                c.counts || !known.contains(c.path.as_slice()) && dirs.insert(c.path.clone())
            });
            more.extend(way);
        }
        self.found.extend(more);
        Ok(())
    }

    /// True when some linked file has names that are not in the upper.
    fn place_has_open_links(&self) -> Result<bool> {
        let fail = |e| ToolError::at(name::PSEUDO_LINKS, e);
        let root = self.place.upper.try_clone();
        let root = Arc::new(root.map_err(|e| ToolError::new(format_args!("upper: {e}")))?);
        let links = PlinkDir::new(&root).map_err(fail)?;
        for (number, upper, _) in links.list().map_err(fail)? {
            let record = links.record(number, upper).map_err(fail)?;
            let open = record.is_some_and(|record| upper != 0 && record.gone < record.links);
            if open && self.place.below.is_none() {
                return Err(ToolError::new(
                    "the upper has pseudo-links, whose names only the lowers know: they are needed \
                     (-o lowerdir=L1:L2...), or first unionfs plink flush",
                ));
            }
            if open {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

fn lowers_needed(path: &[u8]) -> ToolError {
    ToolError::about(
        path,
        "has its contents in a lower, so the lowers are needed: -o lowerdir=L1:L2...",
    )
}

/// What a directory of the upper has to say, reserved names apart.
fn read_names(dir: &Arc<OwnedFd>, xattr_whiteouts: bool) -> sys::Result<Vec<Named>> {
    let mut names: BTreeMap<NameBuf, (bool, bool)> = BTreeMap::new();
    let readable = sys::fd::reopen_dir(&**dir)?;
    sys::dir::for_each_entry(&readable, |item| {
        if let Some(hidden) = name::hidden_by(item.name) {
            names.entry(NameBuf::from_slice(hidden)).or_default().0 = true;
        } else if !name::is_reserved(item.name) {
            let real = match whiteout::entry(dir.as_fd(), item.name, xattr_whiteouts)? {
                whiteout::Entry::Nothing => return Ok(()),
                whiteout::Entry::Whiteout => false,
                whiteout::Entry::Real(_) => true,
            };
            names.entry(NameBuf::from_slice(item.name)).or_default().1 |= real;
        }
        Ok(())
    })?;
    let named = |(name, (marked, real))| Named { name, marked, real };
    Ok(names.into_iter().map(named).collect())
}

/// Names of a merged directory.
pub(super) fn list(union: &Union, id: u64) -> sys::Result<Vec<NameBuf>> {
    let mut names = Vec::new();
    union.readdir(id, 0, |entry| {
        if *entry.name != b"."[..] && *entry.name != b".."[..] {
            names.push(entry.name.clone());
        }
        true
    })?;
    names.sort();
    Ok(names)
}

/// Attributes as users see them.
pub(super) fn xattrs(union: &Union, id: u64) -> sys::Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    let mut all = BTreeMap::new();
    let names = match union.listxattr(id, AS_ROOT) {
        Err(Errno::OPNOTSUPP) => return Ok(all),
        names => names?,
    };
    let names = names.split(|&b| b == 0);
    for attr in names.filter(|attr| !attr.is_empty() && !private::is_private(attr)) {
        match union.getxattr(id, attr) {
            Ok(value) => _ = all.insert(attr.to_vec(), value),
            Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::ACCESS | Errno::PERM) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(all)
}

fn is_metacopy(dir: BorrowedFd<'_>, name: &[u8]) -> sys::Result<bool> {
    Ok(elsewhere::metacopy(dir, name)?.is_some())
}

/// True for an object that says that it was made from one of a lower.
fn is_copy(dir: BorrowedFd<'_>, name: &[u8]) -> bool {
    let ours = || {
        let stat = sys::stat::stat_at(dir, name).ok()?;
        origin::recorded(dir, name, stat.ino).ok()?
    };
    let overlays = || {
        let attrs = [b"trusted.overlay.origin".as_slice(), b"user.overlay.origin"];
        let mut attrs = attrs.into_iter();
        attrs.any(|attr| matches!(sys::xattr::get(dir, name, attr), Ok(Some(_))))
    };
    ours().is_some() || overlays()
}
