//! Files that are written without an open, and of which the kernel keeps what is written for a while.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use rustix::fs::SeekFrom as Seeking;
use rustix::io::Errno;
use rustix::mm::{MapFlags, MsyncFlags, ProtFlags};
use rustix::mount::UnmountFlags;

use crate::process::{abort, device_of, finish, unionfs, wait_for};
use crate::requests::Counter;
use crate::support::{Mount, Stack};
use crate::user::{DeviceMode, Place};

const MIB: usize = 1 << 20;

fn unopened(lower: &[&str]) -> Mount {
    Stack::new().lower(lower).mount_with("open=none")
}

fn write(m: &Mount, name: &str) -> File {
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(m.p(name))
        .unwrap()
}

/// Nothing is copied for an open, nor for what only the kernel's own time-keeping asks for.
#[test]
fn nothing_is_copied_without_a_change() {
    let m = unopened(&["f=text", "g=text", "g~h", "gone=text"]);
    let file = write(&m, "f");
    drop(write(&m, "g"));
    let gone = write(&m, "gone");
    fs::remove_file(m.p("gone")).unwrap();
    gone.sync_all().unwrap();
    let modified = fs::metadata(m.p("f")).unwrap().modified().unwrap();
    file.set_modified(modified).unwrap();
    fs::remove_file(m.p("h")).unwrap();
    assert!(!m.up("f").exists() && !m.up("g").exists());
    file.write_all_at(b"T", 0).unwrap();
    drop(file);
    assert_eq!(fs::read(m.up("f")).unwrap(), b"Text");
    drop(gone);
}

/// What is kept of a file that loses its name, or gets another, is not lost.
#[test]
fn names_change_before_it_is_written() {
    let mut m = unopened(&["moved=old", "gone=old", "over=old", "new=old", "d/x"]);
    let files = ["moved", "gone", "over", "new"].map(|name| (name, write(&m, name)));
    for (name, file) in &files {
        file.write_all_at(format!("{name}!").as_bytes(), 0).unwrap();
    }
    fs::rename(m.p("moved"), m.p("d/moved")).unwrap();
    fs::remove_file(m.p("gone")).unwrap();
    fs::rename(m.p("new"), m.p("over")).unwrap();
    for (name, file) in &files {
        file.sync_all().unwrap();
        rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
        let mut text = vec![0; name.len() + 1];
        file.read_exact_at(&mut text, 0).unwrap();
        assert_eq!(text, format!("{name}!").as_bytes());
    }
    drop(files);
    for _ in 0..2 {
        assert_eq!(fs::read(m.p("d/moved")).unwrap(), b"moved!");
        assert_eq!(fs::read(m.p("over")).unwrap(), b"new!");
        assert!(!m.p("gone").exists() && !m.p("new").exists());
        m.remount();
    }
}

/// Holes are found though the kernel asks before it sends what it keeps.
#[test]
fn holes_beside_what_is_kept() {
    let m = unopened(&["x"]);
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .open(m.p("f"))
        .unwrap();
    file.write_all_at(&[1; 4096], 4 * MIB as u64).unwrap();
    let at = |offset| rustix::fs::seek(&file, offset);
    assert_eq!(at(Seeking::Data(0)), Ok(4 * MIB as u64));
    assert_eq!(at(Seeking::Hole(4 * MIB as u64)), Ok(4 * MIB as u64 + 4096));
    file.write_all_at(&[2; 4096], MIB as u64).unwrap();
    assert_eq!(at(Seeking::Data(0)), Ok(MIB as u64));
    file.seek(SeekFrom::Start(0)).unwrap();
    let copy = finish(
        Command::new("cp")
            .arg("--sparse=auto")
            .arg(m.p("f"))
            .arg(m.p("copy")),
    );
    assert!(copy.status.success());
    assert!(fs::read(m.p("copy")).unwrap() == fs::read(m.p("f")).unwrap());
}

/// A mount that ends when it is dropped.
struct Ends(PathBuf);

impl Drop for Ends {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
    }
}

/// A tmpfs of so many MiB.
struct Small {
    _end: Ends,
    dir: tempfile::TempDir,
}

impl Small {
    fn new(mib: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let size = format!("size={mib}M");
        let mount = finish(
            Command::new("mount")
                .args(["-t", "tmpfs", "-o", &size, "tmpfs"])
                .arg(dir.path()),
        );
        assert!(mount.status.success(), "{}", mount.stderr);
        let _end = Ends(dir.path().to_owned());
        Self { _end, dir }
    }
}

