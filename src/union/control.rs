//! What a running mount is asked to do by `unionfs plink`: ioctls on its root directory.

use crate::sys::{Errno, Result, ioctl};

use super::{ROOT, Union};

impl Union {
    /// True for an ioctl that is for us.
    pub fn is_control(&self, id: u64, command: u32) -> bool {
        id == ROOT
            && matches!(
                command,
                ioctl::PLINK_FLUSH | ioctl::PLINK_LIST | ioctl::UPGRADE
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
            _ => return Err(Errno::NOTTY),
        }
        Ok(answer.iter().flat_map(|n| n.to_ne_bytes()).collect())
    }
}
