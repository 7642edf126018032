//! Files that are open by a lower's file, with the kernel reading it itself, when their data come to
//! the upper; and layers of which the kernel takes no files.

use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, IFlags, OFlags, SeekFrom};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags};
use rustix::mount::MountFlags;
use unionfs::stats::Op;

use crate::calls::{contents, open};
use crate::fails;
use crate::ops_filesystems::Covered;
use crate::passthrough::count;
use crate::process::wait_for;
use crate::support::{Mount, Stack};

const OPEN: &str = "open=passthrough";
pub const OLD: &str = "lower data";

/// What makes the data of a file come to the upper, and what is in the file then.
pub type Change = (&'static str, fn(&Mount, &str), &'static str);

pub const CHANGES: [Change; 8] = [
    (
        "read and write",
        |m, name| write(m, name, OFlags::RDWR, "LOWER"),
        "LOWER data",
    ),
    (
        "write",
        |m, name| write(m, name, OFlags::WRONLY, "LOWER"),
        "LOWER data",
    ),
    (
        "append",
        |m, name| write(m, name, OFlags::WRONLY | OFlags::APPEND, "+"),
        "lower data+",
    ),
    (
        "replace",
        |m, name| write(m, name, OFlags::WRONLY | OFlags::TRUNC, "new"),
        "new",
    ),
    (
        "truncate",
        |m, name| nix::unistd::truncate(&m.p(name), 5).unwrap(),
        "lower",
    ),
    (
        "empty",
        |m, name| drop(m.open(name, OFlags::RDONLY | OFlags::TRUNC).unwrap()),
        "",
    ),
    ("chmod", |m, name| m.chmod(name, 0o640).unwrap(), OLD),
    (
        "open",
        |m, name| drop(m.open(name, OFlags::RDWR).unwrap()),
        OLD,
    ),
];

fn write(m: &Mount, name: &str, flags: OFlags, text: &str) {
    let fd = m.open(name, flags).unwrap();
    assert_eq!(rustix::io::write(&fd, text.as_bytes()), Ok(text.len()));
}

