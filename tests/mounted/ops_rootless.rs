//! Ordinary users: in a user namespace of their own and through fusermount3.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::fs::{FlockOperation, OFlags};
use rustix::mount::UnmountFlags;

use crate::process::{self, Outcome, finish, wait_for};
use crate::snapshot;
use crate::support::{Layers, Stack};

/// The user `daemon`, which every Linux system has.
const USER: u32 = 1;

/// /dev/fuse with another mode for a while; tests and test programs take turns.
pub struct DeviceMode {
    before: u32,
    _turn: std::os::fd::OwnedFd,
}

impl DeviceMode {
    pub fn set(mode: u32) -> Self {
        let lock = Path::new("/tmp/unionfs-dev-fuse.lock");
        let flags = OFlags::CREATE | OFlags::RDWR | OFlags::CLOEXEC;
        let turn = rustix::fs::open(lock, flags, rustix::fs::Mode::RWXU).unwrap();
        rustix::fs::flock(&turn, FlockOperation::LockExclusive).unwrap();
        let before = fs::metadata("/dev/fuse").unwrap().permissions().mode();
        fs::set_permissions("/dev/fuse", fs::Permissions::from_mode(mode)).unwrap();
        Self {
            before,
            _turn: turn,
        }
    }
}

impl Drop for DeviceMode {
    fn drop(&mut self) {
        fs::set_permissions("/dev/fuse", fs::Permissions::from_mode(self.before)).unwrap();
    }
}

/// Layers that belong to the user, with the program where the user can reach it.
struct Place {
    layers: Layers,
    program: PathBuf,
    before: snapshot::Snapshot,
}

const LOWER: [&str; 7] = [
    "f=lower", "g=lower", "d/x=1", "d/y=2", "e/z=3", "h=4", "s->f",
];

impl Place {
    fn new() -> Self {
        let layers = Stack::new().lower(LOWER).build();
        let program = layers.scratch().join("unionfs");
        fs::copy(process::unionfs(), &program).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        give(layers.scratch());
        let before = snapshot::take(&layers.lowers[0]);
        Self {
            layers,
            program,
            before,
        }
    }

    /// Runs a shell script as the user, `$unionfs`, `$options` and `$mnt` set.
    fn script(&self, wrapper: &[&str], text: &str) -> Outcome {
        let ids = [format!("--reuid={USER}"), format!("--regid={USER}")];
        let mut command = Command::new("timeout");
        command
            .args(["-k5", "25", "setpriv"])
            .args(ids)
            .arg("--clear-groups");
        command.args(wrapper).args(["sh", "-euc", text]);
        command
            .env("unionfs", &self.program)
            .env("mnt", &self.layers.mnt);
        command
            .env("options", self.layers.options(""))
            .env("TMPDIR", self.layers.scratch());
        command.current_dir(self.layers.scratch());
        finish(&mut command)
    }

    /// Nothing may be left behind, whatever came before.
    fn check(&self) {
        let mnt = &self.layers.mnt;
        let gone = wait_for(Duration::from_secs(10), || {
            process::daemons(mnt).is_empty().then_some(())
        });
        if let Some(connection) = process::device_of(mnt) {
            process::abort(connection);
            let _ = rustix::mount::unmount(mnt, UnmountFlags::DETACH);
            panic!("still mounted");
        }
        assert!(gone.is_some(), "a daemon is left");
        let after = snapshot::take(&self.layers.lowers[0]);
        assert_eq!(snapshot::differences(&self.before, &after), [""; 0]);
    }
}

fn give(path: &Path) {
    let meta = fs::symlink_metadata(path).unwrap();
    if meta.is_symlink() {
        return std::os::unix::fs::lchown(path, Some(USER), Some(USER)).unwrap();
    }
    chown(path, Some(USER), Some(USER)).unwrap();
    if meta.is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            give(&entry.unwrap().path());
        }
    }
}

/// Changes of every kind, then the same tree after a new mount. `$end` ends a mount.
const WORK: &str = r#"
$unionfs -o "$options" "$mnt"
test "$(cat "$mnt/f")" = lower
echo changed > "$mnt/f"
echo new > "$mnt/n"
rm "$mnt/g"
rm -r "$mnt/d"
mkdir "$mnt/d"
chmod 700 "$mnt/e"
mv "$mnt/h" "$mnt/e/i"
ln "$mnt/n" "$mnt/n2"
ln -s n "$mnt/t"
mkfifo "$mnt/p"
touch -d 2001-02-03 "$mnt/e/z"
$end "$mnt"
$unionfs -o "$options" "$mnt"
ls -A "$mnt" "$mnt/d" "$mnt/e"
cat "$mnt/f" "$mnt/n2" "$mnt/t" "$mnt/e/i"
echo
stat -c %a-%Y-%u "$mnt/e" "$mnt/e/z" | sed 's/-[0-9]*-/-/'
$end "$mnt"
"#;

fn check_work(place: &Place, outcome: &Outcome) {
    place.check();
    assert!(
        outcome.status.success(),
        "{}{}",
        outcome.stdout,
        outcome.stderr
    );
    for line in ["changed", "new", "4", "z"] {
        assert!(
            outcome.stdout.lines().any(|found| found == line),
            "{line}: {}",
            outcome.stdout
        );
    }
    let names: Vec<&str> = outcome.stdout.lines().collect();
    assert_eq!(
        names[1..10],
        ["d", "e", "f", "n", "n2", "p", "s", "t", ""],
        "{}",
        outcome.stdout
    );
    let upper = crate::spec::read_back(place.layers.upper_path(), false);
    let expected = [
        "d/", "e/", "e/i", "e/z", "f", "n", "n2", "opq(d)", "p", "t", "wh(g)", "wh(h)",
    ];
    assert_eq!(upper, expected);
}

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
