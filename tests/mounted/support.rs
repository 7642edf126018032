//! The fixture: layers from a description, a mount of the built program over them, and at the end
//! of every test the proof that no lower changed and that nothing is left over.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use rustix::fs::Mode;
use rustix::mount::UnmountFlags;
use tempfile::TempDir;

use crate::process::{
    abort, alive, daemons, device_of, finish, held_elsewhere, run, threads, unionfs, wait_for, way,
};
use crate::snapshot::{self, Snapshot};
use crate::spec::{self, Dialect};

/// How long a mount may be used by one test before it is taken for hung.
const LIMIT: Duration = Duration::from_secs(60);
/// How long mounting, unmounting or the end of the daemon may take.
const STEP: Duration = Duration::from_secs(15);

/// A stack of layers to be made.
pub struct Stack {
    dialect: Dialect,
    upper: Option<Vec<String>>,
    upper_at: Option<PathBuf>,
    lowers: Vec<Vec<String>>,
    branches: Option<Vec<&'static str>>,
    limit: Duration,
    descriptors: Option<u32>,
}

impl Stack {
    /// An empty upper in the aufs dialect, and no lower yet.
    pub fn new() -> Self {
        Self::of(Dialect::Aufs)
    }

    pub fn of(dialect: Dialect) -> Self {
        let upper = Some(Vec::new());
        let (upper_at, lowers) = (None, Vec::new());
        Self {
            dialect,
            upper,
            upper_at,
            lowers,
            branches: None,
            limit: LIMIT,
            descriptors: None,
        }
    }

    pub fn upper<S: ToString>(mut self, items: impl IntoIterator<Item = S>) -> Self {
        self.upper = Some(items.into_iter().map(|item| item.to_string()).collect());
        self
    }

    /// An upper that is somewhere else already, such as on an image of its own: `dir/upper`.
    pub fn upper_at(mut self, dir: &Path) -> Self {
        self.upper_at = Some(dir.to_owned());
        self
    }

    pub fn read_only(mut self) -> Self {
        self.upper = None;
        self
    }

    /// The next lower, below those given so far.
    pub fn lower<S: ToString>(mut self, items: impl IntoIterator<Item = S>) -> Self {
        self.lowers
            .push(items.into_iter().map(|item| item.to_string()).collect());
        self
    }

    /// Names the layers as aufs does, with these permissions, the upper's first.
    pub fn branches(mut self, permissions: &[&'static str]) -> Self {
        self.branches = Some(permissions.to_vec());
        self
    }

    pub fn limit(mut self, seconds: u64) -> Self {
        self.limit = Duration::from_secs(seconds);
        self
    }

    /// Has the daemon run with so few descriptors, without a way to get more.
    pub fn descriptors(mut self, limit: u32) -> Self {
        self.descriptors = Some(limit);
        self
    }

    /// Makes the directories, mounts nothing.
    pub fn build(self) -> Layers {
        let dir = tempfile::Builder::new()
            .prefix("unionfs-test-")
            .tempdir()
            .unwrap();
        open_up(dir.path());
        let at = |name: &str| {
            let path = dir.path().join(name);
            fs::create_dir(&path).unwrap();
            open_up(&path);
            path
        };
        let mnt = at("mnt");
        let upper = self.upper.map(|items| {
            let path = self
                .upper_at
                .as_ref()
                .map_or_else(|| at("upper"), |dir| dir.join("upper"));
            fs::create_dir_all(&path).unwrap();
            spec::build(&path, &items, self.dialect == Dialect::Overlay);
            path
        });
        let work = (self.dialect.writes_overlay() && upper.is_some()).then(|| at("work"));
        let mut lowers = Vec::new();
        for (index, items) in self.lowers.iter().enumerate() {
            let path = at(&format!("lower{}", index + 1));
            spec::build(&path, items, self.dialect != Dialect::Aufs);
            lowers.push(path);
        }
        let (dialect, limit, descriptors) = (self.dialect, self.limit, self.descriptors);
        Layers {
            dialect,
            limit,
            descriptors,
            upper,
            work,
            lowers,
            branches: self.branches,
            mnt,
            dir,
        }
    }

    pub fn mount(self) -> Mount {
        self.build().mount()
    }

    /// `options` are added to those the stack needs.
    pub fn mount_with(self, options: &str) -> Mount {
        self.build().mount_with(options)
    }
}

fn open_up(path: &Path) {
    rustix::fs::chmod(path, Mode::from_raw_mode(0o755)).unwrap();
}

/// Layers on disk.
pub struct Layers {
    pub dialect: Dialect,
    pub upper: Option<PathBuf>,
    pub work: Option<PathBuf>,
    pub lowers: Vec<PathBuf>,
    pub mnt: PathBuf,
    branches: Option<Vec<&'static str>>,
    limit: Duration,
    descriptors: Option<u32>,
    dir: TempDir,
}

impl Layers {
    /// A place for what a test needs beside its layers, on the same filesystem.
    pub fn scratch(&self) -> &Path {
        self.dir.path()
    }

    pub fn upper_path(&self) -> &Path {
        self.upper.as_deref().unwrap()
    }

