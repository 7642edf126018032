//! The kernel's overlayfs as a third party: on stacks that it can represent, it must agree with the
//! rules by which the oracle is made.

use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::io::Errno;
use unionfs::options::Options;

use crate::harness::{Disk, allowed_difference, case, compare, run_cases};
use crate::model::Dialects;
use crate::mounted::{Mounted, Mounter, run};
use crate::ops::{Action, Do, Result};
use crate::plain::{Plain, Users, prepare_thread};
use crate::tree::{Tree, join, scan_found};

struct Kernel {
    options: Options,
    at: PathBuf,
}

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
            "lowerdir={},upperdir={},workdir={},redirect_dir=off,index=off,metacopy=off",
            lowers.join(":"),
            upper.as_ref().unwrap().display(),
            work.as_ref().unwrap().display(),
        );
        run(Command::new("mount")
            .args(["-t", "overlay", "overlay", "-o"])
            .arg(text)
            .arg(at));
    }

    fn unmount(&self, at: &Path) {
        run(Command::new("umount").arg(at));
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
        scan_found(at)
    }

    fn hides_reserved(&self) -> bool {
        false
    }
}

#[test]
fn the_kernels_overlayfs_agrees_with_the_oracle() {
    prepare_thread();
    run_cases(
        "tests/core/overlay.proptest-regressions",
        &case(Dialects::Overlay, 20),
        60,
        |case| {
            let mut case = case.clone();
            case.workdir = true;
            for (_, apart) in &mut case.lowers {
                *apart = false;
            }
            let disk = Disk::new(&case);
            let at = disk.base.path().join("mnt");
            let options = disk.options.clone();
            let kernel = Kernel {
                options,
                at: at.clone(),
            };
            let mut mounted = Mounted::new(Box::new(kernel), &at);
            let mut oracle = Plain::new(&disk.oracle, Users::Real);
            compare(&mut mounted, &mut oracle, &disk.oracle, &case.steps);
            mounted.unmount();
            disk.raw.check_unchanged();
        },
    );
}
