//! The kernel reads and writes the layers' files itself: what goes through the daemon and what does
//! not, and what users see of it.

use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::process::Command;
use std::time::Duration;

use rustix::fs::{FallocateFlags, IFlags, OFlags};
use rustix::io::Errno;
use rustix::mm::{MapFlags, MsyncFlags, ProtFlags};
use unionfs::stats::{Op, requests};

use crate::calls::{Caller, contents, open};
use crate::fails;
use crate::process::{copy_program, finish, wait_for};
use crate::support::{Layers, Mount, Stack};

const OPEN: &str = "open=passthrough";
const MIB: usize = 1 << 20;

/// Requests of these kinds since the mount.
pub fn count(m: &Mount, kinds: &[Op]) -> u64 {
    let root = fs::File::open(m.path()).unwrap();
    let all = requests(&root).unwrap();
    let those = all.into_iter().filter(|(op, _)| kinds.contains(op));
    those.map(|(_, n)| n).sum()
}

fn with_file(layers: &Layers, content: &[u8]) {
    fs::write(layers.lowers[0].join("big"), content).unwrap();
}

/// Bytes that the daemon has read and written so far, by any call.
fn moved(m: &Mount) -> u64 {
    let text = fs::read_to_string(format!("/proc/{}/io", m.pid())).unwrap();
    let lines = text.lines().filter(|line| line.contains("char:"));
    let values = lines.map(|line| line.split(' ').next_back().unwrap().parse::<u64>().unwrap());
    values.sum()
}

#[test]
fn data_do_not_pass_through_the_daemon() {
    let layers = Stack::new().lower(["f"]).build();
    let data: Vec<u8> = (0..100 * MIB).map(|n| (n * 7 / 5) as u8).collect();
    with_file(&layers, &data);
    let m = layers.mount_with(OPEN);
    let before = moved(&m);
    assert!(fs::read(m.p("big")).unwrap() == data);
    let mut big = fs::File::open(m.p("big")).unwrap();
    let mut null = fs::File::create("/dev/null").unwrap();
    std::io::copy(&mut big, &mut null).unwrap();
    drop(big);
    fs::write(m.p("new"), &data).unwrap();
    let file = open(&m.p("new"), OFlags::RDWR | OFlags::APPEND).unwrap();
    rustix::io::write(&file, b"more").unwrap();
    mapped(&file, MIB, |bytes| bytes[4711] = 42);
    assert_eq!(m.stat("new").unwrap().st_size, 4 + 100 * MIB as i64);
    assert!(fs::read(m.up("new")).unwrap()[4711] == 42);
    assert_eq!(count(&m, &[Op::Read, Op::Write]), 0);
    assert!(moved(&m) - before < MIB as u64, "{}", moved(&m) - before);
}

/// Runs `work` on the first bytes of a shared mapping and writes it back.
fn mapped(file: &OwnedFd, len: usize, work: impl FnOnce(&mut [u8])) {
    let flags = ProtFlags::READ | ProtFlags::WRITE;
    let null = std::ptr::null_mut();
    // SAFETY: a new mapping of `len` bytes of a file that is at least as long, used within them.
    unsafe {
        let map = rustix::mm::mmap(null, len, flags, MapFlags::SHARED, file, 0).unwrap();
        work(std::slice::from_raw_parts_mut(map.cast::<u8>(), len));
        rustix::mm::msync(map, len, MsyncFlags::SYNC).unwrap();
        rustix::mm::munmap(map, len).unwrap();
    }
}