    /// The value of `-o`. The way of data is the environment's, if it names one and `more` does not.
    pub fn options(&self, more: &str) -> OsString {
        let way = way().filter(|_| !more.split(',').any(|word| word.starts_with("open=")));
        let more = match way {
            Some(way) if more.is_empty() => format!("open={way}"),
            Some(way) => format!("{more},open={way}"),
            None => more.to_owned(),
        };
        if let Some(permissions) = &self.branches {
            let layers = self.upper.iter().chain(&self.lowers);
            let named = layers
                .zip(permissions)
                .map(|(dir, p)| format!("{}={p}", dir.display()));
            return format!("br:{},{more}", named.collect::<Vec<_>>().join(":")).into();
        }
        let mut text = b"lowerdir=".to_vec();
        for (index, lower) in self.lowers.iter().enumerate() {
            if index > 0 {
                text.push(b':');
            }
            text.extend(lower.as_os_str().as_bytes());
        }
        for (key, dir) in [("upperdir", &self.upper), ("workdir", &self.work)] {
            if let Some(dir) = dir {
                text.extend(
                    format!(",{key}=")
                        .bytes()
                        .chain(dir.as_os_str().as_bytes().iter().copied()),
                );
            }
        }
        if self.dialect.writes_overlay() && self.upper.is_some() {
            text.extend(b",whiteout=overlay");
        }
        if !more.is_empty() {
            text.extend(format!(",{more}").bytes());
        }
        OsString::from_vec(text)
    }

    pub fn mount(self) -> Mount {
        self.mount_with("")
    }

    pub fn mount_with(self, more: &str) -> Mount {
        let before = self
            .lowers
            .iter()
            .map(|lower| snapshot::take(lower))
            .collect();
        let overlay = self.dialect.writes_overlay();
        let upper_before = self
            .upper
            .as_ref()
            .map(|upper| spec::read_back(upper, overlay))
            .unwrap_or_default();
        let more = more.to_owned();
        let mut mount = Mount {
            layers: self,
            more,
            before,
            upper_before,
            live: None,
        };
        mount.start();
        mount
    }

    /// Tries to mount where it must fail: one line on stderr, exit 1, nothing mounted.
    pub fn refused(&self, options: &OsStr) -> String {
        let outcome = run(&[OsStr::new("-o"), options, self.mnt.as_os_str()]);
        let mounted = device_of(&self.mnt).is_some();
        if mounted {
            let _ = rustix::mount::unmount(&self.mnt, UnmountFlags::DETACH);
        }
        assert!(!mounted, "something was mounted with {options:?}");
        assert_eq!(
            outcome.status.code(),
            Some(1),
            "{options:?}: {}",
            outcome.stderr
        );
        assert_eq!(
            outcome.stderr.lines().count(),
            1,
            "{options:?}: {}",
            outcome.stderr
        );
        assert!(daemons(&self.mnt).is_empty(), "a daemon is left behind");
        outcome.stderr
    }
}

/// A mounted union. Dropping it ends the mount and checks what it left.
pub struct Mount {
    pub layers: Layers,
    more: String,
    before: Vec<Snapshot>,
    upper_before: Vec<String>,
    live: Option<Live>,
}

struct Live {
    pid: i32,
    connection: u32,
    watchdog: mpsc::Sender<()>,
    watcher: thread::JoinHandle<bool>,
}

impl Mount {
    fn start(&mut self) {
        let mnt = &self.layers.mnt;
        let options = self.layers.options(&self.more);
        let mut command = match self.layers.descriptors {
            Some(limit) => {
                let mut command = Command::new("prlimit");
                command
                    .arg(format!("--nofile={limit}:{limit}"))
                    .arg(unionfs());
                command
            }
            None => Command::new(unionfs()),
        };
        let outcome = finish(command.arg("-o").arg(&options).arg(mnt));
        let mounted = device_of(mnt);
        assert!(
            outcome.status.success(),
            "mount of {options:?} failed: {}",
            outcome.stderr
        );
        let connection = mounted.expect("exit 0, but nothing is mounted");
        let pid = daemons(mnt).first().copied();
        let pid = pid.expect("exit 0, but there is no daemon");
        let (watchdog, stop) = mpsc::channel();
        let limit = self.layers.limit;
        let watcher = thread::spawn(move || {
            let hung = stop.recv_timeout(limit) == Err(mpsc::RecvTimeoutError::Timeout);
            if hung {
                abort(connection);
            }
            hung
        });
        self.live = Some(Live {
            pid,
            connection,
            watchdog,
            watcher,
        });
    }

    pub fn path(&self) -> &Path {
        &self.layers.mnt
    }

    pub fn p(&self, name: impl AsRef<Path>) -> PathBuf {
        // Joining an absolute path would lead out of the mount.
        assert!(name.as_ref().is_relative(), "{}", name.as_ref().display());
        self.layers.mnt.join(name)
    }

    /// The object in the upper.
    pub fn up(&self, name: impl AsRef<Path>) -> PathBuf {
        self.layers.upper_path().join(name)
    }

    /// The number of its FUSE connection.
    pub fn connection(&self) -> u32 {
        self.live.as_ref().unwrap().connection
    }

