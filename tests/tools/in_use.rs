//! Layers that a mount of any kind uses are left alone.

use crate::support::Place;

/// Mounts with the layers l1, l2 and u on m; they take no lock of ours.
const MOUNTS: [(&str, &str); 4] = [
    (
        "overlay",
        "mount -t overlay -o lowerdir=$PWD/l1:$PWD/l2,upperdir=$PWD/u,workdir=$PWD/w none m",
    ),
    (
        "fuse-overlayfs",
        "fuse-overlayfs -o lowerdir=$PWD/l1:$PWD/l2,upperdir=$PWD/u,workdir=$PWD/w m",
    ),
    (
        "unionfs",
        "/usr/local/lib/unionfs-fuse/usr/bin/unionfs -o cow u=RW:l1=RO:l2=RO m",
    ),
    (
        "unionfs",
        "$unionfs -o lowerdir=l1:l2,upperdir=u,workdir=w m",
    ),
];

#[test]
fn in_use_by_mounts_of_all_kinds() {
    let place = Place::new("");
    place.shell("tar -C l1 -cf t.tar .");
    for (who, mount) in MOUNTS {
        place.shell(mount);
        let mut told = Vec::new();
        for words in [
            &["check", "u"][..],
            &["check", "--repair", "u"],
            &["convert", "--to", "overlay", "u"],
            &["convert", "--to", "overlay", "l2"],
            &["apply", "t.tar", "u"],
            &["apply", "--layer", "t.tar", "l1"],
        ] {
            told.push((words, place.refused(words)));
        }
        place.shell("umount m");
        for (words, told) in told {
            assert!(
                told.contains("in use by a mount"),
                "{mount}: {words:?}: {told}"
            );
            assert!(told.contains(who), "{told}");
        }
        // A server that is just ending is waited for.
        place.good(&["convert", "--to", "overlay", "u"]);
        place.shell("rm -rf u w; mkdir u w");
    }
}

/// Names that the kernel does not write as they are, and a namespace that is not ours.
#[test]
fn in_use_by_overlayfs_elsewhere() {
    let place = Place::new("");
    place.shell("mkdir -p 'a dir/u' 'a dir/w' 'a dir/l'");
    place.shell("mount -t overlay -o \"lowerdir=$PWD/l1:$PWD/a dir/l,upperdir=$PWD/a dir/u,workdir=$PWD/a dir/w\" none m");
    let upper = place.refused(&["check", "--repair", "a dir/u"]);
    let lower = place.refused(&["convert", "--to", "aufs", "a dir/l"]);
    let look = place.run(&["check", "a dir/l"]);
    place.shell("umount m");
    assert!(upper.contains("in use by a mount (overlay)"), "{upper}");
    assert!(lower.contains("in use by a mount (overlay)"), "{lower}");
    assert!(look.status.success(), "{}", look.stderr);
    let text = "mount -t overlay -o lowerdir=$PWD/l1,upperdir=$PWD/u,workdir=$PWD/w none m; echo; exec sleep 60";
    let text = format!(
        "mkfifo ready; unshare -m sh -c '{text}' > ready & read -r _ < ready
         $unionfs convert --to aufs u 2>&1 && echo done || :; kill $!"
    );
    let told = place.shell(&text);
    assert!(told.contains("in use by a mount (overlay)"), "{told}");
}
