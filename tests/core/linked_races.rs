//! Pseudo-links that are flushed while the files are in use: nobody may notice.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tempfile::TempDir;
use unionfs::mount::open_union;
use unionfs::options::{Options, WhiteoutForm};
use unionfs::union::{ROOT, Union};

use crate::concurrent::race;
use crate::plain::prepare_thread;

/// Directories, in each of which every file has a name.
const DIRS: [&[u8]; 3] = [b"d0", b"d1", b"d2"];

struct Linked {
    union: Arc<Union>,
    _upper: Option<Ram>,
    _base: TempDir,
    /// Node ids of the directories.
    dirs: Vec<u64>,
}

fn name(file: usize) -> Vec<u8> {
    format!("f{file}").into_bytes()
}

/// A filesystem without attributes.
struct Ram(PathBuf);

impl Ram {
    fn mount(at: PathBuf) -> Self {
        let flags = rustix::mount::MountFlags::empty();
        rustix::mount::mount("none", &at, "ramfs", flags, None::<&std::ffi::CStr>).unwrap();
        Self(at)
    }
}

impl Drop for Ram {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
    }
}

/// A union over one lower with so many files, each with a name in each directory.
fn linked(files: usize, form: WhiteoutForm) -> Linked {
    linked_with(files, form, false)
}

fn linked_with(files: usize, form: WhiteoutForm, in_ram: bool) -> Linked {
    prepare_thread();
    let base = tempfile::tempdir().unwrap();
    let dir = |name: &str| -> PathBuf {
        let path = base.path().join(name);
        std::fs::create_dir(&path).unwrap();
        path
    };
    let (lower, upper) = (dir("lower"), dir("upper"));
    let ram = in_ram.then(|| Ram::mount(upper.clone()));
    for dir in ["d0", "d1", "d2"] {
        std::fs::create_dir(lower.join(dir)).unwrap();
    }
    for file in 0..files {
        let first = lower.join(format!("d0/f{file}"));
        std::fs::write(&first, b"data").unwrap();
        for dir in ["d1", "d2"] {
            std::fs::hard_link(&first, lower.join(format!("{dir}/f{file}"))).unwrap();
        }
    }
    let options = Options {
        lowers: vec![lower.into()],
        upper: Some(upper),
        whiteout: form,
        volatile: true,
        ..Options::default()
    };
    let union = Arc::new(open_union(&options).unwrap());
    let dirs = DIRS.map(|dir| union.lookup(ROOT, dir).unwrap().unwrap().id);
    Linked {
        union,
        _upper: ram,
        _base: base,
        dirs: dirs.to_vec(),
    }
}

/// Looks at a file by all its names, and by its node between the looks.
fn check(union: &Union, dirs: &[u64], file: usize, ino: u64) {
    for &dir in dirs {
        let entry = union.lookup(dir, &name(file)).unwrap().expect("the name");
        assert_eq!((entry.attr.stat.nlink, entry.attr.ino), (3, ino), "found");
        for _ in 0..3 {
            let attr = union.getattr(entry.id).expect("attributes");
            assert_eq!((attr.stat.nlink, attr.ino), (3, ino), "asked for");
        }
        union.forget(entry.id, 1);
    }
}

/// The numbers that a listing shows for the files.
fn listed(union: &Union, dir: u64) -> Vec<(Vec<u8>, u64)> {
    let mut listed = Vec::new();
    let each = |entry: &unionfs::union::DirEntry| {
        if entry.name.starts_with(b"f") {
            listed.push((entry.name.to_vec(), entry.ino));
        }
        true
    };
    union.readdir(dir, 0, each).expect("a listing");
    listed.sort();
    listed
}

