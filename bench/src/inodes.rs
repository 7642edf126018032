//! Daemon memory for each file that the kernel knows, and what is left of it afterwards.

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use rustix::mount::UnmountFlags;

pub(crate) type Result<T> = std::result::Result<T, Box<dyn Error>>;

const FILES_IN_DIR: usize = 1000;

/// A mount in the foreground, ended when dropped.
pub(crate) struct Mount {
    pub daemon: Child,
    target: PathBuf,
}

impl Drop for Mount {
    fn drop(&mut self) {
        // Should it be gone already, the wait returns at once.
        let _ = rustix::mount::unmount(&self.target, UnmountFlags::DETACH);
        let _ = self.daemon.wait();
    }
}

/// Looks `count` files of a lower up and prints what that costs the daemon.
pub(crate) fn measure(count: usize) -> Result<()> {
    let temp = tempfile::tempdir()?;
    let path = |name: &str| temp.path().join(name);
    for dir in ["lower", "upper", "merged"] {
        fs::create_dir(path(dir))?;
    }
    fill(&path("lower"), count)?;
    let mount = mount(temp.path(), "")?;
    let pid = mount.daemon.id();
    let before = anonymous_memory(pid)?;
    let known = walk(&path("merged"))?;
    let full = anonymous_memory(pid)?;
    // Dentries and inodes; the kernel then sends its FORGETs.
    fs::write("/proc/sys/vm/drop_caches", "2")?;
    let after = settle(pid)?;
    println!("files known: {known}");
    println!("daemon memory before: {} KiB", before / 1024);
    println!("daemon memory with all known: {} KiB", full / 1024);
    println!(
        "bytes per file: {}",
        full.saturating_sub(before) / known as u64
    );
    println!("daemon memory after drop_caches: {} KiB", after / 1024);
    Ok(())
}

fn fill(lower: &Path, count: usize) -> Result<()> {
    for first in (0..count).step_by(FILES_IN_DIR) {
        let dir = lower.join(format!("dir-{first:08}"));
        fs::create_dir(&dir)?;
        for n in first..count.min(first + FILES_IN_DIR) {
            fs::File::create(dir.join(format!("file-{n:08}.txt")))?;
        }
    }
    Ok(())
}

pub(crate) fn mount(temp: &Path, more: &str) -> Result<Mount> {
    let program = std::env::current_exe()?.with_file_name("unionfs");
    let (lower, upper) = (temp.join("lower"), temp.join("upper"));
    let layers = format!("lowerdir={},upperdir={}", lower.display(), upper.display());
    let options = format!("{layers}{more}");
    let target = temp.join("merged");
    let daemon = Command::new(&program)
        .args(["mount", "-f", "-o", &options])
        .arg(&target)
        .spawn()
        .map_err(|e| format!("{}: {e} (cargo build --release first)", program.display()))?;
    let mount = Mount { daemon, target };
    let start = Instant::now();
    // Until it is mounted, the directory is empty.
    while fs::read_dir(&mount.target)?.next().is_none() {
        if start.elapsed() > Duration::from_secs(10) {
            return Err("the mount does not answer".into());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(mount)
}

/// Stats every file; returns how many objects there are.
fn walk(root: &Path) -> Result<usize> {
    let mut known = 0;
    let mut pending = vec![root.to_path_buf()];
    while let Some(dir) = pending.pop() {
        for entry in fs::read_dir(dir)? {
            let path = entry?.path();
            known += 1;
            if fs::symlink_metadata(&path)?.is_dir() {
                pending.push(path);
            }
        }
    }
    Ok(known)
}

/// Resident anonymous memory of a process in bytes.
pub(crate) fn anonymous_memory(pid: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|l| l.strip_prefix("RssAnon:"));
    let kib = line
        .and_then(|l| l.split_whitespace().next())
        .ok_or("no RssAnon in status")?;
    Ok(kib.parse::<u64>()? * 1024)
}

/// Memory once it has stopped falling.
fn settle(pid: u32) -> Result<u64> {
    let mut last = anonymous_memory(pid)?;
    loop {
        std::thread::sleep(Duration::from_secs(2));
        let now = anonymous_memory(pid)?;
        if now >= last {
            return Ok(now);
        }
        last = now;
    }
}
