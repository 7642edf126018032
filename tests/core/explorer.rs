//! The union core under a scheduler that decides at every lock and every counter which thread goes on
//! (shuttle): few threads, few operations, many orders.
//!
//! The core's locks, maps and counters are shuttle's here (`sys::sync`); system calls are real, on a
//! tmpfs, and happen between two decisions. The order of the locks is asserted at each of them
//! (`union::rank`), a circle of waiting threads is found as such, and after each run the union is
//! compared with what another one makes of the same layers.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::io::Errno;
use shuttle::scheduler::{PctScheduler, RandomScheduler, Scheduler};
use shuttle::{Config, Runner, thread};
use tempfile::TempDir;
use unionfs::mount::open_union;
use unionfs::options::Options;
use unionfs::union::{Caller, FileKind, Make, OpenMode, ROOT, Union};

/// Orders of each scene and way of choosing: `UNIONFS_SCHEDULES`, or these.
fn schedules() -> usize {
    let count = std::env::var("UNIONFS_SCHEDULES");
    count.map_or(800, |n| n.parse().expect("a number"))
}

const BY_ROOT: Caller = Caller {
    uid: 0,
    gid: 0,
    pid: 0,
};
const WRITE: OpenMode = OpenMode {
    write: true,
    truncate: false,
    append: false,
};

/// Runs a scene in many orders: chosen at random, and by priorities that change at few points, which
/// finds what takes few bad moments with a known chance. Returns how many were run.
fn explore(scene: impl Fn() + Send + Sync + 'static) -> usize {
    let runs = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&runs);
    let scene = Arc::new(move || {
        counted.fetch_add(1, Ordering::Relaxed);
        scene();
    });
    let run = |scheduler: Box<dyn Scheduler + Send>| {
        let scene = Arc::clone(&scene);
        let mut config = Config::new();
        // As an ordinary thread has it, or nearly.
        config.stack_size = 1 << 20;
        // It says that weaker orders of atomic operations are not modelled: so it is said here too.
        config.silence_warnings = true;
        Runner::new(scheduler, config).run(move || scene());
    };
    let seed = 0x5eed;
    run(Box::new(RandomScheduler::new_from_seed(seed, schedules())));
    for depth in [2, 4] {
        let half = schedules() / 2;
        run(Box::new(PctScheduler::new_from_seed(seed, depth, half)));
    }
    runs.load(Ordering::Relaxed)
}

/// Layers and their union.
struct Scene {
    union: Union,
    options: Options,
    lower: PathBuf,
    before: BTreeMap<PathBuf, String>,
    _base: TempDir,
}

/// What a tree on disk holds; numbers, so that a change of any file is seen.
fn held(dir: &Path) -> BTreeMap<PathBuf, String> {
    let mut all = BTreeMap::new();
    let mut rest = vec![dir.to_owned()];
    while let Some(dir) = rest.pop() {
        for entry in std::fs::read_dir(dir).unwrap().flatten() {
            let stat = entry.metadata().unwrap();
            let shown = format!("{:o} {} {:?}", stat.mode(), stat.nlink(), stat.mtime_nsec());
            if stat.is_dir() {
                rest.push(entry.path());
            }
            all.insert(entry.path(), shown);
        }
    }
    all
}

impl Scene {
    /// With these files of lower and upper, each with its name as content; `name = other` is another
    /// name of that one.
    fn new(lower: &[&str], upper: &[&str]) -> Arc<Self> {
        let base = tempfile::tempdir_in("/dev/shm").unwrap();
        let make = |layer: &str, files: &[&str]| {
            let at = base.path().join(layer);
            std::fs::create_dir(&at).unwrap();
            for file in files {
                let (name, other) = file.split_once(" = ").unwrap_or((file, ""));
                let path = at.join(name);
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                if other.is_empty() {
                    std::fs::write(&path, name).unwrap();
                } else {
                    std::fs::hard_link(at.join(other), &path).unwrap();
                }
            }
            at
        };
        let (lower, upper) = (make("lower", lower), make("upper", upper));
        let options = Options {
            lowers: vec![lower.clone().into()],
            upper: Some(upper),
            volatile: true,
            ..Options::default()
        };
        let union = open_union(&options).unwrap();
        Arc::new(Self {
            union,
            options,
            before: held(&lower),
            lower,
            _base: base,
        })
    }

