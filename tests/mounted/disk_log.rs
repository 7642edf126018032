//! A disk that remembers every write and every flush, so that a power cut at any moment can be made
//! up: one file of a FUSE filesystem (`disk_server`) under a loop device.
//!
//! A real disk may bring what was written since its last finished flush to the medium in any order,
//! or not at all; what a flush covers is there.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::mount::UnmountFlags;

use crate::crash::Random;
use crate::disk_server::{self, Server};
use crate::process::wait_for;

/// What came to the disk.
#[derive(Clone, Debug)]
pub enum Event {
    Write(u64, Vec<u8>),
    Flush,
}

/// Options of mount(8) for what a power cut has left. A filesystem that somebody's copy of the mount namespace has
/// lives on there, and XFS refuses a second one with the same number unless told not to mind.
fn replayed(kind: &str) -> &'static str {
    if kind == "xfs" { "nouuid" } else { "defaults" }
}

/// A filesystem on such a disk, mounted until this is dropped or [`Self::end`].
pub struct Logged {
    /// Where the filesystem is mounted.
    pub at: PathBuf,
    base: PathBuf,
    replayed: &'static str,
    server: Option<(LoopMount, Server)>,
    scratch: tempfile::TempDir,
}

impl Logged {
    /// Makes the filesystem `kind` with these options of mount(8).
    pub fn new(kind: &str, size: u64, make: &[&str], options: &str) -> Self {
        let scratch = tempfile::Builder::new()
            .prefix("unionfs-disk-")
            .tempdir()
            .unwrap();
        let at = |name: &str| scratch.path().join(name);
        for dir in ["server", "at", "replay"] {
            fs::create_dir(at(dir)).unwrap();
        }
        File::create(at("base")).unwrap().set_len(size).unwrap();
        run(Command::new(format!("mkfs.{kind}"))
            .arg("-q")
            .args(make)
            .arg(at("base")));
        copy_sparse(&at("base"), &at("content"));
        let server = Server::start(scratch.path());
        let mount = LoopMount::new(&at("server/disk"), &at("at"), options);
        Self {
            at: at("at"),
            base: at("base"),
            replayed: replayed(kind),
            server: Some((mount, server)),
            scratch,
        }
    }

    /// How much has come to the disk so far.
    pub fn position(&self) -> usize {
        disk_server::position(self.scratch.path())
    }

    /// Has writes fail, or not any longer.
    pub fn set_failing(&self, fails: bool) {
        disk_server::set_failing(self.scratch.path(), fails);
    }

    /// Unmounts; what was written until then can be cut off anywhere.
    pub fn end(mut self) -> Cuts {
        let until = self.position();
        self.stop();
        let scratch = std::mem::replace(&mut self.scratch, tempfile::tempdir().unwrap());
        Cuts {
            medium: open(&self.base),
            base: self.base.clone(),
            replayed: self.replayed,
            done: 0,
            log: disk_server::events(scratch.path(), until),
            scratch,
        }
    }

    fn stop(&mut self) {
        if let Some((mount, server)) = self.server.take() {
            drop(mount);
            // The kernel lets go of the loop device's file a little later.
            let at = self.scratch.path().join("server");
            let gone = || rustix::mount::unmount(&at, UnmountFlags::empty()).ok();
            wait_for(Duration::from_secs(20), gone).expect("nothing uses the disk");
            server.join();
        }
    }
}

impl Drop for Logged {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The disk after power cuts, from the first moment on.
pub struct Cuts {
    base: PathBuf,
    replayed: &'static str,
    medium: File,
    done: usize,
    log: Vec<Event>,
    scratch: tempfile::TempDir,
}

impl Cuts {
    /// The moments right before each flush, at which most is at stake.
    pub fn moments(&self) -> Vec<usize> {
        let flushes = self.log.iter().enumerate();
        flushes
            .filter_map(|(at, event)| matches!(event, Event::Flush).then_some(at))
            .collect()
    }

