//! Layers in a temporary directory, changed through a mount; and trees to be compared.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt::Write;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::fs::FlockOperation;
use rustix::mount::UnmountFlags;
use tempfile::TempDir;

use crate::process::{Outcome, device_of, finish, script, unionfs, wait_for};

/// What the lowers `l1` (on top) and `l2` hold.
const LOWERS: &str = r"
mkdir -p l1/d/sub l1/gone l2/d l1/moved l1/keep l1/whole/in l2/whole
echo one > l1/d/a; echo two > l2/d/b; echo deep > l1/d/sub/x
echo linked > l1/f; ln l1/f l1/f2; ln l1/f l1/d/f3
echo g > l1/gone/x; echo r > l1/moved/r; ln -s a//b l1/link
echo k > l1/keep/k; echo big > l1/mod; echo w > l1/whole/in/w; echo v > l2/whole/v
head -c 100000 /dev/zero | tr '\0' z > l2/large
echo file > l1/kind; mkdir l2/other; echo o > l2/other/o
touch -d 2001-02-03 l1/d/a l1/mod l1/f l2/large
";

/// Changes of every kind, made in the mount.
pub const CHANGES: &str = r"
cd m
echo more >> f; rm -r gone; mkdir gone; echo n > gone/n
mv moved moved2; rm d/b; echo new > new; ln new new2
setcap cap_net_raw,cap_chown+ep new2
setfattr -n user.lines -v 'a
b
c=d' mod
setfattr -n user.binary -v 0x000a0d0aff0a mod
touch -d '1950-01-01 00:00:00.25' mod
chmod 4755 mod
truncate -s 50M sparse
for i in 1 12 20 30 40 45; do printf data | dd of=sparse bs=1M seek=$i conv=notrunc status=none; done
truncate -s 30M empty
mknod null c 1 3; mknod disk b 7 200; mkfifo fifo
ln -s $(printf 'l%.0s' $(seq 150)) longlink
touch $(printf 'n%.0s' $(seq 240))
printf x > $(printf 'non\377utf')
chown 70000:3000000000 null
chmod 2700 keep
setfacl -m u:7:rwx,d:g:8:r keep
rm -r whole
rm kind; mkdir kind; echo i > kind/i
rm -r other; echo now > other
chown -h 5:6 link
";

pub struct Place {
    dir: TempDir,
    more: &'static str,
}

