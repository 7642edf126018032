//! Owners together with others: stores shared with fuse-overlayfs, mounts in a user namespace.

use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::ownership::{assert_same, plain, sh};
use crate::process::{device_of, finish, unionfs, wait_for};
use crate::support::{Layers, Stack};
use crate::user::DeviceMode;

/// A mount by fuse-overlayfs, which `tests/setup.sh` installs.
struct Peer(PathBuf);

impl Peer {
    fn mount(layers: &Layers, options: &str) -> Self {
        let at = layers.mnt.clone();
        let program = "/usr/bin/fuse-overlayfs";
        assert!(
            Path::new(program).exists(),
            "no {program}: run tests/setup.sh"
        );
        let mut command = Command::new(program);
        let outcome = finish(command.arg("-o").arg(layers.options(options)).arg(&at));
        assert!(device_of(&at).is_some(), "{}", outcome.stderr);
        Self(at)
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let ended = wait_for(Duration::from_secs(10), || {
            rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::empty()).ok()
        });
        if ended.is_none() {
            let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
        }
    }
}

fn layers(lower: &str) -> Layers {
    let mut layers = Stack::new().lower([""; 0]).build();
    let work = layers.scratch().join("work");
    fs::create_dir(&work).unwrap();
    // fuse-overlayfs needs one.
    layers.work = Some(work);
    sh(&layers.lowers[0], lower);
    layers
}

/// Owners, modes and types as both show them; fuse-overlayfs counts links of directories its way.
const LOOK: &str = "find . -mindepth 1 -printf '%P %U:%G %m %y\n' | LC_ALL=C sort";

const LOWER: &str =
    "echo low > low; chown 3:4 low; chmod 6755 low; mkdir -m 1777 open; mkdir -m 700 closed
    echo x > closed/x; chown -R 5:6 closed; ln -s low link";

/// What fuse-overlayfs 1.10 does rightly.
const CHANGES: &str = "mkdir -m 750 d; echo f > d/f; chown 5:6 d/f; chown 7:8 d; echo >> low; chown 9:10 low
    as 1000 'echo > open/mine; mkdir -m 700 open/dir; umask 077; echo > open/closed'; ln d/f d/g; echo > closed/y; chmod 1755 open";

