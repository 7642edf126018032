//! Trees on disk: writing what a [`Dir`] describes, and reading back what is there.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags};

use crate::model::{AtName, Data, Dir, Meta, Node, Slot, Time};

/// Components of a path below the root of a tree; empty for the root.
pub type Names = Vec<Vec<u8>>;

/// What users see of one object.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Seen {
    pub kind: FileType,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub nlink: u64,
    /// 0 for directories.
    pub size: u64,
    pub rdev: u64,
    pub mtime: Time,
    pub target: Vec<u8>,
    pub content: Vec<u8>,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    pub ino: u64,
}

/// A link count that is not compared.
pub const NOT_COUNTED: u64 = u64::MAX;

/// All objects of a tree.
pub type Tree = BTreeMap<Names, Seen>;

/// The path of `names` below `root`.
pub fn join(root: &Path, names: &[Vec<u8>]) -> PathBuf {
    let mut path = root.to_owned();
    for name in names {
        path.push(OsStr::from_bytes(name));
    }
    path
}

/// Names as text for messages; long ones are cut.
pub fn show(names: &[Vec<u8>]) -> String {
    let mut text = String::from("/");
    for (at, name) in names.iter().enumerate() {
        if at > 0 {
            text.push('/');
        }
        let escaped = name.escape_ascii().to_string();
        if escaped.len() > 24 {
            text.push_str(&format!("{}..({})", &escaped[..4], name.len()));
        } else {
            text.push_str(&escaped);
        }
    }
    text
}

/// Reads the tree at `root`.
pub fn scan(root: &Path) -> Tree {
    scan_if(root, |_| true)
}

/// Reads the tree at `root` without what is listed there, yet not found.
pub fn scan_found(root: &Path) -> Tree {
    scan_if(root, |path| fs::symlink_metadata(path).is_ok())
}

fn scan_if(root: &Path, included: impl Fn(&Path) -> bool) -> Tree {
    let mut tree = Tree::new();
    let mut todo = vec![Names::new()];
    while let Some(names) = todo.pop() {
        let path = join(root, &names);
        let seen = look(&path);
        if seen.kind == FileType::Directory {
            for entry in fs::read_dir(&path).expect("readdir") {
                let entry = entry.expect("readdir");
                if !included(&entry.path()) {
                    continue;
                }
                let mut child = names.clone();
                child.push(entry.file_name().into_vec());
                todo.push(child);
            }
        }
        tree.insert(names, seen);
    }
    tree
}

/// Reads one object.
pub fn look(path: &Path) -> Seen {
    let stat = fs::symlink_metadata(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let kind = FileType::from_raw_mode(stat.mode());
    Seen {
        target: match kind {
            FileType::Symlink => fs::read_link(path).unwrap().into_os_string().into_vec(),
            _ => Vec::new(),
        },
        content: match kind {
            FileType::RegularFile => fs::read(path).unwrap(),
            _ => Vec::new(),
        },
        xattrs: xattrs(path, false),
        ..attributes(&stat)
    }
}

/// The attributes of an object, without what has to be read from it.
fn attributes(stat: &fs::Metadata) -> Seen {
    let kind = FileType::from_raw_mode(stat.mode());
    let is_dir = kind == FileType::Directory;
    Seen {
        kind,
        mode: stat.mode() & 0o7777,
        uid: stat.uid(),
        gid: stat.gid(),
        nlink: stat.nlink(),
        size: if is_dir { 0 } else { stat.size() },
        rdev: stat.rdev(),
        mtime: (stat.mtime(), u32::try_from(stat.mtime_nsec()).unwrap()),
        target: Vec::new(),
        content: Vec::new(),
        xattrs: BTreeMap::new(),
        ino: stat.ino(),
    }
}

/// Reads an open object through its link in /proc.
pub fn look_through(link: &Path) -> Seen {
    let stat = fs::metadata(link).unwrap();
    let content = if stat.is_file() {
        fs::read(link).unwrap()
    } else {
        Vec::new()
    };
    Seen {
        content,
        xattrs: xattrs(link, true),
        ..attributes(&stat)
    }
}

/// All extended attributes of an object; without `follow` a symlink's own.
fn xattrs(path: &Path, follow: bool) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut names = vec![0_u8; 65536];
    let len = if follow {
        rustix::fs::listxattr(path, &mut names)
    } else {
        rustix::fs::llistxattr(path, &mut names)
    }
    .expect("listxattr");
    let attrs = names[..len].split(|&b| b == 0).filter(|a| !a.is_empty());
    let value = |attr: &[u8]| {
        let mut value = vec![0_u8; 65536];
        let len = if follow {
            rustix::fs::getxattr(path, attr, &mut value)
        } else {
            rustix::fs::lgetxattr(path, attr, &mut value)
        };
        value.truncate(len.expect("getxattr"));
        value
    };
    attrs.map(|a| (a.to_vec(), value(a))).collect()
}

