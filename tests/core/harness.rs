//! Runs a random case on a union and on its oracle, side by side.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use proptest::test_runner::{
    Config, FileFailurePersistence, RngAlgorithm, TestError, TestRng, TestRunner,
};
use rustix::fs::FileType;
use rustix::io::Errno;
use tempfile::TempDir;
use unionfs::options::ownership::Records;
use unionfs::options::{Options, RenameDir, WhiteoutForm};

use crate::draw::{Binder, Step, step};
use crate::invariants::{Raw, check_absent, differences, kept_difference};
use crate::links;
use crate::merge::merge;
use crate::model::{self, Dialects, Dir};
use crate::ops::{Do, ROOT, Result, Side, Who, describe};
use crate::plain::{Plain, Users, keep_capabilities, prepare_thread};
use crate::tree::{self, Names, Seen, Tree, show};
use crate::union_side::UnionSide;

/// A stack of layers and what is done with it.
#[derive(Clone, Debug)]
pub struct Case {
    /// Top first, and whether it lies on another filesystem than the upper.
    pub lowers: Vec<(Dir, bool)>,
    pub upper: Dir,
    pub overlay_form: bool,
    pub workdir: bool,
    pub volatile: bool,
    pub rename_dir: RenameDir,
    pub metacopy: bool,
    /// Entries read at once from directories.
    pub piece: usize,
    /// Further names of the lowers' files.
    pub links: Vec<links::Pick>,
    pub steps: Vec<Step>,
}

/// What a case is made of.
type Drawn = (
    Vec<(Dir, bool)>,
    Dir,
    (bool, bool, bool, usize, RenameDir, bool),
    Vec<links::Pick>,
    Vec<Step>,
);

/// Draws cases of at most `steps` operations.
pub fn case(dialects: Dialects, steps: usize) -> BoxedStrategy<Case> {
    let lower = (model::lower(dialects), prop::bool::weighted(0.2));
    let lowers = prop::collection::vec(lower, 1..=4);
    let settings = (
        any::<bool>(),
        prop::bool::weighted(0.3),
        prop::bool::weighted(0.9),
        prop::sample::select(vec![1_usize, 3, 1000]),
        prop::sample::select(vec![
            RenameDir::Copy,
            RenameDir::Copy,
            RenameDir::Redirect,
            RenameDir::Redirect,
            RenameDir::Exdev,
        ]),
        any::<bool>(),
    );
    let steps = prop::collection::vec(step(), 1..=steps);
    // Overlayfs parts them.
    let most = if dialects == Dialects::All { 6 } else { 0 };
    let links = prop::collection::vec(any::<links::Pick>(), 0..=most);
    let build = |(lowers, upper, settings, links, steps): Drawn| Case {
        lowers,
        upper,
        overlay_form: settings.0,
        workdir: settings.1,
        volatile: settings.2,
        piece: settings.3,
        rename_dir: settings.4,
        metacopy: settings.5,
        links,
        steps,
    };
    (lowers, model::upper(dialects), settings, links, steps)
        .prop_map(build)
        .boxed()
}

/// A case written to disk.
pub struct Disk {
    pub base: TempDir,
    _elsewhere: TempDir,
    pub options: Options,
    /// The merged tree as one plain directory.
    pub oracle: PathBuf,
    pub raw: Raw,
}

impl Disk {
    pub fn new(case: &Case) -> Self {
        Self::new_in(case, &std::env::temp_dir())
    }

