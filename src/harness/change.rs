//! What was changed.

use std::fmt;
use std::path::{Path, PathBuf};

/// How something differs from what the lowers have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum ChangeKind {
    /// The lowers have nothing of that name.
    Added,
    /// What it holds: the data of a file, the target of a link, the number of a device; or it is of another
    /// type now.
    Modified,
    /// Mode, owner, extended attributes or the time of its last change; of a directory without that time.
    Metadata,
    /// It is not there any more.
    Deleted,
    /// A directory that took the place of one of the lowers, nothing of which shows any more.
    Opaque,
}

/// One name of the union that differs from the lowers.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Change {
    path: PathBuf,
    kind: ChangeKind,
}

impl Change {
    pub(super) fn new(path: PathBuf, kind: ChangeKind) -> Self {
        Self { path, kind }
    }

    /// From the root of the union, which itself is an empty path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How it differs.
    #[must_use]
    pub fn kind(&self) -> ChangeKind {
        self.kind
    }
}

impl fmt::Display for Change {
    /// A letter (`A`, `M`, `m` for metadata, `D`, `O`), a space and the path, the root's as a dot.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let letter = match self.kind {
            ChangeKind::Added => 'A',
            ChangeKind::Modified => 'M',
            ChangeKind::Metadata => 'm',
            ChangeKind::Deleted => 'D',
            ChangeKind::Opaque => 'O',
        };
        let root = self.path.as_os_str().is_empty();
        let path = if root { Path::new(".") } else { &self.path };
        write!(f, "{letter} {}", path.display())
    }
}

/// The changes of [`Union::upper_changes`](super::Union::upper_changes), ordered by path, a directory before
/// what is in it.
#[derive(Clone, Debug, Default)]
pub struct Changes(std::vec::IntoIter<Change>);

impl Changes {
    pub(super) fn new(all: Vec<Change>) -> Self {
        Self(all.into_iter())
    }
}

impl Iterator for Changes {
    type Item = Change;

    fn next(&mut self) -> Option<Change> {
        self.0.next()
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.0.size_hint()
    }
}

impl ExactSizeIterator for Changes {}

impl DoubleEndedIterator for Changes {
    fn next_back(&mut self) -> Option<Change> {
        self.0.next_back()
    }
}
