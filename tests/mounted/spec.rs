//! The notation layers are written in, and how an upper is read back in the same notation.
//!
//! `d/` directory, `f=text` file with content, `f` file holding its own name, `f->target` symlink,
//! `a~b` b is a hard link to a, `fifo(f)`, `chr(f)` whiteout device, `chr(f,1,3)` device,
//! `wh(f)` and `d/wh(f)` whiteout, `opq(d)` opaque marker (`opq()` for the root). After ` | `
//! come attributes: `mode=0750 uid=7 gid=8 mtime=SEC[.NSEC] atime=... x:user.k=v`.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, Timespec, Timestamps, Uid};

/// Which on-disk form `wh()` and `opq()` take in the layers, and which one the mount writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// `.wh.` files everywhere.
    Aufs,
    /// Character devices and xattrs everywhere, `whiteout=overlay`.
    Overlay,
    /// Lowers in overlay form under an upper in aufs form.
    Mixed,
}

impl Dialect {
    pub fn writes_overlay(self) -> bool {
        self == Dialect::Overlay
    }
}

/// Makes one layer out of its description. `overlay` selects the form of `wh()` and `opq()`.
pub fn build(root: &Path, items: &[String], overlay: bool) {
    let mut times = Vec::new();
    for item in items {
        let (object, attributes) = item.split_once(" | ").unwrap_or((item, ""));
        let path = make(root, object, overlay);
        apply(&path, attributes, &mut times);
    }
    // Times last: making an entry changes its parent's.
    for (path, stamps) in times {
        rustix::fs::utimensat(CWD, &path, &stamps, AtFlags::SYMLINK_NOFOLLOW).unwrap();
    }
}

fn make(root: &Path, object: &str, overlay: bool) -> PathBuf {
    if let Some((dir, name)) = call(object, "wh") {
        let path = if overlay {
            dir_of(root, dir).join(name)
        } else {
            wh_path(root, dir, name)
        };
        if overlay {
            device(&path, 0, 0);
        } else {
            fs::write(&path, "").unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o444)).unwrap();
        }
        return path;
    }
    if let Some((dir, name)) = call(object, "opq") {
        let path = dir_of(root, dir).join(name);
        fs::create_dir_all(&path).unwrap();
        if overlay {
            xattr::set(&path, "trusted.overlay.opaque", b"y").unwrap();
        } else {
            fs::write(path.join(".wh..wh..opq"), "").unwrap();
        }
        return path;
    }
    if let Some((dir, inner)) = call(object, "chr") {
        let mut parts = inner.split(',');
        let path = dir_of(root, dir).join(parts.next().unwrap());
        let mut number = || parts.next().map_or(0, |n| n.parse().unwrap());
        device(&path, number(), number());
        return path;
    }
    if let Some((dir, name)) = call(object, "fifo") {
        let path = dir_of(root, dir).join(name);
        rustix::fs::mknodat(CWD, &path, FileType::Fifo, Mode::from_raw_mode(0o644), 0).unwrap();
        return path;
    }
    if let Some((name, target)) = object.split_once("->") {
        let path = place(root, name);
        symlink(target, &path).unwrap();
        return path;
    }
    if let Some((old, new)) = object.split_once('~') {
        let path = place(root, new);
        fs::hard_link(root.join(old), &path).unwrap();
        return path;
    }
    if let Some(dir) = object.strip_suffix('/') {
        let path = root.join(dir);
        fs::create_dir_all(&path).unwrap();
        return path;
    }
    let (name, content) = object.split_once('=').unwrap_or((object, object));
    let path = place(root, name);
    fs::write(&path, content).unwrap();
    path
}

/// Splits `dir/verb(inner)` into dir and inner.
fn call<'a>(object: &'a str, verb: &str) -> Option<(&'a str, &'a str)> {
    let inner = object.strip_suffix(')')?;
    let at = inner.find(&format!("{verb}("))?;
    let dir = &inner[..at];
    (dir.is_empty() || dir.ends_with('/')).then(|| (dir, &inner[at + verb.len() + 1..]))
}

fn dir_of(root: &Path, dir: &str) -> PathBuf {
    let path = root.join(dir);
    fs::create_dir_all(&path).unwrap();
    path
}

fn place(root: &Path, name: &str) -> PathBuf {
    let path = root.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    path
}

fn wh_path(root: &Path, dir: &str, name: &str) -> PathBuf {
    let full = Path::new(name);
    let parent = dir_of(root, dir).join(full.parent().unwrap());
    fs::create_dir_all(&parent).unwrap();
    parent.join(format!(
        ".wh.{}",
        full.file_name().unwrap().to_str().unwrap()
    ))
}