/// What was opened before goes on with the lower's data, as in overlayfs; names, attributes and the
/// inode number are the file's.
#[test]
fn old_descriptors_keep_the_lowers_data() {
    for metacopy in ["off", "on"] {
        let names: Vec<String> = (0..CHANGES.len()).map(|n| format!("f{n}")).collect();
        let mut m = Stack::new()
            .lower(names.iter().map(|name| format!("{name}={OLD}")))
            .mount_with(&format!("{OPEN},metacopy={metacopy}"));
        for ((what, change, new), name) in CHANGES.iter().zip(&names) {
            let old = m.open(name, OFlags::RDONLY).unwrap();
            let before = rustix::fs::fstat(&old).unwrap();
            let null = std::ptr::null_mut();
            // SAFETY: a new mapping of 10 bytes of a file of that size, only read, until munmap.
            let map = unsafe {
                let flags = ProtFlags::READ;
                let map = rustix::mm::mmap(null, 10, flags, MapFlags::SHARED, &old, 0).unwrap();
                std::slice::from_raw_parts(map.cast::<u8>(), 10)
            };
            change(&m, name);
            for _ in 0..2 {
                m.assert_file(name, new);
                assert_eq!(fs::read_to_string(m.up(name)).unwrap(), *new, "{what}");
                assert_eq!(m.stat(name).unwrap().st_size, new.len() as i64, "{what}");
            }
            assert_eq!(contents(&old), OLD.as_bytes(), "{what}");
            assert_eq!(map, OLD.as_bytes(), "{what}");
            let now = rustix::fs::fstat(&old).unwrap();
            let of_name = m.stat(name).unwrap();
            assert_eq!(now.st_ino, before.st_ino, "{what}");
            assert_eq!(now.st_ino, of_name.st_ino, "{what}");
            assert_eq!(now.st_size, new.len() as i64, "{what}");
            assert_eq!(now.st_mtime_nsec, of_name.st_mtime_nsec, "{what}");
            // What else the old descriptor is good for.
            assert_eq!(rustix::fs::seek(&old, SeekFrom::Data(3)), Ok(3), "{what}");
            assert_eq!(rustix::fs::seek(&old, SeekFrom::Hole(3)), Ok(10), "{what}");
            // The kernel takes the size from the attributes.
            let len = new.len().min(OLD.len());
            let copy = m.creat(&format!("copy of {name}"), 0o644).unwrap();
            assert_eq!(
                rustix::fs::copy_file_range(&old, Some(&mut 0), &copy, Some(&mut 0), 99),
                Ok(len),
                "{what}"
            );
            m.assert_file(&format!("copy of {name}"), &OLD[..len]);
            rustix::fs::fchmod(&old, rustix::fs::Mode::from_raw_mode(0o604)).unwrap();
            assert_eq!(m.mode(name), 0o604, "{what}");
            rustix::fs::fsetxattr(&old, "user.k", b"v", rustix::fs::XattrFlags::empty()).unwrap();
            assert_eq!(
                xattr::get(m.p(name), "user.k").unwrap().as_deref(),
                Some(&b"v"[..])
            );
            rustix::fs::fsync(&old).unwrap();
            assert!(rustix::fs::ioctl_getflags(&old).is_ok_and(|f| !f.contains(IFlags::APPEND)));
            // Only this shows that it is not the file any more.
            let again = format!("/proc/self/fd/{}", old.as_raw_fd());
            fails!(open(again.as_ref(), OFlags::RDWR), STALE);
            m.assert_file(name, new);
            drop(old);
            m.assert_file(name, new);
            // SAFETY: the mapping from above, not used from here on.
            unsafe { rustix::mm::munmap(map.as_ptr().cast_mut().cast(), 10) }.unwrap();
        }
        m.remount();
        for ((_, _, new), name) in CHANGES.iter().zip(&names) {
            m.assert_file(name, new);
        }
    }
}

/// Without anything open the node stays.
#[test]
fn nothing_open_nothing_switched() {
    let m = Stack::new().lower(["f=1", "g=1"]).mount_with(OPEN);
    let _known = m.remembered(&["f", "g"]);
    m.assert_file("f", "1");
    let quiet = count(&m, &[Op::Lookup]);
    m.write("f", "2").unwrap();
    m.assert_file("f", "2");
    m.chmod("g", 0o600).unwrap();
    m.assert_file("g", "1");
    assert_eq!(count(&m, &[Op::Lookup]), quiet);
    assert_eq!(count(&m, &[Op::Read, Op::Write]), 0);
}

/// All names of a file are one file, whichever node the kernel knows them by.
#[test]
fn linked_files() {
    let mut m = Stack::new()
        .lower(["d/a=1", "d/a~b", "d/a~c"])
        .mount_with(OPEN);
    let known = m.remembered(&["d/a", "b", "c"]);
    let old = m.open("b", OFlags::RDONLY).unwrap();
    let number = m.stat("b").unwrap().st_ino;
    write(&m, "d/a", OFlags::RDWR, "first");
    let second = m.open("b", OFlags::RDWR | OFlags::APPEND).unwrap();
    for (round, name) in ["d/a", "b", "c"].into_iter().cycle().take(9).enumerate() {
        write(&m, name, OFlags::WRONLY | OFlags::APPEND, "+");
        rustix::io::write(&second, b"-").unwrap();
        m.chmod(name, 0o600 + u32::try_from(round).unwrap())
            .unwrap();
        let all: Vec<_> = ["d/a", "b", "c"]
            .iter()
            .map(|name| m.stat(name).unwrap())
            .collect();
        for stat in &all {
            assert_eq!(stat.st_ino, number);
            assert_eq!(stat.st_nlink, 3);
            assert_eq!(stat.st_size, 5 + 2 * (round as i64 + 1), "{name}");
            assert_eq!(stat.st_mode & 0o777, 0o600 + u32::try_from(round).unwrap());
        }
    }
    assert_eq!(contents(&old), b"1");
    m.unlink("b").unwrap();
    m.rename("c", "e").unwrap();
    assert_eq!(rustix::fs::fstat(&old).unwrap().st_nlink, 2);
    assert_eq!(m.stat("e").unwrap().st_nlink, 2);
    let text = format!("first{}", "+-".repeat(9));
    for name in ["d/a", "e"] {
        m.assert_file(name, &text);
    }
    m.unlink("e").unwrap();
    m.unlink("d/a").unwrap();
    assert_eq!(contents(&second), text.as_bytes());
    assert_eq!(contents(&old), b"1");
    drop((old, second, known));
    m.remount();
    m.assert_ls("d", &[]);
}

