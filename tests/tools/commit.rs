//! `unionfs commit`: the directory below shows what the union did; killed at any step, the union shows
//! the same and the command goes on.

use std::path::Path;

use crate::support::{CHANGES, Place, Tree, assert_same, tree};

/// What a lower shows by itself, which the union of it has to have shown.
fn plain(place: &Place, name: &str) -> Tree {
    tree(&place.path(name))
}

/// Link counts are those of names in each layer until all are in one.
fn without_links(tree: &Tree) -> Tree {
    let strip = |facts: &String| {
        let words = facts.split(' ');
        words
            .filter(|w| w.parse::<u64>().is_err())
            .collect::<Vec<_>>()
            .join(" ")
    };
    tree.iter()
        .map(|(path, facts)| (path.clone(), strip(facts)))
        .collect()
}

/// Both lowers as one directory `l1`, its upper with all changes, and what the mount showed. `prepare` is
/// done before.
fn merged(more: &'static str, prepare: &str) -> (Place, Tree) {
    let place = Place::new("");
    place.shell("cp -a l1/. l2/; rm -rf l1; mv l2 l1; mkdir l2");
    place.shell(prepare);
    place.shell(&format!(
        "$unionfs -o lowerdir=l1,upperdir=u,workdir=w{more} m; {CHANGES}\ncd ..; umount m"
    ));
    let seen = seen(&place);
    (place, seen)
}

/// What the union of `u` and `l1` shows.
fn seen(place: &Place) -> Tree {
    place.shell("$unionfs -o lowerdir=l1,upperdir=u,workdir=w m");
    let seen = tree(&place.path("m"));
    place.shell("umount m");
    seen
}

fn is_empty(dir: &Path) -> bool {
    std::fs::read_dir(dir).unwrap().next().is_none()
}

const OPTIONS: [&str; 4] = [
    "",
    ",whiteout=overlay",
    ",rename_dir=redirect,metacopy=on",
    ",whiteout=overlay,rename_dir=redirect,metacopy=on",
];

#[test]
fn the_lower_shows_what_the_union_did() {
    for more in OPTIONS {
        let (place, before) = merged(more, "");
        place.good(&["commit", "u", "l1"]);
        assert_same(&before, &plain(&place, "l1"));
        assert!(is_empty(&place.path("u")), "{more}");
        assert_same(&before, &seen(&place));
        // There is nothing left to do.
        place.good(&["commit", "u", "l1"]);
        assert_same(&before, &plain(&place, "l1"));
    }
}

const FAR: &str =
    "mkdir far; mount -t tmpfs none far; rmdir u w; mkdir far/u far/w; ln -s far/u far/w .";

/// The upper is on another filesystem: everything is copied.
#[test]
fn across_filesystems() {
    for more in OPTIONS {
        let (place, before) = merged(more, FAR);
        let told = place.run(&["commit", "--json", "u", "l1"]);
        let shown = (told.stdout.contains("\"copied\":"), told.status.success());
        let (left, after) = (is_empty(&place.path("u")), plain(&place, "l1"));
        place.shell("umount far");
        assert_eq!(shown, (true, true), "{} {}", told.stdout, told.stderr);
        assert!(
            left && !told.stdout.contains("\"copied\":0,"),
            "{}",
            told.stdout
        );
        assert_same(&before, &after);
        let sparse = place
            .shell("stat -c %b l1/sparse")
            .trim()
            .parse::<u64>()
            .unwrap();
        assert!(sparse < 1000, "{sparse} blocks");
    }
}

/// With further layers below, the lower goes on hiding what is in them.
#[test]
fn into_a_layer_in_the_middle() {
    for more in OPTIONS {
        let (place, before) = Place::changed(more);
        place.good(&["commit", "u", "l1", "--below", "l2"]);
        assert!(is_empty(&place.path("u")));
        place.mount();
        let after = tree(&place.path("m"));
        place.unmount();
        assert_same(&without_links(&before), &without_links(&after));
        let told = place.refused(&["commit", "u", "l1"]);
        assert!(told.contains("--below"), "{told}");
    }
}
