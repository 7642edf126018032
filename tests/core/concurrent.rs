//! Many threads on the same few names: nothing may hang, panic, get lost or be counted wrongly.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use tempfile::TempDir;
use unionfs::mount::open_union;
use unionfs::options::{Options, WhiteoutForm};
use unionfs::union::{Caller, FileKind, Make, ROOT, SetAttr, Union};

use crate::invariants::Raw;
use crate::plain::prepare_thread;

/// How long one race runs: `UNIONFS_RACE_SECONDS`, or the default.
fn race_time() -> Duration {
    let seconds = std::env::var("UNIONFS_RACE_SECONDS");
    Duration::from_secs(seconds.map_or(3, |n| n.parse().expect("a number")))
}

/// How long all threads may take to end after that.
const PATIENCE: Duration = Duration::from_secs(60);

const BY_ROOT: Caller = Caller {
    uid: 0,
    gid: 0,
    pid: 0,
};

/// Layers on disk: two lowers that share names, an empty upper.
struct Layers {
    _base: TempDir,
    options: Options,
    raw: Raw,
}

fn layers(form: WhiteoutForm) -> Layers {
    let base = tempfile::tempdir().unwrap();
    let dir = |name: &str| -> PathBuf {
        let path = base.path().join(name);
        std::fs::create_dir(&path).unwrap();
        path
    };
    let lowers = vec![dir("l0"), dir("l1")];
    for lower in &lowers {
        for name in ["d", "e"] {
            std::fs::create_dir(lower.join(name)).unwrap();
            for file in ["a", "b", "c"] {
                std::fs::write(lower.join(name).join(file), vec![b'x'; 20_000]).unwrap();
            }
        }
        for file in ["a", "b", "c"] {
            std::fs::write(lower.join(file), vec![b'y'; 20_000]).unwrap();
        }
    }
    let upper = dir("upper");
    let raw = Raw::of(&lowers);
    let options = Options {
        lowers: lowers.into_iter().map(Into::into).collect(),
        upper: Some(upper),
        whiteout: form,
        volatile: true,
        ..Options::default()
    };
    Layers {
        _base: base,
        options,
        raw,
    }
}

/// Small numbers from a seed; each thread has its own.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }

    fn pick<'a>(&mut self, names: &[&'a str]) -> &'a [u8] {
        let at = usize::try_from(self.roll(names.len() as u64)).unwrap();
        names[at].as_bytes()
    }
}

/// Runs `work` in `count` threads; fails when one panics or they do not end in time.
pub fn race(count: u64, work: impl Fn(u64) + Send + Sync + 'static) {
    let work = Arc::new(work);
    let (done, ended) = channel();
    let start = |thread| {
        let (work, done) = (Arc::clone(&work), done.clone());
        std::thread::spawn(move || {
            let run = std::panic::AssertUnwindSafe(|| work(thread));
            let result = std::panic::catch_unwind(run);
            let _ = done.send(result.is_ok());
        })
    };
    let threads: Vec<_> = (0..count).map(start).collect();
    let end = Instant::now() + race_time() + PATIENCE;
    for _ in 0..count {
        let left = end.saturating_duration_since(Instant::now());
        let result = ended.recv_timeout(left);
        assert_eq!(
            result,
            Ok(true),
            "a thread hangs (Err) or has panicked (false)"
        );
    }
    for thread in threads {
        thread.join().unwrap();
    }
}

/// References of one thread.
#[derive(Default)]
struct Refs(BTreeMap<u64, u64>);

impl Refs {
    fn add(&mut self, id: u64) -> u64 {
        if id != ROOT {
            *self.0.entry(id).or_default() += 1;
        }
        id
    }

    fn take(&mut self, id: u64) {
        self.add(id);
    }

    fn forget(&mut self, union: &Union) {
        for (id, count) in std::mem::take(&mut self.0) {
            union.forget(id, count);
        }
    }
}

