//! Many processes at once on one mount, compared with a plain directory at the end.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, RenameFlags};

use crate::dialects;
use crate::process::wait_for;
use crate::random::Random;
use crate::spec::Dialect;
use crate::support::Stack;

/// Type, mode and content of everything in a tree.
fn shape(root: &Path) -> BTreeMap<PathBuf, (u32, Vec<u8>)> {
    let mut all = BTreeMap::new();
    let mut todo = vec![root.to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            let meta = fs::symlink_metadata(&path).unwrap();
            let content = if meta.is_file() {
                fs::read(&path).unwrap()
            } else {
                Vec::new()
            };
            if meta.is_dir() {
                todo.push(path.clone());
            }
            all.insert(
                path.strip_prefix(root).unwrap().to_owned(),
                (meta.mode(), content),
            );
        }
    }
    all
}

/// One worker's changes below `root/wN`, where nobody else works. Errors are part of the game.
fn work(root: &Path, worker: u64, steps: u64) -> Vec<Option<i32>> {
    let base = root.join(format!("w{worker}"));
    let mut random = Random(worker + 1);
    let mut answers = Vec::new();
    for step in 0..steps {
        let mut name = || format!("d{}/f{}", random.below(3), random.below(6));
        let (one, two) = (base.join(name()), base.join(name()));
        let mode = Mode::from_raw_mode(0o600 + (step % 64) as u32);
        let result = match random.below(10) {
            0 => fs::write(&one, format!("{worker}-{step}"))
                .err()
                .map(|e| e.raw_os_error().unwrap()),
            1 => rustix::fs::unlink(&one)
                .err()
                .map(rustix::io::Errno::raw_os_error),
            2 => rustix::fs::rename(&one, &two)
                .err()
                .map(rustix::io::Errno::raw_os_error),
            3 => rustix::fs::renameat_with(CWD, &one, CWD, &two, RenameFlags::EXCHANGE)
                .err()
                .map(rustix::io::Errno::raw_os_error),
            4 => rustix::fs::link(&one, &two)
                .err()
                .map(rustix::io::Errno::raw_os_error),
            5 => rustix::fs::chmod(&one, mode)
                .err()
                .map(rustix::io::Errno::raw_os_error),
            6 => crate::process::open_file(&one, OFlags::WRONLY | OFlags::APPEND, Mode::empty())
                .and_then(|fd| rustix::io::write(fd, b"+"))
                .err()
                .map(rustix::io::Errno::raw_os_error),
            7 => rustix::fs::mkdir(&one, mode | Mode::RWXU)
                .err()
                .map(rustix::io::Errno::raw_os_error),
            8 => rustix::fs::rmdir(&one)
                .err()
                .map(rustix::io::Errno::raw_os_error),
            _ => rustix::fs::lstat(&one)
                .err()
                .map(rustix::io::Errno::raw_os_error),
        };
        answers.push(result);
    }
    answers
}

const WORKERS: u64 = 6;