#[test]
fn records_are_shared_with_fuse_overlayfs() {
    let layers = layers(LOWER);
    let options = "xattr_permissions=2";
    let peer = Peer::mount(&layers, options);
    sh(&peer.0, CHANGES);
    let theirs = sh(&peer.0, LOOK);
    drop(peer);
    let mut m = layers.mount_with(options);
    assert_same(&theirs, &sh(m.path(), LOOK));
    sh(m.path(), "mkdir -m 2711 ours; echo x > ours/f; chmod 4750 ours/f; chown 11:12 ours/f; chmod 600 low; chmod 751 d
        as 1001 'echo > ours/no' || true; chown 13 d/f; mv open/mine moved; echo > closed/z; rm closed/y");
    let ours = sh(m.path(), LOOK);
    m.unmount();
    let peer = Peer::mount(&m.layers, options);
    assert_same(&ours, &sh(&peer.0, LOOK));
    sh(
        &peer.0,
        "echo > theirs; chown 14:15 theirs; mkdir -m 711 ours/dir",
    );
    let theirs = sh(&peer.0, LOOK);
    drop(peer);
    m.mount_again();
    assert_same(&theirs, &sh(m.path(), LOOK));
}

/// What we begin is read by fuse-overlayfs as a lower layer.
#[test]
fn fuse_overlayfs_reads_our_records() {
    let layers = layers(LOWER);
    let mut m = layers.mount_with("xattr_permissions=2");
    sh(m.path(), CHANGES);
    sh(
        m.path(),
        "chmod 4711 low; chmod 0 open/closed; chown 20:21 closed/x",
    );
    let ours = sh(m.path(), LOOK);
    m.unmount();
    let mut below = Stack::new().read_only().build();
    below.lowers = vec![m.layers.upper_path().to_owned(), m.layers.lowers[0].clone()];
    let peer = Peer::mount(&below, "");
    assert_same(&ours, &sh(&peer.0, LOOK));
}

#[test]
fn maps_mean_the_same_to_fuse_overlayfs() {
    let layers = layers(LOWER);
    let options = ",volatile,uidmapping=:0:200000:5000,gidmapping=:0:200000:5000";
    let changes = "chown 200000:200001 .; mkdir d; chown 200007:200008 d; as 200007 'echo > d/f; ln -s f d/l; mkdir d/d'
        echo >> low; chown 204999 low; chmod 4755 low; as 200009 'echo > open/x'";
    let peer = Peer::mount(&layers, options);
    sh(&peer.0, changes);
    let theirs = sh(&peer.0, LOOK);
    drop(peer);
    let mut m = layers.mount_with(options);
    assert_same(&theirs, &sh(m.path(), LOOK));
    sh(
        m.path(),
        "as 200007 'echo > d/ours; chmod 640 d/f'; rm low; echo > low; chown 200001:200002 low; as 200009 'mkdir open/d'",
    );
    let ours = sh(m.path(), LOOK);
    m.unmount();
    let peer = Peer::mount(&m.layers, options);
    assert_same(&ours, &sh(&peer.0, LOOK));
}

/// Runs `text` as root of a user namespace that has ids 100000 to 165535 of the machine.
fn in_namespace(layers: &Layers, text: &str) -> String {
    let inside = layers.scratch().join("inside");
    let prelude = crate::ownership::PRELUDE;
    let options = layers.options("");
    let options = options.to_str().unwrap();
    let mnt = layers.mnt.display();
    // Where the namespace's users can reach it. Not copied by this process: others that it starts
    // meanwhile would have the copy open for writing, and nothing could run it.
    let program = layers.scratch().join("unionfs");
    sh(layers.scratch(), &format!("cp {} unionfs", unionfs()));
    fs::write(
        &inside,
        format!(
            "set -eu\nunionfs={} options='{options}' mnt={mnt}\n{prelude}\n{text}\n",
            program.display()
        ),
    )
    .unwrap();
    sh(
        layers.scratch(),
        "unshare -U sleep 60 & p=$!; trap 'kill $p' EXIT; own=$(readlink /proc/self/ns/user)
        until [ \"$(readlink /proc/$p/ns/user)\" != \"$own\" ]; do :; done
        echo 0 100000 65536 > /proc/$p/uid_map; echo 0 100000 65536 > /proc/$p/gid_map
        timeout -k5 20 nsenter -U -t $p -S 0 -G 0 -- unshare -m bash inside",
    )
}

fn give(path: &Path) {
    sh(path, "chown -R -h 100000:100000 .");
}

const IN_NAMESPACE: &str = "tree; chown 5:6 low; chmod 4711 low; mkdir -m 3777 d; chown 7:8 d
    as 1000 'echo x > d/f; mkfifo d/p; mkdir d/d; ln -s f d/l'; as 1001 'cat d/f'; try as 1001 'rm d/f'
    chown -h 9:9 d/l; chown 65535:65534 d/p; try chown 70000 d/p; as 5 'echo >> low'; show low; chmod 2755 low
    setcap cap_net_raw+ep low; getcap low; chown 6 low; getcap low; rm open/x; mv open moved; tree";

#[test]
fn records_in_a_user_namespace() {
    let _device = DeviceMode::set(0o666);
    let layers = Stack::new().lower([""; 0]).build();
    let make = "echo low > low; mkdir -m 777 open; echo > open/x";
    let reference = plain(layers.scratch(), "plain");
    for dir in [&reference, &layers.lowers[0]] {
        sh(dir, make);
        give(dir);
    }
    give(layers.upper_path());
    chown(&layers.mnt, Some(100_000), Some(100_000)).unwrap();
    let expected = in_namespace(
        &layers,
        &format!("cd {}; {IN_NAMESPACE}", reference.display()),
    );
    let shown = in_namespace(
        &layers,
        &format!(
            "$unionfs -o $options,xattr_permissions=2 $mnt; (cd $mnt; {IN_NAMESPACE}); umount $mnt"
        ),
    );
    assert_same(&expected, &shown);
    let record = xattr::get(
        layers.upper_path().join("low"),
        "user.containers.override_stat",
    )
    .unwrap();
    assert_eq!(record.unwrap(), b"6:6:755");
    for name in ["low", "d", "d/f", "d/p", "d/d"] {
        let meta = fs::symlink_metadata(layers.upper_path().join(name)).unwrap();
        assert_eq!((meta.uid(), meta.gid()), (100_000, 100_000), "{name}");
    }
}

/// Ids that the namespace does not have cannot be stored: better said than stored otherwise.
#[test]
fn maps_to_ids_outside_of_the_namespace() {
    let _device = DeviceMode::set(0o666);
    let layers = Stack::new().lower([""; 0]).build();
    give(layers.upper_path());
    give(&layers.lowers[0]);
    chown(&layers.mnt, Some(100_000), Some(100_000)).unwrap();
    let text = "$unionfs -o $options,uidmapping=0:0:10:100000:10:10,gidmapping=0:0:10:100000:10:10 $mnt
        cd $mnt; chmod 777 .; echo > f; as 5 'echo > g'; try as 12 'echo > h'; try chown 12 f; show f g; cd /; umount $mnt";
    let expected = "as: Value too large for defined data type\nchown: Invalid argument\n\
        f 0:0 644 regular file 0:0\ng 5:5 644 regular file 0:0\n";
    assert_eq!(in_namespace(&layers, text), expected);
}
