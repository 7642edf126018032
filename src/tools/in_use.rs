//! Who has a layer in use now. Mounts of ours lock their upper; of all others this is found out from
//! /proc, so mounts of other users are not seen by an ordinary user, nor those whose server is in
//! another PID namespace, nor overlayfs with a relative path in its options.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::layer::LOCK_PATIENCE;
use crate::sys::{self, Errno, ioctl};

use super::{Result, ToolError};

/// How long a server may take to end after its mount went.
const ENDING: Duration = Duration::from_secs(2);

/// What is to be done with the layer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Purpose {
    /// It is read.
    Look,
    /// It is changed, which its mounts would not know of.
    Change,
    /// It is changed, and others that have it as a lower take that upon themselves.
    Merge,
}

/// The lock that a mount holds on its upper, for as long as we work on it.
///
/// # Errors
/// When somebody uses the layer.
pub(super) fn lock(root: &Arc<OwnedFd>, path: &Path, purpose: Purpose) -> Result<OwnedFd> {
    let fail = |e| ToolError::at(path.as_os_str().as_bytes(), e);
    let lock = sys::fd::reopen_dir(&**root).map_err(fail)?;
    if ioctl::control(&lock, ioctl::LAYER, 0).is_ok() {
        let path = path.display();
        return Err(ToolError::new(format_args!(
            "{path}: a mounted union; unmount it, and give its upper"
        )));
    }
    match sys::fd::lock_within(&lock, LOCK_PATIENCE) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => return Err(busy(path, "unionfs")),
        Err(e) => return Err(fail(e)),
    }
    refuse_others(root, path, purpose)?;
    Ok(lock)
}

/// Fails when a mount that takes no lock uses the layer.
pub(super) fn refuse_others(root: &OwnedFd, path: &Path, purpose: Purpose) -> Result<()> {
    let fail = |e| ToolError::at(path.as_os_str().as_bytes(), e);
    let own = sys::stat::fstat(root.as_fd()).map_err(fail)?;
    let own = (own.dev, own.ino);
    let deadline = Instant::now() + ENDING;
    loop {
        let (server, overlay) = users(own, purpose);
        let server = server.filter(|_| purpose != Purpose::Merge);
        match (server, overlay) {
            (_, true) => return Err(busy(path, "overlay")),
            (Some(server), _) if Instant::now() >= deadline => return Err(busy(path, &server)),
            (Some(_), _) => std::thread::sleep(Duration::from_millis(20)),
            (None, _) => return Ok(()),
        }
    }
}

fn busy(path: &Path, who: &str) -> ToolError {
    let path = path.display();
    ToolError::new(format_args!(
        "{path}: in use by a mount ({who}); unmount it first"
    ))
}

/// A process that serves a FUSE mount and has the directory open; and whether overlayfs has it.
fn users(own: (u64, u64), purpose: Purpose) -> (Option<String>, bool) {
    let mut namespaces = HashSet::new();
    let mut server = None;
    let mut overlay = false;
    let Ok(processes) = fs::read_dir("/proc") else {
        return (None, false);
    };
    let myself = std::process::id().to_string();
    for process in processes.flatten() {
        let id = process.file_name();
        if !id.as_bytes().iter().all(u8::is_ascii_digit) {
            continue;
        }
        let process = process.path();
        if server.is_none() && id.as_bytes() != myself.as_bytes() && serves(&process, own) {
            let name = fs::read_to_string(process.join("comm")).unwrap_or_default();
            let (name, id) = (name.trim_end(), id.to_string_lossy());
            server = Some(format!("{name}, process {id}"));
        }
        // What cannot be read is another user's, who has a namespace of ours perhaps.
        if let Ok(namespace) = fs::read_link(process.join("ns/mnt"))
            && namespaces.insert(namespace)
        {
            overlay |= has_overlay(&process, own, purpose);
        }
    }
    overlay |= namespaces.is_empty() && has_overlay(Path::new("/proc/self"), own, purpose);
    (server, overlay)
}

/// True for a process that serves a FUSE mount and holds the directory open, as union filesystems
/// hold their layers.
fn serves(process: &Path, own: (u64, u64)) -> bool {
    let Ok(open) = fs::read_dir(process.join("fd")) else {
        return false;
    };
    let open: Vec<PathBuf> = open.flatten().map(|entry| entry.path()).collect();
    let is_fuse = |fd: &PathBuf| {
        fs::read_link(fd).is_ok_and(|link| link.as_os_str().as_bytes().ends_with(b"/fuse"))
    };
    if !open.iter().any(is_fuse) {
        return false;
    }
    open.iter().any(|fd| {
        // What is on a mount that does not answer must not be asked for its attributes.
        let number = fd.file_name().unwrap_or_default();
        let info = fs::read_to_string(process.join("fdinfo").join(number)).unwrap_or_default();
        let ino = info.lines().find_map(|line| line.strip_prefix("ino:"));
        if ino.is_some_and(|ino| ino.trim() != own.1.to_string()) {
            return false;
        }
        fs::metadata(fd).is_ok_and(|meta| (meta.dev(), meta.ino()) == own)
    })
}

