//! What others see of a mount: the tables of the kernel, statfs, the list of processes.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::process::Command;

use rustix::fs::StatVfs;

use crate::process::{finish, wait_for};
use crate::support::{Mount, Stack};
use crate::ways_user::good;

fn statvfs(path: &std::path::Path) -> StatVfs {
    rustix::fs::statvfs(path).unwrap()
}

fn output(command: &mut Command) -> String {
    let outcome = finish(command);
    good(&outcome);
    outcome.stdout.trim_end().to_owned()
}

/// Type and source, as findmnt shows them.
fn shown(mount: &Mount) -> (String, String) {
    let column = |name| {
        let mut command = Command::new("findmnt");
        output(
            command
                .args(["-n", "-r", "-o", name, "-M"])
                .arg(mount.path()),
        )
    };
    (column("FSTYPE"), column("SOURCE"))
}

#[test]
fn type_and_source() {
    for source in ["unionfs", "/l1:/l2", "some,thing", "a b", "#1", "\u{20ac}"] {
        let escaped = source.replace(',', "\\,");
        let mount = Stack::new()
            .lower(["f"])
            .mount_with(&format!("fsname={escaped}"));
        let expected = source.replace(' ', "\\x20");
        let (kind, found) = shown(&mount);
        assert_eq!(kind, "fuse.unionfs");
        // findmnt writes bytes it takes for odd as \xXX.
        let found = found
            .replace("\\xe2\\x82\\xac", "\u{20ac}")
            .replace("\\x23", "#");
        assert_eq!(found, expected);
    }
}

/// mount(2) takes one page of source.
#[test]
fn a_source_longer_than_a_page() {
    let layers: Vec<String> = (0..400).map(|n| format!("/layers/number-{n}")).collect();
    let mount = Stack::new()
        .lower(["f=1"])
        .mount_with(&format!("fsname={}", layers.join(":")));
    let (kind, found) = shown(&mount);
    assert_eq!(kind, "fuse.unionfs");
    let kept = found
        .strip_suffix("...")
        .expect("it says that there is more");
    assert!(kept.len() > 4000 && kept.len() < 4096, "{}", kept.len());
    assert!(
        layers.join(":").starts_with(kept) && kept.ends_with(':'),
        "{kept}"
    );
    let list = output(Command::new("findmnt").args(["-n", "-t", "fuse.unionfs", "-o", "TARGET"]));
    assert!(list.contains(mount.path().to_str().unwrap()));
}

/// Without a name for the source many layers do not show: a table of mounts stays readable.
#[test]
fn many_layers_do_not_show() {
    let mut stack = Stack::new();
    for n in 0..100 {
        stack = stack.lower([format!("f{n}")]);
    }
    let mount = stack.mount();
    assert_eq!(shown(&mount).1, "unionfs");
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let path = mount.path().to_str().unwrap().to_owned();
    let line = table.lines().find(|line| line.contains(&path)).unwrap();
    assert!(line.len() < 300, "{line}");
}

#[test]
fn figures_are_those_of_the_upper() {
    let mount = Stack::new().lower(["f=1"]).mount();
    let same = wait_for(std::time::Duration::from_secs(10), || {
        // The disk is used by others at the same time.
        let (union, upper) = (statvfs(mount.path()), statvfs(mount.layers.upper_path()));
        let key = |s: &StatVfs| {
            (
                s.f_blocks, s.f_bfree, s.f_bavail, s.f_files, s.f_ffree, s.f_bsize, s.f_frsize,
            )
        };
        (key(&union) == key(&upper)).then_some(union)
    });
    assert_eq!(same.expect("other figures than the upper's").f_namemax, 255);
    let text = output(
        Command::new("stat")
            .args(["-f", "-c", "%T %l"])
            .arg(mount.path()),
    );
    // Its name for every FUSE filesystem.
    assert_eq!(text, "fuseblk 255");
    let text = output(
        Command::new("df")
            .args(["-t", "fuse.unionfs", "--output=target"])
            .arg(mount.path()),
    );
    assert_eq!(text.lines().last(), mount.path().to_str());
}

/// Without an upper, those of the first lower; nothing can be written whatever is free.
#[test]
fn figures_without_an_upper() {
    let mount = Stack::new().read_only().lower(["f=1"]).lower(["g"]).mount();
    let (union, lower) = (statvfs(mount.path()), statvfs(&mount.layers.lowers[0]));
    assert_eq!((union.f_blocks, union.f_namemax), (lower.f_blocks, 255));
}

#[test]
fn in_the_list_of_processes() {
    let mut stack = Stack::new();
    for n in 0..200 {
        stack = stack.lower([format!("f{n}")]);
    }
    let mount = stack.mount();
    let pid = mount.pid().to_string();
    assert_eq!(
        output(Command::new("ps").args(["-o", "comm=", "-p", &pid])),
        "unionfs"
    );
    let args = output(Command::new("ps").args(["-ww", "-o", "args=", "-p", &pid]));
    assert!(
        args.as_bytes()
            .ends_with(mount.path().as_os_str().as_bytes()),
        "{args}"
    );
    assert!(
        args.split(' ').next().unwrap().ends_with("unionfs"),
        "{args}"
    );
}
