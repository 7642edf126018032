//! Copying what is in a layer as it is: objects and marks, names of one file as names of one file.

use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::OFlags;

use crate::sys::at::SetTime;
use crate::sys::copy::{Refusals, copy_data};
use crate::sys::{self, Errno, FileKind, Result, Stat};

use super::name::NameBuf;

/// Where it went wrong, from the root of the tree, and why.
pub(crate) type Failure = (Vec<u8>, Errno);

/// A directory on the way.
struct Pending {
    from: Arc<OwnedFd>,
    to: Arc<OwnedFd>,
    path: Vec<u8>,
    stat: Stat,
    /// What of it is still to be copied; `None` before it was read.
    names: Option<Vec<NameBuf>>,
}

/// Copies all that is in the directory `from`, and its own attributes, to the empty directory `to`. Data
/// are shared where the filesystem can. What is being changed meanwhile may be old, new, or both.
///
/// # Errors
/// The first failure; what was copied until then stays.
pub(crate) fn copy_tree(
    from: &Arc<OwnedFd>, to: &Arc<OwnedFd>,
) -> std::result::Result<(), Failure> {
    let mut copying = Copying {
        root: to,
        links: HashMap::new(),
        refusals: Refusals::default(),
    };
    let at_root = |e| (Vec::new(), e);
    let mut stack = vec![Pending {
        from: Arc::clone(from),
        to: Arc::clone(to),
        path: Vec::new(),
        stat: sys::stat::fstat(&**from).map_err(at_root)?,
        names: None,
    }];
    while let Some(dir) = stack.last_mut() {
        let at = |path: &[u8]| {
            let path = path.to_vec();
            move |e| (path, e)
        };
        if dir.names.is_none() {
            dir.names = Some(list(&dir.from).map_err(at(&dir.path))?);
        }
        let Some(name) = dir.names.as_mut().and_then(Vec::pop) else {
            let (from, to) = ((dir.from.as_fd(), &b""[..]), (dir.to.as_fd(), &b""[..]));
            give_attributes(from, to, &dir.stat).map_err(at(&dir.path))?;
            stack.pop();
            continue;
        };
        let mut path = dir.path.clone();
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(&name);
        let entered = copying.one((&dir.from, &dir.to), &name, &path);
        stack.extend(entered.map_err(at(&path))?);
    }
    Ok(())
}

fn list(dir: &Arc<OwnedFd>) -> Result<Vec<NameBuf>> {
    let mut names = Vec::new();
    let readable = sys::fd::reopen_dir(&**dir)?;
    sys::dir::for_each_entry(&readable, |entry| {
        names.push(NameBuf::from_slice(entry.name));
        Ok(())
    })?;
    Ok(names)
}

struct Copying<'a> {
    root: &'a Arc<OwnedFd>,
    /// Paths of copies of files of several names.
    links: HashMap<(u64, u64), Vec<u8>>,
    refusals: Refusals,
}

impl Copying<'_> {
    /// Copies one object; of a directory only the place, which is returned.
    fn one(
        &mut self, (from, to): (&Arc<OwnedFd>, &Arc<OwnedFd>), name: &[u8], path: &[u8],
    ) -> Result<Option<Pending>> {
        let stat = match sys::stat::stat_at(&**from, name) {
            // Gone meanwhile.
            Err(Errno::NOENT) => return Ok(None),
            stat => stat?,
        };
        if stat.kind().is_dir() {
            sys::at::mkdir_at(&**to, name, 0o700)?;
            return Ok(Some(Pending {
                from: Arc::new(sys::at::open_dir_path(&**from, name, true)?),
                to: Arc::new(sys::at::open_dir_path(&**to, name, true)?),
                path: path.to_vec(),
                stat,
                names: None,
            }));
        }
        let several = stat.nlink > 1;
        if several && let Some(first) = self.links.get(&(stat.dev, stat.ino)) {
            match sys::at::link_at(&**self.root, first, &**to, name) {
                // So many names the filesystem does not give one file: another one begins.
                Err(Errno::MLINK) => {}
                linked => return linked.map(|()| None),
            }
        }
        self.leaf((from.as_fd(), to.as_fd()), name, &stat)?;
        if several {
            self.links.insert((stat.dev, stat.ino), path.to_vec());
        }
        Ok(None)
    }

    fn leaf(
        &self, (from, to): (BorrowedFd<'_>, BorrowedFd<'_>), name: &[u8], stat: &Stat,
    ) -> Result<()> {
        match stat.kind() {
            FileKind::Regular => {
                let source = sys::at::open_at(from, name, OFlags::RDONLY, 0, true)?;
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
                let copy = sys::at::open_at(to, name, flags, 0o600, true)?;
                copy_data(&source, stat, &copy, stat.size, &self.refusals)?;
            }
            FileKind::Symlink => {
                let target = sys::at::readlink_at(from, name)?;
                sys::at::symlink_at(&target, to, name)?;
            }
            _ => sys::at::mknod_at(to, name, stat.mode & !0o7777 | 0o600, stat.rdev)?,
        }
        give_attributes((from, name), (to, name), stat)
    }
}

