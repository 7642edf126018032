//! Looking for the next request for a moment before sleeping until there is one.
//!
//! A client that works through files sends its next request some microseconds after the reply to the
//! last one. Sleeping meanwhile costs more than those: the client has to wake the thread, and its
//! processor has to come back. Measured on a virtual machine with two processors, open, read and close
//! took 45 us with a thread that sleeps at once and 30 us with one that looks before; create, write and
//! close 165 and 120 us; unlink 91 and 61 us; untar of a Debian root 2.1 and 1.5 s.
//!
//! Looking in vain takes the processor from others, so who had no luck gives up for a while: a compile
//! that keeps all processors busy takes as long as without.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use crate::sys;

/// For how long to look. 50 and 100 us cost more of the daemon's time and gained nothing that can be measured.
const MOMENT: Duration = Duration::from_micros(20);
/// As much luck as counts.
const MOST: u8 = 8;
/// What one time in vain costs of it.
const IN_VAIN: u8 = 3;
/// Without luck, looks again after so many requests.
const PAUSE: u8 = 16;

/// Whether it is worth it, for one thread.
#[derive(Debug)]
pub(super) struct Luck {
    luck: u8,
    paused: u8,
    /// There is no other processor, on which a client could be sending a request meanwhile.
    alone: bool,
}

impl Luck {
    pub fn new() -> Self {
        Self {
            luck: MOST / 2,
            paused: 0,
            alone: std::thread::available_parallelism().is_ok_and(|n| n.get() == 1),
        }
    }

    /// Looks for a request on the connection, when that has been worth it.
    pub fn linger(&mut self, connection: &OwnedFd) {
        if !self.alone && self.tries() {
            self.learn(comes(connection));
        }
    }

    fn tries(&mut self) -> bool {
        if self.luck > 0 {
            return true;
        }
        self.paused = (self.paused + 1) % PAUSE;
        self.paused == 0
    }

    fn learn(&mut self, came: bool) {
        self.luck = match came {
            true => (self.luck + 1).min(MOST),
            false => self.luck.saturating_sub(IN_VAIN),
        };
    }
}

/// Whether a request comes within the moment.
fn comes(connection: &OwnedFd) -> bool {
    let begin = Instant::now();
    loop {
        if sys::fd::is_readable(connection) {
            return true;
        }
        if begin.elapsed() >= MOMENT {
            return false;
        }
        std::hint::spin_loop();
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn what_is_there_is_seen_and_what_is_not_is_not_waited_for() {
        let (ours, mut other) = std::os::unix::net::UnixStream::pair().unwrap();
        let ours = OwnedFd::from(ours);
        assert!(!comes(&ours));
        other.write_all(b"x").unwrap();
        assert!(comes(&ours));
    }

    #[test]
    fn in_vain_it_is_tried_seldom() {
        let mut luck = Luck::new();
        let mut tried = 0;
        for _ in 0..100 * u32::from(PAUSE) {
            if luck.tries() {
                tried += 1;
                luck.learn(false);
            }
        }
        assert!((90..=110).contains(&tried), "{tried}");
        // It comes back with the first luck, and one time in vain does not end it.
        while !luck.tries() {}
        luck.learn(true);
        for _ in 0..MOST {
            assert!(luck.tries());
            luck.learn(true);
        }
        luck.learn(false);
        assert!(luck.tries());
    }
}
