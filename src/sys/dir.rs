//! Reading directory entries.

use std::mem::MaybeUninit;
use std::os::fd::AsFd;

use rustix::fs::{FileType, RawDir};

use super::{FileKind, Result};

/// One entry as getdents returns it; `kind` is `None` where the filesystem does not tell.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RawEntry<'a> {
    pub name: &'a [u8],
    pub ino: u64,
    pub kind: Option<FileKind>,
}

/// Calls `each` for every entry of an open directory but `.` and `..`, until it fails.
///
/// A read error is returned, never taken for the end: a missed whiteout would bring a file back.
pub(crate) fn for_each_entry(
    dir: impl AsFd, mut each: impl FnMut(RawEntry<'_>) -> Result<()>,
) -> Result<()> {
    let mut buffer: Vec<MaybeUninit<u8>> = vec![MaybeUninit::uninit(); 32 * 1024];
    let mut entries = RawDir::new(dir, &mut buffer);
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            each(RawEntry {
                name,
                ino: entry.ino(),
                kind: kind_of(entry.file_type()),
            })?;
        }
    }
    Ok(())
}

fn kind_of(file_type: FileType) -> Option<FileKind> {
    Some(match file_type {
        FileType::RegularFile => FileKind::Regular,
        FileType::Directory => FileKind::Directory,
        FileType::Symlink => FileKind::Symlink,
        FileType::Fifo => FileKind::Fifo,
        FileType::Socket => FileKind::Socket,
        FileType::CharacterDevice => FileKind::CharDevice,
        FileType::BlockDevice => FileKind::BlockDevice,
        FileType::Unknown => return None,
    })
}
