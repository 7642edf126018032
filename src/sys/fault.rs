//! Fault points: one before and one after every call that changes something on disk.
//!
//! All such calls of this layer go through [`change`]. Without the feature `faults`, which only tests
//! turn on, it is the call and nothing else. With it, a test says what happens at which point.

/// Makes a call that changes something on disk; `call` is its name.
#[cfg(not(feature = "faults"))]
#[inline(always)]
pub(super) fn change<T>(
    _call: &'static str, make: impl FnOnce() -> super::Result<T>,
) -> super::Result<T> {
    make()
}

#[cfg(feature = "faults")]
pub(super) use points::change;

/// How tests choose.
#[cfg(feature = "faults")]
pub mod points {
    use std::cell::RefCell;
    use std::ffi::OsString;
    use std::sync::LazyLock;

    use crate::sys::{Errno, Result};

    /// What happens at a point.
    #[derive(Clone, Copy, Debug, Eq, PartialEq)]
    pub enum Fault {
        /// The call fails. Before it, nothing was done; after it, its effect is there.
        Fail(Errno),
        /// Nothing that this thread does from here on has an effect on disk: what is there then is what
        /// a process leaves that is killed here.
        End,
        /// The process is killed.
        Kill,
    }

    /// What this thread meets, and has met.
    #[derive(Debug)]
    struct Watch {
        fault: Option<(u32, Fault)>,
        ended: bool,
        /// The calls met; each has two points.
        calls: Vec<&'static str>,
    }

    // The union's core does its work in the thread that calls it, so each thread of a test has points
    // of its own, and others are not disturbed.
    thread_local! {
        static WATCH: RefCell<Option<Watch>> = const { RefCell::new(None) };
    }

    /// Counts this thread's points from now on. The `n`-th, from 0, meets the fault: `2 * k` is before
    /// the call `k`, the next one after it.
    pub fn watch(fault: Option<(u32, Fault)>) {
        let watch = Watch {
            fault,
            ended: false,
            calls: Vec::new(),
        };
        WATCH.set(Some(watch));
    }

    /// Stops counting; returns the calls that were met, in their order. After [`Fault::End`] calls have
    /// effects again.
    pub fn unwatch() -> Vec<&'static str> {
        WATCH.take().map(|watch| watch.calls).unwrap_or_default()
    }

    /// Whether this thread has met [`Fault::End`] since it began to count.
    pub fn has_ended() -> bool {
        WATCH.with_borrow(|watch| watch.as_ref().is_some_and(|watch| watch.ended))
    }

    /// Panics if the file that the environment names (`UNIONFS_PANIC_AT`) has this name in it: tests of a
    /// daemon say so where a defect is.
    pub fn panic_if_asked(name: &str) {
        static ASKED: LazyLock<Option<OsString>> =
            LazyLock::new(|| std::env::var_os("UNIONFS_PANIC_AT"));
        let Some(file) = &*ASKED else { return };
        let is_it = std::fs::read(file).is_ok_and(|text| text == name.as_bytes());
        assert!(!is_it, "a test asked for this panic: {name}");
    }

    /// Makes a call that changes something on disk; `call` is its name.
    pub(in crate::sys) fn change<T>(
        call: &'static str, make: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        panic_if_asked(call);
        let Some(number) = WATCH.with_borrow_mut(|watch| {
            let watch = watch.as_mut()?;
            watch.calls.push(call);
            u32::try_from(watch.calls.len() - 1).ok()
        }) else {
            return make();
        };
        meet(2 * number)?;
        let done = make();
        meet(2 * number + 1)?;
        done
    }

    fn meet(point: u32) -> Result<()> {
        WATCH.with_borrow_mut(|watch| {
            let Some(watch) = watch.as_mut() else {
                return Ok(());
            };
            match watch.fault {
                _ if watch.ended => Err(Errno::IO),
                Some((at, fault)) if at == point => match fault {
                    Fault::Fail(errno) => Err(errno),
                    Fault::End => {
                        watch.ended = true;
                        Err(Errno::IO)
                    }
                    Fault::Kill => {
                        let me = rustix::process::getpid();
                        let killed = rustix::process::Signal::KILL;
                        rustix::process::kill_process(me, killed)?;
                        Err(Errno::IO)
                    }
                },
                _ => Ok(()),
            }
        })
    }
}
