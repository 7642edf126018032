//! Workloads of one system call, many times.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use super::Context;
use crate::compare::Result;
use crate::compare::data::{self, FILE_SIZE};
use crate::compare::stats;

/// How often what is hot is repeated.
const PASSES: usize = 20;
const LISTINGS: usize = 5;
const LARGE_READS: usize = 8;

fn ensure(condition: bool, otherwise: &str) -> Result<()> {
    match condition {
        true => Ok(()),
        false => Err(otherwise.into()),
    }
}

fn stat(files: &[PathBuf]) -> Result<()> {
    for file in files {
        rustix::fs::stat(file)?;
    }
    Ok(())
}

pub(super) fn stat_once(context: &Context) -> Result<()> {
    stat(&context.sizes.small_files(&context.srv("small")))
}

pub(super) fn stat_many(context: &Context) -> Result<f64> {
    let files = context.sizes.small_files(&context.srv("small"));
    for _ in 0..PASSES {
        stat(&files)?;
    }
    Ok(0.0)
}

/// As on a mount that nobody looked at.
pub(super) fn stat_first(context: &Context) -> Result<f64> {
    stat_once(context)?;
    Ok(0.0)
}

fn stat_missing(files: &[PathBuf]) -> Result<()> {
    for file in files {
        let found = rustix::fs::stat(file);
        ensure(
            found.is_err_and(|e| e == rustix::io::Errno::NOENT),
            "a missing name is there",
        )?;
    }
    Ok(())
}

pub(super) fn stat_missing_once(context: &Context) -> Result<()> {
    stat_missing(&context.sizes.missing_files(&context.srv("small")))
}

pub(super) fn stat_missing_many(context: &Context) -> Result<f64> {
    let files = context.sizes.missing_files(&context.srv("small"));
    for _ in 0..PASSES {
        stat_missing(&files)?;
    }
    Ok(0.0)
}

fn list(context: &Context) -> Result<()> {
    let entries = fs::read_dir(context.srv("many"))?.count();
    ensure(
        entries == context.sizes.entries,
        "the listing is not complete",
    )
}

pub(super) fn list_once(context: &Context) -> Result<()> {
    // Twice: the kernel keeps a listing when it is read as a whole.
    list(context)?;
    list(context)
}

pub(super) fn list_many(context: &Context) -> Result<f64> {
    for _ in 0..LISTINGS {
        list(context)?;
    }
    Ok(0.0)
}

pub(super) fn read_files(context: &Context) -> Result<f64> {
    let mut buffer = vec![0; 2 * FILE_SIZE];
    for file in context.sizes.small_files(&context.srv("small")) {
        let read = File::open(file)?.read(&mut buffer)?;
        ensure(read == FILE_SIZE, "a file has another size")?;
    }
    Ok(0.0)
}

pub(super) fn read_files_once(context: &Context) -> Result<()> {
    read_files(context)?;
    Ok(())
}

pub(super) fn read_files_many(context: &Context) -> Result<f64> {
    for _ in 0..PASSES / 4 {
        read_files(context)?;
    }
    Ok(0.0)
}

fn read_whole(path: &Path) -> Result<u64> {
    let mut file = File::open(path)?;
    let mut buffer = vec![0; 1 << 20];
    let mut total = 0;
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(total),
            n => total += n as u64,
        }
    }
}

#[allow(clippy::cast_precision_loss)] // Gigabytes.
pub(super) fn read_large(context: &Context) -> Result<f64> {
    let read = read_whole(&context.srv("large"))?;
    ensure(read == context.sizes.large, "the file has another size")?;
    Ok(read as f64)
}

pub(super) fn read_large_many(context: &Context) -> Result<f64> {
    let mut bytes = 0.0;
    for _ in 0..LARGE_READS {
        bytes += read_large(context)?;
    }
    Ok(bytes)
}

pub(super) fn read_large_once(context: &Context) -> Result<()> {
    read_large(context)?;
    Ok(())
}

