//! Linked files of a lower: what the tests about them share.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use rustix::fs::OFlags;

use crate::process::{finish, unionfs};
use crate::support::Mount;

/// An entry of `.wh..wh.plnk`.
#[derive(Debug)]
pub struct Entry {
    pub name: String,
    pub ino: u64,
}

/// All of them; the directory need not be there.
pub fn entries(m: &Mount) -> Vec<Entry> {
    entries_in(m.layers.upper_path())
}

pub fn entries_in(upper: &Path) -> Vec<Entry> {
    let Ok(dir) = fs::read_dir(upper.join(".wh..wh.plnk")) else {
        return Vec::new();
    };
    let entry = |entry: fs::DirEntry| Entry {
        name: entry.file_name().into_string().unwrap(),
        ino: fs::symlink_metadata(entry.path()).unwrap().ino(),
    };
    dir.map(|found| entry(found.unwrap())).collect()
}

pub fn append(m: &Mount, name: &str, text: &str) {
    let fd = m.open(name, OFlags::WRONLY | OFlags::APPEND).unwrap();
    rustix::io::write(fd, text.as_bytes()).unwrap();
}

/// `unionfs plink flush` of a live mount.
pub fn flush(m: &Mount) {
    let outcome = finish(
        Command::new(unionfs())
            .args(["plink", "flush"])
            .arg(m.path()),
    );
    assert!(outcome.status.success(), "{}", outcome.stderr);
}

/// The lines of `unionfs plink list`.
pub fn list(place: &Path) -> Vec<String> {
    let outcome = Command::new(unionfs())
        .args(["plink", "list"])
        .arg(place)
        .output()
        .unwrap();
    assert!(
        outcome.status.success(),
        "{}",
        String::from_utf8_lossy(&outcome.stderr)
    );
    let text = String::from_utf8(outcome.stdout).unwrap();
    text.lines().map(str::to_owned).collect()
}
