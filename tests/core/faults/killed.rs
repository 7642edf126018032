//! Processes that are killed for real, at every point of every scene; and that what they leave is what the rest
//! of the matrix takes for it.
//!
//! Each process is forked for its one cell. It opens the union, does what comes before and begins the change.
//! The one that forks runs nothing but this test, so no other thread holds a lock that a child would wait for.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::Command;

use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};
use unionfs::faults::Fault;
use unionfs::options::WhiteoutForm;

use super::cell::{Play, Run};
use super::{MEMORY, Outcome, check_left, for_each_scene, point_of};
use crate::union_side::UnionSide;

/// Set in the process that forks: of so many of them, which one it is.
const PART: &str = "UNIONFS_FAULTS_PART";
const PARTS: u32 = 2;

/// The cells of a form of whiteouts, by processes that each do every so many-th scene.
fn killed(test: &str, form: WhiteoutForm, warm: bool) {
    if let Ok(part) = std::env::var(PART) {
        return kill_all(form, warm, part.parse().unwrap());
    }
    let start = |part: u32| {
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", test, "--nocapture", "--test-threads=1"])
            .env(PART, part.to_string())
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap()
    };
    let parts: Vec<_> = (0..PARTS).map(start).collect();
    for part in parts {
        let output = part.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{text}");
        // A name that no test has would be a success as well.
        assert!(text.contains("killed by SIGKILL"), "{test} did not run");
        eprint!("{text}");
    }
}

fn kill_all(form: WhiteoutForm, warm: bool, part: u32) {
    let what = format!("killed by SIGKILL, {form:?}, warm={warm}, part {part}");
    for_each_scene(
        &what,
        form,
        warm,
        Path::new(MEMORY),
        |play, calls, tally| {
            if tally.scenes % PARTS != part {
                return;
            }
            let points = 2 * u32::try_from(calls.len()).unwrap();
            for point in 0..points {
                // What the end without effects leaves is compared at another step of each scene.
                let compares = point == tally.scenes * 7 % points;
                tally.cell(play, &point_of(calls, point), |_| {
                    kill_at(play, point, compares)
                });
            }
        },
    );
}

/// Forks a process that is killed at `point` of the change. Returns the mount of what it leaves.
fn kill<'a>(play: &'a Play<'_>, point: u32) -> Result<Run<'a>, String> {
    let (number, options) = play.new_upper();
    let numbers = play.base().join(format!("numbers{number}"));
    let doomed = || {
        let mut run = play.begin(options.clone());
        run.write_numbers(&numbers);
        run.change(Some((point, Fault::Kill)));
    };
    // SAFETY: this process has no other thread that does anything (see the module text), and the child calls
    // nothing of its parent's but what it is given; it ends here.
    let pid = match unsafe { fork() }.unwrap() {
        ForkResult::Parent { child } => child,
        ForkResult::Child => {
            let _ = catch_unwind(AssertUnwindSafe(doomed));
            // SAFETY: ends the process at once.
            unsafe { libc::_exit(1) }
        }
    };
    match waitpid(pid, None).unwrap() {
        WaitStatus::Signaled(_, Signal::SIGKILL, _) => {}
        other => return Err(format!("the process was not killed: {other:?}")),
    }
    let mut run = play.found(UnionSide::closed(options));
    run.read_numbers(&numbers);
    fs::remove_file(numbers).unwrap();
    Ok(run)
}

fn kill_at(play: &Play<'_>, point: u32, compares: bool) -> Outcome {
    let mut run = kill(play, point)?;
    run.after_crash();
    if compares {
        let left = run.names_in_upper();
        let mut abandoned = play.prepare();
        abandoned.change(Some((point, Fault::End)));
        abandoned.after_crash();
        if abandoned.names_in_upper() != left {
            return Err("SIGKILL leaves something else than the end without effects".to_owned());
        }
        abandoned.close();
    }
    check_left(&mut run)
}

#[test]
fn killed_aufs() {
    killed("faults::killed::killed_aufs", WhiteoutForm::Aufs, false);
}

#[test]
fn killed_overlay() {
    killed(
        "faults::killed::killed_overlay",
        WhiteoutForm::Overlay,
        true,
    );
}
