//! What a running mount is asked by `unionfs plink` and `diff`: ioctls on its root directory.

use std::os::unix::ffi::OsStrExt;

use crate::options::KernelFlags;
use crate::options::ownership::Records;
use crate::sys::{self, Errno, Result, ioctl};

use super::{ROOT, Union};

/// Bits of the first word that tells of a layer, above the 32 of the path's length.
pub(crate) mod layer_flag {
    /// It is the upper.
    pub(crate) const UPPER: u64 = 1 << 32;
    /// Its whiteouts and opaque marks count.
    pub(crate) const WHITEOUTS: u64 = 1 << 33;
    /// Records in `user.*` of where contents are count.
    pub(crate) const USER_RECORDS: u64 = 1 << 34;
    /// Owners are asked to be kept in the `security.*` attribute.
    pub(crate) const SECURITY: u64 = 1 << 35;
    /// Owners are asked to be kept in the `user.*` attribute.
    pub(crate) const USER: u64 = 1 << 36;
    /// Names of linked files part (`noplink`).
    pub(crate) const PARTED: u64 = 1 << 37;
}

/// Words before the path in what is told of a layer: flags and the path's length, device, inode
/// number.
pub(crate) const LAYER_HEAD: usize = 3;
/// Bytes of the path in one answer.
pub(crate) const LAYER_PIECE: usize = 8 * (ioctl::CONTROL_WORDS - LAYER_HEAD);

/// The flags of `kernel` that are about access times, as a number to tell a daemon.
pub(crate) fn access_times_word(kernel: KernelFlags) -> u64 {
    let flags = [
        kernel.noatime,
        kernel.relatime,
        kernel.strictatime,
        kernel.nodiratime,
    ];
    let bits = flags.into_iter().zip(0u32..);
    bits.fold(0, |word, (on, bit)| word | u64::from(on) << bit)
}

/// The flags that a number of [`access_times_word`] stands for; others are not set.
fn access_times_of(word: u64) -> KernelFlags {
    let has = |bit: u32| word >> bit & 1 == 1;
    KernelFlags {
        noatime: has(0),
        relatime: has(1),
        strictatime: has(2),
        nodiratime: has(3),
        ..KernelFlags::default()
    }
}

impl Union {
    /// True for an ioctl that is for us.
    pub fn is_control(&self, id: u64, command: u32) -> bool {
        id == ROOT
            && matches!(
                command,
                ioctl::PLINK_FLUSH
                    | ioctl::PLINK_LIST
                    | ioctl::LAYER
                    | ioctl::UPGRADE
                    | ioctl::TELL
                    | ioctl::ACCESS_TIMES
            )
    }

    /// Carries it out. It may take long.
    ///
    /// # Errors
    /// What [`Self::flush_plinks`] gives.
    pub fn control(&self, command: u32, input: &[u8]) -> Result<Vec<u8>> {
        let mut answer = [0; ioctl::CONTROL_WORDS];
        match command {
            ioctl::PLINK_FLUSH => {
                let flushed = self.flush_plinks()?;
                (answer[0], answer[1]) = (flushed.entries, flushed.kept);
            }
            ioctl::PLINK_LIST => {
                let after = input.first_chunk().map_or(0, |n| u64::from_ne_bytes(*n));
                let more = self.plinks().into_iter().filter(|&number| number > after);
                for (slot, number) in answer.iter_mut().zip(more) {
                    *slot = number;
                }
            }
            ioctl::LAYER => {
                let asked = input.first_chunk().map_or(0, |n| u64::from_ne_bytes(*n));
                return self.tell_layer(asked);
            }
            ioctl::ACCESS_TIMES => {
                let word = input.first_chunk().map_or(0, |n| u64::from_ne_bytes(*n));
                let Some(upper) = &self.layers.upper else {
                    return Err(Errno::ROFS);
                };
                upper.mount.set_access_times(access_times_of(word))?;
            }
            _ => return Err(Errno::NOTTY),
        }
        Ok(answer.iter().flat_map(|n: &u64| n.to_ne_bytes()).collect())
    }
    /// Of layer `asked >> 16` the flags, device, inode number, and piece `asked & 0xffff` of its
    /// path; zeros when there is no such layer.
    fn tell_layer(&self, asked: u64) -> Result<Vec<u8>> {
        let mut answer = vec![0; 8 * ioctl::CONTROL_WORDS];
        let layer = usize::try_from(asked >> 16).unwrap_or(usize::MAX);
        let order = self.layers.order();
        let Some(layer) = order.get(layer).map(|&index| self.layers.get(index)) else {
            return Ok(answer);
        };
        let path = layer.path.as_os_str().as_bytes();
        let is_upper = self.layers.has_upper && asked >> 16 == 0;
        let records = self.owners.asked_records();
        let mut first = path.len() as u64;
        for (holds, flag) in [
            (is_upper, layer_flag::UPPER),
            (layer.whiteouts, layer_flag::WHITEOUTS),
            (self.elsewhere.user_records, layer_flag::USER_RECORDS),
            (records == Records::Security, layer_flag::SECURITY),
            (records == Records::User, layer_flag::USER),
            (!self.plinks.follow(), layer_flag::PARTED),
        ] {
            first |= if holds { flag } else { 0 };
        }
        let stat = sys::stat::fstat(&*layer.root())?;
        for (slot, word) in answer.chunks_exact_mut(8).zip([first, stat.dev, stat.ino]) {
            slot.copy_from_slice(&word.to_ne_bytes());
        }
        let pieces = path.chunks(LAYER_PIECE);
        let piece = usize::try_from(asked & 0xffff).unwrap_or(usize::MAX);
        if let Some(piece) = pieces.into_iter().nth(piece) {
            answer[8 * LAYER_HEAD..][..piece.len()].copy_from_slice(piece);
        }
        Ok(answer)
    }
}