dialects! {
    /// Each worker has directories of its own, so the result is that of a plain directory: every
    /// single answer and the whole tree, at once and after a new mount.
    fn workers_side_by_side(dialect) {
        let mut items = Vec::new();
        for worker in 0..WORKERS {
            for dir in 0..3 {
                items.push(format!("w{worker}/d{dir}/"));
                for file in 0..4 {
                    items.push(format!("w{worker}/d{dir}/f{file}=lower"));
                }
            }
        }
        let mut m = Stack::of(dialect).lower(&items).lower(&items).mount();
        let plain = m.layers.scratch().join("plain");
        fs::create_dir(&plain).unwrap();
        crate::spec::build(&plain, &items, false);
        let run = |root: &Path| -> Vec<Vec<Option<i32>>> {
            std::thread::scope(|scope| {
                let start = |worker| scope.spawn(move || work(root, worker, 1500));
                let running: Vec<_> = (0..WORKERS).map(start).collect();
                running.into_iter().map(|worker| worker.join().unwrap()).collect()
            })
        };
        let expected = run(&plain);
        let answers = run(m.path());
        for (worker, (one, other)) in answers.iter().zip(&expected).enumerate() {
            let differs = one.iter().zip(other).position(|(one, other)| one != other);
            assert_eq!(differs, None, "step of worker {worker}: {:?}",
                differs.map(|at| (one[at], other[at])));
        }
        assert!(shape(m.path()) == shape(&plain), "the trees differ");
        m.remount();
        assert!(shape(m.path()) == shape(&plain), "the trees differ after a remount");
        fs::remove_dir_all(&plain).unwrap();
        for worker in 0..WORKERS {
            fs::remove_dir_all(m.p(format!("w{worker}"))).unwrap();
        }
        m.assert_ls("", &[]);
        let expected: Vec<String> = (0..WORKERS).map(|worker| format!("wh(w{worker})")).collect();
        m.assert_upper(expected);
    }

    /// All work in the same two directories: any answer may come, but no file is lost or doubled,
    /// nothing hangs and the tree is the same after a new mount.
    fn workers_in_each_others_way(dialect) {
        let items: Vec<String> =
            (0..20).map(|index| format!("d{}/f{index}=lower", index % 2)).collect();
        let mut m = Stack::of(dialect).lower(&items).mount();
        let root = m.path().to_owned();
        std::thread::scope(|scope| {
            for worker in 0..WORKERS {
                let root = &root;
                scope.spawn(move || {
                    let mut random = Random(worker + 77);
                    for _ in 0..1500 {
                        let mut name =
                            || root.join(format!("d{}/f{}", random.below(2), random.below(20)));
                        let (one, two) = (name(), name());
                        // Only renames and exchanges: the number of files cannot grow.
                        let _ = match random.below(5) {
                            0 => rustix::fs::rename(&one, &two),
                            1 => rustix::fs::renameat_with(CWD, &one, CWD, &two, RenameFlags::EXCHANGE),
                            2 => rustix::fs::renameat_with(CWD, &one, CWD, &two, RenameFlags::NOREPLACE),
                            3 => rustix::fs::chmod(&one, Mode::from_raw_mode(0o640)),
                            _ => rustix::fs::lstat(&one).map(drop),
                        };
                    }
                });
            }
        });
        let tree = shape(m.path());
        let files: Vec<_> = tree.values().filter(|(mode, _)| mode & 0o170_000 == 0o100_000).collect();
        assert!(!files.is_empty() && files.len() <= 20);
        assert!(files.iter().all(|(_, content)| content == b"lower"));
        m.remount();
        assert!(shape(m.path()) == tree, "the tree changed over a remount");
    }
}

/// Copy-up, removal and listing of one directory by many at once must end.
#[test]
fn trees_made_and_removed_at_once() {
    let items: Vec<String> = (0..40)
        .map(|index| format!("t/d{}/f{index}=x", index % 4))
        .collect();
    let m = Stack::new().lower(&items).mount();
    let root = m.path().to_owned();
    std::thread::scope(|scope| {
        for worker in 0..4 {
            let root = &root;
            scope.spawn(move || {
                for round in 0..30 {
                    let dir = root.join(format!("t/d{}", (worker + round) % 4));
                    let _ = fs::remove_dir_all(&dir);
                    let _ = fs::create_dir(&dir);
                    let _ = fs::write(dir.join(format!("n{worker}")), "y");
                    let _ = fs::read_dir(root.join("t")).map(|entries| entries.count());
                    let _ = fs::rename(dir.join(format!("n{worker}")), root.join("t/moved"));
                }
            });
        }
    });
    let removed = || fs::remove_dir_all(m.p("t")).ok();
    wait_for(std::time::Duration::from_secs(5), removed).expect("the tree cannot be removed");
    m.assert_ls("", &[]);
    m.assert_upper(["wh(t)"]);
}
