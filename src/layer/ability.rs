//! What this process may do on the upper: tried out once at the mount, on a file without a name.
//!
//! Without privilege some things are not possible (docs/SEMANTICS.md says what happens then).
//! Capabilities tell only half of it: the filesystem has a say too (no attributes, no owners, a
//! root who is no root over the network).

use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use crate::options::WhiteoutForm;
use crate::sys::{self, Errno, Result};

use super::upper::{Temp, Upper};

/// Attributes of no meaning; they go with the file they are tried on.
const TRIED: [&[u8]; 2] = [b"trusted.unionfs.try", b"user.unionfs.try"];

/// What can be done on the upper.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[allow(clippy::struct_excessive_bools)]
pub(crate) struct Abilities {
    /// Objects can be made for other users.
    pub other_callers: bool,
    /// Objects can be given to other users.
    pub other_owners: bool,
    /// Device nodes can be made.
    pub devices: bool,
    /// `trusted.*` attributes can be written.
    pub trusted: bool,
    /// `user.*` attributes can be written.
    pub user: bool,
    /// Files can have several names.
    pub links: bool,
}

impl Abilities {
    /// Tries what can be tried on `upper` without leaving a trace.
    ///
    /// # Errors
    /// When not even a temporary file can be made: then no change could be taken either.
    pub fn find_out(upper: &Upper) -> Result<Self> {
        let (file, temp) = upper.temp_file(0o600)?;
        let fd = file.as_fd();
        let own = sys::cred::own_uid();
        // Any other id does that is mapped here; where only one is, there is nobody else.
        let other = own ^ 1;
        let can = |attr| sys::xattr::set(fd, b"", attr, b"y", 0).is_ok();
        Ok(Self {
            other_callers: sys::cred::can_switch(),
            devices: sys::cred::can_make_devices(),
            trusted: can(TRIED[0]),
            user: can(TRIED[1]),
            // A file without a name gets its first one by a link, so there are links.
            links: temp.is_none_or(|temp| can_link(upper, &temp)),
            // Last, as then it is another's file.
            other_owners: sys::at::chown_at(fd, b"", Some(other), Some(other)).is_ok(),
        })
    }

    /// The form of whiteouts for this upper: the one asked for, or `.wh.` files where marks of the
    /// overlay form cannot be written.
    pub fn form(self, upper: &Upper, asked: WhiteoutForm, path: &Path) -> WhiteoutForm {
        let lacking = match asked {
            WhiteoutForm::Aufs => return asked,
            WhiteoutForm::Overlay if !(self.trusted || self.user) => "attributes",
            WhiteoutForm::Overlay => match upper.temp(make_whiteout) {
                Ok(_) => return asked,
                Err(_) => "whiteout devices",
            },
        };
        tracing::warn!(
            "upperdir={}: {lacking} cannot be made here: .wh. files are written instead",
            path.display()
        );
        WhiteoutForm::Aufs
    }

    /// What is not possible, in words.
    pub fn missing(self) -> Vec<&'static str> {
        [
            (self.other_callers, "new objects for other users"),
            (self.other_owners, "chown to other users"),
            (self.devices, "device nodes"),
            (self.trusted, "trusted attributes"),
            (self.user, "user attributes"),
            (self.links, "hard links"),
        ]
        .into_iter()
        .filter_map(|(can, what)| (!can).then_some(what))
        .collect()
    }

    /// Tells the log, once, what is not possible.
    pub fn report(self, path: &Path) {
        let mut missing = self.missing();
        // They are told below.
        missing.retain(|what| *what != "hard links");
        if !missing.is_empty() {
            let what = missing.join(", ");
            tracing::info!("upperdir={}: not possible here: {what}", path.display());
        }
        if !self.links {
            tracing::warn!(
                "upperdir={}: no hard links can be made here: names of one lower file part",
                path.display()
            );
        }
        if !(self.trusted || self.user) {
            tracing::warn!(
                "upperdir={}: no attributes can be written here: inode numbers of copied \
                 directories change at the next mount",
                path.display()
            );
        }
    }
}

/// False only where the filesystem has no links; that one fails for want of space says nothing.
fn can_link(upper: &Upper, file: &Temp) -> bool {
    let linked = upper.temp(|dir, name| sys::at::link_at(file.dir(), file.name(), dir, name));
    !matches!(
        linked,
        Err(Errno::PERM | Errno::OPNOTSUPP | Errno::NOSYS | Errno::MLINK)
    )
}

fn make_whiteout(dir: BorrowedFd<'_>, name: &[u8]) -> Result<()> {
    sys::at::mknod_at(dir, name, libc::S_IFCHR, 0)
}

/// Writes a record of ours under the first of two names that may be used; OPNOTSUPP or what else
/// the second gave when neither may.
pub(crate) fn set_record(
    dir: BorrowedFd<'_>, entry: &[u8], attrs: [&[u8]; 2], value: &[u8],
) -> Result<()> {
    // Asked for each object, whatever the upper as a whole allows: user attributes are for files
    // and directories only.
    match sys::xattr::set(dir, entry, attrs[0], value, 0) {
        Err(Errno::PERM | Errno::OPNOTSUPP | Errno::ACCESS) => {
            sys::xattr::set(dir, entry, attrs[1], value, 0)
        }
        result => result,
    }
}
