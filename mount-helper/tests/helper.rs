//! The helper beside a daemon that only tells how it was called.

// In a test it is how a failure is told.
#![allow(clippy::unwrap_used)]

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Output};

use tempfile::TempDir;

/// A directory with the helper, under its installed name, and perhaps a daemon.
struct Place(TempDir);

impl Place {
    fn new(daemon: Option<&str>) -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        fs::copy(env!("CARGO_BIN_EXE_mount-unionfs"), place.helper()).unwrap();
        if let Some(script) = daemon {
            let path = place.0.path().join("unionfs");
            fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
            fs::set_permissions(path, Permissions::from_mode(0o755)).unwrap();
        }
        place
    }

    fn helper(&self) -> PathBuf {
        self.0.path().join("mount.unionfs")
    }

    /// With the empty environment that mount(8) gives its helpers.
    fn run(&self, words: &[&str]) -> Output {
        Command::new(self.helper())
            .args(words)
            .env_clear()
            .output()
            .unwrap()
    }
}

const TELL: &str = r#"for word in "$@"; do echo "[$word]"; done"#;

#[test]
fn the_daemon_gets_its_own_words() {
    let output = Place::new(Some(TELL)).run(&["/a:/b", "/m", "-s", "-o", "rw,ro", "-t", "unionfs"]);
    assert_eq!(output.status.code(), Some(0));
    let expected =
        "[mount]\n[-o]\n[lowerdir=/a:/b]\n[-o]\n[rw,ro]\n[-o]\n[fsname=/a\\:/b]\n[--]\n[/m]\n";
    assert_eq!(String::from_utf8(output.stdout).unwrap(), expected);
}

#[test]
fn fake_starts_nothing() {
    let output = Place::new(Some(TELL)).run(&["/a", "/m", "-f", "-o", "rw"]);
    assert_eq!(output.status.code(), Some(0));
    assert!(output.stdout.is_empty());
}

#[test]
fn exit_codes_are_those_of_mount() {
    let failing = Place::new(Some("echo 'unionfs: reason' >&2; exit 1"));
    let output = failing.run(&["/a", "/m", "-o", "rw"]);
    assert_eq!(output.status.code(), Some(32));
    assert_eq!(
        String::from_utf8(output.stderr).unwrap(),
        "unionfs: reason\n"
    );
    let usage = failing.run(&["/a"]);
    assert_eq!(usage.status.code(), Some(1));
    assert!(
        String::from_utf8(usage.stderr)
            .unwrap()
            .starts_with("mount.unionfs: usage: ")
    );
    let killed = Place::new(Some("kill -9 $$")).run(&["/a", "/m"]);
    assert_eq!(killed.status.code(), Some(32));
}