fn device(path: &Path, major: u32, minor: u32) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let dev = rustix::fs::makedev(major, minor);
    let mode = Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(CWD, path, FileType::CharacterDevice, mode, dev).unwrap();
}

fn apply(path: &Path, attributes: &str, times: &mut Vec<(PathBuf, Timestamps)>) {
    let (mut uid, mut gid, mut mode) = (None, None, None);
    let omit = Timespec {
        tv_sec: 0,
        tv_nsec: rustix::fs::UTIME_OMIT,
    };
    let mut stamps = Timestamps {
        last_access: omit,
        last_modification: omit,
    };
    for attribute in attributes.split_whitespace() {
        let (key, value) = attribute.split_once('=').unwrap();
        match key {
            "mode" => mode = Some(u32::from_str_radix(value, 8).unwrap()),
            "uid" => uid = Some(Uid::from_raw(value.parse().unwrap())),
            "gid" => gid = Some(Gid::from_raw(value.parse().unwrap())),
            "mtime" => stamps.last_modification = timespec(value),
            "atime" => stamps.last_access = timespec(value),
            _ => {
                let name = key
                    .strip_prefix("x:")
                    .unwrap_or_else(|| panic!("attribute {key}"));
                xattr::set(path, name, value.as_bytes()).unwrap();
            }
        }
    }
    rustix::fs::chownat(CWD, path, uid, gid, AtFlags::SYMLINK_NOFOLLOW).unwrap();
    if let Some(mode) = mode {
        rustix::fs::chmod(path, Mode::from_raw_mode(mode)).unwrap();
    }
    times.push((path.to_owned(), stamps));
}

fn timespec(value: &str) -> Timespec {
    let (sec, nsec) = value.split_once('.').unwrap_or((value, "0"));
    Timespec {
        tv_sec: sec.parse().unwrap(),
        tv_nsec: nsec.parse().unwrap(),
    }
}

/// What is in a written upper, in the notation above. Marks of the form that the mount was not
/// asked to write come out as `chr()`, `xopq()` or their literal `.wh.` name. The three root
/// metadata objects are left out, and so are pseudo-links; what else they hold is not.
pub fn read_back(upper: &Path, overlay: bool) -> Vec<String> {
    let mut found = Vec::new();
    read_dir(upper, "", overlay, &mut found);
    found.sort();
    found
}

fn read_dir(dir: &Path, prefix: &str, overlay: bool, found: &mut Vec<String>) {
    if xattr::get(dir, "trusted.overlay.opaque")
        .unwrap()
        .as_deref()
        == Some(b"y")
    {
        let verb = if overlay { "opq" } else { "xopq" };
        found.push(format!("{verb}({})", prefix.trim_end_matches('/')));
    }
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().to_string_lossy().into_owned();
        let meta = fs::symlink_metadata(entry.path()).unwrap();
        let full = format!("{prefix}{name}");
        if prefix == ".wh..wh.plnk/" && is_pseudo_link(&name) {
            continue;
        }
        if prefix.is_empty() && metadata_object(&name, &meta) {
            if meta.is_dir() {
                read_dir(&entry.path(), &format!("{name}/"), overlay, found);
            }
        } else if name == ".wh..wh..opq" && meta.is_file() && !overlay {
            assert_eq!(meta.len(), 0, "{full}");
            found.push(format!("opq({})", prefix.trim_end_matches('/')));
        } else if whiteout_name(&name) && meta.is_file() && !overlay {
            assert_eq!(meta.len(), 0, "{full} is not empty");
            found.push(format!("{prefix}wh({})", &name[4..]));
        } else if meta.file_type().is_char_device() && meta.rdev() == 0 {
            found.push(format!(
                "{prefix}{}({name})",
                if overlay { "wh" } else { "chr" }
            ));
        } else if meta.is_dir() {
            found.push(format!("{full}/"));
            read_dir(&entry.path(), &format!("{full}/"), overlay, found);
        } else {
            found.push(full);
        }
    }
}

/// Temporaries are not whiteouts: they come out literally.
fn whiteout_name(name: &str) -> bool {
    name.starts_with(".wh.") && !name.starts_with(".wh..wh.")
}

/// `I.J`, or `I.0` for the number of names; the note of a change under way is none.
fn is_pseudo_link(name: &str) -> bool {
    let number = |text: &str| text.parse::<u64>().is_ok();
    name.split_once('.')
        .is_some_and(|(one, two)| number(one) && number(two) && one != "0")
}

fn metadata_object(name: &str, meta: &fs::Metadata) -> bool {
    match name {
        ".wh..wh.aufs" => meta.is_file(),
        ".wh..wh.plnk" | ".wh..wh.orph" => meta.is_dir(),
        _ => false,
    }
}