/// What does not fit is told at the latest by fsync(2), and not shown afterwards as if it were there.
#[test]
fn no_space_for_what_is_kept() {
    let small = Small::new(4);
    let m = Stack::new()
        .upper_at(small.dir.path())
        .lower(["x"])
        .mount_with("open=none");
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .open(m.p("f"))
        .unwrap();
    let block = vec![7; MIB];
    let result = (0..8)
        .try_for_each(|_| file.write_all(&block))
        .and_then(|()| file.sync_all());
    let error = result.expect_err("8 MiB do not fit into 4");
    assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
    let stored = fs::read(m.up("f")).unwrap();
    // The pages are dropped after the answer.
    let shown = crate::process::wait_for(std::time::Duration::from_secs(10), || {
        let mut all = Vec::new();
        file.seek(SeekFrom::Start(0)).unwrap();
        file.read_to_end(&mut all).unwrap();
        let sevens = all.iter().filter(|&&b| b == 7).count();
        (sevens <= stored.iter().filter(|&&b| b == 7).count()).then_some(())
    });
    assert!(shown.is_some(), "what was not stored is shown");
}

/// Pages of a mapping that do not fit are an error too, where only a part of them does: the kernel takes
/// a short write for a whole one.
#[test]
fn no_space_for_a_part_of_a_mapping() {
    // Requests have 1 MiB; one of them is short, and none comes after it that has no space at all.
    const LEN: usize = 3 * MIB + MIB / 2;
    for way in ["cached", "none"] {
        let small = Small::new(4);
        let m = Stack::new()
            .upper_at(small.dir.path())
            .lower(["x"])
            .mount_with(&format!("open={way}"));
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(m.p("f"))
            .unwrap();
        fs::write(m.up("filler"), vec![1; MIB / 4 * 3]).unwrap();
        file.set_len(LEN as u64).unwrap();
        // SAFETY: a new mapping of a file that lives longer.
        let start = unsafe {
            let flags = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
            rustix::mm::mmap(std::ptr::null_mut(), LEN, flags.0, flags.1, file.as_fd(), 0)
        };
        let start = start.unwrap().cast::<u8>();
        // SAFETY: the mapping has so many bytes, and is taken away after its last use.
        let synced = unsafe {
            start.write_bytes(7, LEN);
            let synced = rustix::mm::msync(start.cast(), LEN, MsyncFlags::SYNC);
            rustix::mm::munmap(start.cast(), LEN).unwrap();
            synced
        };
        let synced = synced.and_then(|()| rustix::fs::fsync(&file));
        assert_eq!(synced, Err(Errno::NOSPC), "open={way}");
    }
}

/// Appending to an append-only file, in pieces that the kernel sends all at once.
#[test]
fn much_is_appended_to_an_append_only_file() {
    for way in ["none", "none,writeback=0"] {
        let mut m = Stack::new()
            .upper(["log=begin;"])
            .lower(["x"])
            .mount_with(&format!("open={way}"));
        let chattr = |how: &str, m: &Mount| {
            let outcome = finish(Command::new("chattr").arg(how).arg(m.up("log")));
            assert!(
                outcome.status.success(),
                "needs a filesystem with chattr: {}",
                outcome.stderr
            );
        };
        chattr("+a", &m);
        m.remount();
        let data: Vec<u8> = (0..9 * MIB + 333).map(|at| (at % 251) as u8).collect();
        let mut log = OpenOptions::new().append(true).open(m.p("log")).unwrap();
        for piece in data.chunks(MIB + 77) {
            log.write_all(piece).unwrap();
        }
        log.sync_all().unwrap();
        drop(log);
        let overwritten = OpenOptions::new().write(true).open(m.p("log"));
        let overwritten =
            overwritten.and_then(|file| file.write_all_at(b"X", 3).and_then(|()| file.sync_all()));
        assert_eq!(overwritten.unwrap_err().raw_os_error(), Some(libc::EPERM));
        let stored = fs::read(m.up("log")).unwrap();
        chattr("-a", &m);
        assert!(
            stored == [b"begin;".as_slice(), &data].concat(),
            "open={way}"
        );
    }
}

/// Times are the kernel's while it keeps what was written, and what was set stays set.
#[test]
fn times_are_stored() {
    let mut m = unopened(&["f=text", "touched=text"]);
    let mut file = write(&m, "f");
    file.write_all(b"new").unwrap();
    let written = file.metadata().unwrap();
    std::thread::sleep(std::time::Duration::from_millis(50));
    drop(file);
    let file = write(&m, "touched");
    file.write_all_at(b"new", 0).unwrap();
    let then = std::time::UNIX_EPOCH + std::time::Duration::new(7, 8);
    file.set_modified(then).unwrap();
    drop(file);
    for _ in 0..2 {
        let now = fs::metadata(m.p("f")).unwrap();
        assert_eq!(
            (now.mtime(), now.mtime_nsec()),
            (written.mtime(), written.mtime_nsec())
        );
        assert_eq!(
            fs::metadata(m.p("touched")).unwrap().modified().unwrap(),
            then
        );
        m.remount();
    }
}