    /// Cuts the power at `moment`, which comes after those before, mounts what the disk holds, and
    /// has `check` look at it. Of what no flush covers, about one write in `one_in` is on the disk
    /// (0: none, 1: all).
    pub fn cut(
        &mut self, moment: usize, one_in: u64, random: &mut Random, check: impl FnOnce(&Path),
    ) {
        let flushed = self.log[..moment]
            .iter()
            .rposition(|event| matches!(event, Event::Flush))
            .unwrap_or(0);
        for event in &self.log[self.done..flushed.max(self.done)] {
            event.apply(&self.medium);
        }
        self.done = self.done.max(flushed);
        let image = self.scratch.path().join("image");
        // A file of its own each time: the filesystem of the last cut lives on, and writes when it ends, as
        // long as somebody's copy of the mount namespace has it.
        let _ = fs::remove_file(&image);
        copy_sparse(&self.base, &image);
        let disk = open(&image);
        for event in &self.log[self.done..moment] {
            if one_in > 0 && random.below(one_in) == 0 {
                event.apply(&disk);
            }
        }
        drop(disk);
        let at = self.scratch.path().join("replay");
        let _mount = LoopMount::new(&image, &at, self.replayed);
        check(&at);
    }
}

impl Event {
    fn apply(&self, disk: &File) {
        if let Self::Write(offset, data) = self {
            disk.write_all_at(data, *offset).unwrap();
        }
    }
}

/// A filesystem in a file, mounted until this is dropped.
struct LoopMount {
    device: PathBuf,
    at: PathBuf,
}

impl LoopMount {
    fn new(file: &Path, at: &Path, options: &str) -> Self {
        // A device of its own: mount(8) would take one again that is still there for the same file,
        // with what it has cached.
        let device = run(Command::new("losetup").args(["--find", "--show"]).arg(file));
        let mount = Self {
            device: device.trim().into(),
            at: at.to_owned(),
        };
        run(Command::new("mount")
            .args(["-o", options])
            .arg(&mount.device)
            .arg(at));
        mount
    }
}

impl Drop for LoopMount {
    fn drop(&mut self) {
        // A child of another test has our descriptors from its fork to its exec.
        let unmount = || rustix::mount::unmount(&self.at, UnmountFlags::empty()).ok();
        let is_gone = wait_for(Duration::from_secs(30), unmount).is_some();
        let _ = Command::new("losetup").arg("-d").arg(&self.device).status();
        assert!(is_gone || std::thread::panicking(), "it stays mounted");
    }
}

fn open(path: &Path) -> File {
    File::options().read(true).write(true).open(path).unwrap()
}

fn copy_sparse(from: &Path, to: &Path) {
    run(Command::new("cp").arg("--sparse=always").args([from, to]));
}

/// What the program prints; it must succeed.
fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Other tests, and programs that are not ours at all, copy the mount namespace whenever they like.
#[test]
fn cuts_go_on_while_a_namespace_has_the_last_one() {
    if disk_server::serves() {
        return;
    }
    for (kind, size) in [("ext4", 32 << 20), ("xfs", 320 << 20)] {
        let disk = Logged::new(kind, size, &[], "defaults");
        let mut file = File::create(disk.at.join("f")).unwrap();
        std::io::Write::write_all(&mut file, b"text").unwrap();
        file.sync_all().unwrap();
        drop(file);
        let at = disk.position();
        let (mut cuts, mut random) = (disk.end(), Random(1));
        let mut holder = None;
        cuts.cut(at, 1, &mut random, |_| {
            let mut unshare = Command::new("unshare");
            unshare.args(["--mount", "--propagation", "private", "sleep", "600"]);
            let child = unshare.spawn().unwrap();
            let namespace = |pid: u32| fs::read_link(format!("/proc/{pid}/ns/mnt")).ok();
            let own = namespace(std::process::id());
            let has_copy = || (namespace(child.id()) != own).then_some(());
            wait_for(Duration::from_secs(20), has_copy).expect("a namespace");
            holder = Some(child);
        });
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            cuts.cut(at, 1, &mut random, |disk| {
                assert_eq!(fs::read(disk.join("f")).unwrap(), b"text");
            });
        }));
        let mut holder = holder.unwrap();
        holder.kill().unwrap();
        holder.wait().unwrap();
        assert!(result.is_ok(), "{kind}: it cannot be mounted");
    }
}