/// Opened again, a file costs two requests, and the daemon makes no call for it but to take these
/// and to answer.
#[test]
fn a_file_opened_again_costs_no_system_call() {
    const TIMES: u64 = 200;
    let m = Stack::new()
        .upper(["u=1"])
        .lower(["l=1"])
        .mount_with(&format!("{OPEN},threads=1"));
    let _known = m.remembered(&["u", "l"]);
    let kinds = [
        Op::Lookup,
        Op::Getattr,
        Op::Open,
        Op::Release,
        Op::Read,
        Op::Getxattr,
    ];
    let all = |m: &Mount| count(m, &kinds);
    let again = |name: &str, flags| {
        for _ in 0..TIMES {
            drop(m.open(name, flags).unwrap());
        }
    };
    let cases = [
        ("l", OFlags::RDONLY),
        ("u", OFlags::RDONLY),
        ("u", OFlags::WRONLY),
    ];
    for (name, flags) in cases {
        drop(m.open(name, flags).unwrap());
    }
    let quiet = || {
        let mut last = 0;
        wait_for(Duration::from_secs(15), || {
            let now = all(&m);
            (std::mem::replace(&mut last, now) == now).then_some(())
        });
        last
    };
    let before = quiet();
    cases.iter().for_each(|(name, flags)| again(name, *flags));
    assert_eq!(quiet() - before, 6 * TIMES);
    let trace = m.layers.scratch().join("trace");
    let mut strace = Command::new("strace")
        .args(["-f", "-qq", "-e", "trace=!read,write,writev,futex", "-o"])
        .arg(&trace)
        .args(["-p", &m.pid().to_string()])
        .spawn()
        .unwrap();
    let traced = || {
        let status = fs::read_to_string(format!("/proc/{}/status", m.pid())).unwrap();
        (!status.contains("TracerPid:\t0\n")).then_some(())
    };
    wait_for(Duration::from_secs(15), traced).unwrap();
    // All threads are traced a moment later than the first.
    std::thread::sleep(Duration::from_millis(300));
    cases.iter().for_each(|(name, flags)| again(name, *flags));
    quiet();
    // Ours to end.
    let pid = rustix::process::Pid::from_child(&strace);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    strace.wait().unwrap();
    let text = fs::read_to_string(&trace).unwrap();
    let calls: Vec<&str> = text.lines().filter(|line| line.contains('(')).collect();
    // What asking for the counters takes, and whatever a thread of the runtime does.
    assert!(calls.len() < 20, "{calls:#?}");
}

/// What a write changes shows at once, by whatever descriptor.
#[test]
fn attributes_after_writes() {
    let m = Stack::new()
        .upper(["u=12345"])
        .lower(["l=12345"])
        .mount_with(OPEN);
    for name in ["u", "l"] {
        for flags in [
            OFlags::WRONLY,
            OFlags::RDWR,
            OFlags::WRONLY | OFlags::APPEND,
        ] {
            let fd = m.open(name, flags).unwrap();
            let mut before = m.stat(name).unwrap();
            for round in 0..20 {
                let at = u64::try_from(before.st_size).unwrap();
                rustix::io::pwrite(&fd, b"more", at).unwrap();
                let now = m.stat(name).unwrap();
                assert_eq!(now.st_size, before.st_size + 4, "{name} {flags:?} {round}");
                let real = fs::metadata(m.up(name)).unwrap();
                assert_eq!(
                    (real.mtime(), real.mtime_nsec()),
                    (now.st_mtime, now.st_mtime_nsec as i64)
                );
                before = now;
            }
            drop(fd);
            let real = fs::metadata(m.up(name)).unwrap();
            assert_eq!(
                m.stat(name).unwrap().st_mtime_nsec as i64,
                real.mtime_nsec()
            );
        }
    }
}

