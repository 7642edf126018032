//! Defects seen in other union filesystems: mounts that are not there yet or not gone, memory
//! that does not come back, flags that cannot be asked for.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::Command;
use std::time::Duration;

use rustix::fs::{IFlags, OFlags};
use rustix::mount::UnmountFlags;
use rustix::process::{Pid, Signal, kill_process};

use crate::calls::{Caller, contents};
use crate::fails;
use crate::process::{CACHES, device_of, finish, run, wait_for};
use crate::support::{Mount, Stack};

fn signal(m: &Mount, signal: Signal) {
    kill_process(Pid::from_raw(m.pid()).unwrap(), signal).unwrap();
}

#[test]
fn mount_answers_before_the_command_returns() {
    let mut m = Stack::new().lower(["f=1"]).mount();
    for round in 0..50 {
        m.assert_file("f", "1");
        m.write(&format!("n{round}"), "n").unwrap();
        m.remount();
    }
    assert_eq!(m.ls("").len(), 51);
}

/// After each of these nothing may be left: neither a dead mount nor the daemon nor temporaries.
#[test]
fn signals_end_the_mount() {
    let mut m = Stack::new().lower(["f=1", "g=2"]).mount();
    for kind in [Signal::TERM, Signal::INT] {
        m.chmod("f", 0o600).unwrap();
        signal(&m, kind);
        m.ended().unwrap();
        // The mount point is the plain directory again.
        assert_eq!(fs::read_dir(m.path()).unwrap().count(), 0);
        m.mount_again();
        m.assert_ls("", &["f", "g"]);
    }
}

#[test]
fn signal_in_the_middle_of_work() {
    let items: Vec<String> = (0..500).map(|index| format!("f{index}=text")).collect();
    let mut m = Stack::new().lower(&items).mount();
    let path = m.path().to_owned();
    let worker = std::thread::spawn(move || {
        let flags = rustix::fs::Mode::from_raw_mode(0o600);
        (0..500)
            .take_while(|index| rustix::fs::chmod(path.join(format!("f{index}")), flags).is_ok())
            .count()
    });
    let begun = || m.up("f3").exists().then_some(());
    wait_for(Duration::from_secs(10), begun).expect("nothing was copied up");
    signal(&m, Signal::TERM);
    m.ended().unwrap();
    worker.join().unwrap();
    m.mount_again();
    for index in 0..500 {
        m.assert_file(&format!("f{index}"), "text");
    }
}

#[test]
fn unmount_commands_end_the_daemon() {
    let mut m = Stack::new().lower(["f=1"]).mount();
    for command in ["umount", "fusermount3 -u", "unionfs umount"] {
        m.assert_file("f", "1");
        let mut words = command.split(' ');
        let program = match words.next().unwrap() {
            "unionfs" => crate::process::unionfs(),
            other => other,
        };
        let words: Vec<_> = words.collect();
        // A process just forked by another test may hold a copy of a descriptor for a moment.
        let outcome = crate::process::wait_for(std::time::Duration::from_secs(10), || {
            let outcome = finish(Command::new(program).args(&words).arg(m.path()));
            (!outcome.stderr.contains("busy")).then_some(outcome)
        });
        let outcome = outcome.expect("busy");
        assert!(outcome.status.success(), "{command}: {}", outcome.stderr);
        m.ended().unwrap();
        m.mount_again();
    }
    m.unmount();
    let outcome = run(&["umount".as_ref(), m.path().as_os_str()]);
    assert_eq!(outcome.status.code(), Some(1), "nothing is mounted there");
    assert_eq!(outcome.stderr.lines().count(), 1, "{}", outcome.stderr);
}

/// A busy mount refuses a plain unmount and stays usable.
#[test]
fn busy_mount_stays() {
    let m = Stack::new().lower(["f=1"]).mount();
    let fd = m.open("f", OFlags::RDONLY).unwrap();
    fails!(
        rustix::mount::unmount(m.path(), UnmountFlags::empty()),
        BUSY
    );
    m.assert_file("f", "1");
    let outcome = run(&["umount".as_ref(), m.path().as_os_str()]);
    assert_eq!(outcome.status.code(), Some(1));
    assert_eq!(outcome.stderr.lines().count(), 1, "{}", outcome.stderr);
    assert_eq!(contents(&fd), b"1");
}

