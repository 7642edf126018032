//! A defect that ends in a panic, in the middle of any request: its caller gets EIO, and the mount lives on.
//!
//! What panics is built with the feature `faults` only, as this test is.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::fs;
use std::io::{Error, Write};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

const EIO: i32 = 5;

/// Where defects are: requests, and calls that change something.
const PLACES: [&str; 20] = [
    "Lookup",
    "Getattr",
    "Setattr",
    "Mkdir",
    "Unlink",
    "Rename",
    "Create",
    "Open",
    "Write",
    "Read",
    "openat2",
    "mkdirat",
    "linkat",
    "unlinkat",
    "renameat2",
    "renameat",
    "fchmodat2",
    "utimensat",
    "ftruncate",
    "pwrite",
];

type Step = fn(&Path) -> Result<(), Error>;

/// Each leaves everything as it was, or fails.
const STEPS: [(&str, Step); 8] = [
    ("create", |at| {
        fs::write(at.join("n"), "n")?;
        fs::remove_file(at.join("n"))
    }),
    ("mkdir", |at| {
        fs::create_dir(at.join("m"))?;
        fs::remove_dir(at.join("m"))
    }),
    ("rename", |at| {
        fs::rename(at.join("d/f"), at.join("d/g"))?;
        fs::rename(at.join("d/g"), at.join("d/f"))
    }),
    ("rename a directory", |at| {
        fs::rename(at.join("d"), at.join("e"))?;
        fs::rename(at.join("e"), at.join("d"))
    }),
    ("link", |at| {
        fs::hard_link(at.join("a"), at.join("l"))?;
        fs::remove_file(at.join("l"))
    }),
    ("write", |at| {
        let mut file = fs::File::options().write(true).open(at.join("a"))?;
        file.write_all(b"a")
    }),
    ("cut", |at| {
        fs::File::options()
            .write(true)
            .open(at.join("a"))?
            .set_len(1)
    }),
    ("read", |at| {
        fs::read_dir(at.join("d"))?.count();
        fs::read(at.join("b")).map(drop)
    }),
];

/// A mount of the daemon, ended when this is dropped.
struct Mount {
    base: tempfile::TempDir,
}

impl Mount {
    fn start(&self, options: &str) {
        let at = |name: &str| self.base.path().join(name).display().to_string();
        let options = format!(
            "lowerdir={},upperdir={},log_file={},{options}",
            at("l"),
            at("u"),
            at("log")
        );
        let status = Command::new(env!("CARGO_BIN_EXE_unionfs"))
            .args(["-o", &options, &at("mnt")])
            .env("UNIONFS_PANIC_AT", at("panic"))
            .status();
        assert!(status.unwrap().success());
    }

    fn new(options: &str) -> Self {
        let base = tempfile::Builder::new()
            .prefix("unionfs-test-")
            .tempdir()
            .unwrap();
        for dir in ["l", "l/d", "u", "mnt"] {
            fs::create_dir(base.path().join(dir)).unwrap();
        }
        for (name, text) in [("a", "a"), ("b", "b"), ("d/f", "f")] {
            fs::write(base.path().join("l").join(name), text).unwrap();
        }
        let mount = Self { base };
        mount.start(options);
        mount
    }

    fn stop(&self) {
        let begun = Instant::now();
        let unmount = || {
            Command::new("umount")
                .arg(self.base.path().join("mnt"))
                .status()
        };
        while !unmount().unwrap().success() {
            assert!(
                begun.elapsed() < Duration::from_secs(20),
                "it stays mounted"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Makes the defect be there, or nowhere.
    fn defect(&self, place: &str) {
        fs::write(self.base.path().join("panic"), place).unwrap();
    }

    /// All is as it was in the beginning.
    fn check(&self, when: &str) {
        let at = self.base.path().join("mnt");
        for (name, text) in [("a", "a"), ("b", "b"), ("d/f", "f")] {
            let found =
                fs::read_to_string(at.join(name)).unwrap_or_else(|e| panic!("{when}: {name}: {e}"));
            assert_eq!(found, text, "{when}");
        }
        let mut names: Vec<_> = fs::read_dir(&at)
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        names.sort();
        assert_eq!(names, ["a", "b", "d"], "{when}");
    }
}

/// Takes back what a step left half-way, as its second half met the defect.
fn put_back(at: &Path) {
    for name in ["n", "l"] {
        let _ = fs::remove_file(at.join(name));
    }
    let _ = fs::remove_dir(at.join("m"));
    let _ = fs::rename(at.join("e"), at.join("d"));
    let _ = fs::rename(at.join("d/g"), at.join("d/f"));
    fs::write(at.join("a"), "a").unwrap();
}

fn lives_on(options: &str) {
    let mount = Mount::new(options);
    let at = mount.base.path().join("mnt");
    let mut met = 0;
    for place in PLACES {
        for (name, step) in STEPS {
            mount.defect(place);
            let result = step(&at);
            mount.defect("nowhere");
            let when = format!("{options}, {name}, a defect at {place}");
            if let Err(error) = result {
                assert_eq!(error.raw_os_error(), Some(EIO), "{when}: {error}");
                met += 1;
            }
            put_back(&at);
            mount.check(&when);
            step(&at).unwrap_or_else(|e| panic!("{when}, the next time: {e}"));
        }
    }
    assert!(met > 20, "only {met} requests met the defect");
    mount.stop();
    mount.start(options);
    mount.check("after all");
    mount.stop();
    let log = fs::read_to_string(mount.base.path().join("log")).unwrap();
    let told = log.matches("a test asked for this panic").count();
    assert!(told >= met, "{told} panics in the log, {met} errors");
    eprintln!("{options}: {met} requests met a defect");
}

#[test]
fn the_mount_lives_on() {
    for way in ["passthrough", "none", "cached"] {
        lives_on(&format!("open={way}"));
    }
}
