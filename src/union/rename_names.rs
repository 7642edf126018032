//! What is known of names after a rename.

use super::names::Info;
use super::rank::NamesWrite;
use super::rename::Side;

/// What is known of a name that was moved away: nothing, or how it is hidden.
pub(super) type Left = Option<Info>;

/// The names of both directories of a rename, written.
pub(super) struct BothNames<'a> {
    from: &'a NamesWrite<'a>,
    to: &'a NamesWrite<'a>,
}

impl<'a> BothNames<'a> {
    pub fn new(
        first: &'a NamesWrite<'a>, second: Option<&'a NamesWrite<'a>>, first_is_from: bool,
    ) -> Self {
        let second = second.unwrap_or(first);
        let (from, to) = if first_is_from {
            (first, second)
        } else {
            (second, first)
        };
        Self { from, to }
    }

    pub fn unchanged(&self) {
        self.from.unchanged();
        self.to.unchanged();
    }

    pub fn unsettle(&self) {
        self.from.unsettle();
        self.to.unsettle();
    }

    /// Says that an object has moved.
    pub fn note(&self, src: &Side<'_>, dst: &Side<'_>, left: Left) {
        let (Some(found), Some(inode)) = (&src.found, &src.inode) else {
            return;
        };
        let moved = Info::in_upper(found.stat.kind(), inode.ino(), dst.in_lower);
        self.from.note(src.name.bytes(), |_| left);
        self.to.note(dst.name.bytes(), |_| Some(moved));
    }
}
