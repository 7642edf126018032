//! Long random work in which now and then a call fails, or is the last of its mount.
//!
//! The cases are those of the model ([`crate::harness`]), and so is what is compared. An operation that is answered
//! with the error of its call has changed nothing; one during which the process ended has left the old or
//! the new state to the next mount, which goes on with it. Any other does what it does on a plain directory.

use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestError, TestRng, TestRunner};
use rustix::fs::FileType;
use unionfs::faults::{self, Fault};
use unionfs::mount::open_union;

use super::cell::leftovers;
use super::{ERRNOS, MEMORY, prepare};
use crate::draw::{Binder, Step, step};
use crate::harness::{Case, Core, Disk, Subject, case, check, for_oracle, kind};
use crate::invariants::differences;
use crate::model::Dialects;
use crate::ops::{Do, ROOT, Result, Side, describe};
use crate::plain::{Plain, Users};
use crate::tree::{self, Tree, join, set_times};

/// Operations of one sequence that are drawn; some of them mean nothing for the tree at hand.
const STEPS: std::ops::RangeInclusive<usize> = 30..=60;

/// The fault that an operation meets if it makes that many calls.
#[derive(Clone, Copy, Debug)]
enum Drawn {
    None,
    /// The call of that number fails.
    Fail(u32, usize),
    /// The process ends at that point: two are before and after each call. So may the next mount, while it
    /// tidies up.
    End(u32, Option<u32>),
}

#[derive(Clone, Debug)]
struct Sequence {
    case: Case,
    steps: Vec<(Step, Drawn)>,
}

/// What was tried, in all sequences of a test.
#[derive(Default)]
struct Counts {
    operations: AtomicU32,
    failures: AtomicU32,
    refused: AtomicU32,
    ends: AtomicU32,
    mounts: AtomicU32,
    done: AtomicU32,
}

fn count(counter: &AtomicU32) {
    counter.fetch_add(1, Relaxed);
}

/// Most operations make one to five calls, few make some dozens.
fn call() -> impl Strategy<Value = u32> + Clone {
    prop_oneof![5 => 0..3_u32, 3 => 0..8_u32, 1 => 0..40_u32]
}

fn fault() -> impl Strategy<Value = Drawn> + Clone {
    prop_oneof![
        1 => Just(Drawn::None),
        3 => (call(), 0..ERRNOS.len()).prop_map(|(call, errno)| Drawn::Fail(call, errno)),
        2 => (call(), 0..2_u32, prop::option::of(0..12_u32))
            .prop_map(|(call, after, again)| Drawn::End(2 * call + after, again)),
    ]
}

fn sequence(overlay_form: bool) -> BoxedStrategy<Sequence> {
    let steps = prop::collection::vec((step(), fault()), STEPS);
    (case(Dialects::All, 1), steps)
        .prop_map(move |(mut case, steps)| {
            case.steps.clear();
            case.overlay_form = overlay_form;
            // One that did not end well may not be mounted again.
            case.volatile = false;
            Sequence { case, steps }
        })
        .boxed()
}

/// The union and its oracle.
struct Both<'a> {
    core: Core,
    oracle: Plain,
    disk: Disk,
    log: Vec<String>,
    /// Something failed in this mount: what could not be removed goes with the next one.
    is_untidy: bool,
    counts: &'a Counts,
}

