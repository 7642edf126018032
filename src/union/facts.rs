//! What is known not to be on an object, so that no one has to look.
//!
//! The kernel asks each new file for capabilities and ACLs, and each object that has none is asked
//! again whenever the kernel has forgotten it.

use crate::sys::sync::atomic::{AtomicU32, Ordering};

/// The data are the object's own, as it carries no metacopy record; unless a copy-up has left them
/// where they were since, which the inode knows.
const WHOLE: u32 = 1;
/// Attributes that are often asked for, each with its bit.
const ATTRS: [(&[u8], u32); 3] = [
    (b"security.capability", 2),
    (b"system.posix_acl_access", 4),
    (DEFAULT_ACL, 8),
];
const ALL_ATTRS: u32 = 2 | 4 | 8;
/// A count of changes is above the bits.
const CHANGE: u32 = 16;

/// What new objects inherit their ACLs from.
pub(super) const DEFAULT_ACL: &[u8] = b"system.posix_acl_default";

/// See the module text.
#[derive(Debug, Default)]
pub(crate) struct Facts(AtomicU32);

/// The state in which an attribute was looked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen(u32);

impl Facts {
    /// True when no metacopy record was found.
    pub fn is_whole(&self) -> bool {
        self.0.load(Ordering::Acquire) & WHOLE != 0
    }

    /// Says whether there is none.
    pub fn set_whole(&self, whole: bool) {
        if whole {
            self.0.fetch_or(WHOLE, Ordering::AcqRel);
        } else {
            self.0.fetch_and(!WHOLE, Ordering::AcqRel);
        }
    }

    /// Says of a file that was just made that it has nothing but perhaps ACLs from its directory.
    pub fn set_new(&self, inherits_acls: bool) {
        let acls = if inherits_acls { 0 } else { 4 | 8 };
        self.0.fetch_or(WHOLE | 2 | acls, Ordering::AcqRel);
    }

    /// True when the object is known to lack an attribute.
    pub fn lacks(&self, attr: &[u8]) -> bool {
        bit_of(attr).is_some_and(|bit| self.0.load(Ordering::Acquire) & bit != 0)
    }

    /// To be called before an attribute is looked for.
    pub fn look(&self) -> Seen {
        Seen(self.0.load(Ordering::Acquire))
    }

    /// Says that an attribute was not there, unless attributes have been set since.
    pub fn set_lacking(&self, attr: &[u8], seen: Seen) {
        if let Some(bit) = bit_of(attr) {
            let changes = |value: u32| value / CHANGE;
            let add = |now| (changes(now) == changes(seen.0)).then_some(now | bit);
            let _ = self
                .0
                .fetch_update(Ordering::AcqRel, Ordering::Acquire, add);
        }
    }

    /// An attribute is about to be set, or was.
    pub fn attr_changes(&self) {
        let change = |now: u32| Some((now & !ALL_ATTRS).wrapping_add(CHANGE));
        let _ = self
            .0
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, change);
    }
}

fn bit_of(attr: &[u8]) -> Option<u32> {
    let found = ATTRS.iter().find(|(name, _)| *name == attr);
    found.map(|(_, bit)| *bit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_set_while_someone_looks_is_not_forgotten() {
        let facts = Facts::default();
        let seen = facts.look();
        facts.set_lacking(DEFAULT_ACL, seen);
        assert!(facts.lacks(DEFAULT_ACL) && !facts.lacks(b"security.capability"));
        let seen = facts.look();
        facts.attr_changes();
        facts.set_lacking(DEFAULT_ACL, seen);
        assert!(!facts.lacks(DEFAULT_ACL));
        facts.set_new(false);
        facts.attr_changes();
        assert!(facts.is_whole() && !facts.lacks(b"security.capability"));
        facts.set_new(true);
        assert!(facts.lacks(b"security.capability") && !facts.lacks(DEFAULT_ACL));
        assert!(!facts.lacks(b"user.any"));
    }
}