#[test]
fn lazy_unmount_serves_open_files_until_they_are_closed() {
    let mut m = Stack::new()
        .upper(["u=upper"])
        .lower(["l=lower", "r=read"])
        .mount();
    let upper = m.open("u", OFlags::RDWR).unwrap();
    let lower = m.open("l", OFlags::RDWR).unwrap();
    let reader = m.open("r", OFlags::RDONLY).unwrap();
    let pid = m.pid();
    rustix::mount::unmount(m.path(), UnmountFlags::DETACH).unwrap();
    assert!(device_of(m.path()).is_none());
    std::thread::sleep(Duration::from_millis(300));
    for fd in [&upper, &lower] {
        rustix::io::pwrite(fd, b"NEW", 0).unwrap();
        rustix::fs::fsync(fd).unwrap();
        assert!(contents(fd).starts_with(b"NEW"));
    }
    assert_eq!(contents(&reader), b"read");
    assert!(crate::process::alive(pid));
    drop((upper, lower, reader));
    m.ended().unwrap();
    assert_eq!(fs::read(m.up("l")).unwrap(), b"NEWer");
    assert_eq!(fs::read(m.up("u")).unwrap(), b"NEWer");
}

/// SIGTERM with open files: the mount point must be free at once.
#[test]
fn signal_with_an_open_file() {
    let mut m = Stack::new().lower(["f=1"]).mount();
    let fd = m.open("f", OFlags::RDONLY).unwrap();
    signal(&m, Signal::TERM);
    wait_for(Duration::from_secs(10), || {
        device_of(m.path()).is_none().then_some(())
    })
    .expect("the mount is still there after SIGTERM");
    drop(fd);
    m.ended().unwrap();
}

/// A daemon that is killed leaves a dead mount, but layers that mount again.
#[test]
fn killed_daemon_leaves_good_layers() {
    let mut m = Stack::new().lower(["f=1", "g=2"]).mount();
    m.chmod("f", 0o600).unwrap();
    m.unlink("g").unwrap();
    signal(&m, Signal::KILL);
    rustix::mount::unmount(m.path(), UnmountFlags::DETACH).unwrap();
    m.ended().unwrap();
    m.mount_again();
    m.assert_ls("", &["f"]);
    assert_eq!(m.mode("f"), 0o600);
}

/// Two writable mounts of one upper would destroy each other's work.
#[test]
fn upper_in_use_is_refused() {
    let m = Stack::new().lower(["f=1"]).mount();
    let other = m.layers.scratch().join("other");
    fs::create_dir(&other).unwrap();
    let options = m.layers.options("");
    let outcome = run(&["-o".as_ref(), options.as_os_str(), other.as_os_str()]);
    if device_of(&other).is_some() {
        rustix::mount::unmount(&other, UnmountFlags::DETACH).unwrap();
        panic!("the upper was mounted twice");
    }
    assert_eq!(outcome.status.code(), Some(1));
    assert_eq!(outcome.stderr.lines().count(), 1, "{}", outcome.stderr);
    m.assert_file("f", "1");
}

