//! The core of the union against a plain directory: the input says what the layers and each operation of a case
//! of tests/core are drawn from, and at which calls the disk fails. Needs root.
#![no_main]
#![allow(
    dead_code,
    unused_imports,
    reason = "the tests of tests/core itself are not here"
)]
#![allow(missing_docs, unreachable_pub, reason = "nothing outside uses this")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "it fails by panicking, in its helpers too"
)]

#[path = "../../tests/core/draw.rs"]
mod draw;
#[path = "../../tests/core/harness.rs"]
mod harness;
#[path = "../../tests/core/invariants.rs"]
mod invariants;
#[path = "../../tests/core/links.rs"]
mod links;
#[path = "../../tests/core/merge.rs"]
mod merge;
#[path = "../../tests/core/model.rs"]
mod model;
#[path = "../../tests/core/ops.rs"]
mod ops;
#[path = "../../tests/core/plain.rs"]
mod plain;
#[path = "../../tests/core/tree.rs"]
mod tree;
#[path = "../../tests/core/union_life.rs"]
mod union_life;
#[path = "../../tests/core/union_side.rs"]
mod union_side;
#[path = "../../tests/core/union_view.rs"]
mod union_view;

use std::sync::Once;

use libfuzzer_sys::fuzz_target;
use proptest::strategy::{BoxedStrategy, Strategy, ValueTree};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use rustix::fs::FileType;
use rustix::io::Errno;
use unionfs::faults::{self, Fault};

use draw::{Binder, Step};
use harness::{Case, Disk};
use invariants::differences;
use model::Dialects;
use ops::{Do, ROOT, Side, describe};
use plain::{Plain, Users};
use tree::{join, set_times};
use union_side::UnionSide;

/// Operations of one input at most.
const STEPS: usize = 30;
/// Bytes that the layers are drawn from.
const LAYERS: usize = 4;
/// Bytes of each operation: two that it is drawn from, and where the disk fails.
const STEP: usize = 3;

/// What a call is answered with.
const ERRNOS: [Errno; 4] = [Errno::IO, Errno::NOSPC, Errno::MFILE, Errno::NOMEM];

fuzz_target!(|input: &[u8]| {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        plain::prepare_thread();
        plain::keep_capabilities();
    });
    let Some((layers, steps)) = input.split_at_checked(LAYERS) else {
        return;
    };
    let Some(mut case) = draw_from(&harness::case(Dialects::All, 1), layers) else {
        return;
    };
    let strategy = draw::step().boxed();
    let (steps, _) = steps.as_chunks::<STEP>();
    let mut faults = Vec::new();
    case.steps.clear();
    for [first, second, fault] in steps.iter().take(STEPS) {
        if let Some(step) = draw_from(&strategy, &[*first, *second]) {
            case.steps.push(step);
            faults.push(*fault);
        }
    }
    if faults.iter().all(|&fault| fault == 0) {
        harness::run_core(&case);
    } else {
        run_with_faults(case, &faults);
    }
});

/// The value that these bytes stand for; the same bytes are always the same value.
fn draw_from<T: std::fmt::Debug>(strategy: &BoxedStrategy<T>, bytes: &[u8]) -> Option<T> {
    let mut seed = [0; 32];
    seed[..bytes.len()].copy_from_slice(bytes);
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &seed);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    Some(strategy.new_tree(&mut runner).ok()?.current())
}

/// The fault that an operation meets: at the call of that number, which has then done nothing.
fn fault_of(byte: u8) -> Option<(u32, Fault)> {
    // Few operations make more calls than that.
    let (call, errno) = (u32::from(byte >> 2 & 15), ERRNOS[usize::from(byte & 3)]);
    (call > 0).then(|| (2 * (call - 1), Fault::Fail(errno)))
}

/// An operation that is answered with the fault's error has changed nothing; any other answer is that of a
/// plain directory.
fn run_with_faults(mut case: Case, faults: &[u8]) {
    // The other ways change more than one object for one operation.
    case.metacopy = false;
    let disk = Disk::new(&case);
    let mut union = UnionSide::new(disk.options.clone());
    let mut oracle = Plain::new(&disk.oracle, Users::Unchecked);
    let mut log = Vec::new();
    for (Step { what, .. }, fault) in case.steps.iter().zip(faults) {
        let kept: Vec<FileType> = oracle.kept.iter().map(harness::kind).collect();
        let expected = tree::scan(&disk.oracle);
        let binder = Binder {
            tree: &expected,
            kept: &kept,
        };
        let Some(what) = binder.bind(what).filter(is_one_change) else {
            continue;
        };
        let fault = fault_of(*fault);
        log.push(format!("{} {fault:?}", describe(ROOT, &what)));
        faults::watch(fault);
        let got = union.run(ROOT, &what);
        let calls = faults::unwatch().len();
        let met = fault.filter(|(point, _)| calls > *point as usize / 2);
        let refused = match met {
            Some((_, Fault::Fail(errno))) => got.as_ref().err() == Some(&errno),
            _ => false,
        };
        if !refused && harness::allowed_difference(&what, &got).is_none() {
            let wanted = oracle.run(ROOT, &harness::for_oracle(&what));
            assert_eq!(got, wanted, "left: union, after\n{}", log.join("\n"));
        }
        let seen = union.scan(case.piece);
        // What was begun and taken back shows in the times of directories.
        for (path, wanted) in &expected {
            let got = seen.get(path).filter(|got| got.kind == FileType::Directory);
            if let Some(got) = got.filter(|got| met.is_some() && got.mtime != wanted.mtime) {
                set_times(&join(&disk.oracle, path), got.mtime);
            }
        }
        let wrong = differences(&tree::scan(&disk.oracle), &seen);
        assert!(
            wrong.is_empty(),
            "{}\nafter\n{}",
            wrong.join("\n"),
            log.join("\n")
        );
    }
    // What could not be removed for a fault goes with the next mount.
    union.kept.clear();
    union.forget();
    union.union = None;
    union.reopen();
    let wrong = differences(&tree::scan(&disk.oracle), &union.scan(case.piece));
    assert!(
        wrong.is_empty(),
        "{}\nremounted after\n{}",
        wrong.join("\n"),
        log.join("\n")
    );
    union.close();
    disk.raw.check_unchanged();
}

/// What does several things for one answer, of which some may be done.
fn is_one_change(what: &Do) -> bool {
    match what {
        Do::Create { data, .. } => data.is_empty(),
        Do::CopyRange { .. } | Do::Flush | Do::Remount | Do::Keep { .. } | Do::Close { .. } => {
            false
        }
        Do::On { action, .. } => !action.on_data(),
        _ => true,
    }
}