/// Errors that a race may rightly give.
fn harmless(error: Errno) -> bool {
    matches!(
        error,
        Errno::NOENT
            | Errno::EXIST
            | Errno::NOTEMPTY
            | Errno::ISDIR
            | Errno::NOTDIR
            | Errno::XDEV
            | Errno::INVAL
            | Errno::PERM
            // There is an object where a file was to be made.
            | Errno::STALE
            // Eight other threads may replace the source of a rename again and again.
            | Errno::BUSY
    )
}

/// One random operation; panics on an error that no race explains.
fn churn(union: &Union, dice: &mut Dice, refs: &mut Refs) {
    let names = ["a", "b", "c", "d", "e", "n"];
    let mut dir = || -> u64 {
        let mut id = ROOT;
        if dice.roll(2) == 0
            && let Ok(Some(entry)) = union.lookup(ROOT, dice.pick(&["d", "e", "n"]))
        {
            refs.add(entry.id);
            if entry.attr.kind() == FileKind::Directory {
                id = entry.id;
            }
        }
        id
    };
    let (one, two) = (dir(), dir());
    let name = dice.pick(&names);
    let new_name = dice.pick(&names);
    // The kernel knows the objects that it asks a change for, until the answer is there.
    for (dir, name) in [(one, name), (two, new_name)] {
        if let Ok(Some(entry)) = union.lookup(dir, name) {
            refs.add(entry.id);
        }
    }
    let result = match dice.roll(13) {
        0 => union
            .create(one, name, 0o644, false, BY_ROOT, 0)
            .map(|e| refs.take(e.id)),
        1 => {
            let make = Make::Directory { mode: 0o755 };
            let made = union.make(one, name, make, BY_ROOT, 0);
            made.map(|e| refs.take(e.id))
        }
        2 | 3 => union.unlink(one, name),
        4 => union.rmdir(one, name),
        5 | 6 => union.rename(one, name, two, new_name, 0),
        7 => union.rename(one, name, two, new_name, 2),
        8 => match union.lookup(one, name) {
            Ok(Some(entry)) => {
                refs.add(entry.id);
                let linked = union.link(entry.id, two, new_name);
                linked.map(|e| refs.take(e.id))
            }
            other => other.map(drop),
        },
        9 => {
            refs.forget(union);
            return;
        }
        10 => union.readdir(one, 0, |_| true),
        _ => match union.lookup(one, name) {
            Ok(Some(entry)) => use_node(union, dice, refs.add(entry.id)),
            other => other.map(drop),
        },
    };
    if let Err(e) = result {
        assert!(harmless(e), "an operation gave {e}");
    }
}

/// Uses a node that is referenced: whatever happens to its names, it must go on working.
fn use_node(union: &Union, dice: &mut Dice, id: u64) -> Result<(), Errno> {
    let attr = union.getattr(id).expect("getattr of a referenced node");
    let set = SetAttr {
        mode: Some(0o600 + u32::try_from(dice.roll(8)).unwrap()),
        ..SetAttr::default()
    };
    match attr.kind() {
        FileKind::Regular if dice.roll(2) == 0 => {
            let n = union.write(id, dice.roll(5000), b"data", None);
            assert_eq!(n.expect("write to a referenced file"), 4);
            let mut buf = [0; 100];
            union
                .read(id, 0, &mut buf)
                .expect("read of a referenced file");
        }
        FileKind::Regular | FileKind::Directory => {
            union
                .setattr(id, &set, BY_ROOT)
                .expect("chmod of a referenced node");
        }
        _ => {}
    }
    Ok(())
}

