//! What container engines make of our layers and images.

use crate::support::{Place, assert_same, tree};

/// A base image of the lowers, and on it our layer: the engine shows what the mount showed.
#[test]
fn podman_loads_an_image() {
    let (place, seen) = Place::changed("");
    let lowers = place.lowers().into_string().unwrap();
    place.good(&["diff", "-o", &lowers, "--oci", "image.tar", "u"]);
    let podman = "podman --root $PWD/store --runroot $PWD/run --storage-driver vfs";
    place.shell(&format!("{podman} load -q -i image.tar > loaded"));
    // The layer alone: what it adds is there.
    let shown = place.shell(&format!(
        "set -- $({podman} images -q --no-trunc); \
         mnt=$({podman} image mount $1); mkdir shown; cp -a $mnt/. shown/; {podman} image umount $1 > /dev/null"
    ));
    assert_eq!(shown, "");
    let loaded = tree(&place.path("shown"));
    for path in [
        "new", "new2", "null", "fifo", "sparse", "mod", "f", "f2", "longlink", "moved2/r",
    ] {
        let path = std::path::Path::new(path);
        // It knows no time before 1970, and keeps whole seconds.
        let facts = |tree: &crate::support::Tree| {
            let facts = tree.get(path).unwrap_or_else(|| panic!("{path:?}"));
            let facts = facts.replace("-631152000.", "0.");
            let (before, after) = facts.split_once('.').unwrap();
            format!("{before} {}", after.get(10..).unwrap())
        };
        assert_eq!(facts(&loaded), facts(&seen), "{path:?}");
    }
    place.shell(&format!(
        "{podman} rmi -af > /dev/null; umount store store/vfs 2> /dev/null || :"
    ));
}

/// GNU tar takes what has no whiteouts for a plain archive.
#[test]
fn tar_unpacks_a_layer() {
    let (place, seen) = Place::changed("");
    let lowers = place.lowers().into_string().unwrap();
    place.good(&["diff", "-o", &lowers, "--tar", "layer.tar", "u"]);
    place.shell(
        "mkdir tarred; tar -C tarred --xattrs --xattrs-include='*' --numeric-owner -xpf layer.tar; \
         find tarred -name '.wh.*' -delete",
    );
    let found = tree(&place.path("tarred"));
    let mut expected = seen.clone();
    // Only what is in the layer, and no directory: removing the whiteouts changed their times.
    expected.retain(|path, facts| found.contains_key(path) && !facts.starts_with('4'));
    let mut found = found;
    found.retain(|_, facts| !facts.starts_with('4'));
    assert!(found.len() > 15);
    assert_same(&expected, &found);
}
