//! The power goes while files of lowers are changed. Afterwards the upper has no entry of a file, and
//! the lower's shows, or one with all of its data; and what fsync has acknowledged is there.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::crash::Random;
use crate::disk_log::{Cuts, Logged};
use crate::spec::Dialect;
use crate::support::Stack;

/// Files of each kind of change.
const FILES: usize = 24;
/// So many moments of a run are looked at, spread over all of it.
const MOMENTS: usize = 40;
/// What is appended.
const MORE: &[u8] = b"more";

/// What must be found after a cut.
struct Expected {
    /// What the lower has, by path.
    lower: BTreeMap<PathBuf, Vec<u8>>,
    /// From which moment on a file has to be in the upper with what was appended.
    synced: BTreeMap<PathBuf, usize>,
}

/// Bytes of which no block is like another, so that one that is missing or another's shows.
fn content(seed: usize, size: usize) -> Vec<u8> {
    (0..size)
        .map(|at| ((at / 512) * 31 + at % 7 + seed * 3 + 1) as u8 | 1)
        .collect()
}

/// Files of the lower by path below its root.
fn lower_files() -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    for (d, dir) in ["chmod", "append", "sync", "moved"].iter().enumerate() {
        for n in 0..FILES {
            let size = [1, 700, 4096, 9000, 70_000, 300_000][n % 6];
            files.insert(
                Path::new(dir).join(format!("f{n}")),
                content(d * FILES + n, size),
            );
        }
    }
    files
}

/// Changes files in every way, on a filesystem whose journal is committed now and then.
fn change(disk: &Logged, options: &str) -> Expected {
    let layers = Stack::of(Dialect::Aufs)
        .upper_at(&disk.at)
        .lower([""; 0])
        .build();
    let lower = lower_files();
    for (path, data) in &lower {
        let path = layers.lowers[0].join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        File::create(&path).unwrap().write_all(data).unwrap();
    }
    // A hole in the middle and one at the end.
    let mut holes = File::options()
        .write(true)
        .open(layers.lowers[0].join("chmod/f0"))
        .unwrap();
    holes.set_len(0).unwrap();
    holes.write_all(&content(0, 5000)).unwrap();
    holes.write_all_at(&content(1, 5000), 100_000).unwrap();
    holes.set_len(200_000).unwrap();
    let mut lower = lower;
    let sparse = fs::read(layers.lowers[0].join("chmod/f0")).unwrap();
    lower.insert("chmod/f0".into(), sparse);

    let commit = File::create(disk.at.join("other")).unwrap();
    let mut m = layers.mount_with(options);
    let mut synced = BTreeMap::new();
    for n in 0..FILES {
        let name = format!("f{n}");
        m.chmod(&format!("chmod/{name}"), 0o600).unwrap();
        let append = |dir: &str| {
            let path = m.p(Path::new(dir).join(&name));
            let mut file = File::options().append(true).open(path).unwrap();
            file.write_all(MORE).unwrap();
            file
        };
        append("append");
        if n % 3 == 0 {
            append("sync").sync_all().unwrap();
            synced.insert(Path::new("sync").join(&name), disk.position());
        } else if n % 3 == 1 {
            // Names reach the disk with no one waiting for the data.
            commit.write_all_at(&[n as u8], n as u64).unwrap();
            commit.sync_all().unwrap();
        }
        if n == FILES / 2 {
            m.rename("moved", "new").unwrap();
        }
    }
    m.unmount();
    commit.sync_all().unwrap();
    Expected { lower, synced }
}

/// Files of `upper` that a cut at `moment` has left with other data than they may have.
fn torn(upper: &Path, moment: usize, expected: &Expected) -> Vec<String> {
    let mut torn = Vec::new();
    for (path, data) in &expected.lower {
        let is_moved = path.starts_with("moved");
        let at = match is_moved {
            true => upper.join("new").join(path.strip_prefix("moved").unwrap()),
            false => upper.join(path),
        };
        let Ok(found) = fs::read(&at) else {
            let gone = is_moved && upper.join(".wh.moved").exists();
            if gone
                || expected
                    .synced
                    .get(path)
                    .is_some_and(|from| *from <= moment)
            {
                torn.push(format!("{}: not there", path.display()));
            }
            continue;
        };
        let whole = found.starts_with(data);
        let more = &found[data.len().min(found.len())..];
        let is_synced = expected
            .synced
            .get(path)
            .is_some_and(|from| *from <= moment);
        // What was appended since is the user's to flush.
        let right = match is_synced {
            true => more == MORE,
            false => more.is_empty() || more.len() == MORE.len(),
        };
        let mode = fs::metadata(&at).unwrap().permissions().mode() & 0o777;
        let may_read = mode == 0o644 || (path.starts_with("chmod") && mode == 0o600);
        if !(whole && right && may_read) {
            let (has, of) = (found.len(), data.len());
            torn.push(format!(
                "{}: {has} bytes of {of}, mode {mode:o}",
                path.display()
            ));
        }
    }
    torn
}

/// What cuts all over a run leave torn.
fn cut_all_over(mut cuts: Cuts, expected: &Expected, reaches: &[u64]) -> Vec<String> {
    let moments = cuts.moments();
    let step = moments.len().div_ceil(MOMENTS).max(1);
    let mut random = Random(7);
    let mut found = Vec::new();
    for moment in moments.into_iter().step_by(step) {
        for one_in in reaches {
            cuts.cut(moment, *one_in, &mut random, |disk| {
                found.extend(torn(&disk.join("upper"), moment, expected));
            });
        }
    }
    found
}

fn run(kind: &str, size: u64, make: &[&str], mount: &str, options: &str) -> Vec<String> {
    let disk = Logged::new(kind, size, make, mount);
    let expected = change(&disk, options);
    // btrfs was seen not to mount with any half of what no flush covers.
    let reaches = if kind == "btrfs" {
        &[0, 1][..]
    } else {
        &[0, 1, 2]
    };
    cut_all_over(disk.end(), &expected, reaches)
}

fn nothing_is_torn(kind: &str, size: u64, make: &[&str], mount: &str) {
    let torn = run(kind, size, make, mount, "");
    assert!(torn.is_empty(), "{kind}: {} files, {torn:#?}", torn.len());
}

const MIB: u64 = 1 << 20;

#[test]
fn a_power_cut_tears_no_copy_on_ext4() {
    nothing_is_torn("ext4", 96 * MIB, &["-b", "4096"], "commit=1");
}

#[test]
fn a_power_cut_tears_no_copy_on_ext4_with_small_blocks() {
    nothing_is_torn("ext4", 96 * MIB, &["-b", "1024"], "nodelalloc,dioread_lock");
}

#[test]
fn a_power_cut_tears_no_copy_on_ext4_that_does_not_order_data() {
    nothing_is_torn("ext4", 96 * MIB, &["-b", "4096"], "data=writeback");
}

#[test]
fn a_power_cut_tears_no_copy_on_xfs() {
    nothing_is_torn("xfs", 320 * MIB, &[], "defaults");
}

#[test]
fn a_power_cut_tears_no_copy_on_btrfs() {
    nothing_is_torn("btrfs", 160 * MIB, &[], "defaults");
}

/// Without waiting for the data copies are torn, so the other tests would see it.
#[test]
fn a_power_cut_tears_copies_of_a_volatile_mount() {
    let torn = run("ext4", 96 * MIB, &["-b", "4096"], "commit=1", "volatile");
    assert!(!torn.is_empty());
}