/// Stores through a shared mapping are seen by nobody but the file: its times are asked for.
#[test]
fn times_after_stores_through_a_mapping() {
    let m = Stack::new()
        .upper(["u=12345"])
        .lower(["l=12345"])
        .mount_with(OPEN);
    let times = |name: &str| {
        let stat = m.stat(name).unwrap();
        (stat.st_mtime, stat.st_mtime_nsec as i64)
    };
    let real = |name: &str| {
        let meta = fs::metadata(m.up(name)).unwrap();
        (meta.mtime(), meta.mtime_nsec())
    };
    drop(m.creat("n", 0o644).unwrap());
    for name in ["u", "l", "n"] {
        let flags = OFlags::RDWR | OFlags::CREATE;
        let fd = m.open(name, flags).unwrap();
        rustix::fs::ftruncate(&fd, 4096).unwrap();
        for round in 0..3 {
            let before = times(name);
            mapped(&fd, 4096, |bytes| {
                bytes[0] = b'a' + round;
                assert_eq!(times(name), real(name), "{name}, after a store");
            });
            assert_eq!(times(name), real(name), "{name}, after munmap");
            assert!(times(name) > before, "{name}");
        }
        let mut last = (0, 0);
        let null = std::ptr::null_mut();
        let flags = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping of 4096 bytes of a file of that size, used within them.
        unsafe {
            let map = rustix::mm::mmap(null, 4096, flags, MapFlags::SHARED, &fd, 0).unwrap();
            drop(fd);
            for round in 0..3 {
                assert!(times(name) >= last);
                map.cast::<u8>().write(b'x' + round);
                rustix::mm::msync(map, 4096, MsyncFlags::SYNC).unwrap();
                // The mapping outlives the open file, of which the daemon knows: it shows late.
                let shows = || (times(name) == real(name)).then_some(());
                wait_for(Duration::from_secs(15), shows).unwrap();
                last = times(name);
            }
            rustix::mm::munmap(map, 4096).unwrap();
        }
    }
}

/// The attributes that come with a new, empty file are kept, and dropped before it can be mapped.
#[test]
fn times_of_a_new_file_follow_a_mapping() {
    type Extend = fn(&OwnedFd);
    let extend: [(&str, Extend); 4] = [
        ("write", |fd| {
            assert_eq!(rustix::io::write(fd, &[0; 4096]), Ok(4096));
        }),
        ("ftruncate", |fd| rustix::fs::ftruncate(fd, 4096).unwrap()),
        ("fallocate", |fd| {
            rustix::fs::fallocate(fd, FallocateFlags::empty(), 0, 4096).unwrap();
        }),
        ("copy_file_range", |fd| {
            let path = fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).unwrap();
            let zero = open(&path.with_file_name("zero"), OFlags::RDONLY).unwrap();
            let copied = rustix::fs::copy_file_range(zero, None, fd, None, 4096);
            assert_eq!(copied, Ok(4096));
        }),
    ];
    let m = Stack::new().lower(["l"]).mount_with(OPEN);
    fs::write(m.p("zero"), [0; 4096]).unwrap();
    for (name, extend) in extend {
        let fd = m.open(name, OFlags::RDWR | OFlags::CREATE).unwrap();
        assert_eq!(m.stat(name).unwrap().st_size, 0);
        extend(&fd);
        for round in 0..3 {
            mapped(&fd, 4096, |bytes| {
                bytes[0] = b'a' + round;
                let (shown, real) = (m.stat(name).unwrap(), fs::metadata(m.up(name)).unwrap());
                assert_eq!(shown.st_size, 4096, "{name}");
                let shown = (shown.st_mtime, shown.st_mtime_nsec as i64);
                assert_eq!(shown, (real.mtime(), real.mtime_nsec()), "{name}");
            });
        }
    }
}

