//! `unionfs diff`: what an upper changes, as a list, as JSON, or as a layer.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use serde_json::{Value, json};

use crate::cli::{Diff, DiffForm};
use crate::sys::FileKind;

use super::changes::{self, Before, Change};
use super::place::Place;
use super::progress::{Progress, Unit};
use super::tar_layer::LayerWriter;
use super::{Result, ToolError, latest_time, oci};

/// Does what was asked; lists go to `out`.
///
/// # Errors
/// One line for the first thing that went wrong. An archive has no end mark then.
pub fn diff(what: &Diff, out: &mut dyn Write) -> Result<()> {
    let place = Place::open(&what.place, what.options.as_deref())?;
    let reading = Progress::new("reading directories", Unit::Items);
    let found = changes::find_counting(&place, &|done| reading.add(done))?;
    drop(reading);
    let told =
        |result: io::Result<()>| result.map_err(|e| ToolError::new(format_args!("writing: {e}")));
    match &what.form {
        DiffForm::List => told(list(&found, out)),
        DiffForm::Json => told(as_json(&found, out)),
        DiffForm::Tar(file) => {
            let latest = latest_time()?;
            write(file, out, |out| {
                layer(&place, &found, latest, out).map(drop)
            })
        }
        DiffForm::Oci(file) => {
            let latest = latest_time()?;
            let scratch = scratch(file)?;
            write(file, out, |out| {
                oci::image(scratch, out, latest, |out| {
                    layer(&place, &found, latest, out).map(drop)
                })
            })
        }
    }
}

fn layer<W: Write>(place: &Place, found: &[Change], latest: Option<i64>, out: W) -> Result<W> {
    let progress = Progress::new("writing", Unit::Bytes);
    let sizes = found.iter().filter_map(|change| change.now);
    let sizes = sizes.filter(|(_, attr)| attr.kind() == FileKind::Regular);
    progress.next("writing", Some(sizes.map(|(_, attr)| attr.stat.size).sum()));
    let mut writer = LayerWriter::new(&place.all, out, latest, &progress);
    found.iter().try_for_each(|change| writer.put(change))?;
    writer.finish()
}

/// Writes an archive to `file`, of which nothing is seen before it is whole; `-` is `out`.
fn write(
    file: &Path, out: &mut dyn Write, archive: impl FnOnce(&mut dyn Write) -> Result<()>,
) -> Result<()> {
    let fail = |e: io::Error| ToolError::new(format_args!("{}: {e}", file.display()));
    let to = |target: &mut dyn Write| archive(&mut BufWriter::with_capacity(1 << 18, target));
    if file.as_os_str() == "-" {
        return to(out);
    }
    // Through a symlink; devices and pipes are written to.
    let target = std::fs::canonicalize(file).unwrap_or_else(|_| file.to_owned());
    if std::fs::metadata(&target).is_ok_and(|meta| !meta.is_file()) {
        let mut device = File::options().write(true).open(&target).map_err(fail)?;
        return to(&mut device);
    }
    let mut temp = target.clone().into_os_string();
    temp.push(format!(".{}", std::process::id()));
    let mut whole = File::create_new(&temp).map_err(fail)?;
    let written = to(&mut whole).and_then(|()| std::fs::rename(&temp, &target).map_err(fail));
    if written.is_err() {
        let _ = std::fs::remove_file(&temp);
    }
    written
}

/// A file without a name, beside the one that is asked for: an image begins with the layer's size
/// and digest.
fn scratch(file: &Path) -> Result<File> {
    let parent = file.parent().filter(|p| !p.as_os_str().is_empty());
    let dir = match (file.as_os_str() == "-", parent) {
        (true, _) => std::env::temp_dir(),
        (false, Some(parent)) => parent.to_owned(),
        (false, None) => ".".into(),
    };
    oci::scratch(&dir).map_err(|e| ToolError::new(format_args!("{}: {e}", dir.display())))
}

/// The letters and paths of a list: what was replaced was removed, and something else added.
fn lines(change: &Change) -> impl Iterator<Item = char> {
    let letters: &[char] = match (change.counts, change.now.is_some(), change.before) {
        (false, ..) => &[],
        (_, false, _) => &['D'],
        (_, true, Before::Nothing) => &['A'],
        (_, true, Before::Something) => &['M'],
        (_, true, Before::Replaced) => &['D', 'A'],
    };
    letters.iter().copied()
}

/// The root has no name.
fn named(path: &[u8]) -> &[u8] {
    match path {
        [] => b".",
        path => path,
    }
}

fn list(found: &[Change], out: &mut dyn Write) -> io::Result<()> {
    let mut out = BufWriter::new(out);
    for change in found {
        for letter in lines(change) {
            write!(out, "{letter}\t")?;
            out.write_all(&super::printed(&change.path))?;
            out.write_all(b"\n")?;
        }
    }
    out.flush()
}

fn as_json(found: &[Change], out: &mut dyn Write) -> io::Result<()> {
    let mut out = BufWriter::new(out);
    let mut separator = "[\n";
    for change in found {
        for letter in lines(change) {
            write!(out, "{separator}{}", item(change, letter))?;
            separator = ",\n";
        }
    }
    let end = if separator == "[\n" { "[]\n" } else { "\n]\n" };
    out.write_all(end.as_bytes())?;
    out.flush()
}

fn item(change: &Change, letter: char) -> Value {
    let path = named(&change.path);
    let mut item = json!({
        "change": letter.to_string(),
        "path": String::from_utf8_lossy(path),
    });
    if std::str::from_utf8(path).is_err() {
        // No text: the bytes as they are.
        item["bytes"] = json!(path);
    }
    if let Some((_, attr)) = change.now.filter(|_| letter != 'D') {
        let stat = &attr.stat;
        item["type"] = json!(kind(attr.kind()));
        item["mode"] = json!(format!("{:04o}", stat.mode & 0o7777));
        item["uid"] = json!(stat.uid);
        item["gid"] = json!(stat.gid);
        if attr.kind() == FileKind::Regular {
            item["size"] = json!(stat.size);
        }
        if change.opaque {
            item["opaque"] = json!(true);
        }
    }
    item
}

fn kind(kind: FileKind) -> &'static str {
    match kind {
        FileKind::Regular => "file",
        FileKind::Directory => "directory",
        FileKind::Symlink => "symlink",
        FileKind::CharDevice => "char",
        FileKind::BlockDevice => "block",
        FileKind::Fifo => "fifo",
        FileKind::Socket => "socket",
    }
}
