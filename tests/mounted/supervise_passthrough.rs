//! Files that the kernel reads and writes itself, and the server that gave them to it killed.

use std::ffi::OsString;
use std::fs::{self, DirEntry, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::process::Command;
use std::time::Duration;

use rustix::fs::OFlags;
use rustix::mm::{MapFlags, ProtFlags};

use crate::calls::contents;
use crate::process::{copy_program, finish};
use crate::requests::Counter;
use crate::supervise::{keeper, kill_server, server};
use crate::supervise_again::done_unanswered;
use crate::support::{Mount, Stack};
use crate::ways_user::good;

fn mount() -> Mount {
    Stack::new()
        .upper(["up=upper", "log=0\n"])
        .lower(["low=lower", "other=other", "d/prog=#!"])
        .mount_with("supervise,open=passthrough")
}

fn write(m: &Mount, name: &str) -> File {
    let mut options = OpenOptions::new();
    options.read(true).write(true).open(m.p(name)).unwrap()
}

fn text(file: &mut File) -> String {
    let mut text = String::new();
    file.seek(SeekFrom::Start(0)).unwrap();
    file.read_to_string(&mut text).unwrap();
    text
}

/// What is open goes on with its file, what is opened anew gets the same one by another id.
#[test]
fn open_files_meet_new_ones() {
    let m = mount();
    let mut up = write(&m, "up");
    let mut low = m.open("low", OFlags::RDONLY).unwrap();
    let mut log = OpenOptions::new().append(true).open(m.p("log")).unwrap();
    for n in 1..=4 {
        kill_server(m.path());
        up.write_all_at(&[b'0' + n], 0).unwrap();
        writeln!(log, "{n}").unwrap();
        let mut again = write(&m, "up");
        assert_eq!(text(&mut again), format!("{n}pper"));
        again.write_all_at(b"P", 1).unwrap();
        assert_eq!(text(&mut up), format!("{n}Pper"));
        again.write_all_at(b"p", 1).unwrap();
        assert_eq!(
            again.metadata().unwrap().ino(),
            up.metadata().unwrap().ino()
        );
        let mut second = OpenOptions::new().append(true).open(m.p("log")).unwrap();
        writeln!(second, "{n}{n}").unwrap();
        assert_eq!(contents(&low), b"lower");
        m.assert_file("low", "lower");
        // Some are closed by another server than they were opened by.
        if n == 2 {
            up = again;
            low = m.open("low", OFlags::RDONLY).unwrap();
        }
    }
    m.assert_file("log", "0\n1\n11\n2\n22\n3\n33\n4\n44\n");
    drop((up, low, log));
    m.assert_file("up", "4pper");
}

/// The file of a lower that is open when it is copied up, before and after a kill.
#[test]
fn copied_up_meanwhile() {
    let m = mount();
    let low = m.open("low", OFlags::RDONLY).unwrap();
    let other = m.open("other", OFlags::RDONLY).unwrap();
    fs::write(m.p("low"), "LOWER").unwrap();
    for round in 0..3 {
        kill_server(m.path());
        m.assert_file("low", "LOWER");
        assert_eq!(contents(&low), b"lower", "as in overlayfs; {round}");
        fs::write(m.p("other"), format!("OTHER{round}")).unwrap();
        assert_eq!(contents(&other), b"other");
        m.assert_file("other", &format!("OTHER{round}"));
        let numbers = [&low, &other].map(|fd| rustix::fs::fstat(fd).unwrap().st_ino);
        assert_eq!(
            numbers,
            [
                m.stat("low").unwrap().st_ino,
                m.stat("other").unwrap().st_ino
            ]
        );
    }
}

/// A mapping is the file's of its layer; nobody is asked, before a kill and after it.
#[test]
fn mapped_meanwhile() {
    let m = mount();
    let file = write(&m, "up");
    let (prot, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
    // SAFETY: a new mapping at the kernel's choice.
    let at = unsafe { rustix::mm::mmap(std::ptr::null_mut(), 5, prot, flags, &file, 0) }.unwrap();
    let at = at.cast::<u8>();
    drop(file);
    for letter in b"abc" {
        kill_server(m.path());
        // SAFETY: the file has five bytes, and is never cut.
        unsafe { at.write_volatile(*letter) };
        let shown = format!("{}pper", char::from(*letter));
        m.assert_file("up", &shown);
        assert_eq!(fs::read_to_string(m.up("up")).unwrap(), shown);
        let mut again = write(&m, "up");
        assert_eq!(text(&mut again), shown);
    }
    // SAFETY: it is the mapping made above.
    unsafe { rustix::mm::munmap(at.cast(), 5) }.unwrap();
}

/// Deleted files too, and those that were made and never closed.
#[test]
fn without_names() {
    let m = mount();
    let mut made = OpenOptions::new();
    let mut made = made
        .read(true)
        .write(true)
        .create_new(true)
        .open(m.p("made"))
        .unwrap();
    made.write_all(b"new").unwrap();
    let mut up = write(&m, "up");
    fs::remove_file(m.p("up")).unwrap();
    fs::remove_file(m.p("made")).unwrap();
    for round in ["1", "2", "3"] {
        kill_server(m.path());
        for file in [&mut made, &mut up] {
            file.write_all_at(round.as_bytes(), 0).unwrap();
            assert!(text(file).starts_with(round));
            assert_eq!(file.metadata().unwrap().nlink(), 0);
            let again = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(file));
            let mut again = File::open(again).unwrap();
            assert_eq!(text(&mut again), text(file));
        }
        fs::write(m.p("up"), "another").unwrap();
        m.assert_file("up", "another");
        fs::remove_file(m.p("up")).unwrap();
    }
}

/// Programs that run go on and can be started again.
#[test]
fn programs_that_run() {
    let m = mount();
    copy_program("/bin/sleep", m.p("sleep"));
    let mut running = Command::new(m.p("sleep")).arg("60").spawn().unwrap();
    for _ in 0..3 {
        kill_server(m.path());
        good(&finish(Command::new(m.p("sleep")).arg("0")));
        assert!(running.try_wait().unwrap().is_none());
    }
    running.kill().unwrap();
    running.wait().unwrap();
}

/// It is passthrough still: the server hears of no read and no write.
#[test]
fn the_server_is_not_asked() {
    let m = mount();
    let file = write(&m, "up");
    for _ in 0..2 {
        kill_server(m.path());
        let new = write(&m, "up");
        let made = File::create(m.p("made")).unwrap();
        let seen = Counter::new(&m).of(|| {
            for n in 0..100 {
                file.write_all_at(b"1", n).unwrap();
                new.write_all_at(b"2", n).unwrap();
                made.write_all_at(b"3", n).unwrap();
                new.read_exact_at(&mut [0], n).unwrap();
            }
        });
        assert!(!seen.contains("Read") && !seen.contains("Write"), "{seen}");
    }
}

/// Before a file that is opened to be written through is flushed for the first time: the open is noted.
const NOTED: &str = "fsync,fdatasync:delay_enter=60000000";

/// A thread of the server is held up, and has been for a while.
fn is_held_up(m: &Mount) -> bool {
    let pid = server(m.path(), keeper(m.path()));
    let held_up = || -> Vec<OsString> {
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
        let stat =
            |task: &DirEntry| fs::read_to_string(task.path().join("stat")).unwrap_or_default();
        let stopped = tasks.filter(|task| stat(task).contains(") t "));
        stopped.map(|task| task.file_name()).collect()
    };
    let mut all = held_up();
    for _ in 0..50 {
        std::thread::sleep(Duration::from_millis(10));
        let now = held_up();
        all.retain(|task| now.contains(task));
    }
    !all.is_empty()
}

/// What the last server had noted as open was not opened if its answer did not arrive.
#[test]
fn an_open_that_meets_two_ends() {
    let m = mount();
    // Each end has found it open before it, and each open was under way at an end.
    let mut all = vec![write(&m, "up")];
    for round in ["1", "2", "3"] {
        let open = || {
            let mut options = OpenOptions::new();
            let options = options.read(true).write(true);
            options.custom_flags(libc::O_DSYNC).open(m.p("up"))
        };
        // Only the first flush of a server is one of its own.
        kill_server(m.path());
        let mut file = done_unanswered(&m, NOTED, open, || is_held_up(&m)).unwrap();
        file.write_all_at(round.as_bytes(), 0).unwrap();
        all.push(file.try_clone().unwrap());
        for other in &mut all {
            assert!(text(other).starts_with(round));
        }
        m.assert_file("up", &text(&mut file));
    }
}

/// What each thread writes to the kernel after the first time. The kernel looks the name up before; and it is
/// told that the file may be mapped, after the open is noted, before it is answered.
const MADE: &str = "writev:delay_enter=60000000:when=2+";

/// Nobody else can have made it.
#[test]
fn made_and_not_answered() {
    let m = mount();
    for name in ["one", "two"] {
        let make = || {
            let mut options = OpenOptions::new();
            options
                .read(true)
                .write(true)
                .create_new(true)
                .open(m.p(name))
        };
        let done = || m.up(name).exists() && is_held_up(&m);
        let mut made = done_unanswered(&m, MADE, make, done).unwrap();
        made.write_all(name.as_bytes()).unwrap();
        kill_server(m.path());
        assert_eq!(text(&mut made), name);
        m.assert_file(name, name);
    }
}
