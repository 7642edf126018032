//! Layers that no snapshot can be taken of: too deep for paths, too large, or changed while they are
//! mounted. A secret lies beside them.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use rustix::mount::UnmountFlags;
use tempfile::TempDir;

use crate::process::{abort, alive, daemons, device_of, finish, held_elsewhere, unionfs, wait_for};

/// What nobody may see or change through the mount.
pub const SECRET: &str = "what lies beside the layers";

const STEP: Duration = Duration::from_secs(20);

/// One lower, an upper, a secret beside them, and a place to mount, at which no relative symlink that
/// leads to the secret from a layer leads anywhere.
pub struct Bare {
    dir: TempDir,
    live: Option<Live>,
}

struct Live {
    pid: i32,
    connection: u32,
    stop: mpsc::Sender<()>,
    watcher: thread::JoinHandle<bool>,
}

impl Bare {
    pub fn new(place: &str) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("unionfs-test-")
            .tempdir_in(place)
            .unwrap();
        let open = |path: &Path| {
            fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
        };
        open(dir.path());
        for name in ["mnt", "layers", "layers/l", "layers/u", "layers/secret"] {
            fs::create_dir(dir.path().join(name)).unwrap();
            open(&dir.path().join(name));
        }
        let bare = Self { dir, live: None };
        fs::write(bare.secret().join("f"), SECRET).unwrap();
        fs::write(bare.secret().join("only-there"), SECRET).unwrap();
        bare
    }

    pub fn lower(&self) -> PathBuf {
        self.dir.path().join("layers/l")
    }

    pub fn upper(&self) -> PathBuf {
        self.dir.path().join("layers/u")
    }

    pub fn secret(&self) -> PathBuf {
        self.dir.path().join("layers/secret")
    }

    pub fn mnt(&self) -> PathBuf {
        self.dir.path().join("mnt")
    }

    pub fn pid(&self) -> i32 {
        self.live.as_ref().unwrap().pid
    }

    /// Mounts with these options beside those of the layers; after so many seconds the mount is taken for
    /// hung. Returns what was said, if it was refused.
    pub fn try_mount(&mut self, more: &str, seconds: u64) -> Result<(), String> {
        let (lower, upper, mnt) = (self.lower(), self.upper(), self.mnt());
        let (lower, upper) = (lower.display(), upper.display());
        let way = crate::process::way().map_or_else(String::new, |way| format!(",open={way}"));
        let options = format!("lowerdir={lower},upperdir={upper}{way}{more}");
        self.run(
            Command::new(unionfs()).args(["-o", &options]).arg(&mnt),
            seconds,
        )
    }

    /// Mounts by a command of the caller's own.
    pub fn adopt(&mut self, command: &mut Command, seconds: u64) {
        self.run(command, seconds).unwrap();
    }

    fn run(&mut self, command: &mut Command, seconds: u64) -> Result<(), String> {
        let mnt = self.mnt();
        let outcome = finish(command);
        if !outcome.status.success() {
            assert_eq!(device_of(&mnt), None, "refused, and mounted");
            assert_eq!(outcome.stderr.lines().count(), 1, "{}", outcome.stderr);
            return Err(outcome.stderr);
        }
        let connection = device_of(&mnt).expect("exit 0, but nothing is mounted");
        let pid = daemons(&mnt)[0];
        let (stop, stopped) = mpsc::channel();
        let watcher = thread::spawn(move || {
            let limit = Duration::from_secs(seconds);
            let hung = stopped.recv_timeout(limit) == Err(mpsc::RecvTimeoutError::Timeout);
            if hung {
                abort(connection);
            }
            hung
        });
        self.live = Some(Live {
            pid,
            connection,
            stop,
            watcher,
        });
        Ok(())
    }

    pub fn mount(&mut self, more: &str, seconds: u64) {
        self.try_mount(more, seconds).unwrap();
    }

    /// Unmounts; the daemon that was started has to be there still, and to end.
    pub fn unmount(&mut self) {
        assert!(alive(self.pid()), "the daemon is gone");
        let mnt = self.mnt();
        let done = wait_for(STEP, || {
            match rustix::mount::unmount(&mnt, UnmountFlags::empty()) {
                Err(rustix::io::Errno::BUSY) => None,
                other => Some(other),
            }
        });
        done.expect("busy").unwrap();
        let live = self.live.take().unwrap();
        let is_gone = || (!alive(live.pid)).then_some(());
        let mut gone = wait_for(STEP, is_gone);
        if gone.is_none() && held_elsewhere(live.connection) {
            // Somebody's `unshare -m` of the meantime has a copy of the mount, nobody knows for how long.
            abort(live.connection);
            gone = wait_for(STEP, is_gone);
        }
        live.stop.send(()).ok();
        assert!(!live.watcher.join().unwrap(), "the mount hung");
        assert!(gone.is_some(), "the daemon does not end");
    }

    /// Nothing was put beside the secret, and it is what it was.
    pub fn assert_secret(&self) {
        let mut names = crate::calls::list(&self.secret());
        names.sort();
        assert_eq!(names, ["f", "only-there"]);
        for name in names {
            let path = self.secret().join(name);
            assert_eq!(fs::read_to_string(&path).unwrap(), SECRET);
            let meta = fs::symlink_metadata(&path).unwrap();
            assert_eq!((meta.nlink(), meta.mode() & 0o7777), (1, 0o644));
        }
    }

    /// Largest memory that the daemon ever had, in KiB.
    pub fn peak_kib(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let number = line.unwrap().trim().trim_end_matches(" kB").trim();
        number.parse().unwrap()
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        if let Some(live) = self.live.take() {
            abort(live.connection);
            let _ = rustix::mount::unmount(self.mnt(), UnmountFlags::DETACH);
            let _ = live.stop.send(());
            let _ = live.watcher.join();
        }
        // It may be deeper than what the standard library can remove with few descriptors.
        let _ = Command::new("rm").arg("-rf").arg(self.dir.path()).status();
    }
}
