//! What fsync(2) and its kin have acknowledged outlives the daemon and the power, in each way of data.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::sync::mpsc;
use std::time::Duration;

use rustix::mount::UnmountFlags;
use rustix::process::{Pid, Signal, kill_process};

use crate::acknowledged::{Fact, PIECES, Piece, Worker, make};
use crate::crash::Random;
use crate::disk_log::{Cuts, Logged};
use crate::process::{alive, daemons, finish, unionfs, wait_for};
use crate::support::{Layers, Mount, Stack};

const MIB: u64 = 1 << 20;
/// So many moments of a run are looked at, unless all are.
const MOMENTS: usize = 36;
const WAYS: [&str; 3] = ["passthrough", "none", "cached"];
/// Both forms of whiteouts, and of what a directory that is renamed leaves, and a file that is changed.
const FORMS: [&str; 2] = [
    "rename_dir=copy",
    "whiteout=overlay,rename_dir=redirect,metacopy=on",
];

/// All moments are looked at, and all of what may have reached the disk at each; else some, in turns.
fn all() -> bool {
    std::env::var_os("UNIONFS_POWER_CUTS_ALL").is_some()
}

/// A lower with what all pieces of work find.
fn layers(upper: Option<&Path>) -> Layers {
    let stack = Stack::new().lower([""; 0]).limit(280);
    let layers = match upper {
        Some(dir) => stack.upper_at(dir).build(),
        None => stack.build(),
    };
    for (name, _) in PIECES {
        make(&layers.lowers[0], name);
    }
    layers
}

/// What a run of all pieces was told, and where to mount what is left of it.
struct Told {
    facts: Vec<Fact>,
    /// The first moment with a mount.
    begun: usize,
    /// The layers; it is not mounted any more.
    m: Mount,
    options: String,
}

/// Does all pieces of work on `disk`, while somebody else has its journal committed now and then.
fn work(disk: &Logged, options: &str) -> Told {
    let layers = layers(Some(&disk.at));
    let other = File::create(disk.at.join("other")).unwrap();
    rustix::fs::syncfs(&other).unwrap();
    let begun = disk.position();
    let mut m = layers.mount_with(options);
    let now = || disk.position();
    let mut worker = Worker::new(&m, options, &now);
    std::thread::scope(|scope| {
        let (end, ended) = mpsc::channel::<()>();
        scope.spawn(move || {
            for n in 0_u64.. {
                let pause = Duration::from_millis(2 + n % 5);
                if ended.recv_timeout(pause) != Err(mpsc::RecvTimeoutError::Timeout) {
                    break;
                }
                other.write_all_at(&n.to_le_bytes(), 0).unwrap();
                other.sync_all().unwrap();
            }
        });
        // Shared mappings are not to be had without pages.
        let cannot = |piece: &Piece| piece.0 == "mapped" && options == "direct_io";
        for piece in PIECES.into_iter().filter(|piece| !cannot(piece)) {
            worker.run(piece.0, piece);
        }
        drop(end);
    });
    let facts = worker.facts;
    for fact in &facts {
        assert_eq!(fact.broken(m.path()), None, "before any cut");
    }
    m.unmount();
    // It is on a disk that will not be there.
    m.layers.upper = None;
    Told {
        facts,
        begun,
        m,
        options: options.to_owned(),
    }
}

/// A union that is mounted until this is dropped.
struct Union<'a>(&'a Path, Vec<i32>);

impl<'a> Union<'a> {
    fn new(told: &'a Told, upper: &Path) -> Result<Self, String> {
        let (lower, at) = (&told.m.layers.lowers[0], told.m.path());
        let (lower, upper) = (lower.display(), upper.display());
        let options = format!("lowerdir={lower},upperdir={upper},{}", told.options);
        let outcome = finish(Command::new(unionfs()).arg("-o").arg(options).arg(at));
        match outcome.status.success() {
            true => Ok(Self(at, daemons(at))),
            false => Err(outcome.stderr),
        }
    }
}

impl Drop for Union<'_> {
    fn drop(&mut self) {
        let limit = Duration::from_secs(20);
        let unmount = || rustix::mount::unmount(self.0, UnmountFlags::empty()).ok();
        let is_gone = wait_for(limit, unmount).is_some();
        let is_over = || (!self.1.iter().any(|pid| alive(*pid))).then_some(());
        let is_over = wait_for(limit, is_over).is_some();
        assert!(is_gone && is_over || std::thread::panicking(), "it stays");
    }
}

impl Told {
    /// What a cut at `moment` has taken, or torn, of what was told before it.
    fn lost(&self, disk: &Path, moment: usize) -> Vec<String> {
        let union = match Union::new(self, &disk.join("upper")) {
            Ok(union) => union,
            Err(why) => return vec![why],
        };
        let told = self.facts.iter().filter(|fact| fact.since <= moment);
        let lost: Vec<String> = told.filter_map(|fact| fact.broken(union.0)).collect();
        drop(union);
        let left = fs::read_dir(disk.join("upper/.wh..wh.orph"));
        let left = left
            .into_iter()
            .flatten()
            .map(|entry| format!("{entry:?} is left"));
        lost.into_iter().chain(left).collect()
    }