impl Both<'_> {
    /// Gives the oracle the times that cannot be set back in one step with what is taken back: those of
    /// directories, and of files to which their data come in place.
    fn align_times(&mut self, seen: &Tree) {
        let in_place = self.core.side.options.metacopy;
        for (path, wanted) in &tree::scan(&self.disk.oracle) {
            let may_differ = match wanted.kind {
                FileType::Directory => true,
                FileType::RegularFile => in_place,
                _ => false,
            };
            let got = seen.get(path).filter(|got| got.kind == wanted.kind);
            if let Some(got) = got.filter(|got| may_differ && got.mtime != wanted.mtime) {
                set_times(&join(&self.disk.oracle, path), got.mtime);
            }
        }
    }

    fn on_oracle(&mut self, what: &Do, got: &Result) {
        if self.core.allowed(what, got).is_some() {
            return;
        }
        let wanted = self.oracle.run(ROOT, &for_oracle(what));
        assert_eq!(*got, wanted, "left: union, after\n{}", self.log.join("\n"));
    }

    /// A mount that ended well, and the next one.
    fn remount(&mut self) {
        let side = &mut self.core.side;
        side.kept.clear();
        self.oracle.kept.clear();
        side.forget();
        assert_eq!(side.union().inode_count(), 1, "inodes remain");
        side.union = None;
        side.reopen();
        self.is_untidy = false;
        self.check_leftovers();
    }

    fn check_leftovers(&mut self) {
        leftovers(&mut self.core.side)
            .unwrap_or_else(|e| panic!("{e}\nafter\n{}", self.log.join("\n")));
    }

    /// One operation; returns the tree that is to be seen now.
    fn step(&mut self, what: &Do, drawn: Drawn) -> Tree {
        let fault = match drawn {
            Drawn::None => None,
            Drawn::Fail(call, errno) => Some((2 * call, Fault::Fail(ERRNOS[errno]))),
            Drawn::End(point, _) => Some((point, Fault::End)),
        };
        // That ends a mount and begins another, with checks of its own.
        let fault = fault.filter(|_| !matches!(what, Do::Remount));
        if matches!(what, Do::Remount) && self.is_untidy {
            self.remount();
        }
        count(&self.counts.operations);
        self.log.push(format!("{} {fault:?}", describe(ROOT, what)));
        faults::watch(fault);
        let got = self.core.run(ROOT, what);
        if faults::has_ended() {
            // Whatever it would tidy up has no effect any more.
            self.core.side.union = None;
            faults::unwatch();
            if let Drawn::End(_, Some(point)) = drawn {
                self.end_while_mounting(point);
            }
            self.after_end(what);
        } else {
            let calls = faults::unwatch();
            let met = fault.filter(|(point, _)| calls.len() > *point as usize / 2);
            self.after(what, &got, met);
        }
        check(&mut self.core, &self.oracle, &self.disk.oracle, &self.log)
    }

    /// After an operation of a mount that goes on.
    fn after(&mut self, what: &Do, got: &Result, met: Option<(u32, Fault)>) {
        let Some((_, Fault::Fail(errno))) = met else {
            return self.on_oracle(what, got);
        };
        count(&self.counts.failures);
        self.is_untidy = true;
        self.note(&format!("= {got:?}"));
        let is_refused = *got == Err(errno) || matches!(what, Do::Flush) && got.is_err();
        if is_refused {
            count(&self.counts.refused);
        } else {
            self.on_oracle(what, got);
        }
        let seen = self.core.tree();
        self.align_times(&seen);
    }

    fn note(&mut self, text: &str) {
        if let Some(last) = self.log.last_mut() {
            last.push_str(text);
        }
    }

    /// A mount that ends before it can be used.
    fn end_while_mounting(&mut self, point: u32) {
        faults::watch(Some((point, Fault::End)));
        let union = open_union(&self.core.side.options);
        let is_met = faults::has_ended();
        drop(union);
        faults::unwatch();
        if is_met {
            count(&self.counts.mounts);
            self.note(&format!(", the next mount at {point}"));
        }
    }

    /// After an operation during which the process ended.
    fn after_end(&mut self, what: &Do) {
        count(&self.counts.ends);
        let side = &mut self.core.side;
        side.refs.clear();
        side.kept.clear();
        side.reopen();
        self.is_untidy = false;
        self.check_leftovers();
        let seen = self.core.tree();
        // What was open is closed; that changes no name, but the operation is about it.
        let was_kept = std::mem::take(&mut self.oracle.kept);
        self.align_times(&seen);
        let not_old = differences(&tree::scan(&self.disk.oracle), &seen);
        if !not_old.is_empty() {
            count(&self.counts.done);
            self.oracle.kept = was_kept;
            let _ = self.oracle.run(ROOT, &for_oracle(what));
            self.align_times(&seen);
            self.note(&format!(", not the old state:\n  {}", not_old.join("\n  ")));
        }
        self.oracle.kept.clear();
    }
}

/// What is one change for the core.
fn one_change(mut what: Do) -> Do {
    if let Do::Create { data, .. } = &mut what {
        data.clear();
    }
    what
}

fn run(sequence: &Sequence, place: &Path, counts: &Counts) {
    let disk = Disk::new_in(&sequence.case, place);
    let mut both = Both {
        core: Core::new(&disk, sequence.case.piece),
        oracle: Plain::new(&disk.oracle, Users::Unchecked),
        disk,
        log: Vec::new(),
        is_untidy: false,
        counts,
    };
    let mut tree = tree::scan(&both.disk.oracle);
    // By root: what others write clears bits first, which is a change of its own.
    for (Step { what, .. }, fault) in &sequence.steps {
        let kept: Vec<FileType> = both.oracle.kept.iter().map(kind).collect();
        let binder = Binder {
            tree: &tree,
            kept: &kept,
        };
        if let Some(what) = binder.bind(what).map(one_change) {
            tree = both.step(&what, *fault);
        }
    }
    both.log.push("the end".to_owned());
    both.remount();
    check(&mut both.core, &both.oracle, &both.disk.oracle, &both.log);
    both.core.side.close();
    both.disk.raw.check_unchanged();
}

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |n| n.parse().expect("a number"))
}

fn sequences(overlay_form: bool, default: u64) {
    prepare();
    let first = number("UNIONFS_FAULTS_SEED", 1);
    let sequences = number("UNIONFS_FAULTS_SEQUENCES", default);
    let counts = Counts::default();
    let strategy = sequence(overlay_form);
    for seed in first..first + sequences {
        let mut bytes = [0_u8; 32];
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        let config = Config {
            cases: 1,
            max_shrink_time: 15_000,
            max_shrink_iters: 4000,
            failure_persistence: None,
            ..Config::default()
        };
        let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
        // Some on the disk, where other calls are made than in memory.
        let disk = std::env::temp_dir();
        let place = if seed % 4 == 0 {
            &disk
        } else {
            Path::new(MEMORY)
        };
        let result = TestRunner::new_with_rng(config, rng).run(&strategy, |sequence| {
            run(&sequence, place, &counts);
            Ok(())
        });
        let again = format!("UNIONFS_FAULTS_SEED={seed} UNIONFS_FAULTS_SEQUENCES=1");
        match result {
            Ok(()) => {}
            Err(TestError::Fail(why, case)) => panic!("{again}: {why}\nminimal: {case:#?}"),
            Err(e) => panic!("{again}: {e}"),
        }
    }
    let of = |counter: &AtomicU32| counter.load(Relaxed);
    let met = of(&counts.failures) + of(&counts.ends);
    eprintln!(
        "random, overlay form {overlay_form}: {sequences} sequences, {} operations, {met} met a fault: {} calls failed ({} \
         operations answered with that), {} ends of the process ({} left the new state; {} of the next mount, too)",
        of(&counts.operations),
        of(&counts.failures),
        of(&counts.refused),
        of(&counts.ends),
        of(&counts.done),
        of(&counts.mounts),
    );
    assert!(sequences == 0 || met > 0, "no fault was met");
}

#[test]
fn random_aufs() {
    sequences(false, 400);
}

#[test]
fn random_overlay() {
    sequences(true, 400);
}