#[test]
fn inode_flags() {
    let m = Stack::new()
        .upper(["u", "du/"])
        .lower(["l", "dl/", "r"])
        .mount();
    for name in ["u", "l", "du", "dl"] {
        let fd = m.open(name, OFlags::RDONLY).unwrap();
        let flags = rustix::fs::ioctl_getflags(&fd).unwrap();
        rustix::fs::ioctl_setflags(&fd, flags | IFlags::NODUMP).unwrap();
        assert!(
            rustix::fs::ioctl_getflags(&fd)
                .unwrap()
                .contains(IFlags::NODUMP),
            "{name}"
        );
        drop(fd);
        let up = crate::process::open_file(m.up(name), OFlags::RDONLY, rustix::fs::Mode::empty())
            .unwrap();
        assert!(
            rustix::fs::ioctl_getflags(&up)
                .unwrap()
                .contains(IFlags::NODUMP),
            "{name}"
        );
    }
    // Asking changes nothing.
    let fd = m.open("r", OFlags::RDONLY).unwrap();
    rustix::fs::ioctl_getflags(&fd).unwrap();
    assert!(!m.up("r").exists());
    Caller::user(1000).call(|| {
        let fd = m.open("r", OFlags::RDONLY).unwrap();
        assert!(
            rustix::fs::ioctl_setflags(&fd, IFlags::NODUMP).is_err(),
            "not the owner"
        );
    });
    assert!(!m.up("r").exists());
}

fn resident_kib(m: &Mount) -> i64 {
    let text = fs::read_to_string(format!("/proc/{}/status", m.pid())).unwrap();
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn memory_comes_back_after_forget() {
    let _dropped = CACHES.write();
    const FILES: i64 = 100_000;
    const SLACK_KIB: i64 = 4096;
    let layers = Stack::new().lower([""; 0]).limit(120).build();
    for dir in 0..FILES / 1000 {
        let path = layers.lowers[0].join(format!("directory{dir}"));
        fs::create_dir(&path).unwrap();
        for file in 0..1000 {
            let name = path.join(format!("file-{file}"));
            crate::process::open_file(
                &name,
                OFlags::CREATE | OFlags::WRONLY,
                rustix::fs::Mode::RWXU,
            )
            .unwrap();
        }
    }
    let m = layers.mount();
    m.ls("");
    let before = resident_kib(&m);
    // Somebody else may drop the caches in the middle: then the walk shows nothing and is repeated.
    let walk = || {
        let mut count = 0;
        for dir in m.ls("") {
            for file in fs::read_dir(m.p(&dir)).unwrap() {
                count += i64::from(file.unwrap().metadata().unwrap().is_file());
            }
        }
        assert_eq!(count, FILES);
        resident_kib(&m) - before
    };
    let used = (0..5).map(|_| walk()).find(|used| *used > SLACK_KIB);
    let used = used.expect("the files are not kept, the caches are dropped all the time");
    // 300 bytes each, and a constant for threads and buffers.
    assert!(
        used < FILES * 300 / 1024 + 4 * SLACK_KIB,
        "{used} KiB for {FILES} files"
    );
    let descriptors = fs::read_dir(format!("/proc/{}/fd", m.pid()))
        .unwrap()
        .count();
    assert!(
        descriptors < 20_000,
        "{descriptors} descriptors for {FILES} files"
    );
    let given_back = wait_for(Duration::from_secs(20), || {
        fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
        std::thread::sleep(Duration::from_millis(500));
        // A walk that others disturbed has used little; a few pages of the heap always stay.
        (resident_kib(&m) - before <= (used / 3).max(SLACK_KIB)).then_some(())
    });
    let after = resident_kib(&m) - before;
    assert!(
        given_back.is_some(),
        "{used} KiB more than at first, after forget still {after}"
    );
    assert_eq!(fs::metadata(m.p("directory7/file-7")).unwrap().size(), 0);
}

/// Running out of descriptors may cost time, not errors.
#[test]
fn few_descriptors() {
    let items: Vec<String> = (0..1000)
        .map(|index| format!("d{index}/e/f=text"))
        .collect();
    let m = Stack::new()
        .lower(&items)
        .lower(&items)
        .descriptors(100)
        .mount();
    for name in m.ls("") {
        m.assert_ls(&format!("{name}/e"), &["f"]);
        m.assert_file(&format!("{name}/e/f"), "text");
    }
    for index in 0..300 {
        m.chmod(&format!("d{index}/e/f"), 0o600).unwrap();
        m.write(&format!("d{index}/e/n"), "new").unwrap();
    }
    for index in 0..1000 {
        m.assert_file(&format!("d{index}/e/f"), "text");
    }
}
