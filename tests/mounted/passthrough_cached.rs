//! Small files of lowers that are read and looked at again and again: the kernel keeps their data for us, until they
//! come to the upper.

use std::fs;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::fs::OFlags;
use rustix::mm::{MapFlags, ProtFlags};
use unionfs::stats::Op;

use crate::calls::contents;
use crate::passthrough::count;
use crate::passthrough_nodes::{CHANGES, OLD};
use crate::process::wait_for;
use crate::requests::Counter;
use crate::supervise::kill_server;
use crate::support::{Mount, Stack};

const OPEN: &str = "open=passthrough";

/// Reads a file and looks at it, as a compiler does with a header.
fn read(m: &Mount, name: &str) -> Vec<u8> {
    let fd = m.open(name, OFlags::RDONLY).unwrap();
    rustix::fs::fstat(&fd).unwrap();
    contents(&fd)
}

/// Does so until the kernel keeps the data: when it is opened while nothing has it open.
fn keep(m: &Mount, name: &str, text: &str) {
    let before = count(m, &[Op::Read]);
    let kept = || {
        assert_eq!(read(m, name), text.as_bytes());
        (count(m, &[Op::Read]) > before).then_some(())
    };
    wait_for(Duration::from_secs(20), kept).expect("it is read through the daemon");
}

/// Waits until the daemon knows that all is closed which was opened.
fn all_closed(m: &Mount) {
    let open = || count(m, &[Op::Open, Op::Create]) - count(m, &[Op::Release]);
    wait_for(Duration::from_secs(20), || (open() == 0).then_some(())).expect("all is closed");
}

#[test]
fn what_is_kept_is_not_asked_for() {
    let large = "l".repeat((64 << 10) + 1);
    let m = Stack::new()
        .upper(["u=upper"])
        .lower([
            "small=text",
            "empty=",
            "seen=text",
            &format!("large={large}"),
        ])
        .mount_with(OPEN);
    let _known = m.remembered(&["u", "small", "empty", "seen", "large"]);
    let counter = Counter::new(&m);
    // Where the kernel drops something of its caches meanwhile, more is sent.
    let again = |name: &str| {
        let sent = || counter.of(|| drop(read(&m, name)));
        (0..6)
            .map(|_| sent())
            .find(|sent| sent == "Open Release")
            .unwrap_or_else(sent)
    };
    keep(&m, "small", "text");
    assert_eq!(
        again("small"),
        "Open Release",
        "neither data nor attributes"
    );
    // Passed through, data are not asked for, but attributes are.
    let before = count(&m, &[Op::Read]);
    for name in ["u", "large"] {
        let sent = [(); 4].map(|()| counter.of(|| drop(read(&m, name))));
        assert_eq!(sent[3], "Getattr Open Release", "{name}");
    }
    // What nobody looks at costs the least as it is.
    for _ in 0..6 {
        counter.of(|| assert_eq!(contents(&m.open("seen", OFlags::RDONLY).unwrap()), b"text"));
    }
    assert_eq!(count(&m, &[Op::Read]), before);
    assert_eq!(read(&m, "empty"), b"");
}

/// Who has it open sees each change, as of any file; and then it is passed through again.
#[test]
fn changed_while_it_is_open() {
    for metacopy in ["off", "on"] {
        let names: Vec<String> = (0..CHANGES.len()).map(|n| format!("f{n}")).collect();
        let mut m = Stack::new()
            .lower(names.iter().map(|name| format!("{name}={OLD}")))
            .mount_with(&format!("{OPEN},metacopy={metacopy}"));
        for ((what, change, new), name) in CHANGES.iter().zip(&names) {
            keep(&m, name, OLD);
            all_closed(&m);
            let old = m.open(name, OFlags::RDONLY).unwrap();
            let map = Mapped::new(&old);
            assert_eq!(map.bytes(10), OLD.as_bytes());
            let number = m.stat(name).unwrap().st_ino;
            change(&m, name);
            let start = &new.as_bytes()[..new.len().min(10)];
            for _ in 0..2 {
                m.assert_file(name, new);
                assert_eq!(contents(&old), new.as_bytes(), "{what}");
                assert_eq!(map.bytes(new.len()), start, "{what}");
                assert_eq!(fs::read_to_string(m.up(name)).unwrap(), *new, "{what}");
                let (now, named) = (rustix::fs::fstat(&old).unwrap(), m.stat(name).unwrap());
                assert_eq!(
                    (now.st_ino, now.st_size),
                    (number, new.len() as i64),
                    "{what}"
                );
                assert_eq!(
                    (named.st_ino, named.st_size),
                    (number, new.len() as i64),
                    "{what}"
                );
            }
            // A second change by another, while the first reader is there still.
            let second = m.open(name, OFlags::WRONLY | OFlags::APPEND).unwrap();
            rustix::io::write(&second, b"more").unwrap();
            let text = format!("{new}more");
            assert_eq!(contents(&old), text.as_bytes(), "{what}");
            drop((old, map, second));
            all_closed(&m);
            let quiet = count(&m, &[Op::Read, Op::Write]);
            let file = m.open(name, OFlags::RDWR).unwrap();
            rustix::io::pwrite(&file, b"last", 0).unwrap();
            drop(file);
            let text = format!("last{}", &text[4..]);
            m.assert_file(name, &text);
            assert_eq!(count(&m, &[Op::Read, Op::Write]), quiet, "{what}");
            assert_eq!(
                fs::read_to_string(m.layers.lowers[0].join(name)).unwrap(),
                OLD
            );
        }
        m.remount();
        for ((_, _, new), name) in CHANGES.iter().zip(&names) {
            let text = format!("last{}", &format!("{new}more")[4..]);
            m.assert_file(name, &text);
        }
    }
}