/// Set-id bits and capabilities go with a write by someone who may not keep them.
#[test]
fn set_id_bits_after_writes() {
    let items = [
        "s=12345 | mode=06777",
        "c=12345 | mode=0777",
        "late=1 | mode=0777",
    ];
    let m = Stack::new()
        .upper(items)
        .lower(items.map(|i| format!("l{i}")))
        .mount_with(OPEN);
    let user = Caller::user(1000);
    let write = |name: &str| {
        let fd = m.open(name, OFlags::WRONLY).unwrap();
        rustix::io::write(&fd, b"x").unwrap();
    };
    for prefix in ["", "l"] {
        let at = |name: &str| format!("{prefix}{name}");
        let reader = m.open(&at("s"), OFlags::RDONLY).unwrap();
        write(&at("s"));
        assert_eq!(m.mode(&at("s")), 0o6777, "root keeps them");
        user.call(|| write(&at("s")));
        assert_eq!(m.mode(&at("s")), 0o777);
        assert_eq!(fs::metadata(m.up(at("s"))).unwrap().mode() & 0o7777, 0o777);
        assert_eq!(contents(&reader).len(), 5);
        // Given while somebody has it open for writing.
        let late = user.call(|| m.open(&at("late"), OFlags::WRONLY).unwrap());
        m.chmod(&at("late"), 0o6777).unwrap();
        assert_eq!(m.mode(&at("late")), 0o6777);
        user.call(|| rustix::io::write(&late, b"x").unwrap());
        assert_eq!(m.mode(&at("late")), 0o777);
        drop(late);
        assert_eq!(m.mode(&at("late")), 0o777);
        let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let has = || {
            xattr::get(m.p(at("c")), "security.capability")
                .unwrap()
                .is_some()
        };
        xattr::set(m.p(at("c")), "security.capability", &capability).unwrap();
        let open = m.open(&at("c"), OFlags::RDWR).unwrap();
        assert!(has());
        rustix::io::write(&open, b"x").unwrap();
        assert!(!has());
        xattr::set(m.p(at("c")), "security.capability", &capability).unwrap();
        rustix::io::write(&open, b"x").unwrap();
        assert!(!has());
    }
    // The same where the user makes the file.
    user.call(|| {
        fs::create_dir(m.p("none")).unwrap_err();
    });
    m.mkdir("d").unwrap();
    m.chmod("d", 0o777).unwrap();
    user.call(|| {
        let fd = m.creat("d/n", 0o4777).unwrap();
        assert_eq!(m.mode("d/n"), 0o4755);
        rustix::io::write(&fd, b"x").unwrap();
        assert_eq!(m.mode("d/n"), 0o755);
    });
}

/// The limit of the writer's file size holds, not the daemon's.
#[test]
fn limits_of_the_writer() {
    let m = Stack::new().upper(["u"]).lower(["l"]).mount_with(OPEN);
    let script = format!(
        "trap '' XFSZ; ulimit -f 8; head -c 100000 /dev/zero > {}",
        m.p("u").display()
    );
    let done = Command::new("bash").args(["-c", &script]).output().unwrap();
    assert!(!done.status.success());
    assert_eq!(m.stat("u").unwrap().st_size, 8192);
}

/// Append-only and immutable files are so for those who open them again, too.
#[test]
fn inode_flags_decide_at_each_open() {
    let m = Stack::new().upper(["u=1"]).lower(["l=1"]).mount_with(OPEN);
    for name in ["u", "l"] {
        let set = |flags: IFlags| {
            let fd = m.open(name, OFlags::RDONLY).unwrap();
            rustix::fs::ioctl_setflags(&fd, flags).unwrap();
            assert!(rustix::fs::ioctl_getflags(&fd).unwrap().contains(flags));
        };
        drop(m.open(name, OFlags::RDWR).unwrap());
        set(IFlags::APPEND);
        fails!(m.open(name, OFlags::RDWR), PERM);
        fails!(m.open(name, OFlags::WRONLY | OFlags::TRUNC), PERM);
        drop(m.open(name, OFlags::WRONLY | OFlags::APPEND).unwrap());
        fails!(m.open(name, OFlags::WRONLY), PERM);
        set(IFlags::IMMUTABLE);
        fails!(m.open(name, OFlags::WRONLY | OFlags::APPEND), PERM);
        set(IFlags::empty());
        drop(m.open(name, OFlags::RDWR).unwrap());
    }
}

/// A file without a name is as good as any, and can be opened again by its descriptor.
#[test]
fn files_without_a_name() {
    let m = Stack::new()
        .upper(["u=12345"])
        .lower(["l=12345"])
        .mount_with(OPEN);
    for name in ["u", "l", "n"] {
        let flags = OFlags::RDWR | OFlags::CREATE;
        let fd = m.open(name, flags).unwrap();
        m.unlink(name).unwrap();
        rustix::io::pwrite(&fd, b"ABCDEFG", 0).unwrap();
        let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
        let again = fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
            .unwrap();
        again.write_at(b"x", 1).unwrap();
        assert_eq!(contents(&fd), b"AxCDEFG", "{name}");
        rustix::fs::ftruncate(&fd, 3).unwrap();
        assert_eq!(again.metadata().unwrap().size(), 3);
        assert_eq!(again.metadata().unwrap().nlink(), 0);
        rustix::fs::fsync(&fd).unwrap();
    }
    m.assert_upper(["wh(l)"]);
}