    /// With all that is not to be elsewhere in a directory of `place`.
    pub fn new_in(case: &Case, place: &Path) -> Self {
        let base = tempfile::tempdir_in(place).unwrap();
        let elsewhere = tempfile::tempdir_in("/dev/shm").expect("/dev/shm is a second filesystem");
        let new = |dir: &Path, name: &str| {
            let path = dir.join(name);
            std::fs::create_dir(&path).unwrap();
            path
        };
        let mut lowers = Vec::new();
        for (at, (dir, apart)) in case.lowers.iter().enumerate() {
            let place = if *apart {
                elsewhere.path()
            } else {
                base.path()
            };
            let path = new(place, &format!("l{at}"));
            tree::write(&path, dir);
            lowers.push(path);
        }
        let upper = new(base.path(), "upper");
        tree::write(&upper, &case.upper);
        let work = case.workdir.then(|| new(base.path(), "work"));
        let layers: Vec<&Dir> = std::iter::once(&case.upper)
            .chain(case.lowers.iter().map(|(dir, _)| dir))
            .collect();
        let oracle = new(base.path(), "oracle");
        tree::write(&oracle, &merge(&layers));
        let paths = lowers.clone();
        let options = Options {
            lowers: lowers.into_iter().map(Into::into).collect(),
            upper: Some(upper),
            work,
            whiteout: if case.overlay_form {
                WhiteoutForm::Overlay
            } else {
                WhiteoutForm::Aufs
            },
            volatile: case.volatile,
            rename_dir: case.rename_dir,
            metacopy: case.metacopy,
            ..Options::default()
        };
        links::add(&options, &oracle, &case.links);
        let raw = Raw::of(&paths);
        Self {
            base,
            _elsewhere: elsewhere,
            options,
            oracle,
            raw,
        }
    }
}

/// What is compared with the oracle.
pub trait Subject: Side {
    /// The tree as users see it.
    fn tree(&mut self) -> Tree;
    /// A kept object.
    fn kept(&mut self, index: usize) -> Seen;
    /// Checks of its own, given what is expected to be seen.
    fn check(&mut self, expected: &Tree);
    /// Differences that are allowed; the reason is in the text.
    fn allowed(&self, what: &Do, result: &Result) -> Option<&'static str>;
}

/// The union's core, and how its directories are read.
pub struct Core {
    pub side: UnionSide,
    piece: usize,
    /// Inode numbers by path: the oracle's and the union's.
    numbers: BTreeMap<Names, (u64, u64)>,
    tree: Tree,
    /// Owners and modes are kept in attributes.
    records: bool,
    checks: u32,
}

impl Core {
    /// Over layers on disk.
    pub fn new(disk: &Disk, piece: usize) -> Self {
        Self {
            side: UnionSide::new(disk.options.clone()),
            piece,
            numbers: BTreeMap::new(),
            tree: Tree::new(),
            records: disk.options.ownership.records != Records::Inode,
            checks: 0,
        }
    }
}

impl Side for Core {
    fn run(&mut self, who: Who, what: &Do) -> Result {
        let frozen = self.side.frozen.len();
        let result = self.side.run(who, what);
        if self.side.frozen.len() > frozen {
            // What was copied up is of a lower now, with a number of its own.
            self.numbers.clear();
        }
        result
    }
}

impl Subject for Core {
    fn tree(&mut self) -> Tree {
        self.tree = self.side.scan(self.piece);
        self.tree.clone()
    }

    fn kept(&mut self, index: usize) -> Seen {
        let id = self.side.kept[index];
        let seen = self.side.look(id);
        seen.unwrap_or_else(|e| panic!("kept#{index} cannot be read: {e}"))
    }

    fn check(&mut self, expected: &Tree) {
        let known = self.side.union().check_known_names();
        known.unwrap_or_else(|e| panic!("a listing that is kept is not right: {e}"));
        check_absent(&mut self.side, expected);
        self.checks += 1;
        if self.checks.is_multiple_of(3) {
            // The next operation has to look for itself.
            self.side.union().forget_known_names();
        }
        let mut numbers = BTreeMap::new();
        for (path, seen) in &self.tree {
            let both = (expected[path].ino, seen.ino);
            if let Some(before) = self.numbers.get(path).filter(|(ino, _)| *ino == both.0) {
                assert_eq!(before.1, both.1, "the number of {} has changed", show(path));
            }
            numbers.insert(path.clone(), both);
        }
        self.numbers = numbers;
    }

