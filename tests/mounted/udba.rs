//! Changes that others make in the layers, which `udba=notify` and `udba=reval` show.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::process::{finish, unionfs, wait_for};
use crate::snapshot::{self, Snapshot};
use crate::support::{Mount, Stack};

/// How long a change may take to show.
pub const SOON: Duration = Duration::from_secs(10);

/// What others do to a directory `$D` of one layer, in which there are `f`, `g`, `link`, `sub/x`, a file
/// with two names `a` and `b`, and a whiteout of `hid`; all layers but the last have the same, and the
/// last has `hid` and `low` beside.
const CHANGES: [(&str, &str); 27] = [
    ("create", "echo new > $D/new"),
    ("mkdir", "mkdir $D/nd; echo 1 > $D/nd/f"),
    ("delete", "rm $D/f"),
    ("rename", "mv $D/f $D/renamed"),
    ("rename-over", "mv $D/f $D/g"),
    ("rename-dir", "mv $D/sub $D/sub2"),
    ("replace", "echo other > $D/tmp; mv $D/tmp $D/f"),
    (
        "replace-dir",
        "mv $D/sub $D/old; mkdir $D/sub; echo z > $D/sub/y",
    ),
    ("file-to-dir", "rm $D/f; mkdir $D/f; echo in > $D/f/in"),
    ("dir-to-file", "rm -r $D/sub; echo file > $D/sub"),
    ("remove-dir", "rm -r $D/sub"),
    ("append", "echo more of it >> $D/f"),
    (
        "overwrite",
        "printf X | dd of=$D/f conv=notrunc status=none",
    ),
    ("truncate", ": > $D/f"),
    ("chmod", "chmod 600 $D/f; chmod 700 $D/sub"),
    ("chown", "chown 1:2 $D/f"),
    ("touch", "touch -d 2001-01-01 $D/f"),
    (
        "xattr",
        "setfattr -n user.a -v b $D/f; setfattr -n user.c -v d $D/sub",
    ),
    ("symlink", "ln -sfn other $D/link"),
    ("unlink-one", "rm $D/a"),
    ("link", "ln $D/f $D/f2"),
    ("whiteout", ": > $D/.wh.low"),
    ("whiteout-device", "rm -f $D/low; mknod $D/low c 0 0"),
    ("no-whiteout", "rm -f $D/.wh.hid"),
    ("opaque", ": > $D/.wh..wh..opq"),
    (
        "opaque-attribute",
        "setfattr -n trusted.overlay.opaque -v y $D",
    ),
    (
        "in-sub",
        "rm $D/sub/x; mkdir -p $D/sub/n/m; echo 5 > $D/sub/n/m/o",
    ),
];

/// The layers for [`CHANGES`], a directory for each of them.
fn layers() -> Stack {
    let of = |layer: &str, items: &[&str]| -> Vec<String> {
        let dirs = CHANGES.iter().map(|(name, _)| name);
        let in_dir = |dir: &&str| {
            let fill = |item: &&str| item.replace('@', layer).replace("D/", &format!("{dir}/"));
            items.iter().map(fill).collect::<Vec<_>>()
        };
        dirs.flat_map(in_dir).collect()
    };
    let root = || vec!["emptied/f".to_owned()];
    let same = [
        "D/f=of @",
        "D/g=g",
        "D/link->f",
        "D/sub/x=x of @",
        "D/only-@=1",
        "D/a=two names",
        "D/a~D/b",
    ];
    let upper: Vec<&str> = same.iter().copied().chain(["D/wh(hid)"]).collect();
    let last: Vec<&str> = same
        .iter()
        .copied()
        .chain(["D/hid=shows", "D/low=low"])
        .collect();
    Stack::new()
        .upper([of("upper", &upper), root()].concat())
        .lower([of("one", &upper), root()].concat())
        .lower([of("two", &last), root()].concat())
}

/// Runs a script of somebody else, with `$D` set.
pub fn others(dir: &Path, script: &str) {
    let mut command = Command::new("sh");
    let outcome = finish(command.args(["-euc", script]).env("D", dir));
    assert!(outcome.status.success(), "{script}: {}", outcome.stderr);
}

/// What a mount made now shows: the oracle.
fn fresh(m: &Mount) -> Snapshot {
    let at = m.layers.scratch().join("fresh");
    fs::create_dir_all(&at).unwrap();
    let lowers = m.layers.upper.iter().chain(&m.layers.lowers);
    let lowers: Vec<String> = lowers.map(|dir| dir.display().to_string()).collect();
    let options = format!("lowerdir={},ro", lowers.join(":"));
    let outcome = finish(Command::new(unionfs()).arg("-o").arg(options).arg(&at));
    assert!(outcome.status.success(), "{}", outcome.stderr);
    let seen = snapshot::take(&at);
    // A process just forked by another test may hold a copy of a descriptor for a moment.
    let unmounted = wait_for(SOON, || {
        let outcome = finish(Command::new(unionfs()).arg("umount").arg(&at));
        outcome.status.success().then_some(())
    });
    assert!(unmounted.is_some(), "{}", at.display());
    seen
}

/// The mount shows soon what a new one does.
#[track_caller]
pub fn shows_soon(m: &Mount, what: &str) {
    let expected = fresh(m);
    let mut differences = Vec::new();
    let same = wait_for(SOON, || {
        // What is just going away fails.
        let at = m.path().to_owned();
        let seen = std::panic::catch_unwind(move || snapshot::take(&at)).ok()?;
        differences = snapshot::differences(&expected, &seen);
        differences.is_empty().then_some(())
    });
    assert!(same.is_some(), "{what}:\n{}", differences.join("\n"));
}

fn each_kind_of_change(options: &str) {
    let mut m = layers().limit(300).mount_with(options);
    let dirs: Vec<PathBuf> = m
        .layers
        .upper
        .iter()
        .chain(&m.layers.lowers)
        .cloned()
        .collect();
    snapshot::take(m.path());
    for layer in dirs {
        for (name, script) in CHANGES {
            // Known to be absent.
            for absent in ["new", "nd", "renamed", "sub2", "old", "f2", "hid", "sub/n"] {
                let _ = m.stat(&format!("{name}/{absent}"));
            }
            others(&layer.join(name), script);
        }
        others(&layer, "echo top > $D/at-the-root; rm -r $D/emptied");
        let last = layer.file_name().unwrap().to_str().unwrap().to_owned();
        shows_soon(&m, &format!("{options} in {last}"));
    }
    m.lowers_were_changed();
}

#[test]
fn each_kind_is_heard_of_with_passthrough() {
    each_kind_of_change("udba=notify,open=passthrough");
}

#[test]
fn each_kind_is_heard_of_without_opens() {
    each_kind_of_change("udba=notify,open=none");
}

#[test]
fn each_kind_is_heard_of_with_cached_opens() {
    each_kind_of_change("udba=fsnotify,open=cached");
}

#[test]
fn each_kind_is_seen_after_a_while() {
    for way in ["passthrough", "none"] {
        each_kind_of_change(&format!("udba=reval,timeout=0.2,open={way}"));
    }
}
