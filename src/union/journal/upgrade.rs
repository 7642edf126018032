//! The journal's part in an upgrade: the request for one comes to a server, which ends by it. The
//! kernel sends it again to the next one, which answers it.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::sys::ioctl::CONTROL_WORDS;
use crate::sys::{Errno, Result, handover};

use super::{Journal, head, message};

impl Journal {
    /// Has the program at this path, which ends with a NUL byte, serve the mount. This process is
    /// ended if all goes well.
    ///
    /// # Errors
    /// EINVAL for a path that does not end or is not absolute; otherwise that nobody keeps the mount.
    pub fn upgrade(&self, path: &[u8]) -> Result<()> {
        let ends = path.contains(&0) && path.len() <= CONTROL_WORDS * 8;
        if !ends || !path.starts_with(b"/") {
            return Err(Errno::INVAL);
        }
        self.put_bytes(head::PROGRAM, path);
        handover::send(&self.keeper, [message::UPGRADE, 0, 0], None)
    }

    /// How the upgrade went that the last server was asked for.
    pub fn upgraded(&self) -> Result<()> {
        match self.words[head::UPGRADED].load(Ordering::Acquire) {
            0 => Ok(()),
            raw => Err(Errno::from_raw_os_error(raw as i32)),
        }
    }
}

/// The path of the program that is to serve.
pub(crate) fn program(words: &[AtomicU64]) -> Vec<u8> {
    let words = words.iter().skip(head::PROGRAM).take(CONTROL_WORDS);
    let bytes = words.flat_map(|w| w.load(Ordering::Acquire).to_ne_bytes());
    bytes.take_while(|&byte| byte != 0).collect()
}

/// Notes what became of the upgrade.
pub(crate) fn set_upgraded(words: &[AtomicU64], result: Result<()>) {
    let raw = result.map_or_else(|e| u64::from(e.raw_os_error().unsigned_abs()), |()| 0);
    words[head::UPGRADED].store(raw, Ordering::Release);
}
