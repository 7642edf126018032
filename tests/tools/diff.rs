//! `unionfs diff`: lists, JSON and archives.

use std::fs;

use crate::support::{Place, assert_same, good, tree};

const LIST: &str = "\
M\td
D\td/b
M\td/f3
A\tdisk
A\tempty
M\tf
M\tf2
A\tfifo
D\tgone
A\tgone
A\tgone/n
M\tkeep
M\tkind
A\tkind/i
M\tlink
A\tlonglink
M\tmod
D\tmoved
A\tmoved2
A\tmoved2/r
A\tnew
A\tnew2
A\tNAME
A\tnon\u{fffd}utf
A\tnull
M\tother
A\tsparse
D\twhole
";

fn list() -> String {
    // Only the names in it changed.
    let list = LIST.replace("M\td\n", "");
    list.replace("NAME", &"n".repeat(240))
}

/// A layer holds all of the changes: unpacked onto a copy of the lowers it makes of it what the mount
/// showed.
fn round_trip(more: &'static str) {
    let (place, seen) = Place::changed(more);
    let lowers = place.lowers().into_string().unwrap();
    place.good(&["diff", "-o", &lowers, "--tar", "layer.tar", "u"]);
    let copy = place.plain_copy("copy");
    assert!(tree(&copy) != seen);
    place.good(&["apply", "layer.tar", "copy"]);
    assert_same(&seen, &tree(&copy));
    // A second time it changes nothing.
    place.good(&["apply", "layer.tar", "copy"]);
    assert_same(&seen, &tree(&copy));
    // The holes are not in the archive, and come back.
    assert!(fs::metadata(place.path("layer.tar")).unwrap().len() < 2 << 20);
    let blocks = |path| std::os::unix::fs::MetadataExt::blocks(&fs::metadata(path).unwrap());
    assert!(blocks(copy.join("sparse")) < 1000 && blocks(copy.join("empty")) < 100);
    assert_eq!(place.good(&["diff", "-o", &lowers, "u"]), list());
    // With its whiteouts kept it is an upper like the one it came from.
    place.shell("mkdir kept");
    place.good(&["apply", "--layer", "layer.tar", "kept"]);
    place.shell("rm -rf u w; mv kept u; mkdir w");
    place.mount();
    let again = tree(&place.path("m"));
    place.unmount();
    assert_same(&seen, &again);
}

#[test]
fn round_trip_of_the_aufs_form() {
    round_trip("");
}

#[test]
fn round_trip_of_the_overlay_form() {
    round_trip(",whiteout=overlay");
}

#[test]
fn round_trip_of_redirects_and_metacopies() {
    round_trip(",whiteout=overlay,rename_dir=redirect,metacopy=on");
}

#[test]
fn a_running_mount_tells_the_same() {
    let place = Place::new("");
    place.mount();
    place.shell(crate::support::CHANGES);
    assert_eq!(place.good(&["diff", "m"]), list());
    place.good(&["diff", "--tar", "live.tar", "m"]);
    place.unmount();
    let lowers = place.lowers().into_string().unwrap();
    place.good(&["diff", "-o", &lowers, "--tar", "later.tar", "u"]);
    place.shell("cmp live.tar later.tar");
}

