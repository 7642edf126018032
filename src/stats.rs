//! Figures of a running mount: how many requests of each kind the kernel sent.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::sys::ioctl::{self, CONTROL_WORDS};

/// A kind of request, by its number in the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
#[allow(missing_docs)] // The kernel's names; include/uapi/linux/fuse.h explains them.
pub enum Op {
    Lookup = 1,
    Forget = 2,
    Getattr = 3,
    Setattr = 4,
    Readlink = 5,
    Symlink = 6,
    Mknod = 8,
    Mkdir = 9,
    Unlink = 10,
    Rmdir = 11,
    Rename = 12,
    Link = 13,
    Open = 14,
    Read = 15,
    Write = 16,
    Statfs = 17,
    Release = 18,
    Fsync = 20,
    Setxattr = 21,
    Getxattr = 22,
    Listxattr = 23,
    Removexattr = 24,
    Flush = 25,
    Opendir = 27,
    Readdir = 28,
    Fsyncdir = 30,
    Access = 34,
    Create = 35,
    Ioctl = 39,
    Fallocate = 43,
    Readdirplus = 44,
    Lseek = 46,
    CopyFileRange = 47,
}

impl Op {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 33] = [
        Self::Lookup,
        Self::Forget,
        Self::Getattr,
        Self::Setattr,
        Self::Readlink,
        Self::Symlink,
        Self::Mknod,
        Self::Mkdir,
        Self::Unlink,
        Self::Rmdir,
        Self::Rename,
        Self::Link,
        Self::Open,
        Self::Read,
        Self::Write,
        Self::Statfs,
        Self::Release,
        Self::Fsync,
        Self::Setxattr,
        Self::Getxattr,
        Self::Listxattr,
        Self::Removexattr,
        Self::Flush,
        Self::Opendir,
        Self::Readdir,
        Self::Fsyncdir,
        Self::Access,
        Self::Create,
        Self::Ioctl,
        Self::Fallocate,
        Self::Readdirplus,
        Self::Lseek,
        Self::CopyFileRange,
    ];

    /// Its name in small letters.
    #[must_use]
    pub fn name(self) -> String {
        format!("{self:?}").to_ascii_lowercase()
    }
}

/// Numbers of the protocol that there is room for.
pub(crate) const KINDS: usize = CONTROL_WORDS;

/// Buckets of a histogram of times. The first is for what takes up to [`FIRST_NS`], each further one for up
/// to twice as much as the one before; the last for all that takes longer.
pub(crate) const BUCKETS: usize = 26;
const FIRST_NS: u64 = 1 << 10;

/// The bucket for a time in nanoseconds.
pub(crate) fn bucket_of(ns: u64) -> usize {
    let doublings = u64::BITS - (ns.saturating_sub(1) / FIRST_NS).leading_zeros();
    (doublings as usize).min(BUCKETS - 1)
}

/// The longest time in a bucket, in seconds; none in the last.
pub(crate) fn limit_of(bucket: usize) -> Option<f64> {
    #[allow(clippy::cast_precision_loss)] // a power of two
    let limit = || (FIRST_NS << bucket) as f64 / 1e9;
    (bucket + 1 < BUCKETS).then(limit)
}

/// Counters, one for each kind. Counting is one addition that orders nothing.
#[derive(Debug)]
pub(crate) struct Counts([AtomicU64; KINDS]);

impl Default for Counts {
    fn default() -> Self {
        Self([const { AtomicU64::new(0) }; KINDS])
    }
}

impl Counts {
    /// One more.
    pub fn add(&self, op: Op) {
        self.0[op as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// How many there were.
    pub fn of(&self, op: Op) -> u64 {
        self.0[op as usize].load(Ordering::Relaxed)
    }

    /// The answer to [`ioctl::REQUESTS`].
    pub fn bytes(&self) -> Vec<u8> {
        let words = self.0.iter().map(|n| n.load(Ordering::Relaxed));
        words.flat_map(u64::to_ne_bytes).collect()
    }
}

/// How many requests of each kind came since the mount whose root directory is open as `root`. The
/// request that asks for it is not counted.
///
/// # Errors
/// ENOTTY or EINVAL when it is the root of no union, EPERM for those who may not know.
pub fn requests(root: &File) -> io::Result<Vec<(Op, u64)>> {
    let words = ioctl::control(root.as_fd(), ioctl::REQUESTS, 0)?;
    let count = |op: Op| (op, words[op as usize]);
    Ok(Op::ALL.into_iter().map(count).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_time_has_its_bucket() {
        assert_eq!(
            [0, 1, 1024, 1025, 2048, 2049].map(bucket_of),
            [0, 0, 0, 1, 1, 2]
        );
        assert_eq!(bucket_of(u64::MAX), BUCKETS - 1);
        for bucket in 0..BUCKETS - 1 {
            assert_eq!(bucket_of(FIRST_NS << bucket), bucket);
            assert!(limit_of(bucket).is_some());
        }
        assert_eq!(limit_of(BUCKETS - 1), None);
    }

    #[test]
    fn each_kind_has_a_place_of_its_own() {
        assert!(Op::ALL.is_sorted_by(|a, b| (*a as u8) < (*b as u8)));
        let counts = Counts::default();
        for op in Op::ALL {
            counts.add(op);
        }
        let ones = counts.bytes().chunks(8).filter(|word| word[0] == 1).count();
        assert_eq!(ones, Op::ALL.len());
    }
}