    fn allowed(&self, what: &Do, result: &Result) -> Option<&'static str> {
        let attr = match what {
            Do::On { action, .. } => action.attr().unwrap_or_default(),
            _ => "",
        };
        match (what, result) {
            (_, Err(Errno::OPNOTSUPP)) if self.records && attr.starts_with("system.") => {
                Some("no ACLs on an upper with records")
            }
            (_, Err(Errno::PERM)) if self.records && attr.starts_with("security.") => {
                Some("a symlink has no place for what is kept under a user. name")
            }
            (Do::Rename { .. }, Err(Errno::XDEV))
                if self.side.options.rename_dir != RenameDir::Exdev =>
            {
                None
            }
            _ => allowed_difference(what, result),
        }
    }
}

/// The table of differences from a plain directory. What is listed is not done to the oracle.
pub fn allowed_difference(what: &Do, result: &Result) -> Option<&'static str> {
    match (what, result) {
        (Do::Rename { .. }, Err(Errno::XDEV)) => {
            Some("a directory with contents in a lower is not moved in one step")
        }
        (
            Do::Mknod {
                kind: FileType::CharacterDevice,
                rdev: 0,
                ..
            },
            Err(Errno::PERM),
        ) => Some("the device 0:0 is a whiteout"),
        _ => None,
    }
}

/// The oracle's version of an operation.
pub fn for_oracle(what: &Do) -> Do {
    match what {
        // The whiteout that RENAME_WHITEOUT leaves shows as nothing in a union.
        Do::Rename { from, to, flags } if flags & 4 != 0 && flags & !5 == 0 => Do::Rename {
            from: from.clone(),
            to: to.clone(),
            flags: flags & !4,
        },
        other => other.clone(),
    }
}

/// Runs the steps on both sides and compares after each.
///
/// # Panics
/// At the first difference.
pub fn compare(
    subject: &mut dyn Subject, oracle: &mut Plain, root: &Path, steps: &[Step],
) -> Vec<String> {
    let mut log = vec!["start".to_owned()];
    let mut expected = check(subject, oracle, root, &log);
    for Step { who, what } in steps {
        let kept: Vec<FileType> = oracle.kept.iter().map(kind).collect();
        let binder = Binder {
            tree: &expected,
            kept: &kept,
        };
        let Some(what) = binder.bind(what) else {
            continue;
        };
        log.push(describe(*who, &what));
        let guard = LogOnPanic(&log);
        let got = subject.run(*who, &what);
        drop(guard);
        if let (Do::Rename { from, to, flags }, Err(Errno::XDEV)) = (&what, &got) {
            let is_dir = |path| {
                expected
                    .get(path)
                    .is_some_and(|s| s.kind == FileType::Directory)
            };
            let moves_dir = is_dir(from) || (flags & 2 != 0 && is_dir(to));
            assert!(moves_dir, "EXDEV for a file after\n{}", log.join("\n"));
        }
        if subject.allowed(&what, &got).is_none() {
            let wanted = oracle.run(*who, &for_oracle(&what));
            assert_eq!(
                got,
                wanted,
                "result (left: union, right: oracle) of\n{}",
                log.join("\n")
            );
        }
        if let Some(last) = log.last_mut() {
            last.push_str(match got {
                Ok(_) => " = ok",
                Err(_) => " = error",
            });
        }
        expected = check(subject, oracle, root, &log);
    }
    log
}

pub fn kind(file: &std::fs::File) -> FileType {
    if file.metadata().unwrap().is_dir() {
        FileType::Directory
    } else {
        FileType::RegularFile
    }
}

struct LogOnPanic<'a>(&'a [String]);

impl Drop for LogOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("panic after:\n{}", self.0.join("\n"));
        }
    }
}