#[test]
fn json_says_what_the_list_says() {
    let (place, _) = Place::changed("");
    let lowers = place.lowers().into_string().unwrap();
    let text = place.good(&["diff", "--json", "-o", &lowers, "u"]);
    let items: serde_json::Value = serde_json::from_str(&text).unwrap();
    let items = items.as_array().unwrap();
    let lines = items.iter().map(|item| {
        let field = |name: &str| item[name].as_str().unwrap().to_owned();
        format!("{}\t{}\n", field("change"), field("path"))
    });
    assert_eq!(lines.collect::<String>(), list());
    let find = |path: &str| {
        let mut found = items.iter().filter(|i| i["path"] == path);
        found.next_back().unwrap().to_string()
    };
    assert_eq!(
        find("mod"),
        r#"{"change":"M","gid":0,"mode":"4755","path":"mod","size":4,"type":"file","uid":0}"#
    );
    assert_eq!(
        find("gone"),
        r#"{"change":"A","gid":0,"mode":"0755","opaque":true,"path":"gone","type":"directory","uid":0}"#
    );
    assert!(find("non\u{fffd}utf").contains(r#""bytes":[110,111,110,255,117,116,102]"#));
    assert_eq!(
        place
            .good(&["diff", "--json", "-o", "lowerdir=l1", "l2/other"])
            .lines()
            .count(),
        3
    );
    place.shell("mkdir none");
    assert_eq!(
        place.good(&["diff", "--json", "-o", &lowers, "none"]),
        "[]\n"
    );
}

#[test]
fn archives_are_reproducible() {
    let (place, _) = Place::changed("");
    let lowers = place.lowers().into_string().unwrap();
    for (form, file) in [
        ("--tar", "1"),
        ("--tar", "2"),
        ("--oci", "3"),
        ("--oci", "4"),
    ] {
        let words = ["diff", "-o", &lowers, form, file, "u"];
        good(&place.run_with(&words, &[("SOURCE_DATE_EPOCH", "1000000000")]));
    }
    place.shell("cmp 1 2; cmp 3 4; ! cmp -s 1 3");
    // Nothing is later than that; what is earlier stays.
    let times = place.shell(
        "tar --full-time -tvf 1 | grep -v '^-r--r--r--' | \
         grep -oE ' (19|20)[0-9]{2}-[0-9]{2}-[0-9]{2} ' | sort -u",
    );
    assert_eq!(times, " 1950-01-01 \n 2001-09-09 \n");
    let wrong = place.run_with(
        &["diff", "--tar", "5", "u", "-o", &lowers],
        &[("SOURCE_DATE_EPOCH", "soon")],
    );
    assert_eq!(
        wrong.stderr,
        "unionfs: SOURCE_DATE_EPOCH: not a number of seconds\n"
    );
    // Two copies of an upper are told alike, whatever their inode numbers.
    place.shell("mkdir v; for i in 1 2 3; do echo $i > v/$i; done; cp -a v v2");
    for (dir, file) in [("v", "6"), ("v2", "7")] {
        place.good(&["diff", "--tar", file, dir]);
    }
    place.shell("cmp 6 7");
}

#[test]
fn an_upper_alone() {
    let place = Place::new("");
    place.mount();
    place.shell("echo x >> m/mod; rm m/d/b; mkdir m/n; echo y > m/n/y; mv m/kind m/n/kind");
    place.unmount();
    // What has the record of its origin was there before.
    assert_eq!(
        place.good(&["diff", "u"]),
        "M\td\nD\td/b\nD\tkind\nM\tmod\nA\tn\nM\tn/kind\nA\tn/y\n"
    );
    place.mount();
    place.shell("echo x >> m/f");
    place.unmount();
    let needed = place.refused(&["diff", "--tar", "t", "u"]);
    assert!(needed.contains("pseudo-links"), "{needed}");
    let lowers = place.lowers().into_string().unwrap();
    place.good(&["plink", "flush", "-o", &lowers, "u"]);
    place.good(&["diff", "--tar", "t", "u"]);
    place.shell("tar -tvf t | grep 'link to d/f3' | wc -l | grep -x 2");
}

#[test]
fn linked_names_as_json() {
    let place = Place::new("");
    place.mount();
    place.shell("printf x >> m/f; mv m/f2 \"m/a$(printf '\\377')\"");
    let live = place.good(&["plink", "list", "--json", "m"]);
    place.unmount();
    let lowers = place.lowers().into_string().unwrap();
    let upper = place.good(&["plink", "list", "--json", "-o", &lowers, "u"]);
    assert_eq!(live, upper);
    let items: serde_json::Value = serde_json::from_str(&upper).unwrap();
    let items = items.as_array().unwrap();
    let paths: Vec<&str> = items.iter().map(|i| i["path"].as_str().unwrap()).collect();
    assert_eq!(paths, ["a\u{fffd}", "d/f3", "f"]);
    assert_eq!(items[0]["bytes"].to_string(), "[97,255]");
    assert!(items.iter().all(|i| i["ino"] == items[0]["ino"]));
    assert_eq!(place.good(&["plink", "list", "--json", "w"]), "[]\n");
}

#[test]
fn contents_elsewhere_need_the_lowers() {
    let place = Place::new(",whiteout=overlay,rename_dir=redirect,metacopy=on");
    place.mount();
    place.shell("mv m/moved m/elsewhere");
    place.unmount();
    let needed = place.refused(&["diff", "u"]);
    assert!(
        needed.contains("elsewhere: has its contents in a lower"),
        "{needed}"
    );
    let place = Place::new(",whiteout=overlay,rename_dir=redirect,metacopy=on");
    place.mount();
    place.shell("chmod 600 m/large");
    place.unmount();
    let needed = place.refused(&["diff", "--json", "u"]);
    assert!(
        needed.contains("large: has its contents in a lower"),
        "{needed}"
    );
}

/// The same upper, written and read by the kernel's overlayfs.
#[test]
fn uppers_of_the_kernel() {
    let place = Place::new("");
    place.shell("mount -t overlay -o lowerdir=l1:l2,upperdir=u,workdir=w none m");
    place.shell(crate::support::CHANGES);
    let seen = tree(&place.path("m"));
    place.shell("umount m");
    let lowers = place.lowers().into_string().unwrap();
    place.good(&["diff", "-o", &lowers, "--tar", "layer.tar", "u"]);
    let copy = place.plain_copy("copy");
    place.good(&["apply", "layer.tar", "copy"]);
    // The kernel parts the names of a linked file, and so does a layer of it.
    let without = |tree: &crate::support::Tree| {
        let names = ["f", "f2", "d/f3"].map(std::path::PathBuf::from);
        let mut tree = tree.clone();
        tree.retain(|path, _| !names.contains(path));
        tree
    };
    assert_same(&without(&seen), &without(&tree(&copy)));
    assert_eq!(place.shell("cat copy/f"), "linked\nmore\n");
}

#[test]
fn what_is_wrong_is_told() {
    let place = Place::new("");
    assert!(
        place
            .refused(&["diff", "nowhere"])
            .contains("nowhere: No such file")
    );
    let full = place.refused(&["diff", "--tar", "/dev/full", "l1"]);
    assert!(full.contains("No space left"), "{full}");
    place.shell(&format!("mknod l1/{} c 0 0", "n".repeat(253)));
    let long = place.refused(&["diff", "--tar", "t", "l1"]);
    assert!(long.contains("no place in a layer archive"), "{long}");
    // And what was written before is no whole archive.
    place.shell("! $unionfs diff --tar - l1 > t 2> /dev/null");
    assert!(place.refused(&["apply", "t", "m"]).contains("cut off"));
}
