//! Many threads at the names of the same linked files.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, OFlags, RenameFlags, StatxFlags};
use rustix::io::Errno;

use crate::dialects;
use crate::plinks::{entries, flush};
use crate::random::Random;
use crate::spec::Dialect;
use crate::support::{Mount, Stack};

const FILES: usize = 100;
const NAMES: usize = 4;
const WORKERS: u64 = 8;

/// Seconds: `UNIONFS_STRESS_SECONDS`, or few.
fn duration() -> Duration {
    let seconds = std::env::var("UNIONFS_STRESS_SECONDS");
    Duration::from_secs(seconds.map_or(4, |n| n.parse().expect("a number")))
}

fn path(slot: usize) -> String {
    format!("d{}/n{slot}", slot % 5)
}

/// Every name's file, and how much each file has.
struct Expected {
    /// By slot, the file; a slot's lock is held while its name changes.
    names: Vec<Mutex<Option<usize>>>,
}

/// The kernel's own count of names may be too low until it asks (docs/SEMANTICS.md).
fn link(from: &Path, to: &Path) -> Result<(), Errno> {
    for _ in 0..9 {
        let result = rustix::fs::link(from, to);
        if result != Err(Errno::NOENT) {
            return result;
        }
        let asked = AtFlags::SYMLINK_NOFOLLOW | AtFlags::STATX_FORCE_SYNC;
        if rustix::fs::statx(CWD, from, asked, StatxFlags::NLINK).is_err() {
            return result;
        }
    }
    Err(Errno::NOENT)
}

/// One change of one or two names. What it answers and leaves is known, as their locks are held.
fn change(root: &Path, expected: &Expected, random: &mut Random) {
    let slots = expected.names.len() as u64;
    let (a, b) = (random.below(slots) as usize, random.below(slots) as usize);
    let kind = random.below(8);
    if a == b {
        return;
    }
    let (low, high) = (a.min(b), a.max(b));
    let (mut first, mut second) = (
        expected.names[low].lock().unwrap(),
        expected.names[high].lock().unwrap(),
    );
    let (one, two) = if a == low {
        (&mut *first, &mut *second)
    } else {
        (&mut *second, &mut *first)
    };
    let (from, to) = (root.join(path(a)), root.join(path(b)));
    let wanted = |file: Option<usize>| file.map_or(Err(Errno::NOENT), |_| Ok(()));
    match kind {
        0 => {
            assert_eq!(rustix::fs::unlink(&from), wanted(*one));
            *one = None;
        }
        1 => {
            assert_eq!(rustix::fs::rename(&from, &to), wanted(*one));
            // Two names of one file stay both.
            if one.is_some() && one != two {
                *two = one.take();
            }
        }
        2 => {
            let flags = RenameFlags::EXCHANGE;
            let both = one.is_some() && two.is_some();
            let result = rustix::fs::renameat_with(CWD, &from, CWD, &to, flags);
            assert_eq!(result, if both { Ok(()) } else { Err(Errno::NOENT) });
            if both {
                std::mem::swap(one, two);
            }
        }
        3..6 => {
            let result = link(&from, &to);
            match (*one, *two) {
                (None, _) => assert_eq!(result, Err(Errno::NOENT)),
                (_, Some(_)) => assert_eq!(result, Err(Errno::EXIST)),
                (Some(_), None) => {
                    assert_eq!(result, Ok(()));
                    *two = *one;
                }
            }
        }
        6 => {
            let opened = crate::process::open_file(
                &from,
                OFlags::WRONLY | OFlags::APPEND,
                rustix::fs::Mode::empty(),
            );
            match opened {
                Ok(fd) => {
                    assert!(one.is_some());
                    assert_eq!(rustix::io::write(fd, b"+"), Ok(1));
                }
                Err(e) => assert_eq!(Err(e), wanted(*one)),
            }
        }
        _ => {
            let found = rustix::fs::lstat(&from).map(drop);
            assert_eq!(found, wanted(*one));
        }
    }
}

/// Compares what is there with what must be.
fn verify(m: &Mount, expected: &Expected) {
    let mut files: BTreeMap<usize, Vec<PathBuf>> = BTreeMap::new();
    for (slot, file) in expected.names.iter().enumerate() {
        let (file, path) = (*file.lock().unwrap(), m.p(path(slot)));
        match file {
            Some(file) => files.entry(file).or_default().push(path),
            None => assert!(fs::symlink_metadata(&path).is_err(), "{}", path.display()),
        }
    }
    let mut numbers = BTreeMap::new();
    for (file, names) in &files {
        let first = fs::metadata(&names[0]).unwrap();
        let content = fs::read_to_string(&names[0]).unwrap();
        assert!(content.starts_with(&format!("{file}:")), "{content}");
        for name in names {
            let meta = fs::metadata(name).unwrap();
            assert_eq!(meta.ino(), first.ino(), "{}", name.display());
            assert_eq!(meta.nlink(), names.len() as u64, "{}", name.display());
            assert_eq!(fs::read_to_string(name).unwrap(), content);
        }
        assert_eq!(
            numbers.insert(first.ino(), file),
            None,
            "two files, one number"
        );
    }
    let listed: usize = (0..5)
        .map(|n| fs::read_dir(m.p(format!("d{n}"))).unwrap().count())
        .sum();
    assert_eq!(listed, files.values().map(Vec::len).sum::<usize>());
}

dialects! {
    fn eight_threads_at_a_hundred_linked_files(dialect) {
        let mut items = Vec::new();
        for file in 0..FILES {
            let first = path(file * NAMES);
            items.push(format!("{first}={file}:"));
            for name in 1..NAMES {
                items.push(format!("{first}~{}", path(file * NAMES + name)));
            }
        }
        let limit = 120 + duration().as_secs();
        let mut m = Stack::of(dialect).lower(&items).limit(limit).mount();
        let names = (0..FILES * NAMES).map(|slot| Mutex::new(Some(slot / NAMES)));
        let expected = Expected { names: names.collect() };
        verify(&m, &expected);
        let (done, flushes) = (AtomicU64::new(0), AtomicU64::new(0));
        for round in 0..2 {
            let root = m.path().to_owned();
            let end = Instant::now() + duration() / 2;
            std::thread::scope(|scope| {
                // Once with flushes in between, which change nothing that users see.
                let (m, done, flushes) = (&m, &done, &flushes);
                scope.spawn(move || {
                    while round == 1 && Instant::now() < end {
                        std::thread::sleep(Duration::from_millis(300));
                        flush(m);
                        flushes.fetch_add(1, Ordering::Relaxed);
                    }
                });
                for worker in 0..WORKERS {
                    let (root, expected) = (&root, &expected);
                    scope.spawn(move || {
                        let mut random = Random(worker * 1000 + round);
                        while Instant::now() < end {
                            change(root, expected, &mut random);
                            done.fetch_add(1, Ordering::Relaxed);
                        }
                    });
                }
            });
            verify(&m, &expected);
            m.remount();
            verify(&m, &expected);
        }
        eprintln!("{done:?} operations, {flushes:?} flushes meanwhile");
        flush(&m);
        verify(&m, &expected);
        let copies = entries(&m).into_iter().filter(|entry| !entry.name.ends_with(".0"));
        assert_eq!(copies.count(), 0);
        m.remount();
        verify(&m, &expected);
    }
}
