//! Processes that are killed at a point, for real: what they leave is what the rest of the matrix takes
//! for it.

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;

use unionfs::faults::{self, Fault};
use unionfs::options::WhiteoutForm;

use super::cell::{Lax, Play, begin, options};
use super::{MEMORY, Outcome, Tally, check_crash, point_of, prepare, scenes, without_fault};
use crate::ops::{ROOT, Side};
use crate::union_side::UnionSide;

/// Set in the process that is to be killed: what it does.
const CHILD: &str = "UNIONFS_FAULTS_CHILD";

#[test]
fn killed() {
    if let Some(task) = std::env::var_os(CHILD) {
        return be_killed(task.to_str().unwrap());
    }
    prepare();
    let mut tally = Tally::default();
    for (index, scene) in scenes::all().iter().enumerate() {
        let form = super::FORMS[index % 2];
        let play = Play::new(scene, form, false, Path::new(MEMORY));
        let calls = without_fault(&play).unwrap_or_else(|e| panic!("{}: {e}", play.name));
        tally.scenes += 1;
        let points = 2 * u32::try_from(calls.len()).unwrap();
        tally.points += points;
        if points > 0 {
            // Another step of each.
            let point = u32::try_from(index).unwrap() * 7 % points;
            let at = point_of(&calls, point);
            tally.cell(&play, &at, |_| kill_at(&play, index, point));
        }
        play.check_lowers();
    }
    tally.report("killed by SIGKILL");
}

/// `INDEX FORM NUMBER POINT BASE`: the scene, the upper and the point.
fn be_killed(task: &str) {
    prepare();
    let mut words = task.splitn(5, ' ');
    let mut number = || words.next().unwrap().parse::<u32>().unwrap();
    let (index, form, upper, point) = (number(), number(), number(), number());
    let base = Path::new(words.next().unwrap());
    let scene = &scenes::all()[index as usize];
    let form = super::FORMS[form as usize];
    let mut side = begin(scene, options(scene, form, base, upper));
    faults::watch(Some((point, Fault::Kill)));
    let _ = side.run(ROOT, &scene.change);
    panic!("the process goes on");
}

fn kill_at(play: &Play<'_>, index: usize, point: u32) -> Outcome {
    let (number, options) = play.new_upper();
    let form = usize::from(options.whiteout == WhiteoutForm::Overlay);
    let base = play.base().display();
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "faults::killed::killed", "--nocapture"])
        .env(CHILD, format!("{index} {form} {number} {point} {base}"))
        .output()
        .unwrap();
    if child.status.signal() != Some(libc::SIGKILL) {
        let text = String::from_utf8_lossy(&child.stderr).into_owned();
        return Err(format!("{}: {text}", child.status));
    }
    let mut run = play.found(UnionSide::new(options));
    let left = run.names_in_upper();
    let done = run.expect_either(Lax::Times)?;
    run.close();
    check_crash(&mut run)?;

    let mut abandoned = play.prepare();
    abandoned.change(Some((point, Fault::End)));
    abandoned.after_crash();
    let same = abandoned.names_in_upper() == left;
    if !same || abandoned.expect_either(Lax::Times)? != done {
        return Err("SIGKILL leaves something else than the end without effects".to_owned());
    }
    abandoned.close();
    Ok(())
}
