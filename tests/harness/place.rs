//! Layers in a temporary directory.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use tempfile::TempDir;
use unionfs::{Builder, Union};

/// The program that serves spawned mounts; another one where the user cannot reach the built one.
pub fn program() -> OsString {
    std::env::var_os("UNIONFS_TEST_PROGRAM").unwrap_or(env!("CARGO_BIN_EXE_unionfs").into())
}

pub struct Place {
    dir: TempDir,
}

impl Place {
    /// A lower with a few files, an empty upper and a mount point.
    pub fn new() -> Self {
        let dir = tempfile::Builder::new()
            .prefix("unionfs-test-")
            .tempdir()
            .unwrap();
        let place = Self { dir };
        for name in [
            "lower/d/sub",
            "lower/gone",
            "lower/replaced/in",
            "upper",
            "mnt",
        ] {
            fs::create_dir_all(place.path(name)).unwrap();
        }
        let lower = place.path("lower");
        for (name, text) in [
            ("f", "lower"),
            ("same", "same"),
            ("mode", "mode"),
            ("kind", "kind"),
            ("d/a", "one"),
            ("d/sub/x", "deep"),
            ("gone/x", "x"),
            ("replaced/in/y", "y"),
            ("linked", "linked"),
        ] {
            fs::write(lower.join(name), text).unwrap();
        }
        fs::hard_link(lower.join("linked"), lower.join("d/linked")).unwrap();
        symlink("f", lower.join("link")).unwrap();
        place
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().canonicalize().unwrap().join(name)
    }

    pub fn mkdir(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir(&path).unwrap();
        path
    }

    pub fn builder(&self) -> Builder {
        Union::builder()
            .lower(self.path("lower"))
            .upper(self.path("upper"))
    }

    pub fn mount(&self) -> Union {
        self.builder().mount(self.path("mnt")).unwrap()
    }
}

/// Whether something is mounted exactly there. Does not ask the mount.
pub fn is_mounted(path: &Path) -> bool {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let path = path.to_str().unwrap();
    table
        .lines()
        .any(|line| line.split(' ').nth(4) == Some(path))
}

/// Names of a directory, sorted.
pub fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

pub fn text(path: impl AsRef<Path>) -> String {
    let path = path.as_ref();
    fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The changes as texts.
pub fn changes(union: &Union) -> Vec<String> {
    let changes = union.upper_changes().unwrap();
    changes.map(|change| change.to_string()).collect()
}