    /// The node of a path, with a reference to each part of it.
    fn find(&self, path: &str) -> Option<u64> {
        let mut id = ROOT;
        for name in path.split('/') {
            id = self.union.lookup(id, name.as_bytes()).unwrap()?.id;
        }
        Some(id)
    }

    /// The tree as the union shows it: kind, content, and number of names.
    fn shown(union: &Union) -> BTreeMap<String, String> {
        let mut all = BTreeMap::new();
        let mut rest = vec![(ROOT, String::new())];
        while let Some((dir, path)) = rest.pop() {
            let mut names = Vec::new();
            union
                .readdir(dir, 0, |entry| {
                    names.push(entry.name.to_vec());
                    true
                })
                .unwrap();
            for name in names.iter().filter(|n| **n != b"." && **n != b"..") {
                let text = format!("{path}/{}", String::from_utf8_lossy(name));
                let entry = union.lookup(dir, name).unwrap();
                let entry = entry.unwrap_or_else(|| panic!("{text} is listed and not there"));
                let stat = union.getattr(entry.id).unwrap().stat;
                let content = match stat.kind() {
                    FileKind::Regular => {
                        let mut buffer = [0; 64];
                        let n = union.read(entry.id, 0, &mut buffer).unwrap();
                        String::from_utf8_lossy(&buffer[..n]).into_owned()
                    }
                    _ => String::new(),
                };
                if stat.kind().is_dir() {
                    rest.push((entry.id, text.clone()));
                }
                let shown = format!("{:?} {} '{content}'", stat.kind(), stat.nlink);
                all.insert(text, shown);
            }
        }
        all
    }

    /// Nothing that threads of the past have left is wrong: returns what there is.
    fn check(self: Arc<Self>) -> BTreeMap<String, String> {
        let shown = Self::shown(&self.union);
        let scene = Arc::into_inner(self).expect("all threads have ended");
        drop(scene.union);
        let anew = open_union(&scene.options).unwrap();
        assert_eq!(shown, Self::shown(&anew), "left: union, right: opened anew");
        assert_eq!(held(&scene.lower), scene.before, "the lower has changed");
        shown
    }
}

type Job = Box<dyn FnOnce(&Scene) + Send>;

/// Runs each job in a thread of its own.
fn together(scene: &Arc<Scene>, jobs: Vec<Job>) {
    let start = |job: Job| {
        let scene = Arc::clone(scene);
        thread::spawn(move || job(&scene))
    };
    let threads: Vec<_> = jobs.into_iter().map(start).collect();
    threads.into_iter().for_each(|t| t.join().unwrap());
}

fn job(work: impl FnOnce(&Scene) + Send + 'static) -> Job {
    Box::new(work)
}

/// What may come of an operation beside success.
#[track_caller]
fn or<T>(result: Result<T, Errno>, others: &[Errno]) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err(e) if others.contains(&e) => None,
        Err(e) => panic!("{e}"),
    }
}

fn told(name: &str, runs: usize) {
    eprintln!("{name}: {runs} orders");
    assert!(runs >= schedules());
}

#[test]
fn lookup_and_forget() {
    told(
        "lookup/forget",
        explore(|| {
            let scene = Scene::new(&["d/f"], &["d/g"]);
            let look = || {
                job(|s| {
                    for _ in 0..2 {
                        let d = s.union.lookup(ROOT, b"d").unwrap().unwrap().id;
                        for name in [b"f", b"g"] {
                            let found = s.union.lookup(d, name).unwrap().unwrap();
                            assert_eq!(
                                s.union.getattr(found.id).unwrap().stat.ino,
                                found.attr.stat.ino
                            );
                            s.union.forget(found.id, 1);
                        }
                        s.union.forget(d, 1);
                    }
                })
            };
            together(&scene, vec![look(), look(), look()]);
            assert_eq!(scene.union.inode_count(), 1, "only the root is known");
            scene.check();
        }),
    );
}