/// The names and kinds of the whole tree, by path; all of it must be readable.
fn tree(union: &Union) -> BTreeMap<Vec<u8>, (FileKind, Vec<u8>)> {
    let mut tree = BTreeMap::new();
    let mut todo = vec![(Vec::new(), ROOT)];
    let mut refs = Refs::default();
    while let Some((path, id)) = todo.pop() {
        let mut names = Vec::new();
        union
            .readdir(id, 0, |entry| {
                names.push(entry.name.to_vec());
                true
            })
            .unwrap();
        for name in names.into_iter().filter(|n| n != b"." && n != b"..") {
            let entry = union.lookup(id, &name).unwrap().expect("listed, not found");
            refs.add(entry.id);
            let path = [&path, &b"/"[..], &name].concat();
            let mut content = Vec::new();
            match entry.attr.kind() {
                FileKind::Directory => todo.push((path.clone(), entry.id)),
                FileKind::Regular => {
                    content = vec![0; usize::try_from(entry.attr.stat.size).unwrap()];
                    union.read(entry.id, 0, &mut content).unwrap();
                }
                _ => {}
            }
            tree.insert(path, (entry.attr.kind(), content));
        }
    }
    refs.forget(union);
    tree
}

/// Ends a race: references balance, the tree is the same after a remount, lowers are unchanged.
fn check_after(union: Arc<Union>, layers: &Layers) {
    let before = tree(&union);
    assert_eq!(
        union.inode_count(),
        1,
        "inodes remain after all was forgotten"
    );
    drop(Arc::try_unwrap(union).expect("all threads have ended"));
    let orphans = layers.options.upper.as_ref().unwrap().join(".wh..wh.orph");
    let left = std::fs::read_dir(orphans).map_or(0, Iterator::count);
    assert_eq!(left, 0, "leftovers of temporaries");
    let fresh = open_union(&layers.options).unwrap();
    let after = tree(&fresh);
    let text = |tree: &BTreeMap<Vec<u8>, (FileKind, Vec<u8>)>| -> Vec<String> {
        let entries = tree.iter();
        entries
            .map(|(p, (k, c))| format!("{} {k:?} {}", p.escape_ascii(), c.len()))
            .collect()
    };
    assert_eq!(text(&before), text(&after), "the tree changes by a remount");
    assert!(before == after, "contents change by a remount");
    layers.raw.check_unchanged();
}

fn churn_in(form: WhiteoutForm) {
    prepare_thread();
    let layers = layers(form);
    let union = Arc::new(open_union(&layers.options).unwrap());
    let shared = Arc::clone(&union);
    race(8, move |thread| {
        let mut dice = Dice(0x9e37_79b9_7f4a_7c15 ^ (thread + 1));
        let mut refs = Refs::default();
        let end = Instant::now() + race_time();
        while Instant::now() < end {
            churn(&shared, &mut dice, &mut refs);
        }
        refs.forget(&shared);
    });
    check_after(union, &layers);
}

#[test]
fn eight_threads_on_the_same_names_leave_a_consistent_tree_aufs() {
    churn_in(WhiteoutForm::Aufs);
}

#[test]
fn eight_threads_on_the_same_names_leave_a_consistent_tree_overlay() {
    churn_in(WhiteoutForm::Overlay);
}

/// A union over `layers` again, with an upper that is empty.
fn fresh(form: WhiteoutForm) -> (Layers, Arc<Union>) {
    let layers = layers(form);
    let union = Arc::new(open_union(&layers.options).unwrap());
    (layers, union)
}

#[test]
fn racing_copy_ups_give_one_result() {
    prepare_thread();
    for round in 0..20_u64 {
        let (layers, union) = fresh(WhiteoutForm::Aufs);
        let id = {
            let d = union.lookup(ROOT, b"d").unwrap().unwrap().id;
            union.lookup(d, b"a").unwrap().unwrap().id
        };
        let ino = union.getattr(id).unwrap().ino;
        let (shared, gate) = (Arc::clone(&union), Arc::new(Barrier::new(8)));
        race(8, move |thread| {
            gate.wait();
            let n = shared.write(
                id,
                30_000 + thread,
                &[b'0' + u8::try_from(thread).unwrap()],
                None,
            );
            assert_eq!(n.expect("write"), 1);
        });
        let mut content = vec![0; 40_000];
        let n = union.read(id, 0, &mut content).unwrap();
        assert_eq!(n, 30_008, "round {round}");
        assert!(
            content[..20_000].iter().all(|&b| b == b'x'),
            "the lower's data are there"
        );
        assert_eq!(&content[30_000..30_008], b"01234567", "no write is lost");
        assert_eq!(union.getattr(id).unwrap().ino, ino);
        union.forget(id, 1);
        let d = union.lookup(ROOT, b"d").unwrap().unwrap().id;
        union.forget(d, 2);
        check_after(union, &layers);
    }
}