    /// The same for all moments, or some. Returns how many were looked at too.
    fn lost_all_over(&self, mut cuts: Cuts) -> (usize, Vec<String>) {
        let moments = cuts.moments().into_iter().filter(|at| *at >= self.begun);
        let moments: Vec<usize> = moments.collect();
        let step = if all() {
            1
        } else {
            moments.len().div_ceil(MOMENTS).max(1)
        };
        let mut random = Random(11);
        let (mut looked, mut lost) = (0, Vec::new());
        for (n, moment) in moments.into_iter().step_by(step).enumerate() {
            for one_in in 0..3 {
                if all() || n as u64 % 3 == one_in {
                    looked += 1;
                    cuts.cut(moment, one_in, &mut random, |disk| {
                        let found = self.lost(disk, moment);
                        let at = |why| format!("cut at {moment}, one in {one_in}: {why}");
                        lost.extend(found.into_iter().map(at));
                    });
                }
            }
        }
        (looked, lost)
    }
}

/// What power cuts take of what a run was told.
fn lost(kind: &str, mount: &str, options: &str) -> Vec<String> {
    let (size, make): (u64, &[&str]) = match kind {
        "xfs" => (320 * MIB, &[]),
        "btrfs" => (160 * MIB, &[]),
        _ => (96 * MIB, &["-b", "4096"]),
    };
    let disk = Logged::new(kind, size, make, mount);
    let told = work(&disk, options);
    let (looked, lost) = told.lost_all_over(disk.end());
    let facts = told.facts.len();
    eprintln!(
        "{kind} {options}: {facts} facts, {looked} cuts, {} lost",
        lost.len()
    );
    lost
}

fn nothing_is_lost(kind: &str, way: &str) {
    for form in FORMS {
        let lost = lost(kind, "defaults", &format!("{form},open={way}"));
        assert!(
            lost.is_empty(),
            "{kind} {way} {form}: {} {lost:#?}",
            lost.len()
        );
    }
}

#[test]
fn ext4_keeps_what_was_acknowledged_through_the_kernel() {
    nothing_is_lost("ext4", "passthrough");
}

#[test]
fn ext4_keeps_what_was_acknowledged_and_written_back() {
    nothing_is_lost("ext4", "none");
}

#[test]
fn ext4_keeps_what_was_acknowledged_and_cached() {
    nothing_is_lost("ext4", "cached");
}

#[test]
fn xfs_keeps_what_was_acknowledged_through_the_kernel() {
    nothing_is_lost("xfs", "passthrough");
}

#[test]
fn xfs_keeps_what_was_acknowledged_and_written_back() {
    nothing_is_lost("xfs", "none");
}

#[test]
fn xfs_keeps_what_was_acknowledged_and_cached() {
    nothing_is_lost("xfs", "cached");
}

/// Past the kernel's pages the daemon itself has to heed O_SYNC.
#[test]
fn ext4_keeps_what_was_acknowledged_past_the_cache() {
    let lost = lost("ext4", "defaults", "direct_io");
    assert!(lost.is_empty(), "{lost:#?}");
}

/// Such mounts say so in their log.
fn says_so(options: &str) {
    let layers = Stack::new().lower([""; 0]).build();
    let log = layers.scratch().join("log");
    let mut m = layers.mount_with(&format!("{options},log_file={}", log.display()));
    m.unmount();
    let text = fs::read_to_string(log).unwrap();
    assert!(text.contains("fsync does nothing"), "{options}: {text}");
}

/// So the other tests would see it.
#[test]
fn a_volatile_mount_keeps_less() {
    for options in ["volatile", "fsync=0"] {
        let lost = lost("ext4", "defaults", options);
        assert!(!lost.is_empty(), "{options}");
        says_so(options);
    }
}

/// The daemon is killed after each piece of work.
fn killed(options: &str) {
    let mut m = layers(None).mount_with(options);
    let mut facts: Vec<Fact> = Vec::new();
    for piece in PIECES {
        let mut worker = Worker::new(&m, options, &|| 0);
        worker.run(piece.0, piece);
        facts.extend(worker.facts);
        kill_process(Pid::from_raw(m.pid()).unwrap(), Signal::KILL).unwrap();
        rustix::mount::unmount(m.path(), UnmountFlags::DETACH).unwrap();
        m.ended().unwrap();
        m.mount_again();
        let lost: Vec<String> = facts
            .iter()
            .filter_map(|fact| fact.broken(m.path()))
            .collect();
        assert!(
            lost.is_empty(),
            "{options}, killed after {}: {lost:#?}",
            piece.0
        );
    }
}

#[test]
fn killed_it_keeps_what_was_acknowledged() {
    for way in WAYS {
        for form in FORMS {
            killed(&format!("{form},open={way}"));
        }
    }
}