impl Place {
    /// The lowers; `more` goes after the mount options.
    pub fn new(more: &'static str) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("unionfs-test-")
            .tempdir()
            .unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let place = Self { dir, more };
        for name in ["l1", "l2", "u", "w", "m"] {
            fs::create_dir(place.path(name)).unwrap();
        }
        place.shell(LOWERS);
        place
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn shell(&self, text: &str) -> String {
        script(self.dir.path(), text, &[])
    }

    pub fn lowers(&self) -> OsString {
        let root = self.dir.path().display();
        format!("lowerdir={root}/l1:{root}/l2{}", self.more).into()
    }

    pub fn mount(&self) {
        let root = self.dir.path().display();
        let mut options = self.lowers();
        options.push(format!(",upperdir={root}/u,workdir={root}/w"));
        good(&run(&[
            OsStr::new("-o"),
            &options,
            self.path("m").as_os_str(),
        ]));
    }

    pub fn unmount(&self) {
        // A child of another test may have, until it is the program that it is to be, what was open here.
        let ended = wait_for(Duration::from_secs(5), || {
            let outcome = run(&[OsStr::new("umount"), self.path("m").as_os_str()]);
            (!outcome.stderr.contains("busy")).then_some(outcome)
        });
        good(&ended.expect("the mount is not busy for ever"));
        self.wait_for_end();
    }

    /// Waits until no one has the upper: a child of another test may have a copy of the mount in a
    /// namespace of its own, which is a use of it.
    fn wait_for_end(&self) {
        let Ok(upper) = fs::File::open(self.path("u")) else {
            return;
        };
        let free = || rustix::fs::flock(&upper, FlockOperation::NonBlockingLockExclusive).ok();
        wait_for(Duration::from_secs(20), free).expect("the mount ends");
    }

    /// An upper with all of [`CHANGES`], not mounted; and what the mount showed.
    pub fn changed(more: &'static str) -> (Self, Tree) {
        let place = Self::new(more);
        place.mount();
        place.shell(CHANGES);
        let tree = tree(&place.path("m"));
        place.unmount();
        (place, tree)
    }

    /// Runs the program in the directory of the layers.
    pub fn run(&self, words: &[&str]) -> Outcome {
        self.run_with(words, &[])
    }

    pub fn run_with(&self, words: &[&str], settings: &[(&str, &str)]) -> Outcome {
        let mut command = Command::new(unionfs());
        command.args(words).current_dir(self.dir.path());
        command
            .env_remove("SOURCE_DATE_EPOCH")
            .env_remove("RUST_LOG");
        command.envs(settings.iter().copied());
        finish(&mut command)
    }

    /// A run that succeeds. Other tests make mount namespaces, which have what was mounted here for as
    /// long as they are there: so a server may go on for longer than the program waits for it.
    pub fn good(&self, words: &[&str]) -> String {
        let done = || {
            let outcome = self.run(words);
            (!outcome.stderr.contains("in use by a mount")).then_some(outcome)
        };
        let done = wait_for(Duration::from_secs(30), done);
        good(&done.expect("all mounts end")).to_owned()
    }

    /// A run that must fail with one line, which is returned.
    pub fn refused(&self, words: &[&str]) -> String {
        let outcome = self.run(words);
        assert_eq!(outcome.status.code(), Some(1), "{}", outcome.stderr);
        assert_eq!(outcome.stderr.lines().count(), 1, "{}", outcome.stderr);
        outcome.stderr
    }

    /// A plain directory with what the lowers show.
    pub fn plain_copy(&self, name: &str) -> PathBuf {
        self.shell(&format!(
            "mkdir {name}; cp -a l2/. {name}/; cp -a l1/. {name}/"
        ));
        self.path(name)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mnt = self.path("m");
        if device_of(&mnt).is_some() {
            let _ = rustix::mount::unmount(&mnt, UnmountFlags::DETACH);
        }
    }
}

fn run(words: &[&OsStr]) -> Outcome {
    crate::process::run(words)
}

pub fn good(outcome: &Outcome) -> &str {
    assert!(outcome.status.success(), "{}", outcome.stderr);
    assert_eq!(outcome.stderr, "");
    &outcome.stdout
}

/// What each path of a tree shows, but for times of access and change.
pub type Tree = BTreeMap<PathBuf, String>;

pub fn tree(root: &Path) -> Tree {
    let mut tree = Tree::new();
    let mut links: BTreeMap<u64, PathBuf> = BTreeMap::new();
    let mut pending = vec![root.to_owned()];
    let mut paths = Vec::new();
    while let Some(dir) = pending.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            if fs::symlink_metadata(&path).unwrap().is_dir() {
                pending.push(path.clone());
            }
            paths.push(path);
        }
    }
    paths.sort();
    for path in paths {
        let short = path.strip_prefix(root).unwrap().to_owned();
        let meta = fs::symlink_metadata(&path).unwrap();
        let mut facts = format!(
            "{:o} {}:{} {}.{:09}",
            meta.mode(),
            meta.uid(),
            meta.gid(),
            meta.mtime(),
            meta.mtime_nsec()
        );
        let kind = meta.file_type();
        if !kind.is_dir() {
            let first = links.entry(meta.ino()).or_insert_with(|| short.clone());
            write!(facts, " {} as {}", meta.nlink(), first.display()).unwrap();
        }
        if kind.is_char_device() || kind.is_block_device() {
            write!(facts, " {:x}", meta.rdev()).unwrap();
        } else if kind.is_symlink() {
            write!(facts, " {}", fs::read_link(&path).unwrap().display()).unwrap();
        } else if kind.is_file() {
            let data = fs::read(&path).unwrap();
            let sum = data.iter().enumerate().fold(0_u64, |sum, (i, &b)| {
                sum.wrapping_add(u64::from(b) * (i as u64 + 1))
            });
            write!(facts, " {} bytes {sum}", data.len()).unwrap();
        }
        let mut names: Vec<_> = xattr::list(&path).unwrap().collect();
        names.sort();
        for name in names {
            let private = [&b"trusted.unionfs"[..], b"trusted.overlay", b"user.unionfs"];
            if !private.iter().any(|p| name.as_bytes().starts_with(p)) {
                let value = xattr::get(&path, &name).unwrap();
                write!(facts, " {name:?}={value:?}").unwrap();
            }
        }
        tree.insert(short, facts);
    }
    tree
}

/// Fails with the first differences.
pub fn assert_same(left: &Tree, right: &Tree) {
    let mut different = Vec::new();
    for path in left.keys().chain(right.keys()) {
        if left.get(path) != right.get(path) && different.len() < 6 {
            different.push(format!(
                "{path:?}:\n  {:?}\n  {:?}",
                left.get(path),
                right.get(path)
            ));
        }
    }
    assert!(different.is_empty(), "{}", different.join("\n"));
}
