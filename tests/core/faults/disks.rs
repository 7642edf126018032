//! A part of the matrix on the filesystems that uppers are on: some calls are made only there, others have
//! other ways to fail.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::mount::UnmountFlags;
use unionfs::faults::Fault;
use unionfs::options::WhiteoutForm;

use super::cell::Play;
use super::{
    LATE, MEMORY, Tally, check_crash, end_at, errnos_at, fail_at, for_each_scene, lie_at, name_of,
    point_of, prepare,
};

/// A filesystem of its own, in a file in memory.
struct Disk {
    dir: tempfile::TempDir,
}

impl Disk {
    fn new(mkfs: &[&str], mib: u64) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("unionfs-image-")
            .tempdir_in(MEMORY)
            .unwrap();
        let disk = Self { dir };
        let image = disk.dir.path().join("image");
        fs::File::create(&image)
            .unwrap()
            .set_len(mib << 20)
            .unwrap();
        fs::create_dir(disk.at()).unwrap();
        run(Command::new(mkfs[0]).args(&mkfs[1..]).arg(&image));
        let mut mount = Command::new("mount");
        run(mount.args(["-o", "loop"]).arg(&image).arg(disk.at()));
        disk
    }

    fn at(&self) -> PathBuf {
        self.dir.path().join("at")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let end = Instant::now() + Duration::from_secs(10);
        while let Err(Errno::BUSY) = rustix::mount::unmount(self.at(), UnmountFlags::empty()) {
            if Instant::now() > end {
                let _ = rustix::mount::unmount(self.at(), UnmountFlags::DETACH);
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn run(command: &mut Command) {
    let outcome = command
        .output()
        .unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let text = String::from_utf8_lossy(&outcome.stderr);
    assert!(outcome.status.success(), "{command:?}: {text}");
}

/// One call in so many of those for names; all of those for data.
fn part() -> usize {
    if std::env::var_os("UNIONFS_FAULTS_ALL").is_some() {
        1
    } else {
        8
    }
}

/// Each fault at the calls that are tried.
fn cells(play: &Play<'_>, calls: &[&'static str], tally: &mut Tally) {
    let shift = tally.scenes as usize;
    for (number, call) in calls.iter().enumerate() {
        let is_late = LATE.contains(call);
        if !is_late && !(number + shift).is_multiple_of(part()) {
            continue;
        }
        let point = 2 * u32::try_from(number).unwrap();
        let text = point_of(calls, point);
        tally.cell(play, &format!("end {text}"), |_| end_at(play, point));
        for errno in errnos_at(number + shift) {
            let at = format!("{} {text}", name_of(errno));
            tally.cell(play, &at, |errors| {
                fail_at(play, point, call, errno, errno == Errno::IO, errors)
            });
        }
        if is_late {
            let after = point_of(calls, point + 1);
            tally.cell(play, &after, |errors| lie_at(play, point + 1, errors));
        }
    }
    if !calls.is_empty() {
        let last = 2 * u32::try_from(calls.len()).unwrap() - 1;
        tally.cell(play, "end after all", |_| {
            let mut run = play.prepare();
            run.change(Some((last, Fault::End)));
            check_crash(&mut run)
        });
    }
}

fn on(mkfs: &[&str], mib: u64, form: WhiteoutForm, warm: bool, met: &[&str]) {
    prepare();
    let disk = Disk::new(mkfs, mib);
    let what = format!("{}, {form:?}, warm={warm}", mkfs[0]);
    let calls = for_each_scene(&what, form, warm, Path::new(&disk.at()), cells);
    for call in met {
        assert!(calls.contains(call), "no {call} among {calls:?}");
    }
}

#[test]
fn on_ext4() {
    let met = ["sync_file_range"];
    on(
        &["mkfs.ext4", "-q", "-m0"],
        128,
        WhiteoutForm::Aufs,
        false,
        &met,
    );
}

#[test]
fn on_xfs() {
    let mkfs = ["mkfs.xfs", "-q", "-m", "reflink=1"];
    on(&mkfs, 320, WhiteoutForm::Overlay, true, &["ficlone"]);
}