/// Two nodes of a file may each have a size of their own. What is appended goes to the end of the file
/// all the same, by way of the daemon too, which writes where set-id bits are watched.
#[test]
fn appended_through_two_nodes() {
    let m = Stack::new()
        .lower(["f=begin", "f~g | mode=02755"])
        .mount_with(OPEN);
    let _known = m.remembered(&["f", "g"]);
    let old = m.open("f", OFlags::RDONLY).unwrap();
    let append = OFlags::WRONLY | OFlags::APPEND;
    let first = m.open("f", append).unwrap();
    let released = count(&m, &[Op::Release]);
    drop(old);
    let gone = || (count(&m, &[Op::Release]) > released).then_some(());
    wait_for(Duration::from_secs(20), gone).unwrap();
    let second = m.open("g", append).unwrap();
    let mut text = "begin".to_owned();
    for round in 0..5 {
        for (fd, who) in [(&first, "first"), (&second, "2nd")] {
            let line = format!("{who}{round}\n");
            assert_eq!(rustix::io::write(fd, line.as_bytes()), Ok(line.len()));
            text += &line;
        }
    }
    let written = count(&m, &[Op::Write]);
    assert!(written >= 10, "{written}");
    assert_eq!(fs::read_to_string(m.up("f")).unwrap(), text);
    for name in ["f", "g"] {
        m.assert_file(name, &text);
    }
}

/// Names that come and go while an old descriptor is open.
#[test]
fn renamed_and_removed() {
    let m = Stack::new().lower(["d/f=1", "g=2", "h=3"]).mount_with(OPEN);
    let old = ["d/f", "g", "h"].map(|name| m.open(name, OFlags::RDONLY).unwrap());
    m.rename("d/f", "moved").unwrap();
    write(&m, "moved", OFlags::RDWR, "X");
    m.rename("d", "e").unwrap();
    m.rename("moved", "e/f").unwrap();
    m.assert_file("e/f", "X");
    write(&m, "g", OFlags::RDWR, "Y");
    m.unlink("g").unwrap();
    m.write("g", "another").unwrap();
    m.unlink("h").unwrap();
    // An unlinked file can be changed only by what is open.
    fails!(
        rustix::fs::linkat(&old[2], "", CWD, m.p("n"), AtFlags::EMPTY_PATH),
        NOENT
    );
    rustix::fs::fchmod(&old[2], rustix::fs::Mode::from_raw_mode(0o600)).unwrap();
    for (fd, text) in old.iter().zip(["1", "2", "3"]) {
        assert_eq!(contents(fd), text.as_bytes());
    }
    m.assert_file("g", "another");
    assert_ne!(
        rustix::fs::fstat(&old[1]).unwrap().st_ino,
        m.stat("g").unwrap().st_ino
    );
    assert_eq!(rustix::fs::fstat(&old[1]).unwrap().st_nlink, 0);
    assert_eq!(rustix::fs::fstat(&old[0]).unwrap().st_nlink, 1);
    drop(old);
}

