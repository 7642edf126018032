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

/// Writes an image of two layers: what the lowers show, and the layer on it.
const COMPOSE: &str = r#"
import hashlib, json, tarfile, io
def blob(data):
    return "sha256:" + hashlib.sha256(data).hexdigest(), data
layers = [blob(open(name, "rb").read()) for name in ("base.tar", "layer.tar")]
config = blob(json.dumps({"architecture": "amd64", "os": "linux", "config": {},
    "rootfs": {"type": "layers", "diff_ids": [digest for digest, _ in layers]}}).encode())
def told(kind, item):
    return {"mediaType": "application/vnd.oci.image." + kind, "digest": item[0], "size": len(item[1])}
manifest = blob(json.dumps({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
    "config": told("config.v1+json", config), "layers": [told("layer.v1.tar", l) for l in layers]}).encode())
index = json.dumps({"schemaVersion": 2, "manifests": [told("manifest.v1+json", manifest)]}).encode()
with tarfile.open("image.tar", "w") as out:
    files = [("oci-layout", json.dumps({"imageLayoutVersion": "1.0.0"}).encode()), ("index.json", index)]
    files += [("blobs/sha256/" + d[7:], data) for d, data in layers + [config, manifest]]
    for name, data in files:
        item = tarfile.TarInfo(name)
        item.size = len(data)
        out.addfile(item, io.BytesIO(data))
"#;

/// Our layer on a base: engines carry out its whiteouts and opaque marks, and have linked files,
/// attributes, capabilities, devices and holes as the mount had them.
fn shown_by_engines(more: &'static str) {
    let (place, seen) = Place::changed(more);
    let lowers = place.lowers().into_string().unwrap();
    place.good(&["diff", "-o", &lowers, "--tar", "layer.tar", "u"]);
    place.plain_copy("base");
    place.shell(&format!(
        "tar -C base --xattrs --xattrs-include='*' --acls --numeric-owner --format=posix -cf base.tar .
         python3 -c '{COMPOSE}'"
    ));
    let store = "--root $PWD/store --runroot $PWD/run --storage-driver";
    let facts = |tree: &crate::support::Tree| {
        let mut tree = tree.clone();
        for facts in tree.values_mut() {
            // They know no time before 1970, keep whole seconds, and have no ACLs in layers.
            let (before, after) = facts.split_once('.').unwrap();
            let (before, time) = before.rsplit_once(' ').unwrap();
            let time = time.parse::<i64>().unwrap().max(0);
            let attrs = after
                .get(9..)
                .unwrap_or_default()
                .split(" \"system.posix_acl_");
            let attrs: Vec<&str> = attrs
                .enumerate()
                .map(|(i, part)| match i {
                    0 => part,
                    _ => part.split_once("])").unwrap().1,
                })
                .collect();
            *facts = format!("{before} {time} {}", attrs.concat());
        }
        tree
    };
    for driver in ["vfs", "overlay"] {
        let podman = format!("podman {store} {driver}");
        place.shell(&format!(
            "{podman} load -q -i image.tar > loaded; set -- $({podman} images -q --no-trunc)
             mnt=$({podman} image mount $1); rm -rf shown; mkdir shown; cp -a $mnt/. shown/
             {podman} image umount $1 > /dev/null; {podman} rmi -af > /dev/null
             umount store/{driver} store 2> /dev/null || :; rm -rf store run"
        ));
        assert_same(&facts(&seen), &facts(&tree(&place.path("shown"))));
    }
    let buildah = format!("buildah {store} vfs");
    place.shell(&format!(
        "name=$({buildah} from oci-archive:image.tar); mnt=$({buildah} mount $name); rm -rf shown; mkdir shown
         cp -a $mnt/. shown/; {buildah} rm $name > /dev/null; {buildah} rmi -af > /dev/null
         umount store/vfs store 2> /dev/null || :"
    ));
    assert_same(&facts(&seen), &facts(&tree(&place.path("shown"))));
}

#[test]
fn podman_and_buildah_show_what_the_mount_showed() {
    shown_by_engines("");
}
