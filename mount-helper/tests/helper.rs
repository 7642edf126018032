//! The helper beside a daemon that only tells how it was called.

// In a test it is how a failure is told.
#![allow(clippy::unwrap_used)]

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

/// Files that will be run are written by another process: what we have open for writing, a program that
/// another test starts has open too for a moment, and then nobody can run it.
fn shell(script: &str, first: &str, second: &Path) {
    let mut command = Command::new("sh");
    command.args(["-c", script, "sh", first]).arg(second);
    assert!(command.status().unwrap().success());
}

/// A directory with the helper, under its installed name, and perhaps a daemon.
struct Place(TempDir);

impl Place {
    fn new(daemon: Option<&str>) -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        shell(
            "cp \"$1\" \"$2\"",
            env!("CARGO_BIN_EXE_mount-unionfs"),
            &place.helper(),
        );
        if let Some(script) = daemon {
            let script = format!("#!/bin/sh\n{script}\n");
            let path = place.0.path().join("unionfs");
            shell(
                "printf %s \"$1\" > \"$2\" && chmod 755 \"$2\"",
                &script,
                &path,
            );
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
        "[mount]\n[--sloppy]\n[-o]\n[supervise=auto]\n[-o]\n[rw,ro]\n[--]\n[/a:/b]\n[/m]\n";
    assert_eq!(String::from_utf8(output.stdout).unwrap(), expected);
}

#[test]
fn fake_only_checks() {
    let output = Place::new(Some(TELL)).run(&["/a", "/m", "-f", "-o", "rw"]);
    assert_eq!(output.status.code(), Some(0));
    let expected = "[mount]\n[--check]\n[-o]\n[supervise=auto]\n[-o]\n[rw]\n[--]\n[/a]\n[/m]\n";
    assert_eq!(String::from_utf8(output.stdout).unwrap(), expected);
}

#[test]
fn verbose_tells_what_is_run() {
    let place = Place::new(Some("exit 0"));
    let output = place.run(&["/a b", "/m", "-v", "-o", "rw"]);
    let expected = format!(
        "{}/unionfs mount -o supervise=auto -o rw -- '/a b' /m\n",
        place.0.path().display()
    );
    assert_eq!(String::from_utf8(output.stdout).unwrap(), expected);
}

/// Exit code and stderr.
fn told(output: Output) -> (Option<i32>, String) {
    (
        output.status.code(),
        String::from_utf8(output.stderr).unwrap(),
    )
}

#[test]
fn exit_codes_are_those_of_mount() {
    let failing = Place::new(Some("echo 'unionfs: reason' >&2; exit 1"));
    assert_eq!(
        told(failing.run(&["/a", "/m", "-o", "rw"])),
        (Some(32), "unionfs: reason\n".to_owned())
    );
    let (code, line) = told(failing.run(&["/a"]));
    assert_eq!(code, Some(1));
    assert!(line.starts_with("mount.unionfs: usage: "), "{line}");
    let (code, line) = told(Place::new(Some("kill -9 $$")).run(&["/a", "/m"]));
    assert_eq!(code, Some(4));
    assert!(
        line.starts_with("mount.unionfs: ") && line.contains("signal: 9"),
        "{line}"
    );
    let unstartable = Place::new(Some(""));
    let program = unstartable.0.path().join("unionfs");
    fs::set_permissions(program, Permissions::from_mode(0o644)).unwrap();
    let (code, line) = told(unstartable.run(&["/a", "/m"]));
    assert_eq!(code, Some(2));
    assert_eq!(line.lines().count(), 1, "{line}");
}
