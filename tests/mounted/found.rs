//! Whether something is as it should be, or else why not.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

/// The file has exactly these data.
pub fn same(dir: &Path, name: &str, data: &[u8]) -> Result<(), String> {
    let found = fs::read(dir.join(name)).map_err(|e| format!("{name}: {e}"))?;
    if found == data {
        return Ok(());
    }
    let at = found.iter().zip(data).take_while(|(a, b)| a == b).count();
    let (has, of) = (found.len(), data.len());
    Err(format!(
        "{name} has {has} bytes of {of}, right as far as {at}"
    ))
}

/// There is no such name.
pub fn absent(dir: &Path, name: &str) -> Result<(), String> {
    match fs::symlink_metadata(dir.join(name)) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => Err(format!("{name} is there: {:?}", other.map(|m| m.len()))),
    }
}

/// Both names are one file, which has no others.
pub fn one_file(dir: &Path, one: &str, other: &str) -> Result<(), String> {
    let look =
        |name: &str| fs::symlink_metadata(dir.join(name)).map_err(|e| format!("{name}: {e}"));
    let (one, other) = (look(one)?, look(other)?);
    let is_same = one.ino() == other.ino() && one.nlink() == 2 && other.nlink() == 2;
    let text = || {
        format!(
            "numbers {} {}, {} names",
            one.ino(),
            other.ino(),
            one.nlink()
        )
    };
    is_same.then_some(()).ok_or_else(text)
}

/// The file has these permission bits.
pub fn mode(dir: &Path, name: &str, mode: u32) -> Result<(), String> {
    let meta = fs::metadata(dir.join(name)).map_err(|e| format!("{name}: {e}"))?;
    let found = meta.permissions().mode() & 0o7777;
    (found == mode)
        .then_some(())
        .ok_or(format!("mode {found:o}"))
}
