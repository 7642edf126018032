//! What a directory of an upper has to say, and objects with their attributes.

use std::collections::{BTreeMap, HashSet};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::OFlags;

use crate::layer::name::{self, NameBuf};
use crate::layer::opaque;
use crate::layer::private::is_private;
use crate::layer::record::is_record;
use crate::layer::whiteout;
use crate::sys::at::SetTime;
use crate::sys::copy::Refusals;
use crate::sys::{self, Errno, FileKind, Result, Stat};

/// The modes by which the owner may do everything with a directory.
const ALL_FOR_OWNER: u32 = 0o700;
/// Data that are compared at once.
const PIECE: usize = 1 << 20;

/// A name in a directory of a layer.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Named {
    /// Its whiteout file is there.
    pub marker: bool,
    /// A whiteout stands at the name itself.
    pub whiteout: bool,
    /// The object.
    pub real: Option<Stat>,
}

/// A directory of a layer, read whole.
pub(super) struct Listing {
    pub names: BTreeMap<NameBuf, Named>,
    /// Nothing below shows through it.
    pub opaque: bool,
    /// It is marked as opaque by an attribute, not only by a file.
    pub by_attribute: bool,
}

impl Listing {
    pub fn read(dir: &OwnedFd) -> Result<Self> {
        let marks = opaque::read(dir.as_fd())?;
        let mut listing = Self {
            names: BTreeMap::new(),
            opaque: marks.opaque || opaque::has_marker_file(dir.as_fd())?,
            by_attribute: marks.opaque,
        };
        let readable = sys::fd::reopen_dir(dir)?;
        sys::dir::for_each_entry(&readable, |item| {
            if let Some(hidden) = name::hidden_by(item.name) {
                if whiteout::marker(dir.as_fd(), hidden)? == whiteout::Marker::Malformed {
                    return Err(Errno::IO);
                }
                let hidden = NameBuf::from_slice(hidden);
                listing.names.entry(hidden).or_default().marker = true;
            } else if !name::is_reserved(item.name) {
                let entry = whiteout::entry(dir.as_fd(), item.name, marks.xattr_whiteouts)?;
                let named = listing.names.entry(NameBuf::from_slice(item.name));
                match entry {
                    whiteout::Entry::Nothing => {}
                    whiteout::Entry::Whiteout => named.or_default().whiteout = true,
                    whiteout::Entry::Real(stat) => named.or_default().real = Some(stat),
                }
            }
            Ok(())
        })?;
        Ok(listing)
    }

    /// True when it hides something of the layers below.
    pub fn hides(&self) -> bool {
        self.opaque || self.names.values().any(|n| n.marker || n.whiteout)
    }
}

/// The attributes of an object that are more than a union's notes.
fn xattrs(dir: BorrowedFd<'_>, name: &[u8]) -> Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    let mut all = BTreeMap::new();
    let names = sys::xattr::list(dir, name)?;
    let names = names.split(|&b| b == 0).filter(|attr| !attr.is_empty());
    for attr in names.filter(|attr| is_users(attr)) {
        if let Some(value) = sys::xattr::get(dir, name, attr)? {
            all.insert(attr.to_vec(), value);
        }
    }
    Ok(all)
}

fn is_users(attr: &[u8]) -> bool {
    is_record(attr) || !is_private(attr)
}