/// The number of a file that is gone comes again on disk, for another one.
#[test]
fn forget_and_create() {
    told(
        "forget/create",
        explore(|| {
            let scene = Scene::new(&["f"], &["a"]);
            let a = scene.find("a").unwrap();
            let one = job(move |s| {
                s.union.unlink(ROOT, b"a").unwrap();
                s.union.forget(a, 1);
            });
            let two = job(|s| {
                let made = s
                    .union
                    .create(ROOT, b"b", 0o600, true, BY_ROOT, 0o22)
                    .unwrap();
                s.union.write(made.id, 0, b"new", None).unwrap();
                assert!(s.union.getattr(made.id).is_ok());
                s.union.forget(made.id, 1);
            });
            let three = job(|s| {
                for name in [b"a", b"b"] {
                    if let Some(found) = s.union.lookup(ROOT, name).unwrap() {
                        or(s.union.getattr(found.id), &[]);
                        s.union.forget(found.id, 1);
                    }
                }
            });
            together(&scene, vec![one, two, three]);
            assert_eq!(scene.union.inode_count(), 1);
            assert_eq!(scene.check().len(), 2);
        }),
    );
}

#[test]
fn copy_up_and_copy_up() {
    told(
        "copy-up/copy-up",
        explore(|| {
            let scene = Scene::new(&["d/e/file"], &[]);
            let file = scene.find("d/e/file").unwrap();
            let write = |at: u64, text: &'static [u8]| {
                job(move |s| {
                    s.union.open(file, WRITE, BY_ROOT).unwrap();
                    assert_eq!(s.union.write(file, at, text, None), Ok(text.len()));
                })
            };
            let dir = job(|s| {
                let d = s.find("d/e").unwrap();
                s.union.create(d, b"new", 0o600, true, BY_ROOT, 0).unwrap();
            });
            together(&scene, vec![write(0, b"D"), write(3, b"E"), dir]);
            let shown = scene.check();
            assert_eq!(shown["/d/e/file"], "Regular 1 'D/eEfile'");
        }),
    );
}

#[test]
fn copy_up_and_unlink() {
    told(
        "copy-up/unlink",
        explore(|| {
            let scene = Scene::new(&["d/file", "d/other"], &[]);
            let file = scene.find("d/file").unwrap();
            let d = scene.find("d").unwrap();
            let write = job(move |s| {
                s.union.open(file, WRITE, BY_ROOT).unwrap();
                s.union.write(file, 0, b"X", None).unwrap();
                let mut buffer = [0; 16];
                let n = s.union.read(file, 0, &mut buffer).unwrap();
                assert_eq!(&buffer[..n], b"X/file");
            });
            let unlink = job(move |s| s.union.unlink(d, b"file").unwrap());
            let look = job(move |s| {
                if let Some(found) = s.union.lookup(d, b"file").unwrap() {
                    assert_eq!(found.id, file);
                }
            });
            together(&scene, vec![write, unlink, look]);
            let mut buffer = [0; 16];
            let n = scene.union.read(file, 0, &mut buffer).unwrap();
            assert_eq!(&buffer[..n], b"X/file", "of the deleted file");
            assert_eq!(
                scene.check().into_keys().collect::<Vec<_>>(),
                ["/d", "/d/other"]
            );
        }),
    );
}

#[test]
fn rename_and_rename() {
    told(
        "rename/rename",
        explore(|| {
            let scene = Scene::new(&["d/a", "e/b"], &["d/c"]);
            let (d, e) = (scene.find("d").unwrap(), scene.find("e").unwrap());
            let one = job(move |s| {
                or(s.union.rename(d, b"a", e, b"b", 0), &[Errno::NOENT]);
            });
            let two = job(move |s| {
                or(s.union.rename(e, b"b", d, b"a", 0), &[Errno::NOENT]);
            });
            let three = job(move |s| {
                or(
                    s.union.rename(d, b"c", e, b"b", libc::RENAME_EXCHANGE),
                    &[Errno::NOENT],
                );
            });
            together(&scene, vec![one, two, three]);
            let shown = scene.check();
            assert!((3..=4).contains(&shown.len()), "{shown:?}");
        }),
    );
}