/// True when an overlayfs in the mount namespace of `process` has the directory as a layer.
fn has_overlay(process: &Path, own: (u64, u64), purpose: Purpose) -> bool {
    let Ok(mounts) = fs::read(process.join("mountinfo")) else {
        return false;
    };
    let root = process.join("root");
    mounts.split(|&b| b == b'\n').any(|line| {
        let layers = overlay_layers(line, purpose);
        layers
            .iter()
            .any(|layer| is_at(&root, layer, own).unwrap_or(false))
    })
}

fn is_at(root: &Path, layer: &[u8], own: (u64, u64)) -> io::Result<bool> {
    let Some(relative) = layer.strip_prefix(b"/") else {
        return Ok(false);
    };
    let path = root.join(PathBuf::from(std::ffi::OsString::from_vec(
        relative.to_vec(),
    )));
    let meta = fs::metadata(path)?;
    Ok((meta.dev(), meta.ino()) == own)
}

/// The layers that a line of mountinfo tells of an overlayfs; those that may not be changed.
fn overlay_layers(line: &[u8], purpose: Purpose) -> Vec<Vec<u8>> {
    let mut words = line.split(|&b| b == b' ').skip_while(|word| *word != b"-");
    words.next();
    if words.next() != Some(b"overlay") {
        return Vec::new();
    }
    let options = words.last().unwrap_or_default();
    let mut layers = Vec::new();
    for option in options.split(|&b| b == b',') {
        let Some(equals) = option.iter().position(|&b| b == b'=') else {
            continue;
        };
        let value = &option[equals + 1..];
        match &option[..equals] {
            b"upperdir" => layers.extend(readings(value)),
            b"lowerdir" if purpose == Purpose::Change => {
                let value = sys::mount::unescape(value);
                layers.extend(parts(&value));
                layers.extend(value.split(|&b| b == b':').map(<[u8]>::to_vec));
            }
            b"lowerdir+" | b"datadir+" if purpose == Purpose::Change => {
                layers.extend(readings(value));
            }
            _ => {}
        }
    }
    layers
}

/// The kernel writes some bytes as octal numbers; before that the mounter may have written
/// backslashes, which older kernels keep.
fn readings(value: &[u8]) -> [Vec<u8>; 2] {
    let value = sys::mount::unescape(value);
    let without = unescape_backslashes(&value);
    [value, without]
}

/// The directories of a list with colons between them, some of which have a backslash before.
fn parts(value: &[u8]) -> Vec<Vec<u8>> {
    let mut parts = vec![Vec::new()];
    let mut escaped = false;
    for &byte in value {
        match byte {
            b':' if !escaped => parts.push(Vec::new()),
            _ => {
                if let Some(last) = parts.last_mut() {
                    last.push(byte);
                }
            }
        }
        escaped = byte == b'\\' && !escaped;
    }
    parts
        .iter()
        .map(|part| unescape_backslashes(part))
        .collect()
}

fn unescape_backslashes(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut escaped = false;
    for &byte in text {
        if byte == b'\\' && !escaped {
            escaped = true;
            continue;
        }
        escaped = false;
        out.push(byte);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_of_overlayfs() {
        let line = br"36 25 0:33 / /m rw - overlay none rw,lowerdir=/a\072b:/l\0402,upperdir=/u\054x\134,y,workdir=/w";
        let change = overlay_layers(line, Purpose::Change);
        for layer in [&b"/l 2"[..], b"/u,x\\", b"/u,x"] {
            assert!(change.contains(&layer.to_vec()), "{}", layer.escape_ascii());
        }
        assert!(!overlay_layers(line, Purpose::Look).contains(&b"/l 2".to_vec()));
        let old = br"36 25 0:33 / /m rw - overlay none rw,lowerdir=/a\134:b:/c,upperdir=/u";
        let layers = overlay_layers(old, Purpose::Change);
        assert!(layers.contains(&b"/a:b".to_vec()) && layers.contains(&b"/c".to_vec()));
        assert!(
            overlay_layers(
                b"36 25 0:33 / /m rw - ext4 /dev/x rw,upperdir=/u",
                Purpose::Look
            )
            .is_empty()
        );
        assert!(overlay_layers(b"", Purpose::Look).is_empty());
    }
}
