//! Finding what serves nothing in an upper: one walk through it.

use std::collections::HashSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use crate::layer::name::{self, NameBuf};
use crate::layer::plink::{self, PlinkDir};
use crate::layer::{opaque, origin, whiteout};
use crate::sys::{self, Errno, FileKind};
use crate::union::{ROOT, Union};

use super::progress::Progress;
use super::{Result, ToolError, join};

/// Something that serves nothing, or is not as the format has it.
pub(super) struct Problem {
    /// Of the entry that is to go, or that has the attribute.
    pub path: Vec<u8>,
    pub kind: Kind,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// An object without a visible name that a crash left.
    Leftover,
    /// A whiteout of no name.
    NoName,
    /// A whiteout or mark that is no regular file, or metadata of the wrong type.
    Malformed,
    /// Metadata of an upper that lies in this one.
    AnotherUppers,
    /// A whiteout file beside the object of that name; what is to be made of a directory first.
    Beside { make_opaque: bool },
    /// A whiteout of what no lower has.
    HidesNothing,
    /// A directory that is opaque, with nothing below.
    NeedlesslyOpaque,
    /// An entry of a linked file that is not ours; the data have another name.
    ForeignPlink,
    /// The same, but it is all that is left of the data.
    OnlyPlink,
    /// A record of a copy that is not there.
    LeftPlinkRecord,
    /// A change of links that was under way.
    PlinkNote,
    /// An attribute that means nothing to us.
    ForeignRecord(&'static [u8]),
    /// A record of another object, which was copied together with this one.
    CopiedRecord,
}

impl Problem {
    pub fn text(&self) -> String {
        match self.kind {
            Kind::Leftover => "left by a crash".to_owned(),
            Kind::NoName => "a whiteout of no name".to_owned(),
            Kind::Malformed => "of the wrong type".to_owned(),
            Kind::AnotherUppers => "of another upper; check that one".to_owned(),
            Kind::Beside { .. } => "a whiteout beside what it hides".to_owned(),
            Kind::HidesNothing => "a whiteout of what is not there".to_owned(),
            Kind::NeedlesslyOpaque => "opaque, but nothing is below".to_owned(),
            Kind::ForeignPlink => "a pseudo-link of another program".to_owned(),
            Kind::OnlyPlink => {
                "the only name of what a pseudo-link of another program held".to_owned()
            }
            Kind::LeftPlinkRecord => "a record of a pseudo-link that is gone".to_owned(),
            Kind::PlinkNote => {
                "a change of links that a crash cut off; the next mount ends it".to_owned()
            }
            Kind::ForeignRecord(attr) => {
                format!("a record of overlayfs: {}", String::from_utf8_lossy(attr))
            }
            Kind::CopiedRecord => "a record of the object that this one was copied from".to_owned(),
        }
    }
}

/// Attributes of overlayfs that say nothing about what shows.
const FOREIGN: [&[u8]; 10] = [
    b"trusted.overlay.origin",
    b"user.overlay.origin",
    b"trusted.overlay.impure",
    b"user.overlay.impure",
    b"trusted.overlay.nlink",
    b"user.overlay.nlink",
    b"trusted.overlay.uuid",
    b"user.overlay.uuid",
    b"trusted.overlay.upper",
    b"user.overlay.upper",
];

/// What the lowers have at a directory; `Some(None)` is nothing, `None` is not known.
type Below = Option<Option<u64>>;

struct Walk<'a> {
    lowers: Option<&'a Union>,
    problems: Vec<Problem>,
    pending: Vec<(Arc<OwnedFd>, NameBuf, Vec<u8>, Below)>,
}

/// All problems of the upper at `root`, in no order.
pub(super) fn find(
    root: &Arc<OwnedFd>, lowers: Option<&Union>, progress: &Progress,
) -> Result<Vec<Problem>> {
    let mut walk = Walk {
        lowers,
        problems: Vec::new(),
        pending: Vec::new(),
    };
    let below = lowers.map(|_| Some(ROOT));
    walk.pending.push((
        Arc::clone(root),
        NameBuf::from_slice(b"."),
        Vec::new(),
        below,
    ));
    while let Some((parent, name, path, below)) = walk.pending.pop() {
        walk.directory(&parent, &name, &path, below)?;
        progress.add(1);
    }
    walk.reserved(root)?;
    walk.plinks(root)
        .map_err(|e| ToolError::at(name::PSEUDO_LINKS, e))?;
    Ok(walk.problems)
}