/// Nobody ever writes a lower, whatever is raced (the end of the test looks at it), and everybody
/// reads the whole old or the whole new data.
#[test]
fn copy_up_raced() {
    const LEN: usize = 64 << 10;
    let names: Vec<String> = (0..40)
        .map(|n| format!("f{n}={}", "o".repeat(LEN)))
        .collect();
    let m = Stack::new().lower(names).limit(120).mount_with(OPEN);
    let done = AtomicBool::new(false);
    let until = Instant::now() + Duration::from_secs(4);
    std::thread::scope(|scope| {
        for reader in 0..3 {
            let (m, done) = (&m, &done);
            scope.spawn(move || {
                let mut kept: Vec<OwnedFd> = Vec::new();
                let mut n = reader;
                while !done.load(Ordering::Relaxed) {
                    n += 1;
                    let fd = m.open(&format!("f{}", n % 40), OFlags::RDONLY).unwrap();
                    let data = contents(&fd);
                    let whole = data.iter().all(|b| *b == data[0]);
                    assert!(data.is_empty() || data.len() <= LEN && whole, "{n}");
                    kept.push(fd);
                    if kept.len() > 50 {
                        kept.clear();
                    }
                }
            });
        }
        for writer in 0..3 {
            let (m, done) = (&m, &done);
            scope.spawn(move || {
                let mut n = writer * 13;
                while Instant::now() < until {
                    n += 1;
                    let name = format!("f{}", n % 40);
                    let flags =
                        [OFlags::RDWR, OFlags::WRONLY | OFlags::TRUNC, OFlags::WRONLY][n % 3];
                    let fd = m.open(&name, flags).unwrap();
                    rustix::io::pwrite(&fd, &vec![b'n'; LEN], 0).unwrap();
                    if flags == OFlags::RDWR {
                        let again = format!("/proc/self/fd/{}", fd.as_raw_fd());
                        let again = open(again.as_ref(), OFlags::RDWR).unwrap();
                        rustix::io::pwrite(&again, &vec![b'n'; LEN], 0).unwrap();
                    }
                }
                done.store(true, Ordering::Relaxed);
            });
        }
    });
    for n in 0..40 {
        let data = m.read(&format!("f{n}")).unwrap();
        assert!(data.len() == LEN && data.bytes().all(|b| b == b'n'), "{n}");
    }
    assert_eq!(count(&m, &[Op::Read, Op::Write]), 0);
}

/// Files of a layer on a stacked filesystem go through the daemon, those of the others do not; and
/// those who have one open follow to the upper.
#[test]
fn a_layer_that_is_stacked() {
    let layers = Stack::new()
        .lower([""; 0])
        .lower(["plain=1", "d/z=1"])
        .build();
    let _lower = Covered::overlay(&layers.lowers[0], layers.scratch());
    let m = layers.mount_with(OPEN);
    m.assert_file("plain", "1");
    assert_eq!(count(&m, &[Op::Read]), 0);
    m.assert_file("f", "f");
    m.assert_file("d/x", "x");
    assert!(count(&m, &[Op::Read]) > 0);
    let old = m.open("f", OFlags::RDONLY).unwrap();
    write(&m, "f", OFlags::RDWR, "new");
    assert_eq!(contents(&old), b"new");
    write(&m, "f", OFlags::WRONLY | OFlags::TRUNC, "more");
    assert_eq!(contents(&old), b"more");
    drop(old);
    // Once nobody has it open, the upper's file is the kernel's.
    let before = count(&m, &[Op::Read, Op::Write]);
    let passed = || {
        m.assert_file("f", "more");
        (count(&m, &[Op::Read, Op::Write]) == before).then_some(())
    };
    wait_for(Duration::from_secs(15), passed).unwrap();
    write(&m, "f", OFlags::WRONLY, "MO");
    m.assert_file("f", "MOre");
    // And back through the cache, which must not show what it had before.
    assert_eq!(count(&m, &[Op::Write]), 2);
}