/// Writes the layer `dir` at `root`, which must be an empty directory.
pub fn write(root: &Path, dir: &Dir) {
    if dir.marks.opaque_file {
        fs::write(root.join(".wh..wh..opq"), b"").unwrap();
    }
    for odd in &dir.odd {
        fs::write(root.join(OsStr::from_bytes(odd)), b"").unwrap();
    }
    for (name, slot) in &dir.slots {
        write_slot(root, name, slot);
    }
    for attr in &dir.marks.opaque_attrs {
        set_xattr(root, attr.as_bytes(), b"y");
    }
    if let Some(attr) = &dir.marks.xattr_whiteouts {
        set_xattr(root, attr.as_bytes(), b"x");
    }
    set_meta(root, &dir.meta, FileType::Directory);
}

fn write_slot(root: &Path, name: &[u8], slot: &Slot) {
    if slot.beside && name.len() <= 251 {
        let mut marker = OsString::from(".wh.");
        marker.push(OsStr::from_bytes(name));
        fs::write(root.join(marker), b"").unwrap();
    }
    let path = root.join(OsStr::from_bytes(name));
    match slot.at_name {
        None => {}
        Some(AtName::Device) => {
            let mode = Mode::empty();
            rustix::fs::mknodat(CWD, &path, FileType::CharacterDevice, mode, 0)
                .expect("mknod of a whiteout device needs root");
        }
        Some(AtName::Attr(attr)) => {
            fs::write(&path, b"").unwrap();
            set_xattr(&path, attr.as_bytes(), b"");
        }
    }
    if let Some(node) = &slot.real {
        write_node(&path, node);
    }
}

fn write_node(path: &Path, node: &Node) {
    let (kind, meta) = match node {
        Node::Dir(dir) => {
            fs::create_dir(path).unwrap();
            write(path, dir);
            return;
        }
        Node::File { data, meta } => {
            write_data(path, *data);
            (FileType::RegularFile, meta)
        }
        Node::Symlink { target, meta } => {
            std::os::unix::fs::symlink(OsStr::from_bytes(target), path).unwrap();
            (FileType::Symlink, meta)
        }
        Node::Special { kind, rdev, meta } => {
            rustix::fs::mknodat(CWD, path, *kind, Mode::RUSR, *rdev).expect("mknod");
            (*kind, meta)
        }
    };
    set_meta(path, meta, kind);
}

fn write_data(path: &Path, data: Data) {
    let file = fs::File::create(path).unwrap();
    match data {
        Data::Bytes { seed, len } => file.write_all_at(&bytes(seed, len), 0).unwrap(),
        Data::Sparse { seed, at, len } => {
            file.write_all_at(&bytes(seed, 10), at).unwrap();
            file.set_len(len).unwrap();
        }
    }
}

/// `len` bytes that differ by `seed`.
pub fn bytes(seed: u8, len: u32) -> Vec<u8> {
    let byte = |i: u32| seed.wrapping_add((i % 251) as u8);
    (0..len).map(byte).collect()
}

fn set_xattr(path: &Path, attr: &[u8], value: &[u8]) {
    rustix::fs::lsetxattr(path, attr, value, XattrFlags::empty())
        .unwrap_or_else(|e| panic!("setxattr {}: {e}", attr.escape_ascii()));
}

/// Gives an object its owner, attributes, mode and times, in the order that keeps them all.
fn set_meta(path: &Path, meta: &Meta, kind: FileType) {
    std::os::unix::fs::lchown(path, Some(meta.uid), Some(meta.gid)).expect("chown needs root");
    for (attr, value) in &meta.xattrs {
        if attr_fits(attr.as_bytes(), kind) {
            set_xattr(path, attr.as_bytes(), value);
        }
    }
    if kind != FileType::Symlink {
        rustix::fs::chmodat(CWD, path, Mode::from_raw_mode(meta.mode), AtFlags::empty()).unwrap();
    }
    set_times(path, meta.mtime);
}

/// Sets both times of an object.
pub fn set_times(path: &Path, (sec, nsec): Time) {
    let time = Timespec {
        tv_sec: sec,
        tv_nsec: i64::from(nsec),
    };
    let times = Timestamps {
        last_access: time,
        last_modification: time,
    };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

/// Which attributes Linux allows on which objects.
pub fn attr_fits(attr: &[u8], kind: FileType) -> bool {
    if attr.starts_with(b"user.") {
        return matches!(kind, FileType::RegularFile | FileType::Directory);
    }
    match attr {
        b"system.posix_acl_access" => kind != FileType::Symlink,
        b"system.posix_acl_default" => kind == FileType::Directory,
        b"security.capability" => kind == FileType::RegularFile,
        _ => true,
    }
}
