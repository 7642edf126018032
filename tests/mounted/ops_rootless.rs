//! Ordinary users: in a user namespace of their own and through fusermount3.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::process::Command;

use crate::process::{self, finish};
use crate::user::{DeviceMode, Place, USER, WORK, check_work};

#[test]
fn in_a_user_namespace() {
    let _device = DeviceMode::set(0o666);
    let place = Place::new();
    let text = format!("end=umount\n{WORK}");
    let outcome = place.script(&["unshare", "-Urm"], &text);
    check_work(&place, &outcome);
}

#[test]
fn through_fusermount3() {
    let _device = DeviceMode::set(0o666);
    let place = Place::new();
    let text = format!("end='fusermount3 -u'\n{WORK}");
    let outcome = place.script(&[], &text);
    check_work(&place, &outcome);
}

#[test]
fn umount_verb_through_fusermount3() {
    let _device = DeviceMode::set(0o666);
    let place = Place::new();
    let text = format!("end=\"$unionfs umount\"\n{WORK}");
    let outcome = place.script(&[], &text);
    check_work(&place, &outcome);
}

/// The end of one daemon must not take away what was mounted on the same place since.
#[test]
fn mounted_again_at_once_through_fusermount3() {
    let _device = DeviceMode::set(0o666);
    let place = Place::new();
    let text = "for round in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do\n\
                $unionfs -o \"$options\" \"$mnt\"\n\
                test \"$(cat \"$mnt/f\")\" = lower\n\
                $unionfs umount \"$mnt\"\ndone";
    let outcome = place.script(&[], text);
    place.check();
    assert!(
        outcome.status.success(),
        "{}{}",
        outcome.stdout,
        outcome.stderr
    );
}

/// Whiteouts of the overlay dialect need no privilege; opaque marks become user xattrs.
#[test]
fn overlay_dialect_in_a_user_namespace() {
    let _device = DeviceMode::set(0o666);
    let place = Place::new();
    let text = format!("end=umount\noptions=\"$options,whiteout=overlay\"\n{WORK}");
    let outcome = place.script(&["unshare", "-Urm"], &text);
    place.check();
    assert!(
        outcome.status.success(),
        "{}{}",
        outcome.stdout,
        outcome.stderr
    );
    let upper = place.layers.upper_path();
    for name in ["g", "h"] {
        let meta = fs::symlink_metadata(upper.join(name)).unwrap();
        assert!(
            std::os::unix::fs::FileTypeExt::is_char_device(&meta.file_type()),
            "{name}"
        );
    }
    let opaque = xattr::get(upper.join("d"), "user.overlay.opaque").unwrap();
    assert_eq!(opaque.as_deref(), Some(&b"y"[..]));
}

#[test]
fn no_permission_for_the_device() {
    let _device = DeviceMode::set(0o600);
    let place = Place::new();
    let outcome = place.script(&[], "exec $unionfs -o \"$options\" \"$mnt\"");
    place.check();
    assert_eq!(outcome.status.code(), Some(1), "{}", outcome.stderr);
    assert_eq!(outcome.stderr.lines().count(), 1, "{}", outcome.stderr);
}

/// A layer the user may not read is an error, at the mount or at the first look: never empty.
#[test]
fn layer_without_permission() {
    let _device = DeviceMode::set(0o666);
    let place = Place::new();
    chown(&place.layers.lowers[0], Some(0), Some(0)).unwrap();
    fs::set_permissions(&place.layers.lowers[0], fs::Permissions::from_mode(0o700)).unwrap();
    let text = "$unionfs -o \"$options\" \"$mnt\" || exit 7\nls \"$mnt\" && echo listed || true\n\
                fusermount3 -u \"$mnt\"";
    let outcome = place.script(&[], text);
    assert!(process::device_of(&place.layers.mnt).is_none());
    assert!(
        matches!(outcome.status.code(), Some(0 | 7)),
        "{}",
        outcome.stderr
    );
    assert_eq!(outcome.stdout, "");
    assert_eq!(outcome.stderr.lines().count(), 1, "{}", outcome.stderr);
}

#[test]
fn demo_as_root_and_as_a_user() {
    let _device = DeviceMode::set(0o666);
    let place = Place::new();
    let temporary = place.layers.scratch().join("temporary");
    fs::create_dir(&temporary).unwrap();
    chown(&temporary, Some(USER), Some(USER)).unwrap();
    let root = finish(
        Command::new(&place.program)
            .arg("demo")
            .env("TMPDIR", &temporary),
    );
    let user = place.script(&[], "TMPDIR=$PWD/temporary exec $unionfs demo");
    for outcome in [root, user] {
        assert!(
            outcome.status.success(),
            "{}{}",
            outcome.stdout,
            outcome.stderr
        );
        for word in ["copy-up", "whiteout", "opaque"] {
            assert!(
                outcome.stdout.to_lowercase().contains(word),
                "{word}: {}",
                outcome.stdout
            );
        }
        assert_eq!(
            fs::read_dir(&temporary).unwrap().count(),
            0,
            "left in the temporary directory"
        );
    }
}

/// A directory that its owner may not write can be renamed by him, with all that is in it.
#[test]
fn directories_that_may_not_be_written() {
    let _device = DeviceMode::set(0o666);
    for options in ["rename_dir=copy", "rename_dir=copy,whiteout=overlay"] {
        let place = Place::new();
        let text = format!(
            "mkdir -p low/ro/sub up; echo 1 > low/ro/sub/f; echo 2 > low/ro/g\n\
             chmod 555 low/ro/sub low/ro; options=lowerdir=low,upperdir=up,{options}\n\
             $unionfs -o $options $mnt\n\
             mv $mnt/ro $mnt/moved; cat $mnt/moved/sub/f $mnt/moved/g; stat -c %a $mnt/moved $mnt/moved/sub\n\
             fusermount3 -u $mnt; $unionfs -o $options $mnt; cat $mnt/moved/sub/f; fusermount3 -u $mnt\n\
             test ! -e up/.wh..wh.orph || rmdir up/.wh..wh.orph"
        );
        let outcome = place.script(&[], &text);
        let told = format!("{options}: {}{}", outcome.stdout, outcome.stderr);
        place.check();
        assert!(outcome.status.success(), "{told}");
        assert_eq!(outcome.stdout, "1\n2\n555\n555\n1\n", "{told}");
    }
}
