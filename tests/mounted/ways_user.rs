//! Ways in for those who are not root, and what each of them cannot do.

use std::fs;

use crate::process::Outcome;
use crate::snapshot;
use crate::user::{DeviceMode, Place, WORK, check_work};

/// The capabilities of root in a container of podman or docker, without CAP_SYS_ADMIN.
pub const CONTAINER: &str = "setpriv --inh-caps=-all --bounding-set=-all,+chown,+dac_override,\
    +fowner,+fsetid,+kill,+setgid,+setuid,+setpcap,+net_bind_service,+sys_chroot,+mknod,+setfcap";

#[track_caller]
pub fn good(outcome: &Outcome) {
    let (out, err) = (&outcome.stdout, &outcome.stderr);
    assert!(outcome.status.success(), "{}: {out}{err}", outcome.status);
}

/// Runs `command` in a private namespace; it must fail with one line that has all `words`, nothing
/// mounted, and no process left.
#[track_caller]
pub fn refused(place: &Place, settings: &[(&str, &str)], command: &str, words: &[&str]) {
    let text = format!(
        "code=0; {command} || code=$?\n\
         if grep -q \" $mnt \" /proc/self/mountinfo; then exit 99; fi\n\
         exit $code"
    );
    let outcome = place.private(settings, &text);
    place.check();
    let line = outcome.stderr.trim_end();
    assert_eq!(outcome.status.code(), Some(1), "{command}: {line}");
    assert!(line.starts_with("unionfs: "), "{command}: {line}");
    assert_eq!(line.lines().count(), 1, "{command}: {line}");
    for word in words {
        assert!(line.contains(word), "{command}: '{word}' is not in: {line}");
    }
}

/// What is put before the program, settings of the namespace, words of the line.
type Case = (
    &'static str,
    &'static [(&'static str, &'static str)],
    &'static [&'static str],
);

const MOUNT: &str = "$unionfs -o \"$options\" \"$mnt\"";

#[test]
fn what_no_ordinary_user_can_do() {
    const AT_MNT: &str = "mounting on /";
    let cases: [Case; 9] = [
        ("$user unshare -Ur", &[], &[AT_MNT, "unshare -m"]),
        ("$user --no-new-privs", &[], &[AT_MNT, "no_new_privs"]),
        ("$user", &[("mode", "600")], &[AT_MNT, "/dev/fuse"]),
        (
            "$user unshare -Urm",
            &[("mode", "600")],
            &[AT_MNT, "/dev/fuse"],
        ),
        (
            "$user env FUSERMOUNT_PATH=/nonexistent",
            &[],
            &[AT_MNT, "not permitted", "fusermount3"],
        ),
        (CONTAINER, &[], &[AT_MNT, "ermitted"]),
        (
            "mount -t tmpfs dev /dev; mknod /dev/null c 1 3; env",
            &[],
            &[AT_MNT, "/dev/fuse is missing"],
        ),
        ("chown 0:0 \"$mnt\"; $user", &[], &[AT_MNT, "write access"]),
        (
            "chown 0:0 \"$scratch/upper\"; $user",
            &[],
            &["upperdir=", "Permission denied"],
        ),
    ];
    for (wrapper, settings, words) in cases {
        refused(
            &Place::new(),
            settings,
            &format!("{wrapper} {MOUNT}"),
            words,
        );
    }
}

#[test]
fn other_users_come_in_when_fuse_conf_allows_it() {
    let mount = "$user $unionfs -o \"$options,allow_other\" \"$mnt\"";
    refused(&Place::new(), &[], mount, &["user_allow_other"]);
    let place = Place::new();
    let text = format!(
        "{mount}\n\
         other='setpriv --reuid=2 --regid=2 --clear-groups'\n\
         test \"$($other cat \"$mnt/f\")\" = lower\n\
         chmod 600 \"$mnt/g\"\n\
         if $other cat \"$mnt/g\"; then exit 3; fi\n\
         $user mkdir -m 777 \"$mnt/all\"\n\
         if $other touch \"$mnt/all/theirs\"; then exit 4; fi\n\
         touch \"$mnt/all/roots\" && exit 5\n\
         $user touch \"$mnt/all/ours\"\n\
         test \"$(ls \"$mnt/all\")\" = ours\n\
         $user fusermount3 -u \"$mnt\""
    );
    let outcome = place.private(&[("fuse_conf", "user_allow_other")], &text);
    place.check();
    good(&outcome);
    assert_eq!(outcome.stderr.matches("Operation not permitted").count(), 2);
}

