//! Operations on a tree.

use rustix::fs::FileType;
use rustix::io::Errno;

use crate::model::Time;
use crate::tree::{Names, show};

/// Who calls.
#[derive(Clone, Copy, Debug)]
pub struct Who {
    pub uid: u32,
    pub gid: u32,
    pub umask: u32,
}

pub const ROOT: Who = Who {
    uid: 0,
    gid: 0,
    umask: 0o022,
};

/// A time argument of utimensat(2).
#[derive(Clone, Copy, Debug)]
pub enum SetTo {
    Omit,
    Now,
    At(Time),
}

/// What is done to one object.
#[derive(Clone, Debug)]
pub enum Action {
    Stat,
    Read {
        offset: u64,
        len: usize,
    },
    Seek {
        offset: u64,
        hole: bool,
    },
    Write {
        offset: u64,
        data: Vec<u8>,
    },
    Append {
        data: Vec<u8>,
    },
    Truncate {
        size: u64,
    },
    /// truncate(2), which opens nothing.
    #[cfg_attr(not(feature = "faults"), expect(dead_code))] // Only scenes have it.
    Cut {
        size: u64,
    },
    /// open(2) with O_TRUNC.
    OpenTruncate,
    Chmod {
        mode: u32,
    },
    Chown {
        uid: Option<u32>,
        gid: Option<u32>,
    },
    Times {
        atime: SetTo,
        mtime: SetTo,
    },
    SetXattr {
        attr: &'static str,
        value: Vec<u8>,
        flags: u32,
    },
    RemoveXattr {
        attr: &'static str,
    },
    GetXattr {
        attr: &'static str,
    },
    Allocate {
        mode: u32,
        offset: u64,
        len: u64,
    },
    Sync {
        data_only: bool,
    },
}

impl Action {
    /// The attribute it is about.
    pub fn attr(&self) -> Option<&'static str> {
        match self {
            Self::SetXattr { attr, .. } | Self::RemoveXattr { attr } | Self::GetXattr { attr } => {
                Some(attr)
            }
            _ => None,
        }
    }
}

impl Action {
    /// True for what needs an open file.
    pub fn on_data(&self) -> bool {
        matches!(
            self,
            Self::Read { .. }
                | Self::Seek { .. }
                | Self::Write { .. }
                | Self::Append { .. }
                | Self::Truncate { .. }
                | Self::OpenTruncate
                | Self::Allocate { .. }
                | Self::Sync { .. }
        )
    }
}

/// An object: by path, or one that is kept open.
#[derive(Clone, Debug)]
pub enum Object {
    Path(Names),
    Kept(usize),
}

/// A concrete operation.
#[derive(Clone, Debug)]
pub enum Do {
    Create {
        path: Names,
        mode: u32,
        exclusive: bool,
        data: Vec<u8>,
    },
    Mkdir {
        path: Names,
        mode: u32,
    },
    Mknod {
        path: Names,
        kind: FileType,
        mode: u32,
        rdev: u64,
    },
    Symlink {
        path: Names,
        target: Vec<u8>,
    },
    Unlink {
        path: Names,
    },
    Rmdir {
        path: Names,
    },
    Rename {
        from: Names,
        to: Names,
        flags: u32,
    },
    Link {
        from: Object,
        to: Names,
    },
    On {
        object: Object,
        action: Action,
    },
    CopyRange {
        from: Object,
        from_offset: u64,
        to: Object,
        to_offset: u64,
        len: u64,
    },
    /// Opens an object and keeps it open.
    Keep {
        path: Names,
    },
    /// Closes a kept object.
    Close {
        kept: usize,
    },
    /// The kernel forgets all but what is kept.
    Forget,
    /// Every name gets its own place in the upper.
    Flush,
    /// A fresh union over the same layers.
    Remount,
}

/// What an operation gave.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Outcome {
    Done,
    Bytes(Vec<u8>),
    Number(u64),
}

pub type Result<T = Outcome> = std::result::Result<T, Errno>;

/// One side of the comparison.
pub trait Side {
    /// Does one operation.
    fn run(&mut self, who: Who, what: &Do) -> Result;
}

/// An operation on one line.
pub fn describe(who: Who, what: &Do) -> String {
    let object = |o: &Object| match o {
        Object::Path(path) => show(path),
        Object::Kept(n) => format!("kept#{n}"),
    };
    let text = match what {
        Do::Create {
            path,
            mode,
            exclusive,
            data,
        } => {
            format!(
                "create {} {mode:o} excl={exclusive} len={}",
                show(path),
                data.len()
            )
        }
        Do::Mkdir { path, mode } => format!("mkdir {} {mode:o}", show(path)),
        Do::Mknod {
            path,
            kind,
            mode,
            rdev,
        } => {
            format!("mknod {} {kind:?} {mode:o} {rdev:x}", show(path))
        }
        Do::Symlink { path, target } => format!("symlink {} len={}", show(path), target.len()),
        Do::Unlink { path } => format!("unlink {}", show(path)),
        Do::Rmdir { path } => format!("rmdir {}", show(path)),
        Do::Rename { from, to, flags } => format!("rename {} {} {flags}", show(from), show(to)),
        Do::Link { from, to } => format!("link {} {}", object(from), show(to)),
        Do::On { object: o, action } => format!("{action:?} on {}", object(o)),
        Do::CopyRange { from, to, .. } => format!("copy_range {} {}", object(from), object(to)),
        Do::Keep { path } => format!("keep {}", show(path)),
        other => format!("{other:?}"),
    };
    let mut text: String = text.chars().take(160).collect();
    text.push_str(&format!(
        " by {}:{} umask {:o}",
        who.uid, who.gid, who.umask
    ));
    text
}
