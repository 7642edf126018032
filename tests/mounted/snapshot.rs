//! A layer's complete state, to show that nothing changed it.

use std::collections::BTreeMap;
use std::collections::hash_map::DefaultHasher;
use std::ffi::OsString;
use std::fs;
use std::hash::Hasher;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

/// Everything about an object but its access time.
#[derive(Debug, PartialEq, Eq, Clone)]
pub struct Node {
    mode: u32,
    owner: (u32, u32),
    links: u64,
    size: u64,
    rdev: u64,
    modified: (i64, i64),
    // Any write, link, chmod or setxattr moves it, even one that leaves the old value.
    changed: (i64, i64),
    xattrs: BTreeMap<OsString, Vec<u8>>,
    content: u64,
}

pub type Snapshot = BTreeMap<PathBuf, Node>;

/// Files above this are known by their times alone.
const HASHED_BYTES_MAX: u64 = 32 << 20;

pub fn take(root: &Path) -> Snapshot {
    let mut all = BTreeMap::new();
    let mut todo = vec![root.to_owned()];
    while let Some(path) = todo.pop() {
        let meta = fs::symlink_metadata(&path).unwrap();
        if meta.is_dir() {
            todo.extend(
                fs::read_dir(&path)
                    .unwrap()
                    .map(|entry| entry.unwrap().path()),
            );
        }
        all.insert(
            path.strip_prefix(root).unwrap().to_owned(),
            node(&path, &meta),
        );
    }
    all
}

fn node(path: &Path, meta: &fs::Metadata) -> Node {
    Node {
        mode: meta.mode(),
        owner: (meta.uid(), meta.gid()),
        links: meta.nlink(),
        size: meta.size(),
        rdev: meta.rdev(),
        modified: (meta.mtime(), meta.mtime_nsec()),
        changed: (meta.ctime(), meta.ctime_nsec()),
        xattrs: xattrs(path),
        content: content(path, meta),
    }
}

pub fn xattrs(path: &Path) -> BTreeMap<OsString, Vec<u8>> {
    let names = xattr::list(path).unwrap();
    names
        .map(|name| {
            (
                name.clone(),
                xattr::get(path, &name).unwrap().unwrap_or_default(),
            )
        })
        .collect()
}

fn content(path: &Path, meta: &fs::Metadata) -> u64 {
    let mut hasher = DefaultHasher::new();
    if meta.is_symlink() {
        hasher.write(fs::read_link(path).unwrap().as_os_str().as_bytes());
    } else if meta.is_file() && meta.len() > 0 && meta.len() <= HASHED_BYTES_MAX {
        let mut data = Vec::new();
        // Access times are part of what a copy-up takes over: looking must not change them.
        let flags = OFlags::RDONLY | OFlags::NOATIME;
        let file = crate::process::open_file(path, flags, Mode::empty()).unwrap();
        fs::File::from(file).read_to_end(&mut data).unwrap();
        hasher.write(&data);
    }
    hasher.finish()
}

/// The first differences, or nothing.
pub fn differences(before: &Snapshot, after: &Snapshot) -> Vec<String> {
    let mut found = Vec::new();
    for (path, old) in before {
        match after.get(path) {
            None => found.push(format!("{} is gone", path.display())),
            Some(new) if new != old => {
                found.push(format!("{}: was {old:?}, is {new:?}", path.display()));
            }
            Some(_) => {}
        }
    }
    let new = after.keys().filter(|path| !before.contains_key(*path));
    found.extend(new.map(|path| format!("{} is new", path.display())));
    found.truncate(5);
    found
}