/// Without allow_other nobody else comes in, root included.
#[test]
fn only_the_user_comes_in() {
    let place = Place::new();
    let text = "$user $unionfs -o \"$options\" \"$mnt\"\n\
                if ls \"$mnt\"; then exit 3; fi\n\
                $user ls \"$mnt\" >/dev/null\n\
                grep \" $mnt \" /proc/self/mountinfo\n\
                $user fusermount3 -u \"$mnt\"";
    let outcome = place.private(&[], text);
    place.check();
    good(&outcome);
    for word in ["nosuid", "nodev", "fuse.unionfs", "user_id=1,group_id=1"] {
        assert!(outcome.stdout.contains(word), "{word}: {}", outcome.stdout);
    }
    assert!(outcome.stderr.contains("Permission denied"));
}

/// With subordinate ids root of the namespace acts for other users as on any filesystem.
#[test]
fn in_a_user_namespace_with_many_ids() {
    let place = Place::new();
    let inside = "$unionfs -o \"$options\" \"$mnt\"\n\
        chown 5:6 \"$mnt/f\"\n\
        mkdir -m 777 \"$mnt/all\"\n\
        setpriv --reuid=7 --regid=8 --clear-groups touch \"$mnt/all/theirs\"\n\
        mknod \"$mnt/node\" c 1 3 && exit 3\n\
        rm \"$mnt/g\"\n\
        stat -c %u:%g \"$mnt/f\" \"$mnt/all/theirs\"\n\
        umount \"$mnt\"";
    let text = format!(
        "export inside='{inside}'\n\
         $user unshare -Urm --map-auto sh -euc \"$inside\"\n\
         stat -c %u:%g \"$scratch/upper/f\" \"$scratch/upper/all/theirs\""
    );
    let outcome = place.private(&[], &text);
    place.check();
    good(&outcome);
    let lines: Vec<&str> = outcome.stdout.lines().collect();
    assert_eq!(lines[..2], ["5:6", "7:8"]);
    // The namespace's 1 is the first of the subordinate ids.
    assert_eq!(lines[2..], ["200004:200005", "200006:200007"]);
}

/// A helper that says it is done and sends nothing is no reason to wait for ever.
#[test]
fn a_helper_that_sends_no_connection() {
    let _device = DeviceMode::set(0o666);
    let place = Place::new();
    let text = "FUSERMOUNT_PATH=/bin/true $unionfs -o \"$options\" \"$mnt\"";
    let outcome = place.script(&[], text);
    place.check();
    assert_eq!(outcome.status.code(), Some(1), "{}", outcome.stderr);
    assert!(
        outcome.stderr.contains("sent no connection"),
        "{}",
        outcome.stderr
    );
}

/// mount(2) is enough where it is allowed.
#[test]
fn root_of_a_user_namespace_needs_no_fusermount3() {
    let place = Place::new();
    let text = "$user env FUSERMOUNT_PATH=/bin/false PATH=/nonexistent \
                /usr/bin/unshare -Urm /bin/sh -euc '\n\
                $unionfs -o \"$options\" \"$mnt\"\n\
                /bin/echo new > \"$mnt/new\"\n\
                /bin/umount \"$mnt\"'";
    let outcome = place.private(&[], text);
    place.check();
    good(&outcome);
    assert!(place.layers.upper_path().join("new").exists());
}

/// What a container may or may not do decides, not who is root in it.
#[test]
fn root_of_a_container() {
    let with_admin = format!("{CONTAINER},+sys_admin");
    for wrapper in [with_admin, format!("{CONTAINER} unshare -Urm")] {
        let place = Place::of(0);
        let text =
            format!("cat > work <<'E'\nend=umount\n{WORK}\nE\n{wrapper} sh -eu work; rm work");
        let outcome = place.private(&[], &text);
        check_work(&place, &outcome);
    }
}

