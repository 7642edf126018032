//! The journal's part in an upgrade: the request for one comes to a server, which ends by it. The
//! kernel sends it again to the next one, which answers it when the keeper has said how it went.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::sys::ioctl::CONTROL_WORDS;
use crate::sys::{Errno, Result, handover};

use super::{Journal, head, message};

/// In [`head::UPGRADED`]: asked for, and the keeper does not know yet.
const ASKED: u64 = u64::MAX;
/// The keeper is at it.
const UNDER_WAY: u64 = u64::MAX - 1;

impl Journal {
    /// Has the program at this path, which ends with a NUL byte, serve the mount. This process is
    /// ended if all goes well.
    ///
    /// # Errors
    /// EINVAL for a path that does not end or is not absolute; EBUSY when there is an upgrade already,
    /// unless this is the request for it, sent again; otherwise that nobody keeps the mount.
    pub fn upgrade(&self, path: &[u8], again: bool) -> Result<()> {
        let ends = path.contains(&0) && path.len() <= CONTROL_WORDS * 8;
        if !ends || !path.starts_with(b"/") {
            return Err(Errno::INVAL);
        }
        let state = &self.words[head::UPGRADED];
        let free = |now| (again || ![ASKED, UNDER_WAY].contains(&now)).then_some(ASKED);
        let before = state
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, free)
            .map_err(|_| Errno::BUSY)?;
        self.put_bytes(head::PROGRAM, path);
        let sent = handover::send(&self.keeper, [message::UPGRADE, 0, 0], None);
        if sent.is_err() {
            let settled = if before == ASKED { 0 } else { before };
            state.store(settled, Ordering::Release);
        }
        sent
    }

    /// True when the last server was asked for an upgrade, and ended before it had passed that on.
    pub fn is_upgrade_lost(&self) -> bool {
        self.words[head::UPGRADED].load(Ordering::Acquire) == ASKED
    }

    /// How the upgrade went that the last server was asked for; `None` while that is not known.
    pub fn upgraded(&self) -> Option<Result<()>> {
        match self.words[head::UPGRADED].load(Ordering::Acquire) {
            ASKED | UNDER_WAY => None,
            0 => Some(Ok(())),
            raw => Some(Err(Errno::from_raw_os_error(raw as i32))),
        }
    }
}

/// The path of the program that is to serve.
pub(crate) fn program(words: &[AtomicU64]) -> Vec<u8> {
    let words = words.iter().skip(head::PROGRAM).take(CONTROL_WORDS);
    let bytes = words.flat_map(|w| w.load(Ordering::Acquire).to_ne_bytes());
    bytes.take_while(|&byte| byte != 0).collect()
}

/// Notes that the keeper is at it.
pub(crate) fn begin_upgrade(words: &[AtomicU64]) {
    words[head::UPGRADED].store(UNDER_WAY, Ordering::Release);
}

/// Notes what became of the upgrade, unless that is known already.
pub(crate) fn end_upgrade(words: &[AtomicU64], result: Result<()>) {
    let raw = result.map_or_else(|e| u64::from(e.raw_os_error().unsigned_abs()), |()| 0);
    let order = (Ordering::AcqRel, Ordering::Acquire);
    let _ = words[head::UPGRADED].compare_exchange(UNDER_WAY, raw, order.0, order.1);
}
