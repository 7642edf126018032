//! Removing a tree of markers or leftovers that no user can see.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use crate::sys::{self, Errno, FileKind, Result};

use super::name::NameBuf;

/// Removes `name` in `dir` with all that is below it. Symlinks and mounts are not followed, and
/// the depth is bounded by memory, not by the stack.
pub(crate) fn remove_tree(dir: impl AsFd, name: &[u8]) -> Result<()> {
    match sys::at::unlink_at(dir.as_fd(), name) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(e) => return Err(e),
    }
    // Each element is a directory still to be emptied, with the way to remove it afterwards.
    let top = Arc::new(sys::at::open_dir_path(dir.as_fd(), name, true)?);
    let mut pending: Vec<(Option<Arc<OwnedFd>>, NameBuf, Arc<OwnedFd>)> =
        vec![(None, NameBuf::from_slice(name), top)];
    while let Some((_, _, current)) = pending.last() {
        let current = Arc::clone(current);
        let children = match clear_files(&current) {
            // A directory that its owner may not write or read; an ordinary user is bound by that.
            Err(Errno::ACCESS) => {
                sys::at::chmod_at(&*current, b"", 0o700)?;
                clear_files(&current)?
            }
            result => result?,
        };
        if children.is_empty() {
            if let Some((parent, name, _)) = pending.pop() {
                let parent = parent.as_ref().map_or(dir.as_fd(), |parent| parent.as_fd());
                match sys::at::rmdir_at(parent, &name) {
                    // It held directories only, so nothing was taken out of it so far.
                    Err(Errno::ACCESS) => {
                        sys::at::chmod_at(parent, b"", 0o700)?;
                        sys::at::rmdir_at(parent, &name)?;
                    }
                    result => result?,
                }
            }
            continue;
        }
        // One child at a time keeps the number of open descriptors at the depth of the tree.
        if let Some(child) = children.into_iter().next() {
            let fd = Arc::new(sys::at::open_dir_path(&*current, &child, true)?);
            pending.push((Some(current), child, fd));
        }
    }
    Ok(())
}

/// Removes everything that is in `dir`, as [`remove_tree`] does.
pub(crate) fn empty_tree(dir: &Arc<OwnedFd>) -> Result<()> {
    for child in clear_files(dir)? {
        remove_tree(&**dir, &child)?;
    }
    Ok(())
}

/// Removes everything that is not a directory; returns the directories.
pub(crate) fn clear_files(dir: &Arc<OwnedFd>) -> Result<Vec<NameBuf>> {
    let mut files = Vec::new();
    let mut dirs = Vec::new();
    let readable = sys::fd::reopen_dir(&**dir)?;
    sys::dir::for_each_entry(&readable, |entry| {
        let name = NameBuf::from_slice(entry.name);
        if entry.kind == Some(FileKind::Directory) {
            dirs.push(name);
        } else {
            files.push(name);
        }
        Ok(())
    })?;
    for name in files {
        match sys::at::unlink_at(&**dir, &name) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(Errno::ISDIR) => dirs.push(name),
            Err(e) => return Err(e),
        }
    }
    Ok(dirs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deep_tree_is_removed() {
        let temp = tempfile::tempdir().unwrap();
        let mut path = temp.path().join("top");
        for i in 0..100 {
            path.push(format!("d{i}"));
        }
        std::fs::create_dir_all(&path).unwrap();
        std::fs::write(path.join(".wh.f"), "").unwrap();
        std::fs::write(temp.path().join("top/x"), "").unwrap();
        std::os::unix::fs::symlink("/", temp.path().join("top/link")).unwrap();
        let dir = sys::at::open_root(temp.path().as_os_str().as_encoded_bytes()).unwrap();
        remove_tree(&dir, b"top").unwrap();
        assert!(!temp.path().join("top").exists());
        remove_tree(&dir, b"top").unwrap();
    }
}