/// What cannot be done is found out once, at the mount, and leaves nothing in the upper.
#[test]
fn what_cannot_be_done_is_told_once() {
    let everything =
        "new objects for other users, chown to other users, device nodes, trusted attributes";
    let in_namespace = "chown to other users, device nodes, trusted attributes";
    let cases = [
        (0, "", "umount", None),
        (1, "$user", "$user fusermount3 -u", Some(everything)),
        (1, "$user unshare -Urm", "umount", Some(in_namespace)),
        (
            1,
            "$user unshare -Urm --map-auto",
            "umount",
            Some("device nodes, trusted attributes"),
        ),
    ];
    for (owner, wrapper, end, expected) in cases {
        for form in ["aufs", "overlay"] {
            let place = Place::of(owner);
            let before = snapshot::take(place.layers.upper_path());
            let end = if wrapper.contains("unshare") {
                format!("; {end} \"$mnt\"'")
            } else {
                format!("'; {end} \"$mnt\"")
            };
            let text = format!(
                "mkdir work; chown {owner}:{owner} work\n\
                 options=\"$options,workdir=$scratch/work,whiteout={form}\"\n\
                 options=\"$options,log=info,log_file=$scratch/log\"\n\
                 export options\n{wrapper} sh -euc '{MOUNT}{end}"
            );
            let outcome = place.private(&[], &text);
            place.check();
            good(&outcome);
            let log = fs::read_to_string(place.layers.scratch().join("log")).unwrap();
            let told: Vec<&str> = log
                .lines()
                .filter(|line| line.contains("not possible"))
                .collect();
            match expected {
                None => assert_eq!(told, [""; 0], "{wrapper}"),
                Some(what) => {
                    assert_eq!(told.len(), 1, "{wrapper}: {log}");
                    assert!(
                        told[0].ends_with(&format!("not possible here: {what}")),
                        "{log}"
                    );
                    assert!(told[0].contains("INFO"), "{log}");
                }
            }
            assert!(!log.contains("WARN"), "{log}");
            assert_eq!(
                fs::read_dir(place.layers.scratch().join("work"))
                    .unwrap()
                    .count(),
                0
            );
            let after = snapshot::take(place.layers.upper_path());
            assert_eq!(snapshot::differences(&before, &after), [""; 0], "{wrapper}");
        }
    }
}

/// An upper without attributes cannot hold the marks of the overlay form.
#[test]
fn where_overlay_marks_cannot_be_written_files_are() {
    let place = Place::of(0);
    let text = "mount -t ramfs upper upper\n\
                mkdir upper/u upper/w\n\
                options=\"lowerdir=lower1,upperdir=upper/u,workdir=upper/w,whiteout=overlay\"\n\
                $unionfs -o \"$options,log_file=$scratch/log\" \"$mnt\"\n\
                rm \"$mnt/g\"\n\
                rm -r \"$mnt/d\"\n\
                mkdir \"$mnt/d\"\n\
                umount \"$mnt\"\n\
                find upper/u -name '.wh.[a-z]*' -type f -o -name '.wh..wh..opq' | sort\n\
                $unionfs -o \"$options\" \"$mnt\"\n\
                ls \"$mnt\" \"$mnt/d\"\n\
                umount \"$mnt\"";
    let outcome = place.private(&[], text);
    place.check();
    good(&outcome);
    let seen: Vec<&str> = outcome.stdout.lines().collect();
    let mnt = place.layers.mnt.display();
    let (root, dir) = (format!("{mnt}:"), format!("{mnt}/d:"));
    let expected = [
        "upper/u/.wh.g",
        "upper/u/d/.wh..wh..opq",
        &root,
        "d",
        "e",
        "f",
        "h",
        "s",
        "",
        &dir,
    ];
    assert_eq!(seen, expected);
    let log = fs::read_to_string(place.layers.scratch().join("log")).unwrap();
    assert_eq!(
        log.matches(".wh. files are written instead").count(),
        1,
        "{log}"
    );
}