/// The large files into the page cache of their layer, not of the union.
pub(super) fn warm_layers(context: &Context) -> Result<()> {
    if context.plain {
        return read_large_once(context);
    }
    for layer in crate::compare::store::lowers(&context.layers) {
        for name in ["srv/large", "srv/huge"] {
            if layer.join(name).exists() {
                read_whole(&layer.join(name))?;
            }
        }
    }
    Ok(())
}

pub(super) fn make_output(context: &Context) -> Result<()> {
    File::create(context.srv("output"))?;
    Ok(())
}

#[allow(clippy::cast_precision_loss)] // Gigabytes.
fn write(context: &Context, bytes: u64, piece: usize) -> Result<f64> {
    let mut file = OpenOptions::new().write(true).open(context.srv("output"))?;
    data::fill(&mut file, bytes, piece)?;
    drop(file);
    Ok(bytes as f64)
}

fn check_output(context: &Context, bytes: u64, piece: usize) -> Result<()> {
    let file = File::open(context.srv("output"))?;
    ensure(file.metadata()?.len() == bytes, "not all was written")?;
    let mut last = vec![0; piece];
    file.read_exact_at(&mut last, bytes - piece as u64)?;
    ensure(last == data::block(piece), "other data were written")
}

pub(super) fn write_small(context: &Context) -> Result<f64> {
    write(context, context.sizes.written.0, 4096)
}

pub(super) fn check_small_output(context: &Context) -> Result<()> {
    check_output(context, context.sizes.written.0, 4096)
}

pub(super) fn write_large(context: &Context) -> Result<f64> {
    write(context, context.sizes.written.1, 1 << 20)
}

pub(super) fn check_large_output(context: &Context) -> Result<()> {
    check_output(context, context.sizes.written.1, 1 << 20)
}

fn new_files(context: &Context) -> Vec<PathBuf> {
    context.sizes.small_files(&context.srv("new"))
}

pub(super) fn make_new_dirs(context: &Context) -> Result<()> {
    for dir in context.sizes.small_dirs(&context.srv("new")) {
        fs::create_dir_all(dir)?;
    }
    Ok(())
}

pub(super) fn make_new_files(context: &Context) -> Result<()> {
    make_new_dirs(context)?;
    create(context)?;
    Ok(())
}

fn create_all(files: &[PathBuf]) -> Result<()> {
    let content = data::block(FILE_SIZE);
    for file in files {
        File::create_new(file)?.write_all(&content)?;
    }
    Ok(())
}

pub(super) fn create(context: &Context) -> Result<f64> {
    create_all(&new_files(context))?;
    Ok(0.0)
}

/// Each thread has directories of its own.
pub(super) fn create_in_threads(context: &Context) -> Result<f64> {
    let files = new_files(context);
    let done = std::thread::scope(|scope| {
        let chunks = files.chunks(files.len().div_ceil(4));
        let threads: Vec<_> = chunks
            .map(|files| scope.spawn(|| create_all(files).map_err(|e| e.to_string())))
            .collect();
        let results = threads.into_iter().map(std::thread::ScopedJoinHandle::join);
        results.collect::<Vec<_>>()
    });
    for result in done {
        result.map_err(|_| "a thread panicked")??;
    }
    Ok(0.0)
}

fn every_file(files: &[PathBuf], test: impl Fn(&Path) -> bool, otherwise: &str) -> Result<()> {
    ensure(files.iter().all(|f| test(f)), otherwise)
}

pub(super) fn check_created(context: &Context) -> Result<()> {
    let content = data::block(FILE_SIZE);
    let whole = |file: &Path| fs::read(file).is_ok_and(|read| read == content);
    every_file(&new_files(context), whole, "a file was not created")
}

fn unlink(files: &[PathBuf]) -> Result<f64> {
    for file in files {
        rustix::fs::unlink(file)?;
    }
    Ok(0.0)
}

