//! `unionfs convert`: there and back, read by the programs that it is for.

use std::os::unix::fs::FileTypeExt;
use std::process::Command;

use crate::process::{finish, unionfs};
use crate::support::{CHANGES, Place, Tree, assert_same, tree};

/// The upper's marks, one to a line.
const MARKS: &str = r"
cd u
find . -name '.wh.*' | sed 's/^/file /' | sort
find . -type c | while read -r f; do test $(stat -c %t:%T $f) != 0:0 || echo device $f; done | sort
find . -type d | while read -r d; do getfattr -h --only-values -m overlay.opaque -d $d 2> /dev/null | grep -q y && echo opaque $d || :; done | sort
find . -name '*_HIDDEN~' | sort
";

/// An upper without pseudo-links, and what its mount shows.
fn upper(more: &'static str) -> (Place, Tree) {
    let (place, seen) = Place::changed(more);
    let lowers = place.lowers().into_string().unwrap();
    place.good(&["plink", "flush", "-o", &lowers, "u"]);
    (place, seen)
}

fn seen(place: &Place) -> Tree {
    place.mount();
    let seen = tree(&place.path("m"));
    place.unmount();
    seen
}

#[test]
fn there_and_back() {
    let (place, before) = upper("");
    place.shell("cp -a u original");
    let original = tree(&place.path("original"));
    let marks = place.shell(MARKS);
    for to in ["overlay", "fuse-overlayfs", "aufs"] {
        place.good(&["convert", "--to", to, "u"]);
        assert_same(&before, &seen(&place));
        let once = place.shell(MARKS);
        // Done already: nothing changes.
        place.good(&["convert", "--to", to, "u"]);
        assert_eq!(place.shell(MARKS), once);
    }
    assert_eq!(place.shell(MARKS), marks);
    // The marks are other inodes; nothing else is.
    let without = |mut tree: Tree| {
        tree.retain(|path, _| !path.to_str().is_some_and(|path| path.contains(".wh.")));
        tree
    };
    assert_same(&without(original), &without(tree(&place.path("u"))));
    // unionfs-fuse keeps its marks where ours do not look.
    place.good(&["convert", "--to", "unionfs-fuse", "u"]);
    assert_eq!(
        place.shell(MARKS),
        "./.unionfs/d/b_HIDDEN~\n./.unionfs/gone_HIDDEN~\n./.unionfs/kind_HIDDEN~\n\
         ./.unionfs/moved_HIDDEN~\n./.unionfs/whole_HIDDEN~\n"
    );
    place.good(&["convert", "--to", "aufs", "u"]);
    assert_eq!(place.shell(MARKS), marks);
    assert_same(&before, &seen(&place));
}

/// The kernel's overlayfs mounts the result and shows the same.
#[test]
fn the_kernel_shows_the_same() {
    for more in ["", ",whiteout=overlay"] {
        let (place, before) = upper(more);
        place.good(&["convert", "--to", "overlay", "u"]);
        place.shell("mount -t overlay -o lowerdir=l1:l2,upperdir=u,workdir=w none m");
        let shown = tree(&place.path("m"));
        place.shell("umount m");
        assert_same(&before, &shown);
    }
}

#[test]
fn fuse_overlayfs_shows_the_same() {
    let (place, before) = upper("");
    place.good(&["convert", "--to", "fuse-overlayfs", "u"]);
    place.shell("fuse-overlayfs -o lowerdir=l1:l2,upperdir=u,workdir=w m");
    let shown = tree(&place.path("m"));
    place.shell("umount m");
    let names = |tree: &Tree| tree.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&before), names(&shown));
}

/// What the kernel wrote, in the form of aufs.
#[test]
fn from_the_kernel() {
    let place = Place::new("");
    place.shell("mount -t overlay -o lowerdir=l1:l2,upperdir=u,workdir=w none m");
    place.shell(CHANGES);
    let before = tree(&place.path("m"));
    place.shell("umount m");
    place.good(&["convert", "--to", "aufs", "u"]);
    for entry in std::fs::read_dir(place.path("u")).unwrap() {
        let entry = entry.unwrap();
        assert!(!entry.file_type().unwrap().is_char_device() || entry.file_name() == "null");
    }
    place.shell("rm -rf w; mkdir w");
    // Names that the kernel has parted are told by the record of their origin, which ours do not read.
    let without = |tree: &Tree| {
        let mut tree = tree.clone();
        tree.retain(|path, _| {
            !["f", "f2", "d/f3"]
                .map(std::path::Path::new)
                .contains(&&**path)
        });
        tree
    };
    assert_same(&without(&before), &without(&seen(&place)));
}

/// unionfs-fuse hides names of directories that its own branch does not have; no other form can.
#[test]
fn what_has_no_place_is_not_forgotten() {
    let place = Place::new("");
    place.shell("mkdir -p u/.unionfs/d; : > u/.unionfs/d/b_HIDDEN~; rm -rf u/d");
    let told = place.refused(&["convert", "--to", "aufs", "u"]);
    assert!(told.contains("d: is not in this layer"), "{told}");
    assert_eq!(place.shell("ls u/.unionfs/d"), "b_HIDDEN~\n");
}

/// Killed before any of its changes, it leaves a layer that shows the same, and goes on from there.
#[test]
fn killed_at_any_step() {
    let (place, before) = upper("");
    place.shell("mv u original");
    for to in ["overlay", "aufs"] {
        let kills: u32 = CALLS
            .iter()
            .map(|call| kill_at(&place, &before, to, call))
            .sum();
        assert!(kills > 10, "{to}: {kills}");
        place.shell("rm -rf original; cp -a u original");
    }
}

