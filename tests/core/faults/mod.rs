//! The crash matrix: each change meets each fault at each of its system calls.
//!
//! A change that is answered with an error has changed nothing; one that ends half-way, as by SIGKILL, has
//! left the old or the new state for the next mount. What else must hold is in [`cell`], what is tried
//! in [`scenes`].

mod cell;
mod commit;
mod disks;
mod killed;
mod layers;
mod random;
mod scenes;
mod two;

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use rustix::io::Errno;
use unionfs::faults::{self, Fault};
use unionfs::options::WhiteoutForm;

use crate::plain::{keep_capabilities, prepare_thread};
use cell::{Lax, Play, Run};

type Outcome = Result<(), String>;

/// What a call is answered with.
const ERRNOS: [Errno; 7] = [
    Errno::IO,
    Errno::NOSPC,
    Errno::DQUOT,
    Errno::MFILE,
    Errno::NOMEM,
    Errno::ROFS,
    Errno::INTR,
];

/// Calls that may tell of a failure after part of their work, or all of it, was done.
const LATE: [&str; 9] = [
    "copy_file_range",
    "fallocate",
    "fdatasync",
    "ficlone",
    "fsync",
    "ftruncate",
    "pwrite",
    "sync_file_range",
    "syncfs",
];

const FORMS: [WhiteoutForm; 2] = [WhiteoutForm::Aufs, WhiteoutForm::Overlay];

/// No disk is waited for there.
const MEMORY: &str = "/dev/shm";

/// What was tried, and what went wrong.
#[derive(Default)]
struct Tally {
    scenes: u32,
    points: u32,
    cells: u32,
    errors: u32,
    calls: BTreeSet<&'static str>,
    broken: BTreeMap<String, Vec<String>>,
}

impl Tally {
    /// Runs one cell.
    fn cell(&mut self, play: &Play<'_>, at: &str, run: impl FnOnce(&mut u32) -> Outcome) {
        self.cells += 1;
        let errors = &mut self.errors;
        let outcome = catch_unwind(AssertUnwindSafe(|| run(errors))).unwrap_or_else(|panic| {
            faults::unwatch();
            let text = panic.downcast_ref::<String>().cloned();
            Err(format!("panic: {}", text.unwrap_or_default()))
        });
        if let Err(why) = outcome {
            let broken = self.broken.entry(play.name.clone()).or_default();
            broken.push(format!("{at}: {why}"));
        }
    }

    fn report(self, what: &str) {
        eprintln!(
            "{what}: {} scenes, {} points, {} cells, {} of them answered with an error",
            self.scenes, self.points, self.cells, self.errors
        );
        let texts = self.broken.iter().map(|(name, why)| {
            let shown: Vec<&str> = why.iter().take(3).map(String::as_str).collect();
            format!("{name} ({} cells)\n {}", why.len(), shown.join("\n "))
        });
        let texts: Vec<String> = texts.collect();
        assert!(
            texts.is_empty(),
            "{} scenes broken:\n{}",
            texts.len(),
            texts.join("\n\n")
        );
    }
}

fn prepare() {
    prepare_thread();
    keep_capabilities();
}

/// Runs `cells` for every scene, in one form of whiteouts. Returns the calls that were met.
fn for_each_scene(
    what: &str, form: WhiteoutForm, warm: bool, place: &Path,
    cells: impl Fn(&Play<'_>, &[&'static str], &mut Tally),
) -> BTreeSet<&'static str> {
    prepare();
    let only = std::env::var("UNIONFS_FAULTS_SCENE").unwrap_or_default();
    let mut tally = Tally::default();
    for scene in &scenes::all() {
        let play = Play::new(scene, form, warm, place);
        if !play.name.contains(&only) {
            continue;
        }
        let mut calls = Vec::new();
        tally.cell(&play, "without a fault", |_| {
            calls = without_fault(&play)?;
            Ok(())
        });
        tally.scenes += 1;
        tally.points += 2 * u32::try_from(calls.len()).unwrap();
        tally.calls.extend(&calls);
        cells(&play, &calls, &mut tally);
        play.check_lowers();
    }
    let calls = std::mem::take(&mut tally.calls);
    tally.report(what);
    calls
}

