//! The mount of the demonstration: by this program itself, in whichever way is allowed here.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getegid, geteuid};

use super::stack::Stack;
use crate::daemon::{Failure, umount};
use crate::options::quote_path;

/// How long the mount may take to appear, and to go: what the daemon itself allows, and a bit.
const START_TIMEOUT: Duration = Duration::from_secs(12);
const STOP_TIMEOUT: Duration = Duration::from_secs(12);
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// A running `unionfs -f`.
pub(super) struct Mount {
    child: Child,
    mountpoint: PathBuf,
    /// What the child wrote on stderr.
    said: File,
}

/// Mounts the stack; also says how it was done.
pub(super) fn mount(stack: &Stack, interrupted: &AtomicBool) -> Result<(Mount, String), Failure> {
    let direct = match Mount::start(stack, interrupted)? {
        Ok(mount) if geteuid().is_root() => return Ok((mount, "(Mounted as root.)".to_owned())),
        Ok(mount) => {
            return Ok((
                mount,
                "(Mounted as an ordinary user, by fusermount3.)".to_owned(),
            ));
        }
        Err(reason) => reason,
    };
    let namespace = match user_namespace() {
        Err(error) => format!("cannot make one: {error}"),
        Ok(()) => match Mount::start(stack, interrupted)? {
            Ok(mount) => return Ok((mount, "(Mounted in a user namespace.)".to_owned())),
            Err(reason) => reason,
        },
    };
    Err(Failure::new(format_args!(
        "demo: cannot mount here. {}. Directly: {direct}. In a user namespace: {namespace}",
        what_is_missing()
    )))
}

/// The device that every way needs is the most frequent reason.
fn what_is_missing() -> String {
    let device = "/dev/fuse";
    match OpenOptions::new().read(true).write(true).open(device) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            format!("{device} is missing: modprobe fuse, or give the container --device {device}")
        }
        Err(error) => {
            format!("{device} cannot be opened ({error}): as root, chmod 0666 {device}")
        }
        Ok(_) if geteuid().is_root() => {
            "Mounting is not permitted: CAP_SYS_ADMIN is missing, or user namespaces".to_owned()
        }
        Ok(_) => "Install fusermount3 (package fuse3), or permit user namespaces".to_owned(),
    }
}

/// Moves this process into a user and mount namespace of its own, as `unshare -Urm` does. It has
/// one thread only: a process with more cannot do that.
fn user_namespace() -> io::Result<()> {
    let (uid, gid) = (geteuid(), getegid());
    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS)?;
    // Without this an unprivileged process may not write gid_map.
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/uid_map", format!("0 {uid} 1"))?;
    fs::write("/proc/self/gid_map", format!("0 {gid} 1"))
}

impl Mount {
    /// The inner error is the child's reason for not mounting.
    fn start(stack: &Stack, interrupted: &AtomicBool) -> Result<Result<Self, String>, Failure> {
        let cannot = |error: io::Error| {
            Failure::new(format_args!(
                "demo: cannot start this program again: {error}"
            ))
        };
        let mountpoint = stack.mountpoint();
        let said = stack.upper().with_file_name("stderr");
        let said = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(said)
            .map_err(cannot)?;
        let child = Command::new(std::env::current_exe().map_err(cannot)?)
            .args(["mount", "-f", "-o"])
            .arg(options(stack))
            .arg(&mountpoint)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(said.try_clone().map_err(cannot)?)
            // Ctrl-C is for the demonstration, which then ends the child in order.
            .process_group(0)
            .spawn()
            .map_err(cannot)?;
        let mut mount = Self {
            child,
            mountpoint,
            said,
        };
        let deadline = Instant::now() + START_TIMEOUT;
        while !stack.is_mounted() {
            if mount.child.try_wait().map_err(cannot)?.is_some() {
                return Ok(Err(mount.reason()));
            }
            if interrupted.load(Ordering::Relaxed) {
                mount.unmount()?;
                return Err(Failure::new("demo: interrupted"));
            }
            if Instant::now() > deadline {
                mount.unmount()?;
                return Ok(Err("the mount did not appear".to_owned()));
            }
            thread::sleep(POLL_INTERVAL);
        }
        Ok(Ok(mount))
    }

    /// Ends the child as a user would, and makes sure that nothing stays mounted.
    pub(super) fn unmount(&mut self) -> Result<(), Failure> {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap_or(i32::MAX));
        // It fails when the child has ended already, which is what is wanted.
        let _ = kill(pid, Signal::SIGTERM);
        let failure = match self.wait(STOP_TIMEOUT) {
            Ok(Some(status)) if status.success() => return Ok(()),
            Ok(Some(status)) => format!("demo: the daemon ended with {status}: {}", self.reason()),
            Ok(None) => "demo: the daemon does not end".to_owned(),
            Err(error) => format!("demo: the daemon: {error}"),
        };
        // Both may fail because there is nothing left to do; the reason is known already.
        let _ = self.child.kill();
        if umount2(&self.mountpoint, MntFlags::MNT_DETACH).is_err() {
            // What is still mounted is found when the directory shall be removed.
            let _ = umount(&self.mountpoint);
        }
        let _ = self.wait(POLL_INTERVAL);
        Err(Failure::new(failure))
    }

    fn wait(&mut self, limit: Duration) -> io::Result<Option<ExitStatus>> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(Some(status));
            }
            if Instant::now() > deadline {
                return Ok(None);
            }
            thread::sleep(POLL_INTERVAL);
        }
    }

    /// The last line on the child's stderr, which is the reason for its end.
    fn reason(&mut self) -> String {
        let mut text = String::new();
        let read = self
            .said
            .rewind()
            .and_then(|()| self.said.read_to_string(&mut text));
        let line = text.lines().rfind(|line| !line.trim().is_empty());
        match (read, line) {
            (Ok(_), Some(line)) => line.strip_prefix("unionfs: ").unwrap_or(line).to_owned(),
            _ => "no reason was given".to_owned(),
        }
    }
}

fn options(stack: &Stack) -> OsString {
    let mut text = OsString::from("lowerdir=");
    text.push(quote_path(&stack.lower(1)));
    text.push(":");
    text.push(quote_path(&stack.lower(2)));
    text.push(",upperdir=");
    text.push(quote_path(&stack.upper()));
    text.push(",workdir=");
    text.push(quote_path(&stack.work()));
    text.push(",fsname=unionfs-demo,log=error");
    text
}
