//! The program under the name `fuse-overlayfs`, as docker and containerd start it.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};

use crate::process::{self, device_of, finish, wait_for};
use crate::ways_caller::{Store, call, link};
use crate::ways_user::good;

const NAME: &str = "fuse-overlayfs";

/// PATH with the program in it under its other name.
fn path_of(store: &Store) -> OsString {
    let bin = store.path("bin");
    fs::create_dir_all(&bin).unwrap();
    let _ = symlink(process::unionfs(), bin.join(NAME));
    let mut path = bin.into_os_string();
    path.push(":");
    path.push(std::env::var_os("PATH").unwrap());
    path
}

/// Unmounts as containerd does: by fusermount3, then by umount2 until nothing is left.
fn unmount_all(place: &Path) {
    good(&finish(Command::new("fusermount3").arg("-u").arg(place)));
    assert_eq!(unmount(place, UnmountFlags::empty()), Err(Errno::INVAL));
    let running = || {
        let line = |entry: fs::DirEntry| fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let given = |line: Vec<u8>| {
            line.split(|byte| *byte == 0)
                .any(|word| word == place.as_os_str().as_encoded_bytes())
        };
        fs::read_dir("/proc")
            .unwrap()
            .flatten()
            .any(|entry| given(line(entry)))
    };
    let gone = wait_for(Duration::from_secs(15), || (!running()).then_some(()));
    assert!(gone.is_some(), "the daemon stays");
    fs::remove_dir(place).unwrap();
    fs::create_dir(place).unwrap();
}

/// The snapshotter's calls go through mount.fuse3, which runs
/// `fuse-overlayfs overlay TARGET -o workdir=...,upperdir=...,lowerdir=...,dev,suid`.
#[test]
fn containerd() {
    let store = Store::new(3);
    let merged = store.merged();
    let lowers: Vec<String> = (0..3)
        .map(|n| store.path(&format!("layer{n}/diff")).display().to_string())
        .collect();
    let container = store.path("container").display().to_string();
    let view = format!("lowerdir={}", lowers.join(":"));
    let (work, upper) = (
        format!("workdir={container}/work"),
        format!("upperdir={container}/diff"),
    );
    for options in [&[&*view][..], &[&work, &upper, &view]] {
        let mut command = Command::new("mount.fuse3");
        command
            .env("PATH", path_of(&store))
            .arg("overlay")
            .arg(&merged);
        for option in options {
            command.args(["-o", option]);
        }
        assert_eq!(call(command.args(["-t", NAME])), "");
        assert_eq!(fs::read_to_string(merged.join("f2")).unwrap(), "2");
        let written = fs::write(merged.join("new"), "").is_ok();
        assert_eq!(written, options.len() > 1, "{options:?}");
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let line = table
            .lines()
            .find(|line| line.contains(merged.to_str().unwrap()))
            .unwrap();
        // It shows as that program does, and no flag is added that nobody asked for.
        assert!(line.contains(" fuse.fuse-overlayfs "), "{line}");
        assert!(
            !line.contains("nosuid") && !line.contains("nodev"),
            "{line}"
        );
        unmount_all(&merged);
    }
}

/// `fuse-overlayfs -o lowerdir=l/X:l/Y,upperdir=...,workdir=... MERGED` in the driver's directory.
#[test]
fn docker() {
    let store = Store::new(2);
    let merged = store.merged();
    let container = store.path("container").display().to_string();
    let options = format!(
        "lowerdir={}:{},upperdir={container}/diff,workdir={container}/work",
        link(0),
        link(1)
    );
    let mut command = Command::new(NAME);
    command
        .env("PATH", path_of(&store))
        .current_dir(store.path(""));
    assert_eq!(call(command.arg("-o").arg(&options).arg(&merged)), "");
    assert_eq!(fs::read_to_string(merged.join("f1")).unwrap(), "1");
    fs::remove_file(merged.join("f1")).unwrap();
    let name = fs::read_dir("/proc").unwrap().flatten().find_map(|entry| {
        let line = fs::read(entry.path().join("cmdline")).ok()?;
        let merged = merged.as_os_str().as_encoded_bytes();
        line.windows(merged.len())
            .any(|part| part == merged)
            .then(|| fs::read_to_string(entry.path().join("comm")).unwrap())
    });
    assert_eq!(name.as_deref().map(str::trim_end), Some(NAME));
    unmount_all(&merged);
    assert!(device_of(&merged).is_none());
}