/// The calls that a scene makes, which must come to the state of a plain directory.
fn without_fault(play: &Play<'_>) -> Result<Vec<&'static str>, String> {
    let mut run = play.prepare();
    let ended = run.change(None);
    if !run.is_wanted(&ended.result) {
        return Err(format!("{:?}", ended.result));
    }
    run.expect(true, Lax::Nothing)?;
    run.remount();
    run.check_leftovers()?;
    run.close();
    Ok(ended.calls)
}

fn name_of(errno: Errno) -> String {
    format!("{:?}", nix::errno::Errno::from_raw(errno.raw_os_error()))
}

fn point_of(calls: &[&str], point: u32) -> String {
    let call = calls[point as usize / 2];
    let when = if point.is_multiple_of(2) {
        "before"
    } else {
        "after"
    };
    format!("{when} {call} ({point})")
}

/// A process that ends at a point.
fn end_at(play: &Play<'_>, point: u32) -> Outcome {
    let mut run = play.prepare();
    let ended = run.change(Some((point, Fault::End)));
    assert!(
        ended.calls.len() > point as usize / 2,
        "other calls than before"
    );
    check_crash(&mut run)
}

/// What a crash has left.
fn check_crash(run: &mut Run<'_>) -> Outcome {
    run.after_crash();
    check_left(run)
}

/// The same in the next mount.
fn check_left(run: &mut Run<'_>) -> Outcome {
    run.check_leftovers()?;
    // What was open is not any more; a change of that alone shows nowhere.
    if !run.expect_either(Lax::Times)? && !run.is_of_open() {
        run.try_again()?;
        run.expect(true, Lax::Times)?;
    }
    run.close();
    Ok(())
}

/// A call that fails without having done anything.
fn fail_at(
    play: &Play<'_>, point: u32, call: &str, errno: Errno, remounts: bool, answered: &mut u32,
) -> Outcome {
    let mut run = play.prepare();
    let ended = run.change(Some((point, Fault::Fail(errno))));
    let done = run.is_wanted(&ended.result);
    // What was begun in a directory and taken back shows in its times.
    let lax = if call == "utimensat" || !done {
        Lax::Times
    } else {
        Lax::Nothing
    };
    if !done {
        *answered += 1;
        match Run::errno(&ended.result) {
            Some(got) if got == errno || run.is_flush() => {}
            _ => return Err(format!("answered with {:?}", ended.result)),
        }
    }
    run.expect(done, lax)?;
    if remounts && !run.is_of_open() {
        run.remount();
        run.check_leftovers()?;
        run.expect(done, lax)?;
    }
    if !done {
        run.try_again()?;
        run.expect(true, lax)?;
    }
    run.remount();
    run.check_leftovers()?;
    run.expect(true, lax)?;
    run.close();
    Ok(())
}

/// What the call `number` of a scene fails with: EIO and one of the others, in turns; all of them with
/// `UNIONFS_FAULTS_ALL`.
fn errnos_at(number: usize) -> Vec<Errno> {
    if std::env::var_os("UNIONFS_FAULTS_ALL").is_some() {
        return ERRNOS.to_vec();
    }
    let others = &ERRNOS[1..];
    vec![ERRNOS[0], others[number % others.len()]]
}

fn errors(form: WhiteoutForm, warm: bool, place: &Path) {
    let what = format!("errors, {form:?}, warm={warm}, {}", place.display());
    for_each_scene(&what, form, warm, place, |play, calls, tally| {
        for (number, call) in calls.iter().enumerate() {
            let point = 2 * u32::try_from(number).unwrap();
            for errno in errnos_at(number + tally.scenes as usize) {
                let at = format!("{} {}", name_of(errno), point_of(calls, point));
                let remounts = errno == Errno::IO;
                tally.cell(play, &at, |errors| {
                    fail_at(play, point, call, errno, remounts, errors)
                });
            }
        }
    });
}

/// A call that has done its work, and says that it failed.
fn lie_at(play: &Play<'_>, point: u32, answered: &mut u32) -> Outcome {
    let mut run = play.prepare();
    let ended = run.change(Some((point, Fault::Fail(Errno::IO))));
    let done = run.is_wanted(&ended.result);
    if done {
        run.expect(true, Lax::Times)?;
    } else {
        run.expect_either(Lax::Times)?;
    }
    run.remount();
    run.check_leftovers()?;
    let is_new = run.expect_either(Lax::Times)?;
    if !done {
        // Answered with the error though some of it, or all, was done.
        *answered += 1;
    } else if !run.is_of_open() && !is_new {
        run.expect(true, Lax::Times)?;
    }
    run.close();
    Ok(())
}

#[test]
fn errors_aufs() {
    errors(WhiteoutForm::Aufs, true, Path::new(MEMORY));
}

#[test]
fn errors_overlay() {
    errors(WhiteoutForm::Overlay, false, Path::new(MEMORY));
}

#[test]
fn lies() {
    for form in FORMS {
        let what = format!("calls that failed after their work, {form:?}");
        for_each_scene(
            &what,
            form,
            true,
            Path::new(MEMORY),
            |play, calls, tally| {
                for number in 0..calls.len() {
                    let point = 2 * u32::try_from(number).unwrap() + 1;
                    tally.cell(play, &point_of(calls, point), |errors| {
                        lie_at(play, point, errors)
                    });
                }
            },
        );
    }
}