/// What changes a layer; strace counts each of them by itself.
const CALLS: [&str; 10] = [
    "mknodat",
    "mkdirat",
    "renameat",
    "renameat2",
    "linkat",
    "unlinkat",
    "setxattr",
    "fsetxattr",
    "removexattr",
    "fremovexattr",
];

/// The same for the marks of unionfs-fuse, which only the end of the conversion shows.
#[test]
fn killed_on_the_way_to_unionfs_fuse_and_back() {
    let (place, before) = upper("");
    let marks = place.shell(MARKS);
    place.shell("mv u original");
    for to in ["unionfs-fuse", "aufs"] {
        let mut kills = 0;
        for call in CALLS {
            for step in 1..200 {
                place.shell("rm -rf u; cp -a original u");
                let done = is_killed(&place, to, call, step);
                place.good(&["convert", "--to", to, "u"]);
                place.good(&["convert", "--to", "aufs", "u"]);
                assert_eq!(place.shell(MARKS), marks, "{to} {call} {step}");
                assert_eq!(place.shell("ls -A u | grep -c '^.unionfs' || :"), "0\n");
                if !done {
                    break;
                }
                kills += 1;
            }
        }
        assert!(kills > 10, "{to}: {kills}");
        place.shell("rm -rf u; cp -a original u");
        place.good(&["convert", "--to", to, "u"]);
        place.shell("rm -rf original; cp -a u original");
    }
    assert_same(&before, &seen(&place));
}

fn is_killed(place: &Place, to: &str, call: &str, step: u32) -> bool {
    let text = format!(
        "timeout 20 strace -f -o /dev/null -e trace={call} \
         -e inject={call}:signal=KILL:when={step} $unionfs convert --to {to} u \
         && echo 0 || echo killed"
    );
    place.shell(&format!("({text}) 2> /dev/null")) != "0\n"
}

/// Kills the conversion at its first such call, the second, and so on; returns how many there are.
fn kill_at(place: &Place, before: &Tree, to: &str, call: &str) -> u32 {
    for step in 1..200 {
        place.shell("rm -rf u; cp -a original u");
        let killed = is_killed(place, to, call, step);
        assert_same(before, &seen(place));
        if !killed {
            return step - 1;
        }
        place.good(&["convert", "--to", to, "u"]);
        assert_same(before, &seen(place));
    }
    panic!("it never ends");
}

#[test]
fn what_cannot_be_said_is_refused() {
    let place = Place::new("");
    place.mount();
    place.shell("echo x >> m/f");
    let told = place.refused(&["convert", "--to", "overlay", "u"]);
    assert!(told.contains("in use by a mount"), "{told}");
    place.unmount();
    let told = place.refused(&["convert", "--to", "overlay", "u"]);
    assert!(told.contains("plink flush"), "{told}");
    let place = Place::new(",whiteout=overlay,rename_dir=redirect,metacopy=on");
    place.mount();
    place.shell("mv m/moved m/new; chmod 600 m/large");
    place.unmount();
    for to in ["aufs", "fuse-overlayfs", "unionfs-fuse"] {
        let told = place.refused(&["convert", "--to", to, "u"]);
        assert!(told.contains("has its contents in a lower"), "{told}");
    }
    place.good(&["convert", "--to", "overlay", "u"]);
    let place = Place::new("");
    let long = "n".repeat(249);
    place.shell(&format!("mkdir layer; : > layer/.wh.{long}"));
    let told = place.refused(&["convert", "--to", "unionfs-fuse", "layer"]);
    assert!(told.contains("too long a name"), "{told}");
    assert_eq!(place.shell("ls -A layer"), format!(".wh.{long}\n"));
    let longer = "m".repeat(253);
    place.shell(&format!("mknod layer/{longer} c 0 0"));
    place.good(&["convert", "--to", "aufs", "layer"]);
    assert_eq!(place.shell("find layer -type c | wc -l"), "1\n");
}

/// As an ordinary user, on what is his: whiteout devices need no privilege.
#[test]
fn by_an_ordinary_user() {
    let place = Place::new("");
    place.shell("mkdir -p mine/d; : > mine/.wh.x; : > mine/d/.wh..wh..opq; chown -R 1:1 mine");
    place.shell(&format!("cp {} program; chmod 755 program", unionfs()));
    let run = |to: &str| {
        let mut command = Command::new("timeout");
        let user = ["20", "setpriv", "--reuid=1", "--regid=1", "--clear-groups"];
        command
            .args(user)
            .args(["./program", "convert", "--to", to, "mine"]);
        finish(command.current_dir(place.path(".")))
    };
    let told = "unionfs: attributes trusted.* are for root to see: a layer that root has mounted is for \
                root to convert\n";
    assert_eq!(run("unionfs-fuse").stderr, told);
    assert_eq!(
        place.shell("cd mine; find . -type f | sort"),
        "./.unionfs/d_HIDDEN~\n./.unionfs/x_HIDDEN~\n"
    );
    assert_eq!(run("aufs").stderr, told);
    assert_eq!(
        place.shell("cd mine; find . | sort"),
        ".\n./.wh..wh.aufs\n./.wh.x\n./d\n./d/.wh..wh..opq\n"
    );
    let outcome = run("overlay");
    assert!(outcome.status.success(), "{}", outcome.stderr);
    assert_eq!(
        place.shell("cd mine; find . -type c; getfattr --only-values -n user.overlay.opaque d"),
        "./x\ny"
    );
}
