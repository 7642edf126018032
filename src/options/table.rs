//! Every option that is known, in one table: the parser, `docs/OPTIONS.md`, the man pages and the
//! shell completions are all made from it, so that they cannot differ.

mod aufs;
mod fuse;
mod generic;
mod own;
mod peers;

/// A program or kernel part whose users write an option.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Peer {
    /// This program alone.
    Own,
    /// fuse-overlayfs 1.16 (C).
    FuseOverlayfs1,
    /// fuse-overlayfs 2.0 (Rust).
    FuseOverlayfs2,
    /// unionfs-fuse.
    UnionfsFuse,
    /// The aufs of patched kernels.
    Aufs,
    /// The kernel's overlayfs.
    Overlayfs,
    /// What libfuse and `mount.fuse3` take for every filesystem.
    Libfuse,
    /// mount(8) and fstab.
    Mount,
}

impl Peer {
    /// All of them, in the order of the documents.
    pub const ALL: [Self; 8] = [
        Self::Own,
        Self::FuseOverlayfs1,
        Self::FuseOverlayfs2,
        Self::UnionfsFuse,
        Self::Aufs,
        Self::Overlayfs,
        Self::Libfuse,
        Self::Mount,
    ];

    /// As it is called.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Own => "unionfs",
            Self::FuseOverlayfs1 => "fuse-overlayfs 1.16",
            Self::FuseOverlayfs2 => "fuse-overlayfs 2.0",
            Self::UnionfsFuse => "unionfs-fuse",
            Self::Aufs => "aufs",
            Self::Overlayfs => "overlayfs",
            Self::Libfuse => "libfuse",
            Self::Mount => "mount(8)",
        }
    }
}

/// What becomes of an option.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// It has its effect, or what it asks for is always so.
    Supported,
    /// It is taken and changes nothing; the text says why that is right.
    Accepted,
    /// The mount is refused; the text says why it may not be passed over.
    Refused,
}

impl Status {
    /// As the documents call it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Supported => "supported",
            Self::Accepted => "accepted, no effect",
            Self::Refused => "refused",
        }
    }
}

/// What stands after an option's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Takes {
    /// Nothing: a plain word.
    Nothing,
    /// `=value`, or for the branch options of aufs also `:value`; the text is its syntax.
    Value(&'static str),
    /// Either.
    Maybe(&'static str),
}

/// One option, or a few that mean the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    /// Its spellings; the first is the one to prefer. A last `*` stands for any ending.
    pub names: &'static [&'static str],
    /// What stands after the name.
    pub takes: Takes,
    /// Whose users write it.
    pub peers: &'static [Peer],
    /// What becomes of it.
    pub status: Status,
    /// What it means, or why it has no effect, or why it is refused.
    pub text: &'static str,
    /// As one may write it.
    pub example: &'static str,
}

impl Row {
    /// True when `name` is one of this row's spellings.
    fn has(&self, name: &[u8]) -> bool {
        self.names
            .iter()
            .any(|known| match known.as_bytes().split_last() {
                Some((b'*', start)) => name.starts_with(start),
                _ => name == known.as_bytes(),
            })
    }
}

/// The table, in the order of the documents.
pub fn rows() -> impl Iterator<Item = &'static Row> {
    [
        own::ROWS,
        peers::ROWS,
        aufs::ROWS,
        fuse::ROWS,
        generic::ROWS,
    ]
    .into_iter()
    .flatten()
}

/// The row of an option.
pub(super) fn find(name: &[u8]) -> Option<&'static Row> {
    rows().find(|row| row.has(name))
}

/// How many options of `peer` are supported, accepted and refused.
#[must_use]
pub fn count(peer: Peer) -> [usize; 3] {
    let mut counts = [0; 3];
    for row in rows().filter(|row| row.peers.contains(&peer)) {
        counts[row.status as usize] += row.names.len();
    }
    counts
}