/// Counting sees what really came: the kernel's own counter is the judge of `budgets`.
#[test]
fn a_request_is_counted_once() {
    let m = unopened(&["f=text"]);
    let counter = Counter::new(&m);
    assert_eq!(
        counter.of(|| assert!(rustix::fs::statfs(m.path()).is_ok())),
        "Statfs"
    );
}

/// Where the upper's filesystem may tell only at close what went wrong, it is asked.
#[test]
fn close_asks_an_upper_on_fuse() {
    let layers = Stack::new().lower(["f=text"]).build();
    let at = |name: &str| {
        let path = layers.scratch().join(name);
        fs::create_dir(&path).unwrap();
        path
    };
    let (below, upper, work, mnt) = (at("below"), at("changes"), at("changes.work"), at("fuse"));
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        below.display(),
        upper.display(),
        work.display()
    );
    let mounted = finish(
        Command::new("fuse-overlayfs")
            .arg("-o")
            .arg(options)
            .arg(&mnt),
    );
    assert!(mounted.status.success(), "{}", mounted.stderr);
    let _end = Ends(mnt.clone());
    let m = Stack::new()
        .upper_at(&mnt)
        .lower(["f=text"])
        .mount_with("open=cached");
    let counter = Counter::new(&m);
    fs::read(m.p("f")).unwrap();
    let read = || drop(File::open(m.p("f")).unwrap());
    assert_eq!(counter.of(read), "Open Release");
    // New, as this filesystem would not have the temporaries of a copy-up.
    let mut file = File::create_new(m.p("new")).unwrap();
    file.write_all(b"text").unwrap();
    assert_eq!(counter.of(|| drop(file)), "Release Flush");
    drop(counter);
}

/// What the kernel writes back by itself it sends in the name of root, whoever mounted.
#[test]
fn times_are_stored_for_an_ordinary_user() {
    let _device = DeviceMode::set(0o666);
    let place = Place::new();
    let text = format!(
        "$unionfs -o \"$options,open=none\" \"$mnt\"\n\
         code=0; python3 -c '\n\
         import ctypes, os, sys, time\n\
         shown, stored = sys.argv[1:]\n\
         file = os.open(shown, os.O_RDWR)\n\
         os.write(file, b\"more\")\n\
         time.sleep(0.2)\n\
         if ctypes.CDLL(None).syncfs(file) != 0: sys.exit(\"syncfs\")\n\
         times = [os.stat(path).st_mtime_ns for path in (shown, stored)]\n\
         if times[0] != times[1]: sys.exit(str(times))\n\
         ' \"$mnt/f\" {}/f || code=$?\n\
         $unionfs umount \"$mnt\"\n\
         exit $code",
        place.layers.upper_path().display()
    );
    let outcome = place.script(&[], &text);
    place.check();
    assert!(
        outcome.status.success(),
        "{}{}",
        outcome.stdout,
        outcome.stderr
    );
}

/// What waits for the kernel to write back does not take the threads that the writes need.
#[test]
fn a_hole_is_found_with_one_thread_for_slow_work() {
    let layers = Stack::new().lower([""; 0]).build();
    fs::write(layers.lowers[0].join("big"), vec![b'x'; MIB]).unwrap();
    let mut command = Command::new(unionfs());
    command.env("BLOCKING_MAX_THREADS", "1").arg("-o");
    let done = finish(command.arg(layers.options("open=none")).arg(&layers.mnt));
    assert!(done.status.success(), "{}", done.stderr);
    let (tell, told) = std::sync::mpsc::channel();
    let path = layers.mnt.join("big");
    std::thread::spawn(move || {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
            .unwrap();
        file.write_all_at(b"y", 4096).unwrap();
        let hole = rustix::fs::seek(&file, Seeking::Hole(0)).unwrap();
        drop(file);
        tell.send(hole).unwrap();
    });
    let hole = told.recv_timeout(Duration::from_secs(30));
    if hole.is_err() {
        abort(device_of(&layers.mnt).unwrap());
    }
    let unmount = || rustix::mount::unmount(&layers.mnt, UnmountFlags::empty()).ok();
    wait_for(Duration::from_secs(10), unmount).expect("nobody uses it");
    assert_eq!(hole, Ok(MIB as u64));
}