/// Removes from an object of the upper what only says where it came from.
pub(super) fn strip(dir: BorrowedFd<'_>, name: &[u8]) -> Result<()> {
    let names = sys::xattr::list(dir, name)?;
    let names = names.split(|&b| b == 0).filter(|attr| !attr.is_empty());
    for attr in names.filter(|attr| !is_users(attr)) {
        match sys::xattr::remove(dir, name, attr) {
            Ok(()) | Err(Errno::NODATA) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Gives the object `to` owner, mode, attributes and times of `from`, whose stat is given. Empty names
/// mean the directories themselves. Without `owners` objects stay, or become, the user's.
pub(super) fn give(
    from: (BorrowedFd<'_>, &[u8]), stat: &Stat, to: (BorrowedFd<'_>, &[u8]), owners: bool,
) -> Result<()> {
    let there = sys::stat::stat_at(to.0, to.1)?;
    if owners && (there.uid, there.gid) != (stat.uid, stat.gid) {
        sys::at::chown_at(to.0, to.1, Some(stat.uid), Some(stat.gid))?;
    }
    let wanted = xattrs(from.0, from.1)?;
    let present = xattrs(to.0, to.1)?;
    for attr in present.keys().filter(|attr| !wanted.contains_key(*attr)) {
        match sys::xattr::remove(to.0, to.1, attr) {
            Ok(()) | Err(Errno::NODATA) => {}
            Err(e) => return Err(e),
        }
    }
    for (attr, value) in &wanted {
        if present.get(attr) != Some(value) {
            sys::xattr::set(to.0, to.1, attr, value, 0)?;
        }
    }
    // After the ACL, which has a say in it.
    let now = sys::stat::stat_at(to.0, to.1)?;
    if stat.kind() != FileKind::Symlink && now.mode != stat.mode {
        sys::at::chmod_at(to.0, to.1, stat.mode & 0o7777)?;
    }
    let times = (SetTime::At(stat.atime), SetTime::At(stat.mtime));
    match sys::at::utimens_at(to.0, to.1, times.0, times.1) {
        // A directory on the way that is another user's.
        Err(Errno::PERM | Errno::ACCESS) if !owners => Ok(()),
        result => result,
    }
}

/// Gives the directory `to` the attributes of the directory `from`.
pub(in crate::tools) fn give_dir(from: &OwnedFd, to: &OwnedFd) -> Result<()> {
    let stat = sys::stat::fstat(from)?;
    give((from.as_fd(), b""), &stat, (to.as_fd(), b""), true)
}

/// Opens a directory in which the lower is to be changed; an ordinary owner gives himself the right.
pub(super) fn open_for_change(parent: &OwnedFd, name: &[u8]) -> Result<OwnedFd> {
    let dir = sys::at::open_dir_path(parent, name, true)?;
    let stat = sys::stat::fstat(&dir)?;
    if stat.mode & ALL_FOR_OWNER != ALL_FOR_OWNER {
        sys::at::chmod_at(&dir, b"", stat.mode & 0o7777 | ALL_FOR_OWNER)?;
    }
    Ok(dir)
}

/// Makes a copy of the object `from`, which is no directory, under a new name.
pub(super) fn copy(
    from: (BorrowedFd<'_>, &[u8]), stat: &Stat, to: (BorrowedFd<'_>, &[u8]), refusals: &Refusals,
    owners: bool,
) -> Result<()> {
    match stat.kind() {
        FileKind::Regular => {
            let flags = OFlags::RDONLY | OFlags::NOCTTY | OFlags::NONBLOCK;
            let source = sys::at::open_at(from.0, from.1, flags, 0, true)?;
            let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
            let target = sys::at::open_at(to.0, to.1, flags, 0o600, true)?;
            sys::copy::copy_data(&source, stat, &target, stat.size, refusals)?;
        }
        FileKind::Symlink => {
            let target = sys::at::readlink_at(from.0, from.1)?;
            sys::at::symlink_at(&target, to.0, to.1)?;
        }
        FileKind::Directory => return Err(Errno::ISDIR),
        _ => {
            let kind = stat.mode & libc::S_IFMT;
            sys::at::mknod_at(to.0, to.1, kind | 0o600, stat.rdev)?;
        }
    }
    give(from, stat, to, owners)
}

/// True when a copy has been made already, to the last byte. Names are those of one file only if it has
/// no other, or if all copies are known to be `made`.
pub(super) fn is_copied(
    from: (BorrowedFd<'_>, &[u8]), stat: &Stat, to: (BorrowedFd<'_>, &[u8]), there: &Stat,
    made: bool,
) -> Result<bool> {
    let facts = |s: &Stat| (s.mode, s.uid, s.gid, s.size, s.mtime, s.rdev);
    let single = stat.nlink == 1 && there.nlink == 1;
    if !(single || made) || facts(stat) != facts(there) {
        return Ok(false);
    }
    if xattrs(from.0, from.1)? != xattrs(to.0, to.1)? {
        return Ok(false);
    }
    match stat.kind() {
        FileKind::Regular => same_data(from, to),
        FileKind::Symlink => {
            Ok(sys::at::readlink_at(from.0, from.1)? == sys::at::readlink_at(to.0, to.1)?)
        }
        _ => Ok(true),
    }
}

fn same_data(a: (BorrowedFd<'_>, &[u8]), b: (BorrowedFd<'_>, &[u8])) -> Result<bool> {
    let flags = OFlags::RDONLY | OFlags::NOCTTY | OFlags::NONBLOCK;
    let files = [
        sys::at::open_at(a.0, a.1, flags, 0, true)?,
        sys::at::open_at(b.0, b.1, flags, 0, true)?,
    ];
    let mut data = [vec![0; PIECE], vec![0; PIECE]];
    let mut offset = 0;
    loop {
        let mut got = [0; 2];
        for ((file, data), got) in files.iter().zip(&mut data).zip(&mut got) {
            *got = sys::file::read_full(file, data, offset)?;
        }
        if got[0] != got[1] || data[0][..got[0]] != data[1][..got[1]] {
            return Ok(false);
        }
        if got[0] == 0 {
            return Ok(true);
        }
        offset += got[0] as u64;
    }
}

/// Directories that must not be removed: those that the upper is in, by device and number.
pub(super) type Kept = HashSet<(u64, u64)>;
