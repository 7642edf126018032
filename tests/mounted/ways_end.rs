//! `auto_unmount`: the mount goes away with its daemon, however that dies.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::time::Duration;

use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Pid, Signal, kill_process};

use crate::process::{daemons, device_of, run, wait_for};
use crate::support::{Layers, Stack};
use crate::user::{DeviceMode, Place};
use crate::ways_user::good;

const STEP: Duration = Duration::from_secs(15);

/// The one of the program's processes that serves the mount.
fn server(mnt: &Path) -> Pid {
    let serves = |pid: &i32| {
        let fds = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
        let mut targets = fds.filter_map(|fd| fs::read_link(fd.path()).ok());
        targets.any(|target| target == Path::new("/dev/fuse"))
    };
    let pid = daemons(mnt).into_iter().find(serves);
    Pid::from_raw(pid.expect("somebody serves it")).unwrap()
}

fn start(layers: &Layers, options: &str) {
    let options = layers.options(options);
    good(&run(&[OsStr::new("-o"), &options, layers.mnt.as_os_str()]));
}

#[track_caller]
fn gone(layers: &Layers) {
    let ended = wait_for(STEP, || daemons(&layers.mnt).is_empty().then_some(()));
    assert!(ended.is_some(), "a process stays");
    assert_eq!(device_of(&layers.mnt), None, "it is still mounted");
}

#[test]
fn a_killed_daemon_takes_its_mount_with_it() {
    let layers = Stack::new().lower(["f=1"]).build();
    start(&layers, "auto_unmount");
    let open = fs::File::open(layers.mnt.join("f")).unwrap();
    kill_process(server(&layers.mnt), Signal::KILL).unwrap();
    gone(&layers);
    drop(open);
    // Without the option the dead mount stays.
    start(&layers, "");
    kill_process(server(&layers.mnt), Signal::KILL).unwrap();
    assert!(wait_for(STEP, || daemons(&layers.mnt).is_empty().then_some(())).is_some());
    assert!(device_of(&layers.mnt).is_some());
    unmount(&layers.mnt, UnmountFlags::DETACH).unwrap();
}

#[test]
fn an_orderly_end_leaves_no_guard() {
    let layers = Stack::new().lower(["f=1"]).build();
    for signal in [None, Some(Signal::TERM)] {
        start(&layers, "auto_unmount");
        match signal {
            Some(signal) => kill_process(server(&layers.mnt), signal).unwrap(),
            None => unmount(&layers.mnt, UnmountFlags::empty()).unwrap(),
        }
        gone(&layers);
    }
    // Nor does a mount that failed.
    layers.refused(OsStr::new("lowerdir=/nowhere,auto_unmount"));
}

/// What was mounted there since is not its.
#[test]
fn a_later_mount_stays() {
    let layers = Stack::new().lower(["f=1"]).build();
    start(&layers, "auto_unmount,ro");
    let first = server(&layers.mnt);
    let open = fs::File::open(layers.mnt.join("f")).unwrap();
    unmount(&layers.mnt, UnmountFlags::DETACH).unwrap();
    start(&layers, "ro");
    let device = device_of(&layers.mnt);
    kill_process(first, Signal::KILL).unwrap();
    let one = wait_for(STEP, || (daemons(&layers.mnt).len() == 1).then_some(()));
    assert!(one.is_some(), "the guard stays");
    drop(open);
    assert_eq!(device_of(&layers.mnt), device);
    unmount(&layers.mnt, UnmountFlags::empty()).unwrap();
    gone(&layers);
}

#[test]
fn a_killed_daemon_of_a_user() {
    let _device = DeviceMode::set(0o666);
    let place = Place::new();
    let text = "$unionfs -o \"$options,auto_unmount\" \"$mnt\"";
    good(&place.script(&[], text));
    kill_process(server(&place.layers.mnt), Signal::KILL).unwrap();
    gone(&place.layers);
    place.check();
}

/// The kernel gives out device numbers again at once, so the number alone does not tell whose the
/// mount is.
#[test]
fn a_mount_that_follows_at_once_stays() {
    let layers = Stack::new().lower(["f=1"]).build();
    for _ in 0..15 {
        start(&layers, "auto_unmount,ro");
        let free = || unmount(&layers.mnt, UnmountFlags::empty()).ok();
        wait_for(STEP, free).expect("unmounted");
        start(&layers, "ro");
        let one = wait_for(STEP, || (daemons(&layers.mnt).len() == 1).then_some(()));
        assert!(
            one.is_some(),
            "the first one's processes stay, or the second is gone"
        );
        assert!(device_of(&layers.mnt).is_some(), "it was taken away");
        wait_for(STEP, free).expect("unmounted");
        gone(&layers);
    }
}