/// Gives a copy owner, attributes, mode and times of the object with this `stat`; other attributes that
/// it has go.
pub(crate) fn give_attributes(
    from: (BorrowedFd<'_>, &[u8]), to: (BorrowedFd<'_>, &[u8]), stat: &Stat,
) -> Result<()> {
    let has = sys::stat::stat_at(to.0, to.1)?;
    if (has.uid, has.gid) != (stat.uid, stat.gid) {
        sys::at::chown_at(to.0, to.1, Some(stat.uid), Some(stat.gid))?;
    }
    let is_link = stat.kind() == FileKind::Symlink;
    if !is_link {
        // Before the ACL, which has these bits too, and the other way round for what may be set then.
        sys::at::chmod_at(to.0, to.1, stat.mode | 0o600)?;
    }
    copy_xattrs(from, to)?;
    if !is_link {
        sys::at::chmod_at(to.0, to.1, stat.mode)?;
    }
    let (atime, mtime) = (SetTime::At(stat.atime), SetTime::At(stat.mtime));
    sys::at::utimens_at(to.0, to.1, atime, mtime)
}

/// Labels of security modules are given by policy, and are no part of what was changed.
const LABELS: [&[u8]; 4] = [
    b"security.selinux",
    b"security.ima",
    b"security.evm",
    b"security.apparmor",
];

/// The names in a list of attributes that are copied.
pub(crate) fn names(list: &[u8]) -> impl Iterator<Item = &[u8]> {
    let names = list.split(|&b| b == 0);
    names.filter(|name| !name.is_empty() && !LABELS.contains(name))
}

fn copy_xattrs(from: (BorrowedFd<'_>, &[u8]), to: (BorrowedFd<'_>, &[u8])) -> Result<()> {
    let wanted = sys::xattr::list(from.0, from.1)?;
    let wanted: HashSet<&[u8]> = names(&wanted).collect();
    let has = sys::xattr::list(to.0, to.1)?;
    for attr in names(&has).filter(|attr| !wanted.contains(attr)) {
        sys::xattr::remove(to.0, to.1, attr)?;
    }
    for attr in wanted {
        if let Some(value) = sys::xattr::get(from.0, from.1, attr)? {
            sys::xattr::set(to.0, to.1, attr, &value, 0)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use super::*;

    #[test]
    fn a_copy_is_as_the_original() {
        let temp = tempfile::tempdir().unwrap();
        let (a, b) = (temp.path().join("a"), temp.path().join("b"));
        fs::create_dir_all(a.join("d/e")).unwrap();
        fs::create_dir(&b).unwrap();
        fs::write(a.join("d/f"), "data").unwrap();
        fs::hard_link(a.join("d/f"), a.join("g")).unwrap();
        symlink("nowhere", a.join("d/e/l")).unwrap();
        let sparse = fs::File::create(a.join("sparse")).unwrap();
        sparse.set_len(10 << 20).unwrap();
        fs::set_permissions(a.join("d"), fs::Permissions::from_mode(0o2570)).unwrap();
        fs::set_permissions(a.join("g"), fs::Permissions::from_mode(0o4711)).unwrap();
        xattr::set(a.join("g"), "user.x", b"y\0z").unwrap();
        xattr::set(b.as_path(), "user.old", b"o").unwrap();
        let open = |path: &std::path::Path| {
            Arc::new(sys::at::open_root(path.as_os_str().as_encoded_bytes()).unwrap())
        };
        copy_tree(&open(&a), &open(&b)).unwrap();
        for path in ["", "d", "d/e", "d/e/l", "d/f", "g", "sparse"] {
            let meta = |root: &std::path::Path| fs::symlink_metadata(root.join(path)).unwrap();
            let (x, y) = (meta(&a), meta(&b));
            let facts = |m: &fs::Metadata| (m.mode(), m.mtime_nsec(), m.uid(), m.gid());
            assert_eq!(facts(&x), facts(&y), "{path}");
            if x.is_file() {
                assert_eq!(
                    fs::read(a.join(path)).unwrap(),
                    fs::read(b.join(path)).unwrap()
                );
                assert_eq!(x.nlink(), y.nlink());
            }
        }
        let meta = |name: &str| fs::metadata(b.join(name)).unwrap();
        assert_eq!(meta("d/f").ino(), meta("g").ino());
        assert_eq!(meta("sparse").blocks(), 0);
        assert_eq!(xattr::get(b.join("g"), "user.x").unwrap().unwrap(), b"y\0z");
        assert!(xattr::get(&b, "user.old").unwrap().is_none());
    }
}
