//! The inner process: it makes the root directory of the command, and is the first of its processes.

use std::ffi::OsString;
use std::fs;
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::kill;
use nix::unistd::Pid;

use crate::sys::daemonize::{self, Side};
use crate::sys::namespace::{self, Own};

use super::plan::{Part, Shows};
use super::signals::Signals;
use super::{Result, below, failed};

/// As env(1) has it: the program is not there, or cannot be started.
const NOT_FOUND: u8 = 127;
const NOT_STARTED: u8 = 126;
/// Something of ours failed, and was told.
const OURS: u8 = 125;

/// Devices that belong to nobody.
const DEVICES: [&str; 7] = ["full", "fuse", "null", "random", "tty", "urandom", "zero"];
/// Parts of /proc by which root would change the machine.
const GUARDED: [&str; 6] = ["sys", "sysrq-trigger", "irq", "bus", "fs", "acpi"];

/// What the command gets.
pub(super) struct Inside<'a> {
    /// Its root directory.
    pub view: &'a Path,
    /// Directories of ours that it does not get.
    pub hidden: Vec<&'a Path>,
    /// What is mounted below the root directory.
    pub parts: &'a [Part],
    pub net: bool,
    /// The view is one of our own root directory.
    pub of_host: bool,
    pub command: &'a [OsString],
}

impl Inside<'_> {
    /// Runs the command; returns its status.
    pub fn run(&self) -> Result<u8> {
        let cwd = std::env::current_dir().ok();
        let signals = Signals::block().map_err(|e| failed("signals", e))?;
        let own = Own {
            processes: true,
            ..Own::default()
        };
        namespace::leave(own).map_err(|e| failed("a process namespace", e))?;
        match daemonize::fork().map_err(|e| failed("a process", e))? {
            Side::Child => std::process::exit(i32::from(self.first(&signals, cwd))),
            Side::Parent(process) => {
                // What the terminal sent before there was this process, only we have got.
                if let Some(signal) = signals.came() {
                    let _ = kill(process, signal);
                }
                let status = signals.wait_for(process);
                status.map_err(|e| failed("the command", e))
            }
        }
    }

    /// The first process.
    fn first(&self, signals: &Signals, cwd: Option<PathBuf>) -> u8 {
        if let Err((what, e)) = self.prepare(cwd) {
            let _ = writeln!(io::stderr(), "unionfs: {}: {e}", what.display());
            return OURS;
        }
        let mut words = self.command.iter();
        let Some(program) = words.next() else {
            return OURS;
        };
        if let Some(signal) = signals.came() {
            return 128 + u8::try_from(signal as i32).unwrap_or(0);
        }
        let mut command = Command::new(program);
        let started = signals.unblocked(|| command.args(words).spawn());
        let status = match started.and_then(|child| child) {
            Ok(child) => {
                let process = i32::try_from(child.id()).map(Pid::from_raw);
                let Ok(process) = process else { return OURS };
                signals.wait_for(process).map_err(|e| (e, OURS))
            }
            Err(e) if e.kind() == ErrorKind::NotFound => Err((e, NOT_FOUND)),
            Err(e) => Err((e, NOT_STARTED)),
        };
        status.unwrap_or_else(|(e, status)| {
            let _ = writeln!(io::stderr(), "unionfs: {}: {e}", program.display());
            status
        })
    }

    fn prepare(&self, cwd: Option<PathBuf>) -> std::result::Result<(), (PathBuf, io::Error)> {
        let at = |path: &Path| {
            let path = path.to_owned();
            move |e: io::Error| (path, e)
        };
        let view = self.view;
        let own = Own {
            mounts: true,
            network: !self.net,
            ..Own::default()
        };
        namespace::end_with_parent().map_err(at(view))?;
        namespace::leave(own).map_err(at(Path::new("namespaces")))?;
        if !self.net {
            namespace::bring_up_loopback().map_err(at(Path::new("lo")))?;
        }
        for part in self.parts.iter().filter(|p| p.shows == Shows::ReadOnly) {
            let target = below(view, &part.path);
            let bound = namespace::bind(&part.path, &target, true);
            match bound {
                // It was unmounted meanwhile.
                Err(crate::sys::Errno::NOENT | crate::sys::Errno::NOTDIR) => {}
                bound => bound.map_err(|e| at(&part.path)(e.into()))?,
            }
        }
        for dir in &self.hidden {
            let target = below(view, dir);
            if target.is_dir() {
                let hidden = namespace::mount_new("tmpfs", &target, "mode=700,size=4k,ro", false);
                hidden.map_err(|e| at(dir)(e.into()))?;
            }
        }
        processes(&view.join("proc")).map_err(at(Path::new("/proc")))?;
        system(&view.join("sys")).map_err(at(Path::new("/sys")))?;
        devices(&view.join("dev")).map_err(at(Path::new("/dev")))?;
        self.runtime(&view.join("run"))
            .map_err(at(Path::new("/run")))?;
        namespace::enter_root(view).map_err(at(view))?;
        if let Some(cwd) = cwd {
            // As a program would find that is not told where it is.
            let _ = std::env::set_current_dir(cwd);
        }
        Ok(())
    }

    /// An empty /run, so that nothing of the machine can be talked to; but for names of hosts.
    fn runtime(&self, dir: &Path) -> io::Result<()> {
        namespace::mount_new("tmpfs", dir, "mode=755", false)?;
        let lock = dir.join("lock");
        fs::create_dir(&lock)?;
        fs::set_permissions(&lock, fs::Permissions::from_mode(0o1777))?;
        if !self.net || !self.of_host {
            return Ok(());
        }
        for name in ["systemd/resolve", "resolvconf", "NetworkManager"] {
            let from = Path::new("/run").join(name);
            let to = dir.join(name);
            if from.is_dir() {
                fs::create_dir_all(&to)?;
                namespace::bind(&from, &to, true)?;
            }
        }
        Ok(())
    }
}

/// A /proc of the command's own processes. In a container whose /proc is covered in parts an ordinary user
/// may not have one, and gets that of the container.
fn processes(dir: &Path) -> io::Result<()> {
    match namespace::mount_new("proc", dir, "", false) {
        Ok(()) => {}
        Err(crate::sys::Errno::PERM) => {
            namespace::bind(Path::new("/proc"), dir, false)?;
        }
        Err(e) => return Err(e.into()),
    }
    for name in GUARDED {
        let path = dir.join(name);
        if path.exists() {
            namespace::bind(&path, &path, true)?;
        }
    }
    Ok(())
}

fn system(dir: &Path) -> io::Result<()> {
    Ok(namespace::bind(Path::new("/sys"), dir, true)?)
}

/// A /dev without disks.
fn devices(dir: &Path) -> io::Result<()> {
    namespace::mount_new("tmpfs", dir, "mode=755", true)?;
    for name in DEVICES {
        let from = Path::new("/dev").join(name);
        let to = dir.join(name);
        if from.exists() {
            fs::write(&to, "")?;
            namespace::bind(&from, &to, false)?;
        }
    }
    let links = [
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
        ("core", "/proc/kcore"),
        ("ptmx", "pts/ptmx"),
    ];
    for (name, target) in links {
        symlink(target, dir.join(name))?;
    }
    let (terminals, memory) = (dir.join("pts"), dir.join("shm"));
    fs::create_dir(&terminals)?;
    fs::create_dir(&memory)?;
    if Path::new("/dev/pts").exists() {
        namespace::bind(Path::new("/dev/pts"), &terminals, false)?;
    }
    Ok(namespace::mount_new("tmpfs", &memory, "mode=1777", false)?)
}
