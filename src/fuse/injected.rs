//! Failures and delays that a test has asked for, met by requests of their kinds.
//!
//! A union without any is served by [`Nothing`], which the compiler removes: there is no branch for
//! it in any request.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::stats::Op;
use crate::sys::Errno;

/// What requests meet before they are served.
pub(super) trait Meet: Send + Sync + 'static {
    /// Delays a request of this kind, or says what it fails with.
    fn meet(&self, op: Op) -> Option<Errno>;
}

/// Nothing at all.
#[derive(Clone, Copy, Debug)]
pub(super) struct Nothing;

impl Meet for Nothing {
    #[inline(always)]
    fn meet(&self, _op: Op) -> Option<Errno> {
        None
    }
}

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// It is answered with this, and nothing is done.
    Fail(Errno),
    /// It is served so much later.
    Delay(Duration),
}

/// Which requests an effect is for.
#[derive(Debug)]
pub(crate) struct Rule {
    kinds: &'static [Op],
    /// The first of them, counted from 1, and the last.
    first: u64,
    last: u64,
    effect: Effect,
    seen: AtomicU64,
}

impl Rule {
    /// For the requests of `kinds` from the `first` to the `last`, counted together from 1.
    pub fn new(kinds: &'static [Op], (first, last): (u64, u64), effect: Effect) -> Self {
        Self {
            kinds,
            first,
            last,
            effect,
            seen: AtomicU64::new(0),
        }
    }

    /// Counts a request; what it meets.
    fn meet(&self, op: Op) -> Option<Effect> {
        if !self.kinds.contains(&op) {
            return None;
        }
        let number = self.seen.fetch_add(1, Ordering::Relaxed) + 1;
        (self.first <= number && number <= self.last).then_some(self.effect)
    }
}

/// All rules of a mount.
#[derive(Debug)]
pub(crate) struct Injected {
    rules: Vec<Rule>,
    is_ending: Mutex<bool>,
    end: Condvar,
}

impl Injected {
    /// These rules; every one counts for itself.
    pub fn new(rules: Vec<Rule>) -> Self {
        Self {
            rules,
            is_ending: Mutex::new(false),
            end: Condvar::new(),
        }
    }

    /// With `false` nothing is delayed from now on, nor what is being delayed.
    pub fn delays(&self, on: bool) {
        *self.is_ending.lock() = !on;
        self.end.notify_all();
    }

    fn delay(&self, time: Duration) {
        let until = Instant::now() + time;
        let mut is_ending = self.is_ending.lock();
        while !*is_ending {
            if self.end.wait_until(&mut is_ending, until).timed_out() {
                return;
            }
        }
    }
}

impl Meet for std::sync::Arc<Injected> {
    fn meet(&self, op: Op) -> Option<Errno> {
        let mut failure = None;
        for rule in &self.rules {
            match rule.meet(op) {
                // Another rule may delay it before it fails.
                Some(Effect::Fail(errno)) => failure = failure.or(Some(errno)),
                Some(Effect::Delay(time)) => self.delay(time),
                None => {}
            }
        }
        failure
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn each_rule_counts_its_own_kinds() {
        let rule = |kinds, range, errno| Rule::new(kinds, range, Effect::Fail(errno));
        let rules = vec![
            rule(&[Op::Write, Op::CopyFileRange], (2, 2), Errno::NOSPC),
            rule(&[Op::Write], (3, u64::MAX), Errno::IO),
        ];
        let injected = Arc::new(Injected::new(rules));
        let met = [
            Op::Write,
            Op::Read,
            Op::CopyFileRange,
            Op::Write,
            Op::Write,
            Op::Write,
        ]
        .map(|op| injected.meet(op));
        let io = Some(Errno::IO);
        assert_eq!(met, [None, None, Some(Errno::NOSPC), None, io, io]);
    }

    #[test]
    fn a_delay_ends_with_the_mount() {
        let rules = vec![Rule::new(
            &[Op::Read],
            (1, u64::MAX),
            Effect::Delay(Duration::from_secs(1000)),
        )];
        let injected = Arc::new(Injected::new(rules));
        let delayed = std::thread::spawn({
            let injected = Arc::clone(&injected);
            move || injected.meet(Op::Read)
        });
        injected.delays(false);
        assert_eq!(delayed.join().unwrap(), None);
        assert_eq!(injected.meet(Op::Read), None);
    }
}