impl Walk<'_> {
    fn add(&mut self, path: Vec<u8>, kind: Kind) {
        self.problems.push(Problem { path, kind });
    }

    fn directory(
        &mut self, parent: &Arc<OwnedFd>, name: &[u8], path: &[u8], below: Below,
    ) -> Result<()> {
        let fail = |e| ToolError::at(path, e);
        let dir = Arc::new(sys::at::open_dir_path(&**parent, name, true).map_err(fail)?);
        let marks = opaque::read(dir.as_fd()).map_err(fail)?;
        let is_opaque = marks.opaque || opaque::has_marker_file(dir.as_fd()).map_err(fail)?;
        if is_opaque && below == Some(None) && marks.redirect.is_none() {
            self.add(path.to_vec(), Kind::NeedlesslyOpaque);
        }
        // What has its contents elsewhere is not looked for here.
        let below = match (is_opaque, marks.redirect.is_some()) {
            (true, _) => Some(None),
            (_, true) => None,
            _ => below,
        };
        let mut names: Vec<(NameBuf, Option<FileKind>)> = Vec::new();
        let readable = sys::fd::reopen_dir(&*dir).map_err(fail)?;
        let read = sys::dir::for_each_entry(&readable, |entry| {
            names.push((NameBuf::from_slice(entry.name), entry.kind));
            Ok(())
        });
        read.map_err(fail)?;
        let all: HashSet<&[u8]> = names.iter().map(|(name, _)| name.as_slice()).collect();
        for (name, _) in &names {
            let at = join(path, name);
            let fail = |e| ToolError::at(&at, e);
            let result = match name::is_reserved(name) {
                true => self.marker(&dir, name, at.clone(), &all, below, path.is_empty()),
                false => self.object(&dir, name, at.clone(), marks.xattr_whiteouts, below),
            };
            match result {
                Err(Errno::NOENT) | Ok(()) => {}
                Err(e) => return Err(fail(e)),
            }
        }
        Ok(())
    }

    /// A reserved name.
    fn marker(
        &mut self, dir: &Arc<OwnedFd>, name: &[u8], path: Vec<u8>, all: &HashSet<&[u8]>,
        below: Below, is_root: bool,
    ) -> sys::Result<()> {
        let metadata = [name::WHITEOUT_BASE, name::ORPHANS, name::PSEUDO_LINKS];
        if metadata.contains(&name) {
            if !is_root {
                self.add(path, Kind::AnotherUppers);
            }
            return Ok(());
        }
        let is_file = sys::stat::stat_at(&**dir, name)?.kind() == FileKind::Regular;
        let hidden = name::hidden_by(name);
        if name != name::OPAQUE && name.starts_with(name::META_PREFIX) {
            self.add(path, Kind::Leftover);
        } else if !is_file {
            self.add(path, Kind::Malformed);
        } else if let Some(hidden) = hidden {
            let lower = self.lower(below, hidden)?;
            if all.contains(hidden) {
                let is_dir = sys::stat::stat_at(&**dir, hidden)?.kind().is_dir();
                // Without its whiteout a record would bring in what is elsewhere; those of root's
                // mounts only root can see.
                let has_record = |name| -> sys::Result<bool> {
                    let inner = sys::at::open_dir_path(&**dir, name, true)?;
                    Ok(opaque::read(inner.as_fd())?.redirect.is_some())
                };
                let make_opaque = is_dir
                    && (lower != Some(None) || !sys::cred::is_real_root() || has_record(hidden)?);
                self.add(path, Kind::Beside { make_opaque });
            } else if lower == Some(None) {
                self.add(path, Kind::HidesNothing);
            }
        } else if name != name::OPAQUE {
            self.add(path, Kind::NoName);
        }
        Ok(())
    }

    fn object(
        &mut self, dir: &Arc<OwnedFd>, name: &[u8], path: Vec<u8>, xattr_whiteouts: bool,
        below: Below,
    ) -> sys::Result<()> {
        let lower = self.lower(below, name)?;
        let stat = match whiteout::entry(dir.as_fd(), name, xattr_whiteouts)? {
            whiteout::Entry::Nothing => return Ok(()),
            whiteout::Entry::Whiteout => {
                if lower == Some(None) {
                    self.add(path, Kind::HidesNothing);
                }
                return Ok(());
            }
            whiteout::Entry::Real(stat) => stat,
        };
        self.records(dir.as_fd(), name, &path, stat.ino)?;
        if stat.kind().is_dir() {
            // Beside its whiteout it shows nothing of what is below.
            let marked = name::whiteout_of(name).is_some_and(|marker| {
                sys::stat::stat_at(&**dir, &marker).is_ok_and(|s| s.kind() == FileKind::Regular)
            });
            let inner = match (marked, lower, self.lowers) {
                (true, Some(None), _) => Some(None),
                // Its whiteout is what makes it opaque, until it is mended.
                (true, ..) => None,
                // Of a file over a directory aufs shows the directory: its mark serves something.
                (_, Some(Some(id)), Some(lowers)) => {
                    lowers.getattr(id)?.kind().is_dir().then_some(Some(id))
                }
                (_, lower, _) => lower,
            };
            let name = NameBuf::from_slice(name);
            self.pending.push((Arc::clone(dir), name, path, inner));
        }
        Ok(())
    }

    fn lower(&self, below: Below, name: &[u8]) -> sys::Result<Below> {
        match (below, self.lowers) {
            (Some(Some(id)), Some(lowers)) => {
                let found = lowers.lookup(id, name)?;
                Ok(Some(found.map(|entry| entry.id)))
            }
            (below, _) => Ok(below),
        }
    }

    fn records(
        &mut self, dir: BorrowedFd<'_>, name: &[u8], path: &[u8], ino: u64,
    ) -> sys::Result<()> {
        let attrs = match sys::xattr::list(dir, name) {
            Err(Errno::ACCESS | Errno::PERM) => return Ok(()),
            attrs => attrs?,
        };
        let attrs: Vec<&[u8]> = attrs.split(|&b| b == 0).collect();
        for attr in FOREIGN {
            if attrs.contains(&attr) {
                self.add(path.to_vec(), Kind::ForeignRecord(attr));
            }
        }
        let has_record = origin::INO_ATTRS.iter().any(|attr| attrs.contains(attr));
        if has_record && origin::recorded(dir, name, ino)?.is_none() {
            self.add(path.to_vec(), Kind::CopiedRecord);
        }
        Ok(())
    }

    /// The places of metadata.
    fn reserved(&mut self, root: &Arc<OwnedFd>) -> Result<()> {
        for (place, kind) in [
            (name::WHITEOUT_BASE, FileKind::Regular),
            (name::ORPHANS, FileKind::Directory),
            (name::PSEUDO_LINKS, FileKind::Directory),
        ] {
            match sys::stat::stat_at(&**root, place) {
                Ok(stat) if stat.kind() != kind => self.add(place.to_vec(), Kind::Malformed),
                Ok(_) | Err(Errno::NOENT) => {}
                Err(e) => return Err(ToolError::at(place, e)),
            }
        }
        let fail = |e| ToolError::at(name::ORPHANS, e);
        let orphans = match sys::at::open_dir_path(&**root, name::ORPHANS, true) {
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(()),
            orphans => orphans.map_err(fail)?,
        };
        let readable = sys::fd::reopen_dir(&orphans).map_err(fail)?;
        let read = sys::dir::for_each_entry(&readable, |entry| {
            self.add(join(name::ORPHANS, entry.name), Kind::Leftover);
            Ok(())
        });
        read.map_err(fail)
    }

    fn plinks(&mut self, root: &Arc<OwnedFd>) -> sys::Result<()> {
        let links = PlinkDir::new(root)?;
        let Some(dir) = links.get() else {
            return Ok(());
        };
        let at = |name: &[u8]| join(name::PSEUDO_LINKS, name);
        if links.intent().is_some() {
            self.add(at(plink::INTENT), Kind::PlinkNote);
        }
        for (number, upper, _) in links.list()? {
            let entry = plink::entry_name(number, upper);
            if upper == 0 {
                if links.is_leftover(number)? {
                    self.add(at(&entry), Kind::LeftPlinkRecord);
                }
            } else if links.record(number, upper)?.is_none() {
                let others = sys::stat::stat_at(&*dir, &entry)?.nlink > 1;
                let kind = match others {
                    true => Kind::ForeignPlink,
                    false => Kind::OnlyPlink,
                };
                self.add(at(&entry), kind);
            }
        }
        Ok(())
    }
}
