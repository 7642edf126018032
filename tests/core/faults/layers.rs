//! What the layers of every scene hold.

use std::fs;
use std::os::unix::fs::{chown, symlink};
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode};

use crate::model::Time;
use crate::tree::set_times;

/// What the two lowers hold together, top first.
pub fn write_lowers(top: &Path, bottom: &Path) {
    write_part(top, true);
    write_part(bottom, false);
    settle(top);
    settle(bottom);
}

/// The same as one directory.
pub fn write_plain(plain: &Path) {
    write_part(plain, false);
    write_part(plain, true);
    settle(plain);
}

/// The part of one of two layers. The top's files come over the other's.
fn write_part(root: &Path, is_top: bool) {
    let at = |name: &str| root.join(name);
    for dir in ["m", "m/sub"] {
        fs::create_dir_all(at(dir)).unwrap();
    }
    if !is_top {
        fs::write(at("m/1"), "below").unwrap();
        fs::write(at("m/sub/1"), "below").unwrap();
        fs::write(at("f"), "under f").unwrap();
        return;
    }
    for dir in ["d", "d/sub", "e", "w"] {
        fs::create_dir(at(dir)).unwrap();
    }
    for file in [
        "f", "g", "d/x", "d/sub/y", "m/0", "m/sub/0", "w/x", "set-id",
    ] {
        fs::write(at(file), format!("data of {file}")).unwrap();
    }
    fs::write(at("large"), "large".repeat(5000)).unwrap();
    fs::write(at("d/large"), "large".repeat(5000)).unwrap();
    for (old, new) in [("a", "b"), ("a", "d/c"), ("p", "q")] {
        if !at(old).exists() {
            fs::write(at(old), format!("data of {old}")).unwrap();
        }
        fs::hard_link(at(old), at(new)).unwrap();
    }
    symlink("target", at("s")).unwrap();
    symlink("many", at("s1")).unwrap();
    fs::hard_link(at("s1"), at("s2")).unwrap();
    let mode = Mode::from_raw_mode(0o640);
    for (name, kind, rdev) in [
        ("fifo", FileType::Fifo, 0),
        ("socket", FileType::Socket, 0),
        ("null", FileType::CharacterDevice, libc::makedev(1, 3)),
    ] {
        rustix::fs::mknodat(CWD, at(name), kind, mode, rdev).expect("needs root");
    }
    for name in ["f", "d", "set-id"] {
        chown(at(name), Some(1000), Some(1001)).unwrap();
        xattr::set(at(name), "user.a", b"1").unwrap();
    }
    rustix::fs::chmod(at("set-id"), Mode::from_raw_mode(0o6755)).unwrap();
}

/// A time that no test makes.
pub const LONG_AGO: Time = (1_000_000_000, 5);

/// Gives all objects that time.
fn settle(root: &Path) {
    for (names, _) in crate::tree::scan(root).iter().rev() {
        set_times(&crate::tree::join(root, names), LONG_AGO);
    }
}