#[test]
fn a_copy_up_racing_with_an_unlink_loses_no_write_to_the_kept_node() {
    prepare_thread();
    for round in 0..30_u64 {
        let form = [WhiteoutForm::Aufs, WhiteoutForm::Overlay][usize::try_from(round % 2).unwrap()];
        let (layers, union) = fresh(form);
        let id = union.lookup(ROOT, b"a").unwrap().unwrap().id;
        let (shared, gate) = (Arc::clone(&union), Arc::new(Barrier::new(2)));
        race(2, move |thread| {
            gate.wait();
            if thread == 0 {
                assert_eq!(shared.write(id, 0, b"new", None).expect("write"), 3);
            } else {
                shared.unlink(ROOT, b"a").expect("unlink");
            }
        });
        assert!(
            union.lookup(ROOT, b"a").unwrap().is_none(),
            "the name is gone"
        );
        let attr = union.getattr(id).expect("getattr of the kept node");
        assert_eq!(attr.stat.nlink, 0, "round {round}");
        assert_eq!(attr.stat.size, 20_000);
        let mut buf = [0; 5];
        union.read(id, 0, &mut buf).unwrap();
        assert_eq!(&buf, b"newyy");
        union.forget(id, 1);
        check_after(union, &layers);
    }
}

#[test]
fn a_kept_node_answers_at_every_moment_of_an_unlink_and_of_a_rename_over_it() {
    prepare_thread();
    let (layers, union) = fresh(WhiteoutForm::Aufs);
    let stop = Arc::new(AtomicBool::new(false));
    let node = Arc::new(AtomicU64::new(0));
    let (shared, shared_stop, shared_node) =
        (Arc::clone(&union), Arc::clone(&stop), Arc::clone(&node));
    race(4, move |thread| {
        if thread > 0 {
            while !shared_stop.load(Ordering::Acquire) {
                let id = shared_node.load(Ordering::Acquire);
                // The first thread may have forgotten it by now: then it is no one's node.
                match shared.getattr(id) {
                    Ok(attr) => assert_eq!(attr.kind(), FileKind::Regular),
                    Err(e) => assert_eq!(e, Errno::STALE, "stat of a kept node"),
                }
            }
            return;
        }
        let end = Instant::now() + race_time();
        while Instant::now() < end {
            let create = |name: &[u8]| {
                let made = shared.create(ROOT, name, 0o644, true, BY_ROOT, 0);
                made.expect("create").id
            };
            let id = create(b"new");
            shared_node.store(id, Ordering::Release);
            std::thread::yield_now();
            shared.unlink(ROOT, b"new").expect("unlink");
            shared.getattr(id).expect("stat after unlink");
            let (over, other) = (create(b"new"), create(b"other"));
            shared_node.store(over, Ordering::Release);
            shared
                .rename(ROOT, b"other", ROOT, b"new", 0)
                .expect("rename");
            shared.getattr(over).expect("stat after rename over");
            shared.unlink(ROOT, b"new").expect("unlink");
            shared_node.store(0, Ordering::Release);
            for id in [id, over, other] {
                shared.forget(id, 1);
            }
        }
        shared_stop.store(true, Ordering::Release);
    });
    check_after(union, &layers);
}