/// Programs run from both kinds of layers, and are protected while they run.
#[test]
fn running_programs() {
    let layers = Stack::new().upper(["d/"]).lower(["x"]).build();
    for place in [layers.upper_path(), &layers.lowers[0]] {
        copy_program("/bin/sleep", place.join("sleep-of-tests"));
        fs::set_permissions(
            place.join("sleep-of-tests"),
            fs::Permissions::from_mode(0o755),
        )
        .unwrap();
        fs::rename(
            place.join("sleep-of-tests"),
            place.join(if place.ends_with("upper") { "u" } else { "l" }),
        )
        .unwrap();
    }
    let m = layers.mount_with(OPEN);
    for name in ["u", "l"] {
        let mut child = Command::new(m.p(name)).arg("60").spawn().unwrap();
        fails!(m.open(name, OFlags::WRONLY), TXTBSY);
        child.kill().unwrap();
        child.wait().unwrap();
        let free = || m.open(name, OFlags::WRONLY).ok();
        wait_for(Duration::from_secs(15), free).unwrap();
        assert!(finish(Command::new(m.p(name)).arg("0")).status.success());
    }
}

/// More open files than the daemon has descriptors.
#[test]
fn more_open_files_than_descriptors() {
    let names: Vec<String> = (0..600).map(|n| format!("f{n}={n}")).collect();
    let m = Stack::new().lower(names).descriptors(400).mount_with(OPEN);
    let open: Vec<OwnedFd> = (0..600)
        .map(|n| m.open(&format!("f{n}"), OFlags::RDONLY).unwrap())
        .collect();
    let new: Vec<OwnedFd> = (0..600)
        .map(|n| m.creat(&format!("n{n}"), 0o644).unwrap())
        .collect();
    for (n, (open, new)) in open.iter().zip(&new).enumerate() {
        assert_eq!(contents(open), n.to_string().as_bytes());
        rustix::io::write(new, b"new").unwrap();
        rustix::fs::fsync(new).unwrap();
        m.assert_file(&format!("n{n}"), "new");
    }
    assert_eq!(count(&m, &[Op::Read, Op::Write]), 0);
}

#[test]
fn direct_io_where_the_layer_has_it() {
    let m = Stack::new().upper(["u=1"]).lower(["l=1"]).mount_with(OPEN);
    for name in ["u", "l"] {
        let here = open(
            &m.layers.lowers[0].join("l"),
            OFlags::RDONLY | OFlags::DIRECT,
        )
        .map(drop);
        let there = m.open(name, OFlags::RDONLY | OFlags::DIRECT).map(drop);
        assert_eq!(here, there);
        if there == Err(Errno::INVAL) {
            continue;
        }
        let fd = m.open(name, OFlags::RDWR | OFlags::DIRECT).unwrap();
        mapped_page(|page| {
            page.fill(b'd');
            assert_eq!(rustix::io::pwrite(&fd, page, 0), Ok(4096));
            page.fill(0);
            assert_eq!(rustix::io::pread(&fd, &mut *page, 0), Ok(4096));
            assert!(page.iter().all(|b| *b == b'd'));
        });
        assert_eq!(m.stat(name).unwrap().st_size, 4096);
    }
}

/// A page whose address is aligned.
fn mapped_page(work: impl FnOnce(&mut [u8])) {
    let flags = ProtFlags::READ | ProtFlags::WRITE;
    let null = std::ptr::null_mut();
    // SAFETY: a new mapping of 4096 bytes, used within them and then unmapped.
    unsafe {
        let map = rustix::mm::mmap_anonymous(null, 4096, flags, MapFlags::PRIVATE).unwrap();
        work(std::slice::from_raw_parts_mut(map.cast::<u8>(), 4096));
        rustix::mm::munmap(map, 4096).unwrap();
    }
}
