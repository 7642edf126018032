//! The kernel's overlayfs as a third party: on stacks that it can represent, it must agree with the
//! rules by which the oracle is made.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::FileType;
use rustix::io::Errno;
use unionfs::options::Options;

use crate::draw::{Binder, Step};
use crate::harness::{Case, Core, Disk, Subject, allowed_difference, case, compare, run_cases};
use crate::invariants::differences;
use crate::model::{Dialects, Dir, Marks, Node, Slot};
use crate::mounted::{Mounted, Mounter};
use crate::ops::{Action, Do, ROOT, Result, Side};
use crate::plain::{Plain, Users, keep_capabilities, prepare_thread};
use crate::tree::{self, NOT_COUNTED, Tree, join, scan_found};
use crate::union_side::UnionSide;

struct Kernel {
    options: Options,
    at: PathBuf,
    features: &'static str,
}

/// What changes neither lowers nor how layers are read by others.
const PLAIN: &str = "redirect_dir=off,index=off,metacopy=off";
/// What writes records into the upper.
const RECORDS: &str = "redirect_dir=on,index=on,metacopy=on";
/// What writes its marks where ordinary users may.
const USER_MARKS: &str = "userxattr";

impl Kernel {
    /// True for a directory that lists entries none of which can be found.
    fn lists_whiteouts_only(&self, names: &[Vec<u8>]) -> bool {
        let Ok(entries) = std::fs::read_dir(join(&self.at, names)) else {
            return false;
        };
        let found: Vec<bool> = entries
            .map(|e| rustix::fs::lstat(e.unwrap().path()).is_ok())
            .collect();
        !found.is_empty() && found.iter().all(|found| !found)
    }
}

impl Mounter for Kernel {
    fn mount(&self, at: &Path) {
        let Options {
            lowers,
            upper,
            work,
            ..
        } = &self.options;
        let lowers: Vec<_> = lowers
            .iter()
            .map(|l| l.path.display().to_string())
            .collect();
        let text = format!(
            "lowerdir={},upperdir={},workdir={},{}",
            lowers.join(":"),
            upper.as_ref().unwrap().display(),
            work.as_ref().unwrap().display(),
            self.features,
        );
        let text = std::ffi::CString::new(text).unwrap();
        // A mount namespace that another test just made may hold the one before for a moment.
        unless_busy(|| {
            let flags = rustix::mount::MountFlags::empty();
            rustix::mount::mount("overlay", at, "overlay", flags, Some(&*text))
        });
    }

    fn unmount(&self, at: &Path) {
        // The same with a process that was just forked.
        unless_busy(|| rustix::mount::unmount(at, rustix::mount::UnmountFlags::empty()));
    }

    fn allowed(&self, what: &Do, result: &Result) -> Option<&'static str> {
        match (what, result) {
            (Do::Rename { flags, .. }, Err(Errno::INVAL)) if flags & 4 != 0 => {
                Some("overlayfs has no RENAME_WHITEOUT")
            }
            (Do::Rmdir { path: victim } | Do::Rename { to: victim, .. }, Err(Errno::NOTEMPTY))
                if self.lists_whiteouts_only(victim) =>
            {
                Some("whiteouts in a directory of one layer only count as entries for overlayfs")
            }
            (
                Do::On {
                    action: Action::Seek { .. },
                    ..
                },
                _,
            ) => Some("overlayfs does not keep all holes when it copies up"),
            (
                Do::On {
                    action: Action::RemoveXattr { attr },
                    ..
                },
                Err(Errno::NODATA),
            ) if attr.starts_with("system.") => {
                Some("overlayfs looks for an ACL before it copies up to remove it")
            }
            _ => allowed_difference(what, result),
        }
    }

    fn scan(&self, at: &Path) -> Tree {
        // Of a directory that is in one layer only, overlayfs lists the whiteouts too; no lookup
        // finds them.
        let mut tree = scan_found(at);
        // It does not count the subdirectories of a merged directory.
        for seen in tree.values_mut().filter(|s| s.kind == FileType::Directory) {
            seen.nlink = NOT_COUNTED;
        }
        tree
    }

    fn hides_reserved(&self) -> bool {
        false
    }
}

/// Tries until it is not busy any more.
fn unless_busy(call: impl Fn() -> rustix::io::Result<()>) {
    let start = Instant::now();
    loop {
        match call() {
            Err(Errno::BUSY) if start.elapsed().as_secs() < 20 => {
                std::thread::sleep(Duration::from_millis(2));
            }
            result => return result.unwrap(),
        }
    }
}

