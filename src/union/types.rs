//! Values that the core takes and gives. No type of the FUSE library is among them.

use crate::layer::name::NameBuf;
pub use crate::sys::at::SetTime;
use crate::sys::cred::Creds;
use crate::sys::{FileKind, Stat};

/// Attributes of a union object, as stat(2) shows them.
#[derive(Clone, Copy, Debug)]
pub struct Attr {
    /// Inode number: unique within the union.
    pub ino: u64,
    /// How long it all holds.
    pub keep: Keep,
    /// All else; its `dev` and `ino` are those of the real object.
    pub stat: Stat,
}

/// How long attributes may be kept by who got them.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Keep {
    /// Until they are told to have changed.
    Long,
    /// They may change through a mapping of the file that outlives the open file, which nobody
    /// could tell of.
    Short,
    /// They, and the names of the object, may be changed by others without our hearing of it.
    Unwatched,
    /// They change without anybody being told.
    Not,
}

impl Attr {
    /// The file type.
    pub fn kind(&self) -> FileKind {
        self.stat.kind()
    }
}

/// Result of a lookup or of making an object. It counts as one reference of the caller's to the
/// node, to be given back with [`forget`](super::Union::forget).
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// The node by which later calls name the object.
    pub id: u64,
    /// Differs for every object that ever had this id.
    pub generation: u64,
    /// Attributes.
    pub attr: Attr,
}

/// Who calls.
#[derive(Clone, Copy, Debug)]
pub struct Caller {
    /// File-system user id.
    pub uid: u32,
    /// File-system group id.
    pub gid: u32,
    /// Thread id, 0 when unknown.
    pub pid: u32,
}

impl Caller {
    /// With this umask.
    pub(crate) fn creds(self, umask: u32) -> Creds {
        Creds {
            uid: self.uid,
            gid: self.gid,
            umask,
        }
    }
}

/// Attributes to change; `None` leaves as it is.
#[derive(Clone, Copy, Debug, Default)]
pub struct SetAttr {
    /// Permission bits.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Size in bytes.
    pub size: Option<u64>,
    /// Access time.
    pub atime: Option<SetTime>,
    /// Modification time.
    pub mtime: Option<SetTime>,
}

/// What to make.
#[derive(Clone, Copy, Debug)]
pub enum Make<'a> {
    /// A node of the type in `mode`: file, fifo, socket or device.
    Node {
        /// Type and permission bits, before the umask.
        mode: u32,
        /// Device number.
        rdev: u64,
    },
    /// A directory.
    Directory {
        /// Permission bits, before the umask.
        mode: u32,
    },
    /// A symlink.
    Symlink {
        /// Where it points.
        target: &'a [u8],
    },
}

/// How a file is opened: the bits of open(2) that matter to the union.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct OpenMode {
    /// O_WRONLY or O_RDWR.
    pub write: bool,
    /// O_TRUNC.
    pub truncate: bool,
    /// O_APPEND.
    pub append: bool,
}

impl OpenMode {
    /// From the flags of open(2).
    pub fn from_flags(flags: i32) -> Self {
        let write = flags & libc::O_ACCMODE != libc::O_RDONLY;
        Self {
            write,
            truncate: flags & libc::O_TRUNC != 0,
            append: flags & libc::O_APPEND != 0,
        }
    }
}

/// One entry of a merged directory.
#[derive(Clone, Debug)]
pub struct DirEntry {
    /// Name.
    pub name: NameBuf,
    /// Inode number, as stat shows it.
    pub ino: u64,
    /// File type.
    pub kind: FileKind,
    /// Position after this entry: where reading goes on. It holds over rebuilds of the listing.
    pub next: u64,
}

/// Figures of statfs(2).
#[derive(Clone, Copy, Debug)]
pub struct StatFs {
    /// Blocks in all.
    pub blocks: u64,
    /// Free blocks.
    pub bfree: u64,
    /// Free blocks for ordinary users.
    pub bavail: u64,
    /// Inodes in all.
    pub files: u64,
    /// Free inodes.
    pub ffree: u64,
    /// Preferred I/O size in bytes.
    pub bsize: u32,
    /// Longest name in bytes.
    pub namelen: u32,
    /// Unit of the block counts in bytes.
    pub frsize: u32,
}

impl StatFs {
    /// Adds another filesystem's figures, in blocks of this one's size.
    pub(super) fn add(&mut self, other: &Self) {
        let own = u128::from(self.frsize.max(1));
        let scaled = |blocks: u64| {
            let blocks = u128::from(blocks) * u128::from(other.frsize) / own;
            u64::try_from(blocks).unwrap_or(u64::MAX)
        };
        self.blocks = self.blocks.saturating_add(scaled(other.blocks));
        self.bfree = self.bfree.saturating_add(scaled(other.bfree));
        self.bavail = self.bavail.saturating_add(scaled(other.bavail));
        self.files = self.files.saturating_add(other.files);
        self.ffree = self.ffree.saturating_add(other.ffree);
    }
}
