//! An ordinary user for tests: layers that belong to him, and the program where he can reach it.

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
pub const USER: u32 = 1;

/// /dev/fuse with another mode for a while; tests and test programs take turns.
pub struct DeviceMode {
    before: u32,
    _turn: std::os::fd::OwnedFd,
}

impl DeviceMode {
    pub fn set(mode: u32) -> Self {
        let lock = Path::new("/tmp/unionfs-dev-fuse.lock");
        let flags = OFlags::CREATE | OFlags::RDWR | OFlags::CLOEXEC;
        let turn = crate::process::open_file(lock, flags, rustix::fs::Mode::RWXU).unwrap();
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
pub struct Place {
    pub layers: Layers,
    pub program: PathBuf,
    before: snapshot::Snapshot,
}

const LOWER: [&str; 7] = [
    "f=lower", "g=lower", "d/x=1", "d/y=2", "e/z=3", "h=4", "s->f",
];

impl Place {
    pub fn new() -> Self {
        Self::of(USER)
    }

    /// A place that belongs to `user`.
    pub fn of(user: u32) -> Self {
        let layers = Stack::new().lower(LOWER).build();
        let program = layers.scratch().join("unionfs");
        process::copy_program(process::unionfs(), &program);
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        give(layers.scratch(), user);
        let before = snapshot::take(&layers.lowers[0]);
        Self {
            layers,
            program,
            before,
        }
    }

    /// Runs a shell script as the user, `$unionfs`, `$options` and `$mnt` set.
    pub fn script(&self, wrapper: &[&str], text: &str) -> Outcome {
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

    /// Runs a shell script as root in a mount namespace with a /dev/fuse of mode `$mode`, and files
    /// in /etc of its own; the variables of [`Self::script`] are set, and `$user` makes a command
    /// the user's.
    pub fn private(&self, settings: &[(&str, &str)], text: &str) -> Outcome {
        let user = format!("setpriv --reuid={USER} --regid={USER} --clear-groups");
        let mut command = Command::new("timeout");
        command.args(["-k5", "40", "unshare", "-m", "sh", "-euc"]);
        command.arg(format!("{PRIVATE}\n{text}"));
        command
            .env("unionfs", &self.program)
            .env("mnt", &self.layers.mnt)
            .env("options", self.layers.options(""))
            .env("scratch", self.layers.scratch())
            .env("user", user)
            .env("mode", "666")
            .env("fuse_conf", "#")
            .envs(settings.iter().copied())
            .env_remove("RUST_LOG")
            .current_dir(self.layers.scratch());
        finish(&mut command)
    }

    /// Nothing may be left behind, whatever came before.
    pub fn check(&self) {
        let mnt = &self.layers.mnt;
        let is_gone = || process::daemons(mnt).is_empty().then_some(());
        let mut gone = wait_for(Duration::from_secs(10), is_gone);
        // Somebody's `unshare -m` of the meantime took a copy of the mount along: it ends with that.
        for _ in 0..20 {
            let held = gone.is_none() && process::mounted_elsewhere(mnt);
            if held {
                gone = wait_for(Duration::from_secs(1), is_gone);
            }
        }
        for pid in process::daemons(mnt) {
            if let Some(pid) = rustix::process::Pid::from_raw(pid) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
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

/// The beginning of a script of [`Place::private`].
const PRIVATE: &str = r#"
own=$scratch/own
mkdir "$own"
mount -t tmpfs own "$own"
mknod "$own/fuse" c 10 229
chmod "$mode" "$own/fuse"
mount --bind "$own/fuse" /dev/fuse
echo "$fuse_conf" > "$own/fuse.conf"
mount --bind "$own/fuse.conf" /etc/fuse.conf
echo 1:200000:65536 > "$own/ids"
touch /etc/subuid /etc/subgid
mount --bind "$own/ids" /etc/subuid
mount --bind "$own/ids" /etc/subgid
"#;

fn give(path: &Path, user: u32) {
    let meta = fs::symlink_metadata(path).unwrap();
    if meta.is_symlink() {
        return std::os::unix::fs::lchown(path, Some(user), Some(user)).unwrap();
    }
    chown(path, Some(user), Some(user)).unwrap();
    if meta.is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            give(&entry.unwrap().path(), user);
        }
    }
}

/// Changes of every kind, then the same tree after a new mount. `$end` ends a mount.
pub const WORK: &str = r#"
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

pub fn check_work(place: &Place, outcome: &Outcome) {
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