/// With everything on a stacked filesystem nothing is gained, and nothing lost.
#[test]
fn an_upper_that_is_stacked() {
    let place = tempfile::tempdir().unwrap();
    let at = |name: &str| {
        let path = place.path().join(name);
        fs::create_dir(&path).unwrap();
        path.display().to_string()
    };
    let (low, up, work) = (at("low"), at("up"), at("work"));
    // `Covered` removes the directory that its mountpoint is in.
    let all = place.path().join("covered/all");
    fs::create_dir_all(&all).unwrap();
    let options = format!("lowerdir={low},upperdir={up},workdir={work}");
    let options = std::ffi::CString::new(options).unwrap();
    let flags = MountFlags::empty();
    rustix::mount::mount("overlay", &all, "overlay", flags, Some(&*options)).unwrap();
    let covered = Covered(all.clone());
    let m = Stack::new().upper_at(&all).lower(["f=1"]).mount();
    m.write("f", "2").unwrap();
    m.assert_file("f", "2");
    m.write("n", "3").unwrap();
    m.assert_file("n", "3");
    drop(m);
    drop(covered);
    assert_eq!(fs::read_to_string(format!("{up}/upper/n")).unwrap(), "3");
}

/// Container engines put kernel overlayfs over layers: one level of stacking is left for it.
#[test]
fn overlayfs_on_top() {
    let m = Stack::new()
        .upper(["u=1", "d/"])
        .lower(["l=1", "d/x=1"])
        .mount_with(OPEN);
    let scratch = m.layers.scratch();
    let at = |name: &str| {
        let path = scratch.join("top").join(name);
        fs::create_dir_all(&path).unwrap();
        path
    };
    let (up, work, over) = (at("up"), at("work"), at("mnt"));
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        m.path().display(),
        up.display(),
        work.display()
    );
    let options = std::ffi::CString::new(options).unwrap();
    rustix::mount::mount(
        "overlay",
        &over,
        "overlay",
        MountFlags::empty(),
        Some(&*options),
    )
    .unwrap();
    let covered = Covered(over.clone());
    for name in ["u", "l", "d/x"] {
        let path = over.join(name);
        assert_eq!(fs::read_to_string(&path).unwrap(), "1");
        fs::write(&path, "over").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "over");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        m.assert_file(name, "1");
        assert_eq!(fs::metadata(&path).unwrap().size(), 4);
    }
    fs::remove_file(over.join("l")).unwrap();
    m.assert_file("l", "1");
    // The two of the lower may be kept by the kernel, as they are small and were looked at.
    assert!(count(&m, &[Op::Read]) <= 2);
    drop(covered);
    assert_eq!(m.stat("l").map(|s| s.st_nlink), Ok::<_, Errno>(1));
}

/// A lower of which no read-only clone can be made is never given to the kernel, which would open its
/// files anew as their users ask.
#[test]
fn a_lower_without_a_clone() {
    let layers = Stack::new().lower([""; 0]).lower(["plain=1"]).build();
    let lower = layers.lowers[0].clone();
    let flags = MountFlags::empty();
    rustix::mount::mount("none", &lower, "tmpfs", flags, Some(c"mode=755")).unwrap();
    let covered = Covered(lower.clone());
    let alone = rustix::mount::MountPropagationFlags::UNBINDABLE;
    rustix::mount::mount_change(&lower, alone).unwrap();
    fs::write(lower.join("f"), OLD).unwrap();
    let m = layers.mount_with(OPEN);
    m.assert_file("plain", "1");
    assert_eq!(count(&m, &[Op::Read]), 0);
    m.assert_file("f", OLD);
    assert!(count(&m, &[Op::Read]) > 0);
    let old = m.open("f", OFlags::RDONLY).unwrap();
    write(&m, "f", OFlags::RDWR, "LOWER");
    assert_eq!(contents(&old), b"LOWER data");
    m.assert_file("f", "LOWER data");
    assert_eq!(fs::read_to_string(lower.join("f")).unwrap(), OLD);
    drop(old);
    drop(m);
    drop(covered);
}