/// Each would come into the other.
#[test]
fn rename_of_directories() {
    told(
        "rename/rename of directories",
        explore(|| {
            let scene = Scene::new(&["d/a", "e/b"], &[]);
            let (d, e) = (scene.find("d").unwrap(), scene.find("e").unwrap());
            let others = [Errno::INVAL, Errno::NOENT];
            let one = job(move |s| {
                or(s.union.rename(ROOT, b"d", e, b"x", 0), &others);
            });
            let two = job(move |s| {
                or(s.union.rename(ROOT, b"e", d, b"x", 0), &others);
            });
            let make = job(move |s| {
                or(s.union.create(d, b"new", 0o600, true, BY_ROOT, 0), &[]);
            });
            together(&scene, vec![one, two, make]);
            let shown = scene.check();
            assert_eq!(shown.len(), 5, "{shown:?}");
        }),
    );
}

#[test]
fn readdir_and_create() {
    told(
        "readdir/create",
        explore(|| {
            let scene = Scene::new(&["d/a", "d/b"], &["d/c"]);
            let d = scene.find("d").unwrap();
            let list = || {
                job(move |s| {
                    let mut names = Vec::new();
                    let mut at = 0;
                    loop {
                        let (mut more, from) = (0, at);
                        // Two at a time, so that changes come in between.
                        let each = |entry: &unionfs::union::DirEntry| {
                            names.push(String::from_utf8_lossy(&entry.name).into_owned());
                            at = entry.next;
                            more += 1;
                            more < 2
                        };
                        s.union.readdir(d, from, each).unwrap();
                        if more == 0 {
                            break;
                        }
                    }
                    names.sort();
                    let stays = ["a", "b"].map(|n| names.iter().filter(|l| *l == n).count());
                    assert_eq!(stays, [1, 1], "{names:?}");
                    let before = names.len();
                    names.dedup();
                    assert_eq!(names.len(), before, "twice: {names:?}");
                })
            };
            let change = job(move |s| {
                s.union.create(d, b"new", 0o600, true, BY_ROOT, 0).unwrap();
                s.union.unlink(d, b"c").unwrap();
                let make = Make::Directory { mode: 0o700 };
                s.union.make(d, b"dir", make, BY_ROOT, 0).unwrap();
            });
            together(&scene, vec![list(), change, list()]);
            let shown = scene.check();
            let names = ["/d", "/d/a", "/d/b", "/d/dir", "/d/new"];
            assert_eq!(shown.into_keys().collect::<Vec<_>>(), names);
        }),
    );
}

#[test]
fn plink_and_unlink() {
    told(
        "plink/unlink",
        explore(|| {
            let scene = Scene::new(&["d/a", "b = d/a", "c = d/a"], &[]);
            let d = scene.find("d").unwrap();
            let file = scene.find("d/a").unwrap();
            let write = job(move |s| {
                s.union.open(file, WRITE, BY_ROOT).unwrap();
                s.union.write(file, 0, b"X", None).unwrap();
            });
            let unlink = job(move |s| s.union.unlink(d, b"a").unwrap());
            let look = job(move |s| {
                let found = s.union.lookup(ROOT, b"b").unwrap().unwrap();
                assert_eq!(found.id, file);
                let links = s.union.getattr(file).unwrap().stat.nlink;
                assert!((2..=3).contains(&links), "{links}");
                or(s.union.link(file, ROOT, b"more"), &[]);
            });
            together(&scene, vec![write, unlink, look]);
            let shown = Scene::shown(&scene.union);
            for name in ["/b", "/c", "/more"] {
                assert_eq!(shown[name], "Regular 3 'X/a'");
            }
            for name in [&b"b"[..], b"c", b"more"] {
                scene.union.unlink(ROOT, name).unwrap();
            }
            assert_eq!(scene.union.getattr(file).unwrap().stat.nlink, 0);
            assert_eq!(scene.check().len(), 1);
        }),
    );
}

/// The explorer itself finds what is wrong only in some orders: somebody who looks before he makes a
/// file, and takes for granted that nothing comes in between.
#[test]
fn a_race_is_found() {
    let outcome = std::panic::catch_unwind(|| {
        explore(|| {
            let scene = Scene::new(&["f"], &[]);
            let make = || {
                job(|s| {
                    if s.union.lookup(ROOT, b"new").unwrap().is_none() {
                        s.union
                            .create(ROOT, b"new", 0o600, true, BY_ROOT, 0)
                            .expect("nobody else");
                    }
                })
            };
            together(&scene, vec![make(), make()]);
        })
    });
    assert!(
        outcome.is_err(),
        "the two calls always come one after the other"
    );
}
