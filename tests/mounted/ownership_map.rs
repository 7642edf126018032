//! `uidmapping=` and `gidmapping=`: as a plain directory looks through an idmapped mount.

use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::Path;

use crate::ownership::{assert_same, plain, sh};
use crate::process::device_of;
use crate::support::Stack;

/// As containers/storage passes it.
const PODMAN: &str = ",,volatile,uidmapping=:0:200000:5000,gidmapping=:0:200000:5000";

/// What is on disk before.
const BEFORE: &str = "
    mkdir -m 2775 d; mkdir -m 0777 open; echo lower > d/f; echo 2 > d/run; ln -s f d/s; mkfifo d/p; mknod d/c c 1 3
    chown 5:6 d d/f; chmod 4755 d/run; chown -h 7:8 d/s d/p; chown 9:9 d/run; chmod 6755 d/run
    setcap cap_net_raw+ep d/f; setfacl -m u:9:rw,g:10:r d/p; setfacl -d -m u:11:rwx open; chown 5:5 .
";

struct Idmapped<'a>(&'a Path);

impl<'a> Idmapped<'a> {
    fn new(from: &Path, at: &'a Path) -> Self {
        crate::idmap::mount(from, at, (0, 200_000, 5000));
        assert!(device_of(at).is_some());
        Self(at)
    }
}

impl Drop for Idmapped<'_> {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(self.0, rustix::mount::UnmountFlags::DETACH);
    }
}

/// Only the map's users, and root's chown and chmod: what the kernel says of idmapped mounts.
const WORK: &str = r#"
    tree
    getfattr -d -m security.capability -e hex d/f; getfacl -n d/p open
    as 200005 'mkdir a; cd a; echo x > f; mkfifo p; ln -s f l; chmod 2775 .; mkdir sub; touch sub/g; echo more >> ../d/f'
    as 200007 'umask 077; touch open/inherits; mkdir open/dir'
    getfacl -n open/inherits open/dir
    chown 200007:200008 a/f; chmod 4755 a/f; show a/f
    as 200007 'echo y >> a/f'; show a/f
    chmod 6775 d/run; as 200009 'chmod 6755 d/run; chgrp 200009 d/run'; show d/run
    chown -h 200001:200002 d/s; chown 200003 d/c; chgrp 200004 d
    try chown 5 a/f; try chgrp 5 a/f; try chown 205000:200000 a/f
    try as 1000 'touch open/no'; try as 205000 'mkdir open/no'; try as 1000 'ln -s x open/no'
    try as 200006 'echo no > d/run'; try as 200006 'chmod 777 d/run'
    setfacl -m u:200009:rw,g:200010:r a/f; getfacl -n a/f; try setfacl -m u:9:r a/f; try setfacl -m g:300000:r a/f
    try setcap cap_net_raw+ep a/f; getcap d/f
    as 200005 'ln a/sub/g a/hard; mv d/f d/moved; mv a/sub elsewhere'
    tree
"#;

#[test]
fn as_through_an_idmapped_mount() {
    let layers = Stack::new().lower([""; 0]).build();
    let (lower, scratch) = (layers.lowers[0].clone(), layers.scratch().to_owned());
    let (reference, at) = (plain(&scratch, "plain"), plain(&scratch, "idmapped"));
    sh(&lower, BEFORE);
    sh(&reference, BEFORE);
    chown(layers.upper_path(), Some(5), Some(5)).unwrap();
    let idmapped = Idmapped::new(&reference, &at);
    let expected = sh(&at, WORK);
    drop(idmapped);
    let mut m = layers.mount_with(PODMAN);
    let shown = sh(m.path(), WORK);
    // A moved directory or file of a lower is the same object for users; nothing else may differ.
    assert_same(&expected, &shown);
    m.remount();
    assert_same(&sh(&reference, "tree; getfacl -n a/f"), &{
        m.unmount();
        m.mount_again_with("");
        sh(m.path(), "tree; getfacl -n a/f")
    });
}

/// Root of the machine is in no map: what it prepares for a container gets the overflow id until
/// it is given to someone, as with fuse-overlayfs.
#[test]
fn root_prepares_from_outside_of_the_map() {
    let m = Stack::new()
        .lower(["etc/ | uid=0 gid=0", "far | uid=6000 gid=7"])
        .mount_with(PODMAN);
    let text = "show far; mkdir etc/new etc/new/dir; echo x > etc/new/dir/f; ln -s x etc/l
        show etc/new etc/new/dir/f etc/l; chown -R -h 200000:200000 etc; show etc/new/dir/f etc/l
        echo y > far; show far; chown 200001:200001 far; show far; rm far";
    let shown = sh(m.path(), text);
    let expected = "far 65534:200007 644 regular file 0:0\n\
        etc/new 65534:65534 755 directory 0:0\netc/new/dir/f 65534:65534 644 regular file 0:0\n\
        etc/l 65534:65534 777 symbolic link 0:0\netc/new/dir/f 200000:200000 644 regular file 0:0\n\
        etc/l 200000:200000 777 symbolic link 0:0\nfar 65534:200007 644 regular file 0:0\n\
        far 200001:200001 644 regular file 0:0\n";
    assert_eq!(shown, expected);
    let meta = fs::metadata(m.up("etc/new/dir/f")).unwrap();
    assert_eq!((meta.uid(), meta.gid()), (0, 0));
}

