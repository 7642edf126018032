//! `tidy-up DIR` removes backup files (`*~`, `*.bak`) below DIR, and spaces at the ends of lines from
//! text files (`*.txt`). A file is old or new at any time, never half of it.
//!
//! The program is only here to be tested: see `tests/tidy_up.rs`.

use std::ffi::OsString;
use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let Some(dir) = std::env::args_os().nth(1) else {
        let _ = writeln!(io::stderr(), "tidy-up: which directory?");
        return ExitCode::FAILURE;
    };
    match tidy(Path::new(&dir)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "tidy-up: {error}");
            ExitCode::FAILURE
        }
    }
}

fn tidy(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let path = entry.path();
        let name = entry.file_name();
        let name = name.as_encoded_bytes();
        if entry.file_type()?.is_dir() {
            tidy(&path)?;
        } else if name.ends_with(b"~") || name.ends_with(b".bak") {
            fs::remove_file(path)?;
        } else if name.ends_with(b".txt") && entry.file_type()?.is_file() {
            strip(&path)?;
        }
    }
    Ok(())
}

/// Writes the new text beside the old one, and puts it in its place when it is complete.
fn strip(path: &Path) -> io::Result<()> {
    let old = fs::read_to_string(path)?;
    let mut new: String = old
        .lines()
        .flat_map(|line| [line.trim_end(), "\n"])
        .collect();
    if !old.ends_with('\n') && !old.is_empty() {
        new.truncate(new.len() - 1);
    }
    if new == old {
        return Ok(());
    }
    let mut beside = OsString::from(path);
    beside.push(".new");
    let written = fs::write(&beside, new)
        .and_then(|()| fs::set_permissions(&beside, fs::metadata(path)?.permissions()))
        .and_then(|()| fs::rename(&beside, path));
    if written.is_err() {
        // The first failure is the one to tell of.
        let _ = fs::remove_file(&beside);
    }
    written
}