fn is_gone(file: &Path) -> bool {
    rustix::fs::lstat(file).is_err_and(|e| e == rustix::io::Errno::NOENT)
}

fn is_empty(dir: &PathBuf) -> bool {
    fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_none())
}

fn all_gone(context: &Context, below: &Path) -> Result<()> {
    every_file(
        &context.sizes.small_files(below),
        is_gone,
        "a file is still there",
    )?;
    let empty = context.sizes.small_dirs(below).iter().all(is_empty);
    ensure(empty, "a directory is not empty")
}

pub(super) fn unlink_new(context: &Context) -> Result<f64> {
    unlink(&new_files(context))
}

pub(super) fn check_new_gone(context: &Context) -> Result<()> {
    all_gone(context, &context.srv("new"))
}

pub(super) fn unlink_lower(context: &Context) -> Result<f64> {
    unlink(&context.sizes.small_files(&context.srv("small")))
}

pub(super) fn check_lower_gone(context: &Context) -> Result<()> {
    all_gone(context, &context.srv("small"))
}

pub(super) fn rename(context: &Context) -> Result<f64> {
    for file in new_files(context) {
        fs::rename(&file, file.with_extension("renamed"))?;
    }
    Ok(0.0)
}

pub(super) fn check_renamed(context: &Context) -> Result<()> {
    let moved = |file: &Path| is_gone(file) && file.with_extension("renamed").exists();
    every_file(&new_files(context), moved, "a file was not renamed")
}

/// Seconds for one look at each name, at least one.
fn look(names: &[PathBuf], until: &AtomicBool, looking: &AtomicBool) -> Vec<f64> {
    let mut times = Vec::new();
    for name in names {
        let start = Instant::now();
        // A name that the kernel does not know, so the daemon is asked.
        let _ = rustix::fs::stat(name);
        times.push(start.elapsed().as_secs_f64());
        looking.store(true, Ordering::Relaxed);
        if until.load(Ordering::Relaxed) {
            break;
        }
    }
    times
}

/// Waits for others to begin, and changes the file.
fn change(huge: &Path, looking: &AtomicBool) -> std::io::Result<()> {
    while !looking.load(Ordering::Relaxed) {
        std::thread::yield_now();
    }
    let file = OpenOptions::new().write(true).open(huge)?;
    file.write_all_at(CHANGED, 0)
}

const CHANGED: &[u8] = b"changed";

/// What a stat waits longer while a large file is copied up: the difference at p99.
pub(super) fn latency(context: &Context) -> Result<f64> {
    let names = |kind: &str| -> Vec<PathBuf> {
        let dir = context.srv("many");
        (0..200_000)
            .map(|n| dir.join(format!("{kind}-{n}")))
            .collect()
    };
    let (never, looking, done) = (
        AtomicBool::new(false),
        AtomicBool::new(false),
        AtomicBool::new(false),
    );
    let quiet = look(&names("quiet")[..20_000], &never, &AtomicBool::new(false));
    let huge = context.srv("huge");
    let (copied, busy) = std::thread::scope(|scope| {
        let copier = scope.spawn(|| {
            let result = change(&huge, &looking);
            done.store(true, Ordering::Relaxed);
            result
        });
        let busy = look(&names("busy"), &done, &looking);
        (copier.join(), busy)
    });
    copied.map_err(|_| "the copier panicked")??;
    let p99 = |times: &[f64]| stats::percentile(times, 990).ok_or("nothing was measured");
    Ok((p99(&busy)? - p99(&quiet)?).max(0.0))
}

pub(super) fn check_copied_up(context: &Context) -> Result<()> {
    let file = File::open(context.srv("huge"))?;
    let mut first = vec![0; CHANGED.len()];
    file.read_exact_at(&mut first, 0)?;
    ensure(first == CHANGED, "the file was not changed")?;
    ensure(
        file.metadata()?.len() == context.sizes.huge,
        "the file has another size",
    )
}