/// Where 65534 is somebody of the map, he must not own what is outside of it.
#[test]
fn what_is_outside_is_no_ones_where_the_overflow_id_is_taken() {
    let options = "uidmapping=100000:0:65536,gidmapping=100000:0:65536";
    let lower = [
        "far | uid=5 gid=5 mode=0600",
        "near | uid=165534 gid=165534 mode=0600",
    ];
    let layers = Stack::new().lower(lower).build();
    chown(layers.upper_path(), Some(100_000), Some(100_000)).unwrap();
    fs::set_permissions(
        layers.upper_path(),
        std::os::unix::fs::PermissionsExt::from_mode(0o777),
    )
    .unwrap();
    let m = layers.mount_with(options);
    let text =
        "show far near; as 65534 'cat near'; try as 65534 'cat far'; try as 65534 'chmod 777 far'
        try chmod 777 far; try rm far; as 1000 'touch x'; show x; chown 0:0 far; rm far";
    let expected = "far 65534:65534 600 regular file 0:0\nnear 65534:65534 600 regular file 0:0\nnear\
        as: Permission denied\nas: Value too large for defined data type\n\
        chmod: Value too large for defined data type\nrm: Value too large for defined data type\n\
        x 1000:1000 644 regular empty file 0:0\n";
    assert_eq!(sh(m.path(), text), expected);
    assert_eq!(fs::metadata(m.up("x")).unwrap().uid(), 101_000);
}

/// Whose a file is shows not, so giving it away never fails; the disk keeps the caller's ids.
#[test]
fn squashed() {
    let lower = ["f | uid=5 gid=6 mode=4755", "d/ | uid=7 gid=8 mode=0777"];
    let cases = [
        ("squash_to_root", "0:0"),
        ("squash_to_uid=1000,squash_to_gid=1001", "1000:1001"),
        ("squash_to_root,squash_to_uid=1000", "1000:0"),
        (
            "squash_to_uid=1000,uidmapping=0:200000:5000,gidmapping=0:200000:5000",
            "1000:200006",
        ),
    ];
    for (options, owner) in cases {
        let m = Stack::new().lower(lower).mount_with(options);
        let as_caller = if options.contains("mapping") {
            200_003
        } else {
            2003
        };
        sh(
            m.path(),
            &format!(
                "as {as_caller} ': > d/x; mkdir d/y; ln -s x d/l'; chown 200003:200004 f || chown 3:4 f"
            ),
        );
        for name in ["f", "d", "d/x", "d/y", "d/l"] {
            let meta = fs::symlink_metadata(m.p(name)).unwrap();
            let (uid, gid) = owner.split_once(':').unwrap();
            assert_eq!(meta.uid().to_string(), uid, "{options} {name}");
            if !options.contains("mapping") {
                assert_eq!(meta.gid().to_string(), gid, "{options} {name}");
            }
        }
        let real = fs::metadata(m.up("d/x")).unwrap().uid();
        assert_eq!(
            real,
            if options.contains("mapping") { 3 } else { 2003 },
            "{options}"
        );
    }
}

#[test]
fn without_acls() {
    let layers = Stack::new().lower(["d/f | mode=0640", "d/g"]).build();
    sh(
        &layers.lowers[0],
        "setfacl -m u:1000:rw d/f; setfacl -d -m u:1000:rwx d",
    );
    let m = layers.mount_with("noacl");
    let text = "try setfacl -m u:1001:r d/g; getfacl -n d/f; umask 027; echo > d/new; mkdir d/dir; echo > d/dir/x
        show d/new d/dir d/dir/x d/f; try as 1000 'cat d/f'; getfattr -d -m - d/f d
        rm d/g; echo > d/g; echo >> d/f; show d/g";
    let expected = "setfacl: Operation not supported\n\
        # file: d/f\n# owner: 0\n# group: 0\nuser::rw-\ngroup::rw-\nother::---\n\n\
        d/new 0:0 640 regular file 0:0\nd/dir 0:0 750 directory 0:0\nd/dir/x 0:0 640 regular file 0:0\n\
        d/f 0:0 660 regular file 0:0\nas: Permission denied\nd/g 0:0 640 regular file 0:0\n";
    assert_eq!(sh(m.path(), text), expected);
    // The disk keeps what was there, for a mount that shows it.
    assert!(
        xattr::get(m.up("d/f"), "system.posix_acl_access")
            .unwrap()
            .is_some()
    );
    assert!(
        xattr::get(m.up("d/new"), "system.posix_acl_access")
            .unwrap()
            .is_none()
    );
}

#[test]
fn link_counts_of_directories() {
    let m = Stack::new()
        .upper(["u/", "u/a/", "m/", "m/a/"])
        .lower(["l/a/", "m/b/", "g", "g~f"])
        .mount_with("static_nlink");
    for name in ["", "u", "l", "m", "u/a"] {
        assert_eq!(fs::metadata(m.p(name)).unwrap().nlink(), 1, "{name}");
    }
    assert_eq!(fs::metadata(m.p("f")).unwrap().nlink(), 2);
}

#[test]
fn what_is_no_map_is_refused() {
    let layers = Stack::new().lower(["f"]).build();
    for (bad, words) in [
        ("uidmapping=0:1", "uidmapping"),
        ("gidmapping=0:0:5:3:9:5", "overlap"),
        ("uidmapping=4294967290:0:10", "uidmapping"),
        ("squash_to_uid=x", "squash_to_uid"),
        ("xattr_permissions=3", "xattr_permissions"),
    ] {
        let message = layers.refused(&layers.options(bad));
        assert!(message.contains(words), "{bad}: {message}");
    }
}
