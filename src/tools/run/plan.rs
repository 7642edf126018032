//! What the view consists of: the mounts of this process, and what becomes of each.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use crate::sys;

/// Directories that the command gets anew, so nothing of them is taken over.
pub(super) const ANEW: [&str; 4] = ["/proc", "/sys", "/dev", "/run"];

/// Kinds of filesystem that hold no files of users.
const NOT_FILES: [&str; 18] = [
    "autofs",
    "binfmt_misc",
    "bpf",
    "cgroup",
    "cgroup2",
    "configfs",
    "debugfs",
    "devpts",
    "devtmpfs",
    "efivarfs",
    "fusectl",
    "mqueue",
    "nsfs",
    "proc",
    "pstore",
    "securityfs",
    "sysfs",
    "tracefs",
];

/// How a mount shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shows {
    /// It takes changes.
    Union,
    /// As it is, with what is mounted below it, but not to be written.
    ReadOnly,
}

/// A mount that the command shall see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Part {
    pub path: PathBuf,
    pub shows: Shows,
}

struct Line {
    id: u64,
    parent: u64,
    path: PathBuf,
    kind: String,
    read_only: bool,
}

/// The mounts below `/` in a mount table (the text of /proc/self/mountinfo), those above others first;
/// `is_file` says which mount points are no directories.
pub(super) fn parts(table: &[u8], is_file: impl Fn(&Path) -> bool) -> Vec<Part> {
    let lines: Vec<Line> = table.split(|&b| b == b'\n').filter_map(read).collect();
    let mut parts: Vec<Part> = Vec::new();
    for line in lines.iter().filter(|line| is_visible(line, &lines)) {
        let path = &line.path;
        if path == Path::new("/") || ANEW.iter().any(|anew| path.starts_with(anew)) {
            continue;
        }
        // A daemon of somebody may not let us in, or not answer.
        let foreign = line.kind == "fuse" || line.kind.starts_with("fuse.");
        let plain = !line.read_only && !foreign && !NOT_FILES.contains(&line.kind.as_str());
        parts.push(Part {
            path: path.clone(),
            shows: match plain && !is_file(path) {
                true => Shows::Union,
                false => Shows::ReadOnly,
            },
        });
    }
    parts.sort_by(|a, b| a.path.cmp(&b.path));
    let mut covered: Option<PathBuf> = None;
    parts.retain(|part| {
        if covered
            .as_ref()
            .is_some_and(|above| part.path.starts_with(above))
        {
            return false;
        }
        if part.shows == Shows::ReadOnly {
            covered = Some(part.path.clone());
        }
        true
    });
    parts
}

fn read(line: &[u8]) -> Option<Line> {
    let fields: Vec<&[u8]> = line.split(|&b| b == b' ').collect();
    let text = |at: usize| std::str::from_utf8(fields.get(at)?).ok();
    let dash = fields.iter().position(|field| *field == b"-")?;
    let read_only = |at| Some(text(at)?.split(',').any(|word| word == "ro"));
    Some(Line {
        id: text(0)?.parse().ok()?,
        parent: text(1)?.parse().ok()?,
        path: PathBuf::from(OsString::from_vec(sys::mount::unescape(fields.get(4)?))),
        kind: text(dash + 1)?.to_owned(),
        read_only: read_only(5)? || read_only(dash + 3).unwrap_or(false),
    })
}

/// Nothing is mounted over it, nor over a directory above it.
fn is_visible(line: &Line, lines: &[Line]) -> bool {
    if lines
        .iter()
        .any(|l| l.parent == line.id && l.path == line.path && l.id != line.id)
    {
        return false;
    }
    let mut line = line;
    // Bounded by the number of mounts, whatever the table says.
    for _ in 0..lines.len() {
        let hides = |other: &&Line| {
            other.parent == line.parent
                && other.id != line.id
                && other.path != line.path
                && line.path.starts_with(&other.path)
        };
        if lines.iter().any(|other| hides(&other)) {
            return false;
        }
        match lines
            .iter()
            .find(|l| l.id == line.parent && l.id != line.id)
        {
            Some(above) => line = above,
            None => return true,
        }
    }
    true
}

/// The directory of a part's upper: its path with dashes, as systemd names units; `@` for the root.
pub(super) fn upper_name(path: &Path) -> OsString {
    let mut name = Vec::new();
    for &byte in path.as_os_str().as_bytes().iter().skip(1) {
        match byte {
            b'/' => name.push(b'-'),
            b'-' | b'\\' | b'@' => name.extend_from_slice(format!("\\x{byte:02x}").as_bytes()),
            byte => name.push(byte),
        }
    }
    match name.is_empty() {
        true => OsString::from("@"),
        false => OsString::from_vec(name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[u8] = b"1 0 8:1 / / rw - ext4 /dev/a rw\n\
        2 1 0:9 / /proc rw - proc none rw\n\
        3 1 8:2 / /home rw - ext4 /dev/b rw\n\
        4 1 0:7 / /mnt rw - fuse.sshfs x rw\n\
        5 4 0:8 / /mnt/in rw - tmpfs x rw\n\
        6 1 7:0 / /snap/x ro - squashfs /dev/loop0 ro\n\
        7 1 8:1 /h /etc/hosts rw - ext4 /dev/a rw\n\
        8 3 0:9 / /home/a/deep rw - tmpfs x rw\n\
        9 3 0:9 / /home/a rw - tmpfs x rw\n\
        10 1 0:9 / /var rw - tmpfs x rw\n\
        11 10 0:9 / /var rw - ext4 x rw\n\
        12 2 0:9 / /proc/sys rw - ext4 x rw\n";

    #[test]
    fn mounts_that_show() {
        let parts = parts(TABLE, |path| path == Path::new("/etc/hosts"));
        let shown: Vec<_> = parts
            .iter()
            .map(|part| (part.path.to_str().unwrap(), part.shows))
            .collect();
        let expected = [
            ("/etc/hosts", Shows::ReadOnly),
            ("/home", Shows::Union),
            ("/home/a", Shows::Union),
            ("/mnt", Shows::ReadOnly),
            ("/snap/x", Shows::ReadOnly),
            ("/var", Shows::Union),
        ];
        assert_eq!(shown, expected);
    }

    #[test]
    fn names_of_uppers() {
        assert_eq!(upper_name(Path::new("/")), "@");
        assert_eq!(upper_name(Path::new("/var/lib-x")), "var-lib\\x2dx");
    }
}