/// Compares the trees and all that is kept; returns what is expected to be seen.
///
/// # Panics
/// At a difference.
pub fn check(subject: &mut dyn Subject, oracle: &Plain, root: &Path, log: &[String]) -> Tree {
    let _guard = LogOnPanic(log);
    let expected = tree::scan(root);
    let tree = subject.tree();
    let mut texts = differences(&expected, &tree);
    for (at, file) in oracle.kept.iter().enumerate() {
        use std::os::fd::AsRawFd;
        let link = format!("/proc/self/fd/{}", file.as_raw_fd());
        let wanted = tree::look_through(Path::new(&link));
        let got = subject.kept(at);
        texts.extend(kept_difference(at, &wanted, &got));
        for path in expected
            .iter()
            .filter(|(_, s)| s.ino == wanted.ino)
            .map(|(p, _)| p)
        {
            if tree.get(path).is_some_and(|s| s.ino != got.ino) {
                texts.push(format!("kept#{at} has another number than {}", show(path)));
            }
        }
    }
    assert!(
        texts.is_empty(),
        "differences:\n{}\nafter:\n{}",
        texts.join("\n"),
        log.join("\n")
    );
    subject.check(&expected);
    expected
}

/// Runs a whole case on the core.
pub fn run_core(case: &Case) {
    run_core_with(case, Records::Inode);
}

/// The same with owners and modes kept elsewhere.
pub fn run_core_with(case: &Case, records: Records) {
    let mut disk = Disk::new(case);
    disk.options.ownership.records = records;
    if let (Records::User, Some(upper)) = (records, &disk.options.upper) {
        // On an upper that holds objects already they must have begun earlier.
        let stat = std::fs::metadata(upper).unwrap();
        let record = format!(
            "{}:{}:{:o}:dir",
            stat.uid(),
            stat.gid(),
            stat.mode() & 0o7777
        );
        xattr::set(upper, "user.containers.override_stat", record.as_bytes()).unwrap();
    }
    let mut core = Core::new(&disk, case.piece);
    let mut oracle = Plain::new(&disk.oracle, Users::Unchecked);
    let mut log = compare(&mut core, &mut oracle, &disk.oracle, &case.steps);
    log.push("remount at the end".to_owned());
    core.run(ROOT, &Do::Remount).unwrap();
    oracle.kept.clear();
    check(&mut core, &oracle, &disk.oracle, &log);
    core.side.close();
    disk.raw.check_unchanged();
}

/// Number of cases: `UNIONFS_MODEL_CASES`, or the default.
pub fn cases(default: u32) -> u32 {
    std::env::var("UNIONFS_MODEL_CASES").map_or(default, |n| n.parse().expect("a number"))
}

/// Runs random cases from a fixed seed (`UNIONFS_MODEL_SEED` for another) after those that failed
/// before, which are kept in `file`.
pub fn run_cases(
    file: &'static str, strategy: &BoxedStrategy<Case>, default: u32, run: impl Fn(&Case),
) {
    let seed =
        std::env::var("UNIONFS_MODEL_SEED").map_or(1, |n| n.parse::<u64>().expect("a number"));
    let mut bytes = [0_u8; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let config = Config {
        cases: cases(default),
        max_shrink_time: 60_000,
        max_shrink_iters: 4000,
        source_file: Some(file!()),
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct(file))),
        ..Config::default()
    };
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let mut runner = TestRunner::new_with_rng(config, rng);
    let result = runner.run(strategy, |case| {
        run(&case);
        Ok(())
    });
    match result {
        Ok(()) => {}
        Err(TestError::Fail(why, case)) => panic!("{why}\nminimal case: {case:#?}"),
        Err(e) => panic!("{e}"),
    }
}

#[test]
fn random_operations_do_the_same_to_a_union_and_to_a_plain_directory() {
    prepare_thread();
    keep_capabilities();
    let file = "tests/core/core.proptest-regressions";
    run_cases(file, &case(Dialects::All, 60), 150, run_core);
}
