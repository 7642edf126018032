//! Whether the kernel would read and write the layers' files itself (passthrough).

use std::io;

use fuser::BackingId;

use crate::sys::throwaway::{self, Connection};
use crate::sys::{Errno, cred};
use crate::union::Union;

/// Tries it, on a connection of its own that nobody ever sees: on the mount's own connection it
/// could only be tried after it was asked for, and then it is too late to ask for anything else.
///
/// # Errors
/// Why it cannot be had, in words.
pub(super) fn passthrough(union: &Union) -> Result<(), String> {
    if !cred::is_real_root() {
        return Err("only root of the machine may ask for it".to_owned());
    }
    if union.top_is_stacked() {
        return Err("the first layer is on overlayfs or another stacked filesystem".to_owned());
    }
    let connection = Connection::new().map_err(|e| words("no connection to try it on", &e))?;
    let offer = connection
        .start()
        .map_err(|e| words("the connection to try it on does not start", &e))?;
    if !offer.passthrough {
        return Err("the kernel does not know it (Linux 6.9 and later do)".to_owned());
    }
    let file = throwaway::nameless_file().map_err(|e| words("no file to try it on", &e))?;
    match BackingId::create_raw(connection.device(), &file) {
        Ok(_) => Ok(()),
        Err(e) => Err(refused(&e)),
    }
}

fn words(what: &str, e: &Errno) -> String {
    format!("{what}: {}", io::Error::from(*e))
}

/// Why the kernel does not take a file.
fn refused(e: &io::Error) -> String {
    match e.raw_os_error() {
        Some(libc::EPERM) => "it takes CAP_SYS_ADMIN in the first user namespace".to_owned(),
        Some(libc::ENOTTY | libc::EOPNOTSUPP) => "the kernel was built without it".to_owned(),
        _ => format!("the kernel takes no file for it: {e}"),
    }
}