    pub fn pid(&self) -> i32 {
        self.live.as_ref().unwrap().pid
    }

    /// Unmounts; no file of the mount may be open.
    pub fn unmount(&mut self) {
        // A process just forked by another test may hold a copy of a descriptor for a moment.
        let busy = wait_for(STEP, || {
            match rustix::mount::unmount(&self.layers.mnt, UnmountFlags::empty()) {
                Err(rustix::io::Errno::BUSY) => None,
                other => Some(other),
            }
        });
        let result = busy.unwrap_or(Err(rustix::io::Errno::BUSY));
        let ended = self.ended();
        result.unwrap_or_else(|error| panic!("unmount: {error}"));
        ended.unwrap_or_else(|error| panic!("{error}"));
    }

    /// Waits for the daemon's own end after the mount was ended in some other way.
    pub fn ended(&mut self) -> Result<(), String> {
        let Some(live) = self.live.take() else {
            return Ok(());
        };
        let is_gone = || (!alive(live.pid)).then_some(());
        let mut gone = wait_for(STEP, is_gone).is_some();
        // Somebody's `unshare -m` of the meantime took a copy of the mount along: that is not ours
        // to end, and the daemon is right to serve it.
        for _ in 0..20 {
            if !gone && held_elsewhere(live.connection) {
                gone = wait_for(STEP / 10, is_gone).is_some();
            }
        }
        if !gone && held_elsewhere(live.connection) {
            // Nobody knows for how long. Without the connection it has nothing to serve.
            abort(live.connection);
            gone = wait_for(STEP, is_gone).is_some();
        }
        let threads = if gone {
            String::new()
        } else {
            threads(live.pid)
        };
        if !gone {
            abort(live.connection);
            let _ = rustix::mount::unmount(&self.layers.mnt, UnmountFlags::DETACH);
        }
        let _ = live.watchdog.send(());
        if live.watcher.join().unwrap_or(true) {
            return Err("the mount hung and was aborted".to_owned());
        }
        if !gone {
            return Err(format!("daemon {} did not end:\n{threads}", live.pid));
        }
        match device_of(&self.layers.mnt) {
            Some(_) => Err("still mounted after the daemon's end".to_owned()),
            None => Ok(()),
        }
    }

    /// The lowers are what they are now: the test has changed them.
    pub fn lowers_were_changed(&mut self) {
        let now = self.layers.lowers.iter();
        self.before = now.map(|lower| snapshot::take(lower)).collect();
    }

    pub fn remount(&mut self) {
        self.unmount();
        self.start();
    }

    /// Starts the daemon again after it was ended in some other way.
    pub fn mount_again(&mut self) {
        assert!(self.live.is_none());
        self.start();
    }

    pub fn mount_again_with(&mut self, options: &str) {
        options.clone_into(&mut self.more);
        self.mount_again();
    }

    /// The upper in the notation of `spec`, without the three root metadata objects.
    pub fn afterwards(&self) -> Vec<String> {
        spec::read_back(
            self.layers.upper_path(),
            self.layers.dialect.writes_overlay(),
        )
    }

    #[track_caller]
    pub fn assert_upper<S: ToString>(&self, expected: impl IntoIterator<Item = S>) {
        let mut expected: Vec<String> = expected.into_iter().map(|e| e.to_string()).collect();
        expected.sort();
        assert_eq!(
            self.afterwards(),
            expected,
            "left: the upper, right: expected"
        );
    }

    fn leftovers(&self) -> Vec<String> {
        let mut found = Vec::new();
        for (lower, before) in self.layers.lowers.iter().zip(&self.before) {
            for line in snapshot::differences(before, &snapshot::take(lower)) {
                found.push(format!("{}: {line}", lower.display()));
            }
        }
        if let Some(upper) = &self.layers.upper {
            for entry in spec::read_back(upper, self.layers.dialect.writes_overlay()) {
                let temporary = entry.contains(".wh..wh.") || entry.contains("wh(.wh.");
                // What an earlier crash left in a directory may wait until that is removed.
                if temporary && !self.upper_before.contains(&entry) {
                    found.push(format!("left in the upper: {entry}"));
                }
            }
        }
        if let Some(work) = &self.layers.work {
            for (path, _) in snapshot::take(work) {
                let full = work.join(&path);
                // The directory that holds temporaries may stay, they may not.
                let holder = path.components().count() <= 1 && full.is_dir();
                if !holder {
                    found.push(format!("left in workdir: {}", path.display()));
                }
            }
        }
        found
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if thread::panicking() {
            if let Some(live) = &self.live {
                abort(live.connection);
            }
            let _ = rustix::mount::unmount(&self.layers.mnt, UnmountFlags::DETACH);
            let _ = self.ended();
            return;
        }
        if self.live.is_some() {
            self.unmount();
        }
        assert!(device_of(&self.layers.mnt).is_none(), "still mounted");
        assert!(daemons(&self.layers.mnt).is_empty(), "a daemon is left");
        let found = self.leftovers();
        assert!(found.is_empty(), "{}", found.join("\n"));
    }
}
