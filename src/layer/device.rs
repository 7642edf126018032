//! Directories that come to where a whiteout device stands: the two change places, or, where the
//! filesystem cannot do that, a whiteout file stands in for the device until the directory is there.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::RenameFlags;

use crate::sys::{self, Errno, Result};

use super::name;
use super::upper::{Temp, Upper, move_to};

impl Temp {
    /// Moves a directory that is opaque to where a whiteout device stands; see
    /// [`Upper::replace_device`].
    pub fn publish_over_device(
        mut self, upper: &Upper, parent: BorrowedFd<'_>, name: &[u8],
    ) -> Result<()> {
        let changed_places =
            upper.replace_device((self.dir.as_fd(), &self.name), (parent, name))?;
        self.published = !changed_places;
        Ok(())
    }
}

impl Upper {
    /// Moves the directory `from`, which is opaque, to where a whiteout device stands. Returns whether
    /// they changed places; where the filesystem cannot do that, the device is gone.
    pub fn replace_device(
        &self, from: (BorrowedFd<'_>, &[u8]), to: (BorrowedFd<'_>, &[u8]),
    ) -> Result<bool> {
        match move_to(from, to, RenameFlags::EXCHANGE) {
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP)
                if name::whiteout_of(to.1).is_some() => {}
            result => return result.map(|()| true),
        }
        self.device_to_marker(to.0, to.1)?;
        if let Err(e) = move_to(from, to, RenameFlags::empty()) {
            self.marker_to_device(to.0, to.1);
            return Err(e);
        }
        if let Err(e) = self.remove_marker(to.0, to.1) {
            // The directory counts as opaque, which it is.
            tracing::warn!("a whiteout beside a directory could not be removed: {e}");
        }
        Ok(false)
    }

    /// Puts the whiteout file beside `name` in the place of the whiteout device there, for the moment in
    /// which a directory comes.
    pub fn device_to_marker(&self, parent: BorrowedFd<'_>, name: &[u8]) -> Result<()> {
        self.write_marker_beside(parent, name)?;
        sys::at::unlink_at(parent, name).inspect_err(|_| {
            let _ = self.remove_marker(parent, name);
        })
    }

    /// Takes back what [`Self::device_to_marker`] did. The file hides as well, so a failure is only untidy.
    pub fn marker_to_device(&self, parent: BorrowedFd<'_>, name: &[u8]) {
        if let Err(e) = self.write_device(parent, name) {
            tracing::warn!("a whiteout file could not be replaced by a device: {e}");
        }
    }
}
