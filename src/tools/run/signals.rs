//! Waiting for a process, and handing on to it what others tell us.

use std::io;

use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::sys;

/// What is handed on. Stopping and going on again is what the terminal tells all processes at once.
const HANDED_ON: [Signal; 7] = [
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGTERM,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGALRM,
];

/// Signals that wait until they are asked for.
pub(super) struct Signals(SignalFd, SigSet);

impl Signals {
    /// From here on none of them ends this process, nor those that it forks.
    pub fn block() -> io::Result<Self> {
        let mut set = SigSet::empty();
        HANDED_ON.iter().for_each(|signal| set.add(*signal));
        set.add(Signal::SIGCHLD);
        set.thread_block()?;
        let waiting = SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC)?;
        Ok(Self(waiting, set))
    }

    /// Starts what shall not have them blocked, as programs have no reason to think of. Only for the first
    /// process of a namespace, which none of them ends that comes meanwhile.
    pub fn unblocked<T>(&self, start: impl FnOnce() -> T) -> io::Result<T> {
        self.1.thread_unblock()?;
        let started = start();
        self.1.thread_block()?;
        Ok(started)
    }

    /// What came until now: who asks for an end before there is a command does not mean to wait for it.
    pub fn came(&self) -> Option<Signal> {
        while sys::fd::is_readable(&self.0) {
            let info = self.0.read_signal().ok().flatten()?;
            let number = i32::try_from(info.ssi_signo).ok()?;
            let signal = HANDED_ON.into_iter().find(|s| *s as i32 == number);
            if signal.is_some() {
                return signal;
            }
        }
        None
    }

    /// Waits until `process` has ended, and reaps others; returns what a shell would give as its status.
    pub fn wait_for(&self, process: Pid) -> io::Result<u8> {
        loop {
            loop {
                match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                    Ok(WaitStatus::StillAlive) => break,
                    Ok(WaitStatus::Exited(who, status)) if who == process => {
                        return Ok(u8::try_from(status & 0xff).unwrap_or(u8::MAX));
                    }
                    Ok(WaitStatus::Signaled(who, signal, _)) if who == process => {
                        return Ok(128 + u8::try_from(signal as i32).unwrap_or(0));
                    }
                    Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                    Err(e) => return Err(e.into()),
                }
            }
            let Some(info) = self.0.read_signal()? else {
                continue;
            };
            let signal = i32::try_from(info.ssi_signo).ok();
            let signal = signal.and_then(|number| Signal::try_from(number).ok());
            // What the terminal sent, all its processes have got already.
            let is_for_us = info.ssi_code <= 0;
            if let Some(signal) = signal.filter(|s| *s != Signal::SIGCHLD && is_for_us) {
                // It may have ended by now.
                let _ = kill(process, signal);
            }
        }
    }
}
