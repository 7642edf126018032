//! What linked files cost that were copied up: at mount, and in memory.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::inodes::{self, Mount, Result, anonymous_memory};

const FILES_IN_DIR: usize = 1000;
const ROUNDS: usize = 5;

/// Copies `count` files with two names up and prints the cost of the next mounts, beside those of
/// the same layers without pseudo-links.
pub(crate) fn measure(count: usize) -> Result<()> {
    let temp = tempfile::tempdir()?;
    let path = |name: &str| temp.path().join(name);
    for dir in ["lower", "upper", "merged"] {
        fs::create_dir(path(dir))?;
    }
    fill(&path("lower"), count)?;
    let mount = inodes::mount(temp.path(), ",volatile")?;
    let start = Instant::now();
    each(&path("merged"), count, "a", |file| {
        fs::set_permissions(file, fs::Permissions::from_mode(0o600))
    })?;
    println!("copied up: {count} in {} ms", start.elapsed().as_millis());
    drop(mount);
    let links = path("upper/.wh..wh.plnk");
    let kept = path("plnk");
    let (with, with_memory) = mounts(temp.path())?;
    let mount = inodes::mount(temp.path(), "")?;
    let pid = mount.daemon.id();
    let before = anonymous_memory(pid)?;
    let start = Instant::now();
    each(&path("merged"), count, "b", |file| {
        fs::metadata(file).map(drop)
    })?;
    let took = start.elapsed();
    let known = anonymous_memory(pid)?;
    drop(mount);
    fs::rename(&links, &kept)?;
    let (without, without_memory) = mounts(temp.path())?;
    fs::rename(&kept, &links)?;
    let of_each = |all: u64| all / count as u64;
    println!(
        "mount: {} us, without pseudo-links {} us",
        with.as_micros(),
        without.as_micros()
    );
    let table = with_memory.saturating_sub(without_memory);
    println!("table: {} bytes of memory for each file", of_each(table));
    println!(
        "first stat of each other name: {} us; then {} bytes more for each file that is known",
        took.as_micros() / count as u128,
        of_each(known.saturating_sub(before))
    );
    Ok(())
}

fn fill(lower: &Path, count: usize) -> Result<()> {
    for first in (0..count).step_by(FILES_IN_DIR) {
        let dir = lower.join(format!("dir-{first:08}"));
        fs::create_dir(&dir)?;
        for n in first..count.min(first + FILES_IN_DIR) {
            let file = dir.join(format!("a{n}"));
            fs::write(&file, "x")?;
            fs::hard_link(&file, dir.join(format!("b{n}")))?;
        }
    }
    Ok(())
}

fn each(
    root: &Path, count: usize, name: &str, call: impl Fn(&Path) -> std::io::Result<()>,
) -> Result<()> {
    for n in 0..count {
        let dir = n / FILES_IN_DIR * FILES_IN_DIR;
        call(&root.join(format!("dir-{dir:08}/{name}{n}")))?;
    }
    Ok(())
}

/// The shortest time from the start of the program to the first answer, and memory then.
fn mounts(temp: &Path) -> Result<(Duration, u64)> {
    let mut best = Duration::MAX;
    let mut memory = 0;
    for _ in 0..ROUNDS {
        let start = Instant::now();
        let mount: Mount = inodes::mount(temp, "")?;
        best = best.min(start.elapsed());
        memory = anonymous_memory(mount.daemon.id())?;
    }
    Ok((best, memory))
}
