//! What mv(1) of a lower directory takes, beside the kernel's overlayfs and fuse-overlayfs.

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::mount::UnmountFlags;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const FILES_IN_DIR: usize = 100;
const FILE_SIZE: usize = 4096;
/// Each on a fresh upper; the median counts.
const RUNS: usize = 3;

/// What is measured: a name, a program (nothing is the kernel's overlayfs), and more options.
const SUBJECTS: [(&str, &str, &str); 7] = [
    ("unionfs rename_dir=copy", "unionfs", "rename_dir=copy"),
    (
        "unionfs rename_dir=copy,volatile",
        "unionfs",
        "rename_dir=copy,volatile",
    ),
    (
        "unionfs rename_dir=redirect",
        "unionfs",
        "rename_dir=redirect",
    ),
    ("unionfs rename_dir=exdev", "unionfs", "rename_dir=exdev"),
    ("overlayfs redirect_dir=off", "", "redirect_dir=off"),
    ("overlayfs redirect_dir=on", "", "redirect_dir=on"),
    ("fuse-overlayfs", "fuse-overlayfs", ""),
];

/// Something mounted; unmounted when dropped.
struct Mount(PathBuf);

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, UnmountFlags::DETACH);
    }
}

/// Moves a directory of `count` files in each way and prints how long that takes.
pub(crate) fn measure(count: usize) -> Result<()> {
    let temp = tempfile::tempdir()?;
    let lower = temp.path().join("lower");
    fill(&lower.join("dir"), count)?;
    println!("mv of a lower directory with {count} files of {FILE_SIZE} bytes, median of {RUNS}");
    for (name, program, options) in SUBJECTS {
        let mut times = Vec::new();
        for run in 0..RUNS {
            let base = temp.path().join(format!("run-{run}"));
            match one(&base, &lower, program, options) {
                Ok(time) => times.push(time),
                Err(e) => {
                    println!("{name:34} not measured: {e}");
                    break;
                }
            }
            fs::remove_dir_all(&base)?;
        }
        times.sort();
        if let Some(median) = times.get(times.len() / 2) {
            let (least, most) = (times[0], times[times.len() - 1]);
            println!(
                "{name:34} {:9.1} ms ({:.1} to {:.1})",
                millis(*median),
                millis(least),
                millis(most)
            );
        }
    }
    Ok(())
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

fn fill(dir: &Path, count: usize) -> Result<()> {
    for first in (0..count).step_by(FILES_IN_DIR) {
        let inner = dir.join(format!("sub-{first:06}"));
        fs::create_dir_all(&inner)?;
        for n in first..count.min(first + FILES_IN_DIR) {
            fs::write(inner.join(format!("file-{n:06}")), [b'x'; FILE_SIZE])?;
        }
    }
    Ok(())
}

/// One move on a fresh upper.
fn one(base: &Path, lower: &Path, program: &str, options: &str) -> Result<Duration> {
    for dir in ["upper", "work", "merged"] {
        fs::create_dir_all(base.join(dir))?;
    }
    let merged = base.join("merged");
    let mut text = format!(
        "lowerdir={},upperdir={},workdir={}",
        lower.display(),
        base.join("upper").display(),
        base.join("work").display()
    );
    if !options.is_empty() {
        text = format!("{text},{options}");
    }
    let mut command = match program {
        "" => {
            let mut command = Command::new("mount");
            command.args(["-t", "overlay", "overlay"]);
            command
        }
        "unionfs" => Command::new(std::env::current_exe()?.with_file_name(program)),
        _ => Command::new(program),
    };
    run(command.args(["-o", &text]).arg(&merged))?;
    let _mount = Mount(merged.clone());
    // A disk that is still busy with the run before would count against this one.
    rustix::fs::sync();
    let start = Instant::now();
    run(Command::new("mv")
        .arg(merged.join("dir"))
        .arg(merged.join("moved")))?;
    let time = start.elapsed();
    let moved = fs::read_dir(merged.join("moved"))?.count();
    if moved == 0 || merged.join("dir").exists() {
        return Err("the directory did not move".into());
    }
    Ok(time)
}

fn run(command: &mut Command) -> Result<()> {
    let status = command
        .status()
        .map_err(|e| format!("{}: {e}", command.get_program().display()))?;
    if status.success() {
        Ok(())
    } else {
        Err(format!("{}: {status}", command.get_program().display()).into())
    }
}
