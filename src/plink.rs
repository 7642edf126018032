//! `unionfs plink list` and `flush`, on a running mount or on the upper of one that is not mounted.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde_json::json;

use crate::cli::Plink;
use crate::mount::{self, MountError};
use crate::options::Options;
use crate::sys::{Errno, ioctl};

/// Why it could not be done. Always one line.
#[derive(Debug, thiserror::Error)]
pub enum PlinkError {
    /// The place cannot be used.
    #[error("{0}: {1}")]
    Place(std::path::PathBuf, io::Error),
    /// The layers cannot be used.
    #[error(transparent)]
    Layers(#[from] MountError),
    /// Nothing says which union the upper belongs to.
    #[error("{0}: not mounted; its lower directories are needed: -o lowerdir=L1:L2...")]
    NoLowers(std::path::PathBuf),
    /// The union could not be read or changed.
    #[error("{0}: {1}")]
    Union(std::path::PathBuf, io::Error),
    /// Some names could not get their place.
    #[error("{0}: {1} pseudo-links had to stay; see the log")]
    Kept(std::path::PathBuf, u64),
}

/// Does what was asked; the list goes to `out`.
///
/// # Errors
/// One line for the first thing that went wrong.
pub fn run(what: &Plink, out: &mut dyn Write) -> Result<(), PlinkError> {
    let fail = |error| PlinkError::Place(what.place.clone(), error);
    if let Some(options) = &what.options {
        return on_upper(what, options, out);
    }
    let dir = File::open(&what.place).map_err(fail)?;
    match numbers(&dir) {
        Ok(_) if what.flush => {
            let answer = ioctl::control(&dir, ioctl::PLINK_FLUSH, 0);
            let answer = answer.map_err(|e| fail(e.into()))?;
            check_kept(what, answer[1])
        }
        Ok(numbers) => {
            let names = list_mount(&what.place, &numbers).map_err(fail)?;
            tell(what.json, &names, out).map_err(fail)
        }
        Err(Errno::NOTTY | Errno::INVAL) if what.flush => {
            Err(PlinkError::NoLowers(what.place.clone()))
        }
        Err(Errno::NOTTY | Errno::INVAL) => {
            let options = Options {
                upper: Some(what.place.clone()),
                read_only: true,
                ..Options::default()
            };
            on_upper(what, &options, out)
        }
        Err(e) => Err(fail(e.into())),
    }
}

fn check_kept(what: &Plink, kept: u64) -> Result<(), PlinkError> {
    match kept {
        0 => Ok(()),
        kept => Err(PlinkError::Kept(what.place.clone(), kept)),
    }
}

fn on_upper(what: &Plink, options: &Options, out: &mut dyn Write) -> Result<(), PlinkError> {
    let fail = |error| PlinkError::Union(what.place.clone(), error);
    let union = mount::open_union(options)?;
    if what.flush {
        let flushed = union.flush_plinks().map_err(|e| fail(e.into()))?;
        return check_kept(what, flushed.kept);
    }
    let names = union.plink_names().map_err(|e| fail(e.into()))?;
    tell(what.json, &names, out).map_err(fail)
}

/// The files that pseudo-links of a mount hold together.
fn numbers(dir: &File) -> Result<BTreeSet<u64>, Errno> {
    let mut all = BTreeSet::new();
    loop {
        let last = all.last().copied().unwrap_or(0);
        let answer = ioctl::control(dir, ioctl::PLINK_LIST, last)?;
        all.extend(answer.iter().copied().filter(|&number| number > last));
        if answer.last() == Some(&0) {
            return Ok(all);
        }
        if all.last() == Some(&last) {
            // Another filesystem's answer.
            return Err(Errno::NOTTY);
        }
    }
}

fn list_mount(root: &Path, numbers: &BTreeSet<u64>) -> io::Result<Vec<(u64, Vec<u8>)>> {
    let mut names = Vec::new();
    if numbers.is_empty() {
        return Ok(names);
    }
    let device = fs::metadata(root)?.dev();
    let mut pending = vec![root.to_owned()];
    while let Some(dir) = pending.pop() {
        for entry in fs::read_dir(&dir)? {
            let path = entry?.path();
            let meta = match fs::symlink_metadata(&path) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                meta => meta?,
            };
            if meta.is_dir() {
                if meta.dev() == device {
                    pending.push(path);
                }
            } else if numbers.contains(&meta.ino())
                && let Ok(path) = path.strip_prefix(root)
            {
                names.push((meta.ino(), path.as_os_str().as_bytes().to_vec()));
            }
        }
    }
    names.sort();
    Ok(names)
}

/// A line for each: the number, a tabulator, and the path from the union's root, byte for byte; or JSON.
fn tell(json: bool, names: &[(u64, Vec<u8>)], out: &mut dyn Write) -> io::Result<()> {
    if !json {
        return names.iter().try_for_each(|(number, path)| {
            write!(out, "{number}\t")?;
            out.write_all(path)?;
            out.write_all(b"\n")
        });
    }
    let item = |(number, path): &(u64, Vec<u8>)| {
        let mut item = json!({ "ino": number, "path": String::from_utf8_lossy(path) });
        if std::str::from_utf8(path).is_err() {
            item["bytes"] = json!(path);
        }
        item.to_string()
    };
    let items: Vec<String> = names.iter().map(item).collect();
    match items.is_empty() {
        true => writeln!(out, "[]"),
        false => writeln!(out, "[\n{}\n]", items.join(",\n")),
    }
}