fn copies_and_flushes_change_nothing_that_shows(form: WhiteoutForm) {
    const FILES: usize = 150;
    let Linked {
        union, dirs, _base, ..
    } = linked(FILES, form);
    let before = listed(&union, dirs[0]);
    assert_eq!(before.len(), FILES);
    let inos: Vec<u64> = (0..FILES)
        .map(|file| {
            let entry = union.lookup(dirs[0], &name(file)).unwrap().unwrap();
            union.forget(entry.id, 1);
            entry.attr.ino
        })
        .collect();
    let stop = Arc::new(AtomicBool::new(false));
    let (shared, shared_dirs, shared_before) = (Arc::clone(&union), dirs.clone(), before.clone());
    race(4, move |thread| {
        let (union, dirs) = (&shared, &shared_dirs);
        if thread > 0 {
            while !stop.load(Ordering::Acquire) {
                for (file, ino) in inos.iter().enumerate() {
                    check(union, dirs, file, *ino);
                }
                for &dir in dirs {
                    assert_eq!(listed(union, dir), shared_before);
                }
            }
            return;
        }
        for file in 0..FILES {
            let entry = union.lookup(dirs[0], &name(file)).unwrap().unwrap();
            assert_eq!(union.write(entry.id, 4, b"+", None), Ok(1));
            union.forget(entry.id, 1);
            if file % 5 == 4 {
                assert_eq!(union.flush_plinks().expect("a flush").kept, 0);
            }
        }
        stop.store(true, Ordering::Release);
    });
    for dir in dirs {
        assert_eq!(listed(&union, dir), before);
    }
    union.check_known_names().unwrap();
}

#[test]
fn copies_and_flushes_change_nothing_that_shows_aufs() {
    copies_and_flushes_change_nothing_that_shows(WhiteoutForm::Aufs);
}

#[test]
fn copies_and_flushes_change_nothing_that_shows_overlay() {
    copies_and_flushes_change_nothing_that_shows(WhiteoutForm::Overlay);
}

#[test]
fn a_file_gets_its_copy_while_the_last_entry_is_flushed() {
    const FILES: usize = 400;
    let Linked {
        union, dirs, _base, ..
    } = linked(FILES, WhiteoutForm::Aufs);
    let stop = Arc::new(AtomicBool::new(false));
    race(2, move |thread| {
        if thread > 0 {
            while !stop.load(Ordering::Acquire) {
                union.flush_plinks().expect("a flush");
            }
            return;
        }
        // One name each would do; so the flush has little to walk through.
        for file in 0..FILES {
            let entry = union.lookup(dirs[0], &name(file)).unwrap().unwrap();
            let link = union.link(entry.id, ROOT, &name(file));
            assert_eq!(link.map(|link| link.attr.stat.nlink), Ok(4), "file {file}");
            union.forget(entry.id, 2);
        }
        stop.store(true, Ordering::Release);
    });
}

/// Where only the entry knows a file's number, the file has its copy's after a flush: by all names, in
/// lookups and listings, whatever was known of its directories.
#[test]
fn one_number_after_a_flush_where_none_can_be_recorded() {
    const EXCHANGE: u32 = 2;
    let linked = linked_with(3, WhiteoutForm::Aufs, true);
    let (union, dirs) = (&linked.union, &linked.dirs);
    let entry = union.lookup(dirs[0], b"f0").unwrap().unwrap();
    assert_eq!(union.write(entry.id, 4, b"+", None), Ok(1));
    for is_known in [true, false] {
        for &dir in dirs {
            listed(union, dir);
        }
        if is_known {
            union.flush_plinks().unwrap();
        } else {
            union.forget(entry.id, 1);
            // What is known of this directory is forgotten by that.
            union
                .rename(dirs[1], b"f1", dirs[1], b"f2", EXCHANGE)
                .unwrap();
        }
        let mut numbers = Vec::new();
        for at in [1, 0, 2] {
            let entry = union.lookup(dirs[at], b"f0").unwrap().unwrap();
            numbers.push(entry.attr.ino);
            numbers.push(union.getattr(entry.id).unwrap().ino);
            let shown = listed(union, dirs[at]);
            numbers.push(shown.iter().find(|(name, _)| name == b"f0").unwrap().1);
            union.forget(entry.id, 1);
        }
        assert!(numbers.iter().all(|n| *n == numbers[0]), "{numbers:?}");
    }
}