/// A case as the kernel's overlayfs can have it: all on one filesystem, with a workdir.
fn on_disk(case: &Case) -> Disk {
    let mut case = case.clone();
    case.workdir = true;
    case.overlay_form = true;
    for (_, apart) in &mut case.lowers {
        *apart = false;
    }
    Disk::new(&case)
}

fn with_kernel(disk: &Disk, options: &Options, features: &'static str) -> Mounted {
    let at = disk.base.path().join("mnt");
    let kernel = Kernel {
        options: options.clone(),
        at: at.clone(),
        features,
    };
    Mounted::new(Box::new(kernel), &at)
}

/// A layer without whiteouts and marks.
fn plain(mut dir: Dir) -> Dir {
    dir.marks = Marks::default();
    dir.slots.retain(|_, slot| slot.real.is_some());
    for slot in dir.slots.values_mut() {
        *slot = Slot {
            real: slot.real.take().map(|node| match node {
                Node::Dir(inner) => Node::Dir(plain(inner)),
                other => other,
            }),
            ..Slot::default()
        };
    }
    dir
}

/// The trees are the same but for records of ours that overlayfs does not know.
fn assert_same(expected: &Tree, mut got: Tree) {
    for seen in got.values_mut() {
        seen.xattrs
            .retain(|attr, _| !attr.starts_with(b"trusted.unionfs."));
    }
    let texts = differences(expected, &got);
    assert!(texts.is_empty(), "{}", texts.join("\n"));
}

#[test]
fn the_kernels_overlayfs_agrees_with_the_oracle() {
    prepare_thread();
    run_cases(
        "tests/core/overlay.proptest-regressions",
        &case(Dialects::Overlay, 20),
        60,
        |case| {
            let disk = on_disk(case);
            let mut mounted = with_kernel(&disk, &disk.options, PLAIN);
            let mut oracle = Plain::new(&disk.oracle, Users::Real);
            compare(&mut mounted, &mut oracle, &disk.oracle, &case.steps);
            mounted.unmount();
            disk.raw.check_unchanged();
        },
    );
}

#[test]
fn what_the_union_wrote_the_kernels_overlayfs_shows() {
    prepare_thread();
    keep_capabilities();
    run_cases(
        "tests/core/written.proptest-regressions",
        &case(Dialects::Overlay, 40),
        60,
        |case| {
            let disk = on_disk(case);
            let mut core = Core::new(&disk, case.piece);
            let mut oracle = Plain::new(&disk.oracle, Users::Unchecked);
            compare(&mut core, &mut oracle, &disk.oracle, &case.steps);
            oracle.kept.clear();
            let options = core.side.options.clone();
            core.side.flush().unwrap();
            drop(core);
            let expected = tree::scan(&disk.oracle);
            let mut kernel = with_kernel(&disk, &options, RECORDS);
            let got = kernel.tree();
            kernel.unmount();
            assert_same(&expected, got);
        },
    );
}

#[test]
fn what_the_kernels_overlayfs_wrote_the_union_shows() {
    prepare_thread();
    run_cases(
        "tests/core/read.proptest-regressions",
        &case(Dialects::Overlay, 25),
        60,
        |case| {
            let mut case = case.clone();
            let features = if case.metacopy {
                RECORDS
            } else {
                // With that option it does not see the marks of others.
                case.upper = Dir::default();
                case.lowers = vec![(plain(case.lowers.swap_remove(0).0), false)];
                USER_MARKS
            };
            let disk = on_disk(&case);
            let mut kernel = with_kernel(&disk, &disk.options, features);
            // It differs from a plain directory in more than one way then; what counts is what it
            // shows itself.
            for Step { who, what } in &case.steps {
                let tree = kernel.tree();
                let binder = Binder {
                    tree: &tree,
                    kept: &[],
                };
                if let Some(what) = binder.bind(what) {
                    let _ = kernel.run(*who, &what);
                }
            }
            kernel.run(ROOT, &Do::Remount).unwrap();
            let expected = kernel.tree();
            kernel.unmount();
            // As the writable layer, and as a lower among lowers.
            for writable in [true, false] {
                let mut options = disk.options.clone();
                if !writable {
                    let top = options.upper.take().unwrap();
                    options.lowers.insert(0, top.into());
                    options.read_only = true;
                }
                let mut side = UnionSide::new(options);
                let got = side.scan(case.piece);
                assert_same(&expected, got);
                side.close();
            }
        },
    );
}