/// What the kernel has kept is not shown when data come from elsewhere.
#[test]
fn changed_while_nothing_is_open() {
    let names: Vec<String> = (0..CHANGES.len()).map(|n| format!("f{n}")).collect();
    let mut m = Stack::new()
        .lower(names.iter().map(|name| format!("{name}={OLD}")))
        .mount_with(OPEN);
    for ((what, change, new), name) in CHANGES.iter().zip(&names) {
        keep(&m, name, OLD);
        all_closed(&m);
        let before = count(&m, &[Op::Read, Op::Write]);
        change(&m, name);
        for _ in 0..5 {
            assert_eq!(read(&m, name), new.as_bytes(), "{what}");
        }
        m.write(name, "written").unwrap();
        let reader = m.open(name, OFlags::RDONLY).unwrap();
        assert_eq!(contents(&reader), b"written", "{what}");
        let map = Mapped::new(&reader);
        assert_eq!(map.bytes(7), b"written", "{what}");
        assert_eq!(count(&m, &[Op::Read, Op::Write]), before, "{what}");
    }
    m.remount();
    for name in &names {
        m.assert_file(name, "written");
    }
}

/// O_DIRECT is what the layer's filesystem makes of it, which may refuse what is not aligned.
#[test]
fn direct_io_is_the_layers() {
    let m = Stack::new().lower(["f=some text"]).mount_with(OPEN);
    let read = |path: &std::path::Path| {
        let fd = crate::calls::open(path, OFlags::RDONLY | OFlags::DIRECT)?;
        let mut page = [0; 64];
        rustix::io::pread(&fd, &mut page[1..8], 0)
    };
    let own = read(&m.layers.lowers[0].join("f"));
    assert_eq!(read(&m.p("f")), own);
    keep(&m, "f", "some text");
    all_closed(&m);
    assert_eq!(read(&m.p("f")), own);
    keep(&m, "f", "some text");
}

/// A name that goes, and a file that is taken for another.
#[test]
fn unlinked_and_replaced_while_it_is_open() {
    let m = Stack::new()
        .lower(["f=first", "g=second", "d/h=third"])
        .mount_with(OPEN);
    for (name, text) in [("f", "first"), ("g", "second"), ("d/h", "third")] {
        keep(&m, name, text);
    }
    all_closed(&m);
    let [f, g, h] = ["f", "g", "d/h"].map(|name| m.open(name, OFlags::RDONLY).unwrap());
    m.unlink("f").unwrap();
    m.write("f", "another").unwrap();
    m.rename("d/h", "g").unwrap();
    assert_eq!(contents(&f), b"first");
    assert_eq!(contents(&g), b"second");
    assert_eq!(contents(&h), b"third");
    m.assert_file("f", "another");
    m.assert_file("g", "third");
    m.write("g", "more").unwrap();
    assert_eq!(contents(&h), b"more");
    assert_eq!(contents(&g), b"second");
}

/// The next server goes on with what is open, and with what the kernel kept.
#[test]
fn the_server_is_killed() {
    let m = Stack::new()
        .lower(["open=one", "closed=two", "changed=three"])
        .mount_with(&format!("supervise,{OPEN}"));
    for (name, text) in [("open", "one"), ("closed", "two"), ("changed", "three")] {
        keep(&m, name, text);
    }
    let [open, changed] = ["open", "changed"].map(|name| m.open(name, OFlags::RDONLY).unwrap());
    for round in 0..3 {
        kill_server(m.path());
        assert_eq!(contents(&open), b"one");
        m.assert_file("open", "one");
        m.assert_file("closed", "two");
        let text = format!("THREE{round}");
        m.write("changed", &text).unwrap();
        assert_eq!(contents(&changed), text.as_bytes());
        m.assert_file("changed", &text);
    }
    m.write("open", "four").unwrap();
    assert_eq!(contents(&open), b"four");
    m.write("closed", "five").unwrap();
    m.assert_file("closed", "five");
}

/// Where layers may change behind the union, nothing is kept that would have to be made right.
#[test]
fn not_with_changes_from_behind() {
    for udba in ["reval", "notify"] {
        let m = Stack::new()
            .lower(["f=text"])
            .mount_with(&format!("{OPEN},udba={udba}"));
        for _ in 0..6 {
            assert_eq!(read(&m, "f"), b"text");
            all_closed(&m);
        }
        assert_eq!(count(&m, &[Op::Read]), 0, "{udba}");
    }
}

/// The first bytes of a file, as many as [`OLD`] has, by a shared mapping that is only read.
struct Mapped(&'static [u8]);

impl Mapped {
    fn new(fd: &OwnedFd) -> Self {
        let (null, flags) = (std::ptr::null_mut(), ProtFlags::READ);
        // SAFETY: a new mapping of a file, of which no more is read than it has, until it is dropped.
        unsafe {
            let map = rustix::mm::mmap(null, OLD.len(), flags, MapFlags::SHARED, fd, 0).unwrap();
            Self(std::slice::from_raw_parts(map.cast::<u8>(), OLD.len()))
        }
    }

    /// The first bytes at this moment, of a file that has as many.
    fn bytes(&self, len: usize) -> Vec<u8> {
        let start = self.0.as_ptr();
        // SAFETY: within the mapping and the file; it changes, so each byte is loaded by itself.
        (0..len.min(self.0.len()))
            .map(|at| unsafe { start.add(at).read_volatile() })
            .collect()
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: the mapping made above, which nobody else has.
        unsafe { rustix::mm::munmap(self.0.as_ptr().cast_mut().cast(), self.0.len()) }.unwrap();
    }
}
